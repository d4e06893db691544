"""An operation stands in three places: its row, what the model does, what the one that drives the real kernel does."""

from __future__ import annotations

import ast
import errno
from pathlib import Path

import pytest

import ksmwalk
from ksmwalk.host import ADVICE
from ksmwalk.kernel.run import Run
from ksmwalk.ksm import sysfs
from ksmwalk.scenarios import kinds, records
from ksmwalk.scenarios.format import Scenario, ScenarioError, dumps, scenario_from_json
from ksmwalk.scenarios.kinds import UFFD_BITS
from ksmwalk.scenarios.ops import OPS, row
from ksmwalk.scenarios.replay import Contents, NotModelled, Replay, _NoKeyLeft, replay, stream
from ksmwalk.scenarios.said import all_there_is, said

SOURCE = Path(ksmwalk.__file__).parent

#: one of each, as it is written in its canonical form
EXAMPLES = [
    ["spawn", "A"], ["mmap", "A", 100, 8], ["mmap", "A", 200, 4, {"prot": "rw", "populate": 1}], ["exec", "A"],
    ["fork", "A", "B"], ["munmap", "A", 100, 2], ["mremap", "A", 102, 2, 4, None], ["mremap", "A", 102, 4, 2, 300],
    ["mprotect", "A", 300, 2, "none"], ["madvise", "A", 100, 8, "mergeable"], ["fill", "A", 100, [1, None, 0]],
    ["write", "A", [[100, 1], [105, 2]]], ["pwrite", "A", [[100, 1]]], ["touch", "A", [100, 107]],
    ["memset", "A", 100, 255, 4097], ["store", "A", 100, 4094, [1, 0]], ["prctl", "A", 1], ["prctl_get", "A"],
    ["thpdisable", "A", 0],
    ["uffd_wp", "A", 100, 2], ["syscall", "A", 149, 409600, 4096], ["set", "pages_to_scan", 5], ["run", 1], ["step"],
    ["step", 3], ["sleep", 0.5], ["drain"], ["exit", "B"], ["mremap", "A", 300, 2, 2, 400, {"dontunmap": 1}],
    ["advise", "A", "A", 300, 2, "cold"], ["mlock", "A", 300, 2], ["mlock2", "A", 300, 2, 1], ["munlock", "A", 300, 2],
    ["mlockall", "A", 3], ["munlockall", "A"], ["uffd", "A", 300, 2, {"missing": 1, "wp": 1, "minor": 1}],
    ["uffd_copy", "A", 300, [1, 2], {"wp": 1}], ["uffd_zero", "A", 302, 1], ["uffd_move", "A", 303, 301, 1],
    ["uffd_protect", "A", 300, 1, 1], ["uffd_unregister", "A", 300, 2], ["pin", "A", 300], ["unpin", "A", 300],
    ["dmapin", "A", 300, 2], ["dmaunpin", "A", 300], ["clone", "A", "T"], ["vfork", "A", "V"], ["exit", "V"],
    ["vforked", "A"], ["watch", "A", 290, 10], ["cpu", "ksmd", 1], ["place", "A", 300, 2, 1], ["place", "A", 300, 2, 1, 2],
    ["move", "A", [300, 301], 0], ["movepid", "A", [300], 1], ["migrate", "A", 0, 1], ["reclaim"], ["swapoff"], ["swapon"],
    ["khuge"], ["brk", "A", 3],
]  # fmt: skip


def methods(cls) -> set[str]:
    return {name.removeprefix("do_") for name in dir(cls) if name.startswith("do_")}


def test_every_operation_has_a_row_and_both_sides_and_nothing_else_has():
    assert methods(Run) == set(OPS) >= methods(Replay)
    assert {op[0] for op in EXAMPLES} == set(OPS)


def test_examples_of_all_are_taken_as_they_stand():
    made = scenario_from_json({"name": "all", "ops": EXAMPLES})
    assert made.ops == EXAMPLES
    assert made.nr_records == len(list(made.steps())) == len(EXAMPLES) + 2


