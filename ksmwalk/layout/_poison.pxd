"""What is free is poisoned, in the asan profile; in every other these calls are nothing (see _poison.h)."""

cdef extern from "_poison.h" nogil:
    # The links of the free lists and what doors look at to see that they are stale stay readable.
    void kw_poison(const volatile void *p, size_t n) noexcept
    void kw_unpoison(const volatile void *p, size_t n) noexcept
