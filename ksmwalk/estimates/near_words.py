"""Near pages grouped by mapping and by the offsets at which they differ, in words and with what to do."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from ..sources.contents import MemoryCapture
from ..sources.near import KINDS, Near

#: what is to be done where pages differ by this
TODO = {
    "pointer": "an address: processes forked from one parent, or started without ASLR (setarch -R), have the same.",
    "time": "a time: keep what is stamped in pages of its own, apart from what rests.",
    "malloc": "malloc's size field: allocate large buffers page by page (posix_memalign), so that headers lie elsewhere.",
    "counter": "a small number (a count, an index, a length): keep what counts in pages of its own (Python: gc.freeze() "
    "before fork).",
    "data": "data.",
}
_WHAT = {"pointer": "a pointer", "time": "a time", "malloc": "malloc's metadata", "counter": "a counter or an index",
         "data": "data"}  # fmt: skip


def near_groups(near: Near, capture: MemoryCapture) -> list[dict[str, Any]]:
    """Pages that are near another, by mapping name and by where they differ, the largest group first.

    Parameters
    ----------
    near : Near
    capture : MemoryCapture

    Returns
    -------
    list of dict
        pages, name (of the mapping, as the kernel has it), pids, words (offsets of those that differ; empty: more than four,
        or others in each page), bytes (at most), near_zero, kind, text, todo.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    names = _names(near, capture)
    kinds = [KINDS[int(kind)] for kind in near.pairs["kind"]]
    for row, pair in enumerate(near.pairs):
        words = tuple(int(offset) for offset in near.offsets[row] if offset >= 0)
        # many words: where the first stands says nothing
        where = words if int(pair["words"]) <= len(words) else ()
        groups.setdefault((names[row], where, bool(pair["other_process"] < 0)), []).append(row)
    # those that differ where no other does are told together
    for key in [key for key, rows in groups.items() if len(rows) == 1 and key[1]]:
        [row] = groups.pop(key)
        groups.setdefault((key[0], None, key[2], kinds[row]), []).append(row)
    found = []
    for (name, words, zero, *_), rows in sorted(groups.items(), key=lambda group: -len(group[1])):
        kind = Counter(kinds[row] for row in rows).most_common(1)[0][0]
        if words is None and len(rows) == 1:
            words = tuple(int(offset) for offset in near.offsets[rows[0]] if offset >= 0)
        most = int(near.pairs["bytes"][rows].max())
        pids = sorted({capture.processes[int(i)].pid for i in near.pairs["process"][rows]})
        found.append({
            "pages": len(rows), "name": name, "pids": pids, "words": list(words or ()), "bytes": most, "near_zero": zero,
            "kind": kind, "text": _text(words, most, zero, kind), "todo": TODO[kind],
        })  # fmt: skip
    return found


def _names(near: Near, capture: MemoryCapture) -> list[str]:
    """The name of the mapping of each pair's page."""
    out = []
    starts = [np.array([vma.start for vma in one.vmas], np.uint64) for one in capture.processes]
    for pair in near.pairs:
        one = capture.processes[int(pair["process"])]
        at = int(np.searchsorted(starts[int(pair["process"])], pair["addr"], "right")) - 1
        out.append(one.vmas[at].name)
    return out


def _text(words: tuple[int, ...] | None, most: int, zero: bool, kind: str) -> str:
    other = "a page of zeros" if zero else "another page"
    count = f"{most} byte{'s' if most > 1 else ''}"
    if words is None:
        return f"differ from {other} in up to {count}, each at another offset: {_WHAT[kind]}"
    if not words:
        return f"differ from {other} in up to {count} at more than four places"
    runs: list[list[int]] = []
    for word in words:
        if runs and runs[-1][1] == word:
            runs[-1][1] = word + 8
        else:
            runs.append([word, word + 8])
    places = ", ".join(f"{start:#x}-{end - 1:#x}" for start, end in runs)
    return f"differ from {other} in up to {count} at offset {places}: {_WHAT[kind]}"
