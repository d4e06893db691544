"""The scenario format, and the records built and compared by one piece of code for model and kernel."""

import copy
import json
from collections import deque
from pathlib import Path

import numpy as np
import pytest

from ksmwalk.scenarios import format as scenario
from ksmwalk.scenarios import records
from ksmwalk.scenarios.compare import first_difference, states, without_events
from ksmwalk.scenarios.format import Scenario, ScenarioError, dumps, load, recording_from_json, scenario_from_json
from ksmwalk.scenarios.records import ANON, HUGE, KSM, OTHER, SWAP, ZERO, Recorder
from ksmwalk.scenarios.replay import replay

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.json"))
KINDS = {"a": ANON, "k": KSM, "h": HUGE, "z": ZERO, "f": OTHER, "s": SWAP}


def test_there_are_goldens():
    assert len(GOLDEN) >= 106


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_canonical_text_is_the_files(path):
    assert dumps(load(path)) == path.read_text()


class Frames:
    """Gives every page of a recording a frame that fits its codes; written against the format's text alone."""

    def __init__(self):
        self.next = 1000
        self.pages = {}  # name -> {vpn: [frame, letter]}
        self.of_number = {}

    def new(self):
        self.next += 7
        return self.next

    def events(self, texts):
        out = []
        for text in texts:
            what, *rest = text.split()
            if what in ("start", "stop"):
                out.append((what, int(rest[0]), int(rest[1])))
            elif what in ("enter", "exit"):
                out.append((what, rest[0]))
            elif what == "zero":
                out.append((what, rest[0], int(rest[1])))
            elif what == "new":
                if rest[3] == "?":  # mapped nowhere: in the swap cache
                    frame = self.new()
                else:
                    name, vpn = rest[3].split(":")
                    frame = self.pages[name][int(vpn)][0]
                if rest[0] != "-":
                    self.of_number[rest[0]] = frame
                out.append((what, frame, rest[1], int(rest[2])))
            else:
                numbers = [int(field) if field.lstrip("-").isdigit() else field for field in rest[1:]]
                out.append((what, self.of_number[rest[0]], *numbers))
        return out

    def apply(self, changes):
        later, stayed = [], []
        for name, runs in changes.items():
            mine = self.pages.setdefault(name, {})
            for first, n, code in runs:
                for vpn in range(first, first + n):
                    if code == "-":
                        del mine[vpn]
                        continue
                    keeps = vpn in mine and not code.endswith("'")
                    bare = code.rstrip("'")
                    if "@" in bare:
                        (stayed if keeps else later).append((name, vpn, bare))
                    if "@" in bare and not keeps:
                        continue
                    if bare == "z":
                        mine[vpn] = [1, "z"]
                    elif bare[0] == "k" and bare != "k?":
                        mine[vpn] = [self.of_number[bare], "k"]
                    else:
                        mine[vpn] = [mine[vpn][0] if keeps else self.new(), bare[0]]
        for name, vpn, bare in stayed:  # the place it names has moved: the frame is this one's
            owner, place = bare[2:].split(":")
            self.pages[owner][int(place)][0] = self.pages[name][vpn][0]
        for name, vpn, bare in later:
            owner, place = bare[2:].split(":")
            self.pages[name][vpn] = [self.pages[owner][int(place)][0], bare[0]]

    def arrays(self):
        out = {}
        for name, mine in self.pages.items():
            vpns = sorted(mine)
            out[name] = (
                np.array(vpns, np.int64),
                np.array([mine[vpn][0] for vpn in vpns], np.int64),
                np.array([KINDS[mine[vpn][1]] for vpn in vpns], np.int64),
            )
        return out


