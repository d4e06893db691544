"""How far two pages that a search compares are alike at their front, which is what comparing them costs."""

from __future__ import annotations

import numpy as np

from ..signatures import U8Array


def mean_prefix(pages: U8Array, sample: int = 256) -> float:
    """How many bytes two different pages that a search compares have in common at their front, on average.

    Parameters
    ----------
    pages : ndarray of uint8, shape (n, 4096)
        Different contents, in byte order.
    sample : int
        Contents that are searched for, evenly spread over all.

    Returns
    -------
    float
        For `count_full_scan`; 0 where there are fewer than two contents.

    Models: searches of a balanced tree of all contents. Differs: the tree of a scan is smaller while it grows.
    """
    n, total, compared = len(pages), 0, 0
    for wanted in np.unique(np.linspace(0, max(n - 1, 0), min(sample, n)).astype(np.int64)).tolist():
        low, high = 0, n
        while low < high:
            middle = (low + high) // 2
            if middle == wanted:
                break
            unlike = pages[middle] != pages[wanted]
            total += int(unlike.argmax())
            compared += 1
            low, high = (middle + 1, high) if middle < wanted else (low, middle)
    return total / compared if compared else 0.0
