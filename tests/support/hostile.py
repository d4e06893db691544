"""Hostile arguments: what is called with what, one argument at a time replaced by nonsense, in children that may die.

A trial is (target, parameter, value). Every target is a public callable or settable attribute with a call that works;
`PARAMETERS` says for each name what kind of thing it is, and so which values may succeed.
"""

import os
import resource
import signal
import sys
from collections.abc import Sequence

import hostcheck
import numpy as np

import ksmwalk
from ksmwalk import Host, KsmwalkError, MmWalkOps, PageTables, entries, layout
from ksmwalk.host import trace_events

PAGE, M = 4096, 1 << 20
AT = 1 << 30
SPARE = 4 << 30  # bytes of address space a trial may take
SECONDS = 5  # a call may take; looking the Host through afterwards is slow Python
CHECKING = 60
USER = (1 << 47) - PAGE


def deep(n):
    out = []
    for _ in range(n):
        out = [out]
    return out


class Index:
    """A number of another library."""

    def __index__(self):
        return 1

    def __repr__(self):
        return "Index()"


class Broken:
    """Can't even be shown."""

    def __repr__(self):
        raise RuntimeError("no repr")


VALUES = [
    None,
    True,
    False,
    -1,
    0,
    1,
    2,
    7,
    4095,
    4096,
    4097,
    2**21,
    2**31 - 1,
    2**31,
    2**32,
    2**40,
    2**47 - 4096,
    2**47,
    2**48,
    2**57,
    2**62,
    2**63 - 4096,
    2**63 - 1,
    2**63,
    2**64 - 8192,
    2**64 - 4096,
    2**64 - 1,
    2**64,
    2**64 + AT,
    2**200,
    -4096,
    -(2**31),
    -(2**63),
    -(2**64),
    1.0,
    1.5,
    1e30,
    float("nan"),
    float("inf"),
    1j,
    "x",
    "",
    "1",
    "rw",
    "raise",
    b"",
    b"1",
    bytearray(4096),
    [],
    [1],
    [1.5],
    [-1],
    [2**64],
    [2**63, -1],
    [None],
    ["x"],
    [[1], [2, 3]],
    deep(5),
    deep(5000),
    (),
    (1, 2),
    {},
    {1: 2},
    {1},
    object,
    Broken(),
    Index(),
    range(3),
    range(2**62),
    slice(None),
    lambda *a: 1,
    sys,
    np.uint8(1),
    np.uint64(AT),
    np.uint64(2**64 - 4096),
    np.int64(-1),
    np.int64(AT),
    np.float64(1.5),
    np.float32("nan"),
    np.bool_(True),
    np.array(AT),
    np.array(1.5),
    np.array([]),
    np.zeros(0, np.uint64),
    np.zeros(16),
    np.full(16, np.nan),
    np.zeros(16, bool),
    np.arange(16),
    np.full(16, -1),
    np.arange(16, dtype=np.uint64),
    np.arange(32, dtype=np.uint64)[::2],
    np.arange(16, dtype=">u8"),
    np.zeros((4, 4), np.uint64),
    np.zeros((1, 512), np.uint64),
    np.zeros(16, "U4"),
    np.array([1, "x"], object),
    np.zeros(16, object),
    np.full(16, 2**64 - 1, np.uint64),
    np.full(16, 2**40, np.uint64),
    np.zeros(16, layout.MAPPING),
    np.zeros(3, layout.MAPPING)[::2],
    np.zeros(16, "M8[s]"),
    np.zeros(10**6, np.uint64),
    np.ma.masked_all(16),
]


#: doors that are what is wanted
FITTING = {
    ("Host.pin", "mm"): ["an Mm"],
    ("Mm.process_madvise", "other"): ["an Mm"],
    ("Mm", "host"): ["a Host", "another Host"],
    ("Vma", "mm"): ["an Mm"],
    ("walk_page_range", "mm"): ["an Mm", "an Mm of another Host"],
    ("walk_page_range", "ops"): ["ops"],
    ("walk_page_range_vma", "vma"): ["a Vma"],
    ("walk_page_range_vma", "ops"): ["ops"],
    ("walk_page_vma", "vma"): ["a Vma"],
    ("walk_page_vma", "ops"): ["ops"],
    ("walk_page_range_novma", "tables"): ["page tables"],
    ("walk_page_range_novma", "ops"): ["ops"],
}


