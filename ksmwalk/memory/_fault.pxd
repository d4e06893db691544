# The contract of faults, for those who `cimport ksmwalk.memory._fault`. Same rules as _frames.pxd.
from libc.stdint cimport int32_t, int64_t, uint64_t

from ksmwalk.layout._layout cimport *


cdef enum:
    FAULT_FORCE = 1    # as a debugger does: past the vma's permissions, the pte stays without
    FAULT_KEEP = 2     # the content stays: only the fault of a store is wanted (populate, mlock)

cdef int write_fault(kw_world *w, int32_t mm, uint64_t addr, uint64_t key) noexcept nogil
    # A store that leaves the page at addr with content `key`, the fault it takes included. KW_OK; -EFAULT: no vma or
    # no right to; KW_ENOFRAMES, KW_ENOROWS.
cdef int64_t read_fault(kw_world *w, int32_t mm, uint64_t addr) noexcept nogil
    # The frame a load at addr sees, the fault it takes included (zero page, huge zero page); or a code as above.
cdef int new_anon(kw_world *w, int32_t mm, kw_vma *v, uint64_t *pte, uint64_t key) noexcept nogil
    # A new anonymous page with this content at an empty or replaced pte; the area has an anon_vma. KW_ENOFRAMES.
cdef int64_t backing_page(kw_world *w, kw_vma *v, uint64_t pgoff, bint huge) noexcept nogil
    # The frame of the file or shared object behind v at this offset, made (empty) where missing. -EFAULT: beyond its
    # end; KW_ENOFRAMES.
cdef int fault_write(kw_world *w, int32_t mm, kw_vma *v, uint64_t addr, uint64_t key, int mode) noexcept nogil
cdef int64_t fault_read(kw_world *w, int32_t mm, kw_vma *v, uint64_t addr, int mode) noexcept nogil
    # write_fault and read_fault with the vma at hand; mode: FAULT_* bits.
cdef int64_t write_range(kw_world *w, int32_t mm, uint64_t addr, int64_t n, const uint64_t *keys, int64_t stride,
                         int mode, int *code) noexcept nogil
    # Store keys[0], keys[stride], ... into n consecutive pages (NULL: key 0). The number done; *code: why it stopped
    # there.
cdef int64_t read_range(kw_world *w, int32_t mm, uint64_t addr, int64_t n, uint64_t *keys, int mode,
                        int *code) noexcept nogil
