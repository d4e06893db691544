"""What a command is given to look at: processes, captures, cores, images of guests; all of it as one capture."""

from __future__ import annotations

import argparse
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from ..drawing.words import printable
from ..proc import processes
from ..sources.captures import is_capture, open_capture
from ..sources.contents import MemoryCapture, capture_memory
from ..sources.joining import NotComparable, join
from ..sources.keys import Progress
from .choosing import choose
from .codes import complain

_ELF = b"\x7fELF"
_LEAST_SECRET, _MOST_SECRET = 16, 64
_LONGEST_SECRET = 1 << 20


def add_source_arguments(parser: argparse.ArgumentParser, *, captures: bool = True) -> None:
    """Add what `memory_of` asks for.

    Parameters
    ----------
    parser : ArgumentParser
    captures : bool
        Whether captures, cores and images can be given, and not only processes.
    """
    help_ = "a PID, a name, or a pattern of names such as 'python*'"
    if captures:
        help_ += "; a directory that `ksmwalk capture` made, an ELF core, a guest's memory"
    parser.add_argument("sources", nargs="*", metavar="SOURCE" if captures else "PROCESS", help=help_)
    parser.add_argument("--all", action="store_true", help="every process that may be read")
    parser.add_argument("--samples", type=int, default=2, metavar="N", help="how often each page is read (default 2)")
    parser.add_argument(
        "--interval", type=float, default=2.0, metavar="S", help="seconds from one reading to the next (default 2)"
    )
    parser.add_argument("--stop", action="store_true", help="hold the processes still while they are read")
    parser.add_argument(
        "--secret", metavar="FILE", help="make contents comparable with captures made with the same secret, of 16 bytes or more"
    )
    if captures:
        parser.add_argument("--image", action="store_true", help="files that are no ELF are guests' memory, byte by byte")


def add_command_argument(parser: argparse.ArgumentParser) -> None:
    """Add --no-command, which `without_commands` carries out."""
    parser.add_argument("--no-command", action="store_true", help="leave command lines out: they can hold passwords")


def without_commands(capture: MemoryCapture) -> MemoryCapture:
    """The same without the words that processes were started with.

    Parameters
    ----------
    capture : MemoryCapture
    """
    some = [replace(one, identity=replace(one.identity, command=())) for one in capture.processes]
    return replace(capture, processes=some)


@dataclass(slots=True)
class Given:
    """The words of a command line, sorted."""

    pids: list[int] = field(default_factory=list)
    captures: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


def memory_of(args: argparse.Namespace, progress: Progress = lambda what, done, total: None) -> MemoryCapture:
    """Read everything that is meant, as one capture.

    Parameters
    ----------
    args : Namespace
        As `add_source_arguments` has it.
    progress : callable of (str, int, int)
        What is done, how far, of how many.

    Returns
    -------
    MemoryCapture
        With `sources` where there are several.

    Raises
    ------
    ValueError
        Nothing is given, or a word that means nothing; a secret that is none.
    NotComparable
        A capture that was made without a secret, beside others.
    BadCapture, BadImage, NothingToRead, OSError
        As reading them has it.
    """
    secret = read_secret(args.secret) if args.secret is not None else None
    what = sort_words(args.sources, everybody=args.all, image=getattr(args, "image", False))
    several = len(what.captures) + bool(what.files) + bool(what.pids) > 1
    kept = [open_capture(path) for path in what.captures]
    for one, path in zip(kept, what.captures, strict=True):
        if several and one.digests is None:
            # before anything is read for long
            raise NotComparable(
                f"{path}: captured without --secret, so its contents can't be compared with others; capture all with one secret"
            )
    if kept and secret is None and (what.files or what.pids):
        raise NotComparable(f"{what.captures[0]}: to compare it with what is read now, name its secret: --secret FILE")
    if several and secret is None:
        secret = secrets.token_bytes(32)  # good for this one time
    parts, names = list(kept), [*what.captures]
    if what.files:
        parts.append(_read_files(what.files, secret, progress))
        names.append("files")
    if what.pids:
        parts.append(
            capture_memory(
                what.pids, samples=args.samples, interval=args.interval, stop=args.stop, secret=secret, progress=progress
            )
        )
        names.append("this machine")
    return join(parts, names) if several else parts[0]


