"""The address space of a captured process as a picture of `drawing.spaces`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..drawing.spaces import KINDS, KSM, OTHER, SHARED, SMALL, THP, ZERO, Picture, Runs
from ..drawing.spaces import picture as picture_of
from ..signatures import U8Array

if TYPE_CHECKING:
    from .reading import ProcessCapture

def page_kinds(capture: ProcessCapture) -> U8Array:
    """The kind of each page: uint8[nr_pages] of SMALL, THP, KSM, ZERO, OTHER, SHARED.

    SHARED are anonymous pages, small or huge, that more than one process maps, where these can be told from KSM's.
    """
    eligible = np.zeros(capture.nr_pages, bool)
    for vma, (first, last) in zip(capture.vmas, capture.vma_slices(), strict=True):
        if vma.not_compatible is None:
            eligible[first:last] = True
    kind = np.full(capture.nr_pages, OTHER, np.uint8)
    anon = eligible & capture.anon
    kind[anon] = SMALL
    kind[anon & capture.huge] = THP
    if capture.frame_counts is not None:
        kind[anon & (capture.frame_counts > 1)] = SHARED
    elif capture.exclusive is not None and (capture.ksm is not None or not capture.ksm_stat.get("ksm_merging_pages")):
        kind[anon & ~capture.exclusive] = SHARED
    if capture.ksm is not None:
        kind[anon & capture.ksm] = KSM
    kind[eligible & capture.zero] = ZERO
    return kind


def picture(capture: ProcessCapture, max_rows: int = 24, min_gap: int = 8 << 20, kinds: tuple[str, ...] = KINDS) -> Picture:
    """A captured process, cut and folded; see `drawing.spaces.picture`."""
    drawn = picture_of(capture.vmas, Runs.of_pages(capture.addr, page_kinds(capture)), max_rows, min_gap, kinds)
    # an image has no process number
    drawn.title = f"{capture.name} ({capture.pid})" if capture.pid else capture.name
    drawn.notes = capture.notes
    return drawn