# In shared_loads pages of a shared object are unmapped and come back: codes alone don't tell which frames those are.
@pytest.mark.parametrize("path", [p for p in GOLDEN if p.stem != "shared_loads"], ids=lambda path: path.stem)
def test_full_states_give_back_the_records(path):
    recording = load(path)
    frames, recorder = Frames(), Recorder()
    counters, stats = dict.fromkeys(records.COUNTERS, 0), {}
    for record in recording.records:
        op = record["op"]
        if op[0] == "exit":
            del stats[op[1]]
            frames.pages.pop(op[1], None)  # those of a task are shown under another's name
        counters |= record.get("c", {})
        stats |= record.get("s", {})
        if op[0] in ("spawn", "fork"):
            frames.pages.setdefault(op[-1], {})
        events = frames.events(record.get("t", []))
        frames.apply(record.get("p", {}))
        made = recorder.record(op, record.get("ret", 0), counters, stats, frames.arrays(), events, record.get("v"))
        assert made == record


def pages(*rows):
    return tuple(np.array(column, np.int64) for column in zip(*rows, strict=True)) if rows else ([], [], [])


def test_page_codes():
    recorder = Recorder()

    def codes(now, events=()):
        return recorder.record(["drain"], 0, {}, {}, now, events).get("p")

    assert codes({"A": pages((5, 10, ANON), (6, 11, ANON), (8, 12, OTHER))}) == {"A": [[5, 2, "a"], [8, 1, "f"]]}
    # a child maps what its parent has: told by the parent's place; KSM and zero pages need no place
    parent = pages((5, 10, ANON), (6, 11, KSM), (7, 1, ZERO), (8, 12, OTHER))
    assert codes({"B": parent, "A": parent}, [("new", 11, "A", 0)]) == {
        "A": [[6, 1, "k0"], [7, 1, "z"]],
        "B": [[5, 1, "a@A:5"], [6, 1, "k0"], [7, 1, "z"], [8, 1, "f@A:8"]],
    }
    # the parent copies 5: it has another frame; the child's page stands alone, with the frame it had
    assert codes({"A": pages((5, 20, ANON), (6, 11, KSM), (7, 1, ZERO), (8, 12, OTHER)), "B": parent}) == {
        "A": [[5, 1, "a'"]],
        "B": [[5, 1, "a"]],
    }
    # A is gone; what B had from it stands alone; what went is told as well
    assert codes({"B": pages((5, 1, ZERO), (6, 30, ANON), (7, 31, HUGE))}) == {
        "B": [[5, 1, "z"], [6, 1, "a'"], [7, 1, "h'"], [8, 1, "-"]],
    }


def test_page_codes_of_a_process_that_is_left_alone():
    recorder = Recorder()
    shared = pages((5, 10, ANON))
    recorder.record(["drain"], 0, {}, {}, {"A": shared, "B": shared})
    record = recorder.record(["exit", "A"], 0, {}, {}, {"B": shared})
    assert record["p"] == {"B": [[5, 1, "a"]]}
    assert "p" not in recorder.record(["drain"], 0, {}, {}, {"B": shared})
    assert recorder.record(["drain"], 0, {}, {}, {"B": pages()})["p"] == {"B": [[5, 1, "-"]]}


def test_zero_page_never_counts_as_moved_but_what_replaces_it_does():
    recorder = Recorder()
    recorder.record(["drain"], 0, {}, {}, {"A": pages((5, 10, ANON))})
    assert recorder.record(["drain"], 0, {}, {}, {"A": pages((5, 1, ZERO))})["p"] == {"A": [[5, 1, "z"]]}
    assert "p" not in recorder.record(["drain"], 0, {}, {}, {"A": pages((5, 2, ZERO))})
    assert recorder.record(["drain"], 0, {}, {}, {"A": pages((5, 10, ANON))})["p"] == {"A": [[5, 1, "a'"]]}


