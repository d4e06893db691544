"""Policies in Python: what the scan asks is handed to their methods, area by area and table by table.

The functions here stand in a kw_policy (`_policy.pxd`) and call Python; a method that a policy has not got is NULL there
and costs nothing.
"""
cimport cython
from libc.errno cimport ENOMEM
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.string cimport memcmp, memcpy

from ksmwalk._core cimport World, enter, leave, looked_at
from ksmwalk.ksm._late cimport late_watch
from ksmwalk.ksm._policy cimport (
    KW_PAGE_OUT, KW_SCAN, CPolicy, choosing_done, choosing_init, kw_choosing, kw_pages, kw_policy, kw_tally, scan_asking,
)
from ksmwalk.layout._layout cimport *

from operator import index

import numpy as np


@cython.no_gc
@cython.freelist(16)
@cython.final
@cython.auto_pickle(False)
@cython.embedsignature(False)
cdef class Area:
    """An area that the scan has come to, as it was then.

    Attributes
    ----------
    start, end : int
        Bytes, half-open.
    pages : int
        Pages from start to end, mapped or not.
    serial : int
        Number of this area among all the Host ever had: the same at every scan, until the area is split or goes.
    flags : int
        `layout.Vm` bits.
    visited, merged, broken, changed : int
        In `Policy.after`, pages: looked at; of those merged now; merged before, but copied by a write since; changed
        since they were looked at last (if they were). 0 in `Policy.area`.
    """

    cdef World world
    cdef readonly uint64_t start, end, flags
    cdef readonly int64_t serial, visited, merged, broken, changed
    cdef int32_t number

    def __init__(self, *_, **__):
        raise TypeError("an Area is made by the scan, for a policy")

    @property
    def mm(self):
        """The address space."""
        host = self.world.live()
        return self.number if host is None else host.mm_by_number(self.number)

    @property
    def pages(self):
        return (self.end - self.start) >> 12

    def __repr__(self):
        return f"<Area {self.start:#x}-{self.end:#x} of mm {self.number}, {self.pages} pages>"


cdef inline Area area_door(World world, int32_t mm, int32_t vma):
    cdef Area area = Area.__new__(Area)
    cdef kw_vma *v = &world.w.vmas[vma]
    area.world = world
    area.number = mm
    area.start = v.start
    area.end = v.end
    area.flags = v.flags
    area.serial = v.serial
    return area


cdef object copied(const void *start, int32_t n, object dtype):
    """The first n numbers of a C array."""
    out = np.empty(n, dtype)
    cdef const char[::1] bytes_ = out.view(np.int8)
    if n:
        memcpy(<void *>&bytes_[0], start, out.nbytes)
    return out


@cython.final
@cython.auto_pickle(False)
@cython.embedsignature(False)
cdef class TablePages:
    """The pages of one table (2 MiB of addresses) that lie in one area and that KSM would look at, at most 512.

    `len(pages)` is their number; every array has that many entries.

    Attributes
    ----------
    area : Area
    addr : ndarray of uint64
        Bytes, ascending.
    pfn : ndarray of int64
        Their frames.
    key : ndarray of uint64
        Their contents: equal keys, equal pages; 0 an empty one.
    merged : ndarray of bool
        Whether they are KSM pages.
    seen : ndarray of bool
        Whether a scan has looked at them before.
    changed : ndarray of bool
        Whether they were seen, and have another content now.
    accessed, dirty : ndarray of bool
        The bits that the processor sets in the entries.
    """

    cdef World world
    cdef readonly Area area
    cdef readonly object addr, pfn
    cdef object item, entry

    def __init__(self, *_, **__):
        raise TypeError("TablePages are made by the scan, for a policy")

    def __len__(self):
        return len(self.addr)

    @property
    def key(self):
        return self.world.arrays["f_key"][self.pfn]

    @property
    def merged(self):
        return self.world.arrays["f_flags"][self.pfn] & FRAME_KSM != 0

    @property
    def seen(self):
        return self.world.arrays["items"]["flags"][self.item] & (ITEM_HAS_CHECKSUM | ITEM_STABLE) != 0

    @property
    def changed(self):
        items = self.world.arrays["items"][self.item]
        noted = items["flags"] & ITEM_HAS_CHECKSUM != 0
        return noted & (items["checksum"] != self.key) & ~self.merged

    @property
    def accessed(self):
        return self.entry & np.uint64(PTE_A) != 0

    @property
    def dirty(self):
        return self.entry & np.uint64(PTE_D) != 0

    def __repr__(self):
        return f"<TablePages, {len(self)} of {self.area!r}>"


