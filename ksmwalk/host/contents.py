"""Contents of an address space: stores, loads, and looks that touch nothing."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import overload

import numpy as np

from ..gate import MAX_U64, as_array, as_int, as_row
from ..layout import PAGE_SIZE
from ..signatures import I64Array, Integer, Integers, U64Array
from . import _doors
from .door import Door, refuse

_FORCE, _KEEP = 1, 2  # FAULT_* of memory/_fault.pxd
_AT_ONCE = 1 << 17  # scattered addresses in one compiled call: between two, Ctrl-C is heard


class Contents(Door):
    """Stores and loads, singly and at array speed."""

    def _pages(self, addr: int) -> int:
        if type(addr) is not int or not 0 <= addr <= MAX_U64:
            addr = as_int(addr, "addr")
        if addr % PAGE_SIZE:
            raise ValueError(f"addr {addr:#x}: must be page aligned")
        self._at()
        return addr

    @contextmanager
    def _on_node(self, nid: int | None) -> Iterator[None]:
        """With new pages from a node for the time being."""
        with self._world:
            before = self.nid
            if nid is not None:
                self.nid = nid
            try:
                yield
            finally:
                if nid is not None:
                    self._world.arrays["mms"]["nid"][self.index] = before

    def write(self, addr: int, keys: Integer | Integers, *, nid: int | None = None) -> None:
        """Store contents into a page, or into consecutive pages at array speed, with all faults that takes.

        Parameters
        ----------
        addr : int
            Bytes, page aligned.
        keys : int, or array of uint64
            Content of the page, or of each of the pages from `addr` on.
        nid : int, optional
            NUMA node for new pages, instead of the address space's.

        Raises
        ------
        OSError
            EFAULT: no area there, or none that may be written to; pages before it are written.
        ArenaFullError
            No frame or no table page left.

        Models: stores and their faults in Linux 6.18. Differs: a store replaces the whole content of a page.
        """
        addr = self._pages(addr)
        if nid is not None:
            with self._on_node(nid):
                self.write(addr, keys)
            return
        if type(keys) is int and 0 <= keys <= MAX_U64:
            code = _doors.write_one(self._world, self.index, addr, keys, 0)
        elif isinstance(keys, np.ndarray) and keys.ndim or isinstance(keys, (list, tuple)):
            keys = as_array(keys, "keys")
            self._store(addr, len(keys), keys, 0)
            return
        else:
            code = _doors.write_one(self._world, self.index, addr, as_int(keys, "keys"), 0)
        if code < 0:
            self._check(code, f"write at {addr:#x}")

    def _store(self, addr: int, n: int, keys: U64Array | None, mode: int) -> None:
        if addr + n * PAGE_SIZE > MAX_U64:
            raise refuse(errno.EFAULT, f"{n} pages from {addr:#x} on: beyond all memory")
        done, code = _doors.write(self._world, self._at(), addr, n, keys, mode)
        if code < 0:
            self._check(code, f"write at {addr + done * PAGE_SIZE:#x} ({done} of {n} pages done)")

    def poke(self, addr: int, keys: Integer | Integers) -> None:
        """Store as a debugger does through /proc/PID/mem: past the permissions of private areas.

        Models: FOLL_FORCE of Linux 6.18. Differs: nothing known.
        """
        addr = self._pages(addr)
        if not isinstance(keys, (list, tuple)) and not (isinstance(keys, np.ndarray) and keys.ndim):
            keys = [as_int(keys, "keys")]
        keys = as_array(keys, "keys")
        self._store(addr, len(keys), keys, _FORCE)

    def populate(self, addr: int, length: int, keys: Integers | None = None, *, nid: int | None = None) -> None:
        """Fault in a range for writing, at array speed; contents stay, or become `keys`.

        Parameters
        ----------
        addr, length : int
            Bytes, page aligned.
        keys : array of uint64, optional
            Content of each page. Without it new pages are empty and old ones stay as they are.
        nid : int, optional
            NUMA node for new pages, instead of the address space's.

        Raises
        ------
        OSError, ArenaFullError
            As `write`.

        Models: MAP_POPULATE and MADV_POPULATE_WRITE of Linux 6.18. Differs: nothing known.
        """
        start, end = self._range(addr, length, "populate")
        n = (end - start) // PAGE_SIZE
        if keys is not None:
            keys = as_array(keys, "keys")
            if len(keys) != n:
                raise ValueError(f"{len(keys)} keys for {n} pages")
        if nid is None:
            self._store(start, n, keys, 0 if keys is not None else _KEEP)
            return
        with self._on_node(nid):
            self._store(start, n, keys, 0 if keys is not None else _KEEP)

    @overload
    def read(self, addr: int, n: None = None) -> int: ...
    @overload
    def read(self, addr: int, n: int) -> U64Array: ...
    def read(self, addr: int, n: int | None = None) -> int | U64Array:
        """Load from a page or from `n` consecutive pages, with the faults that takes.

        Returns
        -------
        int, or ndarray of uint64 of shape (n,)
            Contents.

        Models: loads and their faults in Linux 6.18. Differs: nothing known.
        """
        if n is None:
            addr, count = as_int(addr, "addr") & -PAGE_SIZE, 1
            at = self._at()
        else:
            addr, count = self._run(addr, n)
            at = self.index
            if addr + count * PAGE_SIZE > self.task_size:
                raise refuse(errno.EFAULT, f"read of {count} pages from {addr:#x} on: beyond user memory")
        out = np.empty(count, np.uint64)
        done, code = _doors.read(self._world, at, addr, count, out, 0)
        if code < 0:
            self._check(code, f"read at {addr + done * PAGE_SIZE:#x} ({done} of {count} pages done)")
        return int(out[0]) if n is None else out

    def write_at(self, addrs: Integers, keys: Integer | Integers) -> None:
        """Store contents into pages anywhere, in the order given, at array speed, with all faults that takes.

        Parameters
        ----------
        addrs : array of int, shape (n,)
            Bytes, page aligned; an address may come again.
        keys : int, or array of uint64 of shape (n,)
            Content of all of the pages, or of each.

        Raises
        ------
        OSError, ArenaFullError
            As `write`, with the index and the address at which it stopped; the pages before it are written.
        ValueError, TypeError
            An address that is not page aligned, with its index; no integers; another number of keys. Nothing is
            written.

        Models: stores and their faults in Linux 6.18. Differs: a store replaces the whole content of a page.
        """
        at = as_array(addrs, "addrs")
        odd = np.flatnonzero(at % np.uint64(PAGE_SIZE))
        if len(odd):
            raise ValueError(f"addrs[{odd[0]}] {int(at[odd[0]]):#x}: must be page aligned")
        new, one = as_row(keys, "keys")
        if not one and len(new) != len(at):
            raise ValueError(f"{len(new)} keys for {len(at)} addresses")
        self._at_once("write_at", at, lambda part: _doors.write_at(
            self._world, self._at(), at[part], new if one else new[part]
        ))  # fmt: skip

    def read_at(self, addrs: Integers) -> U64Array:
        """Load from pages anywhere, in the order given, at array speed, with the faults that takes.

        Parameters
        ----------
        addrs : array of int, shape (n,)
            Bytes; each stands for the page it lies in.

        Returns
        -------
        ndarray of uint64, shape (n,)
            Contents.

        Raises
        ------
        OSError, ArenaFullError
            As `read`, with the index and the address at which it stopped.
        ValueError, TypeError
            No integers, or negative ones, with the index.

        Models: loads and their faults in Linux 6.18. Differs: nothing known.
        """
        at = as_array(addrs, "addrs")
        out = np.empty(len(at), np.uint64)
        self._at_once("read_at", at, lambda part: _doors.read_at(self._world, self._at(), at[part], out[part]))
        return out

    def _at_once(self, what: str, addrs: U64Array, call: Callable[[slice], tuple[int, int]]) -> None:
        """Part after part of many addresses, and where it stopped."""
        self._at()
        with self._world:
            for i in range(0, len(addrs), _AT_ONCE):
                done, code = call(slice(i, i + _AT_ONCE))
                if code < 0:
                    at = i + done
                    self._check(code, f"{what} at addrs[{at}] {int(addrs[at]):#x} ({at} of {len(addrs)} pages done)")

    def _run(self, addr: int, n: int) -> tuple[int, int]:
        """A run of pages within what page tables can map."""
        addr = self._pages(addr)
        if type(n) is not int or n < 0 or addr + n * PAGE_SIZE > 1 << 57:
            n = as_int(n, "n", 0, max(0, ((1 << 57) - addr) // PAGE_SIZE))
        return addr, n

    def read_keys(self, addr: int, n: int) -> U64Array:
        """Look at the contents of `n` pages without touching them: uint64, 0 where nothing is present.

        Models: nothing of Linux, it only looks. Differs: nothing known.
        """
        addr, n = self._run(addr, n)
        out = np.empty(n, np.uint64)
        _doors.look(self._world, self.index, addr, n, out, None)
        return out

    def read_pfns(self, addr: int, n: int) -> I64Array:
        """Look up the frames of `n` pages without touching them: int64, -1 where nothing is present.

        Models: frame numbers of /proc/PID/pagemap of Linux 6.18. Differs: nothing known.
        """
        addr, n = self._run(addr, n)
        out = np.empty(n, np.int64)
        _doors.look(self._world, self.index, addr, n, None, out)
        return out
