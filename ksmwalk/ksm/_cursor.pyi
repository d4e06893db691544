from typing import Self, SupportsIndex

from typing_extensions import disjoint_base

from .._core import World
from ._items import RmapItem

MOST: int

@disjoint_base
class Cursor:
    def __new__(cls, world: World) -> Self: ...
    @property
    def _world(self) -> World: ...
    def scan(self, n: SupportsIndex) -> int: ...
    def scan_get_next_rmap_item(self) -> tuple[RmapItem, int] | None: ...
