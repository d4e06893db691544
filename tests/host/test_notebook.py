"""What notebooks show: maps of address spaces against a slow reference, HTML that stands by itself, nothing touched."""

from __future__ import annotations

import json
import pickle
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksmwalk import Host
from ksmwalk.drawing.spaces import KINDS, PAGE, Runs, picture
from ksmwalk.host import notebook
from ksmwalk.ksm import sysfs
from ksmwalk.layout import Frame, Vm
from ksmwalk.proc import pagemap
from ksmwalk.sources import ProcessCapture, VmaRecord

M = 2 << 20


def parsed(html):
    """HTML as a tree: well-formed, and with nothing in it that is fetched or run."""
    assert not re.search(r"<(script|style|link|img|iframe|object)|https?://(?!www\.w3\.org/2000/svg)|url\(|\son\w+=", html)
    return ElementTree.fromstring(f"<div>{html}</div>")


def words(html):
    return " ".join("".join(parsed(html).itertext()).split())


@pytest.fixture
def busy():
    """A Host with pages of every kind."""
    host = Host(1 << 14)
    mm = host.new_mm()
    heap = mm.mmap(2 * M)
    mm.populate(heap, M, np.arange(512, dtype=np.uint64) // 4)
    mm.madvise(heap, 2 * M, "mergeable")
    mm.read(heap + M, 7)
    large = mm.mmap(2 * M)
    mm.madvise(large, 2 * M, "hugepage")
    mm.write(large, [1] * 600)
    far = mm.mmap(1 << 40, addr=1 << 44, noreserve=True)
    for n in range(30):
        mm.write(far + n * (64 << 20), 3)
    mm.write(mm.mmap(M, shared=True), [5] * 9)
    mm.mmap(M, kind="pfnmap", pfn=1 << 30)
    host.ksm.use_zero_pages = 1
    host.ksm.run = 1
    host.ksm.run_until()
    mm.write(mm.mmap(M), [9] * 3)
    return host


def slow_kinds(mm):
    """Pages by kind, one at a time."""
    frames, found = mm.host.frames, dict.fromkeys(KINDS, 0)
    for vma in mm.vmas:
        could = not vma.vm_flags & (Vm.SHARED | Vm.MAYSHARE | Vm.PFNMAP | Vm.IO | Vm.HUGETLB | Vm.MIXEDMAP | Vm.DONTEXPAND)
        for addr in range(vma.vm_start, vma.vm_end, PAGE) if vma.vm_end - vma.vm_start < 1 << 30 else ():
            record = mm.tables.lookup(addr)
            if record is None:
                continue
            pfn = int(record["pfn"]) + (addr - int(record["addr"])) // PAGE
            flags = int(frames.flags[pfn]) if pfn < len(frames) else 0
            if not could:
                kind = "not eligible"
            elif flags & Frame.ZERO:
                kind = "zero page"
            elif flags & Frame.KSM:
                kind = "KSM"
            elif frames.mapcount[pfn] > 1:
                kind = "shared by fork"
            else:
                kind = "THP" if record["level"] == 2 else "anonymous"
            found[kind] += 1
    return found


def test_a_map_shows_what_is_there(busy):
    mm = busy.mm_list[0]
    mm.munmap(1 << 44, 1 << 40)  # too long for the reference
    for child in (None, mm.fork()):
        drawn = notebook.space(mm)
        assert dict(zip(KINDS, drawn.runs.pages().tolist(), strict=True)) == slow_kinds(mm)
        assert sum(drawn.runs.pages()) and child is None or drawn.runs.pages()[KINDS.index("shared by fork")]
    html = mm._repr_html_()
    assert words(html).startswith(f"Address space {mm.index}: 14 MiB mapped in 5 areas")
    assert {path.get("fill") for path in parsed(html).iter("{http://www.w3.org/2000/svg}path")} >= {"#2a9d5c", "#2aa3b8"}


def test_equal_rows_are_folded_and_gaps_are_labels(busy):
    shown = words(busy.mm_list[0]._repr_html_())
    assert "30 x 4 KiB every 64 MiB: 120 KiB anonymous" in shown and "mapped, nothing present" in shown
    assert "of it marked mergeable" in shown


def test_looking_changes_nothing(busy):
    before, mm = pickle.dumps(busy, 5), busy.mm_list[0]
    count = mm.tables.bad_count
    for shown in (busy, mm, busy.ksm, busy.ksm.counters()):
        shown._repr_html_(), repr(shown)
    assert pickle.dumps(busy, 5) == before and mm.tables.bad_count == count


def test_some_at_a_time_is_the_same(busy, monkeypatch):
    mm = busy.mm_list[0]
    mm.mmap(8 << 30, addr=1 << 43)
    mm.write_at((1 << 43) + np.arange(0, 8 << 30, 256 << 20, dtype=np.uint64), 1)
    whole = mm._repr_html_()
    monkeypatch.setattr(notebook, "_AT_ONCE", 600)
    assert mm._repr_html_() == whole
    monkeypatch.setattr(notebook, "_AT_ONCE", 10)
    with pytest.raises(ValueError, match="more than 10 mappings"):  # a GiB is not cut: 10 would never do
        notebook.space(mm)
    monkeypatch.undo()
    monkeypatch.setattr(notebook, "_MOST", 40)
    assert "more than 160 KiB are present: only areas up to 0x" in words(mm._repr_html_())


def test_spaces_without_anything():
    host = Host(4096)
    mm = host.new_mm()
    assert words(mm._repr_html_()) == f"Address space {mm.index}: 0 B mapped in 0 areas, 0 B present"
    mm.mmap(M)
    assert "2 MiB mapped, nothing present" in words(mm._repr_html_())
    mm.exit()
    assert words(mm._repr_html_()) == f"Address space {mm.index}: exited"


def test_entries_that_lead_nowhere_are_counted(busy):
    mm = busy.mm_list[0]
    top = busy._arrays["rows"][mm.tables.root]
    kept, top[32] = int(top[32]), 0xFFFFFFFF067  # of the addresses from 1 << 44 on
    assert "1 entry leads nowhere" in words(mm._repr_html_()) and not mm.tables.bad_count
    top[32] = kept
    assert "nowhere" not in words(mm._repr_html_())


def test_a_host_lists_its_address_spaces(busy):
    for _ in range(20):
        busy.new_mm()
    shown = words(busy._repr_html_())
    assert shown.startswith("Host: 64 MiB in 16,384 frames on 1 node") and "and 5 more address spaces" in shown
    rows = [["".join(cell.itertext()) for cell in row] for row in parsed(busy._repr_html_()).iter("tr")]
    mm = busy.mm_list[0]
    merged = str(mm.ksm_stat()["ksm_merging_pages"])
    assert rows[1][:3] == [str(mm.index), str(len(mm.vmas)), "1.0 TiB"] and rows[1][5] == merged
    assert words(Host(2)._repr_html_()).startswith("Host: 8 KiB in 2 frames on 1 node")


def test_counters_are_a_dictionary_and_a_table(busy):
    counters = busy.ksm.counters()
    assert isinstance(counters, dict) and counters == dict(counters) and json.loads(json.dumps(counters)) == counters
    assert pickle.loads(pickle.dumps(counters)) == counters
    rows = [["".join(cell.itertext()) for cell in row] for row in parsed(counters._repr_html_()).iter("tr")]
    assert rows[1:] == [[name, f"{value:,}", sysfs.COUNTERS[name].__doc__] for name, value in counters.items()]
    assert "tunables: use_zero_pages = 1" in words(busy.ksm._repr_html_())
    assert "tunables: the defaults" in words(Host(64).ksm._repr_html_())


HOSTILE = '<script>alert("x")</script>\x1b[31m\u202e&\n'


def test_names_from_outside_are_text():
    at = 1 << 40
    areas = [VmaRecord(at, at + M, "rw-p", 0, "00:00", 0, HOSTILE, ("rd", "wr", "mr", "mw", "me", "ac"))]
    addr = at + np.arange(9, dtype=np.uint64) * np.uint64(PAGE)
    one = ProcessCapture(7, HOSTILE, areas, addr, np.full(9, pagemap.PAGE_IS_PRESENT, np.uint64), notes=[HOSTILE])
    html = one._repr_html_()
    escaped = '<script>alert("x")</script>\\x1b[31m\\u202e&\\n'
    assert words(html).startswith(f"{escaped} (7): 2 MiB mapped in 1 area, 36 KiB present")
    assert "\x1b" not in html and "\u202e" not in html and "\x1b" not in repr(one)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=40), st.integers(1, 5))
