"""A virtual memory area as a person sees it: a door to one record of the Host's `vmas` array."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..gate import as_int, shown
from ..layout import Vm
from ..signatures import AnyArray

if TYPE_CHECKING:
    from .mm import Mm

#: the letters of smaps' VmFlags, in the kernel's order
LETTERS = (
    (Vm.READ, "rd"), (Vm.WRITE, "wr"), (Vm.EXEC, "ex"), (Vm.SHARED, "sh"), (Vm.MAYREAD, "mr"), (Vm.MAYWRITE, "mw"),
    (Vm.MAYEXEC, "me"), (Vm.MAYSHARE, "ms"), (Vm.GROWSDOWN, "gd"), (Vm.UFFD_MISSING, "um"), (Vm.PFNMAP, "pf"),
    (Vm.MAYBE_GUARD, "gu"), (Vm.UFFD_WP, "uw"), (Vm.LOCKED, "lo"),
    (Vm.IO, "io"), (Vm.SEQ_READ, "sr"),
    (Vm.RAND_READ, "rr"), (Vm.DONTCOPY, "dc"), (Vm.DONTEXPAND, "de"), (Vm.LOCKONFAULT, "lf"),
    (Vm.ACCOUNT, "ac"), (Vm.NORESERVE, "nr"), (Vm.HUGETLB, "ht"), (Vm.WIPEONFORK, "wf"),
    (Vm.DONTDUMP, "dd"), (Vm.MIXEDMAP, "mm"), (Vm.HUGEPAGE, "hg"),
    (Vm.NOHUGEPAGE, "nh"), (Vm.MERGEABLE, "mg"), (Vm.DROPPABLE, "dp"), (Vm.UFFD_MINOR, "ui"),
)  # fmt: skip

_WHY_NOT = (
    (Vm.SHARED | Vm.MAYSHARE, "shared"),
    (Vm.PFNMAP, "raw frames (pfnmap)"),
    (Vm.IO, "device memory (io)"),
    (Vm.HUGETLB, "hugetlb"),
    (Vm.MIXEDMAP, "mixedmap"),
    (Vm.DONTEXPAND, "dontexpand"),
    (Vm.DROPPABLE, "droppable"),
    (Vm.DAX, "dax"),
)
#: anything of these and KSM keeps away, marked or not
INCOMPATIBLE = 0
for _bits, _why in _WHY_NOT:
    INCOMPATIBLE |= int(_bits)
# Plain integers: arithmetic on enum members takes a microsecond.
_WHY_NOT_BITS = tuple((int(bits), text) for bits, text in _WHY_NOT)
_MERGEABLE = int(Vm.MERGEABLE)
_WATCHED = int(Vm.UFFD_MISSING | Vm.UFFD_WP | Vm.UFFD_MINOR)


def letters(flags: int) -> str:
    """VmFlags letters of vm_flags, as smaps shows them."""
    return " ".join(text for bit, text in LETTERS if flags & bit)


def why_not(flags: int) -> str | None:
    """Why KSM doesn't look at memory with these vm_flags; None: it does."""
    if flags & INCOMPATIBLE:
        return next(text for bits, text in _WHY_NOT_BITS if flags & bits)
    return None if flags & _MERGEABLE else "not marked"


class Vma:
    """One area of an address space.

    Attributes
    ----------
    vm_start, vm_end : int
        Bytes, half-open.
    vm_flags : int
        `layout.Vm` bits.
    vm_mm : Mm
        The address space.
    vm_pgoff : int
        Pages: offset into what is mapped (private anonymous memory: page number of its first address).
    anon_vma : int or None
        Number of the family of anonymous pages; None: never had one.
    index : int
        Its record in `host.vmas`.

    Raises
    ------
    ReferenceError
        On any access after the area was unmapped or joined to another.
    LookupError
        Made with a number that is no area of this address space.

    Models: struct vm_area_struct of Linux 6.18. Differs: an anon_vma is a number, without the tree of its sharers.
    """

    __slots__ = ("vm_mm", "index", "_serial", "_records")

    vm_mm: Mm
    index: int
    _serial: int
    _records: AnyArray

    def __init__(self, mm: Mm, index: int):
        if not hasattr(getattr(mm, "host", None), "mm_by_number"):
            raise TypeError(f"mm {shown(mm)}: must be an Mm")
        host = mm.host
        index = as_int(index, "vma", -1 << 63, (1 << 64) - 1)
        records = host._arrays["vmas"]
        if not 0 < index < host._ctl("vmas_used") or int(records["mm"][index]) != mm._at():
            raise LookupError(f"vma {shown(index)}: not an area of address space {mm.index}")
        self._bind(mm, index)

    def _bind(self, mm: Mm, index: int) -> None:
        self.vm_mm = mm
        self.index = index
        self._records = mm.host._arrays["vmas"]
        self._serial = int(self._records["serial"][index])

    @classmethod
    def _door(cls, mm: Mm, index: int) -> Vma:
        """As the constructor, for a number that compiled code has just given."""
        self = cls.__new__(cls)
        self._bind(mm, index)
        return self

    def _get(self, field: str) -> int:
        r = self._records
        if int(r["serial"][self.index]) != self._serial or not r["mm"][self.index]:
            raise ReferenceError(f"vma {self.index} (serial {self._serial}) is gone: unmapped, or joined to another")
        return int(r[field][self.index])

    @property
    def vm_start(self) -> int:
        return self._get("start")

    @property
    def vm_end(self) -> int:
        return self._get("end")

    @property
    def vm_flags(self) -> int:
        return self._get("flags")

    @property
    def vm_pgoff(self) -> int:
        return self._get("pgoff")

    @property
    def anon_vma(self) -> int | None:
        return self._get("anon_vma") or None

    @property
    def backing(self) -> int | None:
        """Number of the file or shared memory object mapped; None: private anonymous memory."""
        return self._get("backing") or None

    @property
    def userfaultfd(self) -> int | None:
        """Number of the userfaultfd that watches it; None: none does."""
        return self._get("watcher") if self.vm_flags & _WATCHED else None

    @property
    def page_size(self) -> int:
        """Bytes: 4096, or the huge page size of a hugetlb area."""
        return 1 << self._get("page_shift")

    @property
    def mergeable(self) -> bool:
        """Whether KSM looks at it: marked, and nothing about it forbids it."""
        return why_not(self.vm_flags) is None

    @property
    def why_not(self) -> str | None:
        """Why KSM doesn't look at it; None: it does."""
        return why_not(self.vm_flags)

    @property
    def perms(self) -> str:
        """As in /proc/PID/maps: "rw-p"."""
        f = self.vm_flags
        return (
            ("r" if f & Vm.READ else "-")
            + ("w" if f & Vm.WRITE else "-")
            + ("x" if f & Vm.EXEC else "-")
            + ("s" if f & Vm.MAYSHARE else "p")
        )

    def __len__(self) -> int:
        """Bytes."""
        return self.vm_end - self.vm_start

    def __contains__(self, addr: int) -> bool:
        return self.vm_start <= as_int(addr, "addr", -1 << 64, 1 << 64) < self.vm_end

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vma) and other.vm_mm is self.vm_mm and other._serial == self._serial

    def __hash__(self) -> int:
        return hash((id(self.vm_mm), self._serial))

    def __repr__(self) -> str:
        try:
            return f"<Vma {self.vm_start:#x}-{self.vm_end:#x} {self.perms} {letters(self.vm_flags)}>"
        except ReferenceError:
            return f"<Vma {self.index}, gone>"
