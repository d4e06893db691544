"""Traces applied to a Host at array speed.

The contract stands in `_trace.pxd`. Loads and stores at random addresses wait for memory and for little else: as in
`memory/_scattered`, the pte of an access is looked for and fetched some events ahead, then the frame it maps, and only
what a processor does without asking the kernel is done here.
"""
from libc.errno cimport EEXIST, EFAULT, EINVAL, ENOMEM, ESRCH
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk._core cimport World, enter, entry_pfn, entry_stored, interrupted, leave, pte_find, records
from ksmwalk.memory._frames cimport normal_pfn
from ksmwalk.memory._leaves cimport touched
from ksmwalk.memory._areas cimport mm_alloc, user_end, vma_find, vma_find_from
from ksmwalk.memory._fault cimport fault_read, fault_write
from ksmwalk.host._advice cimport sys_madvise
from ksmwalk.host._calls cimport sys_exit, sys_fork, sys_munmap
from ksmwalk.host._heap cimport map_private
from ksmwalk.layout._layout cimport *
from ksmwalk.layout._poison cimport kw_peek_entry


cdef extern from "_wide.h" nogil:
    void kw_prefetch(const void *p) noexcept

cdef enum:
    RING = 32           # a power of two
    FAR = 24            # events from the search for a pte to its use
    NEAR = 10           # events from the fetching of a frame to its use
    ASK = 0xffff        # events between two looks for a signal
    MAX_ERRNO = 4095

cdef uint64_t LONGEST = <uint64_t>1 << 47    # bytes of one mapping

cdef struct Ahead:
    # The ptes of the events that come next; those up to `stale` were found before tables were freed.
    uint64_t *ptes[RING]
    int64_t stale
    int64_t freed


# ------------------------------------------------------------------ one event

cdef inline int32_t number_of(const Player *player, int64_t id) noexcept nogil:
    return player.mms[id] if 0 <= id < player.nr_ids else 0


cdef void note(Player *player, int64_t id, int32_t number, int32_t change) noexcept nogil:
    """A process came (change: its number in the Host) or went (minus that)."""
    player.mms[id] = number
    player.changes[player.nr_changes * 2] = <int32_t>id
    player.changes[player.nr_changes * 2 + 1] = change
    player.nr_changes += 1


cdef int place_for(const Player *player, int64_t id) noexcept nogil:
    """Can a process of this number come? 0 or a code."""
    if not 0 <= id < MAX_IDS:
        return -EINVAL
    return KW_EFULL if id >= player.nr_ids or player.nr_changes == player.max_changes else 0


cdef int32_t process(kw_world *w, Player *player, int64_t id) noexcept nogil:
    """The Host's number of a process, a new one where there is none yet; or a code."""
    cdef int32_t number = number_of(player, id)
    cdef int rc
    if number:
        return number
    rc = place_for(player, id)
    if rc < 0:
        return rc
    number = mm_alloc(w)
    if number > 0:
        note(player, id, number, number)
    return number


cdef int map_near(kw_world *w, int32_t mm, uint64_t addr) noexcept nogil:
    """Map the 2 MiB around addr, as far as nothing is mapped there, for reading and writing."""
    cdef uint64_t start = addr & ~(KW_PMD_SIZE - 1), end = min(start + KW_PMD_SIZE, user_end(w))
    cdef int32_t next = vma_find_from(w, mm, addr), prev
    if next:
        end = min(end, w.vmas[next].start)
    prev = w.vmas[next].prev if next else vma_find_from(w, mm, start)
    while prev and w.vmas[prev].next != next:
        prev = w.vmas[prev].next
    if prev:
        start = max(start, w.vmas[prev].end)
    return map_private(w, mm, start, end, VM_READ | VM_WRITE)


cdef int access(kw_world *w, Player *player, const kw_trace_event *e) noexcept nogil:
    """A load or store that the processor can't do alone."""
    cdef int32_t mm = number_of(player, e.mm), v
    cdef uint64_t addr = e.addr & ~(KW_PAGE_SIZE - 1)
    cdef int64_t rc
    if mm == 0:
        if not player.map_missing:
            return -ESRCH
        if addr >= user_end(w):
            return -EFAULT
        mm = process(w, player, e.mm)
        if mm < 0:
            return mm
    v = vma_find(w, mm, addr)
    if v == 0:
        if not player.map_missing or addr >= user_end(w):
            return -EFAULT
        rc = map_near(w, mm, addr)
        if rc < 0:
            return <int>rc
        v = vma_find(w, mm, addr)
    if e.operation == OP_WRITE:
        return fault_write(w, mm, &w.vmas[v], addr, e.key, 0)
    rc = fault_read(w, mm, &w.vmas[v], addr, 0)
    return <int>rc if rc < 0 else 0


