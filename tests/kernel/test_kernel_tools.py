"""Generator, shrinker, comparison and page of the kernel room, with no kernel involved."""

import argparse
import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ksmwalk.commands import kernel as commands
from ksmwalk.commands import verification_page as page
from ksmwalk.drawing.words import printable
from ksmwalk.kernel import fullscan, surround, trace, verify
from ksmwalk.kernel import run as running
from ksmwalk.kernel.pages import Process, _coalesced
from ksmwalk.proc import processes
from ksmwalk.scenarios.compare import first_difference
from ksmwalk.scenarios.format import Scenario, ScenarioError, dumps, load, scenario_from_json
from ksmwalk.scenarios.generate import MAX_OPS, generate
from ksmwalk.scenarios.replay import NotModelled
from ksmwalk.scenarios.shrink import shrink

GOLDEN = Path(__file__).parents[1] / "golden"


def test_generated_scenarios_are_valid_and_within_bounds():
    kinds, most = set(), 0
    for number in range(200):
        made = generate(3, number)
        scenario_from_json(json.loads(dumps(made)), made.name)
        assert 1 <= len(made.ops) <= MAX_OPS
        alive = set()
        for op in made.ops:
            kinds.add(op[0])
            if op[0] in ("spawn", "fork"):
                alive.add(op[-1])
            elif op[0] == "exit":
                alive.remove(op[1])
            most = max(most, len(alive))
            assert op[0] not in ("mmap", "fill") or (op[3] if op[0] == "mmap" else len(op[3])) <= 512
    assert most == 4
    assert kinds >= set(
        "spawn exit exec fork mmap munmap mremap mprotect madvise fill write touch memset pwrite prctl prctl_get "
        "thpdisable set run step drain".split()
    )


def test_generated_scenarios_are_the_same_every_time():
    assert dumps(generate(5, 17)) == dumps(generate(5, 17))
    assert dumps(generate(5, 17)) != dumps(generate(5, 18)) != dumps(generate(6, 18))


def test_shrink_finds_the_operations_that_matter():
    """What is looked for: a page of content 77 in B that is written, after a fork, while zero pages are on."""

    def shows(scenario):
        forked = False
        for op in scenario.ops:
            forked = forked or op[0] == "fork"
            if forked and op[0] == "fill" and op[1] == "B" and 77 in op[3]:
                return scenario.tunables.get("use_zero_pages") == 1
        return False

    ops = [["spawn", "A"], ["mmap", "A", 100, 50], ["fill", "A", 100, list(range(50))], ["run", 1], ["step", 9]]
    ops += [
        ["spawn", "C"],
        ["fork", "A", "B"],
        ["step"],
        ["fill", "B", 100, [None, 5, 77, 6, 7]],
        ["exit", "C"],
        ["step", 3],
    ]
    large = Scenario("large", ops, "", {"use_zero_pages": 1, "smart_scan": 0})
    assert shows(large)
    small = shrink(large, shows)
    assert small.ops == [["spawn", "A"], ["fork", "A", "B"], ["fill", "B", 100, [77]]]
    assert small.tunables == {"use_zero_pages": 1}


def test_shrink_keeps_to_its_budget():
    asked = []

    def shows(scenario):
        asked.append(scenario)
        return True

    shrink(generate(1, 1), shows, tries=5)
    assert len(asked) == 5


class Answers:
    """A session whose kernel says what a list of answers says, one after the other, the last for ever."""

    ignore = frozenset()
    left_out = ("nothing",)
    lacking = frozenset({"two NUMA nodes"})
    kernel = os.uname().release

    def __init__(self, *answers):
        self.answers = list(answers)

    def fit(self, scenario):
        return scenario

    def record(self, scenario):
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, dict):
            return answer[scenario.name]
        return answer


def changed(records, field="pages_volatile"):
    other = copy.deepcopy(records)
    next(record for record in other if field in record.get("c", {}))["c"][field] += 1
    return other


@pytest.fixture
def golden():
    return load(GOLDEN / "cow_break.json")


def run(recording, model, *answers, **more):
    said = []
    results = verify.verify([recording], lambda _: model, Answers(*answers), say=said.append, shrink_seconds=0, **more)
    return results, "\n".join(said)


