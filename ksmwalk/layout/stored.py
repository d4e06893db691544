"""Arrays kept in a directory: one .npy file each, and format.json, which says what they are and in which version.

Written whole or not at all: into a directory beside the one asked for, which then takes its place. Symbolic links are
not followed, and what is read is looked at before memory is reserved for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import math
import os
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..gate import as_flag, shown

FORMAT = "format.json"
_LONGEST_FORMAT = 1 << 16  # bytes
_AT_ONCE = 1 << 24  # bytes in one write: between two, Ctrl-C is heard
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Form:
    """How a directory of arrays differs from the plain one.

    Attributes
    ----------
    about : str
        The file that says what the arrays are.
    longest : int
        Bytes that file may have.
    private : bool
        Whether the directory and its files are for their owner alone, whatever the umask and what was there before.
    """

    about: str = FORMAT
    longest: int = _LONGEST_FORMAT
    private: bool = False


PLAIN = Form()


@dataclass(frozen=True, slots=True)
class Pieces:
    """An array in one dimension that is written piece by piece, and never stands in memory as a whole."""

    dtype: np.dtype[Any]
    pieces: Sequence[np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(map(len, self.pieces)),)


def check_version(found: object, kind: str, version: int) -> None:
    """Refuse what is no `kind` of a version that is read.

    Parameters
    ----------
    found : dict
        With `kind` and `version`, as they were kept.
    kind : str
    version : int
        The newest version that can be read; all from 1 on can.

    Raises
    ------
    ValueError
        Naming what was found.
    """
    if not isinstance(found, Mapping) or not {"kind", "version"} <= set(found):
        raise ValueError(f"no kind and version: not a {kind}, or kept before there were versions, which is not read any more")
    if found["kind"] != kind:
        raise ValueError(f"kind {found['kind']!r}: must be {kind!r}")
    number = found["version"]
    if type(number) is not int or number < 1:
        raise ValueError(f"version {number!r}: no version of a {kind}")
    if number > version:
        raise ValueError(f"version {number}: of a newer ksmwalk than this, which reads a {kind} up to version {version}")


# ------------------------------------------------------------------ writing


def write(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray | Pieces],
    kind: str,
    version: int,
    overwrite: bool,
    *,
    more: Mapping[str, Any] | None = None,
    form: Form = PLAIN,
) -> None:
    """Write arrays into a directory.

    Parameters
    ----------
    path : path
        A directory that is not there yet, or an empty one; with `overwrite` one that holds something written so.
    arrays : dict of str to ndarray or Pieces
    kind : str
    version : int
    overwrite : bool
    more : dict, optional
        What else stands in the file that says what the arrays are: plain data.
    form : Form

    Raises
    ------
    FileExistsError
        Something is there already.
    ValueError
        `more` is too long to be read again.
    OSError
        A symbolic link (ELOOP), no room, no permission; what was there is still there.
    """
    overwrite = as_flag(overwrite, "overwrite")
    about = {"kind": kind, "version": version, "arrays": list(arrays), **(more or {})}
    text = (json.dumps(about, indent=1) + "\n").encode()
    if len(text) > form.longest:
        raise ValueError(f"{form.about} would have {len(text)} bytes, more than the {form.longest} that are read again")
    path = Path(os.path.abspath(path))
    there = check_place(path, overwrite, form)
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        made.mkdir(mode=0o700 if form.private else 0o777)
        if path.is_dir() and not form.private:
            os.chmod(made, stat.S_IMODE(path.stat().st_mode))
        _fill(made, arrays, text, form)
        _put_in_place(made, path, there)
    except BaseException as error:
        _remove(made)
        if isinstance(error, OSError) and isinstance(error.filename, str) and error.filename.startswith(str(made)):
            # the place that was asked for, not the one made up here
            raise OSError(error.errno or errno.EIO, error.strerror, str(path) + error.filename[len(str(made)):]) from None
        raise
    _sync(path.parent)


def check_place(path: str | os.PathLike[str], overwrite: bool, form: Form = PLAIN) -> bool:
    """See that something can be written to a place, and whether that replaces what is there.

    Parameters
    ----------
    path, overwrite, form
        As for `write`.

    Raises
    ------
    FileExistsError, OSError
        As `write`.
    """
    path = Path(os.path.abspath(path))
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISLNK(mode):
        raise OSError(errno.ELOOP, f"{path}: a symbolic link, which is not followed")
    if not stat.S_ISDIR(mode):
        raise FileExistsError(errno.EEXIST, f"{path}: not a directory")
    if os.path.samefile(path, os.curdir):
        raise OSError(errno.EBUSY, f"{path}: the working directory, which can't be replaced; name another place")
    names = os.listdir(path)
    if not names:
        return False
    if not overwrite:
        raise FileExistsError(errno.EEXIST, f"{path}: not empty; overwrite=True would replace it")
    if found := _not_ours(path, names, form):
        raise FileExistsError(errno.EEXIST, f"{path}: not written by ksmwalk ({found}), so not overwritten")
    return True


def _not_ours(path: Path, names: list[str], form: Form) -> str | None:
    """What shows that a directory with files of these names is none that `write` made; None: it is."""
    strange = sorted(name for name in names if name != form.about and not name.endswith(".npy"))
    if strange or form.about not in names:
        return strange[0] if strange else f"no {form.about}"
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        about = _about(path, folder, form)
    except (OSError, ValueError) as err:
        return str(err)
    finally:
        os.close(folder)
    arrays = about.get("arrays")
    if not str(about.get("kind")).startswith("saved ") or not isinstance(arrays, list):
        return f"{form.about} of something else"
    known = {form.about, *(f"{name}.npy" for name in arrays)}
    return next((name for name in sorted(names) if name not in known), None)


def _fill(made: Path, arrays: Mapping[str, np.ndarray | Pieces], about: bytes, form: Form) -> None:
    name = form.about
    mode = 0o600 if form.private else 0o666
    try:
        with _new(made / name, mode) as file:
            file.write(about)
        for name, array in arrays.items():
            with _new(made / f"{name}.npy", mode) as file:
                _write_array(file, array)
    except OSError as err:
        raise OSError(err.errno, f"{made.parent}: {name} can't be written: {os.strerror(err.errno or 0)}") from None
    # All are written by now, so that waiting for the disk once is nearly enough.
    for name in os.listdir(made):
        _sync(made / name)
    _sync(made)


def _write_array(file: IO[bytes], array: np.ndarray | Pieces) -> None:
    pieces = array.pieces if isinstance(array, Pieces) else [np.ascontiguousarray(array)]
    header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(file, header)
    for piece in pieces:
        raw = np.ascontiguousarray(piece).reshape(-1).view(np.uint8) if piece.size else np.empty(0, np.uint8)
        for i in range(0, len(raw), _AT_ONCE):
            file.write(raw[i : i + _AT_ONCE].data)


def _new(path: Path, mode: int) -> IO[bytes]:
    return open(os.open(path, _CREATE, mode), "wb")


def _put_in_place(made: Path, path: Path, there: bool) -> None:
    if not there:
        os.rename(made, path)  # an empty directory gives way
        return
    if _exchange(made, path):
        _remove(made)  # what was there
        return
    old = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    os.rename(path, old)
    try:
        os.rename(made, path)
    except BaseException:
        os.rename(old, path)
        raise
    _remove(old)


def _exchange(one: Path, other: Path) -> bool:
    """Give two places each other's names at one stroke, so that there is no moment without; False: it can't be done."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    names = os.fsencode(one), os.fsencode(other)
    return renameat2 is not None and renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0


