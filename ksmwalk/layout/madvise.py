"""Advice of madvise(2): the one table of its names and numbers."""

from __future__ import annotations

from enum import IntEnum


class Madvise(IntEnum):
    """What a process may tell the kernel of a range of its memory, with the numbers of Linux on x86-64 and most others.

    A scenario and `Mm.madvise` call them by their names in lower case.
    """

    NORMAL = 0
    RANDOM = 1
    SEQUENTIAL = 2
    WILLNEED = 3
    DONTNEED = 4
    FREE = 8
    REMOVE = 9
    DONTFORK = 10
    DOFORK = 11
    MERGEABLE = 12
    UNMERGEABLE = 13
    HUGEPAGE = 14
    NOHUGEPAGE = 15
    DONTDUMP = 16
    DODUMP = 17
    WIPEONFORK = 18
    KEEPONFORK = 19
    COLD = 20
    PAGEOUT = 21
    POPULATE_READ = 22
    POPULATE_WRITE = 23
    DONTNEED_LOCKED = 24
    COLLAPSE = 25
    GUARD_INSTALL = 102
    GUARD_REMOVE = 103


#: name in lower case -> number, a plain integer
ADVICE: dict[str, int] = {advice.name.lower(): int(advice) for advice in Madvise}