def test_a_swap_entry_stands_for_another_frame_and_is_like_any_other():
    recorder = Recorder()
    recorder.record(["drain"], 0, {}, {}, {"A": pages((5, 10, ANON), (6, 11, ANON))})
    out = pages((5, 77, SWAP), (6, 11, ANON), (7, 78, SWAP))  # what is given as their frame means nothing
    record = recorder.record(["reclaim"], 0, {}, {}, {"A": out, "B": out}, vmstat={"pswpout": 2, "pswpin": 0})
    assert record["p"] == {"A": [[5, 1, "s'"], [7, 1, "s"]], "B": [[5, 1, "s"], [6, 1, "a@A:6"], [7, 1, "s"]]}
    assert record["v"] == {"pswpout": 2}
    again = pages((5, 88, SWAP), (6, 12, ANON), (7, 13, ANON))
    assert recorder.record(["drain"], 0, {}, {}, {"A": again})["p"] == {"A": [[6, 2, "a'"]]}


def test_a_ksm_page_that_was_undone_and_is_still_mapped_has_no_number():
    """As where the partner of a merge turns out to be pinned, and a forked process has the new KSM page too."""
    recorder = Recorder()
    recorder.record(["drain"], 0, {}, {}, {"A": pages((5, 10, ANON)), "B": pages((5, 10, ANON))})
    told = [("new", 10, "A", 0), ("add", 10, "A", -14)]
    for frame in (20, 21):
        now = {"A": pages((5, frame, ANON)), "B": pages((5, 10, KSM))}
        record = recorder.record(["step"], 0, {}, {}, now, told if frame == 20 else ())
        assert record["p"] == ({"A": [[5, 1, "a'"]], "B": [[5, 1, "k?"]]} if frame == 20 else {"A": [[5, 1, "a'"]]})
    assert recorder.record(["step"], 0, {}, {}, {"A": pages((5, 21, KSM))}, [("new", 21, "A", 0)])["t"] == ["new k1 A 0 A:5"]


def test_a_frame_used_again_while_its_stale_node_lives():
    """The stale node that is found late must keep its own number, though the frame is another KSM page by then."""
    recorder = Recorder()
    two = pages((5, 10, ANON), (6, 11, ANON))
    recorder.record(["drain"], 0, {}, {}, {"A": two})
    told = [("new", 11, "A", 0, "item 6"), ("add", 11, "A", 0, "item 5")]
    recorder.record(["step"], 0, {}, {}, {"A": pages((5, 11, KSM), (6, 11, KSM))}, told)
    recorder.record(["drain"], 0, {}, {}, {"A": pages((5, 20, ANON), (6, 21, ANON), (7, 11, ANON), (8, 12, ANON))})
    told = [("new", 11, "A", 0, "item 8"), ("add", 11, "A", 0, "item 7"), ("rmi", 11, "A", "item 6"), ("rmk", 11)]
    now = pages((5, 20, ANON), (6, 21, ANON), (7, 11, KSM), (8, 12, ANON))
    record = recorder.record(["step"], 0, {}, {}, {"A": now}, told)
    assert record["t"] == ["new k1 A 0 A:7", "add k1 A 0", "rmi k0 A", "rmk k0"]
    assert record["p"] == {"A": [[7, 1, "k1"]]}
    assert recorder.record(["step"], 0, {}, {}, {"A": pages((5, 20, ANON))}, [("rmk", 11)])["t"] == ["rmk k1"]


def sifted(recorder, name, seen, told=(), op="step", like=None):
    """The pages that are KSM's, of those a process is seen to have."""
    seen = {name: pages(*seen)}
    recorder.sift_ksm(seen, told, op, like or {})
    vpn, _, kind = seen[name]
    return vpn[kind == KSM].tolist()


def test_where_ksm_pages_are_is_not_where_stale_nodes_think():
    """A kernel that calls anything KSM's is corrected by this: a stale node's frame may be another's by now."""
    recorder = Recorder()
    recorder.record(["step"], 0, {}, {}, {"A": pages((5, 11, KSM), (6, 12, KSM))}, [("new", 11, "A", 0), ("new", 12, "A", 0)])
    everywhere = [(vpn, vpn + 6, KSM) for vpn in range(5, 10)]
    assert sifted(recorder, "A", everywhere) == [5, 6]
    assert sifted(recorder, "A", everywhere, [("new", 13, "A", 0), ("add", 14, "A", -14)]) == [5, 6, 7]
    recorder.record(["drain"], 0, {}, {}, {"A": pages((6, 12, KSM), (7, 11, ANON))})
    assert sifted(recorder, "A", everywhere, [("rmk", 11)]) == [6]
    # between nodes it is told by where it is mapped
    assert sifted(recorder, "A", [(6, 20, KSM), (7, 12, KSM)], op="migrate") == [6]
    # a mapping may have moved, or the frame that all have left is another page's
    assert sifted(recorder, "A", [(6, 20, KSM), (7, 12, KSM)], op="mremap") == [7]
    assert sifted(recorder, "A", [(6, 20, KSM), (7, 12, KSM)], op="pwrite") == []