def _remove(path: Path) -> None:
    """Remove a directory of files, as far as that goes; links in it are not followed."""
    with contextlib.suppress(OSError):
        for name in os.listdir(path):
            os.unlink(path / name)
        os.rmdir(path)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# ------------------------------------------------------------------ reading


class Stored:
    """An array in a file: what its header says, which is true to the file's size, until `read` fetches the content.

    Attributes
    ----------
    where : str
        The file.
    dtype : dtype
    shape : tuple of int
    """

    where: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def __init__(self, where: str, file: IO[bytes]):
        self.where, self._file = where, file
        try:
            major = np.lib.format.read_magic(file)
            if major == (1, 0):
                self.shape, fortran, self.dtype = np.lib.format.read_array_header_1_0(file)
            elif major == (2, 0):
                self.shape, fortran, self.dtype = np.lib.format.read_array_header_2_0(file)
            else:
                raise ValueError(f"version {major} of the .npy format")
        except OSError:
            raise
        except Exception as err:  # numpy takes a header apart with the interpreter's own tools, which complain in many ways
            words = str(err)  # numpy's may quote all of what it took for a header
            raise ValueError(f"{where}: no .npy file: {words[:100]}{'...' if len(words) > 100 else ''}") from None
        if fortran or self.dtype.hasobject or any(type(n) is not int or n < 0 for n in self.shape):
            raise ValueError(f"{where}: dtype {self.dtype}, shape {self.shape}: not of an array kept by ksmwalk")
        size = math.prod(self.shape) * self.dtype.itemsize
        have = os.fstat(file.fileno()).st_size - file.tell()
        if size != have:
            raise ValueError(f"{where}: {have} bytes of content, must be {size} for shape {self.shape} of {self.dtype}")

    def read(self, out: np.ndarray | None = None) -> np.ndarray:
        """The content, read into a contiguous array of this dtype and shape."""
        if out is None:
            out = np.empty(self.shape, self.dtype)
        left = out.reshape(-1).view(np.uint8).data if out.size else memoryview(b"")
        while left:
            n = self._file.readinto(left)  # type: ignore[attr-defined] # opened unbuffered: FileIO has it, IO is not said to
            if not n:
                raise ValueError(f"{self.where}: ends too early")
            left = left[n:]
        return out

    def map(self) -> np.ndarray:
        """The content, read-only and fetched as it is looked at: for files that nobody changes meanwhile."""
        if not math.prod(self.shape):
            return np.empty(self.shape, self.dtype)
        at = self._file.tell()
        return np.asarray(np.memmap(self._file, self.dtype, "r", at, self.shape))


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], kind: str, version: int, allowed: set[str]) -> Iterator[dict[str, Stored]]:
    """The arrays that `write` left in a directory, to be read while this is open.

    Parameters
    ----------
    path : path
        The directory. It may be reached through a symbolic link; the files in it may not be one.
    kind : str
    version : int
        As for `check_version`.
    allowed : set of str
        Names that such a directory may have arrays of.

    Raises
    ------
    FileNotFoundError
        A file is missing.
    ValueError
        A file holds something else; named.
    OSError
        A file can't be opened, or is none (a link, a device, a pipe).
    """
    with opened_with_more(path, kind, version, allowed, PLAIN) as (files, _):
        yield files


