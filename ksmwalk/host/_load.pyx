"""An address space that exists already, put into a Host page by page: true frames, any order, any holes.

System calls and faults of the model would tell the same story too slowly and join areas that the kernel keeps apart.
numpy needs some thirty passes over the pages, most of them in memory never touched before; one loop, over the engine's
own allocators, does it in a tenth of the time.
"""
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t, uint8_t

from ksmwalk._core cimport World, alone, enter, leave, make_entry, make_leaf, pmd_make, pte_make
from ksmwalk.memory._anon cimport anon_new
from ksmwalk.memory._frames cimport HUGE_ORDER, LARGE, folio_head, frame_map, frame_take, owners_add
from ksmwalk.memory._leaves cimport prot_bits, touched
from ksmwalk.memory._areas cimport khuge_know, vma_alloc, vma_link, vmas_left
from ksmwalk.ksm._items cimport slot_insert
from ksmwalk.layout._layout cimport *


cdef inline void new_folio(kw_world *w, uint64_t head) noexcept nogil:
    # Parts of it may be mapped already: their owners stay.
    w.owners[head >> 2].order = HUGE_ORDER
    w.ctl.folios += 1


cdef inline void owned(kw_world *w, int64_t pfn, bint writable) noexcept nogil:
    # A page just mapped: exclusive if it may be stored to and nobody else has it.
    if writable and w.f_mapcount[pfn] == 1 and w.f_flags[pfn] & (FRAME_ANON | FRAME_KSM) == FRAME_ANON:
        w.f_flags[pfn] |= FRAME_EXCLUSIVE
        return
    w.f_flags[pfn] &= ~FRAME_EXCLUSIVE
    if w.f_mapcount[pfn] > 1 and w.f_flags[pfn] & LARGE:
        w.f_flags[folio_head(w, pfn)] &= ~FRAME_EXCLUSIVE    # it may stand there for the whole folio


cdef inline void take(kw_world *w, uint64_t pfn, uint64_t key, uint16_t *kind) noexcept nogil:
    """Make a frame ours and fill its fields, if nobody has it yet."""
    cdef uint16_t page = kind[0]
    cdef uint16_t flags = (page & 0xfff) | FRAME_USED
    kw_check(pfn < <uint64_t>w.ctl.nr_frames)
    if not frame_take(w, <int64_t>pfn):
        return
    kind[0] |= LOADED_FRESH
    if page & LOADED_FOLIO:
        w.f_head[pfn] = <uint32_t>(pfn & ~<uint64_t>511)
        flags |= FRAME_TAIL if pfn & 511 else FRAME_HEAD
        if flags & FRAME_HEAD:
            new_folio(w, pfn)
    w.f_flags[pfn] = flags
    w.f_key[pfn] = 0 if flags & FRAME_ZERO else key


