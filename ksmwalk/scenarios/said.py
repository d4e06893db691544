"""What a scenario says, in words: operations with what makes them another, and what surrounds it.

Of all that can be said a table tells how often it was, and how it came out (`commands.verification_page`).
"""

from __future__ import annotations

from collections.abc import Iterator

from .environment import FOLIO_KIB, KHUGEPAGED
from .format import Scenario
from .kinds import (
    ADVICE_NAME,
    COPY_SWITCHES,
    KNOBS,
    MMAP_SWITCHES,
    MOVE_OPTIONS,
    MREMAP_SWITCHES,
    OPTIONS,
    UFFD_BITS,
    UFFD_COPY_OPTIONS,
    UFFD_MODES,
    Op,
)
from .ops import OPS, row

_ADVISING = tuple(name for name, one in OPS.items() if ADVICE_NAME in one.args)
_WITH_OPTIONS = (OPTIONS, MOVE_OPTIONS, UFFD_MODES, UFFD_COPY_OPTIONS)


def said(scenario: Scenario) -> set[str]:
    """Return what a scenario says.

    Parameters
    ----------
    scenario : Scenario

    Returns
    -------
    set of str
        ``mlock``, ``madvise cold``, ``mmap growsdown``, ``set smart_scan``, ``env swap_mib``, ``settle 0``, ``vmstat``.
    """
    words = {word for op in scenario.ops for word in _of(op)}
    words |= {f"env {key}" for key in scenario.env}
    return words | ({"vmstat"} if scenario.vmstat else set()) | (set() if scenario.settle else {"settle 0"})


def _of(op: Op) -> Iterator[str]:
    name = op[0]
    advice = row(op).arg(op, ADVICE_NAME)
    yield f"{name} {advice}" if advice else f"set {op[1]}" if name == "set" else name
    for kind in _WITH_OPTIONS:
        for key, value in row(op).arg(op, kind, {}).items():
            if value and key != "prot":
                yield f"{name} {key}"


def all_there_is(advice: tuple[str, ...]) -> list[str]:
    """Return all that can be said, in the order of a table.

    Parameters
    ----------
    advice : tuple of str
        Names of advice.
    """
    out: list[str] = []
    for name in OPS:
        if name in _ADVISING:
            out += [f"{name} {one}" for one in advice]
        elif name == "set":
            out += [f"set {knob}" for knob in KNOBS]
        else:
            out.append(name)
        out += [f"{name} {key}" for key in _KEYS.get(name, ())]
    out += [f"env {key}" for key in ("thp", *(f"mthp_{kib}" for kib in FOLIO_KIB), *(f"khugepaged/{key}" for key in KHUGEPAGED))]
    return [*out, "env swap_mib", "env memcg", "settle 0", "vmstat"]


_KEYS = {"mmap": MMAP_SWITCHES, "mremap": MREMAP_SWITCHES, "uffd": tuple(UFFD_BITS), "uffd_copy": COPY_SWITCHES}
