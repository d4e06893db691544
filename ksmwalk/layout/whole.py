"""A file that is written whole or not at all: whoever reads it finds the old one or the new one."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator

_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)  # what a file system without hard links says


def write_whole(
    path: str | os.PathLike[str], data: bytes | Iterable[bytes], *, follow: bool = True, new: bool = False
) -> None:
    """Put a file in the place of another at once.

    A file that was there keeps its permissions; a new one gets what the umask leaves of 0o666.

    Parameters
    ----------
    path : path
    data : bytes, or iterable of bytes
        All of it, or piece by piece. An error that the pieces raise comes out as it is.
    follow : bool
        A symbolic link stays one, and what it leads to is replaced; a device or a pipe is written to. Else both are refused.
    new : bool
        What is there already stays: a file, or a link, is a FileExistsError.

    Raises
    ------
    OSError
        It can't be written, naming `path`. What was there is as it was, and nothing else is left.
    """
    name = os.fspath(path)
    theirs: list[Exception] = []
    pieces = [data] if isinstance(data, bytes) else _noted(data, theirs)
    try:
        if new:
            follow = False
            if os.path.lexists(name):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        if follow and os.path.exists(name) and not os.path.isfile(name):
            with open(name, "wb") as there:
                there.writelines(pieces)
            return
        target = os.path.realpath(name) if follow else name
        if not os.path.basename(target):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        # the directory is held on to: nobody else can put another one in its place meanwhile
        at = os.open(os.path.dirname(target) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _write(at, os.path.basename(target), pieces, new)
        finally:
            os.close(at)
    except OSError as error:
        if any(error is one for one in theirs):
            raise
        # the name that the user gave, not the one made up here
        raise OSError(error.errno or errno.EIO, error.strerror, name) from None


def _noted(pieces: Iterable[bytes], errors: list[Exception]) -> Iterator[bytes]:
    """The same pieces; an error that they raise is noted."""
    try:
        yield from pieces
    except Exception as error:
        errors.append(error)
        raise


def _write(at: int, name: str, pieces: Iterable[bytes], fresh: bool) -> None:
    """The same in an open directory."""
    mode = None
    with contextlib.suppress(FileNotFoundError):
        mode = os.stat(name, dir_fd=at, follow_symlinks=False).st_mode
    if mode is not None and not stat.S_ISREG(mode):
        what = "a symbolic link, which is not followed" if stat.S_ISLNK(mode) else "not a regular file"
        raise OSError(errno.EINVAL, f"there is {what}")
    # not ending as what a collector of files reads
    new = f".{name[:80]}.{secrets.token_hex(8)}.new"
    try:
        made = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=at)
        with open(made, "wb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode & 0o777)
            file.writelines(pieces)
        if fresh:
            _name(at, new, name)
        else:
            os.replace(new, name, src_dir_fd=at, dst_dir_fd=at)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(new, dir_fd=at)
        raise


def _name(at: int, new: str, name: str) -> None:
    """Give a file in an open directory a name that no other has."""
    try:
        os.link(new, name, src_dir_fd=at, dst_dir_fd=at)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with contextlib.suppress(FileNotFoundError):
            os.stat(name, dir_fd=at, follow_symlinks=False)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        os.replace(new, name, src_dir_fd=at, dst_dir_fd=at)
    else:
        os.unlink(new, dir_fd=at)
