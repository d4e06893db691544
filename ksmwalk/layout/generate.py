"""Write what Cython and Python know of the arrays from `_codes.h` and `_layout.h`, the only places where it is said.

    python ksmwalk/layout/generate.py

The build runs it; nothing it writes is kept in git:

_layout.pxd      the structs, bits and codes, for Cython
_arrays.pxi      how `_core.World` binds arrays to the pointers of `kw_world`
_records.py      dtypes, enums and the table of arrays, for Python (`ksmwalk.layout` hands them on)
_layout_table.h  offsets and values as the C compiler has them, for the test that holds the dtypes to them

It reads a small part of C: `typedef struct { ... } kw_name;` and `struct kw_world { ... };` with integers, pointers to
them and arrays of fixed length as fields; `enum { ... };`; `#define NAME 0x...ull`. It needs neither numpy nor ksmwalk.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
SOURCES = ("_codes.h", "_layout.h")
MADE = "Written by generate.py from _codes.h and _layout.h."
#: structs that are no record of an array
NO_RECORDS = ("kw_tables", "kw_rb", "kw_done", "kw_world")
NUMPY = {f"{u}int{bits}_t": f"{'u' if u else 'i'}{bits // 8}" for u in ("", "u") for bits in (8, 16, 32, 64)}


class Field(NamedTuple):
    """One field of a struct: C type (`uint64_t *` for a pointer), name, length (0: no array), its comment."""

    ctype: str
    name: str
    length: int
    comment: str


class Named(NamedTuple):
    """One enum class of Python: its kind, the prefix of its constants, a sentence, names and values."""

    kind: str
    prefix: str
    text: str
    members: dict[str, int]


def without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/", "", text, flags=re.S)


def structs(header: str) -> dict[str, list[Field]]:
    """Fields of every struct in order."""
    found = {}
    for body, name in re.findall(r"typedef struct \{(.*?)\} (kw_\w+);", header, re.S):
        found[name] = list(_fields(body))
    found["kw_world"] = list(_fields(_world(header)))
    return found


def _world(header: str) -> str:
    """What stands between the braces of kw_world."""
    found = re.search(r"struct kw_world \{(.*?)\n\};", header, re.S)
    if not found:
        raise SystemExit("_layout.h: no struct kw_world")
    return found[1]


def _fields(body: str) -> Iterator[Field]:
    comments: list[str] = []

    def put_aside(comment: re.Match[str]) -> str:
        comments.append(" ".join(comment[1].split()))
        return f"@{len(comments) - 1}@"

    body = re.sub(r"/\*(.*?)\*/", put_aside, body, flags=re.S)
    for statement, comment in re.findall(r"([^;]*);[ \t]*(?:@(\d+)@)?", body):
        text = " ".join(re.sub(r"@\d+@", "", statement).split())
        if "(" in text:
            continue  # a function pointer
        const = "const " if text.startswith("const ") else ""
        ctype, _, names = text.removeprefix("const ").partition(" ")
        for declarator in names.split(","):
            star = " *" if declarator.strip().startswith("*") else ""
            name, _, length = declarator.strip().lstrip("*").partition("[")
            note = comments[int(comment)] if comment else ""
            yield Field(const + ctype + star, name, int(length.rstrip("]") or 0), note)


def constants(header: str) -> dict[str, int]:
    """Every member of an enum and every macro that is a number."""
    found = {}
    for members in re.findall(r"\benum \{(.*?)\};", header, re.S):
        for member in without_comments(members).split(","):
            name, _, value = (part.strip() for part in member.partition("="))
            if name:
                found[name] = int(value, 0)
    for name, value in re.findall(r"#define (\w+) ((?:0x)?[0-9a-f]+)ull\b", header):
        found[name] = int(value, 0)
    return found


def classes(header: str) -> dict[str, Named]:
    """The enum classes: a comment `Name(Kind), PREFIX: text`, then an enum, or macros of that prefix."""
    values = constants(header)
    found = {}
    for name, kind, prefix, text, after in re.findall(
        r"/\* (\w+)\((Int\w+)\), (\w+): (.*?) \*/\n(enum \{.*?\};|(?:#define [^\n]*\n)+)", header, re.S
    ):
        if after.startswith("enum"):
            names = list(constants(after))
        else:
            names = re.findall(r"#define (\w+)", after)
        # The codes that are no error are KW_OK, KW_NONE.
        short = {n: n.removeprefix(prefix).removeprefix("KW_") for n in names}
        found[name] = Named(kind, prefix, text, {short[n]: values[n] for n in names})
    return found


def shape_of(field: Field) -> tuple[str, ...]:
    """`[rows_cap][512]` in the comment of an array of kw_world: ("rows_cap", "512")."""
    found = re.match(r"((?:\[[^\]]+\])+)", field.comment)
    if not found:
        raise SystemExit(f"_layout.h: kw_world.{field.name}: its comment must begin with its shape, like [rows_cap][512]")
    return tuple(re.findall(r"\[([^\]]+)\]", found[1]))


# ---------------------------------------------------------------- what is written


def pxd(header: str) -> str:
    out = [
        f"# {MADE}",
        "from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t",
        "",
        'cdef extern from "_layout.h" nogil:',
        "    void kw_check(bint ok) noexcept",
        "    bint KW_LIKELY(bint x) noexcept",
        "    bint KW_UNLIKELY(bint x) noexcept",
        "",
        "    enum:",
    ]
    values = constants(header)
    wide = {n for n, v in values.items() if v >= 1 << 31 or n.startswith("PTE_") or n.endswith("_SIZE")}
    out += [f"        {name}" for name in values if name not in wide]
    out += ["", *(f"    const uint64_t {name}" for name in values if name in wide)]
    for name, fields in structs(header).items():
        out += ["", f"    ctypedef struct {name}:"]
        for f in fields:
            ctype, star, _ = f.ctype.partition(" *")
            out.append(f"        {ctype} {'*' if star else ''}{f.name}{f'[{f.length}]' if f.length else ''}")
        if name == "kw_world":
            out += [f"        {line}" for line in _function_pointers(header)]
    return "\n".join(out) + "\n"


def _function_pointers(header: str) -> list[str]:
    body = without_comments(_world(header))
    return [f"{' '.join(text.split())} noexcept nogil" for text in body.split(";") if "(" in text]


def pxi(header: str) -> str:
    out = [
        f"# {MADE}",
        "cdef dict RECORD_SIZES = {",
        *(f'    "{f.name}": sizeof({f.ctype.removesuffix(" *")}),' for f in _arrays(header)),
        "}",
        "",
        "",
        "cdef void bind_arrays(kw_world *w, dict at):",
        '    """Set the pointers of the arrays from their addresses, by name."""',
        "    get = at.get",
        *(f'    w.{f.name} = <{f.ctype}><size_t>get("{f.name}", 0)' for f in _arrays(header)),
    ]
    return "\n".join(out) + "\n"


def _arrays(header: str) -> list[Field]:
    return [f for f in structs(header)["kw_world"] if f.ctype.endswith("*") and f.ctype != "void *"]


def records(header: str) -> str:
    found = structs(header)
    out = [
        f'"""The records, bits and arrays. {MADE}"""',
        "from enum import IntEnum, IntFlag",
        "from typing import Any, NamedTuple",
        "",
        "import numpy as np",
        "",
    ]
    for name, fields in found.items():
        if name in NO_RECORDS:
            continue
        out.append(f"{name[3:].upper()}: np.dtype[np.void] = np.dtype([")
        for f in fields:
            out.append(f'    ("{f.name}", "{NUMPY[f.ctype]}"{f", ({f.length},)" if f.length else ""}),')
        out.append("], align=True)")
    for name, one in classes(header).items():
        out += ["", "", f"class {name}({one.kind}):", f'    """{one.text}"""', ""]
        out += [f"    {member} = {hex(value) if one.kind == 'IntFlag' else value}" for member, value in one.members.items()]
    values = constants(header)
    out += [
        "", "",
        "class Array(NamedTuple):",
        '    """An array of a Host: a record, its shape in numbers and fields of CTL, whether it is accessed at random."""',
        "",
        "    dtype: np.dtype[Any]",
        "    shape: tuple[str, ...]",
        "    random: bool",
        "",
        "",
        "ARRAYS = {",
    ]
    for f in _arrays(header):
        ctype = f.ctype.removesuffix(" *")
        dtype = ctype[3:].upper() if ctype in found else f'np.dtype("{NUMPY[ctype]}")'
        shape = tuple(str(values.get(part, part)) for part in shape_of(f))
        random = re.match(r"(\[[^\]]+\])+~", f.comment) is not None
        out.append(f'    "{f.name}": Array({dtype}, {shape!r}, {random}),')
    out += ["}", ""]
    for name in ("KW_PAGE_SIZE", "KW_PMD_SIZE", "KW_PUD_SIZE"):
        out.append(f"{name.removeprefix('KW_')} = {values[name]}")
    return "\n".join(out) + "\n"


def table(header: str) -> str:
    out = [
        f"/* {MADE} */",
        "#include <stddef.h>",
        '#include "_layout.h"',
        "typedef struct { const char *record, *field; int64_t value; } kw_fact;",
        "static const kw_fact kw_fields[] = {",
    ]
    for name, fields in structs(header).items():
        if name in NO_RECORDS:
            continue
        out.append(f'    {{"{name[3:].upper()}", "", sizeof({name})}},')
        out += [f'    {{"{name[3:].upper()}", "{f.name}", offsetof({name}, {f.name})}},' for f in fields]
    out += ["    {0, 0, 0},", "};", "static const kw_fact kw_constants[] = {"]
    out += [f'    {{"", "{name}", (int64_t)({name})}},' for name in constants(header)]
    return "\n".join([*out, "    {0, 0, 0},", "};"]) + "\n"


def main() -> None:
    header = "".join((HERE / name).read_text() for name in SOURCES)
    for name, make in (("_layout.pxd", pxd), ("_arrays.pxi", pxi), ("_records.py", records), ("_layout_table.h", table)):
        path, text = HERE / name, make(header)
        # An untouched file keeps its date, and what depends on it is not compiled again.
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


if __name__ == "__main__":
    main()
