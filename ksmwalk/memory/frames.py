"""Physical memory of a Host: what the kernel keeps in struct page, one array per field, indexed by pfn."""

from __future__ import annotations

import numpy as np

from ..layout import FRAME_FIELDS, Frame


class Frames:
    """The frames of a Host, a door to arrays.

    Attributes
    ----------
    flags : ndarray of uint16, shape (nr_frames,)
        `layout.Frame` bits; 0: free.
    nid : ndarray of uint8
        NUMA node.
    head : ndarray of uint32
        First frame of the folio; the frame itself if it is alone.
    mapcount : ndarray of int32
        Page-table entries that map this very frame (a leaf pmd counts once for each of its 512).
    refs : ndarray of int32
        At the head: all mappings of the folio, pins, and one while on the LRU batch.
    key : ndarray of uint64
        Content.
    node : ndarray of int32
        Stable node of a KSM page, 0: none.

    Models: struct page and struct folio of Linux 6.18. Differs: a leaf pmd holds 512 references, not one; zero
    pages are not counted.
    """

    def __init__(self, arrays: dict[str, np.ndarray]):
        for name in FRAME_FIELDS:
            setattr(self, name, arrays[f"f_{name}"])

    def __len__(self) -> int:
        return len(self.flags)

    def describe(self, pfn: int) -> str:
        """One line about a frame, for people."""
        if not 0 <= pfn < len(self):
            raise IndexError(f"frame {pfn}: this host has frames 0 to {len(self) - 1}")
        flags = Frame(int(self.flags[pfn]))
        if not flags & Frame.USED:
            return f"frame {pfn}: free"
        names = "|".join(f.name.lower() for f in Frame if f in flags and f != Frame.USED) or "used"
        return (
            f"frame {pfn}: {names}, head {self.head[pfn]}, mapcount {self.mapcount[pfn]},"
            f" refs {self.refs[pfn]}, key {self.key[pfn]:#x}, node {self.nid[pfn]}"
        )

    def __repr__(self) -> str:
        return f"<Frames of {len(self)}>"
