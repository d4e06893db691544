"""From bytes to keys: which pages are equal, and in which order their contents stand.

Contents are hashed to find candidates, compared byte by byte to be sure (`equality`), and numbered in byte order
(`ordering`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..layout import PAGE_SIZE
from ..signatures import I64Array, U16Array, U64Array
from .equality import Equality, Groups
from .hashing import hasher
from .ordering import byte_order
from .pages import BATCH, AllPages, Pages, Progress
from .prefix import mean_prefix

__all__ = ["BATCH", "UNKNOWN", "Interned", "Pages", "Progress", "intern"]

#: key of a page whose content is not known
UNKNOWN = (1 << 64) - 1
#: contents from which their mean common front is taken
_FOR_PREFIX = 512


@dataclass(slots=True)
class Interned:
    """What `intern` found, a row for each source.

    Attributes
    ----------
    keys : list of uint64[nr_pages]
        0: a page of zeros; equal keys: equal bytes; in byte order, unless there are digests; `UNKNOWN`: not read.
    changes : list of uint16[nr_pages]
        In how many of the comparisons of a page with itself, later, it had another content.
    nr_contents : int
        One more than the highest key.
    digests : uint64[nr_contents, 2] or None
        Keyed hash of each content: its keys are in this order, but for 0: that of a page of zeros, were there any or not,
        by which one secret is told from another.
    comparisons : int
        Of each page with itself.
    prefix : float
        Bytes that two contents have in common at their front, on average, where a search compares them.
    """

    keys: list[U64Array]
    changes: list[U16Array]
    nr_contents: int
    digests: U64Array | None = None
    comparisons: int = 0
    prefix: float = 0.0


def intern(
    sources: Sequence[Pages],
    *,
    samples: int = 1,
    before: Callable[[int], None] = lambda sample: None,
    secret: bytes | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Interned:
    """Give each page a key: equal keys mean equal bytes, the order of keys is that of the bytes.

    Parameters
    ----------
    sources : sequence of Pages
    samples : int
        How often every page is read; the last reading is the one that counts.
    before : callable of int
        Called before each sample: to wait, or to stop those who write.
    secret : bytes, optional
        Number contents by a keyed hash of 128 bits instead (BLAKE2b), which other machines with the secret find as well.
    progress : callable of (str, int, int)
        What is done, pages done, pages in all.

    Returns
    -------
    Interned

    Models: memcmp() of pages, by which ksmd orders and compares them. Differs: nothing known.
    """
    pages = AllPages(sources)
    work = Equality(pages, hasher(secret), progress)
    try:
        for sample in range(samples):
            before(sample)
            work.read_all(sample)
        groups = work.confirm()
    finally:
        work.close()
    if secret is not None:
        order = np.arange(len(groups.leader))
    else:
        order = byte_order(pages, groups.leader, work.begins.take(groups.leader, axis=0), progress)
    keys, nr_contents = _numbered(work, groups, order)
    # who has turned since the last reading may do so any time: that tells no rate
    changes = np.maximum(work.changes, work.alone if samples > 1 else work.turned > 0)
    result = Interned([keys[part] for part in pages.parts()], [changes[part] for part in pages.parts()], nr_contents)
    result.comparisons = samples - 1
    if secret is not None:
        digests = result.digests = np.zeros((nr_contents, 2), np.uint64)
        digests[keys[groups.leader]] = work.hash[:, groups.leader].T
        digests[0] = work.hasher.hash(np.zeros((1, PAGE_SIZE), np.uint8))[:, 0]
    else:
        result.prefix = _prefix(pages, groups.leader[order])
    return result


def _numbered(work: Equality, groups: Groups, order: I64Array) -> tuple[U64Array, int]:
    """Keys of all pages, contents numbered in this order, and one more than the highest."""
    zero = (work.begins[:, 0] == 0)[groups.leader[order]]
    rank = np.empty(len(order), np.uint64)
    rank[order] = np.cumsum(~zero).astype(np.uint64)
    rank[order[zero]] = 0
    keys = np.full(work.pages.nr_pages, UNKNOWN, np.uint64)
    keys[groups.page] = np.repeat(rank, np.diff(groups.first))
    return keys, int(rank.max()) + 1 if len(rank) else 1


def _prefix(pages: Pages, ordered: I64Array) -> float:
    """Mean common front of contents, from some of them; these are given in byte order, a page each."""
    if not len(ordered):
        return 0.0
    pick = ordered[np.unique(np.linspace(0, len(ordered) - 1, _FOR_PREFIX).astype(np.int64))]
    ascending = np.argsort(pick)
    buffer = np.empty((len(pick), PAGE_SIZE), np.uint8)
    ok, row = np.empty(len(pick), bool), np.empty(len(pick), np.int64)
    ok[ascending] = pages.read(pick[ascending], buffer)
    row[ascending] = np.arange(len(pick))
    return mean_prefix(buffer[row[ok]])
