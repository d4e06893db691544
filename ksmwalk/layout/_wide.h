/* The inner loops over the 512 entries of one table, with wide loads where the processor has them (chosen when the
 * module is loaded, never by -march=native). Each answers exactly like its plain twin; tests hold the two together. */
#ifndef KSMWALK_WIDE_H
#define KSMWALK_WIDE_H
#include "_layout.h"
#if defined(__x86_64__)
#include <immintrin.h>
#define KW_AVX2 __attribute__((target("avx2,popcnt")))
#define KW_AVX512 __attribute__((target("avx512f,popcnt")))
#endif

static inline void kw_prefetch(const void *p) { __builtin_prefetch(p, 0, 3); }

/* Bring a whole table towards the cache while another one is being read. */
static inline void kw_prefetch_row(const uint64_t *row)
{
    for (int i = 0; i < 512; i += 8)
        __builtin_prefetch(row + i, 0, 3);
}

/* Index of the first of row[from..to) that has a bit of mask, or to. */
static int kw_first_plain(const uint64_t *row, int from, int to, uint64_t mask)
{
    int i = from;
    for (; i < to && (i & 7); i++)
        if (row[i] & mask)
            return i;
    for (; i + 8 <= to; i += 8) {
        uint64_t any = row[i] | row[i + 1] | row[i + 2] | row[i + 3] | row[i + 4] | row[i + 5] | row[i + 6] | row[i + 7];
        if (any & mask)
            break;
    }
    for (; i < to; i++)
        if (row[i] & mask)
            return i;
    return to;
}

/* Bits 0..7: which of the 8 entries have a bit of mask. */
static inline unsigned kw_mask8_plain(const uint64_t *p, uint64_t mask)
{
    unsigned m = 0;
    for (int i = 0; i < 8; i++)
        m |= (unsigned)((p[i] & mask) != 0) << i;
    return m;
}

/* What the leaves of one pte table have in common. */
typedef struct {
    uint64_t addr;         /* of entry 0 */
    uint64_t present;      /* an entry with one of these bits is a mapping */
    const uint64_t *next;  /* the table to be read after this one, NULL: not known; it is fetched line by line meanwhile */
    uint8_t perms;         /* of the levels above */
} kw_emit;

/* The table of which a line is to be fetched with every line of this one: fetched at once it would keep all else waiting.
 * The loops hold it in a variable of their own, because what they write could be a kw_emit for all the compiler knows. */
static inline const uint64_t *kw_next_row(const kw_emit *c, const uint64_t *row) { return c->next ? c->next : row; }

/* The 32-byte record of one pte. */
static inline void kw_emit_one(kw_mapping *out, uint64_t e, uint64_t addr, uint8_t above)
{
    uint64_t d = (e & PTE_P) ? e : e ^ PTE_PFN_MASK;
    uint8_t perms = (uint8_t)(PERM_R | ((e >> 1) & 1) * PERM_W | ((e >> 2) & 1) * PERM_U | (~(e >> 63) & 1) * PERM_X);
    out->addr = addr;
    out->pfn = (d & PTE_PFN_MASK) >> 12;
    out->flags = e & ~PTE_PFN_MASK;
    out->level = 1;
    out->perms = perms & above;
    out->unused = 0;
    out->nr = 1;
}

static int64_t kw_emit_plain(const uint64_t *row, int from, int to, const kw_emit *c, kw_mapping *out)
{
    int64_t n = 0;
    for (int i = from; i < to; i++) {
        if (row[i] & c->present)
            kw_emit_one(out + n++, row[i], c->addr + ((uint64_t)i << 12), c->perms);
    }
    return n;
}

/* The same as two columns, address and raw entry. Up to as many may be written as entries were asked for. */
static int64_t kw_pack_plain(const uint64_t *row, int from, int to, const kw_emit *c, uint64_t *addr, uint64_t *entry)
{
    int64_t n = 0;
    for (int i = from; i < to; i++) {
        if (row[i] & c->present) {
            addr[n] = c->addr + ((uint64_t)i << 12);
            entry[n++] = row[i];
        }
    }
    return n;
}

