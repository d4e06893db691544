"""Pages that ksmd saw before, merged ones put on stable nodes, compiled."""

from .._core import World
from ..signatures import I64Array, U64Array

def take_over(world: World, mm: int, addrs: U64Array, frames: I64Array) -> int: ...
