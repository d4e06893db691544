"""Random scenarios: small programs that make ksmd merge, chain, split, break, skip and forget.

The same seed and number give the same scenario, where model and machine can do the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from .format import Scenario
from .generate_nodes import NodesMaker, there
from .generate_plain import FIRST_VPN, MAX_OPS, MAX_PAGES, MAX_PROCESSES, Maker
from .generate_rare import RareMaker
from .generate_world import MOST_PAGES

__all__ = ["FIRST_VPN", "MAX_OPS", "MAX_PAGES", "MAX_PROCESSES", "MOST_PAGES", "generate"]


def generate(seed: int, number: int, can: Callable[[Scenario], bool] | None = None) -> Scenario:
    """Make one random scenario.

    Parameters
    ----------
    seed : int
        Names the series.
    number : int
        Which of the series; any can be made without the others.
    can : callable of Scenario, returning bool, optional
        Whether a scenario's operations and surroundings are to be had; it is asked about small ones. Default: processes
        and the daemon alone, and nothing of the world around them.

    Returns
    -------
    Scenario
        1 to 4 processes at a time, up to 512 pages in each (2,048 where the world is in play), up to 80 operations.

    Models: what processes, and with `can` the world around them, do to memory that KSM may notice.
    Differs: none of what depends on the machine's speed.
    """
    name, rng = f"random_{seed}_{number}", random.Random(f"ksmwalk {seed} {number}")
    if can is None:
        return Maker(rng).make(name)
    return (NodesMaker if there(can) else RareMaker)(rng, can).make(name)
