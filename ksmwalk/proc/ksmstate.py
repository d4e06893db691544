"""What the machine's KSM shows of itself: its tunables and counters, who has memory marked, and how fast ksmd is.

Reads only, and takes whatever stands in the files as it is: kernels lack files, and other users' processes are not for
everybody to look into. What can't be had is None or missing, never 0.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..gate import shown
from ..ksm import sysfs
from ..layout import PAGE_SIZE
from . import process_files
from .maps import parse_smaps
from .process_files import PPID, STARTTIME

__all__ = ["KsmProcess", "KsmState", "Moment", "default_text", "read_ksm_state", "read_moment"]

_KSM = "sys/kernel/mm/ksm"
# A file of sysfs is a page at most; one of /proc about a process that holds more than this is not what we look for.
_MOST_TEXT = 1 << 16
_NUMBER = re.compile(rb"-?[0-9]{1,20}")  # general_profit may be negative
_TICKS = 100  # a second, as Linux shows times to programs, on every machine that has KSM


@dataclass(frozen=True, slots=True)
class KsmProcess:
    """A process that has memory marked mergeable, or that KSM still has rmap_items of.

    Attributes
    ----------
    pid : int
    name : str
        Undecodable bytes as surrogates; not fit to be printed as it is.
    uid : int or None
        Effective.
    cgroup : str
        Path in the unified hierarchy (version 2, else the longest of version 1); empty if unknown.
    start_time : int
        Ticks after the machine's start; 0 if unknown.
    rmap_items, merging_pages, zero_pages, profit : int or None
        `ksm_stat`'s ksm_rmap_items, ksm_merging_pages, ksm_zero_pages, ksm_process_profit.
    merge_any : bool or None
        Whether the whole process asked to be merged (prctl PR_SET_MEMORY_MERGE); None where the kernel does not say.
    marked : bool
        Whether it has mergeable memory now.
    marked_pages : int or None
        Anonymous pages present in marked areas: those that ksmd visits in a pass. None if not looked at.
    ksm_pages : int or None
        Mappings of KSM pages in marked areas, as they are now. None if not looked at, or on kernels that don't show them.
    owed : int or None
        merging_pages less ksm_pages: more than 0 are pages that were written to or unmapped and not visited since, less
        than 0 mappings that fork made and no visit has counted. Of the counts before and after the look the nearer to 0.
    family : tuple of int
        Equal in processes that fork, and not exec, made from one another; empty if unknown.

    Models: `/proc/PID/ksm_stat` of Linux 6.18; `ksm_merging_pages` and smaps beside it for older kernels.
    Differs: nothing known.
    """

    pid: int
    name: str
    uid: int | None = None
    cgroup: str = ""
    start_time: int = 0
    rmap_items: int | None = None
    merging_pages: int | None = None
    zero_pages: int | None = None
    profit: int | None = None
    merge_any: bool | None = None
    marked: bool = False
    marked_pages: int | None = None
    ksm_pages: int | None = None
    owed: int | None = None
    family: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Moment:
    """Where ksmd was at one moment.

    Attributes
    ----------
    at : float
        Seconds, `time.monotonic`.
    full_scans, pages_scanned, pages_skipped : int or None
    cpu_ns : int or None
        CPU time of ksmd so far.
    """

    at: float
    full_scans: int | None = None
    pages_scanned: int | None = None
    pages_skipped: int | None = None
    cpu_ns: int | None = None

    @property
    def met(self) -> int | None:
        """Pages that ksmd came across so far: those it visited and those it skipped."""
        return None if self.pages_scanned is None else self.pages_scanned + (self.pages_skipped or 0)


@dataclass(slots=True)
class KsmState:
    """The machine's KSM at one moment.

    Attributes
    ----------
    available : bool
        Whether this kernel has KSM.
    knobs : dict of str to str
        Tunables by name as texts, of a choice the chosen word; those that this kernel has.
    counters : dict of str to int
        Counters by name; those that this kernel has.
    odd : list of str
        Files that hold what can't be read as what they are, in words fit to be printed.
    processes : list of KsmProcess
    refused : int
        Processes that this user may not ask.
    ksmd : int or None
        The number of ksmd, if it runs.
    frames : (int, int) or None
        From `frames.ksm_frames`, where it was asked for: KSM pages that there are, and their mappings.
    seconds : float
        How long it took to look at the processes' memory (smaps) and at frames; 0 if it was not asked for.

    Models: `/sys/kernel/mm/ksm` and `/proc/PID/ksm_stat` of Linux 5.10 to 7.3, each with the files it has.
    Differs: the counters are not of one instant: ksmd may go on while one is read after the other.
    """

    available: bool
    knobs: dict[str, str] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    odd: list[str] = field(default_factory=list)
    processes: list[KsmProcess] = field(default_factory=list)
    refused: int = 0
    ksmd: int | None = None
    frames: tuple[int, int] | None = None
    seconds: float = 0.0

    def number(self, name: str) -> int | None:
        """A tunable as a number; None where this kernel has none of that name, or it holds something else."""
        text = self.knobs.get(name, "")
        return int(text) if text.isascii() and text.isdigit() else None

    @property
    def rmap_items(self) -> int | None:
        """All rmap_items there are: what the four counters of pages share out among them."""
        names = ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile")
        if any(name not in self.counters for name in names):
            return None
        return sum(self.counters[name] for name in names)

    def changed_knobs(self) -> dict[str, tuple[str, str]]:
        """Tunables that differ from the kernel's default: (what they are, what they would be); `run` is none of them."""
        return {
            name: (text, default)
            for name, text in self.knobs.items()
            if name != "run" and text != (default := default_text(name))
        }


