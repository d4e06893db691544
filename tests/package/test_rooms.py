"""The house: imports and cimports point down the floors only, files and functions stay small enough to read."""

import ast
import importlib
import importlib.util
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "ksmwalk"
#: rooms by floor, the lowest first; those of one floor don't know of each other
FLOORS = [
    {"signatures"},
    {"gate"},
    {"layout", "entries"},
    {"errors", "_core"},
    {"drawing", "kernels"},
    {"memory"},
    {"tables", "ksm"},
    {"host"},
    {"policies", "controllers"},
    {"embedding", "scenarios"},
    {"proc"},
    {"sources"},
    {"estimates"},
    {"kernel"},
    {"commands"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
#: rooms that stand beside each other on one floor and may look in
MAY_LOOK_IN = {("entries", "layout"), ("errors", "_core")}
#: the front door: hands names on from everywhere
FRONT = {"__init__", "__main__", "_moved"}

pytestmark = pytest.mark.skipif(not SOURCE.is_dir(), reason="no source tree")


def sources(*endings):
    return sorted(path for path in SOURCE.rglob("*") if path.suffix in endings)


def room_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).parts
    return parts[0].split(".")[0]


def imported(path: Path):
    """(line, room) of everything in ksmwalk that a file imports or cimports, wherever in the file it stands."""
    package = ["ksmwalk", *path.relative_to(SOURCE).parts[:-1]]
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if found := re.match(r"\s*from\s+(\.+)([\w.]*)\s+c?import\s+(.*)", line):
            dots, name, what = found.groups()
            base = package[: len(package) - len(dots) + 1] + ([name] if name else [])
            whole = ".".join(base)
        elif found := re.match(r"\s*from\s+(ksmwalk[\w.]*)\s+c?import\s+(.*)", line):
            whole, what = found.groups()
        elif found := re.match(r"\s*c?import\s+(ksmwalk[\w.]*)", line):
            whole, what = found[1], ""
        else:
            continue
        parts = whole.split(".")
        if parts[0] != "ksmwalk":
            continue
        if len(parts) > 1:
            yield number, parts[1]
        else:
            for name in re.findall(r"\w+", what):
                if name in FLOOR:
                    yield number, name


def test_every_file_stands_in_a_room():
    strange = [str(path) for path in sources(".py", ".pyx", ".pxd", ".pyi") if room_of(path) not in {*FLOOR, *FRONT}]
    assert not strange


def test_imports_point_down_the_floors_only():
    wrong = []
    for path in sources(".py", ".pyx", ".pxd", ".pyi"):
        room = room_of(path)
        if room in FRONT:
            continue
        for line, other in imported(path):
            if other == room or (room, other) in MAY_LOOK_IN or other == "__version__":
                continue
            if other not in FLOOR or FLOOR[other] >= FLOOR[room]:
                wrong.append(f"{path.relative_to(SOURCE)}:{line}: {room} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_no_starred_cimport_but_the_layout():
    wrong = [
        f"{path.relative_to(SOURCE)}:{number}: {line}"
        for path in sources(".pyx", ".pxd")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"cimport\s+\*", line) and "ksmwalk.layout._layout" not in line
    ]
    assert not wrong, "\n".join(wrong)


def test_no_file_is_longer_than_500_lines():  # but what is written from another file
    long = {str(path.relative_to(SOURCE)): n for path in sources(".py", ".pyx", ".pxd", ".pyi", ".h", ".hpp", ".c")
            if (n := len(path.read_text().splitlines())) > 500 and "Written by generate.py" not in path.read_text()[:200]}
    assert not long


def functions_of_python(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body
            # A docstring is read apart from the code.
            first = body[0]
            doc = 0
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
                doc = first.end_lineno - first.lineno + 1
            yield node.name, node.end_lineno - node.lineno + 1 - doc


def functions_of_cython(path: Path):
    """(name, lines) of every def and cdef function, by indentation."""
    lines = path.read_text().splitlines()
    at = 0
    while at < len(lines):
        begin = re.match(r"(\s*)(?:cdef|cpdef|def)\s+(?:[^=]*?)(\w+)\(", lines[at])
        if not begin:
            at += 1
            continue
        indent = len(begin[1])
        end = at
        while not lines[end].rstrip().endswith((":", "nogil")) and end + 1 < len(lines):
            end += 1
        if not lines[end].rstrip().endswith(":"):
            at = end + 1
            continue
        last = end
        following = end + 1
        while following < len(lines) and (
            not lines[following].strip() or len(lines[following]) - len(lines[following].lstrip()) > indent
        ):
            if lines[following].strip():
                last = following
            following += 1
        yield begin[2], last - at + 1
        at = max(at + 1, following)


def test_no_function_is_longer_than_70_lines():
    long = []
    for path in sources(".py", ".pyx", ".pxd"):
        find = functions_of_python if path.suffix == ".py" else functions_of_cython
        long += [f"{path.relative_to(SOURCE)}: {name}: {n} lines" for name, n in find(path) if n > 70]
    assert not long, "\n".join(long)


def test_names_of_before_the_rooms_still_import():
    from ksmwalk import _moved

    for old, new in _moved.MOVED.items():
        if new == "ksmwalk.commands.plot" and importlib.util.find_spec("matplotlib") is None:
            continue
        assert importlib.import_module(old) is importlib.import_module(new), old
        assert importlib.import_module(new).__spec__.name == new


def test_every_compiled_door_of_a_world_looks_at_the_mark():
    """One thread at a time: what Python calls with a World asks whether it is alone, or enters."""
    without = []
    for path in sources(".pyx"):
        for function in re.split(r"\n(?=def |cdef )", path.read_text()):
            if function.startswith("def ") and "World world" in function.split("):")[0]:
                if not re.search(r"^ +(alone|enter)\(world\)", function, re.M):
                    without.append(f"{path.relative_to(SOURCE)}: {function.split('(')[0]}")
                elif "with nogil" in function and " leave(world)" not in function:
                    without.append(f"{path.relative_to(SOURCE)}: {function.split('(')[0]} does not leave")
    assert not without, without
