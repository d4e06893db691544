/* An index by content: from a 64-bit key to the number of a record, in one cache line. It holds no keys of its own, only
 * numbers of records and a few bits of the key's hash, and asks the records.
 *
 * Lines of 16 slots of 32 bits, 64 bytes aligned: the lowest `bits` of a slot are the number of the record (0: none), the
 * others bits of the hash. A key stands in the first line, from its own on, that had a slot left; so a search ends at the
 * first line that has one. A slot that is cleared in a full line keeps that line full: it holds hash bits without a
 * record. */
#ifndef KSMWALK_SLOTS_H
#define KSMWALK_SLOTS_H
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#define KW_SLOTS_LINE 16
#define KW_SLOTS_HUGE ((size_t)2 << 20)

typedef struct {
    uint32_t *slots;    /* lines * KW_SLOTS_LINE of them, NULL: no index */
    uint64_t lines;
    uint32_t mask;      /* of a record's number */
    int64_t filled;     /* slots that are not 0 */
    int64_t limit;      /* at most so many, that most lines have one left */
} kw_slots;

/* What is looked up where: `key` of record i at keys + stride * i; of equal keys the one whose `tree` is the same. */
typedef struct {
    const char *keys, *trees; /* trees NULL: there is one only */
    int64_t stride;
} kw_keyed;

static inline uint64_t kw_slots_hash(uint64_t key, int tree) {
    uint64_t h = (key + (uint64_t)tree * 0xd6e8feb86659fd93ull) * 0x9e3779b97f4a7c15ull;
    h = (h ^ (h >> 32)) * 0xd6e8feb86659fd93ull;
    return h ^ (h >> 32);
}

static inline uint64_t kw_slots_line(const kw_slots *s, uint64_t hash) {
    return (uint64_t)(((unsigned __int128)hash * s->lines) >> 64);
}

static inline void kw_slots_prefetch(const kw_slots *s, uint64_t hash) {
    if (s->slots)
        __builtin_prefetch(s->slots + kw_slots_line(s, hash) * KW_SLOTS_LINE);
}

/* Bits of the slots of a line: those that hold these hash bits, and (`*empty`) those that are 0. */
static inline unsigned kw_slots_match(const uint32_t *line, uint32_t mask, uint32_t tag, unsigned *empty) {
#if defined(__SSE2__)
    const __m128i tags = _mm_set1_epi32((int)tag), high = _mm_set1_epi32((int)~mask), zero = _mm_setzero_si128();
    const __m128i *p = (const __m128i *)line;
    __m128i a = _mm_load_si128(p), b = _mm_load_si128(p + 1), c = _mm_load_si128(p + 2), d = _mm_load_si128(p + 3);
#define KW_FOUR(x, y, z, t) \
    (unsigned)_mm_movemask_epi8(_mm_packs_epi16(_mm_packs_epi32(x, y), _mm_packs_epi32(z, t)))
    *empty = KW_FOUR(_mm_cmpeq_epi32(a, zero), _mm_cmpeq_epi32(b, zero), _mm_cmpeq_epi32(c, zero), _mm_cmpeq_epi32(d, zero));
    return KW_FOUR(_mm_cmpeq_epi32(_mm_and_si128(a, high), tags), _mm_cmpeq_epi32(_mm_and_si128(b, high), tags),
                   _mm_cmpeq_epi32(_mm_and_si128(c, high), tags), _mm_cmpeq_epi32(_mm_and_si128(d, high), tags));
#undef KW_FOUR
#else
    unsigned same = 0, none = 0;
    for (int i = 0; i < KW_SLOTS_LINE; i++) {
        same |= (unsigned)((line[i] & ~mask) == tag) << i;
        none |= (unsigned)(line[i] == 0) << i;
    }
    *empty = none;
    return same;
#endif
}

/* The record that has this key, 0: none. */
static inline int32_t kw_slots_find(const kw_slots *s, uint64_t hash, const kw_keyed *of, uint64_t key, int tree) {
    uint64_t line;
    uint32_t tag;
    if (s->slots == NULL)
        return 0;
    line = kw_slots_line(s, hash);
    tag = (uint32_t)hash & ~s->mask;
    for (;;) {
        const uint32_t *at = s->slots + line * KW_SLOTS_LINE;
        unsigned empty, same = kw_slots_match(at, s->mask, tag, &empty);
        while (same) {
            int64_t i = at[__builtin_ctz(same)] & s->mask;
            if (i && *(const uint64_t *)(of->keys + of->stride * i) == key
                && (of->trees == NULL || *(const uint16_t *)(of->trees + of->stride * i) == tree))
                return (int32_t)i;
            same &= same - 1;
        }
        if (empty)
            return 0;
        line = line + 1 == s->lines ? 0 : line + 1;
    }
}

