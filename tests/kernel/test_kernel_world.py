"""The world around KSM on the real kernel: made for a scenario, recorded as before, put back on any way out."""

import os
from pathlib import Path

import pytest
from machine import around

from ksmwalk.kernel import knobs, stepper, surround, worker
from ksmwalk.scenarios.compare import first_difference
from ksmwalk.scenarios.format import Scenario, ScenarioError, load
from ksmwalk.scenarios.generate import generate

GOLDEN = Path(__file__).parents[1] / "golden"
REASON = worker.available() or ("needs root" if os.geteuid() else knobs.why_not() if not knobs.KSM.is_dir() else None)
pytestmark = [pytest.mark.root, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

#: a recording or two of each operation and key
RECORDED = (
    "advice_locked", "clone_vm", "dma_exit_child", "dontunmap", "grow_down", "khuge_none", "khuge_plain", "mlock2_onfault",
    "mlock_other_cpu", "mlockall_fork", "mthp_two_sizes", "owners_pins_3010", "pin_unmergeable", "process_madvise",
    "swap_fork_ksm", "swap_swapoff", "swap_thp", "thp_always", "uffd_copy_zero", "uffd_move", "uffd_wp_absent", "vfork_exec",
    "vfork_prctl",
)  # fmt: skip


def quiet(text):
    pass


@pytest.fixture(scope="module")
def session():
    try:
        with knobs.lock(quiet, wait=60):
            before = around()
        with stepper.session(quiet, wait=60) as taken:
            yield taken
    except knobs.KernelUnavailable as error:
        pytest.skip(str(error))
    with knobs.lock(quiet):
        assert around() == before


def records(session, *ops, **around):
    if reason := surround.lacking(around.get("env", {})):
        pytest.skip(reason)
    return session.record(Scenario("here", [["spawn", "A"], ["mmap", "A", 65536, 8], *ops], **around))[2:]


@pytest.mark.parametrize("name", RECORDED)
def test_recordings_repeat(session, name):
    path = GOLDEN / f"{name}.json"
    if not path.exists() or not os.uname().release.startswith("6.18."):
        pytest.skip("no recording of this kernel")
    recording = load(path)
    if reason := session.lacks(recording.scenario):
        pytest.skip(reason)
    for _ in range(3):  # somebody else may drain the batch of a CPU, too
        found = first_difference(recording.records, session.record(recording.scenario), recording.nondet)
        if found is None:
            return
    raise AssertionError(found.fields)


def test_the_kernel_agrees_with_itself_on_random_scenarios_of_all_subjects(session):
    def can(scenario):
        return scenario.settle and session.lacks(scenario) is None

    ops = set()
    for number in range(25):
        scenario = generate(12, number, can)
        first = session.record(scenario)
        found = first_difference(first, session.record(scenario))
        assert found is None, found.fields
        ops |= {op[0] for op in scenario.ops}
    assert {"mlock", "fork", "uffd", "clone"} <= ops


def test_pins_and_descriptors_end_with_their_process_and_are_not_a_childs(session):
    told = records(
        session,
        ["madvise", "A", 65536, 8, "mergeable"],
        ["fill", "A", 65536, [5, 5, 6, 6]],
        ["pin", "A", 65536],
        ["fork", "A", "B"],
        ["exit", "A"],
        ["run", 1],
        ["step", 2],
    )
    # A's pin would have kept the first page from merging
    assert [text.split()[0] for text in told[-2]["t"]] == ["start", "new", "add", "new", "add", "stop"]


def test_what_waits_for_its_vfork_child_is_asked_for_nothing(session):
    with pytest.raises(ScenarioError, match="A waits for its vfork child B"):
        records(session, ["vfork", "A", "B"], ["write", "A", [[65536, 1]]])
    with pytest.raises(ScenarioError, match="its vfork child B is there still"):
        records(session, ["vfork", "A", "B"], ["vforked", "A"])
    with pytest.raises(ScenarioError, match="no vfork of it is over"):
        records(session, ["vforked", "A"])
    # one that ends without an exec sets the parent free as well
    ops = ["write", "B", [[65536, 1]]], ["exit", "B"], ["vforked", "A"], ["touch", "A", [65536]]
    told = records(session, ["vfork", "A", "B"], *ops)
    assert told[1]["p"] == {"A": [[65536, 1, "a"]]} and not any("ret" in record for record in told)


def test_a_touch_of_a_watched_missing_page_fails_and_a_store_to_a_protected_one_does_not_wait(session):
    told = records(
        session,
        ["uffd", "A", 65536, 4, {"missing": 1, "wp": 1}],
        ["touch", "A", [65536]],
        ["uffd_copy", "A", 65536, [7, 8], {"wp": 1}],
        ["uffd_copy", "A", 65536, [7]],
        ["write", "A", [[65536, 9]]],
        ["uffd_zero", "A", 65540, 1],
        ["uffd_move", "A", 65538, 65536, 2],
    )
    assert [record.get("ret", 0) for record in told] == [0, -14, 0, -17, 0, -2, 0]
    assert told[-1]["p"] == {"A": [[65536, 2, "-"], [65538, 2, "a"]]}


def test_swap_entries_are_shown_where_there_may_be_some(session):
    ops = ["fill", "A", 65536, [5, 6]], ["madvise", "A", 65536, 2, "pageout"], ["touch", "A", [65536]], ["swapoff"], ["swapon"]
    told = records(session, *ops, env={"swap_mib": 16}, vmstat=["pgfault", "pswpout"])
    assert told[1]["p"] == {"A": [[65536, 2, "s'"]]} and told[1]["v"]["pswpout"] == 2
    assert told[2]["p"] == {"A": [[65536, 1, "a'"]]} and told[3]["p"] == {"A": [[65537, 1, "a'"]]}


@pytest.mark.parametrize(
    ("ops", "what"),
    [([["reclaim"]], "it needs memcg"), ([["swapoff"]], "it needs swap_mib"), ([["cpu", "A", 255]], "no CPU 255")],
)
def test_what_is_not_there_is_named(session, ops, what):
    if ops == [["swapoff"]] and "a swap device" in session.lacking:
        what = "no a swap device"
    with pytest.raises(ScenarioError, match=what):
        records(session, *ops)


def test_nodes_that_are_not_there_are_named(session):
    if "two NUMA nodes" not in session.lacking:
        pytest.skip("they are")
    scenario = Scenario("nodes", [["spawn", "A"], ["place", "A", 65536, 1, 1]])
    assert session.fit(scenario) is None
    with pytest.raises(ScenarioError, match="no two NUMA nodes"):
        session.record(scenario)
