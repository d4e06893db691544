"""Many small reads of one file, compiled."""

from collections.abc import Callable

from ..signatures import I64Array, U8Array, U64Array

def records(fd: int, index: I64Array, gap: int, out: U64Array) -> int: ...
def present(
    pagemap: int,
    mem: int,
    vpn: I64Array,
    gap: int,
    by_scan: bool,
    into: U8Array,
    before: U64Array,
    after: U64Array,
    done: U8Array,
    seeds: U64Array,
    hashes: U64Array,
    between: Callable[[], object] | None = None,
) -> int: ...