# ------------------------------------------------------------------ a policy at work

@cython.auto_pickle(False)
cdef class Asking:
    """One policy at work in one Host.

    `methods` are those of `Policy` that decide otherwise than Linux, by name.
    """

    cdef kw_choosing c
    cdef World world
    cdef object error, ksm
    cdef bint busy
    cdef object begin, order, domain, area, pages, action, after
    cdef CPolicy compiled

    def __cinit__(self, World world not None, object ksm, dict methods not None, CPolicy compiled=None):
        cdef kw_policy *p = &self.c.policy
        if choosing_init(&self.c, &world.w) == -ENOMEM:
            raise MemoryError("no memory for a policy")
        self.world = world
        self.ksm = ksm
        self.compiled = compiled
        if compiled is not None:
            p[0] = compiled.functions
            return
        self.begin, self.order, self.domain = methods.get("begin"), methods.get("order"), methods.get("domain")
        self.area, self.after = methods.get("area"), methods.get("after")
        self.pages, self.action = methods.get("pages"), methods.get("action")
        p.data = <void *>self
        if self.begin is not None:
            p.begin = ask_begin
        if self.order is not None:
            p.order = ask_order
        if self.domain is not None:
            p.domain = ask_domain
        if self.area is not None:
            p.area = ask_area
        if self.after is not None:
            p.after = tell_after
        if self.pages is not None or self.action is not None:
            p.pages = ask_pages

    def __dealloc__(self):
        choosing_done(&self.c)

    @property
    def asks_domains(self):
        """Whether the policy says which domain a process is in."""
        return self.c.policy.domain != NULL

    def scan(self, int64_t n):
        """(visits, 0 or a negative KW_* code) of one batch of at most n visits; raises what a method raised."""
        cdef int failed = 0
        cdef int64_t done
        if self.busy:
            raise RuntimeError("a policy can't let the scan go on that is asking it")
        enter(self.world)
        late_watch(&self.world.w, looked_at(self.world))
        self.busy = True
        try:
            with nogil:
                done = scan_asking(&self.world.w, &self.c, n, &failed)
        finally:
            self.busy = False
            leave(self.world)
        if failed == KW_EPOLICY:
            error, self.error = self.error, None
            if error is None:
                error = ValueError("a policy of C functions answered what it may not")
            raise error
        return done, failed


cdef struct Before:
    kw_ctl ctl
    kw_ksm ksm
    kw_cursor cursor


cdef inline void before(kw_world *w, Before *b) noexcept:
    b.ctl, b.ksm, b.cursor = w.ctl[0], w.ksm[0], w.cursor[0]


cdef inline int unchanged(kw_world *w, const Before *b, str method) except -1:
    if (memcmp(&b.ctl, w.ctl, sizeof(kw_ctl)) or memcmp(&b.ksm, w.ksm, sizeof(kw_ksm))
            or memcmp(&b.cursor, w.cursor, sizeof(kw_cursor))):
        raise RuntimeError(f"{method}() of a policy changed the Host: it is asked in mid-scan, and may only look")
    return 0


cdef inline int failed(void *data, object error) noexcept:
    (<Asking>data).error = error
    return KW_EPOLICY


cdef object number_of(object answer):
    """An integer of whatever type as an int; None: it is none."""
    if isinstance(answer, (bool, np.bool_)):
        return None
    try:
        return index(answer)
    except TypeError:
        return None


cdef int ask_begin(kw_world *w, void *data) noexcept with gil:
    cdef Asking a = <Asking>data
    cdef Before b
    try:
        before(w, &b)
        a.begin(a.ksm())
        unchanged(w, &b, "begin")
        return 0
    except BaseException as error:
        return failed(data, error)


cdef int32_t ask_order(kw_world *w, void *data, int32_t *mms, int32_t n) noexcept with gil:
    cdef Asking a = <Asking>data
    cdef Before b
    cdef int32_t i
    try:
        before(w, &b)
        there = copied(mms, n, np.int32)
        answer = a.order(there)
        unchanged(w, &b, "order")
        if answer is None:
            return n
        wanted = np.asarray(answer)
        if wanted.size == 0:
            wanted = wanted.astype(np.int32)
        if wanted.ndim != 1 or wanted.dtype.kind not in "iu":
            raise TypeError(f"order() answered {answer!r}: must be numbers of address spaces")
        known = set(there.tolist())
        numbers = wanted.tolist()
        for number in numbers:
            if number not in known:
                raise ValueError(f"order() answered {number}: not on the list, or twice")
            known.discard(number)
        for i, number in enumerate(numbers + [number for number in there.tolist() if number in known]):
            mms[i] = number
        return len(numbers)
    except BaseException as error:
        return failed(data, error)


