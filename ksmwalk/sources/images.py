"""Files that hold memory: opened without surprises, their holes found, their pages read again and again."""

from __future__ import annotations

import errno
import os
import stat
import weakref
from dataclasses import dataclass

import numpy as np

from ..drawing.words import printable
from ..errors import KsmwalkError
from ..layout import PAGE_SIZE
from ..signatures import BoolArray, I64Array, U8Array
from .keys import Pages
from .reading import ProcessCapture

_DUMP = "have it written as ELF: `dump-guest-memory FILE` in QEMU's monitor, `virsh dump --memory-only`, `makedumpfile -E`"
# What is neither ELF nor raw memory, by its first bytes: what it is, and what to do.
_FOREIGN = (
    (b"KDUMP   ", f"a compressed kdump; {_DUMP}"),
    (b"DISKDUMP", f"a diskdump; {_DUMP}"),
    (b"makedumpfile\0", f"a flattened dump, as QEMU's kdump formats and `makedumpfile -F` are; {_DUMP}"),
    (b"LibvirtQemudSave", f"a domain saved by libvirt; {_DUMP}"),
    (b"QEVM", f"QEMU's migration stream; {_DUMP}"),
    (b"EMiL", f"a LiME image; {_DUMP}"),
    (b"PAGEDU64", f"a Windows crash dump; {_DUMP}"),
    (b"QFI\xfb", "a qcow2 disk, no memory"),
    (b"\x1f\x8b", "compressed by gzip; unpack it first (gzip -d)"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it first (zstd -d)"),
    (b"\x04\x22\x4d\x18", "compressed by lz4; unpack it first (lz4 -d)"),
    (b"\xfd7zXZ\0", "compressed by xz; unpack it first (xz -d)"),
)
ELF_MAGIC = b"\x7fELF"
# A file of this size with contents and without a block on disk is made up as it is read (/proc/kcore).
_NO_BLOCKS = 1 << 20
#: what a process can map: addresses beyond are of no mapping
TASK_SIZE = (1 << 56) - PAGE_SIZE


class BadImage(KsmwalkError, ValueError):
    """A core or image that can't be used: truncated, damaged, or of another kind.

    Attributes
    ----------
    path : str
    why : str
        What is wrong, where, and what to do.
    """

    path: str
    why: str

    def __init__(self, path: str, why: str):
        super().__init__(f"{printable(path)}: {why}")
        self.path, self.why = path, why

    def __reduce__(self) -> tuple[type[BadImage], tuple[str, str]]:
        return type(self), (self.path, self.why)


@dataclass(slots=True)
class Unkeyed:
    """A process whose contents were not compared with anything yet.

    Parameters
    ----------
    capture : ProcessCapture
        Without keys.
    pages : Pages
        Its anonymous pages: page i here is the i-th of `capture.addr[capture.anon]`.

    Models: nothing of Linux. Differs: has no counterpart there.
    """

    capture: ProcessCapture
    pages: Pages

    @property
    def which(self) -> I64Array:
        """Which pages of the capture `pages` are, as `contents.key_pages` wants to know: int64[pages.nr_pages]."""
        return np.flatnonzero(self.capture.anon)


class ImageFile:
    """A regular file of memory, open for as long as somebody holds this.

    Anything but a regular file is refused before it is opened: opening a FIFO waits, and opening a device does things.

    Raises
    ------
    BadImage
        No regular file, an empty one, or of a kind that can't be used.
    OSError
        It can't be opened.
    """

    path: str
    fd: int
    size: int
    made_up: bool
    sparse: bool
    is_elf: bool
    close: weakref.finalize[[int], ImageFile]

    def __init__(self, path: str | os.PathLike[str]):
        self.path = os.fsdecode(path)
        self._regular(os.stat(self.path))
        self.fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        self.close = weakref.finalize(self, os.close, self.fd)
        try:
            info = os.fstat(self.fd)
            self._regular(info)
            self.size = info.st_size
            self.made_up = not info.st_blocks and self.size >= _NO_BLOCKS
            self.sparse = info.st_blocks * 512 < self.size
            if not self.size:
                raise self.bad("is empty")
            head = self.read(0, min(self.size, 16))
            for magic, why in _FOREIGN:
                if head.startswith(magic):
                    raise self.bad(f"is {why}")
            self.is_elf = head.startswith(ELF_MAGIC)
        except BaseException:
            self.close()
            raise

    def _regular(self, info: os.stat_result) -> None:
        if stat.S_ISDIR(info.st_mode):
            raise self.bad("is a directory")
        if not stat.S_ISREG(info.st_mode):
            raise self.bad("is no regular file; copy what it gives into one")

    def bad(self, why: str) -> BadImage:
        return BadImage(self.path, why)

    def read(self, offset: int, size: int) -> bytes:
        """Exactly these bytes; BadImage where the file ends before."""
        data = os.pread(self.fd, size, offset) if offset < 1 << 63 else b""
        if len(data) < size:
            raise self.bad(f"truncated: {size} bytes at {offset:#x} are missing, the file ends at {self.size:#x}")
        return data

    def data(self) -> I64Array:
        """The stretches of the file that are no holes, ascending and apart: int64[n, 2] of first byte and byte behind."""
        found: list[tuple[int, int]] = []
        at = 0
        while at < self.size:
            try:
                at = os.lseek(self.fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:  # a hole up to the end
                    raise
                break
            end = min(os.lseek(self.fd, at, os.SEEK_HOLE), self.size)
            if end <= at:
                break
            found.append((at, end))
            at = end
        if found and self.made_up:
            raise self.bad("has contents and takes no room: the kernel makes it up as it is read; copy it into a file first")
        return np.array(found, np.int64).reshape(-1, 2)


@dataclass(slots=True)
class Run:
    """Pages that are present, in stretches: page-aligned addresses [start, end), and what to add for the byte in the file.

    All int64[n], ascending and apart.
    """

    start: I64Array
    end: I64Array
    delta: I64Array


def runs_of(data: I64Array, offset: int, size: int, address: int) -> Run:
    """The pages of a part of a file that are no holes.

    Parameters
    ----------
    data : ndarray of int64, shape (n, 2)
        As `ImageFile.data` gives it.
    offset, size : int
        The part of the file, in bytes; a last page that is cut off is left out.
    address : int
        Where its first byte is in memory, a multiple of the page size.
    """
    size -= size % PAGE_SIZE
    first = np.searchsorted(data[:, 1], offset, "right")
    last = np.searchsorted(data[:, 0], offset + size, "left")
    here = data[first:last] - offset
    # A page with any byte outside holes is present.
    start = np.maximum(here[:, 0], 0) // PAGE_SIZE * PAGE_SIZE
    end = -(-np.minimum(here[:, 1], size) // PAGE_SIZE) * PAGE_SIZE
    if len(start) > 1:
        start[1:] = np.maximum(start[1:], np.maximum.accumulate(end)[:-1])
    keep = start < end
    start, end = start[keep] + address, end[keep] + address
    return Run(start, end, np.full(len(start), offset - address, np.int64))


def expand(start: I64Array, end: I64Array, *values: I64Array) -> list[I64Array]:
    """The address of each page of the stretches, and their values page by page."""
    lengths = (end - start) // PAGE_SIZE
    before = np.cumsum(lengths) - lengths
    pages = np.arange(int(lengths.sum()), dtype=np.int64)
    pages -= np.repeat(before, lengths)
    pages *= PAGE_SIZE
    pages += np.repeat(start, lengths)
    return [pages, *(np.repeat(value, lengths) for value in values)]


def pages_of(runs: list[Run], *values: I64Array) -> list[I64Array]:
    """The address of each page of the runs, what goes with each run page by page, and the run's `delta`."""
    start, end, delta = (np.concatenate([getattr(run, name) for run in runs]) for name in ("start", "end", "delta"))
    return expand(start, end, *values, delta)


class FilePages:
    """Pages of a file, by the byte at which each begins: int64[n].

    They are read, not mapped: touching a mapped page of a file that was cut off meanwhile would kill the process.

    Models: nothing of Linux. Differs: has no counterpart there.
    """

    at: I64Array

    def __init__(self, file: ImageFile, at: I64Array):
        self._file, self.at = file, at

    @property
    def nr_pages(self) -> int:
        return len(self.at)

    def read(self, which: I64Array, into: U8Array) -> BoolArray:
        """Read pages by number into uint8[len(which), 4096]; False where the file has become too short."""
        if into.shape != (len(which), PAGE_SIZE) or into.dtype != np.uint8 or not into.flags.c_contiguous:
            raise TypeError(f"into of dtype {into.dtype} and shape {into.shape}: must be uint8 of ({len(which)}, {PAGE_SIZE})")
        there = np.zeros(len(which), bool)
        at = self.at[which]
        view = into.reshape(-1).data
        # Neighbours in the file come by one call.
        cuts = np.flatnonzero(np.diff(at) != PAGE_SIZE) + 1
        for first, last in zip([0, *cuts.tolist()], [*cuts.tolist(), len(at)], strict=True):
            if first < last:
                got = self._read_run(int(at[first]), view[first * PAGE_SIZE : last * PAGE_SIZE])
                there[first : first + got // PAGE_SIZE] = True
        return there

    def _read_run(self, offset: int, into: memoryview) -> int:
        done = os.preadv(self._file.fd, [into], offset)
        # one call gives at most 2 GiB
        while done < len(into) and (got := os.preadv(self._file.fd, [into[done:]], offset + done)) > 0:
            done += got
        return done
