"""Sizes, times, counts and names from outside, as people read them."""

from __future__ import annotations

__all__ = ["count", "duration", "printable", "size"]

_SIZES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
_YEAR = 365.25 * 86400


def size(nbytes: int) -> str:
    """A size in bytes in the largest unit that leaves at least 1: `32 TiB`, `1.5 MiB`."""
    value, unit = float(nbytes), 0
    while abs(value) >= 1024 and unit < len(_SIZES) - 1:
        value /= 1024
        unit += 1
    text = f"{value:.0f}" if value == int(value) else f"{value:.1f}"
    return f"{text} {_SIZES[unit]}"


def duration(seconds: float) -> str:
    """A time with three digits and its unit; hours and days where seconds say nothing."""
    if seconds >= 2 * _YEAR:
        return f"{seconds / _YEAR:.3g} years"
    if seconds >= 2 * 86400:
        return f"{seconds / 86400:.3g} days"
    if seconds >= 7200:
        return f"{seconds / 3600:.3g} hours"
    if seconds >= 300:
        return f"{seconds / 60:.3g} minutes"
    for scale, unit in _TIMES:
        if seconds >= 0.9995 * scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns" if seconds else "0 s"


def count(number: int) -> str:
    """A count with its thousands apart."""
    return f"{number:,}"


def printable(name: object) -> str:
    """A name from outside as text that a terminal prints and does not obey.

    Parameters
    ----------
    name : str, or what has a text
        Undecodable bytes as surrogates, as `errors="surrogateescape"` leaves them.

    Returns
    -------
    str
        Undecodable bytes replaced by U+FFFD; control characters, line ends, marks that turn the direction of writing
        and whatever else is not printable as escapes: `\\x1b`, `\\n`, `\\u202e`.
    """
    text = str(name)
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escape(letter) for letter in text)


def _escape(letter: str) -> str:
    return "\ufffd" if "\ud800" <= letter <= "\udfff" else letter.encode("unicode_escape").decode()
