"""Which processes a command is about: by number, by name, by a pattern of names."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..proc import processes
from ..sources.captures import is_capture


@dataclass(slots=True)
class Chosen:
    """The processes that are meant.

    Attributes
    ----------
    pids : list of int
        Each once.
    named : set of int
        Those that were called by their number.
    unknown : list of str
        Words that no process is called.
    """

    pids: list[int] = field(default_factory=list)
    named: set[int] = field(default_factory=set)
    unknown: list[str] = field(default_factory=list)


def choose(words: Iterable[str]) -> Chosen:
    """Find the processes that are meant by PIDs, names and patterns of names.

    Parameters
    ----------
    words : iterable of str

    Returns
    -------
    Chosen
    """
    pids: dict[int, None] = {}
    result = Chosen()
    names = None
    for word in words:
        if word.isascii() and word.isdigit() and len(word) < 20:
            pids[int(word)] = None
            result.named.add(int(word))
            continue
        names = names or _names()
        matching = [pid for pid, called in names if any(fnmatch.fnmatchcase(name, word) for name in called)]
        pids.update(dict.fromkeys(matching))
        if not matching:
            result.unknown.append(word)
    result.pids = list(pids)
    return result


def no_such(word: str, command: str) -> str:
    """What there is to say of a word that no process is called, to a command that reads live ones alone."""
    if is_capture(word):
        return f"{word} is a capture: {command} reads live processes"
    return f"no process is called {word}"


def _names() -> list[tuple[int, set[str]]]:
    """What each process is called: by the kernel, in at most 15 bytes, and by the file in its command line."""
    found = []
    for pid in processes.every_pid():
        try:
            words = processes.command_line(pid)
            found.append((pid, {processes.comm(pid), *(word.rsplit("/", 1)[-1] for word in words[:1])}))
        except OSError:
            continue  # gone by now
    return found
