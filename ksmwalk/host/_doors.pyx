"""What mm.py and host.py call: one thin function per operation on memory and address spaces, arguments checked there.

Everything answers with integers: 0, an index or a count, -errno, or a KW_* code; `_check` of the doors makes exceptions.
"""
from libc.errno cimport EFAULT
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk._core cimport (
    World, alone, enter, interrupted_at, leaf_find, leave, make_entry, no_entry, pte_make, records,
)
from ksmwalk.memory._frames cimport (
    dma_get, dma_put, folio_extra_refs, folio_get, folio_head, folio_put, lru_drain, lru_drain_cpu, mark_referenced, normal_pfn,
)
from ksmwalk.memory._leaves cimport prot_bits, touched
from ksmwalk.memory._areas cimport backing_put, find_place, mm_alloc, vma_find, vma_find_from, vma_for
from ksmwalk.memory._folio cimport split_folio_at
from ksmwalk.memory._khuge cimport khuge_mm
from ksmwalk.memory._fault cimport FAULT_FORCE, FAULT_KEEP, fault_write, read_range, write_range
from ksmwalk.memory._looks cimport look_range
from ksmwalk.memory._ptes cimport looked_up
from ksmwalk.memory._scattered cimport read_scattered, write_scattered
from ksmwalk.host._calls cimport (
    sys_exec, sys_exit, sys_fork, sys_mprotect, sys_mremap, sys_munmap, sys_prctl_merge,
)
from ksmwalk.host._advice cimport sys_madvise, sys_uffd_wp
from ksmwalk.host._locks cimport VM_LOCKS, soil, sys_mlock, sys_mlockall
from ksmwalk.layout._layout cimport *


def mm_new(World world not None, int nid):
    alone(world)
    cdef int32_t mm = mm_alloc(&world.w)
    if mm > 0:
        world.w.mms[mm].nid = nid
    return mm


def mm_fork(World world not None, int32_t mm):
    cdef int32_t child
    enter(world)
    with nogil:
        child = sys_fork(&world.w, mm)
    leave(world)
    return child


def mm_exec(World world not None, int32_t mm):
    alone(world)
    return sys_exec(&world.w, mm)


def mm_exit(World world not None, int32_t mm):
    cdef int rc
    enter(world)
    with nogil:
        rc = sys_exit(&world.w, mm)
    leave(world)
    return rc


def munmap(World world not None, int32_t mm, uint64_t start, uint64_t end):
    cdef int rc
    enter(world)
    with nogil:
        rc = sys_munmap(&world.w, mm, start, end)
    leave(world)
    return rc


def mprotect(World world not None, int32_t mm, uint64_t start, uint64_t end, uint64_t prot):
    cdef int rc
    enter(world)
    with nogil:
        rc = sys_mprotect(&world.w, mm, start, end, prot)
    leave(world)
    return rc


def madvise(World world not None, int32_t mm, uint64_t start, uint64_t end, int advice):
    cdef int rc
    enter(world)
    with nogil:
        rc = sys_madvise(&world.w, mm, start, end, advice)
    leave(world)
    return rc


def mlock(World world not None, int32_t mm, uint64_t start, uint64_t end, uint64_t locks):
    """locks: VM_LOCKED and VM_LOCKONFAULT, 0: munlock."""
    cdef int rc
    enter(world)
    with nogil:
        rc = sys_mlock(&world.w, mm, start, end, locks & VM_LOCKS)
    leave(world)
    return rc


def mlockall(World world not None, int32_t mm, int flags):
    """flags: MCL_*, 0: munlockall."""
    cdef int rc
    enter(world)
    with nogil:
        rc = sys_mlockall(&world.w, mm, flags)
    leave(world)
    return rc


def uffd_wp(World world not None, int32_t mm, uint64_t start, uint64_t end, bint on):
    alone(world)
    return sys_uffd_wp(&world.w, mm, start, end, on)


def mremap(World world not None, int32_t mm, uint64_t addr, uint64_t old_len, uint64_t new_len, bint maymove,
           object new_addr, bint keep):
    """The address the memory has now; new_addr None: wherever there is room."""
    cdef int64_t at
    cdef bint fixed = new_addr is not None
    cdef uint64_t to = new_addr if fixed else 0
    enter(world)
    with nogil:
        at = sys_mremap(&world.w, mm, addr, old_len, new_len, maymove, fixed, to, keep)
    leave(world)
    return at


def prctl_merge(World world not None, int32_t mm, bint on):
    cdef int rc
    enter(world)
    with nogil:
        rc = sys_prctl_merge(&world.w, mm, on)
    leave(world)
    return rc


def find_vma(World world not None, int32_t mm, uint64_t addr):
    """The lowest vma that ends above addr, 0: none."""
    alone(world)
    return vma_find_from(&world.w, mm, addr)


def vma_numbers(World world not None, int32_t mm):
    """Numbers of the vmas of an mm in ascending order."""
    alone(world)
    cdef int32_t v = world.w.mms[mm].vma_first
    out = []
    while v:
        out.append(v)
        v = world.w.vmas[v].next
    return out