#if defined(__x86_64__)
KW_AVX2 static int kw_first_avx2(const uint64_t *row, int from, int to, uint64_t mask)
{
    const __m256i m = _mm256_set1_epi64x((long long)mask);
    int i = from;
    for (; i < to && (i & 15); i++)
        if (row[i] & mask)
            return i;
    for (; i + 16 <= to; i += 16) {
        const __m256i *p = (const __m256i *)(row + i);
        __m256i a = _mm256_or_si256(_mm256_loadu_si256(p), _mm256_loadu_si256(p + 1));
        __m256i b = _mm256_or_si256(_mm256_loadu_si256(p + 2), _mm256_loadu_si256(p + 3));
        if (!_mm256_testz_si256(_mm256_or_si256(a, b), m))
            break;
    }
    for (; i < to; i++)
        if (row[i] & mask)
            return i;
    return to;
}

KW_AVX2 static inline unsigned kw_mask8_avx2(const uint64_t *p, __m256i mask)
{
    const __m256i zero = _mm256_setzero_si256();
    __m256i a = _mm256_and_si256(_mm256_loadu_si256((const __m256i *)p), mask);
    __m256i b = _mm256_and_si256(_mm256_loadu_si256((const __m256i *)(p + 4)), mask);
    unsigned za = (unsigned)_mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpeq_epi64(a, zero)));
    unsigned zb = (unsigned)_mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpeq_epi64(b, zero)));
    return ~(za | zb << 4) & 0xff;
}

/* Four records at once: the fields are computed as columns and transposed into rows. */
KW_AVX2 static inline void kw_emit_four(kw_mapping *out, __m256i e, __m256i addr, __m256i above)
{
    const __m256i pfnmask = _mm256_set1_epi64x((long long)PTE_PFN_MASK);
    const __m256i one = _mm256_set1_epi64x(1);
    /* all ones where P is clear */
    __m256i absent = _mm256_sub_epi64(_mm256_and_si256(e, one), one);
    __m256i d = _mm256_xor_si256(e, _mm256_and_si256(absent, pfnmask));
    __m256i pfn = _mm256_srli_epi64(_mm256_and_si256(d, pfnmask), 12);
    __m256i flags = _mm256_andnot_si256(pfnmask, e);
    /* bits 8..15: perms = R | RW<<0 | !NX<<2 | US<<1 (R=1, W=2, X=4, U=8), ANDed with the levels above */
    __m256i w = _mm256_slli_epi64(_mm256_and_si256(e, _mm256_set1_epi64x(2)), 8);
    __m256i u = _mm256_slli_epi64(_mm256_and_si256(e, _mm256_set1_epi64x(4)), 9);
    __m256i x = _mm256_slli_epi64(_mm256_xor_si256(_mm256_srli_epi64(e, 63), one), 10);
    __m256i perms = _mm256_or_si256(_mm256_or_si256(w, u), _mm256_or_si256(x, _mm256_set1_epi64x(0x100)));
    __m256i tail = _mm256_or_si256(_mm256_and_si256(perms, above), _mm256_set1_epi64x(0x0000000100000001ll));
    __m256i lo_ap = _mm256_unpacklo_epi64(addr, pfn), hi_ap = _mm256_unpackhi_epi64(addr, pfn);
    __m256i lo_ft = _mm256_unpacklo_epi64(flags, tail), hi_ft = _mm256_unpackhi_epi64(flags, tail);
    __m256i *o = (__m256i *)out;
    _mm256_storeu_si256(o, _mm256_permute2x128_si256(lo_ap, lo_ft, 0x20));
    _mm256_storeu_si256(o + 1, _mm256_permute2x128_si256(hi_ap, hi_ft, 0x20));
    _mm256_storeu_si256(o + 2, _mm256_permute2x128_si256(lo_ap, lo_ft, 0x31));
    _mm256_storeu_si256(o + 3, _mm256_permute2x128_si256(hi_ap, hi_ft, 0x31));
}

