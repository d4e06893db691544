"""Where a command may write a file: said before anything is read or made."""

from __future__ import annotations

import os

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
