"""The table of functions that C and C++ programs call: one capsule, `api`.

What each function does stands in `ksmwalk.h`. Those of the engine itself go into the table as they are; here are the
checks that Python's doors make before they call them, and what has to be asked of Python.
"""
from cpython.pycapsule cimport PyCapsule_New
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.errno cimport EBUSY, EINVAL, ENOENT, ENOMEM, ESRCH
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport strerror

from ksmwalk._core cimport World, entry_pfn, enter, leaf_find, leave
from ksmwalk.host._advice cimport sys_madvise
from ksmwalk.host._calls cimport (
    sys_exec, sys_exit, sys_fork, sys_mprotect, sys_mremap, sys_munmap, sys_prctl_merge,
)
from ksmwalk.host._heap cimport map_private
from ksmwalk.ksm._cursor cimport scan_begin, scan_next
from ksmwalk.ksm._engine cimport examine, scan_and_merge
from ksmwalk.layout._layout cimport *
from ksmwalk.memory._areas cimport find_place, mm_alloc, user_end
from ksmwalk.memory._fault cimport read_fault, write_fault, write_range
from ksmwalk.memory._looks cimport look_range
from ksmwalk.memory._frames cimport lru_drain
from ksmwalk.memory._scattered cimport write_scattered
from ksmwalk.tables._leaves cimport world_mappings
from ksmwalk.tables._walk cimport walk_ops, walk_world

from ksmwalk.errors import KsmwalkError, check
from ksmwalk.host import Host
from ksmwalk.ksm import sysfs
from ksmwalk.layout import Code, Thp


cdef extern from "ksmwalk.h" nogil:
    uint64_t ANYWHERE "KW_ANYWHERE"
    uint32_t KSMWALK_API
    uint64_t KSMWALK_RECORDS
    ctypedef struct kw_host
    ctypedef struct kw_counters:
        int64_t pages_scanned, pages_skipped, full_scans, pages_shared, pages_sharing, pages_unshared, pages_volatile
        int64_t ksm_zero_pages, stable_node_chains, stable_node_dups
        int64_t general_profit
    ctypedef struct kw_api:
        uint32_t version
        uint32_t size
        uint64_t records
        const char *(*code_text)(int64_t code) noexcept
        const char *(*host_error)() noexcept
        int (*host_new)(int64_t nr_frames, int nr_nodes, int levels, int thp, kw_host **host) noexcept
        int (*host_of)(void *object, kw_host **host) noexcept
        void (*host_free)(kw_host *host) noexcept
        kw_world *(*host_world)(kw_host *host) noexcept
        int (*host_enter)(kw_host *host) noexcept
        int (*host_leave)(kw_host *host) noexcept
        int (*host_tunable)(kw_host *host, const char *name, int64_t value) noexcept
        int32_t (*mm_new)(kw_world *w, int nid) noexcept
        int32_t (*mm_fork)(kw_world *w, int32_t mm) noexcept
        int32_t (*mm_exec)(kw_world *w, int32_t mm) noexcept
        int (*mm_exit)(kw_world *w, int32_t mm) noexcept
        int64_t (*mm_map)(kw_world *w, int32_t mm, uint64_t addr, uint64_t length, uint64_t flags) noexcept
        int (*mm_unmap)(kw_world *w, int32_t mm, uint64_t addr, uint64_t length) noexcept
        int (*mm_protect)(kw_world *w, int32_t mm, uint64_t addr, uint64_t length, uint64_t prot) noexcept
        int (*mm_advise)(kw_world *w, int32_t mm, uint64_t addr, uint64_t length, int advice) noexcept
        int64_t (*mm_remap)(kw_world *w, int32_t mm, uint64_t addr, uint64_t old, uint64_t length, uint64_t to) noexcept
        int (*mm_merge_any)(kw_world *w, int32_t mm, int on) noexcept
        int (*write)(kw_world *w, int32_t mm, uint64_t addr, uint64_t key) noexcept
        int64_t (*read)(kw_world *w, int32_t mm, uint64_t addr) noexcept
        int64_t (*write_range)(kw_world *w, int32_t mm, uint64_t addr, int64_t n, const uint64_t *keys, int64_t stride,
                               int *code) noexcept
        int64_t (*write_at)(kw_world *w, int32_t mm, const uint64_t *addrs, int64_t n, const uint64_t *keys,
                            int64_t stride, int *code) noexcept
        int64_t (*look)(kw_world *w, int32_t mm, uint64_t addr, int64_t n, uint64_t *keys, int64_t *pfns) noexcept
        int64_t (*translate)(kw_world *w, int32_t mm, uint64_t addr, uint64_t *entry, int *level) noexcept
        int64_t (*scan)(kw_world *w, int64_t n, int *code) noexcept
        int32_t (*scan_next)(kw_world *w, int64_t *pfn) noexcept
        int (*examine)(kw_world *w, int32_t item, int64_t pfn) noexcept
        void (*scan_begin)(kw_world *w) noexcept
        void (*counters)(kw_world *w, kw_counters *counters) noexcept
        int (*walk)(kw_world *w, int32_t mm, uint64_t start, uint64_t end, const walk_ops *ops, void *user,
                    int vmas) noexcept
        int64_t (*mappings)(kw_world *w, int32_t mm, uint64_t start, uint64_t end, int runs, kw_mapping *out,
                            int64_t cap) noexcept
        void (*drain)(kw_world *w) noexcept


