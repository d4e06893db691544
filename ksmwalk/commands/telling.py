"""How far a long step has come, on stderr, where that is a terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from . import report

# how long a command may take until its progress is shown, and how often that changes
_PATIENCE, _PACE = 0.5, 0.1


@contextlib.contextmanager
def telling() -> Iterator[Callable[[str, int, int], None]]:
    """Give a callable of (what, done, total) that shows the step on one line, wiped in the end.

    Yields
    ------
    callable
    """
    out = sys.stderr
    if out is None or not out.isatty():
        yield lambda what, done, total: None
        return
    begin = time.monotonic()
    last, written = begin, False

    def tell(what: str, done: int, total: int) -> None:
        nonlocal last, written
        now = time.monotonic()
        if now - begin > _PATIENCE and now - last > _PACE:
            share = f" {done:,} of {total:,}" if total else f" {done:,}"
            print(f"\r\x1b[K{report.printable(what)}:{share}", end="", file=out, flush=True)
            last, written = now, True

    try:
        yield tell
    finally:
        if written:
            with contextlib.suppress(OSError, ValueError):
                print("\r\x1b[K", end="", file=out, flush=True)
