"""What records tell of where a stack grows."""

import numpy as np
import pytest

from ksmwalk.scenarios.format import Scenario
from ksmwalk.scenarios.replay import replay
from ksmwalk.scenarios.spans import Spans

STACK = ["mmap", "A", 70000, 4, {"growsdown": 1}]


def told(ops):
    """Pages of A, and of its child B, by the spans alone."""
    spans = Spans(ops)
    for op in ops:
        spans.note(op, op[0] != "munmap")
    pages = tuple(np.arange(69980, 70010) for _ in range(3))
    return {name: spans.told(name, pages)[0].tolist() for name in ("A", "B")}


def test_what_a_stack_has_grown_to_is_told_of_where_that_is_asked_for():
    records = list(replay(Scenario("stack", [["spawn", "A"], STACK, ["write", "A", [[69999, 1]]], ["watch", "A", 69998, 1],
                                             ["write", "A", [[69998, 2]]]])))  # fmt: skip
    assert "p" not in records[2] and records[4]["p"] == {"A": [[69998, 1, "a"]]}


@pytest.mark.parametrize("more, of_a, of_b", [
    ([], range(70000, 70004), []),
    ([["fork", "A", "B"], ["watch", "A", 69990, 2]], [69990, 69991, *range(70000, 70004)], range(70000, 70004)),
    ([["clone", "A", "B"], ["watch", "B", 69990, 1]], [69990, *range(70000, 70004)], [69990, *range(70000, 70004)]),
    ([["exec", "A"]], [], []),
    ([["mremap", "A", 70000, 4, 6, None]], range(70000, 70006), []),
    ([["mremap", "A", 70000, 4, 4, 69984]], [*range(69984, 69988), *range(70000, 70004)], []),
])  # fmt: skip
def test_each_process_has_spans_of_its_own(more, of_a, of_b):
    assert told([["spawn", "A"], STACK, *more]) == {"A": [*of_a], "B": [*of_b]}


def test_without_a_stack_all_is_told():
    assert len(told([["spawn", "A"], ["mmap", "A", 70000, 4]])["A"]) == 30