cdef int ask_domain(kw_world *w, void *data, int32_t mm) noexcept with gil:
    cdef Asking a = <Asking>data
    cdef Before b
    try:
        before(w, &b)
        answer = a.domain(a.ksm()._world.live().mm_by_number(mm))
        unchanged(w, &b, "domain")
        if answer is None:
            return w.mms[mm].domain
        most = (1 << 16) // w.ctl.nr_nodes
        number = number_of(answer)
        if number is None:
            raise TypeError(f"domain() answered {answer!r}: must be a number, 0 to {most - 1}")
        if not 0 <= number < most:
            raise ValueError(f"domain() answered {answer}: must be from 0 to {most - 1}")
        return number
    except BaseException as error:
        return failed(data, error)


cdef int ask_area(kw_world *w, void *data, int32_t mm, int32_t vma) noexcept with gil:
    cdef Asking a = <Asking>data
    cdef Before b
    try:
        before(w, &b)
        answer = a.area(area_door(a.world, mm, vma))
        unchanged(w, &b, "area")
        if answer is None:
            return KW_SCAN
        number = number_of(answer)
        if number is None or not 0 <= number <= 2:
            raise ValueError(f"area() answered {answer!r}: must be SCAN, PAUSE or LEAVE")
        return number
    except BaseException as error:
        return failed(data, error)


cdef int tell_after(kw_world *w, void *data, int32_t mm, int32_t vma, const kw_tally *tally) noexcept with gil:
    cdef Asking a = <Asking>data
    cdef Before b
    cdef Area area
    try:
        before(w, &b)
        area = area_door(a.world, mm, vma)
        area.visited = tally.visited
        area.merged = tally.merged
        area.broken = tally.broken
        area.changed = tally.changed
        a.after(area)
        unchanged(w, &b, "after")
        return 0
    except BaseException as error:
        return failed(data, error)


cdef int put_mask(kw_pages *p, object answer) except -1:
    """Leave out what the mask does not have."""
    mask = np.asarray(answer)
    if mask.dtype != bool or mask.shape != (p.n,):
        raise ValueError(
            f"pages() answered {mask.dtype} of shape {mask.shape}: must be a bool for each of the {p.n} pages, or None"
        )
    cdef const uint8_t[::1] taken = np.ascontiguousarray(mask).view(np.uint8)
    cdef int32_t i
    for i in range(p.n):
        if not taken[i]:
            p.act[i] = KW_PAGE_OUT
    return 0


cdef int put_actions(kw_pages *p, object answer) except -1:
    """What happens to those that are not left out."""
    actions = np.asarray(answer)
    if actions.dtype.kind not in "iu" or actions.shape not in ((), (p.n,)) or ((actions < 1) | (actions > 4)).any():
        raise ValueError(
            f"action() answered {answer!r}: must be COMPARE, NOW, ZERO_FIRST or IGNORE, or one of them for each of the"
            f" {p.n} pages"
        )
    cdef const uint8_t[::1] acts = np.ascontiguousarray(np.broadcast_to(actions, p.n).astype(np.uint8))
    cdef int32_t i
    for i in range(p.n):
        if p.act[i] != KW_PAGE_OUT:
            p.act[i] = acts[i]
    return 0


cdef int ask_pages(kw_world *w, void *data, kw_pages *p) noexcept with gil:
    cdef Asking a = <Asking>data
    cdef Before b
    cdef TablePages pages = TablePages.__new__(TablePages)
    try:
        pages.world = a.world
        pages.area = area_door(a.world, p.mm, p.vma)
        pages.addr = copied(p.addr, p.n, np.uint64)
        pages.pfn = copied(p.pfn, p.n, np.int64)
        pages.item = copied(p.item, p.n, np.int32)
        pages.entry = copied(p.entry, p.n, np.uint64)
        before(w, &b)
        mask = None if a.pages is None else a.pages(pages)
        acts = None if a.action is None else a.action(pages)
        unchanged(w, &b, "pages")
        if mask is not None:
            put_mask(p, mask)
        if acts is not None:
            put_actions(p, acts)
        return 0
    except BaseException as error:
        return failed(data, error)


def is_compiled(policy):
    """Whether it is a policy of C functions."""
    return isinstance(policy, CPolicy)
