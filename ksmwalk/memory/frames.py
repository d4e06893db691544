"""Physical memory of a Host: what the kernel keeps in struct page, one array per field, indexed by pfn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..errors import Strict
from ..gate import MAX_U64, as_int, as_row, shown
from ..layout import BLOCK, FRAME_FIELDS, Frame, MmFlag
from ..signatures import AnyArray, Integer, Integers

_FIXED = Frame.KSM | Frame.ZERO
_COMPUTED = ("head", "refs")
#: those of the arrays that mean something by themselves
_VIEWS = [name for name in FRAME_FIELDS if name not in ("head", "extra")]


class Frames(Strict):
    """The frames of a Host, a door to arrays that can be looked at and not written to.

    The engine relies on hearing of every change: a store through an address space, `set_key` and `Host.lock_page` say
    so, a number written into an array would not.

    Attributes
    ----------
    flags : ndarray of uint16, shape (nr_frames,)
        `layout.Frame` bits; 0: free.
    nid : ndarray of uint8
        NUMA node.
    head : ndarray of uint32
        First frame of the folio; the frame itself if it is alone. Computed anew each time.
    mapcount : ndarray of int32
        Page-table entries that map this very frame (a leaf pmd counts once for each of its 512).
    refs : ndarray of int32
        At the head: all mappings of the folio, pins, what waits in batches, and the swap cache's. Computed anew each time.
    key : ndarray of uint64
        Content.
    node : ndarray of int32
        Stable node of a KSM page, 0: none.

    Models: struct page and struct folio of Linux 6.18. Differs: a leaf pmd holds 512 references, not one; zero
    pages are not counted.
    """

    __slots__ = (*_VIEWS, "_extra", "_head", "_world", "__weakref__")

    flags: NDArray[np.uint16]
    nid: NDArray[np.uint8]
    mapcount: NDArray[np.int32]
    key: NDArray[np.uint64]
    node: NDArray[np.int32]

    def __init__(self, world: _core.World):
        self._world: _core.World
        object.__setattr__(self, "_world", world)
        self._head: NDArray[np.uint32] = world.arrays["f_head"].view()
        self._extra: NDArray[np.int32] = world.arrays["f_extra"].view()
        for name in _VIEWS:
            view = world.arrays[f"f_{name}"].view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    if not TYPE_CHECKING:

        def __setattr__(self, name, value):
            if name in _VIEWS or name in _COMPUTED:
                what = "the arrays of frames are read-only; set_key and Host.lock_page change frames"
                raise AttributeError(f"{name}: {what}")
            super().__setattr__(name, value)

    @property
    def head(self) -> NDArray[np.uint32]:
        """First frame of each frame's folio."""
        heads = self._heads()
        heads.flags.writeable = False
        return heads

    @property
    def refs(self) -> NDArray[np.int32]:
        """References of each folio, at its head."""
        refs = self._extra + self.mapcount
        tails = np.flatnonzero(self.flags & Frame.TAIL)
        np.add.at(refs, self._heads()[tails], refs[tails])
        refs[tails] = 0
        refs.flags.writeable = False
        return refs

    def _heads(self) -> NDArray[np.uint32]:
        own = np.arange(len(self), dtype=np.uint32)
        return np.where(self._head != 0, self._head, own)

    def set_key(self, pfns: Integer | Integers, keys: Integer | Integers) -> None:
        """Change the content of frames, as a device does that was given them: no fault, no mapping changes.

        Everything that maps them sees the new content. The epoch of every address space rises: what an engine
        remembers of contents is looked up again.

        Parameters
        ----------
        pfns : int, or array of int
            Frames in use that are no zero page and no KSM page.
        keys : int, or array of uint64, one a frame
            Their contents from now on.

        Raises
        ------
        ValueError
            A frame that there is not, or that is free, a zero page or a KSM page (whose content never changes), with its
            place in `pfns`; another number of keys. Nothing is changed.
        TypeError
            No integers.

        Models: a write of a device to memory it was given (DMA). Differs: the dirty bit of the folio is not kept.
        """
        self._world.live()
        at, _ = as_row(pfns, "pfns", np.int64, 0, len(self) - 1)
        new, one = as_row(keys, "keys")
        if len(new) != len(at) and not one:
            raise ValueError(f"{len(new)} keys for {len(at)} frames")
        with self._world:
            self._set_keys(at, new)

    def _set_keys(self, at: NDArray[np.int64], new: NDArray[np.uint64]) -> None:
        flags = self.flags[at]
        wrong = np.flatnonzero((flags & Frame.USED == 0) | (flags & _FIXED != 0))
        if len(wrong):
            i = int(wrong[0])
            raise ValueError(f"pfns[{i}] {shown(int(at[i]))}: {self.describe(int(at[i]))}: its content can't be set")
        arrays = self._world.arrays
        arrays["f_key"][at] = new
        mms = arrays["mms"][: int(arrays["ctl"]["mms_used"][0])]
        living = mms["flags"] & np.uint32(MmFlag.USED) != 0
        mms["epoch"][living] += np.uint64(1)
        arrays["ctl"]["changes"][0] += np.count_nonzero(living)

    def __len__(self) -> int:
        return len(self.flags)

    def describe(self, pfn: int) -> str:
        """One line about a frame, for people."""
        pfn = as_int(pfn, "pfn", -MAX_U64, MAX_U64)
        if not 0 <= pfn < len(self):
            raise IndexError(f"frame {pfn}: this host has frames 0 to {len(self) - 1}")
        flags = Frame(int(self.flags[pfn]))
        if not flags & Frame.USED:
            return f"frame {pfn}: free"
        names = "|".join(str(f.name).lower() for f in Frame if f in flags and f != Frame.USED) or "used"
        head, refs = int(self._head[pfn]) or pfn, 0
        if not flags & Frame.TAIL:
            pages = np.count_nonzero(self._head[pfn : pfn + BLOCK] == pfn) if flags & Frame.HEAD else 1
            refs = int(self._extra[pfn]) + int(self.mapcount[pfn : pfn + pages].sum())
        return (
            f"frame {pfn}: {names}, head {head}, mapcount {self.mapcount[pfn]},"
            f" refs {refs}, key {self.key[pfn]:#x}, node {self.nid[pfn]}"
        )

    def __repr__(self) -> str:
        return f"<Frames of {len(self)}>"


