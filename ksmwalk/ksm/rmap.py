"""rmap_items: one record per scanned page, linked in ascending address order per mm."""

from __future__ import annotations

from collections.abc import Iterator

from .. import _core
from . import _items
from ._items import RmapItem

__all__ = ["RmapItem", "rmap_items"]


def rmap_items(world: _core.World, mm: int) -> Iterator[RmapItem]:
    """The rmap_items of an mm in list order.

    Parameters
    ----------
    world : _core.World
        Binding of the Host.
    mm : int
        Number of the mm.

    Models: the rmap_list of struct ksm_mm_slot. Differs: nothing known.
    """
    items = world.arrays["items"]
    index = int(world.arrays["mms"][mm]["rmap_list"])
    while index:
        yield _items.py_rmap_item(world, index)
        index = int(items[index]["next"])