cdef int64_t load(kw_world *w, int32_t mm, uint64_t vm_flags, const uint64_t *addr, const int64_t *pfns,
                  const uint64_t *keys, uint16_t *pages, int64_t first, int64_t last) noexcept nogil:
    """The pages of one vma; the first that found no table page, `last` where all did."""
    cdef int64_t i = first, k
    cdef uint64_t pfn, flags, region = 1
    # Entries as the kernel's faults would have left them.
    cdef uint64_t ro = prot_bits(vm_flags) & ~PTE_RW
    cdef uint64_t rw = ro | (PTE_RW | PTE_D if vm_flags & VM_WRITE else 0)
    cdef uint64_t *table = NULL
    cdef uint64_t *p
    cdef uint16_t page
    while i < last:
        page = pages[i]
        pfn = <uint64_t>pfns[i]
        flags = ro | PTE_SPECIAL if page & FRAME_ZERO else rw if page & LOADED_WRITABLE else ro
        if (page & (FRAME_ANON | FRAME_KSM | FRAME_ZERO)) == FRAME_ANON:
            flags |= PTE_D      # somebody stored to it once
        if page & LOADED_LEAF:
            p = pmd_make(w, mm, addr[i])
            if p == NULL:
                return i
            p[0] = make_leaf(pfn, flags | PTE_PS, 2)
            for k in range(512):
                take(w, pfn + k, keys[i + k] if keys != NULL else pfn + k, &pages[i + k])
                if not page & FRAME_ZERO:
                    w.f_mapcount[pfn + k] += 1
            if not page & FRAME_ZERO:
                if w.f_flags[pfn] & FRAME_HEAD:
                    owners_add(w, mm, pfn, 1)
                    owned(w, pfn, flags & PTE_RW != 0)
            i += 512
            continue
        if addr[i] >> 21 != region:
            table = pte_make(w, mm, addr[i])
            if table == NULL:
                return i
            region = addr[i] >> 21
            table -= (addr[i] >> 12) & 511
        table[(addr[i] >> 12) & 511] = make_entry(pfn, flags)
        if page & FRAME_ZERO:
            if page & LOADED_WRITABLE:      # one of KSM's
                table[(addr[i] >> 12) & 511] |= PTE_D
                w.ksm.zero_pages += 1
                w.mms[mm].nr_zero += 1
        else:
            take(w, pfn, keys[i] if keys != NULL else pfn, &pages[i])
            frame_map(w, mm, pfn)
            owned(w, pfn, flags & PTE_RW != 0 and not vm_flags & VM_SHARED)
        i += 1
    return last


cdef int64_t whole_leaves(const uint64_t *addr, const int64_t *pfns, const uint16_t *pages,
                          int64_t first, int64_t last) noexcept nogil:
    """The first page that is marked as part of a leaf and is not of a complete one; -1: there is none."""
    cdef int64_t i = first, k
    while i < last:
        if not pages[i] & LOADED_LEAF:
            i += 1
            continue
        if addr[i] & (KW_PMD_SIZE - 1) or pfns[i] & 511 or i + 512 > last:
            return i
        for k in range(1, 512):
            if not pages[i + k] & LOADED_LEAF or pfns[i + k] != pfns[i] + k:
                return i + k
            if addr[i + k] != addr[i] + (<uint64_t>k << 12):
                return i + k
        i += 512
    return -1


def add_vmas(World world not None, int32_t mm, const uint64_t[::1] start, const uint64_t[::1] end,
             const uint64_t[::1] flags, const uint64_t[::1] pgoff, const int32_t[::1] backing,
             const uint8_t[::1] anon):
    """Give an mm without vmas these, in ascending order, none joined: 0 or a code, with nothing done.

    `anon`: whether it has an anon_vma, one of its own. A hugetlb area has pages of 2 MiB.
    """
    cdef kw_world *w = &world.w
    cdef int64_t i, n = start.shape[0]
    cdef int32_t v, last = 0
    if not (end.shape[0] == flags.shape[0] == pgoff.shape[0] == backing.shape[0] == anon.shape[0] == n):
        raise ValueError("columns of different lengths")
    alone(world)
    if not vmas_left(w, <int>min(n, 0x7fffffff)):
        return KW_ENOVMAS
    for i in range(n):
        v = vma_alloc(w, mm)
        w.vmas[v].start = start[i]
        w.vmas[v].end = end[i]
        w.vmas[v].flags = flags[i]
        w.vmas[v].pgoff = pgoff[i]
        w.vmas[v].backing = backing[i]
        w.vmas[v].page_shift = 21 if flags[i] & VM_HUGETLB else 12
        if backing[i]:
            w.mms[backing[i]].users += 1
        if anon[i]:
            anon_new(w, &w.vmas[v])
        vma_link(w, v, last)
        khuge_know(w, &w.vmas[v], w.vmas[v].flags)
        last = v
    touched(w, mm)
    return 0


def register(World world not None, int32_t mm):
    """Put an mm on ksmd's list, as its first MADV_MERGEABLE does."""
    alone(world)
    slot_insert(&world.w, mm)


