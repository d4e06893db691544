"""Pages of an existing address space put into a Host, compiled."""

import numpy as np

from .._core import World

def add_vmas(
    world: World,
    mm: int,
    start: np.ndarray,
    end: np.ndarray,
    flags: np.ndarray,
    pgoff: np.ndarray,
    backing: np.ndarray,
    anon: np.ndarray,
) -> int: ...
def register(world: World, mm: int) -> None: ...
def load_pages(
    world: World,
    mm: int,
    addr: np.ndarray,
    pfns: np.ndarray,
    pages: np.ndarray,
    slices: np.ndarray,
    vm_flags: np.ndarray,
) -> int: ...
def hold_pages(world: World, backing: int, place: np.ndarray, pfns: np.ndarray) -> int: ...
