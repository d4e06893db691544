"""What a command is given to look at: processes by number, name or pattern, read with their contents."""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
from collections.abc import Callable

from ..proc import processes
from ..sources.contents import MemoryCapture, capture_memory


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a command the arguments that `memory_of` goes by."""
    parser.add_argument("sources", nargs="*", metavar="SOURCE", help="a PID, a name, or a pattern of names such as 'python*'")
    parser.add_argument("--all", action="store_true", help="every process that may be read")
    parser.add_argument("--samples", type=int, default=2, metavar="N", help="how often each page is read (default 2)")
    parser.add_argument("--interval", type=float, default=2.0, metavar="SECONDS", help="from one reading to the next (default 2)")
    parser.add_argument("--stop", action="store_true", help="hold the processes still while they are read")


def memory_of(args: argparse.Namespace, progress: Callable[[str, int, int], None]) -> MemoryCapture:
    """Read what the arguments ask for, as one capture."""
    if bool(args.sources) == args.all:
        raise ValueError("either sources (PIDs, names, patterns) or --all is needed")
    pids = _with_memory() if args.all else _wanted(args.sources)
    return capture_memory(pids, samples=args.samples, interval=args.interval, stop=args.stop, progress=progress)


def _with_memory() -> list[int]:
    """Everybody but the kernel's own threads, which have none, and this process."""
    found = []
    for pid in processes.every_pid():
        with contextlib.suppress(OSError):
            if processes.command_line(pid):
                found.append(pid)
    return found


def _wanted(words: list[str]) -> list[int]:
    """The processes that are meant, each once."""
    pids: dict[int, None] = {}
    for word in words:
        if word.isascii() and word.isdigit() and len(word) < 10:
            pids[int(word)] = None
            continue
        matching = [pid for pid, called in _names() if any(fnmatch.fnmatchcase(name, word) for name in called)]
        pids.update(dict.fromkeys(matching))
        if not matching:
            raise ValueError(f"no process is called {word}")
    return list(pids)


def _names() -> list[tuple[int, set[str]]]:
    """What each process is called: by the kernel, in at most 15 bytes, and by the file in its command line."""
    found = []
    for pid in processes.every_pid():
        with contextlib.suppress(OSError):
            words = processes.command_line(pid)
            found.append((pid, {processes.comm(pid), *(word.rsplit("/", 1)[-1] for word in words[:1])}))
    return found
