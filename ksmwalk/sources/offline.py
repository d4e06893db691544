"""Memory that is in files, cores and guests alike, as one capture with contents."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np

from .contents import MemoryCapture, key_pages
from .cores import read_core
from .guests import is_guest, read_guest
from .keys import Progress


def capture_files(
    paths: Iterable[str | os.PathLike[str]],
    *,
    secret: bytes | None = None,
    progress: Progress = lambda what, done, total: None,
) -> MemoryCapture:
    """Read cores and images of guests with the contents of their anonymous memory.

    Parameters
    ----------
    paths : iterable of path
        Each as `read_core` or `read_guest` take it: which of them is seen by the file.
    secret : bytes, optional
        Make contents comparable with captures of other machines that were given the same secret: see `intern`.
    progress : callable of (str, int, int)
        What is done, pages done, pages in all.

    Returns
    -------
    MemoryCapture
        A process for each file, in their order; of kind "guest" where all are guests, else "core".

    Raises
    ------
    BadImage, OSError, KsmwalkError
        As `read_core` and `read_guest` do.
    ValueError
        No file.

    Models: see `read_core` and `read_guest`. Differs: see there; frames of guests are numbered as they come, each its own.
    """
    found, kinds = [], set()
    frames = 1
    for path in paths:
        guest = is_guest(path)
        kinds.add(guest)
        one = read_guest(path) if guest else read_core(path)
        if guest:
            # guests are started, not forked: no frame of one is another's
            one.capture.pfn = np.arange(frames, frames + one.capture.nr_pages, dtype=np.uint64)
            frames += one.capture.nr_pages
        found.append(one)
    if not found:
        raise ValueError("no file to read")
    kind = "guest" if kinds == {True} else "core"
    parts = [(one.capture, one.pages, one.which) for one in found]
    return key_pages(parts, kind, secret=secret, progress=progress)