KW_AVX2 static int64_t kw_emit_avx2(const uint64_t *row, int from, int to, const kw_emit *c, kw_mapping *out)
{
    const __m256i mask = _mm256_set1_epi64x((long long)c->present);
    const uint64_t *next = kw_next_row(c, row);
    const __m256i above = _mm256_set1_epi64x((long long)((uint64_t)c->perms << 8));
    int64_t n = 0;
    int i = from;
    for (; i < to && (i & 7); i++)
        if (row[i] & c->present)
            kw_emit_one(out + n++, row[i], c->addr + ((uint64_t)i << 12), c->perms);
    for (; i + 8 <= to; i += 8) {
        kw_prefetch(next + i);
        unsigned m = kw_mask8_avx2(row + i, mask);
        if (m == 0)
            continue;
        if (m == 0xff) {
            uint64_t a = c->addr + ((uint64_t)i << 12);
            __m256i addr = _mm256_add_epi64(_mm256_set1_epi64x((long long)a), _mm256_set_epi64x(12288, 8192, 4096, 0));
            kw_emit_four(out + n, _mm256_loadu_si256((const __m256i *)(row + i)), addr, above);
            addr = _mm256_add_epi64(addr, _mm256_set1_epi64x(16384));
            kw_emit_four(out + n + 4, _mm256_loadu_si256((const __m256i *)(row + i + 4)), addr, above);
            n += 8;
            continue;
        }
        while (m) {
            int k = i + __builtin_ctz(m);
            kw_emit_one(out + n++, row[k], c->addr + ((uint64_t)k << 12), c->perms);
            m &= m - 1;
        }
    }
    for (; i < to; i++)
        if (row[i] & c->present)
            kw_emit_one(out + n++, row[i], c->addr + ((uint64_t)i << 12), c->perms);
    return n;
}

/* By which of four entries are wanted: their halves, in front. */
static const uint32_t KW_FRONT[16][8] = {
    {0, 1, 2, 3, 4, 5, 6, 7}, {0, 1, 0, 1, 0, 1, 0, 1}, {2, 3, 0, 1, 0, 1, 0, 1}, {0, 1, 2, 3, 0, 1, 0, 1},
    {4, 5, 0, 1, 0, 1, 0, 1}, {0, 1, 4, 5, 0, 1, 0, 1}, {2, 3, 4, 5, 0, 1, 0, 1}, {0, 1, 2, 3, 4, 5, 0, 1},
    {6, 7, 0, 1, 0, 1, 0, 1}, {0, 1, 6, 7, 0, 1, 0, 1}, {2, 3, 6, 7, 0, 1, 0, 1}, {0, 1, 2, 3, 6, 7, 0, 1},
    {4, 5, 6, 7, 0, 1, 0, 1}, {0, 1, 4, 5, 6, 7, 0, 1}, {2, 3, 4, 5, 6, 7, 0, 1}, {0, 1, 2, 3, 4, 5, 6, 7},
};

/* Those of four that are wanted, at the front; what follows them is written over by the next ones. */
KW_AVX2 static inline int64_t kw_pack_four(__m256i a, __m256i e, unsigned m, uint64_t *addr, uint64_t *entry)
{
    const __m256i front = _mm256_loadu_si256((const __m256i *)KW_FRONT[m]);
    _mm256_storeu_si256((__m256i *)addr, _mm256_permutevar8x32_epi32(a, front));
    _mm256_storeu_si256((__m256i *)entry, _mm256_permutevar8x32_epi32(e, front));
    return __builtin_popcount(m);
}

