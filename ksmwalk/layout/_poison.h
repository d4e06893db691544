/* What is free is poisoned: in the asan profile a read or a write of a free record is reported where it happens.

   The arenas are mapped memory, of which AddressSanitizer knows nothing by itself. Everywhere else these are nothing.
   Arena ends are guarded apart from this, in arena.py. */
#ifndef KSMWALK_POISON_H
#define KSMWALK_POISON_H

#include <stddef.h>
#include <stdint.h>

#ifndef __has_feature
#define __has_feature(name) 0
#endif

#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#include <sanitizer/asan_interface.h>
#include <stdlib.h>

/* KSMWALK_POISON=0: nothing is poisoned, to see what else is reported. */
static inline int kw_poisons(void) {
    static int on = -1;
    if (on < 0) {
        const char *text = getenv("KSMWALK_POISON");
        on = !(text && text[0] == '0');
    }
    return on;
}

static inline void kw_poison(const volatile void *p, size_t n) {
    if (kw_poisons())
        __asan_poison_memory_region(p, n);
}

static inline void kw_unpoison(const volatile void *p, size_t n) { __asan_unpoison_memory_region(p, n); }

#define KW_PEEKS static __attribute__((no_sanitize_address, noinline, unused))
#else
#define KW_PEEKS static inline
static inline void kw_poison(const volatile void *p, size_t n) { (void)p, (void)n; }
static inline void kw_unpoison(const volatile void *p, size_t n) { (void)p, (void)n; }
#endif

/* Reads of what may be poison, nothing reported: for a check that what is free is empty, while it stays poisoned; and for
   guesses at what will be needed, of which some are gone by then. */
KW_PEEKS char kw_peek_byte(const char *p) { return *p; }
KW_PEEKS uint64_t kw_peek_entry(const uint64_t *p) { return *p; }
KW_PEEKS int32_t kw_peek_index(const int32_t *p) { return *p; }

#endif
