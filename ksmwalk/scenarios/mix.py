"""Scenarios mixed of others: rules meet there that each of them was written to show alone.

Two or three are run into one another, some operations done again, left out or changed a little, and now and then a child
goes on with what its parent did. The same sources, seed and number give the same scenario.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from .format import Scenario, ScenarioError, scenario_from_json
from .kinds import NEWBORN, PROCESS, RUNNER
from .ops import row
from .replay import NotModelled, replay

__all__ = ["mix"]

#: operations, and characters of JSON, of a scenario that is taken
_MOST_OPS, _MOST_TEXT = 120, 6000
#: of all operations so many may be refused: more are of no use
_REFUSED = 0.4
#: tries, after which nothing can be made of these sources
_TRIES = 200
_NAMES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

Ops = list[list[Any]]


def mix(
    sources: Sequence[Scenario], seed: int, number: int, can: Callable[[Scenario], bool] | None = None, kernel: str | None = None
) -> Scenario:
    """Make one scenario of some others.

    Parameters
    ----------
    sources : sequence of Scenario
        Long ones are passed over.
    seed : int
        Names the series.
    number : int
        Which of the series.
    can : callable of Scenario, returning bool, optional
        Whether it is to be had; default: always.
    kernel : str, optional
        What the model is asked as, which leaves out scenarios most of which is refused; default `kernels.DEFAULT`.

    Returns
    -------
    Scenario

    Raises
    ------
    ValueError
        None could be made of these.

    Models: nothing. Differs: nothing known.
    """
    pool = [one for one in sources if len(one.ops) <= _MOST_OPS and len(json.dumps(one.ops)) <= _MOST_TEXT]
    rng = random.Random(f"ksmwalk mix {seed} {number}")
    for _ in range(_TRIES if pool else 0):
        mixed = _mixed(rng, [rng.choice(pool) for _ in range(rng.choice((1, 2, 2, 2, 3)))], f"mixed_{seed}_{number}")
        if mixed is not None and (can is None or can(mixed)) and _of_use(mixed, kernel):
            return mixed
    raise ValueError(f"no scenario can be mixed of these {len(sources)}: {len(pool)} of them are short enough")


def _of_use(scenario: Scenario, kernel: str | None) -> bool:
    """Whether the model can run it, and does not refuse most of it."""
    try:
        answers = [record.get("ret") for record in replay(scenario, **({"kernel": kernel} if kernel else {}))]
    except (ScenarioError, NotModelled):
        return False
    return sum(isinstance(answer, int) and answer < 0 for answer in answers) <= _REFUSED * len(answers)


def _mixed(rng: random.Random, parts: list[Scenario], name: str) -> Scenario | None:
    """Some scenarios as one, if their surroundings agree."""
    surroundings = {json.dumps(part.env, sort_keys=True): part.env for part in parts if part.env}
    names = iter(_NAMES)
    lists = [_renamed_apart(part.ops, names) for part in parts]
    if len(surroundings) > 1 or None in lists:
        return None
    ops = _interleaved(rng, [one for one in lists if one])
    for _ in range(rng.choice((0, 1, 2, 4, 6))):
        _changed(rng, ops)
    if rng.random() < 0.4:
        ops = _by_a_child(rng, ops, next(names, None))
    tunables = {knob: value for knob, value in rng.choice(parts).tunables.items() if knob != "run"}
    found: dict[str, Any] = {"name": name, "note": "", "tunables": tunables, "ops": ops}
    if surroundings:
        found["env"] = next(iter(surroundings.values()))
    if not parts[0].settle:
        found["settle"] = 0
    try:
        return scenario_from_json(found, name)
    except ScenarioError:
        return None


def _renamed(op: list[Any], names: dict[str, str]) -> list[Any]:
    """An operation with other processes."""
    kinds = row(op).args
    new = [
        names.get(value, value) if kind in (PROCESS, RUNNER, NEWBORN) else copy.deepcopy(value)
        for kind, value in zip(kinds, op[1:], strict=False)
    ]
    return [op[0], *new]


def _renamed_apart(ops: Ops, names: Any) -> Ops | None:
    """The same with names that no other part has; None: there are no more."""
    known: dict[str, str] = {}
    for op in ops:
        made = row(op).made(op)
        if made is not None and made not in known:
            fresh = next(names, None)
            if fresh is None:
                return None
            known[made] = fresh
    return [_renamed(op, known) for op in ops]


def _interleaved(rng: random.Random, lists: list[Ops]) -> Ops:
    """All of them in one row, each in its own order."""
    ops: Ops = []
    left = [list(reversed(one)) for one in lists]
    while left := [one for one in left if one]:
        turn = rng.choice(left)
        for _ in range(min(len(turn), rng.choice((1, 1, 2, 3, 5)))):
            ops.append(turn.pop())
    return ops


def _changed(rng: random.Random, ops: Ops) -> None:
    """One operation comes again, goes, gets another number, or ksmd comes before it."""
    at, what = rng.randrange(len(ops)), rng.random()
    op = copy.deepcopy(ops[at])
    numbers = [place for place, value in enumerate(op) if isinstance(value, int) and not isinstance(value, bool)]
    if what < 0.35:
        ops.insert(rng.randrange(at, len(ops)) + 1, op)
    elif what < 0.5 and len(ops) > 3:
        ops.pop(at)
    elif what < 0.8 and numbers:
        place = rng.choice(numbers)
        op[place] = max(0, op[place] + rng.choice((-2, -1, 1, 1, 2, 7)))
        ops[at] = op
    else:
        ops.insert(at, ["step"] if rng.random() < 0.7 else ["step", rng.choice((2, 3))])


def _by_a_child(rng: random.Random, ops: Ops, child: str | None) -> Ops:
    """Somebody forks, and the child does some of what its parent would have done."""
    parent = rng.choice([op[1] for op in ops if op[0] == "spawn"] or [None])
    places = [at for at, op in enumerate(ops) if parent in row(op).processes(op) or row(op).made(op) == parent]
    if child is None or parent is None or places[-1] <= places[0] + 2:
        return ops
    at = rng.randrange(places[0] + 1, places[-1])
    rest = [
        _renamed(op, {parent: child}) if rng.random() < 0.4 and op[0] not in ("exit", "spawn") else op for op in ops[at:]
    ]
    return [*ops[:at], ["fork", parent, child], *rest]
