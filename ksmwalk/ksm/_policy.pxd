# A scan that asks: the contract of policies, for those who `cimport ksmwalk.ksm._policy`. Same rules as _core.pxd.
#
# A kw_policy is a struct of functions and a pointer that is handed to each of them. A function that is NULL decides as
# Linux 6.18 does and costs nothing. They are called in the middle of a batch and may read all arrays, but change nothing
# of the Host; a negative answer (KW_EPOLICY) ends the batch.
#
# begin: a full scan starts.
# order: at the start of a full scan: mms[n] are the numbers on the list, in its order. They are put into the order of
#   the scan; the answer says how many of them, from the front, are visited in it. The others keep their
#   rmap_items and what is merged.
# domain: when the cursor enters an mm: whose pages its own may be merged with (_domains.pxd).
# area: when the cursor enters an area, once a scan: KW_SCAN; KW_PAUSE: its rmap_items are kept; KW_LEAVE: they go.
# pages: when the cursor enters a table: what happens to each page, in `act`.
# page: what happens to a page that the cursor has found: asked after `pages`, of what that did not leave out; never
#   KW_PAGE_OUT.
# after: the cursor has left an area that was scanned.
#
# What happens to a page: KW_PAGE_OUT: nothing, it is not visited, its rmap_item is kept if there is one.
# KW_PAGE_COMPARE: Linux's visit (its content is noted, and compared at a visit that finds it unchanged). KW_PAGE_NOW:
# compared at this visit. KW_PAGE_ZERO: replaced by the zero page at once if it is empty, else Linux's visit.
# KW_PAGE_LEAVE: visited, but neither noted nor compared.
#
# Pages and areas that are passed over leave the unstable tree, as those do that smart scan skips.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

from ksmwalk.layout._layout cimport *


cdef extern from "_policy.h" nogil:
    enum:
        KW_SCAN
        KW_PAUSE
        KW_LEAVE
        KW_PAGE_OUT
        KW_PAGE_COMPARE
        KW_PAGE_NOW
        KW_PAGE_ZERO
        KW_PAGE_LEAVE
    ctypedef struct kw_pages:
        int32_t mm
        int32_t vma
        int32_t n
        uint64_t addr[512]
        int64_t pfn[512]
        int32_t item[512]
        uint64_t entry[512]
        uint8_t act[512]
    ctypedef struct kw_tally:
        int64_t visited
        int64_t merged
        int64_t broken
        int64_t changed
    ctypedef struct kw_policy:
        void *data
        int (*begin)(kw_world *w, void *data) noexcept nogil
        int32_t (*order)(kw_world *w, void *data, int32_t *mms, int32_t n) noexcept nogil
        int (*domain)(kw_world *w, void *data, int32_t mm) noexcept nogil
        int (*area)(kw_world *w, void *data, int32_t mm, int32_t vma) noexcept nogil
        int (*pages)(kw_world *w, void *data, kw_pages *pages) noexcept nogil
        int (*page)(kw_world *w, void *data, int32_t item, int64_t pfn) noexcept nogil
        int (*after)(kw_world *w, void *data, int32_t mm, int32_t vma, const kw_tally *tally) noexcept nogil
    ctypedef struct kw_choosing:
        kw_policy policy
        int64_t area_serial
        int32_t area_mm
        int32_t area_vma
        int32_t area_answer
        int32_t area_open
        kw_tally tally
        uint64_t table_base
        uint8_t act[512]
        kw_pages pages
        uint64_t *left_out
        uint64_t *rested


cdef int choosing_init(kw_choosing *c, kw_world *w) noexcept nogil
    # To be called once, before the functions are filled in: KW_OK, or -ENOMEM.
cdef void choosing_done(kw_choosing *c) noexcept nogil
    # Free what choosing_init made.
cdef int64_t scan_asking(kw_world *w, kw_choosing *c, int64_t n, int *failed) noexcept nogil
    # One batch of at most n visits: scan_and_merge of _engine.pxd, with the same answers, that asks a policy.


cdef class CPolicy:
    # A policy of C functions that Python can plug in: `host.ksm.policy = CPolicy()` once `functions` is filled in.
    cdef kw_policy functions
    cdef public object keep    # whatever `functions.data` points into