class Scene:
    """A Host with a bit of everything; `doors`: what hostile values are made of that need one."""

    def __init__(self):
        self.host = host = Host(1024)
        self.mm = mm = host.new_mm()
        mm.mmap(16 * PAGE, AT)
        mm.write(AT, np.arange(1, 17, dtype=np.uint64))
        mm.madvise(AT, 16 * PAGE, "mergeable")
        host.ksm.do_scan(4)
        self.object = host.new_object(16 * PAGE)
        mm.mmap(4 * PAGE, AT + M, kind="file", backing=self.object, shared=True)
        self.other = Host(64)
        self.stranger = self.other.new_mm()
        self.dead = host.new_mm()
        dead_tables = self.dead.tables
        self.dead.exit()
        self.tables = PageTables(capacity=64)
        self.tables.map_range(AT, np.arange(1, 17, dtype=np.uint64))
        self.tables.map(4 * AT, 512, level=2)
        self.watched = watched = host.new_mm()
        for start in (AT, AT + M):
            watched.mmap(16 * PAGE, start)
        watched.write(AT + M, np.arange(1, 17, dtype=np.uint64))
        watched.uffd_register(AT, 16 * PAGE, missing=True, wp=True)
        self.image = PageTables.from_image(np.array(self.tables.rows), self.tables.root)
        self.pinned = host.pin(mm, AT)
        self.dma = int(host.dma_pin(mm, AT + 15 * PAGE)[0])
        self.doors = {
            "another Host": self.other,
            "an Mm of another Host": self.stranger,
            "a dead Mm": self.dead,
            "tables of a dead Mm": dead_tables,
            "a Vma": mm.vmas[0],
            "ops": MmWalkOps(pte_entry=lambda *a: 0),
            "an Mm": mm,
            "a Host": host,
            "a World": self.other.world,
            "page tables": self.tables,
        }

    def check(self):
        self.mm.read_keys(AT, 16)
        hostcheck.check(self.host, pinned=[head for head, n in self.host._pins.items() for _ in range(n)])


DOORS = list(Scene().doors)


def integer(low, high):
    def may(value):
        try:
            number = value.__index__() if not isinstance(value, (bool, type)) else None
        except (AttributeError, TypeError):
            return False
        return number is not None and low <= number <= high

    return may


def quantity(low, high):
    kinds = (int, float, np.integer, np.floating)
    return lambda value: isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high


def empty_steps(value):
    """A workload without steps: whatever can be gone through, and holds nothing."""
    try:
        return value is None or next(iter(value), None) is None
    except TypeError:
        return False


def empty_sequence(value):
    return isinstance(value, Sequence) and not len(value)


def in_no_time(host):
    """`Host.run` where ksmd has nothing to do, for thousands of years too."""

    def run(**words):
        host.ksm.run = 0
        return host.run(**words)

    return run


def flag(value):
    return isinstance(value, (bool, np.bool_)) or integer(0, 1)(value)


def row(low, high, n=None):
    def may(value):
        try:
            a = np.asarray(value)
        except Exception:
            return False
        if a.ndim != 1 or (a.size and a.dtype.kind not in "iu") or isinstance(value, (dict, set, str, bytes)):
            return False
        return (n is None or len(a) == n) and (not a.size or low <= int(a.min()) and int(a.max()) <= high)

    return may


def either(*some):
    return lambda value: any(may(value) for may in some)


def nothing(value):
    return False


def anything(value):
    return True


def none(value):
    return value is None


def empty(value):
    return not isinstance(value, np.ndarray) and hasattr(value, "__len__") and hasattr(value, "__iter__") and len(value) == 0


def empty_mapping(value):
    return isinstance(value, dict) and not value


def text(*words):
    return lambda value: isinstance(value, str) and value in words


def functions(value):
    return value is None or callable(value)


U64 = integer(0, 2**64 - 1)
PFN = integer(0, 2**40 - 1)
USER_ADDR = integer(0, USER - PAGE)
USER_LEN = integer(0, USER)
CALLBACKS = "pgd_entry p4d_entry pud_entry pmd_entry pte_entry pte_hole hugetlb_entry test_walk pre_vma post_vma".split()


def set_(thing, name):
    def call(value):
        setattr(thing, name, value)

    return call


def in_callback(scene, what):
    """A call that hands a hostile value over from inside a walk."""

    def call(value):
        def callback(entry, addr, next, walk):
            return what(entry, walk, value)

        return ksmwalk.walk_page_range(scene.mm, AT, AT + PAGE, MmWalkOps(pmd_entry=callback))

    return call


