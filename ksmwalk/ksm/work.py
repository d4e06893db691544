"""What ksmd has had to do, as work counts: of any stretch of its visits, from what the engine counts beside them."""

from __future__ import annotations

from .. import _core
from . import _cursor

#: what `_cursor.py_counts` answers, in order: all but the last five only grow
COUNTS = (
    "scanned", "skipped", "huge", "merged", "first", "changed", "hits", "inserted", "merges", "zeroed", "splits", "joined",
    "found", "ptes", "holes", "callbacks", "items", "contents", "pages", "unshared", "scans",
)  # fmt: skip


class Stretch:
    """A stretch of ksmd's work, from the making of this object on.

    Parameters
    ----------
    world : World

    Models: nothing of Linux, the model's own counting.
    Differs: a page that is freed and mapped again in one stretch counts as there all the time.
    """

    __slots__ = ("_before", "_world")

    def __init__(self, world: _core.World):
        self._world = world
        self._before = _cursor.py_counts(world)

    def row(self) -> dict[str, int]:
        """The fields of `costs.WORK_DTYPE` so far, and `scans`: full scans that ended, `joined`: items that came to a node.

        `batches` and `prefix` are left out. `unstable_items`: those put into the unstable tree in this stretch.
        """
        before, after = self._before, _cursor.py_counts(self._world)
        d = dict(zip(COUNTS, (now - then for now, then in zip(after, before, strict=True)), strict=True))
        visits, merged, changed = d["scanned"], d["merged"], d["changed"]
        searches = visits - merged - changed - d["zeroed"]
        return {
            "visits": visits,
            "skipped": d["skipped"],
            "huge": d["huge"],
            "merged": merged,
            "first": d["first"],
            "freed": d["first"] - d["items"],
            "changed": changed,
            "stable_searches": searches,
            "stable_hits": d["hits"],
            # what a search of the stable tree meets: a chain once, a content that has no chain once
            "stable_nodes": max(0, before[_CONTENTS] + after[_CONTENTS]) // 2,
            "stable_pages": max(0, before[_PAGES] + after[_PAGES]) // 2,
            "unstable_searches": searches - d["hits"],
            "unstable_items": d["inserted"],
            "merges": d["merges"],
            "zeroed": d["zeroed"],
            "splits": d["splits"],
            # a page in a table of ptes is found from the one before; one in a huge page by a descent of its own
            "ptes": max(0, d["ptes"] - (d["found"] - d["huge"])),
            "holes": d["holes"],
            "tables": max(0, d["callbacks"] - d["found"]),
            "scans": d["scans"],
            "joined": d["joined"],
        }


_CONTENTS, _PAGES = COUNTS.index("contents"), COUNTS.index("pages")