def first_frames(arrays: Mapping[str, AnyArray], nr_frames: int, nr_nodes: int) -> None:
    """Fill the arrays of a fresh Host that the allocator works on; frame 0 becomes the zero page.

    Parameters
    ----------
    arrays : dict of str to ndarray
        All arrays of the Host, zeroed.
    nr_frames, nr_nodes : int
        The frames are split evenly among the NUMA nodes, in blocks of 512.
    """
    a, n, nodes = arrays, nr_frames, nr_nodes
    blocks = len(a["b_count"])
    first = np.arange(blocks + 1) * BLOCK
    first[-1] = n
    a["b_count"][:] = np.diff(first)
    a["b_free"][:] = ~np.uint64(0)
    odd = n % BLOCK
    if odd:
        bits = np.arange(64) + np.arange(8)[:, None] * 64 < odd
        a["b_free"][-1] = (bits.astype(np.uint64) << np.arange(64, dtype=np.uint64)).sum(axis=1, dtype=np.uint64)
    # Frame 0 is the shared zero page.
    a["b_free"][0, 0] &= ~np.uint64(1)
    a["b_count"][0] -= 1
    a["f_flags"][0] = Frame.ZERO | Frame.USED
    a["ctl"]["frames_used"] = 1
    node_of = np.arange(blocks) * nodes // blocks
    if nodes > 1:
        a["f_nid"][:] = np.repeat(node_of, np.diff(first))
    for nid in range(nodes):
        mine = np.flatnonzero(node_of == nid)
        whole = a["b_count"][mine] == BLOCK
        _chain(a, mine[~whole & (a["b_count"][mine] > 0)], nid)
        _chain(a, mine[whole], nodes + nid)


def _chain(a: Mapping[str, AnyArray], blocks: AnyArray, head: int) -> None:
    """Link blocks in this order into one of the allocator's lists."""
    if not len(blocks):
        return
    a["b_heads"][head] = blocks[0]
    a["b_next"][blocks[:-1]] = blocks[1:]
    a["b_next"][blocks[-1]] = -1
    a["b_prev"][blocks[1:]] = blocks[:-1]
    a["b_prev"][blocks[0]] = -1
