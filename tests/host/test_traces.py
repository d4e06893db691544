"""Traces at array speed: the same as the ordinary calls one after the other, array by array."""

import errno
import os

import numpy as np
import pytest
from hostcheck import check

import ksmwalk
from ksmwalk.errors import ArenaFullError
from ksmwalk.host import ADVICE, Mm, traces
from ksmwalk.host.traces import Player, describe, trace_events
from ksmwalk.layout import TRACE_EVENT, Operation, Perm
from ksmwalk.sources import csv_traces
from ksmwalk.sources.traces import iter_trace, save_trace

PAGE, PMD = 4096, 1 << 21
BASE = 1 << 40
RUNS = 400 if os.environ.get("KSMWALK_HYPOTHESIS") == "long" else 60
READ, WRITE, MAP, UNMAP, ADVISE, FORK, EXIT = Operation


# ------------------------------------------------------------------ the slow one


def prot_of(arg):
    return "rw" if arg == 0 else "".join(c for c, bit in (("r", Perm.R), ("w", Perm.W), ("x", Perm.X)) if arg & bit)


def mappable(mm_or_host, addr, length, arg):
    top = (1 << (47 if mm_or_host.levels == 4 else 56)) - PAGE
    length = -(-length // PAGE) * PAGE
    if addr % PAGE or length == 0 or arg > 7:
        return errno.EINVAL
    return errno.ENOMEM if length > min(top, 1 << 47) or addr + length > top else 0


def fill_in(mm, addr):
    """Map the 2 MiB around addr as far as nothing is mapped there."""
    start, end = addr & -PMD, min((addr & -PMD) + PMD, mm.task_size)
    for v in mm.vmas:
        if v.vm_end <= addr:
            start = max(start, v.vm_end)
        elif v.vm_start > addr:
            end = min(end, v.vm_start)
    mm.mmap(end - start, start)


def do(host, mms, event, missing):
    """One event by the ordinary calls."""
    addr, key, arg, number, op = (int(event[name]) for name in ("addr", "key", "arg", "mm", "operation"))
    mm = mms.get(number)
    if op == MAP:
        code = mappable(host, addr, key, arg)
        if code or not 0 <= number < 1 << 22:
            raise OSError(code or errno.EINVAL, "")
        if mm is None:
            mm = mms[number] = host.new_mm()
        mm.mmap(key, addr, prot_of(arg))
        return
    if op in (READ, WRITE):
        if missing and addr < (1 << (47 if host.levels == 4 else 56)) - PAGE:
            if mm is None and not 0 <= number < 1 << 22:
                raise OSError(errno.EINVAL, "")
            mm = mms.setdefault(number, host.new_mm()) if mm is None else mm
            if mm.find_vma(addr) is None:
                fill_in(mm, addr)
        if mm is None:
            raise OSError(errno.EFAULT if missing else errno.ESRCH, "")
        mm.read(addr) if op == READ else mm.write(addr & -PAGE, key)
        return
    if op not in list(Operation):
        raise OSError(errno.EINVAL, "")
    if mm is None:
        raise OSError(errno.ESRCH, "")
    if op == UNMAP:
        mm.munmap(addr, key)
    elif op == ADVISE:
        mm.madvise(addr, key, arg)
    elif op == FORK:
        if key >= 1 << 22 or key in mms:
            raise OSError(errno.EINVAL if key >= 1 << 22 else errno.EEXIST, "")
        mms[key] = mm.fork()
    else:
        mms.pop(number).exit()


def one_by_one(host, mms, events, missing, failed):
    """All of them, errors counted; the index of the one for which the Host was too small."""
    for i, event in enumerate(events):
        try:
            do(host, mms, event, missing)
        except ArenaFullError:
            return i
        except OSError as error:
            failed[error.errno] = failed.get(error.errno, 0) + 1
    return None


# ------------------------------------------------------------------ programs


def machine(rng):
    """A Host with two address spaces of all sorts of areas, KSM at work; where the areas are: [(start, pages)]."""
    host = ksmwalk.Host(16384, int(rng.integers(1, 3)), thp=("never", "always", "madvise")[int(rng.integers(3))])
    host.lru_batch = int(rng.choice([0, 5]))
    mms, places = {}, []
    for number in (0, 300):
        mm = mms[number] = host.new_mm()
        at = BASE
        for kind in ({}, {"shared": True}, {"kind": "file"}, {"kind": "hugetlb"}, {"prot": "r"}, {"kind": "pfnmap", "pfn": 9}):
            pages = 512 if kind.get("kind") == "hugetlb" else int(rng.integers(1, 700))
            places.append((mm.mmap(pages * PAGE, at, **kind), pages))
            at += (-(-pages // 512) + int(rng.integers(0, 2))) * PMD
        for start, pages in places[-6:]:
            for _ in range(3):
                try:
                    mm.write(start + int(rng.integers(pages)) * PAGE, int(rng.integers(4)))
                except OSError:
                    pass
        mm.prctl_merge(True)
        if rng.random() < 0.2:
            mm.mlockall(2 if rng.random() < 0.7 else 6)     # MCL_FUTURE, with MCL_ONFAULT
    host.ksm.use_zero_pages = int(rng.integers(2))
    host.ksm.full_scan()
    return host, mms, places


def program(rng, places, n):
    """A trace of accesses mostly, with some of everything and some nonsense."""
    events = np.zeros(n, TRACE_EVENT)
    weights = np.array([30, 40, 6, 4, 9, 3, 2, 1.0])
    events["operation"] = rng.choice([*Operation, 9], n, p=weights / weights.sum())
    events["mm"] = rng.choice([0, 300, 1, 2, 700, -1, 1 << 22], n, p=[0.3, 0.3, 0.15, 0.1, 0.13, 0.01, 0.01])
    pick = rng.integers(0, len(places), n)
    start = np.array([places[i][0] for i in pick], np.uint64)
    pages = np.array([int(rng.integers(-1, places[i][1] + 2)) for i in pick]).astype(np.int64)
    events["addr"] = start + (pages * PAGE).astype(np.uint64)
    access = events["operation"] <= WRITE
    events["addr"][access] += rng.integers(0, PAGE, access.sum()).astype(np.uint64)
    events["key"] = rng.integers(0, 5, n)
    ranged = (events["operation"] >= MAP) & (events["operation"] <= ADVISE)
    events["key"][ranged] = rng.integers(0, 1100, ranged.sum()) * PAGE + rng.choice([0, 0, 1], ranged.sum()).astype(int)
    forks = events["operation"] == FORK
    events["key"][forks] = rng.choice([1, 2, 700, 5000, 1 << 22], forks.sum(), p=[0.3, 0.3, 0.2, 0.19, 0.01])
    maps = events["operation"] == MAP
    events["arg"][maps] = rng.choice([0, 1, 3, 7, 8], maps.sum(), p=[0.5, 0.1, 0.2, 0.1, 0.1])
    advice = events["operation"] == ADVISE
    events["arg"][advice] = rng.choice([*ADVICE.values(), 77], advice.sum())
    odd = rng.random(n) < 0.02
    strange = [0, 1, BASE + 1, 1 << 47, (1 << 47) - PAGE, 1 << 57, 1 << 63, 2**64 - 1]
    events["addr"][odd] = rng.choice(np.array(strange, np.uint64), odd.sum())
    events["key"][rng.random(n) < 0.005] = 2**64 - 1
    return events


def arrays_of(host):
    arrays = host.__getstate__()["arrays"]
    arrays["mms"] = arrays["mms"].copy()
    arrays["mms"]["vma_hint"] = 0  # where the last look-up of an area ended: the processor needs none
    return arrays


def same(one, two):
    one, two = arrays_of(one), arrays_of(two)
    for name in one:
        assert np.array_equal(one[name], two[name]), name


@pytest.mark.parametrize("missing", [False, True], ids=["mapped by the trace", "mapped where missing"])
@pytest.mark.parametrize("seed", range(4))
def test_a_trace_is_what_the_calls_one_after_the_other_are(seed, missing, monkeypatch):
    for run in range(RUNS // 4):
        slow, slow_mms, places = machine(np.random.default_rng([seed, run]))
        fast, fast_mms, _ = machine(np.random.default_rng([seed, run]))
        rng = np.random.default_rng([seed, run, 1])
        monkeypatch.setattr(traces, "_AT_ONCE", int(rng.choice([1, 7, 64, 1 << 17])))
        monkeypatch.setattr(traces, "_CHANGES", int(rng.choice([1, 2, 1 << 10])))
        player = fast.player(fast_mms, errors="count", map_missing=missing)
        failed = {}
        for _ in range(3):
            events = program(rng, places, int(rng.choice([0, 1, 5, 40, 300])))
            full = one_by_one(slow, slow_mms, events, missing, failed)
            if full is None:
                assert player.apply(events) == len(events)
            else:
                with pytest.raises(ArenaFullError, match=f"event {full}: "):
                    player.apply(events)
            assert player.failed == failed
            same(slow, fast)
            assert {n: mm.index for n, mm in player.mms.items()} == {n: mm.index for n, mm in slow_mms.items()}
            assert all(mm.alive and mm is fast.mm_by_number(mm.index) for mm in player.mms.values())
            slow.ksm.do_scan(50), fast.ksm.do_scan(50)
        check(fast)


@pytest.mark.parametrize("seed", range(4))
def test_the_first_error_ends_it_and_the_rest_can_go_on(seed):
    slow, slow_mms, places = machine(np.random.default_rng(seed))
    fast, fast_mms, _ = machine(np.random.default_rng(seed))
    events = program(np.random.default_rng([seed, 1]), places, 80)
    player = fast.player(fast_mms)
    at = 0
    for i, event in enumerate(events):
        try:
            do(slow, slow_mms, event, False)
        except OSError as error:
            with pytest.raises(OSError) as caught:
                player.apply(events[at:])
            assert caught.value.errno == error.errno
            assert f"event {i - at}: {describe(event)}" in str(caught.value)
            assert player.done == i - at if at == 0 else True
            player._done = i + 1
            at = i + 1
            same(slow, fast)
    player.apply(events[at:])
    same(slow, fast)


# ------------------------------------------------------------------ what a Player does


def small():
    return np.concatenate([
        trace_events("map", BASE, 8 * PAGE, mm=[1, 2]),
        trace_events("write", BASE + np.arange(8) * PAGE + 5, np.arange(8), mm=1),
        trace_events("fork", key=3, mm=1),
        trace_events("write", BASE, 99, mm=3),
        trace_events("exit", mm=2),
    ])  # fmt: skip


def test_whom_the_numbers_stand_for_is_told():
    host = ksmwalk.Host(4096)
    played = host.apply(small())
    assert played.done == 13 and sorted(played.mms) == [1, 3] and played.failed == {}
    assert played.mms[1].read(BASE, 2).tolist() == [0, 1] and played.mms[3].read(BASE) == 99
    assert {mm.index for mm in host.mm_list} == {mm.index for mm in played.mms.values()}
    with pytest.raises(ProcessLookupError, match="event 0: exit of process 2"):
        played.apply(trace_events("exit", mm=2))
    assert repr(played) == "<Player of 2 processes, 13 events done>"


def test_doors_follow_who_exits_and_comes_again_under_the_same_record():
    host = ksmwalk.Host(4096)
    mm = host.new_mm()
    events = np.concatenate([trace_events("exit"), trace_events("map", BASE, PAGE), trace_events("write", BASE, 5)])
    played = host.apply(events, {0: mm})
    assert not mm.alive and played.mms[0].alive and played.mms[0].index == mm.index
    assert played.mms[0].read(BASE) == 5
    with pytest.raises(ProcessLookupError):
        host.player({0: mm})


def test_many_processes_come_and_go_in_one_go():
    host = ksmwalk.Host(4096)
    n = 5000
    events = np.zeros(2 * n, TRACE_EVENT)
    events[::2] = trace_events("map", BASE, PAGE, mm=np.arange(n) * 800)
    events[1::2] = trace_events("exit", mm=np.arange(n) * 800)
    played = host.apply(events)
    assert played.done == 2 * n and not played.mms and not host.mm_list


def test_an_array_that_lies_anyhow_is_applied_too():
    one, two = ksmwalk.Host(4096), ksmwalk.Host(4096)
    events = small()
    wide = np.zeros((len(events), 3), TRACE_EVENT)
    wide[:, 1] = events
    readonly = events.copy()
    readonly.flags.writeable = False
    one.apply(wide[:, 1]), two.apply(readonly)
    same(one, two)
    three = ksmwalk.Host(4096)
    assert three.apply(iter([events[:5], events[5:5], events[5:]])).done == len(events)
    same(one, three)


def test_an_arena_that_is_full_ends_it_whatever_errors_says():
    host = ksmwalk.Host(64)
    events = np.concatenate([trace_events("map", BASE, 100 * PAGE), trace_events("write", BASE + np.arange(100) * PAGE, 1)])
    player = host.player(errors="count")
    with pytest.raises(ArenaFullError, match=rf"frames left at event 64: write at {BASE + 63 * PAGE:#x} of process 0"):
        player.apply(events)
    assert player.done == 64 and not player.failed
    check(host)


def test_an_entry_that_can_not_be_followed_is_named():
    host = ksmwalk.Host(4096)
    player = host.player()
    player.apply(trace_events("map", BASE, PAGE))
    host.world.arrays["rows"][int(host.mms["root"][player.mms[0].index]), (BASE >> 39) & 511] = 0x7777001
    with pytest.raises(ksmwalk.BadEntryError):
        player.apply(trace_events("write", BASE, 1))


@pytest.mark.parametrize("events", [None, 3, "x", [1], np.zeros(3), np.zeros((1, 1), TRACE_EVENT), [np.zeros(2, "u8")]])
def test_what_is_no_trace_is_refused(events):
    with pytest.raises(TypeError):
        ksmwalk.Host(64).apply(events)


def test_bad_arguments_are_named():
    host, other = ksmwalk.Host(64), ksmwalk.Host(64)
    mm = host.new_mm()
    for call, error, what in (
        (lambda: host.player({0: other.new_mm()}), ValueError, r"mms\[0\]"),
        (lambda: host.player({0: mm, 5: mm}), ValueError, r"mms\[5\] and mms\[0\]"),
        (lambda: host.player({-1: mm}), ValueError, "number of mms -1"),
        (lambda: host.player({1 << 22: mm}), ValueError, "number of mms"),
        (lambda: host.player({0: 7}), ValueError, r"mms\[0\] 7"),
        (lambda: host.player([mm]), TypeError, "mms"),
        (lambda: host.player(errors="maybe"), ValueError, "errors 'maybe'"),
        (lambda: host.player(map_missing=2), TypeError, "map_missing 2"),
        (lambda: Player(3), TypeError, "host 3"),
        (lambda: trace_events("jump"), ValueError, "operation 'jump'"),
        (lambda: trace_events(8), ValueError, "operation 8"),
        (lambda: trace_events("read", [1, 2], [3]), ValueError, "addr 2, key 1"),
        (lambda: trace_events("read", -1), ValueError, "addr -1"),
        (lambda: trace_events("read", 0.5), TypeError, "addr 0.5"),
        (lambda: trace_events("read", mm=1 << 22), ValueError, "mm 4194304"),
        (lambda: trace_events("advise", arg="well"), ValueError, "arg 'well'"),
        (lambda: trace_events("map", arg=1 << 16), ValueError, "arg 65536"),
    ):
        with pytest.raises(error, match=what):
            call()
    assert isinstance(host.apply(trace_events("map", BASE, PAGE), {3: mm}).mms[0], Mm)


def test_an_event_is_described():
    more = [trace_events("map", BASE, 1, arg=4), trace_events("unmap", 5, 6), trace_events("advise", 0, 1, arg=99)]
    said = [describe(event) for event in np.concatenate([small(), *more])]
    assert said[0] == f"map, {8 * PAGE} bytes at {BASE:#x}, of process 1" and said[10] == "fork of process 1 to 3"
    assert said[-3:] == [
        f"map (arg 4), 1 bytes at {BASE:#x}, of process 0", "unmap, 6 bytes at 0x5, of process 0",
        "advise 99, 1 bytes at 0x0, of process 0",
    ]  # fmt: skip
    assert describe(np.zeros(1, TRACE_EVENT)[0]) == "operation 0: there is none"


def test_where_no_area_is_2_mib_are_mapped():
    host = ksmwalk.Host(4096)
    played = host.apply(trace_events("write", BASE + 5 * PMD + 77, 3, mm=9), map_missing=True)
    (area,) = played.mms[9].vmas
    assert (area.vm_start, area.vm_end, area.perms) == (BASE + 5 * PMD, BASE + 6 * PMD, "rw-p")
    played.mms[9].munmap(BASE + 5 * PMD, 3 * PAGE), played.mms[9].munmap(BASE + 5 * PMD + 9 * PAGE, PMD)
    played.apply(trace_events("read", BASE + 5 * PMD + 20 * PAGE, mm=9))
    assert [(v.vm_start, v.vm_end) for v in played.mms[9].vmas] == [(BASE + 5 * PMD + 3 * PAGE, BASE + 6 * PMD)]
    with pytest.raises(OSError, match="event 0: read at 0xffff"):
        played.apply(trace_events("read", (1 << 64) - 1, mm=9))


def test_ctrl_c_ends_it_between_two_events():
    import signal

    host = ksmwalk.Host(4096)
    player = host.player()
    player.apply(trace_events("map", BASE, PAGE))
    events = np.tile(trace_events("write", BASE, 1), 3_000_000)
    events["key"] = np.arange(len(events))
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    before = signal.setitimer(signal.ITIMER_REAL, 0.01)
    try:
        with pytest.raises(KeyboardInterrupt):
            for _ in range(1000):
                player.apply(events)
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    at = (player.done - 1) % len(events)
    assert player.mms[0].read(BASE) == (at - 1) % len(events)
    player.apply(events[at:])
    assert player.mms[0].read(BASE) == len(events) - 1


def test_ctrl_c_as_a_piece_ends_loses_nothing(monkeypatch):
    host = ksmwalk.Host(4096)
    player = host.player()
    events = np.concatenate([trace_events("map", BASE, PAGE), trace_events("fork", key=7), trace_events("write", BASE, 5, mm=7)])
    apply = traces._trace.apply

    def interrupted(*args):
        apply(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(traces._trace, "apply", interrupted)
    with pytest.raises(KeyboardInterrupt):
        player.apply(events)
    assert player.done == 3 and set(player.mms) == {0, 7} and player.mms[7].read(BASE) == 5


def test_an_event_that_fails_is_counted_over_all_pieces(tmp_path, monkeypatch):
    events = np.concatenate([
        trace_events("map", BASE, 8 * PAGE), trace_events("write", BASE + np.arange(8) * PAGE, 5, time=np.arange(1, 9) * 10**9),
        trace_events("write", 5, 5, time=9 * 10**9), trace_events("write", BASE, time=9 * 10**9),
    ])  # fmt: skip
    save_trace(tmp_path / "t.csv", events)
    monkeypatch.setattr(csv_traces, "_ROWS", 4)
    ways = (
        lambda host: host.apply(events), lambda host: host.apply(np.split(events, [4, 9])),
        lambda host: host.apply(iter_trace(tmp_path / "t.csv")), lambda host: host.run(20, events),
        lambda host: host.run(20, [events[:2], (1, repr), events[2:]]),
        lambda host: host.run(20, iter_trace(tmp_path / "t.csv")),
        lambda host: host.run(20, events, apply=host.apply(trace_events("map", BASE, PAGE, mm=7)).apply),
    )  # fmt: skip
    for way in ways:
        with pytest.raises(OSError, match="event 9: write at 0x5 of process 0"):
            way(ksmwalk.Host(4096))


def test_masked_arrays_are_taken_where_nothing_is_masked(tmp_path):
    events = np.concatenate([trace_events("map", BASE, 8 * PAGE), trace_events("write", BASE + np.arange(8) * PAGE, 5)])
    for given in (np.ma.array(events), np.ma.array(events, mask=False)):
        assert ksmwalk.Host(4096).apply(given).done == 9
        host = ksmwalk.Host(4096)
        host.run(1, given)
        assert len(host.mm_list) == 1
        assert save_trace(tmp_path / f"{len(os.listdir(tmp_path))}.csv", given) == 9
    given = np.ma.array(events)
    given.mask[7]["key"] = True
    host = ksmwalk.Host(4096)
    for door in (host.apply, lambda given: host.run(1, given), lambda given: save_trace(tmp_path / "t.npy", given)):
        with pytest.raises(TypeError, match="event 7 is masked: leave it out"):
            door(given)
    assert not host.mm_list and not (tmp_path / "t.npy").exists()
