from .._core import World
from ..signatures import I32Array, I64Array, U64Array

def apply(
    world: World, events: U64Array, mms: I32Array, changes: I32Array, errors: I64Array | None, account: I64Array, map_missing: bool
) -> int: ...
