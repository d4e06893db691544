"""ksmd: the samepage merging daemon of a Host, one batch at a time."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Literal, SupportsIndex

import numpy as np

from .. import _core, kernels
from ..errors import Strict, check, misspelt
from ..gate import as_flag, as_int, shown
from ..layout import EVENT, PAGE_SIZE, Code
from ..signatures import AnyArray, RecordArray
from . import _engine, sysfs
from ._cursor import MOST
from .advisor import advise
from .cpus import Cpus
from .notebook import Counters, ShownKsm
from .policy import Chosen
from .scan import KsmScan

__all__ = ["Events", "Ksm"]

_U32 = (1 << 32) - 1
_LATEST = (1 << 62) - 1  # milliseconds
# full scans without a change after which nothing more will merge by itself: the rest of one under way, one that notes
# contents, one that compares them; with smart_scan those in which a page may be passed over besides
_SETTLED, _SETTLED_SMART = 3, 10
# slots of the ksm record's `advisor`: clock when the scan began, CPU clock when the one before ended, weighted change of
# scan times, seconds of the last scan, the CPU clock now
_SCAN_START, _CPU_LAST, _CHANGE, _LAST, _CPU_NOW = range(5)


class Events(Strict):
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

    __slots__ = ("_bound", "_taken", "_lost", "__weakref__")

    def __init__(self, world: _core.World):
        self._bound = world
        self._taken = int(world.arrays["event_pos"][0])
        self._lost = 0

    def _array(self, name: str) -> AnyArray:
        """An array of the Host, if it is still there."""
        self._bound.live()
        return self._bound.arrays[name]

    @property
    def on(self) -> bool:
        return bool(self._array("ksm")["events_on"][0])

    @on.setter
    def on(self, value: bool) -> None:
        value = as_flag(value, "on")
        self._bound.live()
        with self._bound:
            self._array("ksm")["events_on"][0] = value

    @property
    def lost(self) -> int:
        return self._lost

    def __len__(self) -> int:
        return min(int(self._array("event_pos")[0]) - self._taken, len(self._array("events")))

    def take(self) -> RecordArray:
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
        self._bound.live()
        with self._bound:
            ring, written = self._array("events"), int(self._array("event_pos")[0])
            fresh = min(written - self._taken, len(ring))
            self._lost += written - self._taken - fresh
            self._taken = written
            if not fresh:
                return np.empty(0, EVENT)
            return ring[np.arange(written - fresh, written) % len(ring)].copy()

    def __repr__(self) -> str:
        return f"<Events {'on' if self.on else 'off'}, {len(self)} to take, {self.lost} lost>"


class Ksm(Strict, Cpus, ShownKsm, sysfs.Files, Chosen):
    """KSM of a Host: tunables, counters and the daemon, which runs when told to.

    Every file of /sys/kernel/mm/ksm is an attribute with the kernel's name: tunables, with the kernel's defaults, may
    be set, counters only read. A value that the kernel refuses raises `OSError` with the kernel's errno and changes
    nothing; a name that there is not raises `AttributeError` and offers those that are close.

    Attributes
    ----------
    scan : KsmScan
        The cursor.
    events : Events
        The event stream, off by default.
    now_ms, cpu_ms : int
        Inputs, in milliseconds: the clock (for chain pruning and the advisor), and the CPU time ksmd has used so far
        (for the advisor).
    cpu : int
        Input: the CPU ksmd runs on, in whose batch pages of locked areas wait that it merges.
    writer_cpu : int
        Input: the CPU of whoever writes `run`, in whose batch pages of locked areas wait that run = 2 unmerges.

    Models: ksmd and /sys/kernel/mm/ksm of Linux 6.18.
    Differs: more than two NUMA nodes were not compared with a real one.
    """

    __slots__ = ("_bound", "_scan", "_events", "_policy", "_asking", "_domains", "_rest", "__weakref__")

    def __init__(self, world: _core.World):
        self._bound = world
        self._scan = KsmScan(world)
        self._events = Events(world)
        self._policy = self._asking = self._domains = self._rest = None
        _engine.py_bind(world)
        ksm, ctl = world.arrays["ksm"], world.arrays["ctl"]
        if ksm["max_page_sharing"][0] == 0:  # a record that was never used
            for knob in sysfs.KNOBS.values():
                ksm[knob.field][0] = knob.default if knob.name != "smart_scan" or self.has(knob.name) else 0
            ksm["long_wait"][0] = 1
            ctl["stable_used"][0] = max(1, int(ctl["stable_used"][0]))

    @property
    def _world(self) -> _core.World:
        """The binding, if the Host is still there."""
        self._bound.live()
        return self._bound

    @property
    def _ksm(self) -> AnyArray:
        return self._world.arrays["ksm"]

    @property
    def _cursor(self) -> AnyArray:
        return self._world.arrays["cursor"]

    def has(self, name: str) -> bool:
        """Whether the Host's kernel has a file of this name in /sys/kernel/mm/ksm.

        Models: /sys/kernel/mm/ksm of the kernels of `kernels.PROFILES`. Differs: nothing known.
        """
        if not isinstance(name, str):
            raise TypeError(f"name {shown(name)}: must be the name of a file")
        known = name in sysfs.KNOBS or name in sysfs.COUNTERS
        return known and name not in kernels.of_bits(int(self._world.arrays["ctl"]["kernel"][0])).missing

    @property
    def skips_pages(self) -> bool:
        """Whether smart_scan is on; a kernel without it skips nothing."""
        return bool(self._number("smart_scan"))

    def _number(self, field: str) -> int:
        return int(self._ksm[field][0])

    @property
    def scan(self) -> KsmScan:
        return self._scan

    @property
    def events(self) -> Events:
        return self._events

    # ---------------------------------------------------------- tunables

    def write(self, name: str, value: SupportsIndex | str) -> None:
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
            The write is refused, with the kernel's errno: EINVAL, ERANGE, EBUSY (16) while something is merged, or
            ENOENT (2), a FileNotFoundError, where the Host's kernel does not have the file.
        TypeError
            The name is no text; the value is neither an integer (for a switch: or bool) nor a text.
        AttributeError
            There is no tunable of this name.

        Models: the store functions of /sys/kernel/mm/ksm of Linux 6.18. Differs: nothing known.
        """
        if not isinstance(name, str):
            raise TypeError(f"name {shown(name)}: must be the name of a tunable")
        if name in sysfs.COUNTERS:
            raise AttributeError(f"{name} is a counter: KSM counts it, it can only be read")
        if name not in sysfs.KNOBS:
            raise misspelt(Ksm, name, sysfs.KNOBS)
        if not self.has(name):
            raise sysfs.refuse(errno.ENOENT, name, value)
        knob = sysfs.KNOBS[name]
        number = knob.read(value)
        with self._world:
            self._set_run(number) if name == "run" else self._set(knob, number, value)

    def _set(self, knob: sysfs.Knob[int] | sysfs.Knob[str], number: int, value: object) -> None:
        name = knob.name
        if name == "pages_to_scan" and self._ksm["advisor_mode"][0]:
            raise sysfs.refuse(errno.EINVAL, name, value)
        old = int(self._ksm[knob.field][0])
        if name in ("max_page_sharing", "merge_across_nodes") and number != old:
            # Only with nothing merged; nodes whose pages are gone make way now.
            if self._ksm["pages_shared"][0] or not _engine.py_drop_stable_nodes(self._world):
                raise sysfs.refuse(errno.EBUSY, name, value)
        self._ksm[knob.field][0] = number - (1 << 64) if number >= 1 << 63 else number
        if name == "sleep_millisecs" and number != old:
            self._end_sleep()
        if name == "advisor_mode" and number != old:
            pages = sysfs.PAGES_TO_SCAN_DEFAULT if number == 0 else self.advisor_min_pages_to_scan & _U32
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
                if code == Code.NOFRAMES:
                    raise sysfs.refuse(errno.ENOMEM, "run", 2)
                check(code, "run = 2", self._world.arrays["bad"])

    @property
    def now_ms(self) -> int:
        return int(self._ksm["now_ms"][0])

    @now_ms.setter
    def now_ms(self, value: int) -> None:
        value = as_int(value, "now_ms", 0, _LATEST)
        with self._world:
            self._ksm["now_ms"][0] = value

    @property
    def cpu_ms(self) -> int:
        return int(self._ksm["advisor"][0, _CPU_NOW])

    @cpu_ms.setter
    def cpu_ms(self, value: int) -> None:
        value = as_int(value, "cpu_ms", 0, _LATEST)
        with self._world:
            self._ksm["advisor"][0, _CPU_NOW] = value

    # ---------------------------------------------------------- counters

    def counters(self) -> dict[str, int]:
        """Return what the counter files of /sys/kernel/mm/ksm show, those that the Host's kernel has.

        Returns
        -------
        dict of str to int
            By file name; `general_profit` in bytes, the others in pages, nodes and scans. A notebook shows it as a table.

        Models: /sys/kernel/mm/ksm of Linux 6.18. Differs: nothing known.
        """
        return Counters((name, value) for name, value in self._counted().items() if self.has(name))

    def _counted(self) -> Counters:
        """All counters, whatever the kernel shows of them."""
        rec = self._ksm[0]
        out = Counters((name, int(rec[row.field]) if row.field else 0) for name, row in sysfs.COUNTERS.items())
        items = int(self._world.arrays["ctl"]["items_live"][0])
        sharing = out["pages_sharing"]
        out["full_scans"] = int(self._cursor["seqnr"][0])
        out["pages_volatile"] = max(0, items - out["pages_shared"] - sharing - out["pages_unshared"])
        out["general_profit"] = (sharing + out["ksm_zero_pages"]) * PAGE_SIZE - items * sysfs.RMAP_ITEM_SIZE
        return out

    # ---------------------------------------------------------- the daemon

    @property
    def registered(self) -> bool:
        """Whether any process is on the list."""
        return bool(self._world.arrays["mms"][0]["slot_next"])

    def do_scan(self, n: int | None = None) -> int:
        """Do one batch, whatever `run` says.

        Parameters
        ----------
        n : int, optional
            Visits at most; if left out `pages_to_scan`, or what the policy says.

        Returns
        -------
        int
            Visits made: fewer than n at the end of a full scan, which a batch never runs over.

        Raises
        ------
        ValueError, TypeError
            `n` is negative, or no integer.
        BadEntryError, ArenaFullError
            As `KsmScan.scan`; what was merged before stays so.

        Models: ksm_do_scan() of Linux 6.18. Differs: nothing known.
        """
        n = self.pace()[0] if n is None else as_int(n, "n", 0, MOST)
        done, ended = self._visit(n)
        if ended:
            self._advise()
        return done

    def _visit(self, n: int) -> tuple[int, bool]:
        """Do at most `n` visits of a batch: how many there were, and whether the full scan ended with them."""
        world = self._world
        cursor = world.arrays["cursor"]
        if n and not cursor["slot"][0] and self.registered:
            self._ksm["advisor"][0, _SCAN_START] = self.now_ms
        before = cursor["seqnr"][0]
        done, code = _engine.py_scan(world, n) if self._asking is None else self._asking.scan(n)
        if code:
            self.scan._fail(code)
        return done, bool(cursor["seqnr"][0] != before)

    def full_scan(self) -> int:
        """Let ksmd go on to the end of the full scan it is in, or of the next one if it is between two.

        Whatever `run` says, and as one batch: how many batches it takes changes nothing but work counts.

        Returns
        -------
        int
            Visits made, pages; 0 where no process is registered.

        Raises
        ------
        BadEntryError, ArenaFullError
            As `do_scan`.

        Models: ksm_do_scan() of Linux 6.18, called until full_scans rises. Differs: nothing known.
        """
        before, done = self.full_scans, 0
        while self.registered and self.full_scans == before:
            done += self.do_scan(MOST)
        return done

    def run_until(
        self,
        until: Callable[[Ksm], object] | None = None,
        *,
        limit: int = 1000,
        each: Literal["full scan", "batch"] = "full scan",
    ) -> RecordArray:
        """Let ksmd work until a condition holds, and return the counters over time.

        Parameters
        ----------
        until : callable, optional
            Called with this Ksm after each step; anything true ends it. Left out: until what is merged is settled,
            which is when pages_shared, pages_sharing and ksm_zero_pages have stayed as they are for three full scans,
            or, with smart_scan, for ten (it passes over a page for up to eight).
        limit : int
            Steps at most.
        each : {"full scan", "batch"}
            What a step is: a `full_scan`, or a `do_scan` of pages_to_scan visits.

        Returns
        -------
        ndarray of sysfs.COUNTERS_DTYPE, shape (steps,)
            A row a step, a field a counter, int64: general_profit in bytes, pages_* and ksm_zero_pages in pages,
            full_scans in scans, stable_node_* in nodes; `pandas.DataFrame` takes it as it is. As many rows as
            `limit`: it may have ended there. No row: no process is registered.

        Raises
        ------
        BadEntryError, ArenaFullError
            As `do_scan`.
        ValueError, TypeError
            `limit` is no positive integer; `until` can't be called; there is no such `each`.

        Examples
        --------
        >>> from ksmwalk import Host
        >>> host = Host(4096)
        >>> mm = host.new_mm()
        >>> start = mm.mmap(3 * 4096)
        >>> mm.write(start, [7, 7, 8])
        >>> mm.madvise(start, 3 * 4096, "mergeable")
        >>> host.ksm.run_until(lambda ksm: ksm.pages_sharing)["pages_sharing"].tolist()
        [0, 1]

        Models: nothing of Linux, it only calls what does. Differs: nothing known.
        """
        if until is not None and not callable(until):
            raise TypeError(f"until {shown(until)}: must be callable")
        limit = as_int(limit, "limit", 1, MOST)
        if not isinstance(each, str) or each not in ("full scan", "batch"):
            raise ValueError(f'each {shown(each)}: must be "full scan" or "batch"')
        rows: list[tuple[int, ...]] = []
        merged, since = self._merged(), self.full_scans
        while len(rows) < limit and self.registered:
            if each == "batch":
                self.do_scan()
            else:
                self.full_scan()
            rows.append(tuple(self._counted().values()))
            if until is not None:
                if until(self):
                    break
                continue
            if self._merged() != merged:
                merged, since = self._merged(), self.full_scans
            if self.full_scans - since >= (_SETTLED_SMART if self.skips_pages else _SETTLED):
                break
        return np.array(rows, sysfs.COUNTERS_DTYPE)

    def _merged(self) -> tuple[int, ...]:
        return self.pages_shared, self.pages_sharing, self.ksm_zero_pages

    def _advise(self) -> None:
        """What the advisor, if it is on, makes of the full scan that has ended."""
        if not self._ksm["advisor_mode"][0]:
            return
        advisor = self._ksm["advisor"][0]
        pages, change, seconds = advise(
            self.pages_to_scan,
            int(advisor[_CHANGE]),
            int(advisor[_LAST]),
            self.now_ms - int(advisor[_SCAN_START]),
            self.cpu_ms - int(advisor[_CPU_LAST]),
            {
                "max_cpu": self.advisor_max_cpu,
                "max_pages": self.advisor_max_pages_to_scan,
                "target": self.advisor_target_scan_time,
            },
        )
        self._ksm["pages_to_scan"][0] = min(pages, _U32)
        advisor[_CPU_LAST], advisor[_CHANGE], advisor[_LAST] = self.cpu_ms, min(change, _U32), seconds

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
        c = self._counted()
        return (
            f"<Ksm run {self.run}, {c['full_scans']} full scans, shared {c['pages_shared']}, sharing "
            f"{c['pages_sharing']}, unshared {c['pages_unshared']}, volatile {c['pages_volatile']}>"
        )

