from typing import Self

from typing_extensions import disjoint_base

from .._core import World
from ._items import RmapItem

@disjoint_base
class Cursor:
    def __new__(cls, world: World) -> Self: ...
    @property
    def _world(self) -> World: ...
    def scan_get_next_rmap_item(self) -> tuple[RmapItem, int] | None: ...

def py_scan_batch(world: World, n: int) -> tuple[int, int]: ...