def sort_words(words: Sequence[str], *, everybody: bool = False, image: bool = False) -> Given:
    """Tell processes, captures and files apart.

    Parameters
    ----------
    words : sequence of str
        A number is a process; a word with a slash, a capture's directory, an ELF file is itself; all others are names.
    everybody : bool
        All processes, besides.
    image : bool
        Files that are no ELF are images, not names of processes.

    Returns
    -------
    Given

    Raises
    ------
    ValueError, OSError
        A word that means nothing.
    """
    if not words and not everybody:
        raise ValueError("nothing to look at: name processes (PIDs, names, patterns), captures or files, or say --all")
    result = Given()
    called = []
    for word in words:
        if _is_number(word):
            called.append(word)
        elif is_capture(word):
            result.captures.append(word)
        elif _is_file(word, image):
            result.files.append(word)
        else:
            called.append(word)
    chosen = choose(called)
    result.pids, missing = chosen.pids, chosen.unknown
    if missing:
        hint = ", and there is no capture or core of that name"
        if _is_plain(missing[0]):
            hint = "; the file of that name is no ELF file: if it is a guest's memory byte by byte, say --image"
        raise ValueError(f"no process is called {missing[0]}{hint}")
    if everybody:
        every = [pid for pid in processes.every_pid() if processes.has_memory(pid)]
        result.pids = list(dict.fromkeys([*result.pids, *every]))
    return result


def _is_plain(word: str) -> bool:
    """Whether there is a regular file of that name."""
    try:
        return stat.S_ISREG(os.stat(word).st_mode)
    except (OSError, ValueError):
        return False


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) < 20


def _is_file(word: str, image: bool) -> bool:
    """Whether a word is a file of memory; an error where it can be nothing else and is none."""
    path = "/" in word
    try:
        mode = os.stat(word).st_mode
    except (OSError, ValueError):
        if path:
            raise
        return False
    if stat.S_ISDIR(mode):
        if path and not os.access(word, os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), word)
        if path:
            raise ValueError(f"{word}: a directory, but no capture (it has no meta.json)")
        return False
    if image or not stat.S_ISREG(mode):
        return image or path  # what reads them refuses what is no regular file, without opening it
    with open(word, "rb") as file:
        if file.read(len(_ELF)) == _ELF:
            return True
    if path:
        raise ValueError(f"{word}: no ELF file; if it is a guest's memory byte by byte, say --image")
    return False


def _read_files(paths: Sequence[str], secret: bytes | None, progress: Progress) -> MemoryCapture:
    """Cores and images, their contents numbered together."""
    from ..sources.offline import capture_files

    result = capture_files(paths, secret=secret, progress=progress)
    result.sources = list(paths)
    return result


def read_secret(path: str, warn: Callable[[str], None] = lambda text: complain("ksmwalk", text)) -> bytes:
    """The key in a file, as BLAKE2b takes it: what is longer than 64 bytes is hashed.

    Parameters
    ----------
    path : str
    warn : callable of str
        Told where others than the owner may read the file.

    Raises
    ------
    ValueError
        Fewer than 16 bytes, or more than a secret has.
    OSError
        It can't be read.
    """
    with open(path, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        raw = file.read(_LONGEST_SECRET + 1)
    if len(raw) < _LEAST_SECRET:
        raise ValueError(
            f"{path}: {len(raw)} bytes, too few for a secret, which has {_LEAST_SECRET}: `head -c 32 /dev/urandom` makes one"
        )
    if len(raw) > _LONGEST_SECRET:
        raise ValueError(f"{path}: more than {_LONGEST_SECRET} bytes: no secret")
    if stat.S_ISREG(mode) and mode & 0o077:
        warn(f"{printable(path)}: others than its owner may read this secret (chmod 600)")
    return raw if len(raw) <= _MOST_SECRET else hashlib.blake2b(raw).digest()
