"""Pages of an existing address space put into a Host, compiled."""

from .._core import World
from ..signatures import I32Array, I64Array, U8Array, U16Array, U64Array

def add_vmas(
    world: World,
    mm: int,
    start: U64Array,
    end: U64Array,
    flags: U64Array,
    pgoff: U64Array,
    backing: I32Array,
    anon: U8Array,
) -> int: ...
def register(world: World, mm: int) -> None: ...
def load_pages(
    world: World,
    mm: int,
    addr: U64Array,
    pfns: I64Array,
    pages: U16Array,
    slices: I64Array,
    vm_flags: U64Array,
    keys: U64Array | None = None,
) -> int: ...
def hold_pages(world: World, backing: int, place: I64Array, pfns: I64Array) -> int: ...
def fill_folios(world: World, heads: I64Array) -> None: ...
