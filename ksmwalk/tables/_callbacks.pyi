from typing import Any

import numpy as np

from ._read import Tables

class Entry:
    level: int
    value: int
    @property
    def none(self) -> bool: ...
    @property
    def present(self) -> bool: ...
    @property
    def leaf(self) -> bool: ...
    @property
    def pfn(self) -> int: ...
    @property
    def ptes(self) -> np.ndarray | None: ...
    def __int__(self) -> int: ...

class MmWalk:
    mm: Any
    ops: Any
    private: Any
    action: Any
    @property
    def vma(self) -> Any: ...

def set_actions(*actions: int) -> None: ...
def run_walk(
    tables: Tables,
    mm: int,
    vma: int,
    start: int,
    end: int,
    ops: Any,
    fns: tuple,
    mm_door: Any,
    vma_door: Any,
    private: Any,
    stop_on_bad: bool,
    whole_mm: bool,
    high: int | None = None,
) -> tuple[int, int]: ...
