from typing import Any

from typing_extensions import disjoint_base

from ..signatures import AddressSpace, Area, U64Array
from ._read import Tables
from .pagewalk import Action, Callback, MmWalkOps

@disjoint_base
class Entry:
    @property
    def level(self) -> int: ...
    @property
    def value(self) -> int: ...
    @value.setter
    def value(self, e: int) -> None: ...
    @property
    def none(self) -> bool: ...
    @property
    def present(self) -> bool: ...
    @property
    def leaf(self) -> bool: ...
    @property
    def pfn(self) -> int: ...
    @property
    def ptes(self) -> U64Array | None: ...
    def __int__(self) -> int: ...

@disjoint_base
class MmWalk:
    private: Any  # whatever the caller passed
    @property
    def mm(self) -> AddressSpace | None: ...
    @property
    def ops(self) -> MmWalkOps: ...
    @property
    def vma(self) -> Area | None: ...
    @property
    def action(self) -> Action: ...  # None once the walk has ended
    @action.setter
    def action(self, value: int) -> None: ...

def set_actions(*actions: Action) -> None: ...
def run_walk(
    tables: Tables,
    mm: int,
    vma: int,
    start: int,
    end: int,
    ops: MmWalkOps,
    fns: tuple[Callback | None, ...],
    mm_door: AddressSpace | None,
    vma_door: Area | None,
    private: object,
    stop_on_bad: bool,
    whole_mm: bool,
    high: int | None = None,
) -> tuple[int, int]: ...
