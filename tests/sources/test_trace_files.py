"""Readers of traces: held against slow ones that share no code, cut anywhere, and given nonsense."""

import bz2
import gzip
import lzma
import os
import random
import re
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ksmwalk
from ksmwalk.host import trace_events
from ksmwalk.layout import TRACE_EVENT, Operation
from ksmwalk.sources import csv_traces, traces
from ksmwalk.sources.traces import BadTrace, TraceSummary, iter_trace, read_trace, save_trace, watched

DATA = Path(__file__).parents[1] / "data"
PAGE = 4096
PACKERS = {"": lambda b: b, ".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}

EVENT = st.tuples(
    st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**22 - 1),
    st.sampled_from([int(o) for o in Operation]), st.integers(0, 2**16 - 1),
)  # fmt: skip


def written(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    return path


# ------------------------------------------------------------------ .npy and CSV


@pytest.mark.parametrize("ending", [".npy", ".csv"])
@given(rows=st.lists(EVENT, max_size=30), piece=st.sampled_from([33, 100, 1 << 20]), packed=st.sampled_from(list(PACKERS)))
def test_what_is_saved_is_read_again(tmp_path_factory, ending, rows, piece, packed):
    folder = tmp_path_factory.mktemp("trace")
    events = np.array(rows, TRACE_EVENT)
    path = folder / f"trace{ending}"
    assert save_trace(path, iter([events[:3], events[3:]])) == len(events)
    path = written(folder, path.name + packed, PACKERS[packed](path.read_bytes()))
    before, traces._PIECE = traces._PIECE, piece
    try:
        assert np.array_equal(read_trace(path), events)
    finally:
        traces._PIECE = before


@pytest.mark.parametrize(
    "text",
    [
        b"operation,addr\nwrite,1\nread,2\n\n", b"\xef\xbb\xbfoperation,addr\nwrite,1\nread,2",
        b"operation,addr\nWRITE,1\nRead,2\n",
        b" operation , addr\n write, 1\nread , 2 \n", b"operation,addr\r\nwrite,1\r\nread,2\r\n\r\n  \r\n",
        b'operation,addr\n"write", "1"\n"read\n",2\n', b"operation,addr\rwrite,1\rread,2\r",
        b"operation,addr\n2,0x1\n1,0X2\n \n\n\n",
    ],
)  # fmt: skip
@pytest.mark.parametrize("piece", [1 << 20, 10])
@pytest.mark.parametrize("name", ["t.csv", "t"])
def test_csv_as_people_and_programs_write_it(tmp_path, text, piece, name, monkeypatch):
    monkeypatch.setattr(traces, "_PIECE", piece)
    monkeypatch.setattr(csv_traces, "_ROWS", piece // 10)
    assert np.array_equal(read_trace(written(tmp_path, name, text)), trace_events([2, 1], [1, 2]))


def test_csv_takes_names_for_numbers_and_columns_in_any_order(tmp_path):
    text = "addr, operation,mm,arg,key\n0x1000,map,3,0,0x2000\n4096,2,3,0,7\n4096,advise,3,mergeable,8192\n8192,read,3,0,0"
    events = read_trace(written(tmp_path, "t.csv", text.encode()))
    assert events["operation"].tolist() == [3, 2, 5, 1] and events["arg"].tolist() == [0, 0, 12, 0]
    assert events["addr"].tolist() == [4096, 4096, 4096, 8192] and events["key"].tolist() == [8192, 7, 8192, 0]
    host = ksmwalk.Host(4096)
    assert host.apply(events).mms[3].read(4096) == 7


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (b"", "line 1"),
        (b"time,mm\n1,2\n", "line 1"),
        (b"operation,addr,size\n", "line 1: column 'size'"),
        (b"operation,addr,addr\n", "line 1"),
        (b"operation,addr\nread,1\nread\n", "line 3: 1 columns"),
        (b"operation,addr\nread,1\njump,1\n", "line 3: operation 'jump': must be from 1 to 7, or one of read, write, map"),
        (b"operation,addr\nread,1\n8,1\n", "line 3: operation '8'"),
        (b"operation,addr,arg\nadvise,1,MADV_X\n", "line 2: arg 'MADV_X': must be from 0 to 65535, or one of .*mergeable"),
        (b"operation,addr\nread,1\nread,-1\n", "line 3: addr '-1'"),
        (b"operation,addr\nread,1.5\n", "line 2: addr '1.5'"),
        (b"operation,addr,mm\nread,1,4194304\n", "line 2: mm '4194304'"),
        (b"operation,addr\nread,18446744073709551616\n", "line 2: addr"),
        (b"operation,addr\nread,1\nread,\xff\n", "line 3: byte 0xff"),
        (b"operation,addr\n" + b"read,1\n" * 3 + b"0" * 5000, "line 5: longer than 4096"),
        (b"operation,addr\n" + b"read,1\n" * 3 + b"\nread,1\n", "line 5: is empty"),
        (b"operation,addr\nread,1\n \n\n,\n\n", "line 3: is empty"),
        (b"operation,addr\nread,1\n\njump,1\n", "line 3: is empty"),
        (b"operation,addr\njump,1\nread\n", "line 2: operation 'jump'"),
        (b"\noperation,addr\nread,1\n", "line 1: columns"),
        (b"operation,addr\nread,1\x0cread,1\n", "line 2: 3 columns"),
        (b'operation,"\naddr"\n"re\nad",1\n', "line 3: operation 're\\\\nad'"),
        (b'operation,addr\n"read\n",1\nread,"1\n\n"\njump,1\n', "line 7: operation 'jump'"),
        (b'operation,addr\n"read\n",1\nread,"1\nread,1\n', "line 4: no row of CSV"),
        (b'operation,addr\nread,1\n"read,1\n' + b"read,1\n" * 20_000, "line 3: no row of CSV: field larger"),
        (b'operation,addr\nread,1\nread,"1"2\n', "line 3: no row of CSV"),
        (b'operation,addr\njump,1\nread,"1', "line 2: operation 'jump'"),
        (b'operation,"addr', "line 1: no row of CSV"),
    ],
)
@pytest.mark.parametrize("piece", [1 << 20, 10])
def test_a_wrong_line_of_csv_is_named(tmp_path, text, where, piece, monkeypatch):
    monkeypatch.setattr(traces, "_PIECE", piece)
    monkeypatch.setattr(csv_traces, "_ROWS", piece // 5)
    with pytest.raises(BadTrace, match=where) as caught:
        read_trace(written(tmp_path, "t.csv", text))
    assert str(caught.value).startswith(str(tmp_path / "t.csv"))


def test_npy_of_some_fields_and_other_integers_is_taken(tmp_path):
    some = np.array([(2, 4096, 7), (1, 8192, 0)], [("operation", "u1"), ("addr", "i8"), ("key", ">u4")])
    np.save(tmp_path / "t.npy", some)
    assert np.array_equal(read_trace(tmp_path / "t.npy"), trace_events([2, 1], [4096, 8192], [7, 0]))
    np.save(tmp_path / "n.npy", np.array([(2, -1)], [("operation", "u1"), ("addr", "i8")]))
    with pytest.raises(BadTrace, match=r"from event 0 on: addr\[0\] -1"):
        read_trace(tmp_path / "n.npy")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(3), np.zeros((2, 2), TRACE_EVENT), np.array([1, "x"], object), np.zeros(2, [("operation", "u1")]),
        np.zeros(2, [("operation", "u1"), ("addr", "f8")]), np.zeros(2, [("operation", "u1"), ("addr", "u8", (2,))]),
        np.zeros(2, [("operation", "u1"), ("addr", "u8"), ("size", "u8")]),
        np.zeros(1, {"names": ["operation", "addr"], "formats": ["u1", "u8"], "offsets": [0, 8], "itemsize": 1 << 20}),
    ],
)  # fmt: skip
def test_npy_of_something_else_is_refused(tmp_path, array):
    np.save(tmp_path / "t.npy", array, allow_pickle=True)
    with pytest.raises(BadTrace, match="dtype|no .npy"):
        read_trace(tmp_path / "t.npy")


