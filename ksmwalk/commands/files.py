"""Files that a command writes: whole, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from pathlib import Path

from ..errors import KsmwalkError
from . import report


def check(option: str, path: str, endings: tuple[str, ...] = ()) -> str:
    """The ending of a file that is to be written, in small letters; before anything is read or made.

    Raises KsmwalkError, naming the option, where the file can't be written as it is called.
    """
    name = f"{option} {report.printable(path)}"
    ending = os.path.splitext(path)[1].lower()
    if endings and ending not in endings:
        raise KsmwalkError(f"{name}: the name must end in {', '.join(endings[:-1])} or {endings[-1]}")
    if not path or os.path.isdir(path):
        raise KsmwalkError(f"{name}: is a directory" if path else f"{option}: the name of a file is needed")
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise KsmwalkError(f"{name}: there is no directory {report.printable(folder)}")
    return ending


def write_whole(path: str, data: bytes) -> None:
    """Write a file so that there is the old one or the new one at any moment.

    Raises OSError, naming `path`, where it can't be written; what was there before is as it was.
    """
    target = Path(path)
    if target.exists() and not target.is_file():
        # a device or a pipe is written to, not replaced
        target.write_bytes(data)
        return
    target = Path(os.path.realpath(target))  # a link stays one
    made = None
    try:
        fd, made = tempfile.mkstemp(prefix=f".{target.name[:100]}.", dir=target.parent)
        with open(fd, "wb") as file:
            file.write(data)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(made, target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~umask)
        os.replace(made, target)
    except BaseException as error:
        if made is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(made)
        if isinstance(error, OSError):
            # the name that the user gave, not the one made up here
            raise OSError(error.errno or errno.EIO, error.strerror, path) from None
        raise
