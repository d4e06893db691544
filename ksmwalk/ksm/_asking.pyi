"""The stub of the compiled module: what Python calls of it."""

from collections.abc import Callable
from typing import Any, Self, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

from .._core import World

@final
class Area:
    def __init__(self, *_: object, **__: object) -> None: ...
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

@final
class TablePages:
    def __init__(self, *_: object, **__: object) -> None: ...
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

@disjoint_base
class Asking:
    def __new__(
        cls, world: World, ksm: Callable[[], Any], methods: dict[str, Callable[..., Any]], compiled: object = None
    ) -> Self: ...
    @property
    def asks_domains(self) -> bool: ...
    def scan(self, n: int) -> tuple[int, int]: ...

def is_compiled(policy: object) -> bool: ...