def default_text(name: str) -> str:
    """A tunable's default as its file shows it."""
    number = sysfs.KNOBS[name].default
    return sysfs.ADVISORS[number] if isinstance(sysfs.KNOBS[name], sysfs.Choice) else str(number)


# ---------------------------------------------------------------- files


def _read(path: Path, most: int = _MOST_TEXT) -> bytes:
    with open(path, "rb", buffering=0) as file:
        text = b""
        while len(text) < most and (some := file.read(most - len(text))):
            text += some
    return text


def _files(directory: Path, state: KsmState) -> None:
    for name in (*sysfs.KNOBS, *sysfs.COUNTERS):
        try:
            text = _read(directory / name).strip()
        except FileNotFoundError:
            continue  # a kernel that has not got it
        except OSError as error:
            state.odd.append(f"{directory / name}: {error.strerror}")
            continue
        chosen = re.search(rb"\[([\w-]+)\]", text)
        if name in sysfs.KNOBS and isinstance(sysfs.KNOBS[name], sysfs.Choice):
            good = chosen[1] if chosen else None
        else:
            good = text if _NUMBER.fullmatch(text) and (name == "general_profit" or text[:1] != b"-") else None
        if good is None:
            state.odd.append(f"{directory / name} holds {shown(text[:40])}")
        elif name in sysfs.KNOBS:
            state.knobs[name] = good.decode()
        else:
            state.counters[name] = int(good)


def read_moment(root: Path = Path("/"), ksmd: int | None = None) -> Moment:
    """Read how far ksmd has come.

    Parameters
    ----------
    root : Path
        What stands for the machine's root directory.
    ksmd : int, optional
        The number of ksmd, if its CPU time is wanted.

    Returns
    -------
    Moment
        Of one pass: the counters are read again where a pass ended among them.
    """
    for _ in range(8):
        first = _counter(root, "full_scans")
        scanned, skipped = _counter(root, "pages_scanned"), _counter(root, "pages_skipped")
        at = time.monotonic()
        if first == _counter(root, "full_scans"):
            break
    return Moment(at, first, scanned, skipped, None if ksmd is None else _cpu_ns(root / "proc" / str(ksmd)))


def _counter(root: Path, name: str) -> int | None:
    try:
        text = _read(root / _KSM / name).strip()
    except OSError:
        return None
    return int(text) if _NUMBER.fullmatch(text) else None


