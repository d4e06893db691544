"""How many pages and frames have the same content, in all that was read and in what is marked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..signatures import I64Array, U64Array
from ..sources.contents import MemoryCapture, readable
from ..sources.keys import UNKNOWN


@dataclass(slots=True)
class Counts:
    """Of each page of a process, how many have its content, itself included: int64[nr_pages], 0 where it was not read.

    Attributes
    ----------
    pages, marked_pages : ndarray of int64
        Pages, in all that was read and in marked mappings.
    frames, marked_frames : ndarray of int64
        Different frames among them; as many as pages where frames can't be seen.
    """

    pages: I64Array
    frames: I64Array
    marked_pages: I64Array
    marked_frames: I64Array


class Equals:
    """Pages of a capture counted by content.

    Parameters
    ----------
    capture : MemoryCapture

    Models: memcmp() of pages, by which ksmd compares them. Differs: only pages that were read are known.
    """

    capture: MemoryCapture
    size: int
    seen: bool
    pages: I64Array
    marked_pages: I64Array
    frames: I64Array
    marked_frames: I64Array

    def __init__(self, capture: MemoryCapture):
        self.capture = capture
        self.size = max(1, capture.nr_contents)
        keys, pfns, marks = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)], [np.empty(0, bool)]
        self.seen = capture.frames_seen
        for one in capture.processes:
            if one.key is None:
                continue
            which = np.flatnonzero(readable(one) & (one.key != np.uint64(UNKNOWN)))
            marked = np.zeros(one.nr_pages, bool)
            for vma, (first, last) in zip(one.vmas, one.vma_slices(), strict=True):
                marked[first:last] = vma.mergeable
            keys.append(one.key[which])
            pfns.append(one.pfn[which] if one.pfn is not None else np.zeros(len(which), np.uint64))
            marks.append(marked[which])
        key, pfn, mark = np.concatenate(keys), np.concatenate(pfns), np.concatenate(marks)
        self.pages, self.marked_pages = self._count(key), self._count(key[mark])
        self.frames = self._frames(key, pfn) if self.seen else self.pages
        self.marked_frames = self._frames(key[mark], pfn[mark]) if self.seen else self.marked_pages

    def _count(self, key: U64Array) -> I64Array:
        return np.bincount(key.astype(np.int64), minlength=self.size)

    def _frames(self, key: U64Array, pfn: U64Array) -> I64Array:
        """Different frames of each content; a frame read twice with two contents counts in both."""
        order = np.lexsort((key, pfn))
        key, pfn = key[order], pfn[order]
        new = np.ones(len(key), bool)
        new[1:] = (key[1:] != key[:-1]) | (pfn[1:] != pfn[:-1])
        return self._count(key[new])

    def of(self, index: int) -> Counts:
        """The counts of each page of a process.

        Parameters
        ----------
        index : int
            In the capture.

        Returns
        -------
        Counts
        """
        one = self.capture.processes[index]
        out = []
        known = np.zeros(one.nr_pages, bool) if one.key is None else one.key != np.uint64(UNKNOWN)
        for counted in (self.pages, self.frames, self.marked_pages, self.marked_frames):
            counts = np.zeros(one.nr_pages, np.int64)
            if one.key is not None:
                counts[known] = counted[one.key[known].astype(np.int64)]
            out.append(counts)
        return Counts(*out)