def test_a_page_that_was_ksms_for_nothing_leaves_its_frame_to_others():
    """Where the second of two equal pages can't be merged, the first one is copied again: into what was freed last."""
    recorder = Recorder()
    recorder.record(["fork", "A", "B"], 0, {}, {}, {"A": pages((5, 11, ANON), (6, 12, ANON)), "B": pages((5, 11, ANON))})
    told = [("new", 11, "A", 0), ("add", 11, "A", -14)]
    assert sifted(recorder, "A", [(5, 13, KSM), (6, 11, KSM)], told) == []
    assert sifted(recorder, "B", [(5, 11, KSM)], told) == [5]
    # one that somebody joined stays
    assert sifted(recorder, "A", [(5, 11, KSM)], [("new", 11, "A", 0), ("add", 11, "A", 0), ("add", 11, "A", -14)]) == [5]


def test_a_ksm_page_that_is_mapped_as_before_is_one_still():
    """A kernel that calls anything KSM's goes by the dirty bit there, which MADV_FREE takes away."""
    recorder = Recorder()
    assert sifted(recorder, "A", [(5, 11, ANON)]) == []
    recorder.record(["step"], 0, {}, {}, {"A": pages((5, 11, KSM), (6, 12, ANON), (8, 13, KSM))}, [("new", 11, "A", 0)])
    seen = [(4, 11, ANON), (5, 11, ANON), (6, 12, ANON), (8, 14, ANON), (9, 13, ANON)]
    assert sifted(recorder, "A", seen) == [5]
    assert sifted(recorder, "A", seen, [("add", 14, "A", 0)]) == [5, 8]
    recorder.record(["exit", "A"], 0, {}, {}, {"B": pages((5, 11, KSM))})
    assert sifted(recorder, "A", seen) == [5]
    assert sifted(recorder, "C", seen) == [] and sifted(recorder, "C", seen, like={"C": "A"}) == [5]


def test_pages_that_moved_into_one_anothers_frames_keep_their_numbers():
    recorder = Recorder()
    made = [("new", 11, "A", 0), ("new", 12, "A", 0)]
    recorder.record(["step"], 0, {}, {}, {"A": pages((5, 11, KSM), (6, 12, KSM), (7, 13, ANON))}, made)
    now = {"A": pages((5, 12, KSM), (6, 11, KSM), (7, 20, ANON))}
    assert recorder.moves(now) == {11: 12, 12: 11}
    record = recorder.record(["migrate", "A", 0, 1], 0, {}, {}, now, [("moved", recorder.moves(now))])
    assert record["p"] == {"A": [[5, 1, "k0'"], [6, 1, "k1'"], [7, 1, "a'"]]}


def test_compaction_is_not_seen():
    recorder = Recorder()
    recorder.record(["drain"], 0, {}, {}, {"A": pages((5, 10, ANON))})
    recorder.record(["step"], 0, {}, {}, {"A": pages((5, 10, KSM))}, [("new", 10, "A", 0)])
    assert "p" not in recorder.record(["step"], 0, {}, {}, {"A": pages((5, 99, KSM))})


def test_enter_and_exit_come_first():
    told = [("start", 0, 4), ("enter", "B"), ("zero", "A", -14), ("exit", "A")]
    record = Recorder().record(["step"], 0, {}, {}, {}, told)
    assert record["t"] == ["enter B", "exit A", "start 0 4", "zero A -14"]