cdef int64_t MOST_PAGES = 1 << 40

cdef enum:
    FIRST_CODE = -5001     # of those that no errno stands for; they follow one another downwards
    NR_CODES = FIRST_CODE - KW_EPOLICY + 1
    PROT = VM_READ | VM_WRITE | VM_EXEC
    FURTHER = VM_HUGEPAGE | VM_NOHUGEPAGE | VM_NORESERVE | VM_DONTCOPY | VM_WIPEONFORK


# ------------------------------------------------------------------ texts

cdef const char *TEXTS[NR_CODES]
cdef list KEPT = []                # what TEXTS and ERROR point into
cdef bytes ERROR = b""


cdef int fill_texts() except -1:
    """Words for the codes, as the exceptions that stand for them have them."""
    texts = {
        int(Code.FULL): "the output has no room for more", int(Code.INTR): "stopped by a signal",
        int(Code.POLICY): "a policy raised",
    }
    cdef int i
    for i in range(NR_CODES):
        code = FIRST_CODE - i
        if code not in texts:
            try:
                check(code)
            except (KsmwalkError, ValueError, MemoryError) as error:
                texts[code] = str(error)
        KEPT.append(texts[code].encode())
        TEXTS[i] = <const char *><bytes>KEPT[i]
    return 0


cdef const char *code_text(int64_t code) noexcept nogil:
    if code >= 0:
        return "done"
    if code == KW_NONE:
        return "nothing there"
    if FIRST_CODE >= code > FIRST_CODE - NR_CODES:
        return TEXTS[FIRST_CODE - code]
    if code < -4095:
        return "no code of ksmwalk"
    return strerror(<int>-code)


cdef const char *host_error() noexcept with gil:
    return <const char *>ERROR


cdef int refused(object error, int code) noexcept:
    global ERROR
    try:
        ERROR = str(error).encode()
    except BaseException:
        ERROR = b"?"
    return code


# ------------------------------------------------------------------ Hosts

cdef kw_host *kept(object host) except NULL:
    """A reference to a Host whose engine is bound."""
    host.ksm
    Py_INCREF(host)
    return <kw_host *><PyObject *>host


cdef int host_new(int64_t nr_frames, int nr_nodes, int levels, int thp, kw_host **host) noexcept with gil:
    host[0] = NULL
    try:
        host[0] = kept(Host(nr_frames, nr_nodes, levels, thp=Thp(thp).name.lower()))
    except ValueError as error:
        return refused(error, -EINVAL)
    except BaseException as error:
        return refused(error, -ENOMEM)
    return 0


cdef int host_of(void *thing, kw_host **host) noexcept with gil:
    host[0] = NULL
    try:
        if thing == NULL or not isinstance(<object>thing, Host):
            raise TypeError("no ksmwalk.Host")
        host[0] = kept(<object>thing)
    except BaseException as error:
        return refused(error, -EINVAL)
    return 0


cdef void host_free(kw_host *host) noexcept with gil:
    if host != NULL:
        Py_DECREF(<object>host)


cdef World world_of(kw_host *host):
    return (<object>host).world


cdef kw_world *host_world(kw_host *host) noexcept with gil:
    return &world_of(host).w


cdef int host_enter(kw_host *host) noexcept with gil:
    try:
        enter(world_of(host))
    except BaseException as error:
        return refused(error, -EBUSY)
    return 0


cdef int host_leave(kw_host *host) noexcept with gil:
    cdef World world = world_of(host)
    if not world.depth:
        return -EINVAL
    leave(world)
    return 0


cdef int host_tunable(kw_host *host, const char *name, int64_t value) noexcept with gil:
    try:
        (<object>host).ksm.write((<bytes>name).decode(), value)
    except OSError as error:
        return refused(error, -(error.errno or EINVAL))
    except AttributeError as error:
        return refused(error, -ENOENT)
    except BaseException as error:
        return refused(error, -EINVAL)
    return 0


# ------------------------------------------------------------------ address spaces

cdef inline bint lives(kw_world *w, int32_t mm) noexcept nogil:
    return 0 < mm < w.ctl.mms_used and w.mms[mm].flags & (MM_USED | MM_EXITING | MM_BACKING) == MM_USED


