# What ksmd's merging does to the mlock batch of its CPU. Header only.
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk.memory._areas cimport vma_find
from ksmwalk.memory._frames cimport mlock_add
from ksmwalk.layout._layout cimport *


cdef inline void mlock_merged(kw_world *w, int32_t mm, uint64_t addr, int64_t pfn, int64_t kpfn) noexcept nogil:
    # In place of pfn kpfn was mapped at addr (0: the zero page), where the page that is visited is, or one that was just
    # looked up: in a locked area the new page waits, then the old one.
    cdef int32_t v = w.cursor.vma
    if w.vmas[v].mm != mm or not w.vmas[v].start <= addr < w.vmas[v].end:
        v = vma_find(w, mm, addr)
    if KW_UNLIKELY(w.vmas[v].flags & VM_LOCKED):
        if kpfn:
            mlock_add(w, <int>w.ksm.cpu, kpfn)
        mlock_add(w, <int>w.ksm.cpu, pfn)