@pytest.mark.parametrize("bad", [pages((6, 1, ANON), (5, 2, ANON)), ([5, 6], [1], [ANON])])
def test_bad_arrays_are_refused(bad):
    with pytest.raises(ValueError, match="pages of A"):
        Recorder().record(["step"], 0, {}, {}, {"A": bad})


@pytest.mark.parametrize("path", GOLDEN[::8], ids=lambda path: path.stem)
def test_any_change_of_a_record_is_found(path):
    recording = load(path)
    assert first_difference(recording.records, recording.records) is None
    for index, record in enumerate(recording.records):
        for key in set(record) - {"op"}:
            changed = copy.deepcopy(recording.records)
            del changed[index][key]
            found = first_difference(recording.records, changed)
            assert found.index == index and {field.split(".")[0] for field, _, _ in found.fields} == {key}
            assert first_difference(recording.records, changed, ignore=[key]) is None
            assert str(record["op"][0]) in found.text()


def test_difference_in_full():
    want = [{"op": ["step"], "c": {"full_scans": 1, "pages_volatile": 3}, "s": {"A": [3, 0, 0, -192, 0, 1]}}]
    got = [{"op": ["step"], "c": {"full_scans": 1, "pages_volatile": 2}, "s": {"A": [3, 0, 0, -192, 0, 0]}}]
    found = first_difference(want, got)
    assert found.fields == [("c.pages_volatile", 3, 2), ("s.A", [3, 0, 0, -192, 0, 1], [3, 0, 0, -192, 0, 0])]
    assert [name for name, _, _ in first_difference(want, got, ["pages_volatile"]).fields] == ["s.A"]
    assert first_difference(want, got, ["c.pages_volatile", "mergeable"]) is None
    assert "rmap_items=3" in found.text("model", "kernel")
    assert first_difference(want, []).index == 0


def test_states_add_up():
    recording = load(Path(__file__).parents[1] / "golden" / "fork_ksm.json")
    (state,) = deque(states(recording.records), maxlen=1)
    assert state.counters["pages_scanned"] == 106
    assert state.stats == {"B": [4, 0, 0, -256, 0, 1]}
    assert state.pages == {"B": dict.fromkeys(range(65536, 65540), "a")}
    assert "65536+4:a" in state.text()


def test_without_events_numbers_by_appearance():
    made = [{"op": ["step"], "t": ["start 0 0"], "p": {"A": [[1, 1, "k7'"], [2, 1, "k3"], [3, 1, "k7"], [4, 1, "a"]]}}]
    assert without_events(made) == [
        {"op": ["step"], "p": {"A": [[1, 1, "k0'"], [2, 1, "k1"], [3, 1, "k0"], [4, 1, "a"]]}}
    ]


def test_recorder_without_events_agrees_with_renumbered_records():
    recorder = Recorder(events=False)
    record = recorder.record(["step"], 0, {}, {}, {"A": pages((1, 50, KSM), (2, 40, KSM), (3, 50, KSM))})
    assert record["p"] == {"A": [[1, 1, "k0"], [2, 1, "k1"], [3, 1, "k0"]]}
    # the frame of k1 goes and comes back: another page
    recorder.record(["step"], 0, {}, {}, {"A": pages((1, 50, KSM))})
    record = recorder.record(["step"], 0, {}, {}, {"A": pages((1, 50, KSM), (2, 40, KSM))})
    assert record["p"] == {"A": [[2, 1, "k2"]]}


START = [["spawn", "A"], ["mmap", "A", 16, 4]]


