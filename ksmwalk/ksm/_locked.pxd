# What ksmd's merging does to the mlock batch of its CPU. Header only.
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk.memory._areas cimport vma_find
from ksmwalk.memory._frames cimport mlock_add
from ksmwalk.layout._layout cimport *


cdef inline bint locked_before(kw_world *w, int32_t mm, uint64_t addr, int64_t kpfn) noexcept nogil:
    # Is this KSM page mapped in a locked area elsewhere than at addr, which it was just mapped at too? One without a node
    # yet is the page that is visited.
    cdef int32_t node = w.f_node[kpfn], item = w.nodes[node].items if node else 0, v
    if node == 0:
        return w.vmas[w.cursor.vma].flags & VM_LOCKED != 0
    while item:
        if w.items[item].mm != mm or w.items[item].addr != addr:
            v = vma_find(w, w.items[item].mm, w.items[item].addr)
            if v and w.vmas[v].flags & VM_LOCKED:
                return True
        item = w.links[item].left
    return False


cdef inline void mlock_merged(kw_world *w, int32_t mm, uint64_t addr, int64_t pfn, int64_t kpfn) noexcept nogil:
    # In place of pfn kpfn was mapped at addr (0: the zero page), where the page that is visited is, or one that was just
    # looked up: in a locked area the new page waits, then the old one. 5.10 looks whether the new one is locked already.
    cdef int32_t v = w.cursor.vma
    if w.vmas[v].mm != mm or not w.vmas[v].start <= addr < w.vmas[v].end:
        v = vma_find(w, mm, addr)
    if KW_UNLIKELY(w.vmas[v].flags & VM_LOCKED):
        if kpfn and not (w.ctl.kernel & SWITCH_OLD_CALLS and locked_before(w, mm, addr, kpfn)):
            mlock_add(w, <int>w.ksm.cpu, kpfn)
        # mlock2 of 5.10 locks no page that is there already; the split of a huge page does.
        if w.f_flags[pfn] & FRAME_MLOCKED or not (w.ctl.kernel & SWITCH_OLD_CALLS and w.vmas[v].flags & VM_LOCKONFAULT):
            mlock_add(w, <int>w.ksm.cpu, pfn)