def _cpu_ns(directory: Path) -> int | None:
    """CPU time of a thread: in nanoseconds where the kernel keeps it so, else in ticks."""
    try:
        return int(_read(directory / "schedstat").split()[0])
    except (OSError, ValueError, IndexError):
        pass
    fields = _stat(directory)
    return (fields[process_files.UTIME] + fields[process_files.STIME]) * (10**9 // _TICKS) if fields else None


def _stat(directory: Path) -> list[int]:
    """The numbers in a process's `stat`, none where it can't be read."""
    try:
        return process_files.stat_fields(_read(directory / "stat"))
    except OSError:
        return []


# ---------------------------------------------------------------- processes


def read_ksm_state(
    root: Path = Path("/"), *, processes: bool = True, memory: bool = False, known: Mapping[int, KsmProcess] | None = None
) -> KsmState:
    """Read what the machine's KSM shows.

    Parameters
    ----------
    root : Path
        What stands for the machine's root directory: has `sys/kernel/mm/ksm` and `proc` in it.
    processes : bool
        Whether to ask every process.
    memory : bool
        Whether to look into the list of mappings of those with marked memory (`marked_pages`, `ksm_pages`): the kernel
        walks their page tables for that.
    known : dict of int to KsmProcess, optional
        Where `memory` is False: the same processes as they were looked into before, whose figures are handed on.

    Returns
    -------
    KsmState
        `available` False, and nothing else, where there is no KSM.
    """
    directory = root / _KSM
    state = KsmState(directory.is_dir())
    if not state.available:
        return state
    _files(directory, state)
    if processes:
        for one in _every_process(root / "proc", memory, known or {}, state):
            state.processes.append(one)
    return state


def _every_process(
    proc: Path, memory: bool, known: Mapping[int, KsmProcess], state: KsmState
) -> Iterator[KsmProcess]:
    try:
        pids = sorted(int(path.name) for path in proc.iterdir() if path.name.isascii() and path.name.isdigit())
    except OSError as error:
        state.odd.append(f"{proc}: {error.strerror}")
        return
    for pid in pids:
        directory = proc / str(pid)
        try:
            name = _read(directory / "comm").removesuffix(b"\n").decode(errors="surrogateescape")
            fields = _stat(directory)
            if process_files.KTHREADD in (pid, *fields[PPID : PPID + 1]):
                state.ksmd = pid if name == "ksmd" else state.ksmd
                continue  # no memory of its own
            one = _process(directory, pid, name, fields)
        except PermissionError:
            state.refused += 1
            continue
        except OSError:
            continue  # gone by now
        if one is None:
            continue
        before = known.get(pid)
        if memory:
            began = time.perf_counter()
            one = _with_memory(directory, one)
            state.seconds += time.perf_counter() - began
        elif before is not None and before.start_time == one.start_time:
            one = dataclasses.replace(
                one, marked_pages=before.marked_pages, ksm_pages=before.ksm_pages, owed=before.owed
            )
        yield one


def _process(directory: Path, pid: int, name: str, fields: list[int]) -> KsmProcess | None:
    """One process, or None if KSM has nothing to do with it."""
    stat = _ksm_stat(directory)
    marked = process_files.is_marked(stat, lambda: _smaps(directory))
    numbers = _numbers(directory, stat)
    if not marked and not any(numbers.get(f"ksm_{what}") for what in ("rmap_items", "merging_pages", "zero_pages")):
        return None
    items, merging = numbers.get("ksm_rmap_items"), numbers.get("ksm_merging_pages")
    profit = numbers.get("ksm_process_profit")
    if profit is None and items is not None and merging is not None:
        profit = (merging + numbers.get("ksm_zero_pages", 0)) * PAGE_SIZE - items * sysfs.RMAP_ITEM_SIZE
    return KsmProcess(
        pid,
        name,
        _uid(directory),
        _cgroup(directory),
        fields[STARTTIME] if fields else 0,
        items,
        merging,
        numbers.get("ksm_zero_pages"),
        profit,
        stat["ksm_merge_any"] == b"yes" if "ksm_merge_any" in stat else None,
        marked,
        family=_family(fields),
    )


def _ksm_stat(directory: Path) -> dict[str, bytes]:
    try:
        return process_files.ksm_words(_read(directory / "ksm_stat"))
    except FileNotFoundError:
        return {}


def _numbers(directory: Path, stat: Mapping[str, bytes] | None = None) -> dict[str, int]:
    """The numbers that KSM keeps of a process."""
    numbers = {
        key: int(word)
        for key, word in (stat if stat is not None else _ksm_stat(directory)).items()
        if word not in (b"yes", b"no") and (key == "ksm_process_profit" or not word.startswith(b"-"))
    }
    if "ksm_merging_pages" not in numbers:
        # a file of its own in Linux 6.1
        with contextlib.suppress(OSError):
            text = _read(directory / "ksm_merging_pages").strip()
            if text.isdigit() and len(text) <= 20:
                numbers["ksm_merging_pages"] = int(text)
    return numbers


def _smaps(directory: Path) -> bytes:
    with open(directory / "smaps", "rb", buffering=0) as file:
        return file.read()


def _uid(directory: Path) -> int | None:
    try:
        users = process_files.user_ids(_read(directory / "status"))
    except OSError:
        return None
    return users[1] if users else None


def _cgroup(directory: Path) -> str:
    try:
        return process_files.cgroup_path(_read(directory / "cgroup"))
    except OSError:
        return ""


def _family(fields: list[int]) -> tuple[int, ...]:
    """Where code, stack and arguments lie: fork copies these, exec draws them anew (if addresses are randomised)."""
    if len(fields) <= process_files.ARGUMENTS:
        return ()
    where = (fields[process_files.CODE], fields[process_files.STACK], fields[process_files.ARGUMENTS])
    return where if all(place > 1 for place in where) else ()


def _with_memory(directory: Path, one: KsmProcess) -> KsmProcess:
    """What its list of mappings says of its marked areas; as it was where that can't be had."""
    try:
        text = _smaps(directory)
        areas = [vma for vma in parse_smaps(text) if vma.mergeable]
        after = _numbers(directory).get("ksm_merging_pages")
    except (OSError, ValueError):
        return one
    marked_pages = sum(vma.anonymous for vma in areas) // PAGE_SIZE
    if b"\nKSM:" not in text:
        # a kernel without the line
        return dataclasses.replace(one, marked_pages=marked_pages)
    ksm_pages, owed = sum(vma.ksm for vma in areas) // PAGE_SIZE, None
    if one.merging_pages is not None and after is not None:
        low, high = sorted((one.merging_pages, after))
        owed = max(0, low - ksm_pages) or min(0, high - ksm_pages)
    return dataclasses.replace(one, marked_pages=marked_pages, ksm_pages=ksm_pages, owed=owed)
