"""The stub of the compiled module: what Python calls of it."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._core import World

class Area:
    start: int
    end: int
    flags: int
    serial: int
    visited: int
    merged: int
    broken: int
    changed: int
    @property
    def mm(self) -> Any: ...
    @property
    def pages(self) -> int: ...

class Pages:
    area: Area
    addr: NDArray[np.uint64]
    pfn: NDArray[np.int64]
    def __len__(self) -> int: ...
    @property
    def key(self) -> NDArray[np.uint64]: ...
    @property
    def merged(self) -> NDArray[np.bool_]: ...
    @property
    def seen(self) -> NDArray[np.bool_]: ...
    @property
    def changed(self) -> NDArray[np.bool_]: ...
    @property
    def accessed(self) -> NDArray[np.bool_]: ...
    @property
    def dirty(self) -> NDArray[np.bool_]: ...

class Asking:
    def __init__(
        self, world: World, ksm: Callable[[], Any], methods: dict[str, Callable[..., Any]], compiled: object = None
    ) -> None: ...
    def scan(self, n: int) -> tuple[int, int]: ...

def is_compiled(policy: object) -> bool: ...