@contextlib.contextmanager
def opened_with_more(
    path: str | os.PathLike[str], kind: str, version: int, allowed: set[str], form: Form
) -> Iterator[tuple[dict[str, Stored], dict[str, Any]]]:
    """The same, and what else `write` was given to be kept, which is not looked at here.

    Parameters, errors: as for `opened`; `form` as for `write`.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(errno.ENOENT, f"{path}: no directory of a {kind}")
    with contextlib.ExitStack() as stack:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, folder)
        about = _about(path, folder, form)
        try:
            check_version(about, kind, version)
        except ValueError as err:
            raise ValueError(f"{path / form.about}: {err}") from None
        names = about.get("arrays")
        if not isinstance(names, list) or not all(isinstance(name, str) and name in allowed for name in names):
            raise ValueError(f"{path / form.about}: arrays {shown(names)}: not those of a {kind}")
        files = {
            name: Stored(str(path / f"{name}.npy"), stack.enter_context(_file(path, folder, f"{name}.npy"))) for name in names
        }
        yield files, {name: value for name, value in about.items() if name not in ("kind", "version", "arrays")}


def _about(path: Path, folder: int, form: Form) -> dict[str, Any]:
    """What the arrays of a directory are, as they say themselves."""
    with _file(path, folder, form.about) as file:
        raw = b""
        # one call need not give all of it
        while len(raw) <= form.longest and (some := file.read(form.longest + 1 - len(raw))):
            raw += some
    if len(raw) > form.longest:
        raise ValueError(f"{path / form.about}: longer than the {form.longest} bytes that it may have")
    try:
        about = json.loads(raw)
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict):
        raise ValueError(f"{path / form.about}: not a JSON object")
    return about


def _file(path: Path, folder: int, name: str) -> IO[bytes]:
    try:
        fd = os.open(name, _READ, dir_fd=folder)
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, f"{path / name}: missing") from None
    except OSError as err:
        if err.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, f"{path / name}: a symbolic link, which is not followed") from None
        raise OSError(err.errno, f"{path / name}: {os.strerror(err.errno or 0)}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, f"{path / name}: not a regular file")
    return open(fd, "rb", buffering=0)
