"""The kernel that the model is to be, as `--kernel VERSION` names it."""

from __future__ import annotations

from .. import kernels
from .codes import complain


def version_of(who: str, asked: str | None) -> str | None:
    """The version of the profile for a kernel; None where none was asked for. What the profile leaves open is said.

    Raises ValueError, naming the option, where there is no such kernel.
    """
    if asked is None:
        return None
    try:
        found = kernels.find(asked)
    except ValueError as error:
        raise ValueError(f"--kernel: {error}") from None
    if found.note:
        complain(who, found.note)
    return found.profile.version
