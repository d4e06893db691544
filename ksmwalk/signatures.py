"""What signatures name: arrays by their elements, and what lower floors know of the doors that stand above them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

U64Array: TypeAlias = NDArray[np.uint64]
I64Array: TypeAlias = NDArray[np.int64]
I32Array: TypeAlias = NDArray[np.int32]
U16Array: TypeAlias = NDArray[np.uint16]
U8Array: TypeAlias = NDArray[np.uint8]
BoolArray: TypeAlias = NDArray[np.bool_]
#: of records, whose dtype the docstring says: one of `layout`'s
RecordArray: TypeAlias = NDArray[np.void]
#: of elements that differ from case to case: a Host's arrays by name
AnyArray: TypeAlias = NDArray[Any]

#: one integer, of Python or of numpy
Integer: TypeAlias = int | np.integer[Any]
#: a row of integers, of any integer dtype
Integers: TypeAlias = NDArray[np.integer[Any]] | Sequence[Integer]

#: what a check of arrays found wrong: array, field, record, entry of a table page, what it holds, what was counted, why
Refusal: TypeAlias = tuple[str, str | None, int, int | None, int, int | None, str]


class AddressSpace(Protocol):
    """An address space, as walk and scan know it: `host.Mm` is one, and what more it can do is found there."""

    @property
    def index(self) -> int: ...
    @property
    def number(self) -> int: ...
    @property
    def alive(self) -> bool: ...
    @property
    def epoch(self) -> int: ...
    @property
    def nr_tables(self) -> int: ...
    @property
    def vmas(self) -> Sequence[Area]: ...
    def find_vma(self, addr: int) -> Area | None: ...
    def read_keys(self, addr: int, n: int) -> U64Array: ...
    def read_pfns(self, addr: int, n: int) -> I64Array: ...
    def write(self, addr: int, keys: Integer | Integers, *, nid: int | None = None) -> None: ...


class Area(Protocol):
    """One area of an address space, as a walk knows it: `host.Vma` is one."""

    @property
    def index(self) -> int: ...
    @property
    def vm_mm(self) -> AddressSpace | None: ...
    @property
    def vm_start(self) -> int: ...
    @property
    def vm_end(self) -> int: ...
    @property
    def vm_flags(self) -> int: ...
    @property
    def vm_pgoff(self) -> int: ...
    @property
    def anon_vma(self) -> int | None: ...
    @property
    def page_size(self) -> int: ...
    @property
    def mergeable(self) -> bool: ...


class Owner(Protocol):
    """Whom the arrays of a `World` belong to: `host.Host` is one."""

    def mm_by_number(self, number: int) -> AddressSpace: ...
