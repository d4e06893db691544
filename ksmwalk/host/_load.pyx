"""Pages of an address space that exists already, put into a Host one by one: true frames, any order, any holes.

numpy needs some thirty passes over the pages for this, most of them in memory never touched before; one loop does it in
a tenth of the time.
"""
from ksmwalk._core cimport *

# What a page is, besides the FRAME_* bits of its frame.
cdef enum:
    PAGE_WRITABLE = 0x1000  # may be stored to without a fault
    PAGE_LEAF = 0x2000      # one of the 512 of a leaf pmd, all of which stand together
    PAGE_FOLIO = 0x4000     # of a folio of 512 frames that begins at the frame's own multiple of 512
    PAGE_FRESH = 0x8000     # an answer: nobody had the frame before


cdef inline void take(kw_world *w, uint64_t pfn, uint16_t *kind) noexcept nogil:
    """Make a frame ours and fill its fields, if nobody has it yet; its block is counted down, not relinked."""
    cdef uint16_t page = kind[0]
    kw_check(pfn < <uint64_t>w.ctl.nr_frames)
    cdef uint64_t *word = w.b_free + (pfn >> 6)
    cdef uint64_t bit = <uint64_t>1 << (pfn & 63)
    cdef uint16_t flags = (page & 0xfff) | FRAME_USED
    if not word[0] & bit:
        return
    kind[0] |= PAGE_FRESH
    word[0] &= ~bit
    w.b_count[pfn >> 9] -= 1
    w.ctl.frames_used += 1
    w.f_head[pfn] = <uint32_t>pfn
    if page & PAGE_FOLIO:
        w.f_head[pfn] = <uint32_t>(pfn & ~<uint64_t>511)
        flags |= FRAME_TAIL if pfn & 511 else FRAME_HEAD
    w.f_flags[pfn] = flags
    w.f_key[pfn] = 0 if flags & FRAME_ZERO else pfn


cdef int64_t load(kw_world *w, int32_t mm, const uint64_t *addr, const int64_t *pfns, uint16_t *pages,
                  int64_t first, int64_t last, uint64_t ro, uint64_t rw, uint64_t zero) noexcept nogil:
    cdef int64_t i = first, k
    cdef uint64_t pfn, flags, region = 1
    cdef uint64_t *table = NULL
    cdef uint64_t *p
    cdef uint16_t page
    while i < last:
        page = pages[i]
        pfn = <uint64_t>pfns[i]
        flags = zero if page & FRAME_ZERO else rw if page & PAGE_WRITABLE else ro
        if page & PAGE_LEAF:
            p = pmd_make(w, mm, addr[i])
            if p == NULL:
                return i
            p[0] = make_leaf(pfn, flags | PTE_PS, 2)
            for k in range(512):
                take(w, pfn + k, &pages[i + k])
                if not page & FRAME_ZERO:
                    w.f_mapcount[pfn + k] += 1
            if not page & FRAME_ZERO:
                w.f_refs[w.f_head[pfn]] += 512
            i += 512
            continue
        if addr[i] >> 21 != region:
            table = pte_make(w, mm, addr[i])
            if table == NULL:
                return i
            region = addr[i] >> 21
            table -= (addr[i] >> 12) & 511
        table[(addr[i] >> 12) & 511] = make_entry(pfn, flags)
        if not page & FRAME_ZERO:
            take(w, pfn, &pages[i])
            w.f_mapcount[pfn] += 1
            w.f_refs[w.f_head[pfn]] += 1
        i += 1
    return last


