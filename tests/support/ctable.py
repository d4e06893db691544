"""The table of functions behind `ksmwalk.h`, called as C calls it: the header is read, no compiler is needed."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import ksmwalk
from ksmwalk.embedding import _capsule

_NUMBERS = {
    "int": ctypes.c_int, "int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "uint32_t": ctypes.c_uint32,
    "uint64_t": ctypes.c_uint64, "void": None,
}  # fmt: skip


def _ctype(text: str) -> type | None:
    """The ctypes type of a parameter or an answer, with or without its name."""
    text = text.replace("const ", "").strip()
    if "*" in text:
        return ctypes.c_char_p if text.startswith("char") else ctypes.c_void_p
    return _NUMBERS[text.split()[0]]


def header() -> str:
    return Path(ksmwalk.get_include(), "ksmwalk.h").read_text(encoding="utf-8")


def fields() -> list[tuple[str, type]]:
    """Name and type of every field of kw_api, in order."""
    text = header()
    end = text.index("} kw_api;")
    body = re.sub(r"/\*.*?\*/", "", text[text.rindex("typedef struct {", 0, end) : end], flags=re.S)
    found: list[tuple[str, type]] = []
    for statement in body.split("{", 1)[1].split(";"):
        statement = " ".join(statement.split())
        if function := re.fullmatch(r"(.+?) ?\(\*(\w+)\)\((.*)\)", statement):
            answer, name, taken = function.groups()
            types = [] if taken == "void" else [_ctype(one) for one in taken.split(",")]
            found.append((name, ctypes.CFUNCTYPE(_ctype(answer), *types)))
        elif statement:
            kind, name = statement.split()
            found.append((name, _NUMBERS[kind]))
    return found


class Table(ctypes.Structure):
    _fields_ = fields()


class Counters(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in re.findall(
            r"\w+(?=[,;])", re.sub(r"/\*.*?\*/", "", header().split("typedef struct {")[1].split("} kw_counters")[0], flags=re.S)
        )
    ]


def table() -> Table:
    """The table of the package."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return Table.from_address(pointer(_capsule.api, b"ksmwalk.embedding._capsule.api"))
