"""What a Python prompt shows of each kind of object: one line that can be read, whatever it holds."""

import os

import memories
import pytest

from ksmwalk import Host, PageTables
from ksmwalk.estimates.advice import advise
from ksmwalk.estimates.costs import Costs
from ksmwalk.estimates.estimate import estimate
from ksmwalk.estimates.shares import shares
from ksmwalk.estimates.why import explain_pages
from ksmwalk.sources.memory import load_memory


def objects():
    host = Host(1 << 12)
    mm = host.new_mm()
    start = mm.mmap(1 << 20)
    mm.write(start, [1, 1, 2])
    mm.madvise(start, 1 << 20, "mergeable")
    host.ksm.run_until()
    yield from (host, mm, mm.vmas[0], mm.tables, host.frames, host.tables, host.ksm, host.ksm.scan, host.ksm.events)
    yield from (mm.rmap_items[0], PageTables())
    areas = [memories.Area(range(n, n + 50)) for n in range(40)]
    memory = memories.memory(*(memories.process(10 + n, area) for n, area in enumerate(areas)))
    made, why, loaded = estimate(memory, costs=Costs()), explain_pages(memory, costs=Costs()), load_memory(memory)
    yield from (memory, memory.processes[0], made, made.expected, made.expected.steady, why, loaded, shares(loaded), advise(made))


def test_every_object_is_one_line():
    for thing in objects():
        assert len(repr(thing)) < 200 and "\n" not in repr(thing), type(thing)
        assert not repr(thing).endswith(f"object at {id(thing):#x}>"), type(thing)


def test_a_live_process_too():
    sources = pytest.importorskip("ksmwalk.sources")
    if not os.path.exists("/proc/self/pagemap"):
        pytest.skip("no pagemap here")
    image = sources.process(os.getpid())
    assert repr(image).startswith(f"<ProcessImage of <ProcessCapture {os.getpid()} ") and len(repr(image)) < 250
    assert f"({os.getpid()}): " in image.capture._repr_html_()