def test_verify_agrees(golden):
    results, said = run(golden, golden.records, golden.records)
    assert results.last_line() == "1 of 1 agree" and not said
    assert results.records == len(golden.records) and results.values > 11 * results.records
    assert results.changes["t.new"] > 0 and results.ops["step"] > 5


def test_verify_says_what_differs(golden):
    results, said = run(golden, changed(golden.records), golden.records)
    assert results.last_line() == "0 of 1 agree"
    assert "c.pages_volatile" in said and "state before" in said and "state after: kernel" in said
    assert results.to_json()["verdicts"][0]["fields"][0]["field"] == "c.pages_volatile"


def test_verify_lets_a_repeated_run_of_the_kernel_decide(golden):
    results, said = run(golden, golden.records, changed(golden.records), golden.records)
    assert results.last_line() == "1 of 1 agree" and "not with every run of the kernel" in said


def test_verify_tells_a_kernel_that_does_not_repeat(golden):
    once, twice = changed(golden.records), changed(golden.records, "full_scans")
    results, said = run(golden, golden.records, once, twice, once)
    assert results.last_line() == "0 of 1 agree (1 not repeatable)" and "agree with itself" in said


def test_verify_heeds_nondet(golden):
    golden.nondet = ["c.pages_volatile"]
    results, _ = run(golden, changed(golden.records), golden.records)
    assert results.count("agrees") == 1


def test_verify_of_what_is_not_modelled(golden):
    def replay(scenario):
        raise NotModelled("cow_break: op 3", ["syscall", "A", 1])

    results = verify.verify([golden], replay, Answers(golden.records), say=lambda text: None)
    assert results.last_line() == "0 of 1 agree (1 not modelled)"


def test_verify_outlives_a_model_that_dies(golden):
    def replay(scenario):
        raise IndexError("list index out of range")

    said = []
    results = verify.verify([golden], replay, Answers(golden.records), say=said.append, shrink_seconds=0)
    assert results.last_line() == "0 of 1 agree" and "IndexError: list index out of range" in said[0]


def test_verify_shrinks_and_saves(tmp_path):
    """The model here misses one page of every fork; the kernel's answers come from its right brother."""

    def right(scenario):
        return [{"op": op, "c": {"pages_shared": index}} for index, (_, op) in enumerate(scenario.steps())]

    def wrong(scenario):
        made = right(scenario)
        for record in made:
            if record["op"][0] == "fork":
                record["ret"] = -12
        return made

    class Kernel(Answers):
        def record(self, scenario):
            return right(scenario)

    scenario = next(made for made in (generate(1, n) for n in range(99)) if any(op[0] == "fork" for op in made.ops))
    said = []
    results = verify.verify([scenario], wrong, Kernel(), say=said.append, save_to=tmp_path)
    saved = load(results.verdicts[0].saved)
    assert [op[0] for op in saved.scenario.ops] == ["spawn", "fork"]
    assert saved.records == right(saved.scenario)
    assert first_difference(wrong(saved.scenario), saved.records).fields == [("ret", -12, None)]


def test_page_tells_what_was_compared(golden, tmp_path):
    results, _ = run(golden, changed(golden.records), golden.records)
    page.write(results, "ksmwalk verify x", tmp_path / "docs" / "verification.md")
    text = (tmp_path / "docs" / "verification.md").read_text()
    assert "ksmwalk verify x" in text and "| scenarios | 1 |" in text and "| differ | 1 |" in text
    assert "counter pages_shared" in text and "event new" in text
    assert f"`{golden.scenario.name}`: differs" in text and "c.pages_volatile" in text
    assert "Modelled but not verified here" in text and "NUMA" in text


def parser():
    made = argparse.ArgumentParser()
    commands.add_parsers(made.add_subparsers())
    return made