def test_the_rows_say_pages_and_processes():
    spans = {str(op): [(vpn, n) for vpn, n in row(op).spans(op)] for op in EXAMPLES}
    assert spans["['mremap', 'A', 102, 2, 4, None]"] == [(102, 4), (102, 4)]
    assert spans["['mremap', 'A', 102, 4, 2, 300]"] == [(102, 4), (300, 2)]
    assert spans["['fill', 'A', 100, [1, None, 0]]"] == [(100, 3)]
    assert spans["['write', 'A', [[100, 1], [105, 2]]]"] == [(100, 1), (105, 1)]
    assert spans["['touch', 'A', [100, 107]]"] == [(100, 1), (107, 1)]
    assert spans["['memset', 'A', 100, 255, 4097]"] == [(100, 2)]
    assert spans["['prctl', 'A', 1]"] == [] and spans["['set', 'pages_to_scan', 5]"] == []
    acts = {op[0]: row(op).process(op) for op in EXAMPLES}
    assert {name for name, process in acts.items() if process is None} == {
        "spawn", "set", "run", "step", "sleep", "drain", "cpu", "reclaim", "swapoff", "swapon", "khuge",
    }  # fmt: skip
    assert {op[0]: row(op).made(op) for op in EXAMPLES if row(op).made(op)} == {
        "spawn": "A", "fork": "B", "clone": "T", "vfork": "V",
    }  # fmt: skip
    assert [name for name, one in OPS.items() if one.ends] == ["exit"]


@pytest.mark.parametrize("op", EXAMPLES, ids=str)
def test_every_argument_of_every_operation_is_checked(op):
    """Whatever is put in an argument's place is refused or kept as a value of its kind; one too many, one too few too."""
    makes, acts = row(op).made(op), row(op).process(op)
    before = [["spawn", name] for name in sorted({"A", acts or "A"}) if name != makes]
    scenario_from_json({"ops": [*before, op]})
    for place in range(1, len(op)):
        for wrong in (None, -1, 1 << 70, 1.5, "no such thing", [], {}, [[]], {"x": 1}, True, [None, "x"]):
            changed = [*op[:place], wrong, *op[place + 1 :]]
            try:
                scenario_from_json({"ops": [*before, changed]})
            except ScenarioError as error:
                assert f"op {len(before)} " in str(error)
            else:
                assert (op[0], wrong) in [
                    ("mremap", None), ("fill", []), ("write", []), ("pwrite", []), ("touch", []), ("run", -1),
                    ("run", 1 << 70), ("set", -1), ("set", 1 << 70), ("set", "no such thing"), ("sleep", 1.5),
                    ("syscall", -1), ("mmap", {}), ("mremap", {}), ("uffd", {}), ("uffd_copy", []), ("uffd_copy", {}),
                    ("move", []), ("movepid", []),
                ]  # fmt: skip
    with pytest.raises(ScenarioError, match="arguments"):
        scenario_from_json({"ops": [*before, [*op, *[1] * 8]]})


def test_the_canonical_text_has_one_form_of_what_is_on():
    given = {"name": "x", "ops": [["spawn", "A"], ["mmap", "A", 1, 1, {"shared": True, "populate": False}]]}
    assert '{"shared":1,"populate":0}' in dumps(scenario_from_json(given))


def test_facts_are_said_once():
    """Names of knobs and counters, advice and errors come from their tables."""
    assert records.COUNTERS == tuple(sysfs.COUNTERS)
    assert set(kinds.KNOBS) == set(sysfs.KNOBS) - {"run", "sleep_millisecs"}
    assert len(set(ADVICE.values())) == len(ADVICE)
    said = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Dict) and len(node.keys) > 3:
                keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
                if {"dontneed", "mergeable"} <= keys or len(keys & {*sysfs.KNOBS, *sysfs.COUNTERS}) > 8:
                    said.append(path.name)
    assert not said, "the rows of sysfs.Files are attributes: nobody needs a table of their names beside them"


def test_a_scenario_is_streamed():
    made = Scenario("x", [["spawn", "A"], ["step", 1_000_000]])
    one, *_ = (record for record, _ in zip(stream(made), range(3), strict=False))
    assert one["op"] == ["spawn", "A"]


