"""Small scenarios that tell kernels apart, one for each switch that shows in what a kernel answers."""

from __future__ import annotations

from typing import Any

from ..layout import Switch
from ..scenarios.format import Scenario

_AT = 65536
_FAR = 70000
_NEVER = 4_000_000_000
#: pages of a huge page: two that are equal to one another, two empty ones, all others of their own
_HUGE = [0, 7, 0, *range(1000, 1509)]


def _of(switch: Switch, ops: list[list[Any]], env: dict[str, Any] | None = None, **tunables: int) -> tuple[Switch, Scenario]:
    assert switch.name
    return switch, Scenario(
        switch.name.lower(), ops, tunables={"pages_to_scan": 3000, "smart_scan": 0, **tunables}, env=env or {}
    )


def _marked(contents: list[int], advice: tuple[str, ...] = ("mergeable",)) -> list[list[Any]]:
    n = len(contents)
    marks = [["madvise", "A", _AT, n, one] for one in advice]
    return [["spawn", "A"], ["mmap", "A", _AT, n], *marks, ["fill", "A", _AT, contents]]


#: a huge page that small ptes map, and a child had
_WAS_SHARED: list[list[Any]] = [
    *_marked([5] * 512, ("hugepage",)), ["mprotect", "A", _AT + 9, 1, "r"], ["fork", "A", "B"], ["exit", "B"],
]

