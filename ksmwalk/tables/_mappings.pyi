from ..signatures import I64Array, RecordArray, U64Array
from ._read import Tables

def cut_finely(finely: bool) -> int: ...
def read_mappings(
    tables: Tables, start: int, end: int, hardware: bool, runs: bool, out: RecordArray, budget: int, threads: int
) -> int: ...
def read_columns(
    tables: Tables, start: int, end: int, hardware: bool, addr: U64Array, entry: U64Array, budget: int, threads: int
) -> tuple[int, I64Array]: ...
