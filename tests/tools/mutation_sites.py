"""Where the engine's source can be broken: sites found by operators, and a draw from them that does not move with them.

A site is named by its function and its line, and drawn by a hash of that name: code that moves from one file to another
keeps its sites, and the same seed draws them again.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "ksmwalk"

#: what decides nothing but speed: a mutant of it answers as before
FAST_ONLY = re.compile(r"\bkw_check\(|\bkw_prefetch|\bprefetch\(|\bwarm|\bLOOK_AHEAD\b")
FAST_FUNCTIONS = re.compile(r"warm_|will_search$")

COMPARED = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}
COMPARISON = re.compile(r" (<=|>=|==|!=|<|>) ")
JOINED = re.compile(r" (and|or) ")
CONDITION = re.compile(r"^(\s*)(if|elif) (.+):$")
#: ` + 1`, ` - 1` but not in the mask of `SIZE - 1`; the 511 and 512 of a table; a number something is compared with
NUMBERS = (
    (re.compile(r" [+-] 1\b(?! *\))"), lambda text: ""),
    (re.compile(r"(?<=[+-]= )1\b"), lambda text: "2"),
    (re.compile(r"\b51[12]\b"), lambda text: str(int(text) - 1)),
    (re.compile(r"(?<=[<>=!]= )\d+\b(?!\])|(?<= [<>] )\d+\b(?!\])"), lambda text: str(int(text) + 1)),
)
STATEMENTS = (
    re.compile(r"^[\w.]+\(.*\)$"),               # a call whose answer nobody asks for
    re.compile(r"^[^=()]+ [-+&|]= .+$"),         # a count, a flag
    re.compile(r"^[^=(]*[.\]][^=(]* = .+$"),     # a store to a record, not to a local
    re.compile(r"^(break|continue)$"),
)


@dataclass(frozen=True)
class Site:
    """One line of one function, as it stands and as it is broken."""

    name: str
    file: str
    function: str
    line: int
    column: int
    old: str
    new: str

    def apply(self, text: str) -> str:
        lines = text.split("\n")
        line = lines[self.line]
        assert line[self.column :].startswith(self.old), self.name
        lines[self.line] = line[: self.column] + self.new + line[self.column + len(self.old) :]
        return "\n".join(lines)


def engine_files() -> list[Path]:
    """All compiled sources and the declarations that hold code, but those of the record layout and of reading /proc."""
    files = [path for end in ("pyx", "pxd") for path in PACKAGE.glob(f"**/_*.{end}")
             if path.parent.name not in ("layout", "proc")]  # fmt: skip
    return sorted(files, key=lambda path: path.relative_to(PACKAGE).as_posix())


def code_lines(text: str) -> Iterator[tuple[int, str, str]]:
    """(line number, function, code without comment) of every line inside a C function without Python."""
    function, quoted, header, skipping = "", False, "", False
    for number, line in enumerate(text.split("\n")):
        quotes = line.count('"""')
        if quoted or quotes:
            quoted ^= quotes % 2
            continue
        code = re.sub(r"\s*#.*$", "", line).rstrip()
        if not code:
            continue
        if code[0] not in " )":
            function, header = "", code
        elif header and not header.endswith(":"):
            header += code
        elif function and not skipping:
            yield number, function, code
        if header.endswith(":") and not function:
            found = re.match(r"cdef [^=]*?(\w+)\(.*noexcept", header)
            function = found[1] if found else ""
            skipping = bool(FAST_FUNCTIONS.match(function)) or "class" in header.split("(")[0]


def breaks(code: str, alone: bool) -> Iterator[tuple[int, str, str, str]]:
    """(column, old text, new text, how it is told) of everything the operators do to one line."""
    indent = len(code) - len(code.lstrip())
    for found in COMPARISON.finditer(code):
        yield found.start(1), found[1], COMPARED[found[1]], f"[{found[1]} -> {COMPARED[found[1]]}]"
    for found in JOINED.finditer(code):
        other = "or" if found[1] == "and" else "and"
        yield found.start(1), found[1], other, f"[{found[1]} -> {other}]"
    for pattern, turn in NUMBERS:
        for found in pattern.finditer(code):
            new = turn(found[0])
            yield found.start(), found[0], new, f"[{found[0].strip()} -> {new or 'nothing'}]"
    if not alone:
        return
    if found := CONDITION.match(code):
        yield found.start(3), found[3], f"not ({found[3]})", f"[not] {found[3]}"
    statement = code.strip()
    if not statement.startswith("cdef ") and any(pattern.match(statement) for pattern in STATEMENTS):
        yield indent, statement, "pass", f"[dropped] {statement}"


def depth(code: str) -> int:
    return sum(code.count(c) for c in "([{") - sum(code.count(c) for c in ")]}")


def sites() -> list[Site]:
    """Every site of the engine, in the order of the source."""
    out: list[Site] = []
    seen: Counter[str] = Counter()
    for path in engine_files():
        file, level = path.relative_to(PACKAGE).as_posix(), 0
        for number, function, code in code_lines(path.read_text()):
            alone = level == 0 and depth(code) == 0
            level = max(0, level + depth(code))
            if FAST_ONLY.search(code):
                continue
            for column, old, new, told in breaks(code, alone):
                if code[:column].count('"') % 2:  # within a text
                    continue
                if not (told.startswith("[dropped]") or told.startswith("[not]")):
                    told = (code[:column] + told + code[column + len(old) :]).strip()
                    told = re.sub(r" +", " ", told)
                name = f"{function}: {told}"
                seen[name] += 1
                if seen[name] > 1:
                    name += f" #{seen[name]}"
                out.append(Site(name, file, function, number, column, old, new))
    return out


def memory_side(file: str) -> bool:
    """Faults, areas, folios and ranges: the memory room, and the system calls on it."""
    return file.startswith(("memory/", "host/")) and not checks_only(file)


def checks_only(file: str) -> bool:
    """What looks over arrays that came from elsewhere."""
    return "/_check" in file


def one_will_do(file: str) -> bool:
    return file.endswith(".pxd") or checks_only(file)


def drawn(seed: int, count: int) -> list[Site]:
    """`count` sites, half of them on the memory side, one at least of each module, ordered as the source is.

    No more than one of a declaration file, as all modules that include it have to be compiled for it, and of the checks
    of arrays that came from elsewhere.
    """
    def rank(site: Site) -> str:
        return hashlib.sha256(f"{seed} {site.name}".encode()).hexdigest()

    every = sorted(sites(), key=rank)
    chosen: list[Site] = []
    for side in (True, False):
        mine = [site for site in every if memory_side(site.file) == side]
        quota = count // 2 if side else count - count // 2
        files = sorted({site.file for site in mine})
        first = [next(site for site in mine if site.file == file) for file in files]
        names = {site.name for site in first}
        rest = [site for site in mine if site.name not in names and not one_will_do(site.file)]
        chosen += (first + rest)[:quota]
    return sorted(chosen, key=lambda site: (site.file, site.line, site.column))
