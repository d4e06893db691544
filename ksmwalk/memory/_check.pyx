"""Areas and page tables that came from outside, held against each other before the engine works on them.

The contract stands in `_check.pxd`.
"""
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t, uint8_t
from libc.stdlib cimport calloc, free

from ksmwalk._core cimport World, enter, entry_leaf, entry_pfn, entry_present, leave, level_size, row_owner
from ksmwalk.memory._areas cimport VM_WATCHED
from ksmwalk.memory._check_frames cimport frames
from ksmwalk.memory._check_swap cimport families, swap
from ksmwalk.memory._frames cimport HUGE_ORDER, folio_head
from ksmwalk.memory._swap cimport SWAP_TYPE_SHIFT, swap_slot
from ksmwalk.layout._layout cimport *
from ksmwalk.layout._poison cimport kw_peek_byte, kw_peek_entry


cdef enum:
    MM_BITS = 0x1ff                      # all of MM_*

cdef uint64_t VM_BITS = (
    VM_READ | VM_WRITE | VM_EXEC | VM_SHARED | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC | VM_MAYSHARE | VM_PFNMAP
    | VM_MAYBE_GUARD | VM_LOCKED | VM_IO | VM_SEQ_READ | VM_RAND_READ | VM_DONTCOPY | VM_DONTEXPAND
    | VM_GROWSDOWN | VM_LOCKONFAULT | VM_WATCHED
    | VM_ACCOUNT | VM_NORESERVE | VM_HUGETLB | VM_WIPEONFORK | VM_DONTDUMP | VM_MIXEDMAP | VM_HUGEPAGE | VM_NOHUGEPAGE
    | VM_MERGEABLE | VM_DROPPABLE | VM_DAX
)


# ------------------------------------------------------------------ lists of free records

cdef int free_list(Check *c, const char *array, const char *start, const char *next, char *records, int64_t size,
                   int64_t link, int64_t used, int64_t first, uint8_t *marks) noexcept nogil:
    cdef int64_t at = first, before = -1, i
    cdef char *p
    cdef char found
    while at:
        if not 0 < at < used:
            if before < 0:
                return refuse(c, b"ctl", start, 0, at, b"no record that was ever used")
            return refuse(c, array, next, before, at, b"no record that was ever used")
        if marks[at]:
            return refuse(c, array, next, before, at, b"a free record that is on the list already")
        marks[at] = SEEN_FREE
        p = records + at * size
        for i in range(size):
            found = kw_peek_byte(p + i)  # of a Host that is to be kept, where what is free is poison
            if found and not link <= i < link + 4:
                return refuse(c, array, NULL, at, found, b"on the list of free records, but not empty")
        before = at
        at = (<int32_t *> (p + link))[0]
    return 0


cdef int empty_record(Check *c, const char *array, const char *p, int64_t size) noexcept nogil:
    """Record 0, which stands for none."""
    cdef int64_t i
    for i in range(size):
        if p[i]:
            return refuse(c, array, NULL, 0, p[i], b"record 0 stands for none and must be empty")
    return 0


cdef int free_rows(Check *c) noexcept nogil:
    cdef kw_world *w = c.w
    cdef int64_t at = w.ctl.rows_free, before = -1, n = 0
    cdef uint64_t found
    cdef int i
    while at:
        if not 0 < at < w.ctl.rows_used or c.rows[at]:
            if before < 0:
                return refuse(c, b"ctl", b"rows_free", 0, at, b"no free table page")
            c.entry = 0
            return refuse(c, b"rows", NULL, before, at, b"the next free table page is none")
        c.rows[at] = SEEN_FREE
        n += 1
        if c.strict and w.r_owner[at]:
            return refuse(c, b"r_owner", NULL, at, w.r_owner[at], b"a free table page has no owner")
        for i in range(1, 512):
            found = kw_peek_entry(w.rows + at * 512 + i)
            if found:
                c.entry = i
                return refuse(c, b"rows", NULL, at, <int64_t>found, b"a free table page must be empty")
        before = at
        at = <int64_t>w.rows[at * 512]
    return counted(c, b"ctl", b"rows_live", 0, w.ctl.rows_live, w.ctl.rows_used - 1 - n, b"table pages in use")


