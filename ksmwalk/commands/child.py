"""The process that `ksmwalk demo` starts: a huge mergeable mapping with a few pages in it."""

from __future__ import annotations

from ..errors import KsmwalkError
from ..proc.child import Child, ChildError

PAGE = 4096


class Giant(Child):
    """A live process with `span` bytes of address space marked mergeable and `pages` pages in it, evenly spread.

    A context manager; the process ends with it, and with this program however that ends.

    Parameters
    ----------
    span : int
        Bytes.
    pages : int
    mark : bool
        Whether to ask the kernel to mark the mapping.

    Attributes
    ----------
    address : int
        Where the mapping begins, bytes.
    marked : bool
        Whether the kernel did mark it.
    unmarked : str or None
        Why the kernel refused to.
    """

    def __init__(self, span: int, pages: int, mark: bool = True):
        super().__init__()
        try:
            self._fill(span, pages, mark)
        except BaseException:
            self.close()
            raise

    def _fill(self, span: int, pages: int, mark: bool) -> None:
        try:
            self.address: int = self.do(f"new({span})")
        except ChildError as error:
            raise KsmwalkError(f"no process with {span} bytes of address space: {error.why}") from None
        # One page is to stay one page; a kernel without huge pages refuses, and does so anyway.
        self.do(f"libc.madvise({self.address}, {span}, NOHUGEPAGE)")
        self.unmarked: str | None = None
        if mark:
            try:
                self.do(f"call('madvise', {self.address}, {span}, MERGEABLE)")
            except ChildError as error:
                self.unmarked = error.why
        self.marked: bool = mark and self.unmarked is None
        step = span // PAGE // pages
        first, after = step // 2 * PAGE, (step // 2 + step * pages) * PAGE
        self.do(f"put({self.address}, range({first}, {after}, {step * PAGE}), range(1, {pages + 1}))")
        self.rest()


def footprint(pid: int) -> tuple[int, int]:
    """(resident bytes, page-table bytes) of a process: what looking must not change."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        rows = dict(line.split(":", 1) for line in file)
    return int(rows["VmRSS"].split()[0]) << 10, int(rows["VmPTE"].split()[0]) << 10
