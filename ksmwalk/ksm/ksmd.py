"""ksmd: the samepage merging daemon of a Host, one batch at a time."""

from __future__ import annotations

import errno

import numpy as np

from .. import _core
from ..layout import EVENT
from . import _engine, sysfs
from .scan import KsmScan

__all__ = ["Events", "Ksm"]

_U32, _U64 = (1 << 32) - 1, (1 << 64) - 1
# slots of the ksm record's `advisor`: clock and CPU clock when the scan began, weighted change of scan times, seconds
# of the last scan, the CPU clock now
_SCAN_START, _CPU_START, _CHANGE, _LAST, _CPU_NOW = range(5)


class Events:
    """What the ksm:* trace events of a Host show, as records; nothing is recorded until `on` is set.

    Attributes
    ----------
    on : bool
        Whether events are recorded.
    lost : int
        Events overwritten before `take` fetched them, since the Host was made.

    Models: trace events ksm_start_scan, ksm_stop_scan, ksm_enter, ksm_exit, ksm_merge_one_page,
    ksm_merge_with_ksm_page (also for the zero page), ksm_remove_rmap_item, ksm_remove_ksm_page of Linux 6.18.
    Differs: ksm_advisor is left out; frames and mms are numbers of this Host.
    """

    def __init__(self, world: _core.World):
        self._ksm = world.arrays["ksm"]
        self._ring = world.arrays["events"]
        self._pos = world.arrays["event_pos"]
        self._taken = int(self._pos[0])
        self.lost = 0

    @property
    def on(self) -> bool:
        return bool(self._ksm["events_on"][0])

    @on.setter
    def on(self, value: bool) -> None:
        self._ksm["events_on"][0] = bool(value)

    def __len__(self) -> int:
        return min(int(self._pos[0]) - self._taken, len(self._ring))

    def take(self) -> np.ndarray:
        """Return the events since the last call, oldest first.

        Returns
        -------
        ndarray of layout.EVENT
            A copy. `kind` (`layout.Event`), `mm`, then by kind: START, STOP: `a` number of the scan, `b` rmap_items;
            NEW (a page became a KSM page): `a` frame, `b` rmap_item, `err`; ADD (a page merged with a KSM page):
            `a` frame of the KSM page, `b` rmap_item, `err`; ZERO: `a` frame that was replaced, `b` address, `err`; RMI
            (an rmap_item left with its node): `a` frame of the KSM page, `b` rmap_item; RMK (a KSM page's node
            removed): `a` frame. `node` is the stable node where there is one.
        """
        written = int(self._pos[0])
        fresh = min(written - self._taken, len(self._ring))
        self.lost += written - self._taken - fresh
        self._taken = written
        if not fresh:
            return np.empty(0, EVENT)
        return self._ring[np.arange(written - fresh, written) % len(self._ring)].copy()

    def __repr__(self) -> str:
        return f"<Events {'on' if self.on else 'off'}, {len(self)} to take, {self.lost} lost>"


def _knob(name: str, doc: str) -> property:
    def fget(self):
        return self._read(name)

    def fset(self, value):
        self.write(name, value)

    return property(fget, fset, doc=doc)


