"""Policies side by side: what each frees of the same memory, and what that takes, full scan by full scan."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..gate import as_int
from ..host import Host
from ..ksm.costs import Costs, ksmd_seconds
from ..layout import PAGE_SIZE, Frame
from ..policies import ByDomain, Policy
from ..signatures import RecordArray
from ..sources.contents import MemoryCapture
from ..sources.memory import LoadedMemory, load_memory
from .before import unmerged
from .changing import Writers, fresh_keys, write_now, write_rates
from .domains import domain_of
from .estimate import check_contents, tunables_of, which_mark
from .work import count_full_scan

__all__ = ["SCAN_DTYPE", "Followed", "compare", "follow"]

_ASLEEP = 0xFFFFFFFF  # milliseconds: until somebody asks
_ENOUGH = 0.9

#: What a policy has come to at the end of each full scan.
SCAN_DTYPE = np.dtype(
    [
        # pages freed then
        ("freed", np.int64),
        # pages looked at and skipped by smart scan, so far
        ("examined", np.int64),
        ("skipped", np.int64),
        # merges broken by writes, so far
        ("broken", np.int64),
        # CPU time of ksmd, and time with its sleep, so far
        ("cpu_seconds", np.float64),
        ("seconds", np.float64),
    ]
)


def _merged(host: Host) -> int:
    """Mappings of KSM pages and of zero pages that KSM placed."""
    arrays = host.world.arrays
    merged = arrays["f_flags"] & np.uint16(Frame.KSM) != 0
    return int(arrays["f_mapcount"][merged].sum(dtype=np.int64)) + host.ksm.ksm_zero_pages


def follow(
    host: Host,
    policy: Policy | None,
    *,
    scans: int,
    costs: Costs | None = None,
    write: Callable[[Host, int, float], None] = lambda host, scan, seconds: None,
    each: Callable[[int], object] = lambda scans: None,
) -> RecordArray:
    """Let a policy work for some full scans, and see what it comes to.

    Parameters
    ----------
    host : Host
        Between two full scans. The policy stays plugged in.
    policy : Policy, optional
        None: Linux 6.18.
    scans : int
    costs : Costs, optional
        What work costs; by default the stored ones.
    write : callable of (Host, int, float)
        What happens before each full scan: its number, from 0 on, and the seconds passed so far.
    each : callable of int
        Told the number of full scans made.

    Returns
    -------
    ndarray of SCAN_DTYPE, shape (scans,)
        All counted from the beginning; `freed` as it is at the end of each.

    Raises
    ------
    BadEntryError, ArenaFullError
        As `Ksm.full_scan`; what a method of the policy raises.
    ValueError
        No page a batch, so that no scan ends.

    Models: nothing of Linux, it only calls what does. Differs: nothing known.
    """
    costs = Costs() if costs is None else costs
    ksm = host.ksm
    ksm.policy = policy
    rows = np.zeros(scans, SCAN_DTYPE)
    so_far = np.zeros((), SCAN_DTYPE)
    for scan in range(scans):
        before = _merged(host)
        write(host, scan, float(so_far["seconds"]))
        so_far["broken"] += max(0, before - _merged(host))
        pages, sleep = ksm.pace()
        work = count_full_scan(host, pages_to_scan=pages)
        seconds = float(ksmd_seconds(work, costs)[0])
        so_far["examined"] += work["visits"]
        so_far["skipped"] += work["skipped"]
        so_far["cpu_seconds"] += seconds
        so_far["seconds"] += seconds + (int(work["batches"]) * sleep / 1e3 if sleep < _ASLEEP else 0.0)
        so_far["freed"] = ksm.pages_sharing + ksm.ksm_zero_pages
        rows[scan] = so_far
        each(scan + 1)
    return rows


@dataclass(slots=True)
class Followed:
    """What one policy came to.

    Attributes
    ----------
    name : str
        The policy's.
    rows : ndarray of SCAN_DTYPE
        A row a full scan.
    """

    name: str
    rows: RecordArray

    @property
    def seconds_to_90(self) -> float:
        """Seconds until nine tenths of the most it ever freed were; nan: it freed nothing."""
        most = int(self.rows["freed"].max(initial=0))
        if most <= 0:
            return float("nan")
        return float(self.rows["seconds"][np.argmax(self.rows["freed"] >= _ENOUGH * most)])

    def to_json(self) -> dict[str, Any]:
        """Plain data: the end, and each scan."""
        last = self.rows[-1]
        soon = self.seconds_to_90
        return {
            "policy": self.name,
            "freed_bytes": int(last["freed"]) * PAGE_SIZE,
            "pages_examined": int(last["examined"]),
            "pages_skipped": int(last["skipped"]),
            "cpu_seconds": float(last["cpu_seconds"]),
            "seconds": float(last["seconds"]),
            "seconds_to_90": None if soon != soon else soon,
            "merges_broken": int(last["broken"]),
            "scans": [{name: row[name].item() for name in SCAN_DTYPE.names or ()} for row in self.rows],
        }


class _Writes:
    """Those that come while a full scan goes on, done before the next one."""

    def __init__(self, loaded: LoadedMemory, writers: list[Writers]):
        self._mms, self._writers, self._since = loaded.mms, writers, 0.0
        self._random, self._fresh = np.random.default_rng(0), fresh_keys()

    def __call__(self, host: Host, scan: int, seconds: float) -> None:
        for mm, some in zip(self._mms, self._writers, strict=True):
            write_now(mm, some, seconds - self._since, self._random, self._fresh)
        self._since = seconds


def compare(
    capture: MemoryCapture,
    policies: Sequence[Policy],
    *,
    scans: int = 20,
    mark: str = "auto",
    knobs: Mapping[str, object] | None = None,
    domain: str = "container",
    costs: Costs | None = None,
    each: Callable[[str, int], object] = lambda name, scans: None,
) -> list[Followed]:
    """Let several policies work on the same captured memory, each on a Host of its own, from nothing merged on.

    Parameters
    ----------
    capture : MemoryCapture
        Where it was read more than once, pages change as often as they were seen to, also here; the moments are the same
        for all, as far as the policies take the same time.
    policies : sequence of Policy
        A `ByDomain` without domains gets those of `domain`.
    scans : int
        Full scans for each.
    mark, knobs, costs
        As for `estimate`.
    domain : {"user", "container", "process"}
    each : callable of (str, int)
        Told a policy's name and the number of its full scans, for progress.

    Returns
    -------
    list of Followed
        In the order of the policies.

    Raises
    ------
    ValueError, NothingToMerge
        As `estimate`; what a method of a policy raises.

    Models: ksmd of Linux 6.18 with other decisions. Differs: writes come between two full scans only.
    """
    scans = as_int(scans, "scans", 1, 100_000)
    check_contents(capture)
    mark = which_mark(capture, mark)
    tunables = tunables_of(capture, knobs or {})
    what = unmerged(capture)
    writers = write_rates(what, spread=False)
    costs = costs or Costs.load()
    found = []
    for policy in policies:
        loaded = load_memory(what, mark="as-is" if mark == "marked" else "all", knobs=tunables, take_over=False)
        if type(policy) is ByDomain and policy.of is None:
            policy = ByDomain(_domains(loaded, domain))
        name = policy.name or type(policy).__name__
        policy.processes = {mm.number: one for mm, one in zip(loaded.mms, loaded.capture.processes, strict=True)}
        rows = follow(
            loaded.host, policy, scans=scans, costs=costs, write=_Writes(loaded, writers), each=functools.partial(each, name)
        )
        found.append(Followed(name, rows))
    return found


def _domains(loaded: LoadedMemory, domain: str) -> dict[int, object]:
    """The domain of each process, by the number of its address space."""
    return {
        mm.number: domain_of(one, number, domain)
        for number, (mm, one) in enumerate(zip(loaded.mms, loaded.capture.processes, strict=True))
    }
