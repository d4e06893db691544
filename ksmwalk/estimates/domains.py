"""Merging within a domain only: a process, a container, a user."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..signatures import U64Array
from ..sources.contents import MemoryCapture
from ..sources.keys import UNKNOWN
from ..sources.reading import ProcessCapture
from .before import unmerged

DOMAINS = ("all", "user", "container", "process")


def domain_of(one: ProcessCapture, number: int, domain: str) -> object:
    """What a process merges within: equal values share.

    Parameters
    ----------
    one : ProcessCapture
    number : int
        Index of the process in its capture.
    domain : {"all", "user", "container", "process"}

    Returns
    -------
    object
    """
    if domain == "user":
        return one.identity.uid
    if domain == "container":
        return one.identity.container
    return number if domain == "process" else None


def in_domains(capture: MemoryCapture, domain: str, notes: list[str]) -> MemoryCapture:
    """The same capture with contents that are equal within a domain only; pages of zeros stay equal for all.

    Parameters
    ----------
    capture : MemoryCapture
    domain : {"all", "user", "container", "process"}
    notes : list of str
        Gets what has to be said about it.

    Returns
    -------
    MemoryCapture
        Keys are in the order of contents still, those of equal contents in that of domains. Nothing is merged yet.
    """
    if domain == "all":
        return capture
    capture = unmerged(capture)  # what is merged by now may be so across domains
    numbers: dict[object, int] = {}
    of = [numbers.setdefault(domain_of(one, i, domain), len(numbers)) for i, one in enumerate(capture.processes)]
    width = np.uint64(max(1, len(numbers)))

    def salted(key: U64Array, number: int) -> U64Array:
        fixed = (key == 0) | (key == np.uint64(UNKNOWN))
        return np.where(fixed, key, key * width + np.uint64(number))

    some = [
        dataclasses.replace(one, key=None if one.key is None else salted(one.key, number))
        for one, number in zip(capture.processes, of, strict=True)
    ]
    what = {"user": "users", "container": "containers and what runs outside them", "process": "processes"}[domain]
    notes.append(
        f"Merging within each of {len(numbers)} {what} only, which no kernel does: pages of zeros are one content for all, "
        f"and a frame that fork shares between two of them counts for the first."
    )
    return dataclasses.replace(capture, processes=some, nr_contents=capture.nr_contents * int(width))
