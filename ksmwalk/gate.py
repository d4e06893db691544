"""The gate for what comes from outside: one function for integers, one for switches, one for arrays; every door uses them.

Nothing is cut, wrapped or guessed: a float is no integer, a negative number is no unsigned one. The error names the
argument and the value.
"""

from __future__ import annotations

import operator
import reprlib
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from .signatures import AnyArray, U64Array

__all__ = ["MAX_U64", "as_array", "as_flag", "as_int", "as_row", "shown"]

MAX_U64 = (1 << 64) - 1
_Int = TypeVar("_Int", bound="np.integer[Any]")
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother = 2, 60, 60


def counted(number: int, noun: str, one: str = "", several: str = "") -> str:
    """How many of something: `1 page`, `20,551 pages`, with what they do behind it.

    Parameters
    ----------
    number : int
    noun : str
        Of one.
    one, several : str
        The verb, and what follows it, for one and for another number; the same where only one is given.

    Examples
    --------
    >>> counted(20551, "page", "was lost", "were lost"), counted(1, "process")
    ('20,551 pages were lost', '1 process')
    """
    words = noun if number == 1 else noun + ("es" if noun.endswith(("s", "ch", "sh")) else "s")
    verb = one if number == 1 else several or one
    return f"{number:,} {words}{f' {verb}' if verb else ''}"


def shown(value: object) -> str:
    """A value as an error message shows it: short, whatever it is."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value.bit_length() > 128:
            return f"of {value.bit_length()} bits"
        return f"{int(value)} ({int(value):#x})" if abs(value) >= 1 << 16 else str(int(value))
    if isinstance(value, np.ndarray):
        return f"of dtype {value.dtype} and shape {value.shape}"
    try:
        return _REPR.repr(value)
    except Exception:
        return f"of type {type(value).__name__}"


def as_int(value: object, name: str, low: int = 0, high: int = MAX_U64) -> int:
    """Pass an integer from `low` to `high` through, as an int.

    Parameters
    ----------
    value : int, numpy integer, or anything else with __index__
        bool is none.
    name : str
        What the argument is called.
    low, high : int
        Bounds, both included.

    Raises
    ------
    TypeError
        Not an integer.
    ValueError
        Beyond the bounds.
    """
    if type(value) is not int:
        if isinstance(value, bool):
            raise TypeError(f"{name} {value!r}: must be an integer")
        try:
            value = operator.index(value)  # type: ignore[arg-type] # what it refuses is the question
        except TypeError:
            raise TypeError(f"{name} {shown(value)}: must be an integer") from None
    if not low <= value <= high:
        raise ValueError(f"{name} {shown(value)}: must be from {shown(low)} to {shown(high)}")
    return value


def as_flag(value: object, name: str) -> bool:
    """Pass a switch through: a bool, numpy's or Python's, or the integers 0 and 1.

    Raises
    ------
    TypeError
        Anything else.
    """
    if value is True or value is False:
        return value
    if isinstance(value, (np.bool_, int, np.integer)) and value in (0, 1):
        return bool(value)
    raise TypeError(f"{name} {shown(value)}: must be True or False")


@overload
def as_array(value: object, name: str, *, ndim: int | None = 1) -> U64Array: ...
@overload
def as_array(
    value: object, name: str, dtype: type[_Int], low: int | None = None, high: int | None = None, *, ndim: int | None = 1
) -> NDArray[_Int]: ...
def as_array(
    value: object,
    name: str,
    dtype: type[np.integer[Any]] = np.uint64,
    low: int | None = None,
    high: int | None = None,
    *,
    ndim: int | None = 1,
) -> AnyArray:
    """Pass an array of integers through: contiguous, of the dtype wanted, a copy only where it must be.

    Parameters
    ----------
    value : array of int, or sequence of int
        Of any integer dtype; an empty list too.
    name : str
        What the argument is called.
    dtype : dtype
        Integer dtype wanted.
    low, high : int, optional
        Bounds of the elements, both included. Default: those of `dtype`.
    ndim : int, optional
        Dimensions it must have; None: any.

    Raises
    ------
    TypeError
        Of other dimensions, or not of integers; dtype and shape are named.
    ValueError
        An element beyond the bounds; its index is named.
    """
    wanted = np.dtype(dtype)
    a = _integers(value, name, ndim)
    info, have = np.iinfo(wanted), np.iinfo(a.dtype)
    low = info.min if low is None else low
    high = info.max if high is None else high
    if a.size and (have.min < low or have.max > high):
        _check_bounds(a, name, low, high)
    return np.require(a, wanted, "C")


def _integers(value: object, name: str, ndim: int | None) -> AnyArray:
    kind = "an array of integers" if ndim is None else "one row of integers" if ndim == 1 else f"integers in {ndim} dimensions"
    try:
        a: AnyArray = np.asarray(value)
    except Exception:
        # Ragged, nested too deep, or something that calls itself an array and is none.
        raise TypeError(f"{name} {shown(value)}: must be {kind}") from None
    if a.dtype.kind not in "iu" and isinstance(value, (list, tuple)) and a.ndim == 1:
        # An empty list, or numbers that numpy finds no integer dtype for: all of them, or the one that is wrong.
        a = np.array([as_int(x, f"{name}[{i}]") for i, x in enumerate(value)], np.uint64)
    if (ndim is not None and a.ndim != ndim) or a.dtype.kind not in "iu":
        raise TypeError(f"{name} of dtype {a.dtype} and shape {a.shape}: must be {kind}")
    return a


def _check_bounds(a: AnyArray, name: str, low: int, high: int) -> None:
    have = np.iinfo(a.dtype)
    wrong = np.zeros(a.shape, bool)
    if have.min < low:
        wrong |= a < low
    if have.max > high:
        wrong |= a > high
    if wrong.any():
        at = tuple(int(i) for i in np.unravel_index(int(wrong.argmax()), a.shape))
        where = f"[{', '.join(map(str, at))}]" if at else ""
        raise ValueError(f"{name}{where} {shown(int(a[at]))}: must be from {shown(low)} to {shown(high)}")


@overload
def as_row(value: object, name: str) -> tuple[U64Array, bool]: ...
@overload
def as_row(
    value: object, name: str, dtype: type[_Int], low: int | None = None, high: int | None = None
) -> tuple[NDArray[_Int], bool]: ...
def as_row(
    value: object, name: str, dtype: type[np.integer[Any]] = np.uint64, low: int | None = None, high: int | None = None
) -> tuple[AnyArray, bool]:
    """Pass one integer, or one row of integers, through as an array, and say whether it was one integer.

    Parameters, errors: as `as_array`.
    """
    if hasattr(value, "__len__") and getattr(value, "ndim", 1) != 0:
        return as_array(value, name, dtype, low, high), False
    info = np.iinfo(np.dtype(dtype))
    number = as_int(value, name, info.min if low is None else low, info.max if high is None else high)
    return np.array([number], dtype), True
