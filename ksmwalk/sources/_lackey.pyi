from ..signatures import U64Array

def parse(
    text: bytes, fetches: bool, mm: int, instructions: int, stores: int, out: U64Array
) -> tuple[int, int, int, bool, int, int]: ...