def test_runs_are_the_pages(steps, most):
    """(pages left out before, kind) of each page: runs say the same, are as long as can be, and so are pieces of them."""
    place, addr = 1 << 20, []
    for skipped, _ in steps:
        place += skipped
        addr.append(place * PAGE)
        place += 1
    addr, kind = np.array(addr, np.uint64), np.array([kind for _, kind in steps], np.uint8)
    runs = Runs.of_pages(addr, kind)
    said = [(int(at) + n * PAGE, int(k)) for at, nr, k in zip(runs.addr, runs.nr, runs.kind, strict=True) for n in range(nr)]
    assert said == list(zip(addr.tolist(), kind.tolist(), strict=True))
    joined = (runs.ends[:-1] == runs.addr[1:]) & (runs.kind[:-1] == runs.kind[1:])
    assert not joined.any()
    pieces = [(int(at) + n * PAGE, int(k), min(most, int(nr) - n))
              for at, nr, k in zip(runs.addr, runs.nr, runs.kind, strict=True) for n in range(0, int(nr), most)]  # fmt: skip
    if pieces:
        columns = [np.array(column, dtype) for column, dtype in zip(zip(*pieces, strict=True), ("u8", "u1", "i8"), strict=True)]
        again = Runs.of_pages(*columns)
        assert all((getattr(again, name) == getattr(runs, name)).all() for name in ("addr", "nr", "kind"))
    assert picture([], runs).pieces() == []