def place(World world not None, int32_t mm, uint64_t length, uint64_t align):
    """Start of the highest free place for `length` bytes, 0: none."""
    alone(world)
    return find_place(&world.w, mm, length, align)


# ------------------------------------------------------------------ contents

def write_one(World world not None, int32_t mm, uint64_t addr, uint64_t key, int mode):
    alone(world)
    cdef int32_t v = vma_for(&world.w, mm, addr)
    if v == 0:
        return -EFAULT
    return fault_write(&world.w, mm, &world.w.vmas[v], addr, key, mode)


cdef void stored_from_outside(kw_world *w, int32_t mm, uint64_t addr, int64_t n) noexcept nogil:
    """Pages that a debugger stored to were looked up, and are dirty themselves."""
    cdef int64_t i, pfn
    cdef int level = 0
    cdef uint64_t *leaf
    looked_up(w, mm, addr, addr + <uint64_t>n * KW_PAGE_SIZE)
    for i in range(n):
        leaf = leaf_find(w, w.mms[mm].root, addr + <uint64_t>i * KW_PAGE_SIZE, &level)
        pfn = normal_pfn(w, leaf[0], level) if leaf != NULL else KW_NONE
        if pfn >= 0:
            w.f_flags[folio_head(w, pfn)] |= FRAME_DIRTY


def write(World world not None, int32_t mm, uint64_t addr, int64_t n, const uint64_t[::1] keys, int mode):
    """(pages done, code) of storing keys (None: 0) into n pages."""
    cdef int code = 0
    cdef int64_t done
    cdef const uint64_t *p = NULL
    if keys is not None:
        if keys.shape[0] < n:
            raise ValueError(f"{keys.shape[0]} keys for {n} pages")
        if n:
            p = &keys[0]
    enter(world)
    with nogil:
        done = write_range(&world.w, mm, addr, n, p, 1, mode, &code)
        if mode & FAULT_FORCE and done > 0:
            stored_from_outside(&world.w, mm, addr, done)
    leave(world)
    return done, code


def read(World world not None, int32_t mm, uint64_t addr, int64_t n, uint64_t[::1] keys, int mode):
    """(pages done, code) of loading from n pages; contents into keys (None: not wanted)."""
    cdef int code = 0
    cdef int64_t done
    cdef uint64_t *p = NULL
    if keys is not None:
        if keys.shape[0] < n:
            raise ValueError(f"{keys.shape[0]} keys for {n} pages")
        if n:
            p = &keys[0]
    enter(world)
    with nogil:
        done = read_range(&world.w, mm, addr, n, p, mode, &code)
    leave(world)
    return done, code


def write_at(World world not None, int32_t mm, const uint64_t[::1] addrs, const uint64_t[::1] keys):
    """(pages done, code) of storing keys (one for each address, or one for all) at page-aligned addresses."""
    cdef int code = 0
    cdef int64_t done = 0, n = addrs.shape[0], stride = keys.shape[0] != 1
    if stride and keys.shape[0] < n:
        raise ValueError(f"{keys.shape[0]} keys for {n} addresses")
    if n:
        enter(world)
        with nogil:
            done = write_scattered(&world.w, mm, &addrs[0], n, &keys[0], stride, &code)
        leave(world)
    return done, code


def read_at(World world not None, int32_t mm, const uint64_t[::1] addrs, uint64_t[::1] keys):
    """(pages done, code) of loading from addresses; contents into keys."""
    cdef int code = 0
    cdef int64_t done = 0, n = addrs.shape[0]
    if keys.shape[0] < n:
        raise ValueError(f"{keys.shape[0]} keys for {n} addresses")
    if n:
        enter(world)
        with nogil:
            done = read_scattered(&world.w, mm, &addrs[0], n, &keys[0], &code)
        leave(world)
    return done, code


def look(World world not None, int32_t mm, uint64_t addr, int64_t n, uint64_t[::1] keys, int64_t[::1] pfns):
    """Contents and frames of n pages without a fault; either array may be None."""
    cdef uint64_t *k = NULL
    cdef int64_t *p = NULL
    if keys is not None and n:
        if keys.shape[0] < n:
            raise ValueError(f"{keys.shape[0]} keys for {n} pages")
        k = &keys[0]
    if pfns is not None and n:
        if pfns.shape[0] < n:
            raise ValueError(f"{pfns.shape[0]} pfns for {n} pages")
        p = &pfns[0]
    enter(world)
    with nogil:
        look_range(&world.w, mm, addr, n, k, p)
    leave(world)


# ------------------------------------------------------------------ objects, frames

def backing_new(World world not None, bint device, int64_t length):
    """A file or shared memory object; its maker counts as a user until `backing_done`."""
    alone(world)
    cdef int32_t b = mm_alloc(&world.w)
    if b > 0:
        world.w.mms[b].flags |= MM_BACKING | (MM_DEVICE if device else 0)
        world.w.mms[b].users = 1
        world.w.mms[b].nr_pages = length
    return b