def outside_targets(scene):
    """Targets of what surrounds a Host: locks, nodes, swap, folios, userfaultfd."""
    host, mm = scene.host, scene.mm
    at, pages = integer(AT, AT), integer(0, 16 * PAGE)
    some = either(U64, row(0, 2**64 - 1))
    return {
        "Host.khuge_limits": (set_(host, "khuge_limits"), {"value": {"max_ptes_none": 7}}, {"value": empty_mapping}),
        "Host.mthp": (set_(host, "mthp"), {"value": {64: "always"}}, {"value": empty_mapping}),
        "Host.drain": (host.drain, {"cpu": 0}, {"cpu": either(none, integer(0, 0))}),
        "Mm.cpu": (set_(mm, "cpu"), {"value": 0}, {"value": integer(0, 0)}),
        "Mm.start_brk": (set_(mm, "start_brk"), {"value": AT}, {"value": USER_ADDR}),
        "Ksm.cpu": (set_(host.ksm, "cpu"), {"value": 0}, {"value": integer(0, 0)}),
        "Ksm.writer_cpu": (set_(host.ksm, "writer_cpu"), {"value": 0}, {"value": integer(0, 0)}),
        "Mm.mbind": (
            mm.mbind,
            {"addr": AT, "length": PAGE, "node": 0, "move": False, "move_all": False},
            {"addr": at, "length": pages, "node": either(none, integer(0, 0)), "move": flag, "move_all": flag},
        ),
        "Mm.migrate_pages": (
            mm.migrate_pages, {"source": 0, "target": 0}, {"source": integer(0, 1 << 64), "target": integer(0, 0)},
        ),
        "Mm.move_pages": (
            mm.move_pages,
            {"addrs": [AT, AT + PAGE], "nodes": 0, "move_all": False},
            {"addrs": some, "nodes": either(integer(0, 0), row(0, 0)), "move_all": flag},
        ),
        "Mm.mlock": (
            mm.mlock,
            {"addr": AT, "length": PAGE, "flags": 0},
            # a length that wraps when it is rounded locks nothing, as in Linux
            {"addr": at, "length": either(pages, integer(2**64 - 4095, 2**64 - 1)), "flags": integer(0, 1)},
        ),
        "Mm.mlockall": (mm.mlockall, {"flags": 3}, {"flags": integer(1, 7)}),
        "Mm.mmap of locked pages": (
            mm.mmap,
            {"length": PAGE, "addr": 2 * AT, "locked": True, "populate": True},
            {"length": integer(1, 512 * PAGE), "addr": either(USER_ADDR, none), "locked": flag, "populate": flag},
        ),
        "Mm.mremap that leaves the area": (
            mm.mremap,
            {"addr": AT, "old": PAGE, "new": PAGE, "new_addr": None, "dontunmap": True},
            {"addr": at, "old": USER_LEN, "new": integer(1, USER), "new_addr": either(none, USER_ADDR), "dontunmap": flag},
        ),
        "Mm.process_madvise": (
            mm.process_madvise,
            {"other": mm, "addr": AT, "length": PAGE, "advice": "cold"},
            {"other": nothing, "addr": at, "length": pages, "advice": integer(0, 200)},
        ),
        "Mm.uffd_register": (
            mm.uffd_register,
            {"addr": AT, "length": PAGE, "missing": True, "wp": True, "minor": False, "asynchronous": False, "userfaultfd": 1},
            # an area within it is enough
            {"addr": at, "length": integer(1, USER), "missing": flag, "wp": flag, "minor": flag, "asynchronous": flag,
             "userfaultfd": integer(0, 65535)},
        ),
        "Mm.uffd_unregister": (
            mm.uffd_unregister, {"addr": AT, "length": PAGE, "userfaultfd": 1},
            {"addr": at, "length": integer(1, USER), "userfaultfd": integer(0, 65535)},
        ),
        "Mm.uffd_protect": (
            scene.watched.uffd_protect,
            {"addr": AT, "length": PAGE, "on": True},
            {"addr": at, "length": integer(1, 16 * PAGE), "on": flag},
        ),
        "Mm.uffd_copy": (
            scene.watched.uffd_copy, {"addr": AT, "keys": [1, 2], "wp": False}, {"addr": at, "keys": some, "wp": flag},
        ),
        "Mm.uffd_zero": (scene.watched.uffd_zero, {"addr": AT, "length": PAGE}, {"addr": at, "length": integer(1, 16 * PAGE)}),
        "Mm.uffd_move": (
            scene.watched.uffd_move,
            {"to": AT, "addr": AT + M, "length": PAGE, "userfaultfd": 0},
            {"to": at, "addr": integer(AT + M, AT + M), "length": integer(1, 16 * PAGE),
             "userfaultfd": integer(0, 65535)},
        ),
    }


