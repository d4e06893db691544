"""Pages of an existing address space put into a Host, compiled."""

import numpy as np

from .._core import World

def load_pages(
    world: World,
    mm: int,
    addr: np.ndarray,
    pfns: np.ndarray,
    pages: np.ndarray,
    slices: np.ndarray,
    flags: np.ndarray,
) -> int: ...
def hold_pages(world: World, backing: int, place: np.ndarray, pfns: np.ndarray) -> int: ...