def test_what_the_model_lacks_is_said_before_anything_is_run():
    made = Scenario("x", [["spawn", "A"], ["syscall", "A", 39]])
    with pytest.raises(NotModelled, match="x: op 1"):
        next(stream(made))
    with pytest.raises(NotModelled, match="what surrounds it.*pgfault"):
        next(stream(Scenario("x", [["spawn", "A"]], vmstat=["cow_ksm", "pgfault"])))


def test_shared_memory_is_emptied_for_all_and_private_memory_is_not():
    shared = [["spawn", "A"], ["mmap", "A", 100, 4, {"shared": 1}], ["fill", "A", 100, [1, 2, 3, 4]], ["fork", "A", "B"],
              ["touch", "B", [101]], ["madvise", "A", 101, 2, "remove"]]  # fmt: skip
    assert replay(Scenario("x", shared))[-1]["p"] == {"A": [[101, 2, "-"]], "B": [[101, 2, "-"]]}
    private = [["spawn", "A"], ["mmap", "A", 100, 4], ["madvise", "A", 100, 4, "remove"]]
    assert replay(Scenario("x", private))[-1]["ret"] == -errno.EINVAL


def test_contents_are_ordered_as_memcmp_orders_the_pages():
    ids = [0, 1, 255, 256, 1 << 56, (1 << 64) - 1, 1 << 63]
    contents = Contents([["fill", "A", 1, ids], ["memset", "A", 1, 0, 1]])
    page = {contents.key(number): number.to_bytes(8, "big") + bytes(4088) for number in ids}
    for byte, length in ((0, 4096), (1, 4096), (255, 5), (0, 1), (7, 4095), (255, 4096), (128, 1)):
        for key in list(page):
            made = contents.after_memset(key, byte, length)
            wanted = bytes([byte]) * length + page[key][length:]
            assert page.setdefault(made, wanted) == wanted
    in_order = [page[key] for key in sorted(page)]
    assert in_order == sorted(set(in_order)) and len(in_order) > 20 and contents.key(0) == 0


def test_keys_are_spread_anew_where_there_is_none_between_two():
    contents = Contents([["memset", "A", 1, 0, 1]])
    key = 0
    with pytest.raises(_NoKeyLeft):
        for length in range(1, 200):
            key = contents.after_memset(0, 1, 200 - length)
    before = contents.after_memset(0, 1, 199)
    assert before > contents.after_memset(0, 1, 190) > 0 and key >= 0


def test_a_run_that_needs_new_keys_tells_the_same_records():
    """Each memset makes a page that lies between the last and the empty one, until no key is left between them."""
    made = [["spawn", "A"], ["mmap", "A", 100, 120], ["madvise", "A", 100, 120, "mergeable"], ["run", 1]]
    for n in range(100):
        made += [["memset", "A", 100 + n, 1, 100 - n]]
    told = replay(Scenario("x", [*made, ["set", "pages_to_scan", 1000], ["step", 3]]))
    assert [record["op"][0] for record in told].count("memset") == 100
    assert told[-1]["c"]["pages_scanned"] > 100 or told[-2]["c"]["pages_scanned"] > 100


def test_a_scenario_with_many_records_is_refused():
    with pytest.raises(ScenarioError, match="records at most, not: 1000002"):
        scenario_from_json({"ops": [["spawn", "A"], ["step", 1_000_000], ["drain"]]})


def test_all_that_a_scenario_says_is_in_the_table_of_what_can_be_said():
    there = all_there_is(tuple(ADVICE))
    around = {"env": {"thp": "always", "mthp_64": "always", "swap_mib": 1}, "settle": 0, "vmstat": ["pgfault"]}
    words = said(scenario_from_json({"name": "all", "ops": EXAMPLES, **around}))
    assert words <= {*there} and len({*there}) == len(there)
    assert {"advise cold", "mmap populate", "mremap dontunmap", "set pages_to_scan", "env swap_mib", "settle 0"} <= words
    assert {f"uffd {mode}" for mode in UFFD_BITS} <= words
    assert "madvise" not in words and "mmap prot" not in words and said(Scenario("nothing", [])) == set()