@pytest.mark.parametrize(
    ("op", "value"),
    [
        (["mmap", "A", -1, 2], -1),
        (["mmap", "A", 1, 0], 0),
        (["mmap", "A", 1, 1, {"prot": "rq"}], "rq"),
        (["mmap", "A", 1, 1, {"huge": 1}], "huge"),
        (["mmap", "A", 1, 1, {"shared": 2}], 2),
        (["mmap", "A", 1 << 45, 1], 1 << 45),
        (["mmap", "B", 1, 1], "B"),
        (["spawn", "A"], "A"),
        (["spawn", "a b"], "a b"),
        (["spawn", "ksmd"], "ksmd"),
        (["fork", "A", "A"], "A"),
        (["exit", "C"], "C"),
        (["madvise", "A", 1, 1, "mergable"], "mergable"),
        (["fill", "A", 1, [1, "2"]], "2"),
        (["fill", "A", 1, 5], 5),
        (["write", "A", [[1, 1 << 64]]], 1 << 64),
        (["write", "A", [[1]]], [1]),
        (["touch", "A", [True]], True),
        (["memset", "A", 1, 256, 4], 256),
        (["prctl", "A", 2], 2),
        (["syscall", "A", 1, 2, 3, 4, 5, 6, 7, 8], 9),
        (["set", "run", 1], "run"),
        (["set", "sleep_millisecs", 1], "sleep_millisecs"),
        (["set", "smart_scan", None], None),
        (["run", "1"], "1"),
        (["step", 0], 0),
        (["step", 1, 2], 2),
        (["sleep", -1], -1),
        (["dance"], "dance"),
        ("step", "step"),
        ([], []),
    ],
)
def test_a_bad_operation_is_named(op, value):
    with pytest.raises(ScenarioError) as caught:
        scenario_from_json({"name": "x", "ops": [*START, op]}, "some.json")
    assert caught.value.value == value
    assert "some.json: op 2 " in str(caught.value)


@pytest.mark.parametrize(
    ("data", "value"),
    [
        ([], []),
        ({"ops": {}}, {}),
        ({"ops": [], "more": 1}, "more"),
        ({"ops": [], "tunables": {"run": 1}}, "run"),
        ({"scenario": {"ops": []}, "records": [{"op": ["step"]}]}, 1),
        ({"scenario": {"ops": [["run", 1]]}, "records": [{"op": ["run", 2]}]}, ["run", 2]),
        ({"scenario": {"ops": []}, "nondet": "t"}, "t"),
    ],
)
def test_a_bad_file_is_named(data, value):
    with pytest.raises(ScenarioError) as caught:
        recording_from_json(data, "some.json")
    assert caught.value.value == value and "some.json" in str(caught.value)


def test_a_name_stands_once_in_an_object(tmp_path):
    file = tmp_path / "twice.json"
    file.write_text('{"ops":[],"ops":[["spawn","A"]]}')
    with pytest.raises(ScenarioError, match="stands twice") as caught:
        load(file)
    assert caught.value.value == "ops" and str(file) in str(caught.value)


def test_who_waits_for_a_vfork_child_does_nothing():
    ops = [["spawn", "A"], ["vfork", "A", "C"], ["mmap", "C", 65536, 4]]
    for last in (["fork", "A", "D"], ["exit", "A"], ["advise", "C", "A", 65536, 1, "cold"]):
        with pytest.raises(ScenarioError, match="op 3.*waits for its vfork child") as caught:
            replay(scenario_from_json({"ops": [*ops, last]}))
        assert caught.value.value == "A"
    replay(scenario_from_json({"ops": [*ops, ["exit", "C"], ["vforked", "A"], ["fork", "A", "D"]]}))


def test_files(tmp_path):
    path = tmp_path / "one.json"
    made = Scenario("one", [*START, ["step", 3]], "a note", {"smart_scan": 0})
    scenario.save(made, path)
    assert load(path).scenario == made and load(path).records is None
    assert [op for _, op in made.steps()] == [*START, ["step"], ["step"], ["step"]]
    path.write_text('{"name": "one", "ops": [')
    with pytest.raises(ScenarioError, match="one.json: line 1 column"):
        load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ScenarioError, match="not UTF-8"):
        load(path)
    path.write_text(json.dumps({"ops": [["set", "nothing", 1]]}))
    with pytest.raises(ScenarioError, match=r"one.json: op 0 .*nothing"):
        load(path)