cdef inline int ranged(kw_world *w, int32_t mm, uint64_t addr, uint64_t length, uint64_t *end) noexcept nogil:
    """Whether a system call on whole pages can be tried; *end: where they end."""
    cdef uint64_t up = (length + (KW_PAGE_SIZE - 1)) & ~(KW_PAGE_SIZE - 1)
    end[0] = addr + up
    if not lives(w, mm):
        return -ESRCH
    return -EINVAL if addr & (KW_PAGE_SIZE - 1) or up < length or end[0] < addr else 0


cdef int32_t mm_new(kw_world *w, int nid) noexcept nogil:
    cdef int32_t mm
    if not 0 <= nid < w.ctl.nr_nodes:
        return -EINVAL
    mm = mm_alloc(w)
    if mm > 0:
        w.mms[mm].nid = nid
    return mm


cdef int32_t mm_fork(kw_world *w, int32_t mm) noexcept nogil:
    return sys_fork(w, mm) if lives(w, mm) else -ESRCH


cdef int32_t mm_exec(kw_world *w, int32_t mm) noexcept nogil:
    return sys_exec(w, mm) if lives(w, mm) else -ESRCH


cdef int mm_exit(kw_world *w, int32_t mm) noexcept nogil:
    return sys_exit(w, mm) if lives(w, mm) else -ESRCH


cdef int64_t mm_map(kw_world *w, int32_t mm, uint64_t addr, uint64_t length, uint64_t flags) noexcept nogil:
    cdef bint anywhere = addr == ANYWHERE
    cdef uint64_t end, start = 0 if anywhere else addr
    cdef int64_t code = ranged(w, mm, start, length, &end)
    if code < 0:
        return code
    length = end - start
    if length == 0 or flags & ~<uint64_t>(PROT | FURTHER):
        return -EINVAL
    if anywhere:
        start = find_place(w, mm, length, KW_PAGE_SIZE if length & (KW_PMD_SIZE - 1) else KW_PMD_SIZE)
        if start == 0:
            return -ENOMEM
    elif end > user_end(w):
        return -ENOMEM
    code = map_private(w, mm, start, start + length, flags)
    return code if code < 0 else <int64_t>start


cdef int mm_unmap(kw_world *w, int32_t mm, uint64_t addr, uint64_t length) noexcept nogil:
    cdef uint64_t end
    cdef int code = ranged(w, mm, addr, length, &end)
    if code == 0 and (end == addr or end > user_end(w)):
        code = -EINVAL
    return code if code < 0 else sys_munmap(w, mm, addr, end)


cdef int mm_protect(kw_world *w, int32_t mm, uint64_t addr, uint64_t length, uint64_t prot) noexcept nogil:
    cdef uint64_t end
    cdef int code = ranged(w, mm, addr, length, &end)
    if code == 0 and prot & ~<uint64_t>PROT:
        code = -EINVAL
    return code if code < 0 else sys_mprotect(w, mm, addr, end, prot)


cdef int mm_advise(kw_world *w, int32_t mm, uint64_t addr, uint64_t length, int advice) noexcept nogil:
    cdef uint64_t end
    cdef int code = ranged(w, mm, addr, length, &end)
    return code if code < 0 else sys_madvise(w, mm, addr, end, advice)


cdef int64_t mm_remap(kw_world *w, int32_t mm, uint64_t addr, uint64_t old, uint64_t length, uint64_t to) noexcept nogil:
    cdef uint64_t end, other
    cdef int code = ranged(w, mm, addr, old, &end)
    if code == 0:
        code = ranged(w, mm, 0, length, &other)
    return code if code < 0 else sys_mremap(w, mm, addr, end - addr, other, True, to != ANYWHERE, to, False)


cdef int mm_merge_any(kw_world *w, int32_t mm, int on) noexcept nogil:
    return sys_prctl_merge(w, mm, on != 0) if lives(w, mm) else -ESRCH


# ------------------------------------------------------------------ contents

cdef int write(kw_world *w, int32_t mm, uint64_t addr, uint64_t key) noexcept nogil:
    return write_fault(w, mm, addr, key) if lives(w, mm) else -ESRCH


cdef int64_t read(kw_world *w, int32_t mm, uint64_t addr) noexcept nogil:
    return read_fault(w, mm, addr) if lives(w, mm) else -ESRCH


cdef int64_t write_pages(kw_world *w, int32_t mm, uint64_t addr, int64_t n, const uint64_t *keys, int64_t stride,
                         int *code) noexcept nogil:
    cdef uint64_t end
    code[0] = -EINVAL if n < 0 or n > MOST_PAGES else ranged(w, mm, addr, <uint64_t>n << 12, &end)
    return 0 if code[0] < 0 else write_range(w, mm, addr, n, keys, stride, 0, code)


