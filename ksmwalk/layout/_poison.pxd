"""What is free is poisoned, in the asan profile; in every other the first two are nothing (see _poison.h)."""
from libc.stdint cimport int32_t, uint64_t


cdef extern from "_poison.h" nogil:
    # The links of the free lists and what doors look at to see that they are stale stay readable.
    void kw_poison(const volatile void *p, size_t n) noexcept
    void kw_unpoison(const volatile void *p, size_t n) noexcept
    # What stands there, poison or not.
    char kw_peek_byte(const char *p) noexcept
    uint64_t kw_peek_entry(const uint64_t *p) noexcept
    int32_t kw_peek_index(const int32_t *p) noexcept
