"""Which pages the records of a scenario tell of: those that it mapped or asks for, not what a stack has grown to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .kinds import HEAP_VPN
from .records import Pages


class Spans:
    """What is told of each process.

    Parameters
    ----------
    ops : iterable of list
        All of the scenario. Where none maps a stack, all that is mapped is told of, and nothing is kept here.
    """

    def __init__(self, ops: Iterable[list[Any]]):
        self._needed = any(op[0] == "mmap" and len(op) > 4 and op[4].get("growsdown") for op in ops)
        self._of: dict[str, dict[int, int]] = {}

    def note(self, op: list[Any], done: bool) -> None:
        """Note an operation; done: it was not refused.

        Parameters
        ----------
        op : list
        done : bool
        """
        what, name, *words = op if len(op) > 1 else (*op, "")
        if not self._needed:
            return
        if what == "mremap":  # of several areas the first may have moved before one was refused
            vpn, _, new_n, to = words[:4]
            self._add(name, vpn if to is None else to, new_n)
        elif not done:
            return
        elif what in ("mmap", "watch"):
            self._add(name, words[0], words[1])
        elif what == "brk":
            self._add(name, HEAP_VPN, max(words[0], 1))
        elif what == "fork":
            self._of[words[0]] = dict(self._of.get(name, {}))
        elif what in ("clone", "vfork"):
            self._of[words[0]] = self._of.setdefault(name, {})
        elif what in ("spawn", "exec"):
            self._of[name] = {}

    def _add(self, name: str, vpn: int, n: int) -> None:
        spans = self._of.setdefault(name, {})
        spans[vpn] = max(n, spans.get(vpn, 0))

    def told(self, name: str, pages: Pages) -> Pages:
        """Return those of a process's pages that a record tells of.

        Parameters
        ----------
        name : str
        pages : (vpn, frame, kind)
            As `Recorder.record` takes them.

        Returns
        -------
        (vpn, frame, kind)
        """
        if not self._needed:
            return pages
        mask = np.zeros(len(pages[0]), np.bool_)
        for vpn, n in self._of.get(name, {}).items():
            mask |= (pages[0] >= vpn) & (pages[0] < vpn + n)
        return pages[0][mask], pages[1][mask], pages[2][mask]
