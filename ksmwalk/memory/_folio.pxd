# The contract of folios, for those who `cimport ksmwalk.memory._folio`. Same rules as _frames.pxd.
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk.layout._layout cimport *


cdef int split_folio(kw_world *w, int64_t pfn) noexcept nogil
    # Split the huge folio of pfn into small pages: every mapping of it in every mm goes to ptes, its frames
    # become plain small pages (mapcounts kept, refs = mapcount), and every EMPTY (key 0) frame's mappings become the
    # shared zero page (not dirty, counted nowhere; not in VM_LOCKED areas), its frame is freed, as are frames that
    # nobody maps. KW_OK also where pfn is no huge folio; KW_EBUSYENTRY: somebody else holds a reference (pin, LRU), nothing
    # done; KW_ENOROWS: some mappings may have gone to ptes, the folio is still whole.
cdef int split_folio_at(kw_world *w, int64_t pfn, uint64_t addr) noexcept nogil
    # The same, told an address where pfn is mapped: looks there first in every mm (where forks have it), and everywhere
    # only if that does not account for all mappings. Prefer it: split_folio has to search all tables.
cdef int64_t whole_folio(kw_world *w, const uint64_t *ptes, int64_t room) noexcept nogil
    # Pages of the folio of several that these ptes, of which there are `room`, map from its first to its last page; 0: none.
cdef int64_t whole_batch(kw_world *w, const uint64_t *ptes, int64_t room) noexcept nogil
    # The same where advice can take them at once: userfaultfd protects all of them, or none.
cdef int split_parts(kw_world *w, int32_t mm, uint64_t start, uint64_t end, bint lazily) noexcept nogil
    # Advice for a range inside one area (COLD, PAGEOUT, FREE) splits huge pages of which it covers a part, where they are
    # not shared and nobody holds on to them. lazily: it is FREE. KW_ENOROWS.
cdef bint visited_before(kw_world *w, int32_t u, int32_t v) noexcept nogil
    # Does the kernel come by the mapping of a page in area u first, by that in v then?
cdef bint page_ours(kw_world *w, int32_t mm, int64_t pfn) noexcept nogil
    # May a store of this mm, through a pte, go into this page? Else it has to be copied.
cdef bint huge_ours(kw_world *w, int64_t head) noexcept nogil
    # May a store through a leaf pmd go into this huge page? Else the pmd has to be split.
cdef void map_huge(kw_world *w, int32_t mm, kw_vma *v, uint64_t *pmd, int64_t pfn) noexcept nogil
    # A leaf pmd of the new huge page pfn, with the permissions of the vma, dirty; it is exclusive.
cdef void make_huge_zero(kw_world *w, int64_t pfn) noexcept nogil
    # The 512 frames from pfn on become the huge zero page.
