"""A Host: physical memory, address spaces, and one KSM. The object a user starts from."""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _core, kernels, layout
from ..errors import check
from ..gate import as_flag, as_int, counted, shown
from ..layout import BLOCK, FRAME_FIELDS, Batch, MmFlag, Strategy, Switch
from ..memory.frames import Frames, first_frames
from ..signatures import AnyArray, RecordArray, U64Array
from . import _doors, saved
from .folios import Folios
from .mm import Mm
from .notebook import ShownHost
from .outside import Outside
from .running import Running
from .traces import Driven

if TYPE_CHECKING:
    from ..ksm.ksmd import Ksm


def _view(array: AnyArray, n: int) -> AnyArray:
    """The first n records, to look at only."""
    view = array[:n]
    view.flags.writeable = False
    return view


class Host(Driven, ShownHost, Running, Outside, Folios):
    """A machine: frames, page tables, address spaces, KSM.

    Parameters
    ----------
    nr_frames : int
        Frames of 4 KiB. Frame 0 is the shared zero page.
    nr_nodes : int
        NUMA nodes; the frames are split evenly, in blocks of 512.
    nr_cpus : int
        CPUs: each has batches of its own of pages that wait, a reference held to each.
    levels : int
        Levels of page tables, 4 or 5.
    thp : {"madvise", "always", "never"}
        Huge pages for anonymous memory.
    mthp : dict of int to str, optional
        Smaller folios for it: mode by size in KiB, e.g. ``{64: "madvise"}``. Default: none.
    kernel : str
        Version of the kernel it is: one of `kernels.PROFILES`. For another one the nearest answers, with a warning.
    swap_pages : int
        Pages of 4 KiB that a swap device has room for; 0: there is none. See `swapon`.
    huge : bool, optional
        Ask for huge pages for the Host's own hot arrays: faster where most frames are used, slower to set up where few
        are. By default from 2**20 frames on.

    Attributes
    ----------
    frames : Frames
    world : _core.World
        Pointers to all arrays, for compiled code.
    ksm : Ksm

    A Host belongs to one thread at a time: a call from a second thread while one is at work raises RuntimeError. A
    callback of a walk may call its own Host, and two Hosts run side by side in two threads (compiled calls let go of
    the GIL). Doors that name their Host (`Mm`, `Vma`, page tables of an `Mm`, `TableArena`) keep it alive; the others
    (`Ksm`, `KsmScan`, `Events`, `RmapItem`) raise ReferenceError once it is gone.

    Models: Linux 6.18 on x86-64, and with `kernel` others from 5.10 on.
    Differs: reclaim comes when it is told to (`reclaim`), never by itself; one swap device at most; no kernel memory in the
    frames; table pages have a frame numbering of their own.
    """

    frames: Frames
    world: _core.World

    def __init__(
        self, nr_frames: int, nr_nodes: int = 1, levels: int = 4, *,
        nr_cpus: int = 1, thp: str = "madvise", mthp: Mapping[int, str] | None = None, swap_pages: int = 0,
        kernel: str = kernels.DEFAULT, huge: bool | None = None,
    ):  # fmt: skip
        nr_frames = as_int(nr_frames, "nr_frames", 2, 1 << 31)
        nr_blocks = -(-nr_frames // BLOCK)
        # A block of frames a node at least.
        nr_nodes = as_int(nr_nodes, "nr_nodes", 1, min(255, nr_blocks))
        levels, nr_cpus = as_int(levels, "levels", 4, 5), as_int(nr_cpus, "nr_cpus", 1, saved.MOST_CPUS)
        if huge is not None:
            huge = as_flag(huge, "huge")
        found = kernels.find(kernel)
        if found.note:
            warnings.warn(found.note, stacklevel=2)
        ctl = np.zeros(1, layout.CTL)
        for name, cap in saved.capacities(nr_frames).items():
            ctl[f"{name}_cap"] = cap
            ctl[f"{name}_used"] = 1  # record 0 is "none"
        ctl["nr_frames"], ctl["nr_nodes"], ctl["nr_blocks"] = nr_frames, nr_nodes, nr_blocks
        ctl["trees_used"] = nr_nodes  # of the one domain that all are in
        ctl["huge_zero"], ctl["levels"] = -1, levels
        ctl["nr_cpus"], ctl["nr_quads"] = nr_cpus, -(-nr_frames // 4)
        ctl["khuge_none"], ctl["khuge_shared"], ctl["khuge_swap"] = 511, 256, 64
        ctl["kernel"] = found.profile.bits
        arrays = saved.new_arrays(ctl, huge)
        arrays["b_heads"][:] = -1
        arrays["cursor"]["cache_base"] = 1
        if found.profile.switches & Switch.SCAN_EACH:
            arrays["cursor"]["strategy"] = Strategy.PER_ADDRESS
        self._bind(arrays)
        self.thp, self.mthp = thp, mthp or {}
        first_frames(arrays, nr_frames, nr_nodes)
        if as_int(swap_pages, "swap_pages", 0, int(ctl["slots_cap"][0]) - 1):
            self.swapon(swap_pages)

    def _bind(self, arrays: dict[str, AnyArray]) -> None:
        """Take these arrays for one's own."""
        self._arrays = arrays
        world = _core.World(arrays)
        self.__dict__.update(world=world, frames=Frames(world))
        self.world.owner = weakref.ref(self)
        # What was made from it and outlives it says so. (A reference from here to its doors would be a cycle.)
        weakref.finalize(self, self.world.close).atexit = False
        self._mms: weakref.WeakValueDictionary[int, Mm] = weakref.WeakValueDictionary()
        self._lives: dict[int, _core.Life] = {}
        self._pins: dict[int, int] = {}
        self._ksm: Ksm | None = None

    # ---------------------------------------------------------- looking

    def _ctl(self, name: str) -> int:
        return int(self._arrays["ctl"][name][0])

    @property
    def nr_frames(self) -> int:
        """Frames of 4 KiB."""
        return self._ctl("nr_frames")

    @property
    def nr_nodes(self) -> int:
        """NUMA nodes."""
        return self._ctl("nr_nodes")

    @property
    def nr_cpus(self) -> int:
        """CPUs, each with batches in which pages wait."""
        return self._ctl("nr_cpus")

    @property
    def levels(self) -> int:
        """Levels of page tables, 4 or 5."""
        return self._ctl("levels")

    @property
    def kernel(self) -> kernels.Profile:
        """The kernel it is: its version, in what it differs, what it shows."""
        return kernels.of_bits(self._ctl("kernel"))

    @property
    def frames_used(self) -> int:
        """Frames allocated, the zero page included."""
        return self._ctl("frames_used")

    @property
    def mms(self) -> RecordArray:
        """Records of all address spaces (layout.MM), read-only; record 0 heads the list of mm slots."""
        return _view(self._arrays["mms"], self._ctl("mms_used"))

    @property
    def vmas(self) -> RecordArray:
        """Records of all areas (layout.VMA), read-only."""
        return _view(self._arrays["vmas"], self._ctl("vmas_used"))

    @property
    def tables(self) -> TableArena:
        """The table pages of all address spaces."""
        return TableArena(self)

    @property
    def mm_list(self) -> list[Mm]:
        """The living address spaces, by number."""
        state = self._arrays["mms"]["flags"][: self._ctl("mms_used")] & int(MmFlag.USED | MmFlag.EXITING | MmFlag.BACKING)
        return [self.mm_by_number(int(number)) for number in np.flatnonzero(state == MmFlag.USED)]

    def mm_by_number(self, number: int) -> Mm:
        """The address space with this number in `mms` (one that exited too, until its slot is cleaned).

        Raises
        ------
        LookupError
            There is none.
        """
        number = as_int(number, "number", -1 << 63, (1 << 64) - 1)
        flags = self._mm_flags(number)
        if not flags & MmFlag.USED or flags & MmFlag.BACKING:
            raise LookupError(f"address space {number}: there is none")
        exited = bool(flags & MmFlag.EXITING)
        mm, life = self._mms.get(number), self._lives.get(number)
        if life is None or life.gone != exited:
            return self._adopt(number, exited)
        if mm is None:
            mm = self._mms[number] = Mm._door(self, number, life)
        return mm

    def _mm_flags(self, number: int) -> int:
        """State of a record of `mms`, 0 for a number that has none."""
        return int(self._arrays["mms"]["flags"][number]) if 0 < number < self._ctl("mms_used") else 0

    @property
    def lru_batch(self) -> int:
        """New pages of a CPU that wait, a reference held to each, until its batch is drained; 0: at once. May be set.

        What MADV_FREE marks waits in a batch of its own, of the kernel's size, or not at all if this is 0.
        """
        return self._ctl("lru_batch")

    @lru_batch.setter
    def lru_batch(self, n: int) -> None:
        n = as_int(n, "lru_batch", 0, Batch.MOST)
        with self.world:
            self.drain()
            self._arrays["ctl"]["lru_batch"] = n

    @property
    def ksm(self) -> Ksm:
        """KSM of this host."""
        if self._ksm is None:
            from ..ksm.ksmd import Ksm

            self._ksm = Ksm(self.world)
        return self._ksm

    def memory(self) -> dict[str, Any]:
        """What the arrays cost.

        Returns
        -------
        dict
            `rmap_item`, `frame`: bytes of one; `used`: bytes written per array; `total`: their sum; `mapped_pages`:
            mappings of 4 KiB; `per_mapped_page`: bytes of all arrays for each, 0 where nothing is mapped.
        """
        used = {name: int(a[: self._used(name)].nbytes) for name, a in self._arrays.items()}
        total = sum(used.values())
        mapped = int(self._arrays["f_mapcount"].sum(dtype=np.int64))
        return {
            "rmap_item": layout.ITEM.itemsize + layout.LINK.itemsize,
            "frame": sum(d.itemsize for d in FRAME_FIELDS.values()),
            "used": used,
            "total": total,
            "mapped_pages": mapped,
            "per_mapped_page": total / mapped if mapped else 0.0,
        }

    # ---------------------------------------------------------- address spaces and objects

    def new_mm(self, nid: int = 0) -> Mm:
        """Make an empty address space.

        Parameters
        ----------
        nid : int
            NUMA node it prefers.

        Models: mm_alloc() of Linux 6.18. Differs: nothing is mapped, no program, stack or vdso.
        """
        nid = as_int(nid, "nid", 0, self.nr_nodes - 1)
        return self._adopt(check(_doors.mm_new(self.world, nid), "new_mm"))

    def _adopt(self, number: int, exited: bool = False) -> Mm:
        """The door to an address space that had none yet."""
        life = self._lives[number] = _core.Life(f"address space {number}")
        if exited:
            life.end()
        mm = self._mms[number] = Mm._door(self, number, life)
        return mm

    def _moved(self, mm: Mm, number: int) -> None:
        """An exec: the door follows its process to another record; what stood for the old memory is gone."""
        self._mms.pop(mm.index, None)
        mm._life.end()
        mm._life = self._lives[number] = _core.Life(f"address space {number}")
        self._mms[number] = mm

    def new_object(self, length: int = 1 << 47, *, device: bool = False) -> int:
        """A file or shared memory object to map, empty; it lives until `drop_object` and its last mapping.

        Parameters
        ----------
        length : int
            Bytes; an access to a mapping beyond its end fails (the kernel sends SIGBUS).
        device : bool
            Its pages are zone-device memory (dax).
        """
        pages = -(-as_int(length, "length", 0, 1 << 47) // layout.PAGE_SIZE)
        device = as_flag(device, "device")
        return check(_doors.backing_new(self.world, device, pages), "new_object")

    def drop_object(self, number: int) -> None:
        """Let an object go with its last mapping.

        Raises
        ------
        ValueError
            There is none, or it was dropped before.
        """
        number = self.check_object(number)
        mapped = int(np.count_nonzero(self.vmas["backing"] == number))
        if _doors.backing_users(self.world, number) <= mapped:
            raise ValueError(f"object {number}: dropped already")
        _doors.backing_done(self.world, number)

    def check_object(self, number: int) -> int:
        """Pass the number of an object through; ValueError if there is none."""
        number = as_int(number, "object", -1 << 63, (1 << 64) - 1)
        if not self._mm_flags(number) & MmFlag.BACKING:
            raise ValueError(f"object {shown(number)}: there is none")
        return number

    # ---------------------------------------------------------- keeping

    def _used(self, name: str) -> int:
        """Records of an array that were ever used."""
        return saved.used_records(self._arrays, name)

    def __getstate__(self) -> dict[str, Any]:
        return saved.state_of(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._bind(saved.from_state(state))

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write all state into a directory, one .npy file per array; `Host.load` continues exactly.

        It is written beside the place and put there when it is whole. Two saves of the same Host are the same files.

        Parameters
        ----------
        path : path
            A directory that is not there yet, or an empty one.
        overwrite : bool
            Replace what ksmwalk saved there before.

        Raises
        ------
        FileExistsError
            Something is there already.
        ValueError
            `load` would refuse this Host: somebody wrote into its arrays or page tables.
        OSError
            A symbolic link, no room, no permission. What was there is still there.
        """
        saved.save(self, path, overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Host:
        """A Host as `save` left it.

        Parameters
        ----------
        path : path
            The directory. The files in it must be regular ones, no links.

        Raises
        ------
        FileNotFoundError, ValueError, OSError
            A file is missing, can't be read, is of a newer version, or holds what no Host could; named, with the field
            and the record.
        """
        self = cls.__new__(cls)
        self._bind(saved.load(path))
        return self

    def __repr__(self) -> str:
        nodes, spaces = counted(self.nr_nodes, "node"), counted(len(self.mm_list), "address space")
        return f"<Host of {self.nr_frames:,} frames on {nodes}: {self.frames_used:,} used, {spaces}>"


class TableArena:
    """The table pages of all address spaces of a Host.

    Attributes
    ----------
    rows : ndarray of uint64, shape (n, 512)
        All table pages ever used, no copy, read-only; row 0 is never used.
    """

    def __init__(self, host: Host):
        if not isinstance(host, Host):
            raise TypeError(f"host {shown(host)}: must be a Host")
        self._host = host

    @property
    def rows(self) -> U64Array:
        return _view(self._host._arrays["rows"], self._host._ctl("rows_used"))

    @property
    def nr_tables(self) -> int:
        """Table pages in use."""
        return self._host._ctl("rows_live")

    def __repr__(self) -> str:
        return f"<TableArena, {self.nr_tables} table pages>"