def test_commands_refuse_nonsense(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(commands, "unusable", lambda: None)
    for line in (["verify"], ["verify", str(tmp_path / "none.json")], ["record", "x.json", "-o", "y", "--runs", "0"]):
        args = parser().parse_args(line)
        assert args.run(args) == 2
    said = capsys.readouterr().err
    assert "nothing to verify" in said and "none.json" in said and "--runs is at least 1, not 0" in said


def test_trace_lines():
    head = "            ksmd-37      [001] .....           96: "
    assert trace._event(head + "ksm_start_scan: seq 3 rmap size 7") == ("start", 3, 7)
    line = "ksm_merge_with_ksm_page: pfn 14 rmap_item 000000001af84765 mm 00000000357f44f3 error 0"
    assert trace._event(head + line) == ("new", 14, "00000000357f44f3", 0, "000000001af84765")
    line = "ksm_merge_with_ksm_page: ksm pfn 14 rmap_item 000000001af84765 mm 00000000357f44f3 error -14"
    assert trace._event(head + line) == ("add", 14, "00000000357f44f3", -14, "000000001af84765")
    assert trace._event(head + "ksm_remove_ksm_page: pfn 5") == ("rmk", 5)
    assert trace._event("   a-b c-77   [000] .N...  1: ksm_enter: mm 0000000000000001") == (
        "enter",
        "0000000000000001",
        77,
    )
    with pytest.raises(RuntimeError, match="LOST"):
        trace._event("CPU:0 [LOST 5 EVENTS]")


def test_spans():
    process = Process(1, {10: 5})
    process.add(100000, 1)
    process.add(12, 10)
    process.add(22, 1)
    assert process.disjoint() == [(10, 13), (100000, 1)]
    assert _coalesced([(10, 13), (30, 2), (100000, 1)]) == [(10, 22), (100000, 1)]


def test_who_is_not_root_is_told_so_before_a_file_is_read(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    for line in (["verify", str(tmp_path / "none.json")], ["record", str(tmp_path / "none.json"), "-o", str(tmp_path / "out")]):
        args = parser().parse_args(line)
        assert args.run(args) == 2
        said = capsys.readouterr().err
        assert ("root is needed" in said or "without KSM" in said) and "none.json" not in said
    assert not (tmp_path / "out").exists()


def test_a_scenario_that_can_not_be_run_is_named_and_the_others_go_on(golden):
    class Refusing(Answers):
        def record(self, scenario):
            if scenario.name == "refused":
                raise ScenarioError("refused: tunables: smart_scan", "no such value", 7)
            return super().record(scenario)

    said = []
    both = [Scenario("refused", [["spawn", "A"]]), golden]
    results = verify.verify(both, lambda _: golden.records, Refusing(golden.records), say=said.append)
    assert results.last_line() == "1 of 2 agree (1 not run)" and "refused: not run: refused: tunables: smart_scan" in said[0]


def test_a_raw_system_call_is_refused_unless_it_is_known_to_be_harmless():
    for number in (39, 149, 150, 151, 152, 325):
        running.check(Scenario("x", [["spawn", "A"], ["syscall", "A", number, 0, 0]]))
    for number in (0, 9, 57, 59, 62, 157, 169, 231, 1 << 63):
        with pytest.raises(ScenarioError, match=rf"x: op 1 syscall: .*: {number}$"):
            running.check(Scenario("x", [["spawn", "A"], ["syscall", "A", number]]))


def test_a_process_whose_name_is_no_text_does_not_stop_the_look_for_ksmd():
    program = "import sys; open('/proc/self/comm', 'wb').write(b'\\xff\\x1b[2J'); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"\n"
        assert "\ufffd" in printable(processes.comm(child.pid))
        assert processes.kernel_thread("ksmd") != child.pid
        child.stdin.close()


def test_a_thread_that_has_ended_does_nothing_any_more():
    """khugepaged ends where huge pages are switched off, at any time."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert surround._asleep(process.pid)
    assert not surround._asleep(os.getpid())


def test_tracing_instances_of_one_process_stand_side_by_side(tmp_path):
    (tmp_path / "instances" / f"ksmwalk-{1 << 23}-1").mkdir(parents=True)  # of a process that is gone
    with trace.instance(tmp_path) as first, trace.instance(tmp_path) as second:
        assert [one.name for one in (first, second)] == [f"ksmwalk-{os.getpid()}", f"ksmwalk-{os.getpid()}-1"]
        assert sorted(first.parent.iterdir()) == [first, second]
    with trace.instance(tmp_path) as again:
        assert again == first and not second.exists()


def test_a_kernel_that_does_not_count_its_visits_has_none(monkeypatch):
    def missing(name):
        raise FileNotFoundError(name)

    monkeypatch.setattr(fullscan.knobs, "read", missing)
    assert fullscan.visits() is None
