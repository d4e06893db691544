/* What the memory gives: a trace's stores put straight into an array of contents, fetched ahead, no page tables at all.
 * With `touch` an array of entries is read and written as well, as a processor's accessed and dirty bits are. */
#include <stdint.h>
#include <stddef.h>

struct event {
    int64_t time;
    uint64_t addr, key;
    int32_t mm;
    uint16_t operation, arg;
};

static inline size_t place(const struct event *e, uint64_t base, size_t pages)
{
    return (size_t)e->mm * pages + ((e->addr - base) >> 12);
}

void rival_trace(const struct event *events, size_t n, uint64_t base, size_t pages, uint64_t *keys, uint64_t *entries)
{
    for (size_t i = 0; i < n; i++) {
        const struct event *e = events + i;
        if (i + 24 < n) {
            size_t ahead = place(events + i + 24, base, pages);
            __builtin_prefetch(keys + ahead, 1);
            if (entries)
                __builtin_prefetch(entries + ahead, 1);
        }
        size_t at = place(e, base, pages);
        if (entries)
            entries[at] |= e->operation == 2 ? 0x60 : 0x20;
        if (e->operation == 2)
            keys[at] = e->key;
    }
}