cdef int64_t whole_leaves(const uint64_t *addr, const int64_t *pfns, const uint16_t *pages,
                          int64_t first, int64_t last) noexcept nogil:
    """The first page that is marked as part of a leaf and is not of a complete one; -1: there is none."""
    cdef int64_t i = first, k
    while i < last:
        if not pages[i] & PAGE_LEAF:
            i += 1
            continue
        if addr[i] & (KW_PMD_SIZE - 1) or pfns[i] & 511 or i + 512 > last:
            return i
        for k in range(1, 512):
            if not pages[i + k] & PAGE_LEAF or pfns[i + k] != pfns[i] + k:
                return i + k
            if addr[i + k] != addr[i] + (<uint64_t>k << 12):
                return i + k
        i += 512
    return -1


def load_pages(World world not None, int32_t mm, const uint64_t[::1] addr, const int64_t[::1] pfns,
               uint16_t[::1] pages, const int64_t[:, ::1] slices, const uint64_t[:, ::1] flags):
    """Map addr[i] to pfns[i] in an mm without tables, take the frames and count the mappings.

    `pages`: FRAME_* and PAGE_* bits of each page, PAGE_FRESH added where it applies. `slices[v]`: first and last
    (exclusive) page of vma v; `flags[v]`: of its entries, read-only, writable, zero page. The lists of the frame
    allocator's blocks are not kept: build them anew.

    Returns the number of pages loaded; fewer than there are where no table page is left.
    """
    cdef int64_t v, n = 0
    if not (addr.shape[0] == pfns.shape[0] == pages.shape[0]) or slices.shape[0] != flags.shape[0]:
        raise ValueError("arrays of different lengths")
    if slices.shape[1] != 2 or flags.shape[1] != 3:
        raise ValueError("slices of two columns and flags of three are needed")
    for v in range(slices.shape[0]):
        if not 0 <= slices[v, 0] <= slices[v, 1] <= addr.shape[0]:
            raise IndexError(f"slice {slices[v, 0]} to {slices[v, 1]} of {addr.shape[0]} pages")
    for n in range(pfns.shape[0]):
        if not 0 <= pfns[n] < world.w.ctl.nr_frames:
            raise IndexError(f"frame {pfns[n]:#x}: this Host has {world.w.ctl.nr_frames:#x} frames")
    for v in range(slices.shape[0]):
        if slices[v, 0] == slices[v, 1]:
            continue
        n = whole_leaves(&addr[0], &pfns[0], &pages[0], slices[v, 0], slices[v, 1])
        if n >= 0:
            raise ValueError(f"page {n} at {addr[n]:#x}, frame {pfns[n]:#x}: not of a whole leaf, aligned in both")
    n = 0
    with nogil:
        for v in range(slices.shape[0]):
            if slices[v, 0] == slices[v, 1]:
                continue
            n = load(&world.w, mm, &addr[0], &pfns[0], &pages[0], slices[v, 0], slices[v, 1],
                     flags[v, 0], flags[v, 1], flags[v, 2])
            if n < slices[v, 1]:
                break
        mm_changed(&world.w, mm, 1)
    return n


def hold_pages(World world not None, int32_t backing, const int64_t[::1] place, const int64_t[::1] pfns):
    """Let a file or shared object hold frames that nothing else holds: pfns[i] at byte place[i]; a place taken stays.

    A folio is held once, at its head.

    Returns the number of places looked at; fewer than there are where no table page is left.
    """
    cdef int64_t i
    cdef uint64_t *p
    if place.shape[0] != pfns.shape[0]:
        raise ValueError("arrays of different lengths")
    for i in range(place.shape[0]):
        if not 0 <= pfns[i] < world.w.ctl.nr_frames:
            raise IndexError(f"frame {pfns[i]:#x}: this Host has {world.w.ctl.nr_frames:#x} frames")
    with nogil:
        for i in range(place.shape[0]):
            p = pte_make(&world.w, backing, <uint64_t>place[i])
            if p == NULL:
                with gil:
                    return i
            if p[0] == 0:
                p[0] = make_entry(<uint64_t>pfns[i], PTE_P | PTE_A)
                if world.w.f_head[pfns[i]] == pfns[i]:
                    world.w.f_refs[pfns[i]] += 1
    return place.shape[0]
