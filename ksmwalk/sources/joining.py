"""Captures of several machines, files or moments put into one, their contents made comparable by keyed hashes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import KsmwalkError
from ..ksm import sysfs
from ..signatures import I64Array, U64Array
from .contents import MemoryCapture
from .keys import UNKNOWN
from .memory import renumbered
from .reading import ProcessCapture

_BLOCK = np.uint64(9)
# What a machine is doing is no setting of it.
_TUNABLES = frozenset(sysfs.KNOBS) - {"run"}


class NotComparable(KsmwalkError, ValueError):
    """Captures of which nobody can say which contents are equal."""


def join(captures: Sequence[MemoryCapture], names: Sequence[str] | None = None) -> MemoryCapture:
    """Put captures into one, as if all their processes ran on one machine.

    Parameters
    ----------
    captures : sequence of MemoryCapture
        One, or several that were made with the same secret.
    names : sequence of str, optional
        What each is called in `sources` of the result; by default its hostname, and a number where two have the same.

    Returns
    -------
    MemoryCapture
        A capture alone comes back as it is, with its name.

    Raises
    ------
    NotComparable
        Captures without keyed hashes, or with those of different secrets.
    ValueError
        No capture; not as many names.

    Models: nothing of Linux. Differs: frames of two captures are never the same, those of one machine neither; the order
    of contents is not that of their bytes; tunables are those of the machines if these agree, else the kernel's defaults.
    """
    if not captures:
        raise ValueError("no capture to join")
    called = _names(captures) if names is None else list(names)
    if len(called) != len(captures):
        raise ValueError(f"{len(called)} names for {len(captures)} captures")
    if len(captures) == 1:
        return dataclasses.replace(captures[0], sources=captures[0].sources or called * len(captures[0].processes))
    for one, name in zip(captures, called, strict=True):
        if one.digests is None:
            raise NotComparable(
                f"{name}: captured without --secret, so its contents can't be compared with others; capture all with one secret"
            )
        if (one.digests[0] != captures[0].digests[0]).any():  # type: ignore[index] # looked at in the round before
            raise NotComparable(f"{name}: captured with another secret than {called[0]}: their contents can't be compared")
    digests, numbers = _common([one.digests for one in captures if one.digests is not None])
    processes: list[ProcessCapture] = []
    sources: list[str] = []
    blocks = np.uint64(0)
    for one, name, number in zip(captures, called, numbers, strict=True):
        parts = [_keyed(part, number) for part in renumbered(one.processes)]
        parts = [_moved(part, blocks) for part in parts]
        blocks = max([blocks, *(part.pfn.max() >> _BLOCK for part in parts if part.pfn is not None and len(part.pfn))])
        processes += parts
        sources += one.sources or [name] * len(parts)
    notes = list(dict.fromkeys(itertools.chain.from_iterable(one.notes for one in captures)))
    machine, more = _machines(captures, called)
    return MemoryCapture(
        processes,
        len(digests),
        ordered=False,
        samples=min(one.samples for one in captures),
        seconds_between=min(one.seconds_between for one in captures),
        machine=machine,
        digests=digests,
        sources=sources,
        notes=notes + more,
    )


def _names(captures: Sequence[MemoryCapture]) -> list[str]:
    """The hostname of each, or its kind, told apart by numbers."""
    plain = [str(one.machine.get("hostname") or one.machine.get("kind") or "capture") for one in captures]
    return [f"{name} ({number})" if plain.count(name) > 1 else name for number, name in enumerate(plain, 1)]


def _common(digests: Sequence[U64Array]) -> tuple[U64Array, list[U64Array]]:
    """All different digests, the zero page's first, and for each capture the number of each of its own among them."""
    every = np.concatenate(digests)
    order = _order(every)
    ordered = every[order]
    new = np.ones(len(every), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    rank = np.empty(len(every), np.uint64)
    rank[order] = np.cumsum(new).astype(np.uint64) - np.uint64(1)
    # key 0 stays that of zeros: it goes to the front, and what was before it moves up by one
    zero = rank[0]
    rank = np.where(rank == zero, np.uint64(0), rank + (rank < zero).astype(np.uint64))
    found = np.empty((int(new.sum()), 2), np.uint64)
    found[rank] = every
    return found, np.split(rank, np.cumsum([len(some) for some in digests])[:-1])


def _order(digests: U64Array) -> I64Array:
    """Digests in ascending order."""
    # they come in runs that are in order already, which a stable sort puts together
    order = np.argsort(digests[:, 0], kind="stable")
    high, low = digests[order, 0], digests[order, 1]
    if ((high[1:] == high[:-1]) & (low[1:] != low[:-1])).any():
        return np.lexsort((digests[:, 1], digests[:, 0]))
    return order


def _keyed(one: ProcessCapture, number: U64Array) -> ProcessCapture:
    """The process with its keys changed to numbers that hold for all."""
    if one.key is None:
        return one
    known = one.key != np.uint64(UNKNOWN)
    key = np.full(len(one.key), UNKNOWN, np.uint64)
    key[known] = number[one.key[known]]
    return dataclasses.replace(one, key=key)


def _moved(one: ProcessCapture, blocks: np.uint64) -> ProcessCapture:
    """The process with its frames above those of the captures before."""
    if one.pfn is None:
        return one
    return dataclasses.replace(one, pfn=one.pfn + (blocks << _BLOCK), folios=one.folios + int(blocks << _BLOCK))


def _machines(captures: Sequence[MemoryCapture], names: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """What is said of the machines together, and notes on it."""
    notes = []
    parts: list[dict[str, Any]] = []
    for one, name in zip(captures, names, strict=True):
        parts += one.machine.get("machines") or [{**one.machine, "name": name}]
    kinds = {part.get("kind", "") for part in parts}
    knobs = [part["ksm"] for part in parts if part.get("ksm")]
    tunables = [{name: text for name, text in some.items() if name in _TUNABLES} for some in knobs]
    machine: dict[str, Any] = {
        "kind": kinds.pop() if len(kinds) == 1 else "several",
        "mem_total": sum(part.get("mem_total", 0) for part in parts),
        "machines": parts,
    }
    if tunables and all(some == tunables[0] for some in tunables):
        machine["ksm"] = tunables[0]
    elif tunables:
        notes.append("The machines differ in the tunables of their KSM: the kernel's defaults count.")
    notes.append("Several captures are joined by keyed hashes: frames shared between two of them don't count as one.")
    return machine, notes

