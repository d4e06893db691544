"""Pages that ksmd saw before: those merged put on stable nodes, with an rmap_item for each mapping, as if merged here."""
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk._core cimport World, enter, leave, records
from ksmwalk.ksm._items cimport item_at
from ksmwalk.ksm._stable cimport append_item, stable_insert, tree_of
from ksmwalk.layout._layout cimport *


cdef int32_t node_of(kw_world *w, int32_t mm, int64_t pfn) noexcept nogil:
    """The stable node of a KSM page, made where there is none."""
    if w.f_node[pfn]:
        return w.f_node[pfn]
    return stable_insert(w, pfn, w.f_key[pfn], tree_of(w, mm, pfn))


def take_over(World world not None, int32_t mm, addrs, frames):
    """Give an mm without rmap_items one for each of these mappings, and each KSM page among them its node.

    Other pages are as visited before, with the content that they have now. mm 0: the nodes only. Addresses ascend. 0 or a
    code; what was done before an error stays.
    """
    cdef kw_world *w = &world.w
    cdef int64_t i, n, nr_addrs
    cdef const uint64_t *addr = <const uint64_t *>records(addrs, False, 8, 8, &nr_addrs)
    cdef const int64_t *pfns = <const int64_t *>records(frames, False, 8, 8, &n)
    cdef int32_t item = 0, node
    cdef int code = 0
    if mm and nr_addrs != n:
        raise ValueError("an address for each frame is needed")
    for i in range(n):
        if not 0 < pfns[i] < w.ctl.nr_frames or not w.f_flags[pfns[i]] & (FRAME_ANON if mm else FRAME_KSM):
            raise ValueError(f"pfns[{i}] {pfns[i]:#x}: no page of KSM's" + (" nor another of anonymous memory" if mm else ""))
        if mm and i and addr[i] <= addr[i - 1]:
            raise ValueError(f"addr[{i}] {addr[i]:#x}: not in ascending order")
    if mm and w.mms[mm].rmap_list:
        raise ValueError(f"mm {mm}: has rmap_items already")
    enter(world)
    with nogil:
        for i in range(n):
            node = node_of(w, mm, pfns[i]) if w.f_flags[pfns[i]] & FRAME_KSM else 0
            if node < 0:
                code = node
                break
            if mm:
                item = item_at(w, mm, item, addr[i])
                if item < 0:
                    code = item
                    break
                if node:
                    append_item(w, item, node)
                else:
                    w.items[item].checksum = w.f_key[pfns[i]]
                    w.items[item].flags |= ITEM_HAS_CHECKSUM
    leave(world)
    return code
