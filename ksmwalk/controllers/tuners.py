"""ksmtuned, oVirt's MoM, the handler of KubeVirt, the kernel's own advisor: the rules by which each tunes KSM."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from ..gate import as_int, shown
from ..host import Host
from .memory import memory_of

_GIB, _KIB = 1 << 30, 1 << 10
#: the machine that sleeps are given for: smaller ones sleep longer, larger ones shorter
_SCALE = 16 * _GIB
#: milliseconds: no shorter sleep is set
_LEAST_SLEEP = 10
_MOST = (1 << 32) - 1


def _positive(value: float, name: str, most: float = 1e9) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} {shown(value)}: must be a number")
    if not 0 < value <= most:
        raise ValueError(f"{name} {shown(value)}: must be above 0, at most {most:g}")
    return float(value)


class _Tuner:
    """What they have in common: steps of pages_to_scan within limits, and a sleep for a machine of 16 GiB.

    Attributes
    ----------
    interval : float
        Seconds from one look to the next.
    refused : int
        Settings that KSM refused, as it does of `pages_to_scan` while the advisor is on. It goes on, as a script does.
    """

    interval: float
    refused: int = 0

    def __init__(
        self, interval: float, boost: int, decay: int, least: int, most: int, sleep_ms: float, total: int | None
    ):
        self.interval = _positive(interval, "interval")
        self._boost, self._decay = as_int(boost, "boost", 0, _MOST), as_int(decay, "decay", -_MOST, 0)
        self._most = as_int(most, "npages_max", 1, _MOST)
        self._least = as_int(least, "npages_min", 1, self._most)
        self._sleep_ms = _positive(sleep_ms, "sleep_msec")
        self._total = None if total is None else as_int(total, "total", 1, 1 << 60)

    def _within(self, pages: int) -> int:
        return min(max(pages, self._least), self._most)

    def _set(self, host: Host, pages: int, of: int) -> None:
        """Let ksmd run with so many pages a batch, sleeping as is due for so much memory."""
        sleep = max(_LEAST_SLEEP, min(int(self._sleep_ms * _SCALE / max(1, of)), _MOST))
        for name, value in (("sleep_millisecs", sleep), ("pages_to_scan", pages), ("run", 1)):
            if getattr(host.ksm, name) != value:
                try:
                    host.ksm.write(name, value)
                except OSError:
                    self.refused += 1

    def _stop(self, host: Host) -> None:
        if host.ksm.run == 1:
            host.ksm.run = 0


class Ksmtuned(_Tuner):
    """ksmtuned of qemu-kvm and RHEL.

    Every `interval` the threshold is `thres_coef` percent of the memory, but at least `thres_const`. If the memory
    committed to guests and the threshold are more than all memory, or less than the threshold is free, KSM runs: with
    `boost` pages a batch more than the last time where less than the threshold is free, else with `decay` fewer, within
    the limits. Otherwise it stops. The sleep is `sleep_msec` on a machine of 16 GiB, longer on a smaller one, at least
    10 ms.

    Parameters
    ----------
    interval : float
        KSM_MONITOR_INTERVAL, seconds.
    boost, decay, npages_min, npages_max : int
        KSM_NPAGES_BOOST, _DECAY (negative), _MIN, _MAX: pages a batch.
    sleep_msec : float
        KSM_SLEEP_MSEC.
    thres_coef : float
        KSM_THRES_COEF, percent.
    thres_const : int
        KSM_THRES_CONST, KiB.
    total : int, optional
        Bytes of memory of the machine, by default the Host's frames.

    Models: "The KSM tuning service", Red Hat Enterprise Linux 6 and 7, Virtualization Tuning and Optimization Guide; the
    sleep as Harvester's documentation of ksmtuned gives it.
    Differs: guests are the processes that have mergeable memory; when they come and go it is not told at once.
    """

    def __init__(
        self, *, interval: float = 60, boost: int = 300, decay: int = -50, npages_min: int = 64, npages_max: int = 1250,
        sleep_msec: float = 10, thres_coef: float = 20, thres_const: int = 2048, total: int | None = None,
    ):  # fmt: skip
        super().__init__(interval, boost, decay, npages_min, npages_max, sleep_msec, total)
        self._coef = _positive(thres_coef, "thres_coef", 100)
        self._const = as_int(thres_const, "thres_const", 0, 1 << 50) * _KIB
        self._pages = 0

    def act(self, host: Host) -> None:
        """Look at the memory of the host and set run, pages_to_scan and sleep_millisecs."""
        memory = memory_of(host, self._total)
        threshold = max(memory.total * self._coef / 100, self._const)
        scarce = memory.free < threshold
        if not scarce and memory.committed + threshold <= memory.total:
            self._stop(host)
            return
        self._pages = self._within(self._pages + (self._boost if scarce else self._decay))
        self._set(host, self._pages, memory.total)


class Mom(_Tuner):
    """The KSM policy of MoM, the memory overcommitment manager of oVirt.

    Free memory is looked at every `sample_interval` and averaged over the last `history` looks. Every `interval`: if the
    mergeable memory of guests and `free_percent` of all memory are together less than all memory, and more than that
    share is free, KSM stops. Else it runs, with `boost` pages a batch more than are set where less than that share is
    free, with `decay` fewer where more is, within the limits; the sleep as in `Ksmtuned`.

    Parameters
    ----------
    interval, sample_interval : float
        Seconds; a decision comes with the look that is nearest.
    history : int
        Looks.
    boost, decay, npages_min, npages_max : int
        Pages a batch; `decay` is negative.
    sleep_msec : float
        Milliseconds on a machine of 16 GiB.
    free_percent : float
    total : int, optional
        Bytes of memory of the machine, by default the Host's frames.

    Models: the policy as ovirt.org has it ("mom-balloon.policy", autoballooning howto), its sleep no shorter than 10 ms
    (vdsm, "Limit sleep_millisecs to minimum 10"), the intervals those of MoM's example configuration.
    Differs: ballooning, the other half of that policy, is left out.
    """

    def __init__(
        self, *, interval: float = 10, sample_interval: float = 5, history: int = 10, boost: int = 300, decay: int = -50,
        npages_min: int = 64, npages_max: int = 1250, sleep_msec: float = 10, free_percent: float = 20,
        total: int | None = None,
    ):  # fmt: skip
        super().__init__(sample_interval, boost, decay, npages_min, npages_max, sleep_msec, total)
        self._looks = max(1, round(_positive(interval, "interval") / self.interval))
        self._free: deque[int] = deque(maxlen=as_int(history, "history", 1, 10_000))
        self._percent = _positive(free_percent, "free_percent", 100)
        self._count = 0

    def act(self, host: Host) -> None:
        """Look at the memory of the host, and at every so many looks set run, pages_to_scan and sleep_millisecs."""
        memory = memory_of(host, self._total)
        self._free.append(memory.free)
        self._count += 1
        if self._count % self._looks:
            return
        free, threshold = sum(self._free) / len(self._free), memory.total * self._percent / 100
        if threshold + memory.mergeable < memory.total and free > threshold:
            self._stop(host)
            return
        self._set(host, self._within(host.ksm.pages_to_scan + (self._boost if free < threshold else self._decay)), memory.total)


class KubeVirt(_Tuner):
    """The KSM handler of KubeVirt's virt-handler.

    Every `interval`: if at most `free_percent` of the memory is available, KSM runs, at first with `npages_init` pages a
    batch, each time with `boost` more, up to `npages_max`. Once more is available again it runs with `decay` fewer each
    time, and stops where they would be fewer than `npages_min`. The sleep is `sleep_msec` where 16 GiB are in use, longer
    where less is, at least 10 ms.

    Parameters
    ----------
    interval : float
        Seconds.
    boost, decay, npages_min, npages_max, npages_init : int
        Pages a batch; `decay` is negative. (The annotations ksm-pages-boost-override and so on.)
    sleep_msec : float
        Milliseconds (ksm-sleep-ms-baseline-override).
    free_percent : float
        Percent of all memory (ksm-free-percent-override).
    total : int, optional
        Bytes of memory of the node, by default the Host's frames.

    Models: "Enable and configure KSM according to memory pressure" (kubevirt pull request 10477) and how the design
    proposal VEP 381 describes it, mode Full with the sleep as it was before that proposal.
    Differs: nothing known of the rules; that proposal's other mode is left out, as its kernel feature is.
    """

    def __init__(
        self, *, interval: float = 180, boost: int = 300, decay: int = -50, npages_min: int = 64, npages_max: int = 1250,
        npages_init: int = 100, sleep_msec: float = 100, free_percent: float = 20, total: int | None = None,
    ):  # fmt: skip
        super().__init__(interval, boost, decay, npages_min, npages_max, sleep_msec, total)
        self._init = as_int(npages_init, "npages_init", 1, _MOST)
        self._percent = _positive(free_percent, "free_percent", 100)

    def act(self, host: Host) -> None:
        """Look at the memory of the host and set run, pages_to_scan and sleep_millisecs."""
        memory, runs, pages = memory_of(host, self._total), host.ksm.run == 1, host.ksm.pages_to_scan
        used = memory.total - memory.free
        if memory.free <= memory.total * self._percent / 100:
            self._set(host, self._within(pages + self._boost) if runs else self._init, used)
        elif runs and pages + self._decay >= self._least:
            self._set(host, self._within(pages + self._decay), used)
        else:
            self._stop(host)


class ScanTime:
    """The kernel's own advisor, which is switched on at the beginning and needs nobody afterwards.

    Parameters
    ----------
    **knobs : int
        `max_cpu`, `min_pages_to_scan`, `max_pages_to_scan`, `target_scan_time`: the tunables advisor_*.

    Models: advisor_mode scan-time of Linux 6.18 (`ksm.advisor`). Differs: nothing known.
    """

    #: the rest is ksmd's
    interval: float = 1e9

    def __init__(self, **knobs: int):
        for name in knobs:
            if name not in ("max_cpu", "min_pages_to_scan", "max_pages_to_scan", "target_scan_time"):
                raise TypeError(f"{shown(name)}: the advisor has no such tunable")
        self._knobs = knobs

    def begin(self, host: Host) -> None:
        """Switch it on, and let ksmd run."""
        for name, value in self._knobs.items():
            host.ksm.write(f"advisor_{name}", value)
        host.ksm.advisor_mode = "scan-time"
        host.ksm.run = 1

    def act(self, host: Host) -> None:
        """Nothing: it is ksmd that does it."""


#: all of them, by the name by which a command asks for them
CONTROLLERS: dict[str, Callable[..., Any]] = {"ksmtuned": Ksmtuned, "mom": Mom, "kubevirt": KubeVirt, "advisor": ScanTime}
