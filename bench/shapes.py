"""A process of a wanted shape, for PAGEMAP_SCAN to walk: a child with the pages written that were asked for."""

from __future__ import annotations

import numpy as np

from ksmwalk.proc.child import Child, ChildError


class Shape(Child):
    """A child process with an anonymous mapping of `span` bytes in which exactly the pages at `offsets` are written.

    Huge pages are only read, so that they are the huge zero page and cost no memory.
    """

    def __init__(self, span: int, offsets, huge_offsets=()):
        super().__init__()
        self.span = span
        small = np.ascontiguousarray(offsets, dtype=np.uint64)
        try:
            self.start = self.do(f"new({span}, align=M)")
        except ChildError as error:
            self.close()
            raise OSError(f"the kernel gives no mapping of {span} bytes: {error.why}") from None
        self.do(f"libc.madvise({self.start}, {span}, NOHUGEPAGE)")
        for offset in map(int, huge_offsets):
            self.do(f"libc.madvise({self.start + offset}, M, 14)")
            self.do(f"read({self.start + offset})")
        self.do(f"put({self.start}, numbers({len(small)}), iter(lambda: 1, 0))", small.tobytes())

    @property
    def end(self) -> int:
        return self.start + self.span
