"""What surrounds a scenario: settings of the machine that are made before it and put back after it.

``thp`` and ``mthp_KB`` say which huge pages and smaller folios anonymous memory may have, ``khugepaged/...`` are its
knobs, ``swap_mib`` is the size of the only swap device, ``memcg`` puts the processes into a memory cgroup (which
``reclaim`` needs). A recording without one was made with THP ``madvise``, without other folios, swap and cgroup.
"""

from __future__ import annotations

from typing import Any

from .kinds import Check, is_int

#: words of `enabled` below /sys/kernel/mm/transparent_hugepage
MODES = ("always", "madvise", "never")
#: sizes of folios between a page and a huge page, KiB; 8 is none: anonymous folios begin with four pages
FOLIO_KIB = (16, 32, 64, 128, 256, 512, 1024)
#: knobs of khugepaged and the most they take
KHUGEPAGED = {"max_ptes_none": 511, "max_ptes_shared": 511, "max_ptes_swap": 511}
#: MiB of a swap device
_MOST_MIB = 1024


def checked(check: Check, env: object) -> dict[str, Any]:
    """Check the environment of a scenario and return it.

    Parameters
    ----------
    check : Check
        Told what is wrong.
    env : object
        Decoded JSON.
    """
    if not isinstance(env, dict):
        check.fail("env of a scenario is an object, not", env)
    for key, value in env.items():
        folio = key.removeprefix("mthp_")
        knob = key.removeprefix("khugepaged/")
        if key == "thp" or (folio != key and folio in map(str, FOLIO_KIB)):
            if not isinstance(value, str) or value not in MODES:
                check.fail(f"{key} is one of {', '.join(MODES)}, not", value)
        elif knob != key and knob in KHUGEPAGED:
            check.number(value, key, 0, KHUGEPAGED[knob] + 1)
        elif key == "swap_mib":
            check.number(value, "the size of a swap device in MiB", 1, _MOST_MIB + 1)
        elif key == "memcg":
            check.number(value, "memcg", 0, 2)
        else:
            check.fail("no part of an environment", key)
    return dict(env)


def checked_vmstat(check: Check, names: object) -> list[str]:
    """Check the counters of /proc/vmstat that a scenario asks for and return them."""
    for name in check.listed(names):
        if not isinstance(name, str) or not name.isascii() or not name.replace("_", "a").isalnum() or len(name) > 64:
            check.fail("no name of a counter of /proc/vmstat", name)
    return list(names)  # type: ignore[call-overload, no-any-return]


def checked_settle(check: Check, value: object) -> bool:
    """Check whether the batches of all CPUs are drained before each operation."""
    if not is_int(value) or value not in (0, 1):
        check.fail("settle is 0 or 1, not", value)
    return bool(value)