#: what shows each switch; those that cost time only, and what files say, are looked at otherwise
TELLTALES: dict[Switch, Scenario] = dict(
    (
        _of(Switch.STABLE_FIRST, [
            *_marked([5, 5, 6]), ["run", 1], ["step", 3],
            ["write", "A", [[_AT + 2, 5]]], ["step", 2],
        ]),
        _of(Switch.ZERO_UNTRACKED, [
            *_marked([0, 0, 5, 6]), ["run", 1], ["step", 2],
            ["madvise", "A", _AT, 4, "unmergeable"],
        ], use_zero_pages=1),
        _of(Switch.SPLIT_KEEPS_EMPTY, [
            *_marked(_HUGE, ("hugepage", "mergeable")),
            ["mmap", "A", _FAR, 1], ["madvise", "A", _FAR, 1, "mergeable"], ["fill", "A", _FAR, [7]],
            ["run", 1], ["step", 3],
        ]),
        _of(Switch.OLD_CHAINS, [
            *_marked([5, 5, 5, 5, 6, 7]), ["run", 1], ["step", 4],
            ["write", "A", [[_AT, 50], [_AT + 1, 51]]], ["step", 2],
            ["write", "A", [[_AT + 2, 52]]], ["step", 1],
            ["write", "A", [[_AT + 4, 5], [_AT + 5, 5]]], ["step", 3],
        ], max_page_sharing=2, stable_node_chains_prune_millisecs=_NEVER),
        _of(Switch.FORK_INHERITS, [*_marked([5, 5, 6]), ["run", 1], ["step", 2], ["fork", "A", "B"]]),
        _of(Switch.FORKED_HUGE_FAILS, [
            *_marked([1, 2, 3, 7, *range(1000, 1508)], ("hugepage", "mergeable")), ["fork", "A", "B"],
            ["run", 1], ["step", 2], ["write", "B", [[_AT + 7, 3]]], ["step", 3],
        ]),
        _of(Switch.FORGETS, [
            *_marked([5, 5]), ["run", 1], ["step", 3],
            ["write", "A", [[_AT, 50], [_AT + 1, 50], [_AT, 5], [_AT + 1, 5]]], ["step", 2],
        ]),
        _of(Switch.NONE_NO_PARTNER, [
            *_marked([5, 5, 6, 6]), ["mprotect", "A", _AT, 2, "none"], ["run", 1], ["step", 3],
        ]),
        _of(Switch.KEEPS_PROTECTED, [
            *_marked([5, 5, 5, 5]), ["run", 1], ["step", 2],
            ["uffd_wp", "A", _AT, 4], ["madvise", "A", _AT, 4, "unmergeable"],
        ]),
        _of(Switch.POKE_FAILS, [
            *_marked([5, 6]), ["mprotect", "A", _AT, 2, "none"], ["pwrite", "A", [[_AT, 7]]],
        ]),
        _of(Switch.MOVE_ONE_AREA, [
            *_marked([5, 6, 7, 8]), ["mprotect", "A", _AT, 2, "r"], ["mremap", "A", _AT, 4, 4, _FAR],
        ]),
        _of(Switch.OLD_CALLS, [["spawn", "A"], ["mmap", "A", _AT, 2], ["madvise", "A", _AT, 2, "populate_write"]]),
        _of(Switch.NO_GUARD, [["spawn", "A"], ["mmap", "A", _AT, 2], ["madvise", "A", _AT, 2, "guard_remove"]]),
        _of(Switch.OLD_UFFD, [
            ["spawn", "A"], ["mmap", "A", _AT, 4], ["fill", "A", _AT, [5, 6]],
            ["uffd", "A", _AT + 2, 2, {"missing": 1}], ["uffd_move", "A", _AT + 2, _AT, 1],
        ]),
        _of(Switch.COLLAPSES_NOTHING, [
            ["spawn", "A"], ["mmap", "A", _AT, 512], ["fill", "A", _AT, [5, 6]], ["madvise", "A", _AT + 1, 1, "collapse"],
        ]),
        _of(Switch.PARTS_COPIED, [*_WAS_SHARED, ["write", "A", [[_AT, 7]]]]),
        _of(Switch.LAST_PART_STAYS, [*_WAS_SHARED, ["munmap", "A", _AT + 1, 511], ["write", "A", [[_AT, 7]]]]),
        _of(Switch.TABLES_KEPT, [
            *_marked([5], ())[:1], ["mmap", "A", _AT, 512], ["fill", "A", _AT, [5]], ["madvise", "A", _AT, 512, "hugepage"],
            ["madvise", "A", _AT, 512, "dontneed"], ["write", "A", [[_AT, 6]]],
        ]),
        _of(Switch.NO_COLLAPSE, [*_marked([1], ("hugepage",))[:1], ["mmap", "A", _AT, 512],
            ["fill", "A", _AT, [5, 6]], ["madvise", "A", _AT, 512, "collapse"],
        ]),
        _of(Switch.READ_ONLY_STAYS, [
            ["spawn", "A"], ["mmap", "A", _AT, 512], ["fill", "A", _AT, [5, 6]], ["mprotect", "A", _AT, 512, "r"],
            ["madvise", "A", _AT, 512, "hugepage"], ["khuge"],
        ]),
        _of(Switch.LAZY_NOT_COLLAPSED, [
            ["spawn", "A"], ["mmap", "A", _AT, 512], ["fill", "A", _AT, [5, 6, 7]], ["madvise", "A", _AT, 1, "free"],
            ["madvise", "A", _AT, 512, "hugepage"], ["khuge"],
        ]),
        _of(Switch.MOVE_FORGETS, [
            *_marked([*range(1000, 1512)], ("hugepage",)), ["mprotect", "A", _AT + 9, 1, "r"],
            ["movepid", "A", [_AT], 1], ["movepid", "A", [_AT], 0],
        ]),
        _of(Switch.REST_STAYS_LOCKED, [
            ["spawn", "A"], ["mmap", "A", _AT, 3], ["mlock", "A", _AT, 3],
            ["mremap", "A", _AT + 1, 1, 1, _FAR, {"dontunmap": 1}], ["madvise", "A", _AT, 1, "dontneed"],
        ]),
        _of(Switch.EMPTY_NOT_JOINED, [
            ["spawn", "A"], ["mmap", "A", _AT, 512], ["madvise", "A", _AT, 512, "hugepage"],
            ["madvise", "A", _AT + 256, 256, "mergeable"], ["fill", "A", _AT, [5, 6]], ["madvise", "A", _AT, 256, "mergeable"],
            ["khuge"],
        ]),
        _of(Switch.HUGE_ZERO_SPLIT, [
            ["spawn", "A"], ["mmap", "A", _AT, 512], ["madvise", "A", _AT, 512, "hugepage"],
            ["touch", "A", [_AT]], ["write", "A", [[_AT + 1, 5]]],
        ]),
        _of(Switch.SMALL_COLLAPSED, [
            ["spawn", "A"], ["mmap", "A", _AT, 512], ["madvise", "A", _AT, 512, "nohugepage"], ["fill", "A", _AT, [5] * 4],
            ["madvise", "A", _AT, 512, "hugepage"], ["khuge"],
        ], {"mthp_16": "madvise", "khugepaged/max_ptes_none": 0}),
        _of(Switch.CHILD_ACCESSED, [
            ["spawn", "A"], ["mmap", "A", _AT, 512], ["fill", "A", _AT, [5, 6]], ["madvise", "A", _AT, 512, "hugepage"],
            ["fork", "A", "B"], ["exit", "A"], ["write", "B", [[_AT + 1, 7]]], ["madvise", "B", _AT + 1, 1, "cold"], ["khuge"],
        ]),
        _of(Switch.ADVISED_ONCE, [
            ["spawn", "A"], ["mmap", "A", _AT, 512], ["madvise", "A", _AT, 512, "hugepage"],
            ["uffd", "A", _AT, 512, {"missing": 1}], ["uffd_copy", "A", _AT, [5, 6]], ["uffd_unregister", "A", _AT, 512],
            ["madvise", "A", _AT, 512, "hugepage"], ["khuge"],
        ]),
        _of(Switch.LAZY_EACH, [
            ["spawn", "A"], ["mmap", "A", _AT, 512], ["madvise", "A", _AT, 512, "hugepage"], ["fill", "A", _AT, [5]],
            ["madvise", "A", _AT, 512, "free"], ["mprotect", "A", _AT + 9, 1, "r"], ["mprotect", "A", _AT + 9, 1, "rw"],
            ["write", "A", [[_AT + 100, 7]]], ["madvise", "A", _AT, 512, "pageout"],
        ]),
        _of(Switch.STAYS_PROTECTED, [
            ["spawn", "A"], ["mmap", "A", _AT, 4], ["uffd", "A", _AT, 4, {"wp": 1}], ["uffd", "A", _AT, 4, {"missing": 1}],
        ]),
    )
)  # fmt: skip
