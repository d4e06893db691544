"""The CPUs that ksmd, and whoever writes its tunables, run on: inputs of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..gate import as_int

if TYPE_CHECKING:
    from .. import _core


class Cpus:
    """The part of a Ksm that is told who runs where."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def _world(self) -> _core.World: ...

    def _run_on(self, array: str, number: int, name: str) -> None:
        arrays = self._world.arrays
        number = as_int(number, name, 0, int(arrays["ctl"]["nr_cpus"][0]) - 1)
        with self._world:
            arrays[array]["cpu"][0] = number

    @property
    def cpu(self) -> int:
        return int(self._world.arrays["ksm"]["cpu"][0])

    @cpu.setter
    def cpu(self, number: int) -> None:
        self._run_on("ksm", number, "cpu")

    @property
    def writer_cpu(self) -> int:
        # of the head of the list of slots, record 0 of the address spaces, which has no tasks of its own
        return int(self._world.arrays["mms"]["cpu"][0])

    @writer_cpu.setter
    def writer_cpu(self, number: int) -> None:
        self._run_on("mms", number, "writer_cpu")
