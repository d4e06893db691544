"""Scenarios mixed of recorded ones."""

from pathlib import Path

import pytest

from ksmwalk.scenarios.format import Scenario, load
from ksmwalk.scenarios.mix import mix
from ksmwalk.scenarios.ops import row
from ksmwalk.scenarios.replay import modelled, replay

GOLDEN = Path(__file__).parents[1] / "golden"
SOURCES = [load(path).scenario for path in sorted(GOLDEN.glob("*.json"))[::4]]


def test_the_same_of_the_same_and_all_of_it_runs():
    found = [mix(SOURCES, 7, number, lambda one: modelled(one) is None) for number in range(40)]
    assert found == [mix(SOURCES, 7, number, lambda one: modelled(one) is None) for number in range(40)]
    assert len({str(one.ops) for one in found}) == 40
    for one in found:
        refused = [record for record in replay(one) if isinstance(record.get("ret"), int) and record["ret"] < 0]
        assert len(refused) <= 0.4 * one.nr_records


def test_several_are_run_into_one_another_with_names_of_their_own():
    a = Scenario("a", [["spawn", "A"], ["mmap", "A", 65536, 4], ["fill", "A", 65536, [1, 2]], ["run", 1]])
    b = Scenario("b", [["spawn", "A"], ["fork", "A", "B"], ["mmap", "B", 70000, 2], ["cpu", "B", 0], ["step"]])
    found = [mix([a, b], 1, number) for number in range(60)]
    both = [one for one in found if {"fill", "fork"} <= {op[0] for op in one.ops}]
    assert len(both) > 10
    for one in both:
        made = [row(op).made(op) for op in one.ops if op[0] in ("spawn", "fork")]
        assert len(made) == len(set(made)) >= 3
    places = [[[op[0] for op in one.ops].index(what) for what in ("fill", "fork")] for one in both]
    assert any(fill < fork for fill, fork in places) and any(fork < fill for fill, fork in places)


def test_surroundings_that_differ_are_not_mixed():
    a = Scenario("a", [["spawn", "A"], ["step"]], env={"thp": "always"})
    b = Scenario("b", [["spawn", "A"], ["run", 1]], env={"thp": "never"})
    for number in range(20):
        one = mix([a, b], 3, number)
        assert len({op[0] for op in one.ops} & {"run"}) == (one.env["thp"] == "never")


def test_of_nothing_nothing_can_be_mixed():
    for sources in ([], [Scenario("long", [["step"]] * 200)]):
        with pytest.raises(ValueError, match=f"of these {len(sources)}: 0 of them are short enough"):
            mix(sources, 1, 0)
    with pytest.raises(ValueError, match="no scenario can be mixed"):
        mix([Scenario("a", [["spawn", "A"]])], 1, 0, lambda one: False)