# ------------------------------------------------------------------ address spaces and their areas

cdef int exited(Check *c) noexcept nogil:
    """The address spaces that exited and wait until ksmd has cleaned their slots."""
    cdef kw_world *w = c.w
    cdef int64_t at = w.ctl.mms_exited, before = -1
    while at:
        if not 0 < at < w.ctl.mms_used or c.mms[at]:
            if before < 0:
                return refuse(c, b"ctl", b"mms_exited", 0, at, b"no address space that exited")
            return refuse(c, b"mms", b"vma_first", before, at, b"no address space that exited")
        c.mms[at] = SEEN_EXITED
        before = at
        at = w.mms[at].vma_first
    return 0


cdef int one_mm(Check *c, int32_t i) noexcept nogil:
    cdef kw_mm *m = &c.w.mms[i]
    cdef uint32_t state = m.flags & (MM_USED | MM_EXITING | MM_BACKING)
    if m.flags & ~<uint32_t>MM_BITS or (m.flags & MM_DEVICE and not m.flags & MM_BACKING):
        return refuse(c, b"mms", b"flags", i, m.flags, b"not the flags of an address space")
    if within(c, b"mms", b"domain", i, m.domain, 0, c.w.ctl.trees_used // c.w.ctl.nr_nodes, b"no domain of this Host"):
        return -1
    if c.mms[i] == SEEN_FREE:
        if m.flags or m.root or m.nr_tables or m.nr_vmas or m.rmap_list:
            return refuse(c, b"mms", NULL, i, m.flags, b"on the list of free records, but in use")
        return 0
    if c.mms[i] == SEEN_EXITED:
        if state != (MM_USED | MM_EXITING) or m.root or m.nr_tables or m.nr_vmas:
            return refuse(c, b"mms", b"flags", i, m.flags, b"among those that exited, but not one of them")
        return 0
    if not state & MM_USED or state & MM_EXITING:
        return refuse(c, b"mms", b"flags", i, m.flags, b"neither in use nor on the list of free or exited ones")
    if within(c, b"mms", b"root", i, m.root, 1, c.w.ctl.rows_used, b"no table page that was ever used"):
        return -1
    if within(c, b"mms", b"nid", i, m.nid, 0, c.w.ctl.nr_nodes, b"no NUMA node of this Host"):
        return -1
    if within(c, b"mms", b"vma_hint", i, m.vma_hint, 0, c.w.ctl.vmas_used, b"no area"):
        return -1
    if within(c, b"mms", b"cpu", i, m.cpu, 0, c.w.ctl.nr_cpus, b"no CPU of this Host"):
        return -1
    if within(c, b"mms", b"tasks", i, m.tasks, 0, 1 << 30, b"no number of tasks"):
        return -1
    if within(c, b"mms", b"khuge", i, m.khuge, 0, c.w.ctl.khuges + 1, b"not given out yet"):
        return -1
    if within(c, b"mms", b"serial", i, m.serial, 1, c.w.ctl.mm_serial + 1, b"not given out yet"):
        return -1
    if m.flags & MM_BACKING:
        if m.flags & (MM_HAS_SLOT | MM_MERGE_ANY):
            return refuse(c, b"mms", b"flags", i, m.flags, b"an object has no slot")
        if m.vma_first or m.nr_vmas:
            return refuse(c, b"mms", b"vma_first", i, m.vma_first, b"an object has no areas")
        return within(c, b"mms", b"nr_pages", i, m.nr_pages, 0, (<int64_t>1 << 35) + 1, b"no length of an object")
    if m.users or m.nr_pages:
        return refuse(c, b"mms", b"users", i, m.users, b"only objects have users and pages")
    return 0


cdef int one_vma(Check *c, int32_t mm, int32_t v, int32_t before) noexcept nogil:
    cdef kw_world *w = c.w
    cdef kw_vma *p = &w.vmas[v]
    cdef uint64_t top = <uint64_t>1 << (9 * w.ctl.levels + 11), align = KW_PAGE_SIZE
    if p.mm != mm:
        return refuse(c, b"vmas", b"mm", v, p.mm, b"on the list of another address space")
    if p.prev != before:
        return refuse(c, b"vmas", b"prev", v, p.prev, b"not the area before it")
    if p.page_shift == 12 and not p.flags & VM_HUGETLB:
        pass
    elif p.page_shift == 21 and p.flags & VM_HUGETLB:
        align = KW_PMD_SIZE
    else:
        return refuse(c, b"vmas", b"page_shift", v, p.page_shift, b"no page size of such an area")
    if p.start & (align - 1) or before and p.start < w.vmas[before].end:
        return refuse(c, b"vmas", b"start", v, <int64_t>p.start, b"not aligned, or not above the area before")
    if p.end & (align - 1) or p.end <= p.start or p.end > top:
        return refuse(c, b"vmas", b"end", v, <int64_t>p.end, b"not aligned, not above the start, or too high")
    if p.flags & ~VM_BITS or p.flags & VM_SHARED and p.flags & VM_MERGEABLE:
        return refuse(c, b"vmas", b"flags", v, <int64_t>p.flags, b"flags that no area has")
    if p.watcher and not p.flags & VM_WATCHED:
        return refuse(c, b"vmas", b"watcher", v, p.watcher, b"a userfaultfd, and it watches nothing of the area")
    if p.pgoff >> 52:
        return refuse(c, b"vmas", b"pgoff", v, <int64_t>p.pgoff, b"too far in")
    if within(c, b"vmas", b"linked", v, p.linked, 0, w.ctl.anon_links + 1, b"not given out yet"):
        return -1
    if within(c, b"vmas", b"policy", v, p.policy, 0, w.ctl.nr_nodes + 1, b"no NUMA node of this Host + 1"):
        return -1
    if within(c, b"vmas", b"serial", v, p.serial, 1, w.ctl.vma_serial + 1, b"not given out yet"):
        return -1
    if p.backing == 0:
        return 0
    if not 0 < p.backing < w.ctl.mms_used or c.mms[p.backing] or not w.mms[p.backing].flags & MM_BACKING:
        return refuse(c, b"vmas", b"backing", v, p.backing, b"no object")
    c.users[p.backing] += 1
    return 0


cdef int list_of_vmas(Check *c, int32_t mm) noexcept nogil:
    cdef kw_world *w = c.w
    cdef int32_t v = w.mms[mm].vma_first, before = 0
    cdef int64_t n = 0
    while v:
        if not 0 < v < w.ctl.vmas_used:
            if before == 0:
                return refuse(c, b"mms", b"vma_first", mm, v, b"no area")
            return refuse(c, b"vmas", b"next", before, v, b"no area")
        if c.vmas[v]:
            if before == 0:
                return refuse(c, b"mms", b"vma_first", mm, v, b"an area that is free, or on a list already")
            return refuse(c, b"vmas", b"next", before, v, b"an area that is free, or on a list already")
        c.vmas[v] = SEEN_LISTED
        if one_vma(c, mm, v, before):
            return -1
        n += 1
        before = v
        v = w.vmas[v].next
    return counted(c, b"mms", b"nr_vmas", mm, w.mms[mm].nr_vmas, n, b"areas on the list")


cdef int areas(Check *c) noexcept nogil:
    cdef kw_world *w = c.w
    cdef kw_ctl *ctl = w.ctl
    cdef int64_t i
    if empty_record(c, b"vmas", <char *>&w.vmas[0], sizeof(kw_vma)):
        return -1
    if w.mms[0].flags or w.mms[0].root or w.mms[0].vma_first or w.mms[0].rmap_list or w.mms[0].nr_vmas:
        return refuse(c, b"mms", NULL, 0, w.mms[0].flags, b"record 0 is the head of the slot list and nothing else")
    if within(c, b"mms", b"cpu", 0, w.mms[0].cpu, 0, ctl.nr_cpus, b"no CPU of this Host"):
        return -1
    if free_list(c, b"vmas", b"vmas_free", b"next", <char *>w.vmas, sizeof(kw_vma), <char *>&w.vmas[0].next - <char *>w.vmas,
                 ctl.vmas_used, ctl.vmas_free, c.vmas):
        return -1
    if free_mms(c) or exited(c):
        return -1
    for i in range(1, ctl.mms_used):
        if one_mm(c, <int32_t>i):
            return -1
    for i in range(1, ctl.mms_used):
        if c.mms[i] == 0 and list_of_vmas(c, <int32_t>i):
            return -1
    for i in range(1, ctl.vmas_used):
        if c.vmas[i] == 0:
            return refuse(c, b"vmas", NULL, i, w.vmas[i].mm, b"on no list, neither of an address space nor of free ones")
    for i in range(1, ctl.mms_used):
        if c.mms[i] == 0 and w.mms[i].flags & MM_BACKING:
            # Its maker counts as one while it has not let go.
            if w.mms[i].users != c.users[i] + 1 and (c.users[i] == 0 or w.mms[i].users != c.users[i]):
                return counted(c, b"mms", b"users", i, w.mms[i].users, c.users[i], b"areas that map the object")
    return 0


cdef int free_mms(Check *c) noexcept nogil:
    cdef kw_world *w = c.w
    cdef int64_t at = w.ctl.mms_free, before = -1
    while at:
        if not 0 < at < w.ctl.mms_used or c.mms[at]:
            if before < 0:
                return refuse(c, b"ctl", b"mms_free", 0, at, b"no free record")
            return refuse(c, b"mms", b"vma_first", before, at, b"the next free record is none")
        c.mms[at] = SEEN_FREE
        before = at
        at = w.mms[at].vma_first
    return 0


# ------------------------------------------------------------------ page tables

cdef int at_entry(Check *c, int64_t row, int i, const char *why) noexcept nogil:
    c.entry = i
    return refuse(c, b"rows", NULL, row, <int64_t>c.w.rows[row * 512 + i], why)


cdef int leaf(Check *c, int32_t mm, int64_t row, int i, int level, uint64_t addr) noexcept nogil:
    """An entry that is no table: inside an area, and of frames that are there; counts what it maps."""
    cdef kw_world *w = c.w
    cdef uint64_t e = w.rows[row * 512 + i]
    cdef int64_t pfn, k, n = <int64_t>1 << (9 * (level - 1))
    cdef bint backing = w.mms[mm].flags & MM_BACKING != 0, huge
    if backing:
        if not e & PTE_P or e & PTE_SPECIAL or level > 2:
            return at_entry(c, row, i, b"an object's pages are present, of 4 KiB or 2 MiB")
    else:
        while c.area and w.vmas[c.area].end <= addr:
            c.area = w.vmas[c.area].next
        if c.area == 0 or w.vmas[c.area].start > addr or addr + (<uint64_t>n << 12) > w.vmas[c.area].end:
            return at_entry(c, row, i, b"lies in no area of its address space")
    if not entry_present(e, level):
        if e >> SWAP_TYPE_SHIFT or level > 1:
            return 0           # a marker
        if swap_slot(w, e) == 0:
            return at_entry(c, row, i, b"means no swap slot in use")
        c.swapped[swap_slot(w, e)] += 1
        if not w.mms[mm].swap_prev and w.ctl.swap_first != mm:
            return at_entry(c, row, i, b"is swapped out, but its address space is not on the list that swapoff goes through")
        return 0
    if e & PTE_SPECIAL:
        return 0
    pfn = <int64_t>entry_pfn(e, level)
    if pfn + n > w.ctl.nr_frames:
        return at_entry(c, row, i, b"maps a frame beyond the end of memory")
    if pfn + n > c.known:
        return at_entry(c, row, i, b"maps a frame that is free")
    if backing:
        if w.f_flags[pfn] & FRAME_ZERO:
            return at_entry(c, row, i, b"an object holds no zero page")
        if not w.f_flags[pfn] & FRAME_TAIL:
            c.held[pfn] += 1
    # Of a huge page, and not of many other frames: the head says so.
    huge = level == 2 and w.f_flags[pfn] & FRAME_HEAD and w.owners[pfn >> 2].order == HUGE_ORDER
    for k in range(pfn, pfn + n):
        if not w.f_flags[k] & FRAME_USED:
            return at_entry(c, row, i, b"maps a frame that is free")
        if w.f_flags[k] & FRAME_KSM and (backing or e & PTE_RW or w.vmas[c.area].flags & VM_SHARED):
            return at_entry(c, row, i, b"a KSM page, which is never shared memory's, nor to be written to")
        if not backing and not w.f_flags[k] & FRAME_ZERO:
            c.mapped[k] += 1
            if w.f_flags[k] & (FRAME_HEAD | FRAME_TAIL) and (k == pfn or not huge):
                c.owned[min(folio_head(w, k), c.known - 1) >> 2] += 1
    return 0


cdef int table(Check *c, int32_t mm, int64_t row, int level, uint64_t base) noexcept nogil:
    """A table page and all below it, each reached once."""
    cdef kw_world *w = c.w
    cdef uint64_t *p = w.rows + row * 512
    cdef uint64_t e, addr
    cdef int64_t child
    cdef int i
    c.rows[row] = SEEN_LISTED
    c.reached += 1
    if c.strict and w.r_owner[row] != row_owner(mm, level):
        return refuse(c, b"r_owner", NULL, row, w.r_owner[row], b"not the address space and level it is reached from")
    for i in range(512):
        e = p[i]
        if e == 0:
            continue
        addr = base + (<uint64_t>i * level_size(level))
        if level == 1 or (entry_leaf(e, level) and entry_present(e, level)):
            if c.strict and leaf(c, mm, row, i, level, addr):
                return -1
            continue
        child = <int64_t>((e & PTE_PFN_MASK) >> 12)
        if (e & (PTE_P | PTE_PS)) != PTE_P or not 0 < child < w.ctl.rows_used:
            # A walk of tables alone says so where it comes by.
            if not c.strict:
                continue
            return at_entry(c, row, i, b"neither a table page nor a page where only these may stand")
        if c.rows[child] == SEEN_FREE:
            return at_entry(c, row, i, b"points to a free table page")
        if c.rows[child]:
            return at_entry(c, row, i, b"points to a table page that is reached already")
        if table(c, mm, child, level - 1, addr):
            return -1
    return 0


cdef int tables(Check *c) noexcept nogil:
    cdef kw_world *w = c.w
    cdef int64_t before, i
    if free_rows(c):
        return -1
    if c.strict and w.r_owner[0]:
        return refuse(c, b"r_owner", NULL, 0, w.r_owner[0], b"row 0 is never used")
    for i in range(512 if c.strict else 0):
        if w.rows[i]:
            c.entry = i
            return refuse(c, b"rows", NULL, 0, <int64_t>w.rows[i], b"row 0 is never used and must be empty")
    for i in range(1, w.ctl.mms_used):
        if c.mms[i]:
            continue
        if c.rows[w.mms[i].root]:
            return refuse(c, b"mms", b"root", i, w.mms[i].root, b"a table page that is free, or reached already")
        before = c.reached
        c.area = w.mms[i].vma_first
        if table(c, <int32_t>i, w.mms[i].root, <int>w.ctl.levels, 0):
            return -1
        if c.strict and counted(c, b"mms", b"nr_tables", i, w.mms[i].nr_tables, c.reached - before, b"table pages reached"):
            return -1
    if c.strict:
        return counted(c, b"ctl", b"rows_live", 0, w.ctl.rows_live, c.reached, b"table pages reached")
    return 0


# ------------------------------------------------------------------ what Python sees

cdef object text(const char *p):
    return None if p == NULL else p.decode()


cdef object answer(Check *c):
    return (
        c.array.decode(), text(c.field), c.record, c.entry if c.entry >= 0 else None, c.value,
        c.wanted if c.counts else None, c.why.decode(),
    )


def check_memory(World world not None, int64_t known):
    """None if frames, areas and tables of a Host agree, else (array, field, record, entry, value, counted, why).

    `known`: frames from here on are free and were never used. The lengths of the arrays were checked before.
    """
    cdef Check c
    cdef kw_ctl *ctl = world.w.ctl
    cdef int code
    cdef int64_t nr_blocks = ctl.nr_blocks
    if not 1 <= known <= ctl.nr_frames:
        raise ValueError(f"{known} frames of {ctl.nr_frames}")
    enter(world)
    start(&c, &world.w)
    c.known = known
    c.strict = True
    c.vmas = <uint8_t *>calloc(ctl.vmas_used, 1)
    c.blocks = <uint8_t *>calloc(nr_blocks, 1)
    c.mapped = <int32_t *>calloc(known, 4)
    c.held = <int32_t *>calloc(known, 4)
    c.owned = <int32_t *>calloc(known // 4 + 1, 4)
    c.users = <int64_t *>calloc(ctl.mms_used, 8)
    c.slots = <uint8_t *>calloc(ctl.slots_used, 1)
    c.swapped = <int32_t *>calloc(ctl.slots_used, 4)
    c.anon_marks = <uint8_t *>calloc(ctl.anons_used, 1)
    c.anons = <kw_anon *>calloc(ctl.anons_used, sizeof(kw_anon))
    try:
        if not (c.rows and c.mms and c.vmas and c.blocks and c.mapped and c.held and c.owned and c.users and c.slots
                and c.swapped and c.anon_marks and c.anons):
            raise MemoryError("no memory to check a Host in")
        with nogil:
            code = areas(&c) or families(&c) or tables(&c) or swap(&c) or frames(&c)
    finally:
        leave(world)
        for p in (<size_t>c.rows, <size_t>c.mms, <size_t>c.vmas, <size_t>c.blocks, <size_t>c.mapped, <size_t>c.held,
                  <size_t>c.owned, <size_t>c.users, <size_t>c.slots, <size_t>c.swapped, <size_t>c.anon_marks, <size_t>c.anons):
            free(<void *><size_t>p)
    return answer(&c) if code else None


def check_tables(World world not None):
    """The same for an arena of page tables alone, in which entries may be anything that a walk can pass by."""
    cdef Check c
    cdef int code
    enter(world)
    start(&c, &world.w)
    c.known = 0
    c.strict = False
    try:
        if not (c.rows and c.mms):
            raise MemoryError("no memory to check page tables in")
        with nogil:
            code = tables(&c)
    finally:
        leave(world)
        free(c.rows)
        free(c.mms)
    return answer(&c) if code else None


cdef void start(Check *c, kw_world *w) noexcept:
    c.w = w
    c.rows = <uint8_t *>calloc(w.ctl.rows_used, 1)
    c.mms = <uint8_t *>calloc(w.ctl.mms_used, 1)
    c.items = c.nodes = NULL
    c.reached = c.counted = c.tails = 0
    c.array = c.field = c.why = NULL
    c.record = c.value = c.wanted = 0
    c.entry = -1
    c.counts = c.ordered = False
