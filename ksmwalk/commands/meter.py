"""How far something has come whose steps come from inside: a line on standard error, where that is a terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from types import TracebackType
from typing import Self, TextIO

from . import report

_PATIENCE, _PACE = 0.5, 0.1
_BAR = 20


class Meter(contextlib.AbstractContextManager["Meter"]):
    """To be called with what is done, how much of it, and of how much (0: not known).

    Parameters
    ----------
    out : file, optional
        Standard error by default; nothing is written where it is no terminal, nor in the first half second.
    """

    out: TextIO
    begin: float
    last: float
    written: bool

    def __init__(self, out: TextIO | None = None):
        self.out = out or sys.stderr
        self.begin = self.last = time.monotonic()
        self.shown: bool = self.out is not None and self.out.isatty()
        self.written = False

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if not self.shown or now - self.begin < _PATIENCE or now - self.last < _PACE:
            return
        self.last, self.written = now, True
        what = report.printable(what)
        words = f"{what}: {report.count(done)}" if done or total else what
        if total:
            filled = min(_BAR, _BAR * done // total)
            words = f"{what}: [{'#' * filled}{'.' * (_BAR - filled)}] {report.count(done)} of {report.count(total)}"
        # what was written before may have been longer
        print(f"\r{words}\x1b[K", end="", file=self.out, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.written:
            with contextlib.suppress(OSError, ValueError):
                print("\r\x1b[K", end="", file=self.out, flush=True)
