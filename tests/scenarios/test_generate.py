"""Random scenarios: all that one machine can do is among them, often enough to be compared, and rare things meet."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from ksmwalk.host import ADVICE
from ksmwalk.scenarios.format import dumps, scenario_from_json
from ksmwalk.scenarios.generate import generate
from ksmwalk.scenarios.ops import MOVING
from ksmwalk.scenarios.replay import modelled
from ksmwalk.scenarios.said import all_there_is, said

#: of 3,000 scenarios how many are to say each thing; counted over fewer of a fixed seed
SHARE, OF, COUNTED = 200, 3000, 1500
#: what takes another machine
ELSEWHERE = {*MOVING}


def can(scenario):
    """A machine of one node whose kernel has all the rest, and the model."""
    return modelled(scenario) is None and not any(op[0] in ELSEWHERE for op in scenario.ops)


@pytest.fixture(scope="module")
def scenarios():
    return [generate(20, number, can) for number in range(COUNTED)]


def test_everything_that_one_machine_can_do_is_said_often_enough(scenarios):
    counts = Counter(word for scenario in scenarios for word in said(scenario))
    wanted = [word for word in all_there_is(tuple(ADVICE)) if word not in ELSEWHERE]
    rare = {word: counts[word] for word in wanted if counts[word] * OF < SHARE * COUNTED}
    assert not rare, f"of {COUNTED} scenarios, {SHARE * COUNTED / OF:.0f} wanted"
    assert not ELSEWHERE & set(counts)


def test_what_is_made_can_be_said(scenarios):
    for scenario in scenarios[::10]:
        assert scenario_from_json(json.loads(dumps(scenario))) == scenario
        assert modelled(scenario) is None


#: what seldom meets by itself, as tests of a scenario
MEETINGS = {
    "a part of a huge page moved, then a fork": lambda s: follows(s, moves_a_part, is_op("fork")),
    "a fork, then a part of a huge page moved": lambda s: follows(s, is_op("fork"), moves_a_part),
    "locked memory, then everything unmerged": lambda s: follows(s, locks, unmerges),
    "swap and chains": lambda s: "swap_mib" in s.env and s.tunables["max_page_sharing"] <= 3,
    "a watched area, then a fork": lambda s: follows(s, is_op("uffd"), is_op("fork")),
    "a guard, then a fork": lambda s: follows(s, lambda op: op[-1] == "guard_install", is_op("fork")),
    "a fork of what is wiped": lambda s: follows(s, lambda op: op[-1] == "wipeonfork", is_op("fork")),
}


def is_op(name):
    return lambda op: op[0] == name


def locks(op):
    return op[0] in ("mlock", "mlock2", "mlockall")


def unmerges(op):
    return op == ["run", 2]


def moves_a_part(op):
    return op[0] == "mremap" and op[3] < 512 and op[3] == op[4] and op[5] is not None


def follows(scenario, first, then):
    at = next((i for i, op in enumerate(scenario.ops) if first(op)), None)
    return at is not None and any(then(op) for op in scenario.ops[at:])


@pytest.mark.parametrize("what", MEETINGS)
def test_what_is_rare_meets(scenarios, what):
    assert sum(bool(MEETINGS[what](scenario)) for scenario in scenarios) * OF >= SHARE * COUNTED
