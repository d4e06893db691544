"""Embedding: a small consumer is compiled against the installed package, with its own C walk operation, and run."""

import textwrap

from embedding import build, run

CONSUMER = """
    from libc.stdint cimport uint64_t
    from ksmwalk._core cimport (
        PTE_P, PTE_PS, entry_leaf, entry_none, entry_pfn, entry_present, kw_mapping, level_size, make_entry,
    )
    from ksmwalk.tables._read cimport Tables
    from ksmwalk.tables._walk cimport ACTION_CONTINUE, walk_ops, walk_state, walk_tables


    cdef struct counts:
        uint64_t pmds, ptes, present, holes, hole_bytes, frames, stop_at


    cdef int on_pmd(uint64_t *entry, uint64_t addr, uint64_t next, walk_state *walk) noexcept nogil:
        cdef counts *mine = <counts *>walk.user
        mine.pmds += 1
        if entry_leaf(entry[0], 2):
            mine.present += 512
            mine.frames += entry_pfn(entry[0], 2)
            walk.action = ACTION_CONTINUE
        return 0


    cdef int on_pte(uint64_t *entry, uint64_t addr, uint64_t next, walk_state *walk) noexcept nogil:
        cdef counts *mine = <counts *>walk.user
        mine.ptes += 1
        if not entry_none(entry[0]) and entry_present(entry[0], 1):
            mine.present += 1
            mine.frames += entry_pfn(entry[0], 1)
            if addr == mine.stop_at:
                return 42
        return 0


    cdef int on_hole(uint64_t addr, uint64_t next, int depth, walk_state *walk) noexcept nogil:
        cdef counts *mine = <counts *>walk.user
        mine.holes += 1
        mine.hole_bytes += next - addr
        return 0


    def count(Tables tables not None, uint64_t start, uint64_t end, uint64_t stop_at=1):
        cdef walk_ops ops = walk_ops(NULL, NULL, NULL, on_pmd, on_pte, NULL, on_hole, NULL, NULL, NULL)
        cdef counts mine
        cdef int result
        mine.pmds = mine.ptes = mine.present = mine.holes = mine.hole_bytes = mine.frames = 0
        mine.stop_at = stop_at
        result = walk_tables(tables, start, end, &ops, <void *>&mine)
        return result, mine


    def facts():
        cdef uint64_t e = make_entry(77, 0x160)  # PROT_NONE: the frame is stored inverted
        return entry_pfn(e, 1), bool(e & PTE_P), entry_present(e, 1), level_size(2), sizeof(kw_mapping), int(PTE_PS)
"""

RUN = """
    import ksmwalk
    import consumer

    assert consumer.facts() == (77, False, True, 2 << 20, 32, 0x80), consumer.facts()

    GIB, MIB, PAGE = 1 << 30, 1 << 20, 4096
    tables = ksmwalk.PageTables()
    tables.map(GIB, 5)
    tables.map(GIB + 3 * PAGE, 6)
    tables.map(GIB + 4 * MIB, 512, level=2)
    result, seen = consumer.count(tables._tables, 0, 2 * GIB)
    assert result == 0
    assert (seen["pmds"], seen["ptes"], seen["present"], seen["frames"]) == (2, 512, 514, 5 + 6 + 512), seen
    assert (seen["holes"], seen["hole_bytes"]) == (511, 2 * GIB - 4 * MIB), seen
    result, seen = consumer.count(tables._tables, GIB, 2 * GIB, GIB + 3 * PAGE)
    assert (result, seen["ptes"]) == (42, 4), (result, seen)
    assert consumer.count(tables._tables, GIB, GIB)[0] == -22

    # the same walk through the Python door
    holes = []
    ops = ksmwalk.MmWalkOps(pmd_entry=lambda e, a, n, w: None, pte_hole=lambda a, n, d, w: holes.append(n - a))
    assert ksmwalk.walk_page_range_novma(tables, 0, 2 * GIB, ops) == 0
    assert (len(holes), sum(holes)) == (511, 2 * GIB - 4 * MIB)
    print("embedded")
"""


def test_a_consumer_of_the_installed_package(tmp_path):
    build(tmp_path, CONSUMER)
    (tmp_path / "run.py").write_text(textwrap.dedent(RUN))
    assert run(["run.py"], tmp_path).strip() == "embedded"
    generated = (tmp_path / "consumer.c").read_text()
    assert "ndarrayobject.h" not in generated, "the .pxd files must not drag numpy's C API into every importer"