@pytest.mark.parametrize("operation", [0, 8, 99])
def test_an_operation_that_there_is_not_is_refused_by_its_event(tmp_path, operation, monkeypatch):
    events = trace_events("read", addr=np.arange(5, dtype=np.uint64) * PAGE)
    events["operation"][3] = operation
    np.save(tmp_path / "t.npy", events)
    monkeypatch.setattr(traces, "_PIECE", 2 * events.itemsize)
    with pytest.raises(BadTrace, match=f"event 3: operation {operation}: must be from 1 to 7"):
        read_trace(tmp_path / "t.npy")


def test_npy_that_is_cut_or_goes_on_is_refused_behind_what_was_given(tmp_path, monkeypatch):
    monkeypatch.setattr(traces, "_PIECE", 32)
    events = trace_events("read", np.arange(4))
    save_trace(tmp_path / "t.npy", events)
    data = (tmp_path / "t.npy").read_bytes()
    pieces = iter_trace(written(tmp_path, "cut.npy", data[:-40]))
    assert next(pieces)["addr"].tolist() == [0] and next(pieces)["addr"].tolist() == [1]
    with pytest.raises(BadTrace, match="4 events were written, it ends in event 2"):
        next(pieces)
    with pytest.raises(BadTrace, match="goes on behind its 4 events"):
        read_trace(written(tmp_path, "long.npy", data + b"x"))


