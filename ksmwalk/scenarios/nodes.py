"""NUMA nodes of pages in records: per process runs of those that are new, or on another node than last."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

Runs = dict[str, list[list[int]]]


class Nodes:
    """What was last said of each page: two columns for each process, page numbers ascending."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def changes(self, pages: Mapping[str, np.ndarray], nodes: Mapping[str, np.ndarray]) -> Runs:
        """Return the runs of pages whose node is to be said, for each process that has any.

        Parameters
        ----------
        pages : mapping of str to array of int
            The present pages of each live process, ascending.
        nodes : mapping of str to array of int
            Their nodes; -1: not to be said.
        """
        runs: Runs = {}
        for name in sorted(pages):
            node = np.asarray(nodes[name]).astype(np.int64, copy=False)
            vpn, node = pages[name][node >= 0], node[node >= 0]
            if changed := self._of(name, vpn, node):
                runs[name] = changed
        self._known = {name: self._known[name] for name in pages}
        return runs

    def _of(self, name: str, vpn: np.ndarray, node: np.ndarray) -> list[list[int]]:
        before, was = self._known.get(name, (vpn[:0], node[:0]))
        self._known[name] = vpn, node
        place = np.searchsorted(before, vpn)
        place[place == len(before)] = 0
        same = np.zeros(len(vpn), bool)
        if len(before):
            same = (before[place] == vpn) & (was[place] == node)
        vpn, node = vpn[~same], node[~same]
        if not len(vpn):
            return []
        starts = np.concatenate([[0], np.flatnonzero((np.diff(vpn) != 1) | np.diff(node).astype(bool)) + 1])
        lengths = np.diff(np.concatenate([starts, [len(vpn)]]))
        return [[int(vpn[i]), int(n), int(node[i])] for i, n in zip(starts, lengths, strict=True)]