def backing_users(World world not None, int32_t backing):
    """Areas that map an object, and one more until its maker has dropped it."""
    alone(world)
    return world.w.mms[backing].users


def backing_done(World world not None, int32_t backing):
    alone(world)
    backing_put(&world.w, backing)


def map_raw(World world not None, int32_t mm, uint64_t addr, int64_t n, uint64_t pfn, uint64_t vm_flags):
    """Special ptes of n raw frames from pfn on, as a driver's remap_pfn_range makes them."""
    alone(world)
    cdef uint64_t *pte = NULL
    cdef uint64_t flags = prot_bits(vm_flags) | PTE_SPECIAL | (PTE_RW if vm_flags & VM_WRITE else 0)
    cdef int64_t i
    for i in range(n):
        if pte == NULL or addr & (KW_PMD_SIZE - 1) == 0:
            if interrupted_at(addr):
                touched(&world.w, mm)
                return KW_EINTR
            pte = pte_make(&world.w, mm, addr)
            if pte == NULL:
                return no_entry(&world.w, mm, addr)
        pte[0] = make_entry(pfn + <uint64_t>i, flags)
        pte += 1
        addr += KW_PAGE_SIZE
    touched(&world.w, mm)
    return 0


def pin(World world not None, int64_t pfn):
    alone(world)
    folio_get(&world.w, pfn)
    mark_referenced(&world.w, pfn)


def unpin(World world not None, int64_t pfn):
    alone(world)
    folio_put(&world.w, pfn)


cdef uint64_t *storable(kw_world *w, int32_t mm, uint64_t addr, int *level) noexcept nogil:
    """The entry of a page that may be stored to where it is, without a fault, else NULL."""
    cdef uint64_t *entry = leaf_find(w, w.mms[mm].root, addr, level) if vma_find(w, mm, addr) else NULL
    return entry if entry != NULL and entry[0] & (PTE_P | PTE_RW | PTE_SPECIAL) == PTE_P | PTE_RW else NULL


cdef int pin_one(kw_world *w, int32_t mm, uint64_t addr, bint *looked_for, int64_t *pfn) noexcept nogil:
    """Store to a page, leave its content, and pin it. As long as pages are found in the tables none is dirty for that; from
    the first on that a fault has to bring, each is looked for, and is (`looked_for`: so it is by now)."""
    cdef int level = 1, code = KW_OK
    cdef uint64_t *entry = storable(w, mm, addr, &level)
    # only old kernels let a stack grow for it
    if vma_find(w, mm, addr) == 0 and not w.ctl.kernel & SWITCH_OLD_CALLS:
        return -EFAULT
    if entry == NULL:
        looked_for[0] = True
        write_range(w, mm, addr, 1, NULL, 0, FAULT_KEEP, &code)
    elif looked_for[0]:
        soil(w, entry, level)
    if code < 0:
        return code
    look_range(w, mm, addr, 1, NULL, pfn)
    dma_get(w, pfn[0])
    mark_referenced(w, pfn[0])
    return KW_OK


def dma_pin(World world not None, int32_t mm, uint64_t addr, object pfns):
    """Store to as many pages from addr on as `pfns` has room for, leave their contents, and pin them; 0 or a code.

    Page by page: a pin on one part of a folio makes the store to the next copy it.
    """
    cdef int64_t n, i
    cdef int64_t *out = <int64_t *>records(pfns, True, 8, 8, &n)
    cdef int code = KW_OK
    cdef bint looked_for = False
    enter(world)
    with nogil:
        for i in range(n):
            code = pin_one(&world.w, mm, addr + <uint64_t>i * KW_PAGE_SIZE, &looked_for, &out[i])
            if code < 0:
                n = i
                break
        if code < 0:
            for i in range(n):
                dma_put(&world.w, out[i])
    leave(world)
    return code


def dma_unpin(World world not None, object pfns):
    """Let go of pages; the place of the first that is not pinned, with those before it let go of, -1: all."""
    cdef int64_t n, i
    cdef const int64_t *frames = <const int64_t *>records(pfns, False, 8, 8, &n)
    alone(world)
    for i in range(n):
        if not 0 < frames[i] < world.w.ctl.nr_frames or not dma_put(&world.w, frames[i]):
            return i
    return -1


def extra_refs(World world not None, int64_t pfn):
    alone(world)
    return folio_extra_refs(&world.w, pfn)


def drain(World world not None):
    alone(world)
    lru_drain(&world.w)


def drain_cpu(World world not None, int cpu):
    alone(world)
    lru_drain_cpu(&world.w, cpu)


def khugepaged(World world not None, int32_t mm):
    """What khugepaged does with one address space in a pass: how many huge pages it made, or a code."""
    cdef int64_t made
    enter(world)
    with nogil:
        made = khuge_mm(&world.w, mm)
    leave(world)
    return made


def split(World world not None, int64_t pfn, object addr):
    """Split the huge folio of a frame; addr: where it is mapped, None: anywhere."""
    alone(world)
    cdef uint64_t at = 1
    if addr is not None:
        at = addr
    return split_folio_at(&world.w, pfn, at)