KW_AVX2 static int64_t kw_pack_avx2(const uint64_t *row, int from, int to, const kw_emit *c, uint64_t *addr, uint64_t *entry)
{
    const __m256i mask = _mm256_set1_epi64x((long long)c->present), four = _mm256_set1_epi64x(4 << 12);
    const uint64_t *next = kw_next_row(c, row);
    int i = from, whole = (from + 7) & ~7;
    int64_t n;
    if (whole > to)
        whole = to;
    n = kw_pack_plain(row, i, whole, c, addr, entry);
    i = whole;
    __m256i a = _mm256_set1_epi64x((long long)(c->addr + ((uint64_t)i << 12)));
    a = _mm256_add_epi64(a, _mm256_set_epi64x(3 << 12, 2 << 12, 1 << 12, 0));
    for (; i + 8 <= to; i += 8) {
        __m256i e = _mm256_loadu_si256((const __m256i *)(row + i)), f = _mm256_loadu_si256((const __m256i *)(row + i + 4));
        __m256i b = _mm256_add_epi64(a, four);
        kw_prefetch(next + i);
        if (!_mm256_testz_si256(_mm256_or_si256(e, f), mask)) {
            unsigned m = kw_mask8_avx2(row + i, mask);
            if (m == 0xff) {
                _mm256_storeu_si256((__m256i *)(addr + n), a);
                _mm256_storeu_si256((__m256i *)(addr + n + 4), b);
                _mm256_storeu_si256((__m256i *)(entry + n), e);
                _mm256_storeu_si256((__m256i *)(entry + n + 4), f);
                n += 8;
            } else {
                n += kw_pack_four(a, e, m & 15, addr + n, entry + n);
                n += kw_pack_four(b, f, m >> 4, addr + n, entry + n);
            }
        }
        a = _mm256_add_epi64(b, four);
    }
    return n + kw_pack_plain(row, i, to, c, addr + n, entry + n);
}

/* Compressed in a register and stored whole: compressing stores are slow on some processors. */
KW_AVX512 static int64_t kw_pack_avx512(const uint64_t *row, int from, int to, const kw_emit *c, uint64_t *addr, uint64_t *entry)
{
    const __m512i mask = _mm512_set1_epi64((long long)c->present), eight = _mm512_set1_epi64(8 << 12);
    const uint64_t *next = kw_next_row(c, row);
    int i = from, whole = (from + 7) & ~7;
    int64_t n;
    if (whole > to)
        whole = to;
    n = kw_pack_plain(row, i, whole, c, addr, entry);
    i = whole;
    __m512i a = _mm512_set1_epi64((long long)(c->addr + ((uint64_t)i << 12)));
    a = _mm512_add_epi64(a, _mm512_set_epi64(7 << 12, 6 << 12, 5 << 12, 4 << 12, 3 << 12, 2 << 12, 1 << 12, 0));
    for (; i + 8 <= to; i += 8) {
        __m512i e = _mm512_loadu_si512(row + i);
        __mmask8 m = _mm512_test_epi64_mask(e, mask);
        kw_prefetch(next + i);
        if (m == 0xff) {
            _mm512_storeu_si512(addr + n, a);
            _mm512_storeu_si512(entry + n, e);
            n += 8;
        } else if (m) {
            _mm512_storeu_si512(addr + n, _mm512_maskz_compress_epi64(m, a));
            _mm512_storeu_si512(entry + n, _mm512_maskz_compress_epi64(m, e));
            n += __builtin_popcount(m);
        }
        a = _mm512_add_epi64(a, eight);
    }
    return n + kw_pack_plain(row, i, to, c, addr + n, entry + n);
}
#endif

typedef int (*kw_first_fn)(const uint64_t *, int, int, uint64_t);
typedef int64_t (*kw_emit_fn)(const uint64_t *, int, int, const kw_emit *, kw_mapping *);
typedef int64_t (*kw_pack_fn)(const uint64_t *, int, int, const kw_emit *, uint64_t *, uint64_t *);
static kw_first_fn kw_first = kw_first_plain;
static kw_emit_fn kw_emit_row = kw_emit_plain;
static kw_pack_fn kw_pack_row = kw_pack_plain;

/* Choose for this processor; `most` 0 forces the plain twins, 256 leaves out AVX-512. Answers with the bits of the widest
 * in use, 0: plain. */
static inline int kw_choose(int most)
{
    kw_first = kw_first_plain;
    kw_emit_row = kw_emit_plain;
    kw_pack_row = kw_pack_plain;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (most && __builtin_cpu_supports("avx2")) {
        kw_first = kw_first_avx2;
        kw_emit_row = kw_emit_avx2;
        kw_pack_row = kw_pack_avx2;
        if (most == 256 || !__builtin_cpu_supports("avx512f"))
            return 256;
        kw_pack_row = kw_pack_avx512;
        return 512;
    }
#endif
    return 0;
}
#endif
