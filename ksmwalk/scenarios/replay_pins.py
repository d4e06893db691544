"""What a scenario does with pages that are held from outside: by pipes, and by devices."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from ..layout import PAGE_SIZE as PAGE
from ..layout import Frame, Switch, Vm

if TYPE_CHECKING:
    import numpy as np

    from ..host.host import Host
    from ..host.mm import Mm


class Pins:
    """The operations on pins.

    Attributes
    ----------
    piped : dict of (str, int) to int
        What the pipes of processes hold: name and page -> frame, 0: the zero page, which is not counted.
    mapped_for_devices : dict of (str, int) to ndarray of int64
        What is registered with devices: name and first page -> frames.
    """

    if TYPE_CHECKING:
        host: Host
        live: dict[str, Mm]
        piped: dict[tuple[str, int], int]
        mapped_for_devices: dict[tuple[str, int], np.ndarray]

    def do_pin(self, name: str, vpn: int) -> None:
        mm = self.live[name]
        if self._only_stored_to(mm, vpn * PAGE):
            raise OSError(errno.EFAULT, "it may not be read")
        if mm.find_vma(vpn * PAGE) is None and not self.host.kernel.switches & Switch.OLD_CALLS:
            raise OSError(errno.EFAULT, "no area, and no stack grows for a pin")
        mm.read(vpn * PAGE)
        pfn = int(mm.read_pfns(vpn * PAGE, 1)[0])
        zero = self.host.frames.flags[pfn] & Frame.ZERO
        held = 0 if zero else self.host.pin(mm, vpn * PAGE)
        self.do_unpin(name, vpn)
        self.piped[name, vpn] = held

    def _only_stored_to(self, mm: Mm, addr: int) -> bool:
        """Memory that may be stored to, not read: what is not there, and a zero page, can't be taken for reading."""
        v = mm.find_vma(addr)
        if v is None or not v.vm_flags & Vm.WRITE or v.vm_flags & Vm.READ:
            return False
        pfn = int(mm.read_pfns(addr, 1)[0])
        return pfn < 0 or bool(self.host.frames.flags[pfn] & Frame.ZERO)

    def do_unpin(self, name: str, vpn: int) -> None:
        pfn = self.piped.pop((name, vpn), 0)
        if pfn:
            self.host.unpin(pfn)

    def do_dmapin(self, name: str, vpn: int, n: int) -> None:
        frames = self.host.dma_pin(self.live[name], vpn * PAGE, n * PAGE)
        self.do_dmaunpin(name, vpn)
        self.mapped_for_devices[name, vpn] = frames

    def do_dmaunpin(self, name: str, vpn: int) -> None:
        frames = self.mapped_for_devices.pop((name, vpn), None)
        if frames is not None:
            self.host.dma_unpin(frames)

    def unmap_for_devices(self, name: str) -> None:
        """A process is about to end, or to be replaced: no device has its memory any more."""
        for whose, vpn in [*self.mapped_for_devices]:
            if whose == name:
                self.do_dmaunpin(name, vpn)

    def close_pipes(self, name: str) -> None:
        """A process has ended, or was replaced."""
        for whose, vpn in [*self.piped]:
            if whose == name:
                self.do_unpin(name, vpn)