def load_pages(World world not None, int32_t mm, const uint64_t[::1] addr, const int64_t[::1] pfns,
               uint16_t[::1] pages, const int64_t[:, ::1] slices, const uint64_t[::1] vm_flags,
               const uint64_t[::1] keys=None):
    """Map addr[i] to pfns[i] in an mm without tables, take the frames and count the mappings.

    `keys`: contents; without them every frame counts as different. `pages`: FRAME_* and LOADED_* bits of each page,
    LOADED_FRESH added where it applies; a zero page that is LOADED_WRITABLE was placed by KSM. `slices[v]`: first and last
    (exclusive) page of vma v; `vm_flags[v]`: its flags.

    Returns the number of pages loaded; fewer than there are where no table page is left.
    """
    cdef int64_t v, n = 0
    cdef const uint64_t *content = NULL
    if keys is not None and keys.shape[0] != addr.shape[0]:
        raise ValueError("a key for each page is needed")
    if not (addr.shape[0] == pfns.shape[0] == pages.shape[0]) or slices.shape[0] != vm_flags.shape[0]:
        raise ValueError("arrays of different lengths")
    if slices.shape[1] != 2:
        raise ValueError("slices of two columns are needed")
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
    if keys is not None and keys.shape[0]:
        content = &keys[0]
    enter(world)
    with nogil:
        for v in range(slices.shape[0]):
            if slices[v, 0] == slices[v, 1]:
                continue
            n = load(&world.w, mm, vm_flags[v], &addr[0], &pfns[0], content, &pages[0], slices[v, 0], slices[v, 1])
            if n < slices[v, 1]:
                break
        touched(&world.w, mm)
    leave(world)
    return n


def hold_pages(World world not None, int32_t backing, const int64_t[::1] place, const int64_t[::1] pfns):
    """Let a file or shared object hold frames that nothing else holds: pfns[i] at byte place[i]; a place taken stays.

    A folio is held once, at its head.

    Returns the number of places looked at; fewer than there are where no table page is left.
    """
    cdef int64_t i, n = place.shape[0]
    cdef uint64_t *p = NULL
    if place.shape[0] != pfns.shape[0]:
        raise ValueError("arrays of different lengths")
    for i in range(place.shape[0]):
        if not 0 <= pfns[i] < world.w.ctl.nr_frames:
            raise IndexError(f"frame {pfns[i]:#x}: this Host has {world.w.ctl.nr_frames:#x} frames")
    enter(world)
    with nogil:
        for i in range(place.shape[0]):
            p = pte_make(&world.w, backing, <uint64_t>place[i])
            if p == NULL:
                n = i
                break
            if p[0] == 0:
                p[0] = make_entry(<uint64_t>pfns[i], PTE_P | PTE_A)
                if folio_head(&world.w, pfns[i]) == pfns[i]:
                    world.w.f_extra[pfns[i]] += 1
    leave(world)
    return n


def fill_folios(World world not None, const int64_t[::1] heads):
    """Take what nobody maps of folios of 512 frames, of which others are loaded (`LOADED_FOLIO`): they go with these.

    heads: first frames. Contents of what is taken differ from all others.
    """
    cdef kw_world *w = &world.w
    cdef int64_t i, k, pfn
    for i in range(heads.shape[0]):
        if heads[i] & 511 or not 0 <= heads[i] <= w.ctl.nr_frames - 512:
            raise ValueError(f"heads[{i}] {heads[i]:#x}: no first frame of a folio here")
    enter(world)
    with nogil:
        for i in range(heads.shape[0]):
            for k in range(512):
                pfn = heads[i] + k
                if not frame_take(w, pfn):
                    continue
                w.f_head[pfn] = <uint32_t>heads[i]
                w.f_flags[pfn] = FRAME_ANON | FRAME_USED | (FRAME_TAIL if k else FRAME_HEAD)
                w.f_key[pfn] = <uint64_t>pfn | <uint64_t>1 << 63
                if k == 0:
                    new_folio(w, pfn)
    leave(world)