def targets(scene):
    """{name: (callable, arguments that work, {parameter: which values may succeed})}."""
    host, mm, tables, image = scene.host, scene.mm, scene.tables, scene.image
    ops = MmWalkOps(pte_entry=lambda *a: 0)
    nid, pages = integer(0, 0), integer(0, (1 << 45) - 1)
    any_mm = integer(1, 1)
    rows = np.array(tables.rows)
    span = integer(0, 1 << 64)
    levels = integer(4, 5)
    out = {
        "Host": (
            lambda nr_frames=64, nr_nodes=1, levels=4, thp="never", kernel="6.18.44", swap_pages=0, huge=None: Host(
                nr_frames, nr_nodes, levels, thp=thp, kernel=kernel, swap_pages=swap_pages, huge=huge
            ),
            {"nr_frames": 1024},
            {
                "nr_frames": integer(2, 1 << 31),
                "nr_nodes": integer(1, 2),
                "levels": levels,
                "thp": text("never", "always"),
                "kernel": nothing,
                "swap_pages": integer(0, 1023 + 1024),
                "huge": either(flag, none),
            },
        ),
        "Host.run": (
            in_no_time(host),
            {"seconds": 0.01, "workload": None, "every": 1e6, "controllers": (), "costs": None, "prefix": 0.0, "hz": 250,
             "late": 0.0, "apply": None},
            {"seconds": quantity(0, 1e9), "workload": empty_steps, "every": quantity(1e-3, 1e9), "controllers": empty_sequence,
             "costs": none, "prefix": quantity(0, 4096), "hz": integer(1, 100_000), "late": quantity(0, 1000), "apply": functions},
        ),
        "Host.new_mm": (host.new_mm, {"nid": 0}, {"nid": nid}),
        "Host.mm_by_number": (host.mm_by_number, {"number": 1}, {"number": any_mm}),
        "Host.thp": (set_(host, "thp"), {"value": "never"}, {"value": nothing}),
        "Host.lru_batch": (set_(host, "lru_batch"), {"value": 3}, {"value": integer(0, 63)}),
        "Host.player": (
            host.player,
            {"mms": {0: mm}, "errors": "stop", "map_missing": False},
            {"mms": either(none, empty_mapping), "errors": nothing, "map_missing": flag},
        ),
        "Host.apply": (
            host.apply,
            {"events": trace_events("write", AT, 7), "mms": {0: mm}, "errors": "stop", "map_missing": False},
            {"events": empty, "mms": nothing, "errors": nothing, "map_missing": flag},
        ),
        "Host.new_object": (host.new_object, {"length": PAGE, "device": False}, {"length": integer(0, 1 << 47), "device": flag}),
        "Host.drop_object": (host.drop_object, {"number": scene.object}, {"number": integer(scene.object, scene.object)}),
        "Host.check_object": (host.check_object, {"number": scene.object}, {"number": integer(scene.object, scene.object)}),
        "Host.pin": (host.pin, {"mm": mm, "addr": AT}, {"mm": nothing, "addr": integer(AT, AT + 16 * PAGE)}),
        "Host.swapon": (host.swapon, {"pages": 100}, {"pages": integer(1, 1023 + 1024)}),
        "Host.unpin": (host.unpin, {"pfn": scene.pinned}, {"pfn": integer(scene.pinned, scene.pinned)}),
        "Host.dma_pin": (
            host.dma_pin,
            {"mm": mm, "addr": AT, "length": PAGE},
            {"mm": nothing, "addr": integer(AT, AT + 16 * PAGE), "length": integer(1, 16 * PAGE)},
        ),
        "Host.dma_unpin": (
            host.dma_unpin,
            {"pfns": [scene.dma]},
            {"pfns": either(integer(scene.dma, scene.dma), row(scene.dma, scene.dma), empty)},
        ),
        "Host.lock_page": (host.lock_page, {"pfn": 1, "on": True}, {"pfn": integer(1, 1023), "on": flag}),
        "Mm": (ksmwalk.Mm, {"host": host, "index": 1}, {"host": nothing, "index": any_mm}),
        "Mm.domain": (set_(mm, "domain"), {"value": 0}, {"value": integer(0, 65535)}),
        "Mm.nid": (set_(mm, "nid"), {"value": 0}, {"value": nid}),
        "Mm.vma_by_number": (mm.vma_by_number, {"number": 1}, {"number": integer(1, 3)}),
        "Mm.find_vma": (mm.find_vma, {"addr": AT}, {"addr": U64}),
        "Mm.mmap": (
            mm.mmap,
            {
                "length": PAGE,
                "addr": 2 * AT,
                "prot": "rw",
                "shared": False,
                "kind": "anon",
                "noreserve": False,
                "backing": None,
                "offset": 0,
                "flags": 0,
                "pfn": 0,
            },
            {
                "length": integer(1, USER - 2 * AT),
                "addr": either(USER_ADDR, none),
                "prot": text("rw", "x", ""),
                "shared": flag,
                "kind": nothing,
                "noreserve": flag,
                "backing": either(none, integer(scene.object, scene.object)),
                "offset": integer(0, 1 << 47),
                "flags": U64,
                "pfn": PFN,
            },
        ),
        "Mm.mmap of raw frames": (
            mm.mmap,
            {"length": PAGE, "kind": "pfnmap", "pfn": 9},
            {"length": USER_LEN, "kind": nothing, "pfn": PFN},
        ),
        "Mm.munmap": (mm.munmap, {"addr": AT, "length": PAGE}, {"addr": USER_ADDR, "length": USER_LEN}),
        "Mm.mprotect": (
            mm.mprotect,
            {"addr": AT, "length": PAGE, "prot": "r"},
            {"addr": integer(AT, AT), "length": integer(0, 16 * PAGE), "prot": text("rw", "x", "")},
        ),
        "Mm.madvise": (
            mm.madvise,
            {"addr": AT, "length": PAGE, "advice": "dontneed"},
            {"addr": integer(AT, AT), "length": integer(0, 16 * PAGE), "advice": integer(0, 200)},
        ),
        "Mm.mremap": (
            mm.mremap,
            {"addr": AT, "old": PAGE, "new": 2 * PAGE, "new_addr": None, "maymove": True},
            {
                "addr": integer(AT, AT),
                "old": USER_LEN,
                "new": integer(1, USER),
                "maymove": flag,
                "new_addr": either(none, USER_ADDR),
            },
        ),
        "Mm.brk": (mm.brk, {"addr": 0}, {"addr": U64}),
        "Mm.prctl_merge": (mm.prctl_merge, {"on": True}, {"on": flag}),
        "Mm.thp_disable": (mm.thp_disable, {"on": True}, {"on": flag}),
        "Mm.munlock": (
            mm.munlock,
            {"addr": AT, "length": PAGE},
            {"addr": integer(AT, AT), "length": either(integer(0, 16 * PAGE), integer(2**64 - 4095, 2**64 - 1))},
        ),
        "Mm.touched": (
            mm.touched, {"start": 0, "end": AT + PAGE, "written": False}, {"start": U64, "end": U64, "written": flag},
        ),
        "Mm.clear_touched": (mm.clear_touched, {"start": 0, "end": AT + PAGE}, {"start": U64, "end": U64}),
        "Mm.uffd_wp": (mm.uffd_wp, {"addr": AT, "length": PAGE, "on": True}, {"addr": USER_ADDR, "length": USER_LEN, "on": flag}),
        "Mm.write": (
            mm.write,
            {"addr": AT, "keys": 5, "nid": None},
            {"addr": integer(AT, AT), "keys": either(U64, row(0, 2**64 - 1)), "nid": either(nid, none)},
        ),
        "Mm.write of many": (mm.write, {"addr": AT, "keys": [1, 2]}, {"keys": either(U64, row(0, 2**64 - 1))}),
        "Mm.poke": (mm.poke, {"addr": AT, "keys": [5]}, {"addr": integer(AT, AT), "keys": either(U64, row(0, 2**64 - 1))}),
        "Mm.populate": (
            mm.populate,
            {"addr": AT, "length": 16 * PAGE, "keys": None, "nid": None},
            {
                "addr": integer(AT, AT),
                "length": integer(0, 16 * PAGE),
                "keys": either(none, row(0, 2**64 - 1, 16)),
                "nid": either(nid, none),
            },
        ),
        "Mm.read": (mm.read, {"addr": AT, "n": 2}, {"addr": integer(AT, AT), "n": either(none, integer(0, 16))}),
        "Mm.read_keys": (mm.read_keys, {"addr": AT, "n": 2}, {"addr": integer(0, 1 << 57), "n": pages}),
        "Mm.read_pfns": (mm.read_pfns, {"addr": AT, "n": 2}, {"addr": integer(0, 1 << 57), "n": pages}),
        "Vma": (ksmwalk.Vma, {"mm": mm, "index": 1}, {"mm": nothing, "index": integer(1, 3)}),
        "in Vma": (lambda addr: addr in mm.vmas[0], {"addr": AT}, {"addr": integer(-(1 << 64), 1 << 64)}),
        "PageTables": (
            PageTables,
            {"levels": 4, "capacity": 64, "on_bad": "raise"},
            {"levels": levels, "capacity": integer(1, 1 << 34), "on_bad": text("raise", "report")},
        ),
        "PageTables.of_world": (
            PageTables.of_world,
            {"world": host.world, "mm": 1, "levels": 4, "on_bad": "raise"},
            {"world": lambda v: v is scene.other.world, "mm": integer(1, 4), "levels": levels, "on_bad": text("raise")},
        ),
        "PageTables.from_image": (
            PageTables.from_image,
            {"rows": rows, "root": 1, "levels": 4, "frames": None, "max_pfn": 0, "on_bad": "raise"},
            {
                "rows": nothing,
                "root": integer(0, len(rows) - 1),
                "levels": levels,
                "frames": none,
                "max_pfn": integer(0, 1 << 40),
                "on_bad": text("raise"),
            },
        ),
        "PageTables.from_image with frames": (
            PageTables.from_image,
            {"rows": np.zeros((16, 512), np.uint64), "root": 1, "frames": np.arange(16)},
            {"rows": nothing, "root": integer(0, 15), "frames": either(none, row(0, 2**64 - 1, 16))},
        ),
        "PageTables.on_bad": (set_(tables, "on_bad"), {"value": "report"}, {"value": text("raise")}),
        "PageTables.mappings": (
            tables.mappings,
            {
                "start": 0, "end": 2 * AT, "view": "kernel", "runs": False, "limit": None, "out": None, "columns": False,
                "threads": 1,
            },
            {
                "start": span,
                "end": either(span, none),
                "view": nothing,
                "runs": flag,
                "limit": either(U64, none),
                "columns": flag,
                "threads": integer(1, 256),
                "out": either(none, lambda v: getattr(v, "dtype", None) == layout.MAPPING and v.flags.c_contiguous),
            },
        ),
        "PageTables.mappings of an image": (image.mappings, {"start": 0, "end": None}, {"start": span, "end": either(span, none)}),
        "PageTables.lookup": (tables.lookup, {"addr": AT, "view": "kernel"}, {"addr": U64, "view": nothing}),
        "PageTables.map": (
            tables.map,
            {"addr": 2 * AT, "pfn": 9, "flags": 7, "level": 1},
            {"addr": integer(0, 1 << 48), "pfn": PFN, "flags": U64, "level": integer(1, 3)},
        ),
        "PageTables.map_range": (
            tables.map_range,
            {"addr": 2 * AT, "pfns": [9], "flags": 7, "level": 1},
            {"addr": integer(0, 1 << 48), "pfns": row(0, 2**40 - 1), "flags": U64, "level": integer(1, 3)},
        ),
        "PageTables.unmap": (tables.unmap, {"start": 0, "end": 2 * AT}, {"start": integer(0, 2 * AT), "end": integer(0, 1 << 48)}),
        "PageTables.split": (tables.split, {"addr": 4 * AT}, {"addr": integer(4 * AT, 4 * AT + 2 * M)}),
        "walk_page_range": (
            ksmwalk.walk_page_range,
            {"mm": mm, "start": AT, "end": AT + PAGE, "ops": ops, "private": None},
            {"mm": none, "start": span, "end": span, "ops": nothing, "private": anything},
        ),
        "walk_page_range_vma": (
            ksmwalk.walk_page_range_vma,
            {"vma": mm.vmas[0], "start": AT, "end": AT + PAGE, "ops": ops, "private": None},
            {"vma": nothing, "start": span, "end": span, "ops": nothing, "private": anything},
        ),
        "walk_page_vma": (
            ksmwalk.walk_page_vma,
            {"vma": mm.vmas[0], "ops": ops, "private": None},
            {"vma": nothing, "ops": nothing, "private": anything},
        ),
        "walk_page_range_novma": (
            ksmwalk.walk_page_range_novma,
            {"tables": tables, "start": AT, "end": AT + PAGE, "ops": ops, "private": None},
            {"tables": nothing, "start": span, "end": span, "ops": nothing, "private": anything},
        ),
        "MmWalkOps": (
            lambda **fns: ksmwalk.walk_page_range(mm, AT, AT + M, MmWalkOps(**fns)),
            {name: None for name in CALLBACKS},
            {name: functions for name in CALLBACKS},
        ),
        "Entry.value": (
            in_callback(
                scene,
                lambda entry, walk, value: (
                    [setattr(entry, "value", value), setattr(entry, "value", old)][:0] if (old := entry.value) else None
                ),
            ),
            {"value": 0},
            {"value": U64},
        ),
        "MmWalk.action": (
            in_callback(scene, lambda entry, walk, value: setattr(walk, "action", value if not integer(2, 2)(value) else 0)),
            {"value": 0},
            {"value": integer(0, 2)},
        ),
        "what a callback returns": (
            in_callback(scene, lambda entry, walk, value: value),
            {"value": 0},
            {"value": lambda v: v is None or isinstance(v, int)},
        ),
    }
    ksm, number = host.ksm, integer(0, 2**63 - 1)
    out |= {
        "Ksm.do_scan": (ksm.do_scan, {"n": 5}, {"n": either(none, number)}),
        "Ksm.has": (ksm.has, {"name": "run"}, {"name": lambda v: isinstance(v, str)}),
        "Ksm.write": (
            ksm.write,
            {"name": "pages_to_scan", "value": 5},
            {"name": text("run"), "value": either(U64, flag, text("1"))},
        ),
        "Ksm.pages_to_scan": (
            set_(ksm, "pages_to_scan"),
            {"value": 5},
            {"value": either(integer(0, 2**32 - 1), text("1"))},
        ),
        "Ksm.policy": (set_(ksm, "policy"), {"value": None}, {"value": none}),
        "Ksm.now_ms": (set_(ksm, "now_ms"), {"value": 5}, {"value": number}),
        "Ksm.cpu_ms": (set_(ksm, "cpu_ms"), {"value": 5}, {"value": number}),
        "KsmScan.scan": (ksm.scan.scan, {"n": 5}, {"n": number}),
        "KsmScan.strategy": (set_(ksm.scan, "strategy"), {"value": "range"}, {"value": nothing}),
        "KsmScan.real_lookups": (set_(ksm.scan, "real_lookups"), {"value": True}, {"value": flag}),
        "Events.on": (set_(ksm.events, "on"), {"value": True}, {"value": flag}),
        "Ksm.run_until": (
            ksm.run_until,
            {"until": lambda k: True, "limit": 3, "each": "full scan"},
            {"until": either(none, callable), "limit": integer(1, 2**63 - 1), "each": nothing},
        ),
        "Frames.set_key": (
            host.frames.set_key,
            {"pfns": [scene.pinned], "keys": [5]},
            {"pfns": either(integer(1, 1023), row(1, 1023)), "keys": either(U64, row(0, 2**64 - 1, 1))},
        ),
        "Mm.write_at": (
            mm.write_at,
            {"addrs": [AT, AT + PAGE], "keys": [1, 2]},
            {"addrs": row(AT, AT, 2), "keys": either(U64, row(0, 2**64 - 1, 2))},
        ),
        "Mm.write_at everywhere": (mm.write_at, {"addrs": [AT, AT + PAGE], "keys": 1}, {"addrs": row(AT, AT)}),
        "Mm.read_at": (mm.read_at, {"addrs": [AT, AT + PAGE]}, {"addrs": row(AT, AT)}),
        "Frames.describe": (host.frames.describe, {"pfn": 1}, {"pfn": integer(0, 1023)}),
    }
    for name in (
        "none",
        "present",
        "hardware_present",
        "leaf",
        "special",
        "prot_none",
        "swap_like",
        "pfn",
        "flags",
        "unpack",
        "describe",
    ):
        function = getattr(entries, name)
        base, may = {"e": 0x67}, {"e": either(U64, row(0, 2**64 - 1), lambda v: isinstance(v, np.ndarray) and v.dtype == np.uint64)}
        if "level" in function.__code__.co_varnames[: function.__code__.co_argcount]:
            base["level"], may["level"] = 1, integer(1, 5)
        out[f"entries.{name}"] = (function, base, may)
    bits = either(
        U64, row(0, 2**64 - 1), lambda v: isinstance(v, np.ndarray) and v.dtype.kind in "iu" and v.ndim and (v >= 0).all()
    )
    out |= outside_targets(scene)
    out["entries.pack"] = (entries.pack, {"pfn": 1, "flags": 7, "level": 1}, {"pfn": bits, "flags": bits, "level": integer(1, 5)})
    return out


