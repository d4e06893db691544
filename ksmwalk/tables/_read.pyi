from typing import Self

from typing_extensions import disjoint_base

from .._core import Life, World
from ..signatures import AnyArray, I64Array, RecordArray, U64Array

@disjoint_base
class Tables:
    arrays: tuple[AnyArray | None, ...]
    world: World | None
    mm: int
    life: Life | None
    def __new__(
        cls,
        rows: U64Array,
        root: int,
        levels: int,
        frames: U64Array | None,
        order: I64Array | None,
        max_pfn: int,
        bad: RecordArray,
        work: RecordArray,
        world: World | None = None,
        mm: int = 0,
        life: Life | None = None,
    ) -> Self: ...
    def check(self) -> None: ...
    @property
    def bad_count(self) -> int: ...
    def forget_bad(self) -> None: ...
