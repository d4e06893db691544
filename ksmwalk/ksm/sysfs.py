"""The knobs and counters of /sys/kernel/mm/ksm: names, defaults, what a write accepts, what a refused one gets."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from dataclasses import dataclass

#: counters in the order of this table: name -> field of the `ksm` record, None where it is worked out
COUNTERS = {
    "pages_scanned": "pages_scanned",
    "pages_skipped": "pages_skipped",
    "full_scans": None,
    "pages_shared": "pages_shared",
    "pages_sharing": "pages_sharing",
    "pages_unshared": "pages_unshared",
    "pages_volatile": None,
    "ksm_zero_pages": "zero_pages",
    "stable_node_chains": "chains",
    "stable_node_dups": "dups",
    "general_profit": None,
}

#: bytes the kernel spends on one rmap_item, for the profit
RMAP_ITEM_SIZE = 64

ADVISORS = ("none", "scan-time")
#: pages_to_scan when the advisor is switched off; switched on it starts at advisor_min_pages_to_scan
PAGES_TO_SCAN_DEFAULT = 100


def refuse(code: int, knob: str, value: object) -> OSError:
    """The OSError of a write that the kernel refuses, naming knob and value."""
    return OSError(code, f"{os.strerror(code)}: {knob} = {value!r}")


def _text(value: object) -> str:
    """What would be written into the file."""
    if isinstance(value, bool):
        return str(int(value))
    return str(value)


def _number(bits: int, signed: bool, too_big: int) -> Callable[[str], int]:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)

    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]+\n?" if signed else r"\+?[0-9]+\n?", text):
            raise ValueError(errno.EINVAL)
        number = int(text)
        if not low <= number <= high:
            raise ValueError(too_big)
        return number

    return parse


def _bool(text: str) -> int:
    # As kstrtobool: the first letter decides, of "on" and "off" the second.
    for answer, starts in ((1, ("y", "Y", "t", "T", "1")), (0, ("n", "N", "f", "F", "0"))):
        if text.startswith(starts):
            return answer
    if text[:1] in ("o", "O") and text[1:2] in ("n", "N", "f", "F"):
        return int(text[1] in "nN")
    raise ValueError(errno.EINVAL)


def _mode(text: str) -> int:
    try:
        return ADVISORS.index(text.removesuffix("\n"))
    except ValueError:
        raise ValueError(errno.EINVAL) from None


# A number beyond its type gets EINVAL where the kernel's reader turns every parse error into it, ERANGE elsewhere.
_u32 = _number(32, False, errno.EINVAL)
_u64 = _number(64, False, errno.EINVAL)
_u64_erange = _number(64, False, errno.ERANGE)
_i32_erange = _number(31 + 1, True, errno.ERANGE)


@dataclass(frozen=True)
class Knob:
    """One tunable: where it is kept, its default, how a written text is read, and the values that are then allowed."""

    field: str
    default: int
    parse: Callable[[str], int]
    low: int = 0
    high: int = (1 << 64) - 1
    kept: int = (1 << 64) - 1  # bits of the number that are kept

    def read(self, name: str, value: object) -> int:
        """The number a write of `value` would set.

        Raises
        ------
        OSError
            What the kernel's write gives: EINVAL, or ERANGE where it is that.
        """
        try:
            number = self.parse(_text(value))
        except ValueError as err:
            raise refuse(err.args[0], name, value) from None
        if not self.low <= number <= self.high:
            raise refuse(errno.EINVAL, name, value)
        return number & self.kept


#: every tunable, with the kernel's name; `run` has its own door
KNOBS = {
    "run": Knob("run", 0, _u32, 0, 2),
    "pages_to_scan": Knob("pages_to_scan", PAGES_TO_SCAN_DEFAULT, _u32),
    "sleep_millisecs": Knob("sleep_millisecs", 20, _u32),
    "smart_scan": Knob("smart_scan", 1, _bool),
    "use_zero_pages": Knob("use_zero_pages", 0, _bool),
    "max_page_sharing": Knob("max_page_sharing", 256, _i32_erange, 2),
    "merge_across_nodes": Knob("merge_across_nodes", 1, _u64_erange, 0, 1),
    "stable_node_chains_prune_millisecs": Knob("prune_millisecs", 2000, _u32),
    "advisor_mode": Knob("advisor_mode", 0, _mode),
    "advisor_max_cpu": Knob("advisor_max_cpu", 70, _u64, kept=(1 << 32) - 1),
    "advisor_min_pages_to_scan": Knob("advisor_min_pages", 500, _u64),
    "advisor_max_pages_to_scan": Knob("advisor_max_pages", 30000, _u64),
    "advisor_target_scan_time": Knob("advisor_target", 200, _u64, 1),
}


def advise(
    pages: int, change: int, last_s: int, scan_ms: int, cpu_ms: int, knobs: dict[str, int]
) -> tuple[int, int, int]:
    """Work out pages_to_scan for the next scan from how long the last one took.

    A scan that took twice the target asks for twice the pages in a batch. That is weighted with how scan times have
    been changing (in percent, 3 parts in 10 the newest: a scan twice as long as the one before counts 200), and kept
    below what advisor_max_cpu allows at the CPU time just seen, and below the advisor's maximum. Its minimum is only
    where it starts: the real one was seen to go below it.

    Parameters
    ----------
    pages : int
        pages_to_scan in force during the scan.
    change : int
        The weighted change so far, percent; 0 after the advisor was switched on.
    last_s : int
        Seconds the scan before took, 0 if there was none.
    scan_ms, cpu_ms : int
        Milliseconds the scan took, and CPU milliseconds ksmd spent in it.
    knobs : dict
        `max_cpu` (percent), `max_pages`, `target` (seconds).

    Returns
    -------
    (int, int, int)
        pages_to_scan for the next scan; the weighted change; the scan's time in seconds.

    Models: the scan-time advisor of Linux 6.18, fitted to scans of a second and more that the real one did.
    Differs: after shorter scans the real one was seen to change by up to ten times; its first step is smaller at times.
    """
    scan_s = max(1, scan_ms // 1000)
    change = (70 * change + 30 * (100 * scan_s // last_s if last_s else 100)) // 100
    of_target = max(1, 100 * knobs["target"] // scan_s)
    new = pages * 100 // of_target * max(1, change) // 100
    cpu_percent = max(1, cpu_ms // (10 * scan_s))
    new = min(new, max(1, pages // cpu_percent) * knobs["max_cpu"], knobs["max_pages"])
    return max(1, new), change, scan_s