cdef int map_at(kw_world *w, Player *player, const kw_trace_event *e) noexcept nogil:
    cdef uint64_t flags = 0, length = e.key, perms = e.arg if e.arg else PERM_R | PERM_W
    cdef int32_t mm
    if e.addr & (KW_PAGE_SIZE - 1) or length == 0 or perms & ~<uint64_t>(PERM_R | PERM_W | PERM_X):
        return -EINVAL
    if length > min(user_end(w), LONGEST):
        return -ENOMEM
    length = (length + KW_PAGE_SIZE - 1) & ~(KW_PAGE_SIZE - 1)
    if length > min(user_end(w), LONGEST) or e.addr > user_end(w) - length:
        return -ENOMEM
    mm = process(w, player, e.mm)
    if mm < 0:
        return mm
    flags |= VM_READ if perms & PERM_R else 0
    flags |= VM_WRITE if perms & PERM_W else 0
    flags |= VM_EXEC if perms & PERM_X else 0
    return map_private(w, mm, e.addr, e.addr + length, flags)


cdef int fork_to(kw_world *w, Player *player, int32_t mm, uint64_t id) noexcept nogil:
    cdef int32_t child
    cdef int rc
    if id >= MAX_IDS:
        return -EINVAL
    if number_of(player, <int64_t>id):
        return -EEXIST
    rc = place_for(player, <int64_t>id)
    if rc < 0:
        return rc
    child = sys_fork(w, mm)
    if child > 0:
        note(player, <int64_t>id, child, child)
    return min(0, child)


cdef int exit_of(kw_world *w, Player *player, int32_t mm, int64_t id) noexcept nogil:
    cdef int rc
    if player.nr_changes == player.max_changes:
        return KW_EFULL
    rc = sys_exit(w, mm)
    if rc < 0:
        return rc
    note(player, id, 0, -mm)
    return 0


cdef int one_event(kw_world *w, Player *player, const kw_trace_event *e) noexcept nogil:
    """Whatever event, by the engine's own calls: 0 or a code."""
    cdef int32_t mm = number_of(player, e.mm)
    cdef uint64_t end = (e.addr + e.key + KW_PAGE_SIZE - 1) & ~(KW_PAGE_SIZE - 1)
    if e.operation == OP_READ or e.operation == OP_WRITE:
        return access(w, player, e)
    if e.operation == OP_MAP:
        return map_at(w, player, e)
    if not OP_READ <= e.operation <= OP_EXIT:
        return -EINVAL
    if mm == 0:
        return -ESRCH
    if e.operation == OP_FORK:
        return fork_to(w, player, mm, e.key)
    if e.operation == OP_EXIT:
        return exit_of(w, player, mm, e.mm)
    # A range, rounded up to whole pages.
    if e.addr & (KW_PAGE_SIZE - 1) or e.key > ~e.addr or e.key and end <= e.addr:
        return -EINVAL
    if e.operation == OP_ADVISE:
        return sys_madvise(w, mm, e.addr, end, e.arg)
    if e.key == 0 or end > user_end(w):
        return -EINVAL
    return sys_munmap(w, mm, e.addr, end)


# ------------------------------------------------------------------ all of them

cdef inline void look_ahead(kw_world *w, const kw_trace_event *events, int64_t i, int64_t n, const Player *player,
                            Ahead *ahead) noexcept nogil:
    cdef const kw_trace_event *e
    cdef uint64_t *p
    cdef uint64_t pfn
    cdef int32_t mm
    if i + FAR < n:
        e = &events[i + FAR]
        p = NULL
        if e.operation <= OP_WRITE:
            mm = number_of(player, e.mm)
            if mm and e.addr < user_end(w):
                p = pte_find(w, w.mms[mm].root, e.addr)
                if p != NULL:
                    kw_prefetch(p)
        ahead.ptes[(i + FAR) & (RING - 1)] = p
    if 0 <= i + NEAR < n and events[i + NEAR].operation == OP_WRITE:
        p = ahead.ptes[(i + NEAR) & (RING - 1)]
        if p != NULL:
            # Only fetched: whatever the entry holds by the time it is used is looked at then.
            pfn = (kw_peek_entry(p) & PTE_PFN_MASK) >> 12
            if pfn < <uint64_t>w.ctl.nr_frames:
                kw_prefetch(&w.f_key[pfn])
                kw_prefetch(&w.f_flags[pfn])