def test_saving_overwrites_nothing(tmp_path):
    events = trace_events("read", 1)
    save_trace(tmp_path / "t.npy", events)
    with pytest.raises(FileExistsError):
        save_trace(tmp_path / "t.npy", events)
    with pytest.raises(ValueError, match=r"\.npy or \.csv"):
        save_trace(tmp_path / "t.txt", events)


@pytest.mark.parametrize("ending", [".npy", ".csv"])
def test_what_is_no_trace_is_not_saved(tmp_path, ending):
    """Fields in another order among them: they would be taken for one another."""
    turned = np.zeros(2, [(name, TRACE_EVENT[name]) for name in reversed(TRACE_EVENT.names)])
    for i, wrong in enumerate((turned, turned["addr"], np.zeros((1, 2), TRACE_EVENT), [turned], [3], 3, None)):
        with pytest.raises(TypeError, match="must be one row of layout.TRACE_EVENT"):
            save_trace(tmp_path / f"{i}{ending}", wrong)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("ending", [".npy", ".csv"])
def test_what_is_not_saved_whole_leaves_no_file(tmp_path, ending):
    events = trace_events("read", np.arange(10))

    def breaks():
        yield events
        raise BadTrace("source", "is damaged")

    with pytest.raises(BadTrace, match="source"):
        save_trace(tmp_path / f"t{ending}", breaks())
    with pytest.raises(FileNotFoundError, match="missing"):
        save_trace(tmp_path / f"t{ending}", iter_trace(tmp_path / "missing.csv"))
    with pytest.raises(FileNotFoundError) as refused:
        save_trace(tmp_path / "none" / f"t{ending}", events)
    assert refused.value.filename == str(tmp_path / "none" / f"t{ending}") and not os.listdir(tmp_path)
    limit, full = resource.getrlimit(resource.RLIMIT_FSIZE), trace_events("read", np.arange(1 << 14))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large") as refused:
            save_trace(tmp_path / f"t{ending}", full)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert refused.value.filename == str(tmp_path / f"t{ending}") and not os.listdir(tmp_path)
    assert save_trace(tmp_path / f"t{ending}", full) == 1 << 14 and np.array_equal(read_trace(tmp_path / f"t{ending}"), full)


# ------------------------------------------------------------------ lackey


