# The contract of swap slots and the swap cache, for those who `cimport ksmwalk.memory._swap`. Same rules as _frames.pxd.
#
# A slot holds a content for the entries that mean it (`count`). A frame with this content may stand in the swap cache
# (`pfn` of the slot, `slot_of` of the frame): the cache holds a reference to it, until no entry means the slot any more.
# Without swap nothing here is ever reached: entries of slots are met only where others would be refused.
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk._core cimport entry_none, pte_present
from ksmwalk.layout._layout cimport *


# An entry of a swap slot as x86-64 has it: not present, the number of the device (0) in bits 59 to 63, the slot in bits
# 9 to 58, inverted. Markers (guards, userfaultfd) are of "device" 31.
cdef enum:
    SWAP_UFFD_WP = 0x4       # the page is write-protected by userfaultfd
    SWAP_EXCLUSIVE = 0x8     # the page was exclusive (FRAME_EXCLUSIVE)
    SWAP_TYPE_SHIFT = 59
    SWAP_SHIFT = 9

cdef inline uint64_t swap_entry(int32_t slot, uint64_t bits) noexcept nogil:
    return ((~<uint64_t>slot << SWAP_SHIFT) & ((<uint64_t>1 << SWAP_TYPE_SHIFT) - 1)) | bits

cdef inline int32_t swap_slot(kw_world *w, uint64_t e) noexcept nogil:
    # The slot that an entry means, 0: it means none (an entry written by hand may hold anything).
    cdef uint64_t slot
    if e >> SWAP_TYPE_SHIFT or pte_present(e) or entry_none(e):
        return 0
    slot = (~e & ((<uint64_t>1 << SWAP_TYPE_SHIFT) - 1)) >> SWAP_SHIFT
    if slot >= <uint64_t>w.ctl.slots_used or not w.slots[slot].flags & SLOT_USED:
        return 0
    return <int32_t>slot

cdef inline int32_t cached_slot(kw_world *w, int64_t pfn) noexcept nogil:
    # The slot of a page of the swap cache, 0: it is not in it.
    return w.slot_of[pfn] if w.ctl.slots_used > 1 else 0

cdef inline int64_t slots_left(kw_world *w) noexcept nogil:
    # Pages that the swap device has room for.
    return w.ctl.slots_most - w.ctl.slots_live if w.ctl.slots_most > w.ctl.slots_live else 0

cdef int32_t slot_new(kw_world *w, int64_t pfn) noexcept nogil
    # A slot for the content of this frame, which is in the swap cache from now on; no entry means it yet. KW_NONE: the
    # device is full, or there is none.
cdef void mm_goes_out(kw_world *w, int32_t mm) noexcept nogil
    # A page of this mm has gone out: swapoff begins with it, unless it is on the list already.
cdef void mm_copied(kw_world *w, int32_t child, int32_t parent) noexcept nogil
    # A swap entry of the parent was copied: the child comes right after it, unless it is on the list already.
cdef void mm_off_list(kw_world *w, int32_t mm) noexcept nogil
    # The mm is gone, or all is back.
cdef void slot_share(kw_world *w, int32_t slot) noexcept nogil
    # One entry more means it.
cdef void slot_put(kw_world *w, int32_t slot) noexcept nogil
    # One entry less; with the last the slot is free, and its page has left the swap cache.
cdef void cache_add(kw_world *w, int32_t slot, int64_t pfn) noexcept nogil
    # This frame, of the slot's content, is in the swap cache from now on.
cdef void cache_drop(kw_world *w, int32_t slot) noexcept nogil
    # Its page, if there is one, leaves the swap cache, and is freed where nobody else refers to it.
