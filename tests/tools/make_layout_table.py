"""Write ksmwalk/layout/_layout_table.h from ksmwalk/layout/_layout.h: every field with its offset, every constant with its value.

    python tests/tools/make_layout_table.py

Run it after a change of _layout.h; tests/layout/test_layout.py holds layout.py to what the C compiler says of the table.
"""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).resolve().parents[2] / "ksmwalk" / "layout"
HEAD = """\
/* Every field of every struct of _layout.h with its offset, and every constant, for the test that holds layout.py to
 * them. Written from _layout.h by tests/tools/make_layout_table.py. */
#ifndef KSMWALK_LAYOUT_TABLE_H
#define KSMWALK_LAYOUT_TABLE_H
#include <stddef.h>
#include "_layout.h"
typedef struct { const char *record, *field; int64_t value; } kw_fact;
static const kw_fact kw_fields[] = {
"""
BETWEEN = "    {0, 0, 0},\n};\nstatic const kw_fact kw_constants[] = {\n"
TAIL = "    {0, 0, 0},\n};\n#endif\n"
#: structs that are no record of an array
NO_RECORDS = {"kw_tables", "kw_rb"}


def without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/", "", text, flags=re.S)


def fields(header: str):
    """(struct, field) in order; field "" for the struct itself."""
    for body, name in re.findall(r"typedef struct \{(.*?)\} (kw_\w+);", header, re.S):
        if name in NO_RECORDS:
            continue
        yield name, ""
        for line in without_comments(body).split(";"):
            for declarator in " ".join(line.split()).partition(" ")[2].split(","):
                if declarator:
                    yield name, re.sub(r"\[.*", "", declarator.strip()).lstrip("*")


def constants(header: str):
    """Names of enum members and of the bits that are macros."""
    for members in re.findall(r"enum \{(.*?)\};", header, re.S):
        for member in without_comments(members).split(","):
            if name := member.split("=")[0].strip():
                yield name
    yield from re.findall(r"#define ((?:PTE|VM|KW_P)\w+) 0x", header)


def table(header: str) -> str:
    out = [HEAD]
    for name, field in fields(header):
        value = f"offsetof({name}, {field})" if field else f"sizeof({name})"
        out.append(f'    {{"{name[3:].upper()}", "{field}", {value}}},\n')
    out.append(BETWEEN)
    out += [f'    {{"", "{name}", (int64_t)({name})}},\n' for name in constants(header)]
    return "".join([*out, TAIL])


if __name__ == "__main__":
    (HERE / "_layout_table.h").write_text(table((HERE / "_layout.h").read_text()))
