"""Signals while something of the machine is taken: put back on the way out, and the way out is not disturbed.

Python runs handlers in the main thread whichever thread the signal came to, so holding them back is done here and not
by a mask: a mask of the main thread does not keep a signal from a thread of numpy's.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

_ENDING = (signal.SIGTERM, signal.SIGHUP)


class _State:
    """What the handler goes by."""

    held = 0
    pending: int | None = None
    leaving = False


def _handle(number: int, _frame: FrameType | None) -> None:
    if _State.leaving:
        return  # on the way out already: once more makes it no faster, and would leave things lying about
    if _State.held:
        _State.pending = number
    else:
        _leave(number)


def _leave(number: int) -> NoReturn:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    _State.leaving = True
    raise SystemExit(128 + number)


@contextlib.contextmanager
def orderly() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit, so that what has been taken is put back on their way out too.

    What is ignored, as SIGHUP is under nohup, stays ignored. Only the main thread may set handlers; elsewhere the
    caller's own are in force.
    """
    old = {}
    if threading.current_thread() is threading.main_thread():
        for number in (*_ENDING, signal.SIGINT):
            before = signal.getsignal(number)
            # a handler of the caller's for Ctrl-C knows better; so does an outer call of this
            if before is signal.SIG_DFL and number != signal.SIGINT or before is signal.default_int_handler:
                old[number] = signal.signal(number, _handle)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        if old:
            _State.leaving = False


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Hold signals back while things are put in order; the first comes afterwards."""
    _State.held += 1
    try:
        yield
    finally:
        _State.held -= 1
        if not _State.held and _State.pending is not None:
            number, _State.pending = _State.pending, None
            _leave(number)