def slow_lackey(text, fetches, mm):
    """(time, addr, operation) of each access and page, and the stores' contents are all different."""
    out, instructions = [], 0
    for line in text.splitlines():
        if line.startswith(("==", "--")):
            continue
        kind, addr, size = re.fullmatch(r"(I | [LSM]) ([0-9a-fA-F]{1,16}),(\d{1,6})", line).groups()
        addr, size, kind = int(addr, 16), int(size), kind.strip()
        instructions += kind == "I"
        for operation in {"I": "r" * fetches, "L": "r", "S": "w", "M": "rw"}[kind]:
            for page in range(addr // PAGE, (addr + size - 1) // PAGE + 1):
                out.append((instructions, max(addr, page * PAGE), 1 if operation == "r" else 2, mm))
    return out


def held_to_slow(path, text, fetches, mm=0):
    events = read_trace(path, "lackey", fetches=fetches, mm=mm)
    assert events[["time", "addr", "operation", "mm"]].tolist() == slow_lackey(text, fetches, mm)
    stores = events["operation"] == Operation.WRITE
    assert len(set(events["key"][stores].tolist())) == stores.sum() and not events["key"][~stores].any()
    assert (events["key"][stores] >> 63 == 1).all() and not events["arg"].any()


@pytest.mark.parametrize("fetches", [False, True])
def test_what_lackey_wrote_is_read_as_a_slow_reader_reads_it(fetches):
    held_to_slow(DATA / "lackey.log", (DATA / "lackey.log").read_text(), fetches, mm=5)


LINE = st.one_of(
    st.sampled_from(["==1== Lackey", "--1-- x", "=="]),
    st.builds(
        lambda kind, addr, size: f"{kind} {addr:x},{size}", st.sampled_from(["I ", " L", " S", " M"]),
        st.integers(0, 2**64 - 70000), st.one_of(st.integers(1, 64), st.integers(1, 65536)),
    ),
)  # fmt: skip


@given(
    lines=st.lists(LINE, max_size=40), fetches=st.booleans(), piece=st.sampled_from([5, 50, 1 << 20]),
    end=st.sampled_from(["", "\n"]),
)  # fmt: skip
def test_lackey_lines_of_any_kind(tmp_path_factory, lines, fetches, piece, end):
    text = "\n".join(lines) + (end if lines else "")
    path = written(tmp_path_factory.mktemp("lackey"), "t.log", text.encode())
    before, traces._PIECE = traces._PIECE, piece
    try:
        held_to_slow(path, text, fetches)
    finally:
        traces._PIECE = before


@pytest.mark.parametrize(
    "line",
    [
        "hello", "L 1,2", " L 1", " L 1,", " L ,4", " L 1,0", " L 1,65537", " L 1,9999999", " X 1,2", "I 1,2", " I 1,2", "I  xyz,1",
        " L 12345678901234567,1", " L ffffffffffffffff,2", " L 1,2 ", " L  1,2", "", "=", "I", "IL 1,2",
    ],
)  # fmt: skip
@pytest.mark.parametrize("piece", [1 << 20, 9])
def test_a_line_that_is_not_lackeys_is_named(tmp_path, line, piece, monkeypatch):
    monkeypatch.setattr(traces, "_PIECE", piece)
    path = written(tmp_path, "t.log", f"==1== x\nI  10,1\n L 20,8\n{line}\n L 30,4\n".encode())
    with pytest.raises(BadTrace, match="line 4: none of lackey's"):
        read_trace(path, "lackey")


def test_nanoseconds_of_an_instruction():
    events = read_trace(DATA / "lackey.log", ns_per_instruction=2.5)
    assert np.array_equal(events["time"], (read_trace(DATA / "lackey.log")["time"] * 2.5).astype(int))


# ------------------------------------------------------------------ ChampSim


def slow_champsim(data, fetches):
    out = []
    for number, at in enumerate(range(0, len(data), 64)):
        ip, _, _, _, _, d0, d1, *sources = struct.unpack("<QBB2s4sQQQQQQ", data[at : at + 64])
        out += [(number, ip, 1)] if fetches and ip else []
        out += [(number, addr, 1) for addr in sources if addr] + [(number, addr, 2) for addr in (d0, d1) if addr]
    return out


def records(rng, n):
    pick = lambda: rng.choice([0, 0, rng.randrange(1 << 47), 1 << 40])  # noqa: E731
    heads = [(rng.randrange(1 << 47), rng.randrange(2), rng.randrange(2), b"ab", b"cdef") for _ in range(n)]
    return b"".join(struct.pack("<QBB2s4sQQQQQQ", *head, *(pick() for _ in range(6))) for head in heads)


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("piece", [64, 640, 1 << 20])
def test_champsim_is_read_as_a_slow_reader_reads_it(tmp_path, packed, piece, monkeypatch):
    monkeypatch.setattr(traces, "_PIECE", piece)
    data = records(random.Random(piece), 100)
    path = written(tmp_path, f"x.champsimtrace{packed}", PACKERS[packed](data))
    for fetches in (False, True):
        events = read_trace(path, fetches=fetches)
        assert events[["time", "addr", "operation"]].tolist() == slow_champsim(data, fetches)
        stores = events["key"][events["operation"] == 2].tolist()
        assert len(set(stores)) == len(stores) and min(stores) >= 1 << 63


@pytest.mark.parametrize("packed", PACKERS)
def test_champsim_that_is_cut_is_refused(tmp_path, packed):
    data = records(random.Random(1), 10)
    path = written(tmp_path, f"x.champsimtrace{packed}", PACKERS[packed](data[:-10]))
    with pytest.raises(BadTrace, match="ends within the record at byte 576"):
        read_trace(path)
    if packed:
        path = written(tmp_path, f"y.champsimtrace{packed}", PACKERS[packed](data)[:-20])
        with pytest.raises(BadTrace, match="damaged after 0 unpacked bytes"):
            read_trace(path)


# ------------------------------------------------------------------ any file


def test_what_is_no_regular_file_is_refused_without_opening_it(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, "/dev/zero"):
        with pytest.raises(BadTrace, match="no regular file"):
            list(iter_trace(path, "champsim"))
    with pytest.raises(FileNotFoundError):
        read_trace(tmp_path / "none")


def test_arguments_are_looked_at_before_the_file_is():
    for arguments, error in (
        ({"kind": "xml"}, ValueError), ({"mm": -1}, ValueError), ({"mm": 0.5}, TypeError), ({"fetches": 2}, TypeError),
        ({"ns_per_instruction": -1}, ValueError), ({"ns_per_instruction": float("nan")}, ValueError),
        ({"ns_per_instruction": "1"}, ValueError),
    ):  # fmt: skip
        with pytest.raises(error):
            iter_trace("/nowhere", **arguments)


def test_a_file_of_unknown_kind_says_so(tmp_path):
    with pytest.raises(BadTrace, match="name its kind"):
        read_trace(written(tmp_path, "x.bin", b"\0" * 128))
    with pytest.raises(BadTrace, match="name its kind"):
        read_trace(written(tmp_path, "empty", b""))


@pytest.mark.parametrize("seed", range(300))
def test_damaged_files_are_read_or_refused(tmp_path, seed):
    rng = random.Random(seed)
    kind = rng.choice(traces.KINDS)
    events = trace_events(np.array([1, 2, 3, 5, 7] * 20), np.arange(100) * 4096, np.arange(100))
    if kind in ("npy", "csv"):
        save_trace(tmp_path / f"t.{kind}", events)
        data = (tmp_path / f"t.{kind}").read_bytes()
    else:
        data = records(rng, 20) if kind == "champsim" else (DATA / "lackey.log").read_bytes()[:3000]
    pack = rng.choice(list(PACKERS.values()))
    packed_first = rng.random() < 0.5
    data = bytearray(pack(bytes(data)) if packed_first else data)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(data))
        what = rng.randrange(3)
        if what == 0:
            data[at] = rng.randrange(256)
        elif what == 1:
            del data[at : at + rng.randrange(1, 50)]
        else:
            data[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 20)))
    path = written(tmp_path, "x", bytes(data) if packed_first else pack(bytes(data)))
    try:
        got = read_trace(path, kind)
    except BadTrace as error:
        assert str(path) in str(error) and error.why
    else:
        assert got.dtype == TRACE_EVENT
        ksmwalk.Host(4096).apply(got, errors="count")


