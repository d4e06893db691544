# The contract of areas, for those who `cimport ksmwalk.memory._areas`. Same rules as _frames.pxd. Calls that may be
# refused as a system call is answer -errno.
from libc.stdint cimport int32_t, uint16_t, uint64_t

from ksmwalk.layout._layout cimport *


cdef enum:
    MAX_MAP_COUNT = 65530    # sysctl vm.max_map_count
    STACK_GAP = 0x100000     # stack_guard_gap: 256 pages
    STACK_MOST = 0x800000    # RLIMIT_STACK as it mostly is
    VM_SPECIAL = VM_IO | VM_DONTEXPAND | VM_PFNMAP | VM_MIXEDMAP
    VM_ACCESS = VM_READ | VM_WRITE | VM_EXEC

cdef extern from *:
    """
    #define VM_WATCHED (VM_UFFD_MISSING | VM_UFFD_WP | VM_UFFD_MINOR | VM_UFFD_ASYNC)
    """
    const uint64_t VM_WATCHED    # by userfaultfd, and how

# ------------------------------------------------------------------ address spaces and objects

cdef int32_t mm_alloc(kw_world *w) noexcept nogil
    # A record of an address space with an empty top table; KW_ENOMMS: no record, KW_ENOROWS: no table.
cdef void mm_free(kw_world *w, int32_t mm) noexcept nogil
cdef void drop_tables(kw_world *w, int32_t mm) noexcept nogil
    # All tables of an mm whose leaves are gone, the top one included.
cdef void backing_put(kw_world *w, int32_t backing) noexcept nogil
    # One user (vma, or the one who made it) less; the object goes with its last.

# ------------------------------------------------------------------ the look-up

cdef int32_t vma_find(kw_world *w, int32_t mm, uint64_t addr) noexcept nogil
    # The vma that contains addr, 0: none.
cdef int32_t vma_find_from(kw_world *w, int32_t mm, uint64_t addr) noexcept nogil
    # The lowest vma that ends above addr (the kernel's find_vma), 0: none.
cdef int32_t vma_for(kw_world *w, int32_t mm, uint64_t addr) noexcept nogil
    # The vma that an access to addr finds, 0: none. A stack (VM_GROWSDOWN) grows down to it: by any distance, but not
    # over 8 MiB in all, nor nearer than 1 MiB to what may be accessed below it and is no stack.
cdef bint waits(kw_world *w, const kw_vma *v, uint64_t addr) noexcept nogil
    # Would a fault at addr, where nothing is mapped, wait for a userfaultfd handler?
cdef inline uint64_t user_end(kw_world *w) noexcept nogil:
    # First address beyond user memory.
    return ((<uint64_t>1) << (47 if w.ctl.levels == 4 else 56)) - KW_PAGE_SIZE

cdef uint64_t find_place(kw_world *w, int32_t mm, uint64_t length, uint64_t align) noexcept nogil
    # Start of the highest free place, as the kernel picks one for mmap; 0: none.
cdef int32_t last_vma(kw_world *w, int32_t mm) noexcept nogil
    # The highest vma, 0: none.

cdef inline bint vma_compatible(uint64_t flags) noexcept nogil:
    # May it be marked as mergeable at all?
    return (flags & (VM_SHARED | VM_PFNMAP | VM_IO | VM_DONTEXPAND | VM_HUGETLB | VM_MIXEDMAP | VM_DROPPABLE
                     | VM_DAX | VM_MAYSHARE)) == 0

cdef inline bint vma_mergeable(const kw_vma *v) noexcept nogil:
    # Marked, and nothing about it forbids it.
    return (v.flags & VM_MERGEABLE) != 0 and vma_compatible(v.flags)

# ------------------------------------------------------------------ records of vmas

cdef int32_t vma_alloc(kw_world *w, int32_t mm) noexcept nogil
cdef void vma_link(kw_world *w, int32_t v, int32_t prev) noexcept nogil
    # Put v behind prev, 0: first.
cdef int32_t vma_make(kw_world *w, int32_t mm, uint64_t start, uint64_t end, uint64_t flags, uint64_t pgoff) noexcept nogil
    # A new area where nothing is mapped, mergeable where all of the mm is to be, and not joined with its neighbours yet:
    # its record, or -ENOMEM where the mm has as many as it may.
cdef void vma_free(kw_world *w, int32_t v) noexcept nogil
cdef int vmas_left(kw_world *w, int n) noexcept nogil
    # Are n records to be had? The free list is only looked along as far as needed.
cdef int leaf_split_at(kw_world *w, int32_t v, uint64_t addr) noexcept nogil
    # No huge leaf of v lies across addr from now on; a page that was locked as a whole stays so. KW_OK or KW_ENOROWS.
cdef int32_t vma_split(kw_world *w, int32_t v, uint64_t addr) noexcept nogil
    # Cut v at addr: the upper part is a new record, whose index is returned. No huge leaf lies across the cut.
cdef bint vma_join(kw_world *w, int32_t a, int32_t b) noexcept nogil
    # Make one of two neighbours if they are alike in all but place: b goes into a.
cdef int32_t join_around(kw_world *w, int32_t v) noexcept nogil
    # Join v with its neighbours where they allow it; the record that holds its range now.
cdef int32_t set_flags(kw_world *w, int32_t v, uint64_t start, uint64_t end, uint64_t flags) noexcept nogil
    # Give [start, end) of v other flags: cut at its ends, joined with what is alike. The record that holds it.
cdef int32_t set_policy(kw_world *w, int32_t v, uint64_t start, uint64_t end, int32_t policy) noexcept nogil
    # The same with the NUMA node its new pages go to (kw_vma.policy).
cdef int32_t set_watched(kw_world *w, int32_t v, uint64_t start, uint64_t end, uint64_t how, uint16_t watcher) noexcept nogil
    # The same with how a userfaultfd watches it (VM_WATCHED; 0: none does), and which one.

# ------------------------------------------------------------------ khugepaged

cdef bint for_khugepaged(kw_world *w, const kw_vma *v, uint64_t flags) noexcept nogil
    # Does khugepaged look at this area, were these its vm_flags?
cdef void khuge_know(kw_world *w, const kw_vma *v, uint64_t flags) noexcept nogil
    # The address space of an area that is to have these vm_flags is one that khugepaged goes over from now on, if it would
    # look at this area and a huge page has room in it.
cdef void khuge_prepare(kw_world *w, kw_vma *v) noexcept nogil
    # The same at a fault that finds room for a huge page, which gives the area its anon_vma first.

# ------------------------------------------------------------------ where pages come from

cdef inline int node_of(kw_world *w, const kw_vma *v) noexcept nogil:
    # NUMA node that new pages of an area come from, while it has any.
    return v.policy - 1 if v.policy else w.mms[v.mm].nid
cdef void anon_vma_prepare(kw_world *w, kw_vma *v) noexcept nogil
    # The vma gets anonymous pages: its own anon_vma, or that of a neighbour it could be joined with.