/* A record whose hash bits are the same, to be fetched; 0: none in the first line. */
static inline int32_t kw_slots_guess(const kw_slots *s, uint64_t hash) {
    const uint32_t *at;
    unsigned empty, same;
    if (s->slots == NULL)
        return 0;
    at = s->slots + kw_slots_line(s, hash) * KW_SLOTS_LINE;
    same = kw_slots_match(at, s->mask, (uint32_t)hash & ~s->mask, &empty) & ~empty;
    return same ? (int32_t)(at[__builtin_ctz(same)] & s->mask) : 0;
}

/* Record i, whose key is not in it yet. 0: no room, and nothing done. */
static inline int kw_slots_add(kw_slots *s, uint64_t hash, int32_t i) {
    uint64_t line;
    if (s->slots == NULL || s->filled >= s->limit || ((uint32_t)i & ~s->mask))
        return 0;
    line = kw_slots_line(s, hash);
    for (;;) {
        uint32_t *at = s->slots + line * KW_SLOTS_LINE;
        unsigned empty, none = 0;
        kw_slots_match(at, s->mask, 0, &empty);
        if (empty) {
            at[__builtin_ctz(empty)] = ((uint32_t)hash & ~s->mask) | (uint32_t)i;
            s->filled++;
            return 1;
        }
        for (int k = 0; k < KW_SLOTS_LINE; k++)
            none |= (unsigned)((at[k] & s->mask) == 0) << k;
        if (none) {
            at[__builtin_ctz(none)] = ((uint32_t)hash & ~s->mask) | (uint32_t)i;
            return 1;
        }
        line = line + 1 == s->lines ? 0 : line + 1;
    }
}

/* `to` (0: nothing) takes the place of record i. 0: it was not there. */
static inline int kw_slots_put(kw_slots *s, uint64_t hash, int32_t i, int32_t to) {
    uint64_t line;
    uint32_t want;
    if (s->slots == NULL || ((uint32_t)to & ~s->mask))
        return 0;
    line = kw_slots_line(s, hash);
    want = ((uint32_t)hash & ~s->mask) | (uint32_t)i;
    for (;;) {
        uint32_t *at = s->slots + line * KW_SLOTS_LINE;
        unsigned empty, same = kw_slots_match(at, 0, want, &empty);
        if (same) {
            int k = __builtin_ctz(same);
            if (to)
                at[k] = ((uint32_t)hash & ~s->mask) | (uint32_t)to;
            else if (empty) {
                at[k] = 0;
                s->filled--;
            } else
                at[k] = s->mask + 1;
            return 1;
        }
        if (empty)
            return 0;
        line = line + 1 == s->lines ? 0 : line + 1;
    }
}

static inline void kw_slots_free(kw_slots *s) {
    free(s->slots);
    memset(s, 0, sizeof *s);
}

/* An empty index with room for n records numbered below `records`: the one there is where it fits, else a new one. 0: no
 * memory, and no index. */
static inline int kw_slots_make(kw_slots *s, int64_t n, int64_t records) {
    uint64_t lines = (uint64_t)n / 13 + 4; /* 13 of 16 slots in use */
    size_t size;
    int bits = 1;
    while (bits < 31 && (records >> bits))
        bits++;
    if (s->slots == NULL || s->lines < lines || s->lines / 4 > lines) {
        kw_slots_free(s);
        size = (lines * KW_SLOTS_LINE * 4 + KW_SLOTS_HUGE - 1) & ~(KW_SLOTS_HUGE - 1);
        if (size < 2 * KW_SLOTS_HUGE)
            size = lines * KW_SLOTS_LINE * 4;
        if (posix_memalign((void **)&s->slots, size < KW_SLOTS_HUGE ? 64 : KW_SLOTS_HUGE, size)) {
            s->slots = NULL;
            return 0;
        }
#ifdef MADV_HUGEPAGE
        if (size >= KW_SLOTS_HUGE)
            madvise(s->slots, size, MADV_HUGEPAGE);
#endif
        s->lines = lines;
    }
    memset(s->slots, 0, s->lines * KW_SLOTS_LINE * 4);
    s->mask = ((uint32_t)1 << bits) - 1;
    s->filled = 0;
    s->limit = (int64_t)(s->lines * KW_SLOTS_LINE - s->lines * KW_SLOTS_LINE / 8);
    return 1;
}
#endif
