/* The rival for packed columns: a page-table walker for one processor, compiled -O3 -march=native by the bench. AVX-512
 * masks and compression where there is AVX-512, permutations by table with AVX2, plain C elsewhere; the next table is
 * fetched while one is read. It trusts its tables as far as a walker can that must not crash: a frame beyond the image is
 * left out, loops and tables shared beyond reason are not looked for. Then, how fast this machine reads memory at all. */
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define P 0x1ull
#define PS 0x80ull
#define G 0x100ull
#define FRAME 0x000ffffffffff000ull

struct walk {
    const uint64_t *rows;
    size_t nrows, n;
    uint64_t *addr, *entry;
};

#if defined(__AVX512F__)
static size_t ptes(const uint64_t *row, uint64_t base, const uint64_t *next, uint64_t *addr, uint64_t *entry)
{
    const __m512i present = _mm512_set1_epi64(P | G), step = _mm512_set1_epi64(8 << 12);
    __m512i a = _mm512_add_epi64(_mm512_set1_epi64(base), _mm512_set_epi64(28672, 24576, 20480, 16384, 12288, 8192, 4096, 0));
    size_t n = 0;
    for (int i = 0; i < 512; i += 8) {
        __builtin_prefetch(next + i, 0, 3);
        __m512i e = _mm512_loadu_si512(row + i);
        __mmask8 m = _mm512_test_epi64_mask(e, present);
        if (m == 0xff) {
            _mm512_storeu_si512(addr + n, a);
            _mm512_storeu_si512(entry + n, e);
            n += 8;
        } else if (m) {
            _mm512_storeu_si512(addr + n, _mm512_maskz_compress_epi64(m, a));
            _mm512_storeu_si512(entry + n, _mm512_maskz_compress_epi64(m, e));
            n += __builtin_popcount(m);
        }
        a = _mm512_add_epi64(a, step);
    }
    return n;
}
#elif defined(__AVX2__)
static uint32_t front[16][8];

__attribute__((constructor)) static void make_front(void)
{
    for (int m = 0; m < 16; m++)
        for (int i = 0, n = 0; i < 4; i++)
            if (m >> i & 1) {
                front[m][2 * n] = 2 * i;
                front[m][2 * n + 1] = 2 * i + 1;
                n++;
            }
}

static inline size_t four(__m256i a, __m256i e, unsigned m, uint64_t *addr, uint64_t *entry)
{
    __m256i f = _mm256_loadu_si256((const __m256i *)front[m]);
    _mm256_storeu_si256((__m256i *)addr, _mm256_permutevar8x32_epi32(a, f));
    _mm256_storeu_si256((__m256i *)entry, _mm256_permutevar8x32_epi32(e, f));
    return __builtin_popcount(m);
}

static size_t ptes(const uint64_t *row, uint64_t base, const uint64_t *next, uint64_t *addr, uint64_t *entry)
{
    const __m256i present = _mm256_set1_epi64x(P | G), zero = _mm256_setzero_si256(), step = _mm256_set1_epi64x(4 << 12);
    __m256i a = _mm256_add_epi64(_mm256_set1_epi64x(base), _mm256_set_epi64x(12288, 8192, 4096, 0));
    size_t n = 0;
    for (int i = 0; i < 512; i += 8) {
        __builtin_prefetch(next + i, 0, 3);
        __m256i e = _mm256_loadu_si256((const __m256i *)(row + i)), f = _mm256_loadu_si256((const __m256i *)(row + i + 4));
        __m256i b = _mm256_add_epi64(a, step);
        if (!_mm256_testz_si256(_mm256_or_si256(e, f), present)) {
            __m256i none = _mm256_cmpeq_epi64(_mm256_and_si256(e, present), zero);
            unsigned m = 15 ^ _mm256_movemask_pd(_mm256_castsi256_pd(none));
            none = _mm256_cmpeq_epi64(_mm256_and_si256(f, present), zero);
            unsigned k = 15 ^ _mm256_movemask_pd(_mm256_castsi256_pd(none));
            if ((m & k) == 15) {
                _mm256_storeu_si256((__m256i *)(addr + n), a);
                _mm256_storeu_si256((__m256i *)(addr + n + 4), b);
                _mm256_storeu_si256((__m256i *)(entry + n), e);
                _mm256_storeu_si256((__m256i *)(entry + n + 4), f);
                n += 8;
            } else {
                n += four(a, e, m, addr + n, entry + n);
                n += four(b, f, k, addr + n, entry + n);
            }
        }
        a = _mm256_add_epi64(b, step);
    }
    return n;
}
#else
static size_t ptes(const uint64_t *row, uint64_t base, const uint64_t *next, uint64_t *addr, uint64_t *entry)
{
    size_t n = 0;
    for (int i = 0; i < 512; i++) {
        if (i % 8 == 0)
            __builtin_prefetch(next + i, 0, 3);
        addr[n] = base + ((uint64_t)i << 12);
        entry[n] = row[i];
        n += (row[i] & (P | G)) != 0;
    }
    return n;
}
#endif

/* The table that comes after the one below table[i], or that one. */
static const uint64_t *after(const struct walk *w, const uint64_t *table, int i, const uint64_t *one)
{
    for (int k = i + 1; k < 512 && k < i + 9; k++)
        if ((table[k] & (P | PS)) == P)
            return (table[k] & FRAME) >> 12 < w->nrows ? w->rows + ((table[k] & FRAME) >> 12) * 512 : one;
    return one;
}

static void level(struct walk *w, uint64_t row, int lv, uint64_t base)
{
    const uint64_t *table = w->rows + row * 512;
    uint64_t size = 1ull << (3 + 9 * lv);
    for (int i = 0; i < 512; i++) {
        uint64_t e = table[i], addr = base + i * size, frame = (e & FRAME) >> 12;
        if (!(e & (P | G)) && !(lv == 2 && (e & PS)))
            continue;
        if (lv <= 3 && (e & PS)) {
            w->addr[w->n] = addr;
            w->entry[w->n++] = e;
        } else if (frame < w->nrows) {
            const uint64_t *one = w->rows + frame * 512;
            if (lv > 2)
                level(w, frame, lv - 1, addr);
            else
                w->n += ptes(one, addr, after(w, table, i, one), w->addr + w->n, w->entry + w->n);
        }
    }
}

/* All mappings; addr and entry have room for eight more. */
size_t fast_walk(const uint64_t *rows, size_t nrows, uint64_t root, int levels, uint64_t *addr, uint64_t *entry)
{
    struct walk w = {rows, nrows, 0, addr, entry};
    level(&w, root, levels, 0);
    return w.n;
}

/* Read n words, for nothing but their bits. */
uint64_t read_words(const uint64_t *p, size_t n)
{
    uint64_t any[32] = {0}, all = 0;
    for (size_t i = 0; i + 32 <= n; i += 32)
        for (int k = 0; k < 32; k++)
            any[k] |= p[i + k];
    for (int k = 0; k < 32; k++)
        all |= any[k];
    return all;
}

struct part {
    const uint64_t *p;
    size_t n;
    uint64_t all;
};

static void *read_part(void *q)
{
    struct part *part = q;
    part->all = read_words(part->p, part->n);
    return NULL;
}

/* The same by two threads, half each. */
uint64_t read_words_by_two(const uint64_t *p, size_t n)
{
    struct part other = {p + n / 2, n - n / 2, 0};
    pthread_t thread;
    if (pthread_create(&thread, NULL, read_part, &other))
        return 0;
    uint64_t all = read_words(p, n / 2);
    pthread_join(thread, NULL);
    return all | other.all;
}
