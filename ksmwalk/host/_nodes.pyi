from .._core import World
from ..signatures import AnyArray, I64Array, U64Array

# Every function answers 0 or a count; -errno; or a negative KW_* code.

def mbind(world: World, mm: int, start: int, end: int, node: int | None, mode: int, taken: AnyArray) -> int: ...
def move_pages(
    world: World, mm: int, addrs: U64Array, nodes: I64Array, every: bool, status: I64Array, taken: AnyArray
) -> None: ...
def migrate(world: World, mm: int, source: int, target: int, taken: AnyArray) -> int: ...
