"""The real ksmd of this machine, stepped. Skipped with a reason where it can't be had."""

import contextlib
import os
import threading
from pathlib import Path

import pytest

from ksmwalk.kernel import knobs, run, state, stepper, verify, worker
from ksmwalk.scenarios.compare import first_difference, without_events
from ksmwalk.scenarios.format import Scenario, ScenarioError, load
from ksmwalk.scenarios.generate import generate

GOLDEN = Path(__file__).parents[1] / "golden"


REASON = worker.available() or ("needs root" if os.geteuid() else knobs.why_not() if not knobs.KSM.is_dir() else None)
pytestmark = [pytest.mark.root, pytest.mark.skipif(REASON is not None, reason=str(REASON))]


def quiet(text):
    pass


@pytest.fixture(scope="module")
def session():
    try:
        with knobs.lock(quiet, wait=60):
            before = knobs.saved()
        with stepper.session(quiet, wait=60) as taken:
            yield taken
    except knobs.KernelUnavailable as error:
        pytest.skip(str(error))
    with knobs.lock(quiet):
        assert knobs.saved() == before


@pytest.mark.parametrize(
    "name",
    ["batch_boundary", "fork_ksm", "thp_zero_small", "chains3_never", "prctl_any", "sparse_32t", "unmerge_madvise"],
)
def test_goldens(session, name):
    recording = load(GOLDEN / f"{name}.json")
    if not os.uname().release.startswith("6.18."):
        pytest.skip("the golden recordings are of Linux 6.18")
    found = first_difference(recording.records, session.record(recording.scenario), recording.nondet)
    assert found is None, found.text("golden", "here")


def test_the_kernel_agrees_with_itself(session):
    """As the model that does not err: what the kernel said the time before."""
    scenarios = [generate(11, number) for number in range(12)]
    results = verify.verify(scenarios, session.record, session, say=quiet)
    assert results.last_line() == "12 of 12 agree"
    assert results.records > 200 and results.changes["t.add"] > 0


def test_a_wrong_model_is_found(session):
    """One content is stored as another: pages merge on one side only."""

    def wrong(scenario):
        ops = [
            [*op[:3], [content and content + index % 2 for index, content in enumerate(op[3])]]
            if op[0] == "fill"
            else op
            for op in scenario.ops
        ]
        records = session.record(Scenario(scenario.name, ops, "", scenario.tunables))
        for record, (_, op) in zip(records, scenario.steps(), strict=True):
            record["op"] = op
        return records

    scenario = load(GOLDEN / "pair_order.json").scenario
    said = []
    results = verify.verify([scenario], wrong, session, say=said.append, shrink_seconds=2)
    assert results.count("differs") == 1
    assert "state after: kernel" in said[0] and len(results.verdicts[0].minimal.ops) < len(scenario.ops)


def test_without_trace_events(session, monkeypatch):
    """As on a kernel without tracefs: the rest is compared, KSM pages numbered as they appear."""
    scenarios = [load(GOLDEN / f"{name}.json").scenario for name in ("chains3_never", "fork_ksm", "zero_pages")]
    told = [without_events(session.record(scenario)) for scenario in scenarios]
    monkeypatch.setattr(session, "_events", None)
    monkeypatch.setattr(session, "ignore", {"t"})
    assert [session.record(scenario) for scenario in scenarios] == told
    results = verify.verify(scenarios, lambda scenario: told.pop(0), session, say=quiet)
    assert results.last_line() == "3 of 3 agree"


def test_a_kernel_without_a_knob(session, monkeypatch):
    """Scenarios are fitted to it: the model is set to what such a kernel does."""
    monkeypatch.setattr(session, "missing", {"smart_scan", "advisor_mode"})
    ops = [["spawn", "A"], ["set", "smart_scan", 1], ["set", "use_zero_pages", 1], ["set", "advisor_mode", "none"]]
    fitted = session.fit(Scenario("old", ops, "", {"smart_scan": 1, "pages_to_scan": 5}))
    assert fitted.ops == [["spawn", "A"], ["set", "use_zero_pages", 1]]
    assert fitted.tunables == {"smart_scan": 0, "pages_to_scan": 5}
    assert len(session.record(fitted)) == 2
    monkeypatch.setattr(session, "lacking", {"PR_SET_MEMORY_MERGE"})
    assert session.fit(Scenario("old", [["spawn", "A"], ["prctl", "A", 1]])) is None


def records(session, *ops, **tunables):
    return session.record(Scenario("here", [["spawn", "A"], ["mmap", "A", 65536, 8], *ops], "", tunables))[2:]