ALLOWED = (AttributeError, OSError, ValueError, TypeError, LookupError, ReferenceError, KsmwalkError, MemoryError)
#: what numpy, Cython and Python say for themselves
FOREIGN = (
    "an integer is required",
    "can't convert",
    "cannot be interpreted",
    "too large to convert",
    "Buffer dtype",
    "Cannot convert",
    "cannot convert",
    "must be real number",
    "has no attribute",
    "setting an array element",
    "could not convert",
    "invalid literal",
    "unsupported operand",
    "not supported between",
    "truth value",
    "only integer scalar",
    "only length-1",
    "positional argument",
    "out of bounds for",
    "has incorrect type",
    "inhomogeneous",
    "bad operand",
    "not iterable",
    "not subscriptable",
    "unhashable",
    "ufunc",
    "does not support",
    "not callable object",
    "Expected ",
    "shape mismatch",
    "broadcast",
    "object is not callable",
)


def problem(target, parameter, value):
    """What is wrong with one trial, or None."""
    scene = Scene()
    call, base, may = targets(scene)[target]
    if isinstance(value, tuple) and len(value) == 2 and value[0] == "door":
        value = scene.doors[value[1]]
    try:
        call(**{**base, parameter: value})
    except ALLOWED as error:
        if isinstance(error, OSError):
            wrong = None if error.errno else f"OSError without errno: {error}"
        else:
            wrong = next((f"not ours: {type(error).__name__}: {error}" for words in FOREIGN if words in str(error)), None)
        if not str(error) and not isinstance(error, MemoryError):
            wrong = "no message"
    except AttributeError as error:
        # A tunable that there is not, by its name: it is an attribute too.
        wrong = None if (target, parameter) == ("Ksm.write", "name") else f"AttributeError: {error}"
    except BaseException as error:
        wrong = f"{type(error).__name__}: {error}"
    else:
        fits = any(value is scene.doors[name] for name in FITTING.get((target, parameter), ()))
        wrong = None if fits or may[parameter](value) else "succeeded without a word"
    signal.setitimer(signal.ITIMER_REAL, CHECKING)
    try:
        scene.check()
    except BaseException as error:
        wrong = f"{wrong or 'answered'}, and the Host is broken: {type(error).__name__}: {error}"
    return wrong


