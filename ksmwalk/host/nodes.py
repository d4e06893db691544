"""Where the pages of an address space are: NUMA nodes asked for, asked about, changed."""

from __future__ import annotations

import errno

import numpy as np

from ..gate import MAX_U64, as_array, as_flag, as_int
from ..layout import PAGE_SIZE
from ..signatures import I64Array, Integer, Integers
from . import _nodes
from .door import refuse
from .touched import Touched

_MOVE, _MOVE_ALL = 2, 4  # MPOL_MF_*
_MAX_NUMNODES = 1024


class Placed(Touched):
    """NUMA nodes of pages."""

    def mbind(self, addr: int, length: int, node: int | None, *, move: bool = False, move_all: bool = False) -> None:
        """Let new pages of [addr, addr + length) come from a NUMA node, copies by KSM and by stores too.

        Parameters
        ----------
        addr, length : int
            Bytes; the start page aligned. Areas are cut at its ends, as by `madvise`.
        node : int or None
            The node (MPOL_BIND); None: that of the address space again (MPOL_DEFAULT).
        move : bool
            MPOL_MF_MOVE: move what is there already and mapped once. Shared pages, KSM's too, stay without an error.
        move_all : bool
            MPOL_MF_MOVE_ALL, as root: move shared pages as well, with all their mappings.

        Raises
        ------
        OSError
            EINVAL: no such node, or an address inside a page. EFAULT: the range has a hole, or with None nothing else;
            nothing is done.

        Models: mbind(2) of Linux 6.18. Differs: a full node lends from the next one; the policy of a file or of
        shared memory is that of each area that maps it.
        """
        start, end = self._range(addr, length, "mbind")
        if node is not None:
            node = as_int(node, "node", 0)
            if node >= self.host.nr_nodes:
                raise refuse(errno.EINVAL, f"mbind to node {node}: there is none")
        mode = _MOVE * as_flag(move, "move") | _MOVE_ALL * as_flag(move_all, "move_all")
        taken = np.zeros(self.host.nr_frames if mode else 0, np.uint8)
        code = _nodes.mbind(self._world, self.index, start, end, node, mode, taken)
        self._check(code, f"mbind {start:#x}-{end:#x} to {node}")

    def move_pages(self, addrs: Integers, nodes: Integer | Integers, *, move_all: bool = False) -> I64Array:
        """Move single pages to NUMA nodes, with all that is mapped of them.

        Parameters
        ----------
        addrs : array of int, shape (n,)
            Bytes; each stands for the page it lies in.
        nodes : int, or array of int, shape (n,)
            Where to: for all, or for each.
        move_all : bool
            MPOL_MF_MOVE_ALL, as root, from outside too: shared pages as well.

        Returns
        -------
        ndarray of int64, shape (n,)
            The node each page is on now, or -errno: ENOENT nothing is present, EFAULT no area or a zero page, EACCES it
            is shared and `move_all` was not given, EBUSY the call has it in hand already, ENOMEM the node is full. The
            call ends at a page that somebody holds: 0, as in memory that held zeros before the call, of this one, of
            those that were moved together with it, up to the last of which something else is said, and of all after.

        Raises
        ------
        OSError
            ENODEV: no such node; nothing was moved.
        ValueError, TypeError
            Arrays of different lengths, or of other things.

        Models: move_pages(2) of Linux 6.18. Differs: nothing known.
        """
        self._at()
        at = as_array(addrs, "addrs")
        one = not isinstance(nodes, (list, tuple)) and not (isinstance(nodes, np.ndarray) and nodes.ndim)
        to = np.full(len(at), as_int(nodes, "nodes", 0)) if one else as_array(nodes, "nodes")
        if len(to) != len(at):
            raise ValueError(f"{len(to)} nodes for {len(at)} addresses")
        if len(to) and int(to.max()) >= self.host.nr_nodes:
            raise refuse(errno.ENODEV, f"move_pages to node {int(to.max())}: there is none")
        status = np.zeros(len(at), np.int64)
        taken = np.zeros(self.host.nr_frames, np.uint8)
        every = as_flag(move_all, "move_all")
        pages = at & np.uint64(MAX_U64 - PAGE_SIZE + 1)
        _nodes.move_pages(self._world, self.index, pages, to.astype(np.int64), every, status, taken)
        return status

    def migrate_pages(self, source: int, target: int) -> int:
        """Move everything from one NUMA node to another, as root: shared pages as well, with all their mappings.

        Parameters
        ----------
        source, target : int
            Nodes.

        Returns
        -------
        int
            How many mappings were of pages that could not be moved. A page that this address space maps more than
            once is counted for every further time, though it was moved.

        Raises
        ------
        OSError
            EINVAL: no such target; a source that no kernel has (1024 and above).

        Models: migrate_pages(2) of one node in Linux 6.18, and of kernels without smart scan, which count no page twice.
        Differs: nothing known.
        """
        self._at()
        source, target = as_int(source, "source", 0), as_int(target, "target", 0)
        if target >= self.host.nr_nodes or source >= _MAX_NUMNODES:
            raise refuse(errno.EINVAL, f"migrate_pages from node {source} to {target}: there is none")
        if source >= self.host.nr_nodes:
            return 0
        taken = np.zeros(self.host.nr_frames, np.uint8)
        code = _nodes.migrate(self._world, self.index, source, target, taken)
        return self._check(code, f"migrate_pages from node {source} to {target}")
