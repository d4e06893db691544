"""What stands in the files of /proc about one process, wherever they were read from."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

# comm may hold anything, brackets too: fields are counted from the last one; numbers of `stat` in proc(5), less 3
PPID, UTIME, STIME, STARTTIME = 1, 11, 12, 19
CODE, STACK, ARGUMENTS = 23, 25, 45
#: the parent of all kernel threads
KTHREADD = 2

_WORD = re.compile(rb"^(ksm_\w{1,40})[: ]+(-?[0-9]{1,20}|yes|no)$", re.M)
_UIDS = re.compile(rb"^Uid:\s+(\d{1,10})\s+(\d{1,10})", re.M)
_MARKED = re.compile(rb"^VmFlags:.* mg\b", re.M)


def stat_fields(stat: bytes) -> list[int]:
    """The numbers of `stat` behind the process's name; its state, a letter, as 0; empty where they are not to be had."""
    words = stat.rpartition(b")")[2].split()
    try:
        return [0, *map(int, words[1:])] if len(words) > STARTTIME else []
    except ValueError:
        return []


def ksm_words(ksm_stat: bytes) -> dict[str, bytes]:
    """The words of `ksm_stat` by name: numbers, yes and no."""
    return {name.decode(): word for name, word in _WORD.findall(ksm_stat)}


def is_marked(words: Mapping[str, bytes], smaps: Callable[[], bytes]) -> bool:
    """Whether a process has memory marked mergeable: as ksm_stat says it, or, on older kernels, its list of mappings."""
    if "ksm_mergeable" in words:
        return words["ksm_mergeable"] == b"yes"
    return words.get("ksm_merge_any") == b"yes" or _MARKED.search(smaps()) is not None


def user_ids(status: bytes) -> tuple[int, int] | None:
    """Real and effective user of `status`."""
    found = _UIDS.search(status)
    return (int(found[1]), int(found[2])) if found else None


def cgroup_path(cgroup: bytes) -> str:
    """The path of `cgroup`: in the unified hierarchy, else the longest of version 1; undecodable bytes as surrogates."""
    lines = cgroup.decode(errors="surrogateescape").splitlines()
    unified = [line.removeprefix("0::") for line in lines if line.startswith("0::")]
    if unified and unified[0] != "/":
        return unified[0]
    return max((line.split(":", 2)[2] for line in lines if line.count(":") >= 2), key=len, default="")