cdef inline bint by_hardware(kw_world *w, const Player *player, const kw_trace_event *e, uint64_t *p) noexcept nogil:
    """Did the processor do it alone? p: its pte, NULL: not known."""
    cdef uint64_t entry, new
    cdef int64_t pfn
    cdef int32_t mm
    if p == NULL:
        return False
    entry = p[0]
    if e.operation == OP_READ:
        pfn = <int64_t>entry_pfn(entry, 1)
        if not entry & PTE_P or pfn >= w.ctl.nr_frames or pfn and entry & PTE_SPECIAL:
            return False
        if not entry & PTE_A:
            p[0] = entry | PTE_A
        return True
    if e.operation != OP_WRITE or (entry & (PTE_P | PTE_RW)) != (PTE_P | PTE_RW):
        return False
    pfn = normal_pfn(w, entry, 1)
    if pfn < 0:
        return False
    mm = number_of(player, e.mm)
    new = entry_stored(entry)
    if new != entry:
        p[0] = new
    w.f_key[pfn] = e.key
    touched(w, mm)
    return True


cdef int64_t trace_apply(kw_world *w, const kw_trace_event *events, int64_t n, Player *player,
                         int *code) noexcept nogil:
    cdef int64_t i
    cdef uint64_t *p
    cdef int rc
    cdef kw_trace_event event
    cdef Ahead ahead
    code[0] = KW_OK
    ahead.stale = -1
    ahead.freed = w.rows_freed
    for i in range(-FAR, 0):
        look_ahead(w, events, i, n, player, &ahead)
    for i in range(n):
        if KW_UNLIKELY(i & ASK == ASK and interrupted()):
            code[0] = KW_EINTR
            return i
        look_ahead(w, events, i, n, player, &ahead)
        p = ahead.ptes[i & (RING - 1)] if i > ahead.stale else NULL
        if KW_LIKELY(by_hardware(w, player, &events[i], p)):
            continue
        event = events[i]   # looked at more than once, and somebody may be writing there
        rc = one_event(w, player, &event)
        if w.rows_freed != ahead.freed:
            ahead.freed = w.rows_freed
            ahead.stale = i + FAR
        if rc < 0:
            if player.errors == NULL or rc < -MAX_ERRNO:
                code[0] = rc
                return i
            player.errors[-rc] += 1
    return n


def apply(World world not None, events, mms, changes, errors, account, bint map_missing):
    """Apply `events`, records of layout.TRACE_EVENT, four words each: the code. `account`: how many are done, how many changes
    were written; it is there also where a signal's handler raises as this ends."""
    cdef Player player
    cdef int code = 0
    cdef int64_t n, counts, rows
    cdef int64_t *told = <int64_t *>records(account, True, 8, 2 * 8, &rows)
    cdef const kw_trace_event *event = <const kw_trace_event *>records(events, False, 8, sizeof(kw_trace_event), &n)
    player.mms = <int32_t *>records(mms, True, 4, 4, &player.nr_ids)
    player.changes = <int32_t *>records(changes, True, 4, 2 * 4, &player.max_changes)
    player.errors = NULL
    if errors is not None:
        player.errors = <int64_t *>records(errors, True, 8, 8, &counts)
        if counts <= MAX_ERRNO:
            raise ValueError(f"{counts} counts for {MAX_ERRNO} errnos")
    if player.nr_ids < 1 or player.max_changes < 1 or rows != 1:
        raise ValueError("arrays of the wrong shape")
    player.nr_changes, player.map_missing = 0, map_missing
    enter(world)
    told[0] = told[1] = 0
    if n:
        with nogil:
            told[0] = trace_apply(&world.w, event, n, &player, &code)
            told[1] = player.nr_changes
    leave(world)
    return code
