"""Shrinking a scenario that shows something to a small one that still shows it (delta debugging)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from .format import Scenario, ScenarioError, scenario_from_json
from .kinds import BATCHES, CONTENTS, OPTIONS, PAGES, Op
from .ops import row, singles


class _Budget:
    """Counts trials; refuses scenarios that can't be run, and everything once tries or seconds are used up."""

    def __init__(self, shows: Callable[[Scenario], bool], tries: int, seconds: float):
        self._shows = shows
        self._tries = tries
        self._end = time.monotonic() + seconds

    def __call__(self, scenario: Scenario) -> bool:
        if self._tries <= 0 or time.monotonic() > self._end:
            return False
        try:
            scenario_from_json(scenario.to_json(), scenario.name)
        except ScenarioError:
            return False
        self._tries -= 1
        return self._shows(scenario)


def shrink(scenario: Scenario, shows: Callable[[Scenario], bool], tries: int = 2000, seconds: float = 60.0) -> Scenario:
    """Return a smaller scenario for which a predicate still holds.

    Parameters
    ----------
    scenario : Scenario
        One for which `shows` is true.
    shows : callable of Scenario, returning bool
        Whether a scenario still shows what is looked for. It is asked about valid scenarios only.
    tries : int
        How often `shows` may be asked.
    seconds : float
        For how long.

    Returns
    -------
    Scenario
        With no operation that could be left out alone, as far as tries and seconds went.

    Models: nothing; delta debugging over operations, then over what they list.
    Differs: nothing known.
    """
    ask = _Budget(shows, tries, seconds)
    while True:
        smaller = _simpler(_fewer_ops(scenario, ask), ask)
        smaller = _fewer_tunables(smaller, ask)
        if _size(smaller) >= _size(scenario):
            return _with_ops(scenario, _rolled(scenario.ops))
        scenario = smaller


def _with_ops(scenario: Scenario, ops: list[Op]) -> Scenario:
    return replace(scenario, ops=ops)


def _size(scenario: Scenario) -> tuple[int, int, int]:
    return len(_unrolled(scenario.ops)), sum(len(str(op)) for op in scenario.ops), len(scenario.tunables)


def _unrolled(ops: list[Op]) -> list[Op]:
    return [single for op in ops for single in singles(op)]


def _rolled(ops: list[Op]) -> list[Op]:
    out: list[Op] = []
    for op in _unrolled(ops):
        if BATCHES in row(op).args and out and out[-1][0] == op[0]:
            out[-1] = [op[0], row(op).arg(out[-1], BATCHES, 1) + 1]
        else:
            out.append(op)
    return out


def _fewer(items: list[Any], shows: Callable[[list[Any]], bool]) -> list[Any]:
    """Leave out ever smaller pieces, from the end, as long as the rest still shows it."""
    piece = len(items) // 2
    while piece:
        stop = len(items)
        while stop > 0:
            start = max(0, stop - piece)
            rest = items[:start] + items[stop:]
            if len(rest) < len(items) and shows(rest):
                items = rest
            stop = start
        piece //= 2
    return items


def _fewer_ops(scenario: Scenario, ask: _Budget) -> Scenario:
    kept = _fewer(_unrolled(scenario.ops), lambda ops: ask(_with_ops(scenario, ops)))
    return _with_ops(scenario, kept)


def _simpler(scenario: Scenario, ask: _Budget) -> Scenario:
    """Shorten the lists inside operations, then put smaller numbers in the place of large ones."""
    for index in range(len(scenario.ops)):
        for place in range(len(scenario.ops[index])):
            if isinstance(scenario.ops[index][place], list):

                def shows(rest: list[Any], index: int = index, place: int = place, base: Scenario = scenario) -> bool:
                    return ask(_replaced(base, index, place, rest))

                scenario = _replaced(scenario, index, place, _fewer(scenario.ops[index][place], shows))
        if CONTENTS in row(scenario.ops[index]).args:
            scenario = _with_holes(scenario, index, ask)
        for candidate in _variants(scenario.ops[index]):
            changed = [*scenario.ops]
            changed[index] = candidate
            if ask(trial := _with_ops(scenario, changed)):
                scenario = trial
                break
    return scenario


def _with_holes(scenario: Scenario, index: int, ask: _Budget) -> Scenario:
    """Leave pages of a fill untouched."""
    contents = scenario.ops[index][3]

    def only(kept: list[int]) -> Scenario:
        chosen = set(kept)
        return _replaced(scenario, index, 3, [c if i in chosen else None for i, c in enumerate(contents)])

    stored = [i for i, content in enumerate(contents) if content is not None]
    return only(_fewer(stored, lambda kept: ask(only(kept))))


def _replaced(scenario: Scenario, index: int, place: int, value: list[Any]) -> Scenario:
    op = [*scenario.ops[index]]
    op[place] = value
    return _with_ops(scenario, [*scenario.ops[:index], op, *scenario.ops[index + 1 :]])


def _variants(op: Op) -> Iterator[Op]:
    """Plainer forms of one operation, plainest first."""
    kinds = row(op).args
    if CONTENTS in kinds:
        contents = op[3]
        last = max((i for i, content in enumerate(contents) if content is not None), default=-1)
        ids = {content: i + 1 for i, content in enumerate(sorted({c for c in contents if c}))}
        yield [*op[:3], [content and ids[content] for content in contents[: last + 1]]]
        yield [*op[:3], contents[: last + 1]]
    elif row(op).arg(op, OPTIONS) is not None:
        yield op[:-1]
    elif row(op).arg(op, PAGES, 1) > 1 and len(list(row(op).spans(op))) == 1:
        for n in (1, op[3] // 2, op[3] - 1):
            if 0 < n < op[3]:
                yield [*op[:3], n, *op[4:]]


def _fewer_tunables(scenario: Scenario, ask: _Budget) -> Scenario:
    for knob in list(scenario.tunables):
        rest = {name: value for name, value in scenario.tunables.items() if name != knob}
        trial = replace(scenario, tunables=rest)
        if ask(trial):
            scenario = trial
    return scenario