def test_a_bad_trace_survives_a_pickle():
    import pickle

    error = pickle.loads(pickle.dumps(BadTrace("a\x1b", "is bad")))
    assert (error.path, error.why) == ("a\x1b", "is bad") and "\x1b" not in str(error)


# ------------------------------------------------------------------ what is in a trace


@given(rows=st.lists(EVENT, max_size=40), cut=st.integers(0, 40))
def test_a_summary_counts_what_plain_sets_count(rows, cut):
    events = np.array(rows, TRACE_EVENT)
    summary = TraceSummary()
    assert len(np.concatenate(list(watched([events[:cut], events[cut:]], summary)))) == len(events)
    pages = {(mm, addr // PAGE) for _, addr, _, mm, operation, _ in rows if operation <= 2}
    stored = {(mm, addr // PAGE) for _, addr, _, mm, operation, _ in rows if operation == 2}
    assert (summary.events, summary.pages, summary.written) == (len(rows), len(pages), len(stored))
    assert summary.processes == len({row[3] for row in rows})
    assert sum(summary.operations.values()) == len(rows)
    times = [row[0] for row in rows]
    assert summary.seconds == ((max(times) - min(times)) / 1e9 if rows else 0)
    assert not rows or summary.footprint[-1] == (summary.seconds, len(pages))
    assert summary.footprint == sorted(summary.footprint)
