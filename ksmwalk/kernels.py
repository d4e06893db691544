"""The kernels a Host can be: in what each differs from Linux 6.18.44, what it shows, and where that is known from.

What is said here was seen on the real daemon of each kernel, in as much as `Profile.seen` tells. Stable releases get changes
back from later ones, so a kernel is named by its full version, not by its series: 6.12.43 and 6.12.117 are two different ones.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

from .gate import shown
from .layout import Switch

__all__ = ["DEFAULT", "PROFILES", "SWITCHES", "Found", "Profile", "find", "here", "nearest", "of_bits", "of_machine", "of_release"]

#: what a Host is if nothing else is said
DEFAULT = "6.18.44"

#: what each switch does, in a sentence
SWITCHES: dict[Switch, str] = {
    Switch.SCAN_EACH: "a scan looks up one address after the other: the answers are the same, the time is not",
    Switch.UNMERGE_RANGE: "run=2 and MADV_UNMERGEABLE walk ranges: the answers are the same, the time is not",
    Switch.STABLE_FIRST: "a visit searches the stable tree before it compares the checksum: a page that equals a KSM page "
    "joins it at its first visit, and an empty one joins a KSM page of zeros before it becomes the zero page",
    Switch.ZERO_UNTRACKED: "a page merged with the zero page is an ordinary zero page: counted nowhere, never unmerged",
    Switch.SPLIT_KEEPS_EMPTY: "empty parts of a huge page that is split stay pages and merge among themselves",
    Switch.OLD_CHAINS: "a search without pruning due stops at the first KSM page with room, and a chain left with one "
    "stays a chain; only a search with pruning due that finds one alone, with room, turns it back",
    Switch.NO_SMART_SCAN: "no smart scan: nothing is skipped, no file smart_scan; 15 pages fill a batch of "
    "a CPU, not 31",
    Switch.FORK_INHERITS: "a child starts with its parent's counts of rmap_items and merging pages and keeps what is too "
    "much; ksm_zero_pages does not grow at fork",
    Switch.FORKED_HUGE_FAILS: "a huge page that several areas map is not split where the first that maps it by a pmd is not "
    "the last of them: that one maps small pages then, and the merge fails with -14",
    Switch.FORGETS: "a merge forgets checksum and age: two visits until the page merges again, five before the first skip",
    Switch.NONE_NO_PARTNER: "an unstable search that meets a PROT_NONE page gives up; move_pages says -2, unmerging leaves it",
    Switch.KEEPS_PROTECTED: "unmerging leaves KSM pages that userfaultfd write-protects",
    Switch.POKE_FAILS: "a debugger's store where the area does not allow any fails with -5 (a setting: proc_mem.force_override)",
    Switch.MOVE_ONE_AREA: "mremap of several areas to a new place fails with -14",
    Switch.NO_MERGE_ANY: "no PR_SET_MEMORY_MERGE: -22",
    Switch.NO_COLLAPSE: "no MADV_COLLAPSE: -22",
    Switch.BITS_LIE: "/proc/kpageflags shows the KSM bit for every anonymous page",
    Switch.OLD_CALLS: "no MADV_POPULATE_READ and _WRITE, no MADV_DONTNEED_LOCKED; process_madvise takes MADV_COLD and "
    "MADV_PAGEOUT alone, MREMAP_DONTUNMAP and a userfaultfd that protects private "
    "anonymous memory alone: -22; new pages and those of locked areas wait in one batch, where mlock leaves the last one",
    Switch.NO_GUARD: "no MADV_GUARD_INSTALL and _REMOVE, and process_madvise takes for oneself too only what it takes for "
    "others: -22",
    Switch.OLD_UFFD: "no UFFDIO_MOVE: -22; a store to a page that userfaultfd protects always waits, absent anonymous pages "
    "are not protected, and those that are lie in one area",
    Switch.COLLAPSES_NOTHING: "MADV_COLLAPSE of a range without a whole huge page is no error where the area has room for one; "
    "elsewhere -22",
    Switch.PARTS_COPIED: "a store copies a part of a huge page that was shared and that small ptes map, whoever has it still",
    Switch.LAST_PART_STAYS: "such a store goes into the page where that part is all that is mapped of it",
    Switch.MOVE_FORGETS: "a huge page that small ptes map, and that was moved to another node, is moved as it is the next time "
    "too; else it is split then",
    Switch.STAYS_PROTECTED: "an area that userfaultfd protects is not registered again without protection: -16",
    Switch.LAZY_NOT_COLLAPSED: "khugepaged leaves small pages alone among which is one that MADV_FREE marked and nobody stored to",
    Switch.EMPTY_NOT_JOINED: "an area with pages that changes does not become one with a neighbour that never had any",
    Switch.HUGE_ZERO_SPLIT: "a store to the huge zero page makes small ones of it, and no huge page",
    Switch.SMALL_COLLAPSED: "where it makes no huge page, khugepaged makes folios of the smaller sizes that are allowed",
    Switch.CHILD_ACCESSED: "fork: a child's pages count as accessed where its parent's do, for khugepaged",
    Switch.ADVISED_ONCE: "MADV_HUGEPAGE where it was given before tells khugepaged nothing",
    Switch.LAZY_EACH: "of a huge page that MADV_FREE marked and small ptes map, each page goes up to the first that was stored "
    "to; else runs of pages go that are mapped alike, and only such as have none of these",
    Switch.REST_STAYS_LOCKED: "MREMAP_DONTUNMAP unlocks what it moves; the rest of the area stays locked",
    Switch.READ_ONLY_STAYS: "small pages none of which may be stored to become no huge page: MADV_COLLAPSE -22",
    Switch.TABLES_KEPT: "MADV_DONTNEED keeps the tables of the pages that it discards: no huge page comes there later",
}

#: columns of a process in records, in their order
STATS = ("rmap_items", "zero_pages", "merging_pages", "process_profit", "merge_any", "mergeable")
#: what KSM counts in /proc/vmstat
VMSTAT = ("ksm_swpin_copy", "cow_ksm")

_OLD = (
    Switch.STABLE_FIRST | Switch.ZERO_UNTRACKED | Switch.SPLIT_KEEPS_EMPTY | Switch.OLD_CHAINS | Switch.NO_SMART_SCAN
    | Switch.KEEPS_PROTECTED | Switch.MOVE_ONE_AREA | Switch.NO_MERGE_ANY | Switch.NO_GUARD
    | Switch.OLD_UFFD | Switch.PARTS_COPIED | Switch.LAST_PART_STAYS | Switch.TABLES_KEPT | Switch.READ_ONLY_STAYS
    | Switch.MOVE_FORGETS | Switch.EMPTY_NOT_JOINED | Switch.HUGE_ZERO_SPLIT
    | Switch.LAZY_EACH     # taken from 6.12: here it shows in reclaim alone, which no guest was asked for
)  # fmt: skip
_NO_FILES = frozenset({
    "smart_scan", "advisor_mode", "advisor_max_cpu", "advisor_min_pages_to_scan", "advisor_max_pages_to_scan",
    "advisor_target_scan_time", "pages_scanned", "pages_skipped", "ksm_zero_pages", "general_profit",
})  # fmt: skip


@dataclass(frozen=True)
class Profile:
    """One kernel.

    Attributes
    ----------
    version : str
        Its full version.
    switches : Switch
        In what it differs from Linux 6.18.44.
    missing : frozenset of str
        Files of /sys/kernel/mm/ksm that it does not have, of tunables and counters.
    stats : tuple of str
        What it shows of a process, of `STATS`.
    events : bool
        Whether it has the ksm:* trace events.
    seen : str
        What its switches were seen in.
    """

    version: str
    switches: Switch
    seen: str
    missing: frozenset[str] = frozenset()
    stats: tuple[str, ...] = STATS
    events: bool = True

    @property
    def vmstat(self) -> tuple[str, ...]:
        """The counters of KSM that it has in /proc/vmstat."""
        return () if self.switches & Switch.OLD_CALLS else VMSTAT

    @property
    def differences(self) -> list[str]:
        """A sentence for each switch."""
        return [text for switch, text in SWITCHES.items() if self.switches & switch]

    @property
    def bits(self) -> int:
        """What `ctl.kernel` of a Host holds: the switches, and the version between them."""
        switches = self.switches
        if self.version == DEFAULT:
            # What was proposed for it and came with 6.19. The answers are the same; `ksm.scan.strategy` "per-address"
            # is how 6.18.44 itself unmerges.
            switches |= Switch.UNMERGE_RANGE
        return int(switches) | _packed(_numbers(self.version)) << _SHIFT


def _numbers(version: str) -> tuple[int, int, int]:
    major, minor, patch = map(int, version.split("."))
    return major, minor, patch


_SHIFT = 24
#: bits that `ctl.kernel` has: 0 to 23 switches, 24 to 49 the version, 50 to 60 switches; 61 and 62 are left
BITS = _SHIFT + 26 + 11


def _packed(numbers: tuple[int, int, int]) -> int:
    return (numbers[0] * 256 + numbers[1]) * 1024 + numbers[2]


_ALL = "all scenarios, twice"
_SOME = "19 scenarios, once"
_LIE = Switch.BITS_LIE
_12_16 = Switch.MOVE_ONE_AREA | _LIE | Switch.READ_ONLY_STAYS     # the last is taken from 6.12 for 6.16, and for 6.17 below
_MOVES = Switch.MOVE_FORGETS      # seen on 6.12.43; that those of the months before the change have it is taken from there
_12 = (
    _12_16 | Switch.NO_GUARD | Switch.PARTS_COPIED | Switch.TABLES_KEPT | Switch.EMPTY_NOT_JOINED | Switch.HUGE_ZERO_SPLIT
    | Switch.LAZY_EACH
)  # fmt: skip
_7_2 = (
    Switch.UNMERGE_RANGE | Switch.POKE_FAILS | Switch.LAZY_NOT_COLLAPSED | Switch.REST_STAYS_LOCKED | Switch.SMALL_COLLAPSED
    | Switch.CHILD_ACCESSED | Switch.ADVISED_ONCE | Switch.COLLAPSES_NOTHING
)  # fmt: skip
_WITHOUT_MARKS = STATS[:4]

#: every kernel that was seen, by version
PROFILES: dict[str, Profile] = {
    one.version: one
    for one in (
        Profile("5.10.223", _OLD | Switch.SCAN_EACH | Switch.NO_COLLAPSE | Switch.OLD_CALLS, _ALL, _NO_FILES, (), False),
        Profile("6.1.170", _OLD | Switch.FORK_INHERITS | Switch.NONE_NO_PARTNER, _SOME, _NO_FILES,
                ("rmap_items", "merging_pages"), False),
        Profile("6.1.192", _OLD | Switch.FORK_INHERITS | Switch.NONE_NO_PARTNER | Switch.REST_STAYS_LOCKED, _ALL, _NO_FILES,
                ("rmap_items", "merging_pages"), False),
        Profile("6.12.43", _12 | _MOVES | Switch.SCAN_EACH | Switch.FORK_INHERITS, _SOME, stats=_WITHOUT_MARKS),
        Profile("6.12.117", _12 | Switch.REST_STAYS_LOCKED | Switch.ADVISED_ONCE, _ALL, stats=_WITHOUT_MARKS),
        Profile("6.16.12", _12_16 | _MOVES | Switch.SCAN_EACH | Switch.FORK_INHERITS | Switch.FORKED_HUGE_FAILS, _ALL),
        Profile("6.17.8", _LIE | Switch.READ_ONLY_STAYS | _MOVES | Switch.SCAN_EACH | Switch.FORKED_HUGE_FAILS,
                "its time and /proc/kpageflags only; the rest is taken from 6.17.13"),
        Profile("6.17.13", _LIE | Switch.READ_ONLY_STAYS | _MOVES | Switch.FORKED_HUGE_FAILS, _ALL),
        Profile("6.18.15", _LIE | _MOVES | Switch.FORKED_HUGE_FAILS, _ALL),
        Profile("6.18.44", Switch(0), "several thousand scenarios"),
        Profile("6.19.14", _LIE | Switch.UNMERGE_RANGE, _ALL),
        Profile("7.0.13", _LIE | Switch.UNMERGE_RANGE, _ALL + "; that it unmerges by ranges is taken from 6.19.14"),
        Profile("7.1.13", Switch.UNMERGE_RANGE | Switch.POKE_FAILS, _SOME + "; 60 random scenarios, once"),
        Profile("7.2.12", _7_2, _SOME + "; 60 random scenarios, once"),
        Profile("7.2.13", _7_2, "200 random scenarios, once"),
        Profile("7.3.4", _7_2 | Switch.FORGETS | Switch.STAYS_PROTECTED, _ALL),
    )
}  # fmt: skip

#: names that do not begin with the full version (Debian's stands in `uname -v`): what begins with one is that kernel
NAMES: dict[str, str] = {
    "5.10.0-32-": "5.10.223",
    "6.1.0-56-": "6.1.192",
}


class Found(NamedTuple):
    """A kernel that was asked for, and the profile that answers for it.

    Attributes
    ----------
    profile : Profile
    exact : bool
        Whether that very version was seen.
    note : str
        What there is to say where it was not; else empty.
    """

    profile: Profile
    exact: bool
    note: str


def _known() -> str:
    return ", ".join(PROFILES)


def _series(numbers: tuple[int, int, int]) -> int:
    """Mainline releases counted through: 5.19, 6.0, ... 6.19, 7.0 follow one another."""
    return 20 * numbers[0] + numbers[1]


def _distance(numbers: tuple[int, int, int], other: tuple[int, int, int]) -> tuple[int, int, bool]:
    """How far another version is: in the same series by its patches, else by series, then the first one seen of it."""
    apart = abs(_series(numbers) - _series(other))
    return apart, other[2] if apart else abs(numbers[2] - other[2]), other < numbers


def full_version(release: str, version: str = "") -> str:
    """The full version of a kernel.

    Parameters
    ----------
    release : str
        `uname -r`.
    version : str
        `uname -v`, where Debian says it.

    Raises
    ------
    ValueError
        None of them names one.
    """
    if found := re.search(r"\bDebian (\d{1,3}\.\d{1,3}\.\d{1,3})", version):
        return found[1]
    for start, full in NAMES.items():
        if release.startswith(start):
            return full
    # a fourth number is the builder's (6.6.87.2-microsoft-standard-WSL2); what else follows is set off
    found = re.match(r"(\d{1,3})\.(\d{1,3})(?:\.(\d{1,3})(?:\.\d{1,5}(?=-))?)?(?:[-+~_ ][ -~]*)?\Z", release, re.ASCII)
    if found is None:
        raise ValueError(f"kernel {shown(release)}: no version; known are {_known()}")
    return f"{int(found[1])}.{int(found[2])}.{int(found[3] or 0)}"


def find(release: str, version: str = "") -> Found:
    """The profile of a kernel: its own, or that of the nearest version that was seen.

    Parameters
    ----------
    release : str
        A version ("6.1.192"), or what `uname -r` says ("6.12.117+deb12-cloud-amd64").
    version : str
        `uname -v`.

    Returns
    -------
    Found

    Raises
    ------
    ValueError
        No version; or one outside of those that were seen. The known ones are named.

    Examples
    --------
    >>> find("6.1.0-56-cloud-amd64").profile.version
    '6.1.192'
    >>> find("6.6.30").note
    'Linux 6.6.30 was not seen: answered as 6.1.170, the nearest version that was'
    """
    for what, text in (("kernel", release), ("version", version)):
        if not isinstance(text, str):
            raise TypeError(f"{what} {shown(text)}: must be a text")
    full = full_version(release, version)
    if full in PROFILES:
        return Found(PROFILES[full], True, "")
    numbers = _numbers(full)
    seen = [_numbers(one) for one in PROFILES]
    if not min(seen)[:2] <= numbers[:2] <= max(seen)[:2]:
        raise ValueError(f"kernel {shown(release)}: none like it was seen; known are {_known()}")
    nearest = min(PROFILES, key=lambda known: _distance(numbers, _numbers(known)))
    return Found(PROFILES[nearest], False, f"Linux {full} was not seen: answered as {nearest}, the nearest version that was")


def of_release(release: str, version: str = "") -> tuple[Profile, str]:
    """The profile of a machine's kernel for those who go on in any case, and what there is to say.

    Parameters
    ----------
    release, version : str
        As for `find`; an empty release names none, and there is nothing to say.

    Returns
    -------
    (Profile, str)
        That of `DEFAULT` where none fits.
    """
    if not release:
        return PROFILES[DEFAULT], ""
    try:
        profile, _, note = find(release, version)
    except ValueError as error:
        return PROFILES[DEFAULT], f"{error}: answered as {DEFAULT}"
    return profile, note


def here() -> tuple[Profile, str]:
    """The same of the kernel that runs here."""
    return of_release(os.uname().release, os.uname().version)


def of_machine() -> Found:
    """The profile of the kernel that runs here.

    Raises
    ------
    ValueError
        As `find`.
    """
    name = os.uname()
    return find(name.release, name.version)


@cache
def of_bits(bits: int) -> Profile:
    """The profile that `ctl.kernel` of a Host names, with the switches it has; without a name the one most like these."""
    switches = Switch(bits & _EVERY)
    for one in PROFILES.values():
        if one.bits == bits:
            return one
        if (one.bits ^ bits) >> _SHIFT & (1 << 26) - 1 == 0:
            return replace(one, switches=switches)
    return nearest(switches)


_EVERY = sum(SWITCHES)


def nearest(switches: Switch, among: Iterable[Switch] = SWITCHES) -> Profile:
    """The profile that agrees with most of these switches, of those that were found out; the newest of several.

    Parameters
    ----------
    switches : Switch
        Those that are on.
    among : iterable of Switch
        Those that were found out.
    """
    asked = Switch(sum(among))

    def wrong(one: Profile) -> int:
        return ((one.switches ^ switches) & asked).bit_count()

    fewest = min(map(wrong, PROFILES.values()))
    return [one for one in PROFILES.values() if wrong(one) == fewest][-1]
