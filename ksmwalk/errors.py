"""Exceptions, and the one gate that turns the codes of compiled functions into them."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection
from typing import TYPE_CHECKING

from . import _core
from .layout import Bad, Code
from .signatures import RecordArray


class KsmwalkError(Exception):
    """Base of the exceptions that are ksmwalk's own."""


class BadEntryError(KsmwalkError, ValueError):
    """A page-table entry that can't be followed.

    Attributes
    ----------
    addr : int
        Address (bytes) at which the walk met it.
    level : int
        1 pte, 2 pmd, 3 pud, 4 p4d, 5 pgd.
    entry : int
        The raw 64-bit entry.
    kind : Bad
        Why it can't be followed.
    """

    addr: int
    level: int
    entry: int
    kind: Bad

    def __init__(self, addr: int, level: int, entry: int, kind: int):
        self.addr, self.level, self.entry, self.kind = int(addr), int(level), int(entry), Bad(int(kind))
        super().__init__(
            f"entry {self.entry:#018x} at address {self.addr:#x}, level {self.level}: {_WHY[self.kind]}"
        )

    def __reduce__(self) -> tuple[type[BadEntryError], tuple[int, int, int, Bad]]:
        return type(self), (self.addr, self.level, self.entry, self.kind)


_WHY = {
    Bad.FRAME: "points to a table frame that is not there",
    Bad.LOOP: "points to a table that is being walked already",
    Bad.LEAF: "leaf bit at a level that has no leaves",
    Bad.PFN: "maps a frame beyond the end of memory",
    Bad.NONPRESENT: "neither none nor present, where only tables may stand",
    Bad.BUDGET: "more tables to visit than any honest image has (tables shared beyond reason)",
}


def misspelt(owner: type, name: str, names: Collection[str] = ()) -> AttributeError:
    """The error for a name that a class has not got (or none of `names`), with those that are close."""
    names = names or [known for known in dir(owner) if not known.startswith("_")]
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    offer = f": did you mean {' or '.join(close)}?" if close else f"; it has {', '.join(names)}"
    return AttributeError(f"{owner.__name__} has nothing named {name!r}{offer}")


class Strict:
    """Base of objects with the attributes that their class names and no others: a misspelt name is an error."""

    __slots__ = ()

    if not TYPE_CHECKING:  # a checker that saw these would let every name pass

        def __setattr__(self, name, value):
            if not hasattr(type(self), name):
                raise misspelt(type(self), name)
            super().__setattr__(name, value)

        def __getattr__(self, name):
            if name.startswith("_"):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            raise misspelt(type(self), name)


class Settled(Strict):
    """The same for objects with a dictionary: what they were made with stays, names that begin with "_" are free."""

    if not TYPE_CHECKING:

        def __setattr__(self, name, value):
            if name.startswith("_") or hasattr(type(self), name):
                object.__setattr__(self, name, value)
            elif name in self.__dict__:
                raise AttributeError(f"{name} of this {type(self).__name__} can't be set")
            else:
                raise misspelt(type(self), name)


class ArenaFullError(KsmwalkError, MemoryError):
    """An arena of a Host is full; the message names it and its capacity."""


_FULL = {
    Code.NOROWS: "table pages",
    Code.NOFRAMES: "frames",
    Code.NOITEMS: "rmap_items",
    Code.NONODES: "stable nodes",
    Code.NOVMAS: "vmas",
    Code.NOMMS: "address spaces",
}
_MAX_ERRNO = 4095


def check(code: int, where: str = "", bad: RecordArray | None = None) -> int:
    """Pass a count or an index through; raise what a negative answer of a compiled function stands for.

    Parameters
    ----------
    code : int
        What the function answered.
    where : str
        The call and its place, for the message.
    bad : ndarray of layout.BAD, shape (1,), optional
        Where the compiled side noted an entry that can't be followed.

    Raises
    ------
    OSError
        -1 to -4095: an errno, as the system call would fail with.
    ArenaFullError, ValueError, KeyboardInterrupt
        The codes of `layout.Code`.
    """
    if code >= 0:
        return code
    if code >= -_MAX_ERRNO:
        raise OSError(-code, f"{os.strerror(-code)}: {where}")
    at = f" at {where}" if where else ""
    if code in _FULL:
        raise ArenaFullError(f"no {_FULL[Code(code)]} left{at}: make the Host (or PageTables) with more of them")
    if code == Code.BUSYENTRY:
        raise ValueError(f"something is mapped already{at}: unmap it first")
    if code == Code.BADENTRY:
        if bad is not None:
            raise BadEntryError(*(int(bad[name][0]) for name in ("addr", "level", "raw", "kind")))
        raise ValueError(f"an entry that can't be followed{at}")
    if code == Code.INTR:
        raise _core.take_pending() or KeyboardInterrupt(f"stopped{at}")
    raise KsmwalkError(f"code {code}{at}")