class Ksm:
    """KSM of a Host: tunables, counters and the daemon, which runs when told to.

    Every tunable of /sys/kernel/mm/ksm is an attribute with the kernel's name and default. A value that the kernel
    refuses raises `OSError` with the kernel's errno and changes nothing.

    Attributes
    ----------
    scan : KsmScan
        The cursor.
    events : Events
        The event stream, off by default.
    now_ms, cpu_ms : int
        Inputs, in milliseconds: the clock (for chain pruning and the advisor), and the CPU time ksmd has used so far
        (for the advisor).

    Models: ksmd and /sys/kernel/mm/ksm of Linux 6.18.
    Differs: merge_across_nodes = 0 with several nodes was not compared with a real one; the advisor only roughly (see
    `sysfs.advise`).
    """

    def __init__(self, world: _core.World):
        self._world = world
        self._ksm = world.arrays["ksm"]
        self._ctl = world.arrays["ctl"]
        self._mms = world.arrays["mms"]
        self._cursor = world.arrays["cursor"]
        self.scan = KsmScan(world)
        self.events = Events(world)
        _engine.py_bind(world)
        if self._ksm["max_page_sharing"][0] == 0:  # a record that was never used
            for knob in sysfs.KNOBS.values():
                self._ksm[knob.field][0] = knob.default
            self._ksm["long_wait"][0] = 1
            self._ctl["stable_used"][0] = max(1, int(self._ctl["stable_used"][0]))

    # ---------------------------------------------------------- tunables

    pages_to_scan = _knob("pages_to_scan", "Visits in a batch.")
    sleep_millisecs = _knob("sleep_millisecs", "Milliseconds between batches; kept, but time is an input here.")
    smart_scan = _knob("smart_scan", "1: pages that did not merge for long are skipped now and then.")
    use_zero_pages = _knob("use_zero_pages", "1: empty pages are mapped to the shared zero page.")
    max_page_sharing = _knob("max_page_sharing", "rmap_items that one KSM page takes.")
    merge_across_nodes = _knob("merge_across_nodes", "0: only pages of one NUMA node are merged.")
    stable_node_chains_prune_millisecs = _knob(
        "stable_node_chains_prune_millisecs", "Milliseconds after which a passing search prunes a chain."
    )
    advisor_mode = _knob("advisor_mode", '"none" or "scan-time".')
    advisor_max_cpu = _knob("advisor_max_cpu", "Percent of a CPU that the advisor lets ksmd use.")
    advisor_min_pages_to_scan = _knob("advisor_min_pages_to_scan", "pages_to_scan that the advisor starts with.")
    advisor_max_pages_to_scan = _knob("advisor_max_pages_to_scan", "Most pages_to_scan of the advisor.")
    advisor_target_scan_time = _knob("advisor_target_scan_time", "Seconds a full scan should take with the advisor.")
    run = _knob("run", "0 stopped, 1 merging, 2 stopped and everything unmerged.")

    def _read(self, name: str) -> int | str:
        number = int(self._ksm[sysfs.KNOBS[name].field][0])
        return sysfs.ADVISORS[number] if name == "advisor_mode" else number & _U64

    def write(self, name: str, value: int | str) -> None:
        """Write a tunable, as into its file.

        Parameters
        ----------
        name : str
            The kernel's name.
        value : int or str
            A number, or the text that would be written.

        Raises
        ------
        OSError
            The write is refused, with the kernel's errno: EINVAL, ERANGE, or EBUSY (16) while something is merged.
        AttributeError
            There is no tunable of this name.

        Models: the store functions of /sys/kernel/mm/ksm of Linux 6.18. Differs: nothing known.
        """
        if name not in sysfs.KNOBS:
            raise AttributeError(f"no tunable {name!r}: there are {', '.join(sysfs.KNOBS)}")
        knob = sysfs.KNOBS[name]
        number = knob.read(name, value)
        if name == "run":
            self._set_run(number)
            return
        if name == "pages_to_scan" and self._ksm["advisor_mode"][0]:
            raise sysfs.refuse(errno.EINVAL, name, value)
        old = int(self._ksm[knob.field][0])
        if name in ("max_page_sharing", "merge_across_nodes") and number != old:
            # Only with nothing merged; nodes whose pages are gone make way now.
            if self._ksm["pages_shared"][0] or not _engine.py_drop_stable_nodes(self._world):
                raise sysfs.refuse(errno.EBUSY, name, value)
        self._ksm[knob.field][0] = number - (1 << 64) if number >= 1 << 63 else number
        if name == "advisor_mode" and number != old:
            pages = sysfs.PAGES_TO_SCAN_DEFAULT if number == 0 else self._read("advisor_min_pages_to_scan") & _U32
            self._ksm["pages_to_scan"][0] = pages
            self._ksm["advisor"][0, :_CPU_NOW] = 0

    def _set_run(self, number: int) -> None:
        if number == self._ksm["run"][0]:
            return
        self._ksm["run"][0] = number
        self._ksm["long_wait"][0] = 1
        if number == 2:
            code = _engine.py_unmerge_all(self._world)
            if code < 0:
                self._ksm["run"][0] = 0
                raise sysfs.refuse(errno.ENOMEM, "run", 2)

    @property
    def now_ms(self) -> int:
        return int(self._ksm["now_ms"][0])

    @now_ms.setter
    def now_ms(self, value: int) -> None:
        if not 0 <= value < 1 << 62:
            raise ValueError(f"now_ms {value}: must be from 0 to 2**62 - 1")
        self._ksm["now_ms"][0] = value

    @property
    def cpu_ms(self) -> int:
        return int(self._ksm["advisor"][0, _CPU_NOW])

    @cpu_ms.setter
    def cpu_ms(self, value: int) -> None:
        if not 0 <= value < 1 << 62:
            raise ValueError(f"cpu_ms {value}: must be from 0 to 2**62 - 1")
        self._ksm["advisor"][0, _CPU_NOW] = value

    # ---------------------------------------------------------- counters

    def counters(self) -> dict[str, int]:
        """Return what the counter files of /sys/kernel/mm/ksm show.

        Returns
        -------
        dict of str to int
            By file name; `general_profit` in bytes, the others in pages, nodes and scans.

        Models: /sys/kernel/mm/ksm of Linux 6.18. Differs: ksm_swpin_copy is left out.
        """
        rec = self._ksm[0]
        out = {name: int(rec[field]) if field else 0 for name, field in sysfs.COUNTERS.items()}
        items = int(self._ctl["items_live"][0])
        sharing = out["pages_sharing"]
        out["full_scans"] = int(self._cursor["seqnr"][0])
        out["pages_volatile"] = max(0, items - out["pages_shared"] - sharing - out["pages_unshared"])
        out["general_profit"] = (sharing + out["ksm_zero_pages"]) * sysfs.PAGE_SIZE - items * sysfs.RMAP_ITEM_SIZE
        return out

    def __getattr__(self, name: str) -> int:
        if name in sysfs.COUNTERS:
            return self.counters()[name]
        raise AttributeError(f"KSM has no tunable or counter {name!r}")

    # ---------------------------------------------------------- the daemon

    @property
    def registered(self) -> bool:
        """Whether any process is on the list."""
        return bool(self._mms[0]["slot_next"])

    def do_scan(self, n: int | None = None) -> int:
        """Do one batch, whatever `run` says.

        Parameters
        ----------
        n : int, optional
            Visits at most; `pages_to_scan` if left out.

        Returns
        -------
        int
            Visits made: fewer than n at the end of a full scan, which a batch never runs over.

        Raises
        ------
        ValueError
            `n` is negative.
        BadEntryError, ArenaFullError
            As `KsmScan.scan`; what was merged before stays so.

        Models: ksm_do_scan() of Linux 6.18. Differs: nothing known.
        """
        if n is None:
            n = self.pages_to_scan
        if not 0 <= n < 1 << 63:
            raise ValueError(f"n {n}: must be from 0 to 2**63 - 1")
        cursor = self._cursor
        if n and not cursor["slot"][0] and self.registered:
            self._ksm["advisor"][0, [_SCAN_START, _CPU_START]] = self.now_ms, self.cpu_ms
        before = cursor["seqnr"][0]
        done, code = _engine.py_scan(self._world, n)
        if cursor["seqnr"][0] != before and self._ksm["advisor_mode"][0]:
            self._advise()
        if code:
            self.scan._fail(code)
        return done

    def _advise(self) -> None:
        advisor = self._ksm["advisor"][0]
        names = {
            "max_cpu": "advisor_max_cpu",
            "max_pages": "advisor_max_pages_to_scan",
            "target": "advisor_target_scan_time",
        }
        pages, change, seconds = sysfs.advise(
            self.pages_to_scan,
            int(advisor[_CHANGE]),
            int(advisor[_LAST]),
            self.now_ms - int(advisor[_SCAN_START]),
            self.cpu_ms - int(advisor[_CPU_START]),
            {key: self._read(name) for key, name in names.items()},
        )
        self._ksm["pages_to_scan"][0] = min(pages, _U32)
        advisor[_CHANGE] = min(change, _U32)
        advisor[_LAST] = seconds

    def step(self) -> int:
        """Let ksmd wake up from its sleep between batches and do one, if `run` is 1 and a process is on the list.

        Returns
        -------
        int
            Visits made.

        Models: one round of the loop of ksmd of Linux 6.18. Differs: nothing known.
        """
        if self._ksm["run"][0] != 1:
            return 0
        done = self.do_scan() if self.registered else 0
        self._ksm["long_wait"][0] = not self.registered
        return done

    def wake(self) -> int:
        """Do the batch that a write of 1 to `run`, or the first process to register, sets off at once.

        Nothing happens while ksmd sleeps between two batches: then it is `step` that wakes it.

        Returns
        -------
        int
            Visits made.

        Models: the wait of ksmd for something to do (Linux 6.18). Differs: nothing known.
        """
        if self._ksm["run"][0] != 1 or not self._ksm["long_wait"][0] or not self.registered:
            return 0
        return self.step()

    def __repr__(self) -> str:
        c = self.counters()
        return (
            f"<Ksm run {self.run}, {c['full_scans']} full scans, shared {c['pages_shared']}, sharing "
            f"{c['pages_sharing']}, unshared {c['pages_unshared']}, volatile {c['pages_volatile']}>"
        )

