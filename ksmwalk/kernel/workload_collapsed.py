"""A live workload whose small pages khugepaged makes into huge ones after ksmd has merged some of them."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

from ..layout import BLOCK as HUGE
from ..layout import PAGE_SIZE as PAGE
from ..proc.child import Child
from .knobs import KHUGEPAGED
from .surround import Surroundings
from .workload_yard import WorkloadFailed, Yard

if TYPE_CHECKING:
    from .workloads import Scanner

_SIZE = 4 * HUGE * PAGE


def thin_twins(yard: Yard) -> None:
    """Two processes of which every third page is there; of these half are equal in both."""
    for twin in (1, 2):
        _thin(yard, twin * 10000)


def _thin(yard: Yard, own: int) -> tuple[Child, int]:
    child = yard.child()
    address = yard.area(child, _SIZE // PAGE)
    child.do(f"put({address}, range(0, {_SIZE}, 3 * P), ({own} * (i % 2) + 1 + i for i in range({_SIZE // PAGE})))")
    return child, address


def then_collapsed(yard: Yard, ksmd: Scanner) -> None:
    """Two more, which khugepaged may work on once ksmd has done three scans; one of them is forked by then.

    Raises
    ------
    WorkloadFailed
        khugepaged makes no pass, or no huge page.
    """
    more = [_thin(yard, own) for own in (30000, 40000)]
    ksmd.scans(3)
    made = _collapsed()
    with Surroundings({}) as around:
        for child, address in more:
            child.do(f"call('madvise', {address}, {_SIZE}, {mmap.MADV_HUGEPAGE})")
        yard.fork(more[0][0], f"put({more[0][1]}, range(0, {HUGE * PAGE}, 3 * P), range(70000, 71000))")
        if error := around.one_pass():
            raise WorkloadFailed(f"khugepaged makes no pass: {os.strerror(-error)}")
    if _collapsed() == made:
        raise WorkloadFailed("khugepaged makes no huge page")


def _collapsed() -> int:
    return int((KHUGEPAGED / "pages_collapsed").read_text())
