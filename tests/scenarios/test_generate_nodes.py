"""Random scenarios on two NUMA nodes: memory is placed and moved, and the trees are made one for each node and one again."""

from collections import Counter

from ksmwalk.scenarios.generate import generate
from ksmwalk.scenarios.ops import MOVING
from ksmwalk.scenarios.replay import modelled, replay

ACROSS = ["set", "merge_across_nodes"]


def anything(scenario):
    return modelled(scenario) is None and "swap_mib" not in scenario.env


def one_node(scenario):
    return anything(scenario) and not any(op[0] in MOVING for op in scenario.ops)


def test_each_operation_is_in_a_fifth_of_the_scenarios_at_least():
    found, across = Counter(), Counter()
    for number in range(100):
        scenario = generate(3, number, anything)
        found.update({op[0] for op in scenario.ops} | ({"across"} if any(op[:2] == ACROSS for op in scenario.ops) else set()))
        across[scenario.tunables["merge_across_nodes"]] += 1
    assert min(found[name] for name in (*MOVING, "across")) >= 20
    assert min(across.values()) >= 15


def test_where_there_is_one_node_nothing_is_placed():
    names = {op[0] for number in range(30) for op in generate(3, number, one_node).ops}
    assert not names & {*MOVING} and "step" in names


def test_what_they_do_is_done_and_refused():
    """The operations meet something: pages move, are shared and stay; the knob is taken and refused."""
    answers = Counter()
    for number in range(24):
        for record in replay(generate(4, number, anything)):
            answers[record["op"][0] if record["op"][:2] != ACROSS else "across", "ret" in record] += 1
    for name in MOVING:
        assert answers[name, False], name
    assert answers["move", True] and answers["movepid", True] and answers["across", False]