def trials():
    values = [*range(len(VALUES)), *(("door", name) for name in DOORS)]
    return [(target, parameter, value) for target, (_, _, may) in targets(Scene()).items() for parameter in may for value in values]


def describe(trial):
    target, parameter, value = trial
    shown = value[1] if isinstance(value, tuple) else repr_of(VALUES[value])
    return f"{target}({parameter} = {shown})"


def repr_of(value):
    try:
        return " ".join(repr(value).split())[:60]
    except BaseException:
        return f"<{type(value).__name__}>"


def _child(todo, pipe):
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    size = int(open("/proc/self/statm").read().split()[0]) * PAGE
    resource.setrlimit(resource.RLIMIT_AS, (size + SPARE, size + SPARE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number, (target, parameter, value) in enumerate(todo):
        os.write(pipe, f"{number}\n".encode())
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        wrong = problem(target, parameter, value if isinstance(value, tuple) else VALUES[value])
        signal.setitimer(signal.ITIMER_REAL, 0)
        if wrong:
            os.write(pipe, f"!{wrong}".replace("\n", " ").encode()[:600] + b"\n")
    os._exit(0)


def run(todo):
    """The trials that went wrong, each in words; a child that dies is replaced."""
    bad, at = [], 0
    while at < len(todo):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            try:
                _child(todo[at:], write)
            finally:
                os._exit(1)
        os.close(write)
        number = 0
        with os.fdopen(read, "rb") as lines:
            for line in lines:
                if line.startswith(b"!"):
                    bad.append(f"{describe(todo[at + number])}: {line[1:].decode().strip()}")
                else:
                    number = int(line)
        _, status = os.waitpid(pid, 0)
        if status == 0:
            return bad
        how = f"killed by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"ended with {status >> 8}"
        bad.append(f"{describe(todo[at + number])}: {how}")
        at += number + 1
    return bad
