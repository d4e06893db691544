import numpy as np

from .._core import Life, World

class Tables:
    arrays: tuple
    world: World | None
    mm: int
    life: Life | None
    def __init__(
        self,
        rows: np.ndarray,
        root: int,
        levels: int,
        frames: np.ndarray | None,
        order: np.ndarray | None,
        max_pfn: int,
        bad: np.ndarray,
        work: np.ndarray,
        world: World | None = None,
        mm: int = 0,
        life: Life | None = None,
    ) -> None: ...
    def check(self) -> None: ...
    @property
    def bad_count(self) -> int: ...
    def forget_bad(self) -> None: ...

def choose_wide(wide: bool) -> bool: ...
def read_mappings(
    tables: Tables, start: int, end: int, hardware: bool, runs: bool, out: np.ndarray, budget: int
) -> int: ...
