# The contract of the merge engine, for those who `cimport ksmwalk.ksm._engine`.
#
# Same rules as _core.pxd. The engine reads and writes a Host's arrays and holds no state of its own. Contents are keys
# (equal keys: equal pages; order of keys: order of pages), so a checksum is the key itself.
from libc.stdint cimport int32_t, int64_t

from ksmwalk.layout._layout cimport *


cdef void bind(kw_world *w) noexcept nogil
    # Give the cursor its doors into the engine (kw_world.leave_tree, kw_world.start_scan).
cdef int64_t scan_and_merge(kw_world *w, int64_t n, int *failed) noexcept nogil
    # One batch of at most n visits; how many there were. Ends at the end of a full scan. failed: 0, or the KW_* code
    # that ended the batch early: an arena was full, or an entry can't be followed.
cdef int examine(kw_world *w, int32_t item, int64_t pfn) noexcept nogil
    # One visit: compare the page pfn, which scan_next has just found at the item's address, with all others and merge
    # it. KW_OK, KW_ENONODES or KW_ENOFRAMES. Counts in pages_scanned. Sees for itself whether others have changed an
    # address space since the last visit.
    #
    # A batch of your own does what scan_and_merge does, to the bit, work counts aside:
    #     scan_begin(w)
    #     while done < n:
    #         item = scan_next(w, &pfn)
    #         if item <= 0:             # 0: the end of a full scan, or nobody is on the list; else a KW_* code
    #             break
    #         err = examine(w, item, pfn)
    #         done += 1
    #         if err < 0:
    #             break
    # Where anything else has changed the Host between two rounds, scan_begin comes first again.
cdef void leave_tree(kw_world *w, int32_t item) noexcept nogil
    # Take the item out of the unstable tree or off its stable node. A stale node goes as a whole.
cdef int unmerge_all(kw_world *w) noexcept nogil
    # run = 2: break every merged page and free every rmap_item and node. KW_ENOFRAMES: stopped where no frame was left.
