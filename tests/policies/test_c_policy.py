"""A policy of C functions, asked for each page: compiled against the installed package and plugged in from Python."""

import textwrap

from embedding import build, run

CONSUMER = """
    from libc.stdint cimport int32_t, int64_t, uint64_t
    from ksmwalk.layout._layout cimport kw_world
    from ksmwalk.ksm._policy cimport (
        KW_PAGE_COMPARE, KW_PAGE_LEAVE, KW_PAGE_NOW, KW_PAUSE, KW_SCAN, CPolicy, kw_tally,
    )


    cdef struct Mine:
        int64_t pages, areas, visited
        uint64_t longest


    cdef int on_page(kw_world *w, void *data, int32_t item, int64_t pfn) noexcept nogil:
        cdef Mine *mine = <Mine *>data
        mine.pages += 1
        return KW_PAGE_NOW if w.f_key[pfn] % 2 else KW_PAGE_LEAVE


    cdef int on_area(kw_world *w, void *data, int32_t mm, int32_t vma) noexcept nogil:
        cdef Mine *mine = <Mine *>data
        mine.areas += 1
        return KW_SCAN if w.vmas[vma].end - w.vmas[vma].start <= mine.longest else KW_PAUSE


    cdef int on_done(kw_world *w, void *data, int32_t mm, int32_t vma, const kw_tally *tally) noexcept nogil:
        (<Mine *>data).visited += tally.visited
        return 0


    cdef int wrong(kw_world *w, void *data, int32_t mm) noexcept nogil:
        return 1 << 20


    cdef class Odd:
        cdef Mine mine
        cdef readonly CPolicy policy

        def __cinit__(self, uint64_t longest, bint fail=False):
            self.mine.longest = longest
            self.policy = CPolicy()
            self.policy.functions.data = <void *>&self.mine
            self.policy.functions.page = on_page
            self.policy.functions.area = on_area
            self.policy.functions.after = on_done
            if fail:
                self.policy.functions.domain = wrong

        def counts(self):
            return self.mine.pages, self.mine.areas, self.mine.visited
"""

RUN = """
    import consumer
    import ksmwalk

    def machine():
        host = ksmwalk.Host(4096)
        host.ksm.smart_scan = 0
        for pages in (4, 100):
            mm = host.new_mm()
            start = mm.mmap(pages * 4096)
            mm.write(start, [7, 8, 7, 8])
            mm.madvise(start, pages * 4096, "mergeable")
        return host

    host = machine()
    odd = consumer.Odd(16384)
    host.ksm.policy = odd.policy
    assert host.ksm.policy is odd.policy
    assert host.ksm.full_scan() == 4
    assert odd.counts() == (4, 2, 4), odd.counts()
    assert (host.ksm.pages_sharing, host.ksm.pages_unshared) == (1, 0)
    host.ksm.policy = consumer.Odd(16384, True).policy
    try:
        host.ksm.full_scan()
    except ValueError as error:
        assert "C functions" in str(error)
    else:
        raise AssertionError("a domain that there is not")
    host.ksm.policy = None
    host.ksm.full_scan()
    host.ksm.full_scan()
    assert host.ksm.pages_sharing == 6
    print("asked")
"""


def test_a_policy_in_c_is_asked_for_each_page(tmp_path):
    build(tmp_path, CONSUMER)
    (tmp_path / "run.py").write_text(textwrap.dedent(RUN))
    assert run(["run.py"], tmp_path).strip() == "asked"