cdef int64_t write_at(kw_world *w, int32_t mm, const uint64_t *addrs, int64_t n, const uint64_t *keys, int64_t stride,
                      int *code) noexcept nogil:
    code[0] = -EINVAL if n < 0 or n > MOST_PAGES else 0 if lives(w, mm) else -ESRCH
    return 0 if code[0] < 0 else write_scattered(w, mm, addrs, n, keys, stride, code)


cdef int64_t look(kw_world *w, int32_t mm, uint64_t addr, int64_t n, uint64_t *keys, int64_t *pfns) noexcept nogil:
    cdef uint64_t end
    cdef int code = -EINVAL if n < 0 or n > MOST_PAGES else ranged(w, mm, addr, <uint64_t>n << 12, &end)
    return code if code < 0 else look_range(w, mm, addr, n, keys, pfns)


cdef int64_t translate(kw_world *w, int32_t mm, uint64_t addr, uint64_t *entry, int *level) noexcept nogil:
    cdef uint64_t *leaf
    cdef int at = 1
    if not lives(w, mm):
        return -ESRCH
    if addr >= user_end(w):
        return KW_NONE
    leaf = leaf_find(w, w.mms[mm].root, addr, &at)
    if leaf == NULL:
        return KW_NONE
    if entry != NULL:
        entry[0] = leaf[0]
    if level != NULL:
        level[0] = at
    return <int64_t>(entry_pfn(leaf[0], at) + ((addr >> 12) & ((1 << 9 * (at - 1)) - 1)))


# ------------------------------------------------------------------ KSM, page tables

cdef int64_t RMAP_ITEM_SIZE = sysfs.RMAP_ITEM_SIZE


cdef void counters(kw_world *w, kw_counters *c) noexcept nogil:
    c.pages_scanned = w.ksm.pages_scanned
    c.pages_skipped = w.ksm.pages_skipped
    c.full_scans = <int64_t>w.cursor.seqnr
    c.pages_shared = w.ksm.pages_shared
    c.pages_sharing = w.ksm.pages_sharing
    c.pages_unshared = w.ksm.pages_unshared
    c.pages_volatile = max(0, w.ctl.items_live - c.pages_shared - c.pages_sharing - c.pages_unshared)
    c.ksm_zero_pages = w.ksm.zero_pages
    c.stable_node_chains = w.ksm.chains
    c.stable_node_dups = w.ksm.dups
    c.general_profit = (c.pages_sharing + c.ksm_zero_pages) * <int64_t>KW_PAGE_SIZE - w.ctl.items_live * RMAP_ITEM_SIZE


cdef int walk(kw_world *w, int32_t mm, uint64_t start, uint64_t end, const walk_ops *ops, void *user,
              int vmas) noexcept nogil:
    return walk_world(w, mm, start, end, ops, user, vmas != 0, NULL) if lives(w, mm) else -ESRCH


cdef int64_t mappings(kw_world *w, int32_t mm, uint64_t start, uint64_t end, int runs, kw_mapping *out,
                      int64_t cap) noexcept nogil:
    return world_mappings(w, mm, start, end, runs != 0, out, cap) if lives(w, mm) else -ESRCH


# ------------------------------------------------------------------ the table

cdef kw_api TABLE

TABLE.version, TABLE.size, TABLE.records = KSMWALK_API, sizeof(kw_api), KSMWALK_RECORDS
TABLE.code_text, TABLE.host_error = code_text, host_error
TABLE.host_new, TABLE.host_of, TABLE.host_free, TABLE.host_world = host_new, host_of, host_free, host_world
TABLE.host_enter, TABLE.host_leave, TABLE.host_tunable = host_enter, host_leave, host_tunable
TABLE.mm_new, TABLE.mm_fork, TABLE.mm_exec, TABLE.mm_exit = mm_new, mm_fork, mm_exec, mm_exit
TABLE.mm_map, TABLE.mm_unmap, TABLE.mm_protect, TABLE.mm_advise = mm_map, mm_unmap, mm_protect, mm_advise
TABLE.mm_remap, TABLE.mm_merge_any = mm_remap, mm_merge_any
TABLE.write, TABLE.read, TABLE.write_range, TABLE.write_at = write, read, write_pages, write_at
TABLE.look, TABLE.translate = look, translate
TABLE.scan, TABLE.scan_next, TABLE.examine, TABLE.scan_begin = scan_and_merge, scan_next, examine, scan_begin
TABLE.counters, TABLE.walk, TABLE.mappings, TABLE.drain = counters, walk, mappings, lru_drain

fill_texts()
api = PyCapsule_New(&TABLE, "ksmwalk.embedding._capsule.api", NULL)
