"""Records that come from outside: what one may hold, checked before anything is made of it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any, NoReturn

from .records import STATS

__all__ = ["MOST_PAGES", "check_record"]

_NAME = "[A-Za-z0-9]{1,100}"
_CODE = re.compile(rf"-|z|s'?|k([0-9]{{1,18}}|\?)'?|[ahf](@{_NAME}:[0-9]{{1,18}})?'?")
_COUNTER = re.compile(r"[a-z][a-z0-9_]{0,63}")
_EVENT = re.compile(r"[a-z]{1,20}( [!-~]{1,120}){0,8}")
#: pages that one record may tell of: a state is added up page by page
MOST_PAGES = 1 << 22


def check_record(record: Any, fail: Callable[[str, object], NoReturn]) -> None:
    """Check what a file holds as a record, but for its operation.

    Parameters
    ----------
    record : object
        Decoded JSON.
    fail : callable of (str, object)
        Called with what is wrong and the value; does not return.
    """
    if not isinstance(record, dict) or set(record) - {"op", "ret", "c", "s", "p", "t", "v", "n"}:
        fail("no record", record)
    if "ret" in record and not _is_answer(record["ret"]):
        fail("ret of a record is a whole number, or one and a list of them, not", record["ret"])
    for key in ("c", "s", "p", "v", "n"):
        if not isinstance(record.get(key, {}), dict):
            fail(f"{key} of a record is an object, not", record[key])
    for name, value in itertools.chain(record.get("c", {}).items(), record.get("v", {}).items()):
        if not _COUNTER.fullmatch(name):
            fail("no name of a counter", name)
        if not _is_number(value):
            fail(f"counter {name} is a whole number, not", value)
    for name, row in record.get("s", {}).items():
        if not re.fullmatch(_NAME, name):
            fail("no name of a process", name)
        if not isinstance(row, list) or len(row) != len(STATS) or not all(one is None or _is_number(one) for one in row):
            fail(f"statistics of {name} are {len(STATS)} whole numbers, not", row)
    pages = sum(_check_runs(name, runs, fail) for name, runs in record.get("p", {}).items())
    if pages > MOST_PAGES:
        fail(f"a record tells of {MOST_PAGES} pages at most, not", pages)
    for name, runs in record.get("n", {}).items():
        _check_nodes(name, runs, fail)
    told = record.get("t", [])
    if not isinstance(told, list):
        fail("t of a record is a list of events, not", told)
    for text in told:
        if not isinstance(text, str) or not _EVENT.fullmatch(text):
            fail("no event", text)


def _check_runs(name: str, runs: Any, fail: Callable[[str, object], NoReturn]) -> int:
    """Check the pages of one process and return how many they are."""
    if not re.fullmatch(_NAME, name):
        fail("no name of a process", name)
    if not isinstance(runs, list):
        fail(f"pages of {name} are a list of runs, not", runs)
    pages = 0
    for run in runs:
        if not isinstance(run, list) or len(run) != 3 or not all(map(_is_number, run[:2])) or min(run[:2]) < 0:
            fail(f"pages of {name} are runs [vpn, n, code], not", run)
        if not isinstance(run[2], str) or not _CODE.fullmatch(run[2]):
            fail("no code of a page", run[2])
        pages += run[1]
    return pages


def _check_nodes(name: str, runs: Any, fail: Callable[[str, object], NoReturn]) -> None:
    """Check the NUMA nodes of the pages of one process."""
    if not re.fullmatch(_NAME, name):
        fail("no name of a process", name)
    if not isinstance(runs, list):
        fail(f"nodes of {name} are a list of runs, not", runs)
    for run in runs:
        if not isinstance(run, list) or len(run) != 3 or not all(map(_is_number, run)) or min(run[:2]) < 0:
            fail(f"nodes of {name} are runs [vpn, n, node], not", run)


def _is_answer(value: object) -> bool:
    """Whether it is what a call returned, or that with what it said of each page."""
    if isinstance(value, list):
        return len(value) == 2 and _is_number(value[0]) and isinstance(value[1], list) and all(map(_is_number, value[1]))
    return _is_number(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(1 << 64) < value < 1 << 64