def test_stores_stop_where_they_fault(session):
    told = records(
        session,
        ["mprotect", "A", 65538, 1, "r"],
        ["write", "A", [[65536, 1], [65538, 2], [65537, 3]]],
        ["touch", "A", [65539, 70000, 65540]],
        ["memset", "A", 65543, 1, 8192],
        ["pwrite", "A", [[65541, 1], [70000, 2]]],
        ["munmap", "A", 65536, 8],
    )
    assert [record.get("ret", 0) for record in told] == [0, -14, -14, -14, -5, 0]
    assert [record.get("p", {}).get("A") for record in told] == [
        None,
        [[65536, 1, "a"]],
        [[65539, 1, "z"]],
        [[65543, 1, "a"]],
        [[65541, 1, "a"]],
        [[65536, 1, "-"], [65539, 1, "-"], [65541, 1, "-"], [65543, 1, "-"]],
    ]


def test_exec_leaves_nothing_but_the_merge_flag(session):
    told = records(
        session,
        ["prctl", "A", 1],
        ["write", "A", [[65536, 5]]],
        ["exec", "A"],
        ["prctl_get", "A"],
        ["mmap", "A", 65536, 2],
        ["touch", "A", [65536]],
    )
    assert told[2]["p"] == {"A": [[65536, 1, "-"]]} and told[2]["t"] == ["enter A", "exit A"]
    assert told[3]["ret"] == 1 and told[5]["p"] == {"A": [[65536, 1, "z"]]}


def test_userfaultfd_and_system_calls(session):
    told = records(
        session,
        ["write", "A", [[65536, 5], [65537, 5]]],
        ["uffd_wp", "A", 65536, 8],
        ["write", "A", [[65536, 6], [65538, 6]]],
        ["syscall", "A", 149, 65536 * 4096, 4096],
        ["syscall", "A", 39],
        ["syscall", "A", 149, 70000 * 4096, 4096],
    )
    assert [record.get("ret", 0) for record in told[:4]] == [0, 0, 0, 0]
    assert told[2]["p"] == {"A": [[65538, 1, "a"]]}
    assert told[4]["ret"] > 1 and told[5]["ret"] == -12


@pytest.mark.parametrize("number", [231, 9, 62, 169, 9999, -1, 1 << 63])
def test_a_system_call_that_is_not_known_to_be_harmless_is_refused_before_anything_is_run(session, number):
    counters = session.counters()
    with pytest.raises(ScenarioError, match=rf"here: op 3 syscall: .*149 mlock.*: {number}$"):
        records(session, ["write", "A", [[65536, 5]]], ["syscall", "A", number])
    assert session.counters() == counters


def test_a_worker_that_dies_is_named(session, monkeypatch):
    monkeypatch.setitem(run.HARMLESS, 231, "exit_group")
    with pytest.raises(worker.WorkerDied, match="process A"):
        records(session, ["syscall", "A", 231, 3])
    assert "ret" not in records(session, ["write", "A", [[65536, 5]]])[0]


def test_a_worker_that_does_not_come_back_is_killed(session, monkeypatch):
    monkeypatch.setattr(worker, "PATIENCE", 0.5)
    monkeypatch.setitem(run.HARMLESS, 34, "pause")
    with pytest.raises(worker.WorkerDied, match="process A does not come back"):
        records(session, ["syscall", "A", 34])
    assert "ret" not in records(session, ["write", "A", [[65536, 5]]])[0]


def test_refusals_name_the_value(session):
    with pytest.raises(ScenarioError, match=r"max_page_sharing.*: 1$"):
        records(session, max_page_sharing=1)
    with pytest.raises(ScenarioError, match="the worker's own"):
        records(session, ["mmap", "A", worker.LIMIT_VPN, 1])


def test_worker_owns_no_anonymous_page(session):
    pool = worker.Pool(["A", "B"])
    try:
        pool.spawn("A")
        pool.fork("A", "B")
        for pid in pool.pid.values():
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            assert "Anonymous:             0 kB" in rollup
    finally:
        pool.close()


def test_mergeable_processes_are_seen(session):
    pool = worker.Pool(["A"])
    try:
        pid = pool.spawn("A")
        assert pid not in dict(knobs.mergeable_processes())
        pool.syscall("A", 157, 67, 1, 0, 0, 0)
        assert dict(knobs.mergeable_processes())[pid] == "worker"
        assert "another process has mergeable memory" in knobs.why_not()
    finally:
        pool.close()


def test_lock_is_waited_for(session):
    """The session of this module holds the lock: a second taker says so and waits."""
    waiting, said = threading.Event(), []

    def say(text):
        said.append(text)
        waiting.set()

    def second():
        with contextlib.suppress(knobs.KernelUnavailable), knobs.lock(say, wait=1):
            said.append("got it")

    thread = threading.Thread(target=second)
    thread.start()
    assert waiting.wait(5)
    thread.join()
    assert len(said) == 1 and f"pid {os.getpid()} (" in said[0] and "pytest" in said[0] and str(state.DIRECTORY) in said[0]
