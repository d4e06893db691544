/* BLAKE2b (RFC 7693) of pages of 4096 bytes, keyed, 128 bits: four pages at a time, each in a lane of AVX2's registers.
 * Where the processor has none there is Python's own, a page at a time. */
#ifndef KSMWALK_BLAKE2B_H
#define KSMWALK_BLAKE2B_H
#include <stdint.h>
#include <string.h>

/* Whether this processor can. */
static inline int kw_blake2b_wide(void)
{
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") != 0;
#else
    return 0;
#endif
}

enum { KW_B2_PAGE = 4096, KW_B2_BLOCK = 128 };

#if defined(__x86_64__)
#include <immintrin.h>
#define KW_B2_AVX2 __attribute__((target("avx2")))

enum { KW_B2_LANES = 4, KW_B2_DIGEST = 16 };

static const uint64_t kw_b2_iv[8] = {
    0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
    0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179,
};

#define KW_B2_ADD _mm256_add_epi64
#define KW_B2_XOR _mm256_xor_si256
#define KW_B2_ROTATE24(x) _mm256_shuffle_epi8(x, by24)
#define KW_B2_ROTATE16(x) _mm256_shuffle_epi8(x, by16)
#define KW_B2_ROTATE63(x) KW_B2_XOR(_mm256_srli_epi64(x, 63), KW_B2_ADD(x, x))
#define KW_B2_MIX(a, b, c, d, x, y) \
    do { \
        v[a] = KW_B2_ADD(v[a], KW_B2_ADD(v[b], m[x])); \
        v[d] = _mm256_shuffle_epi32(KW_B2_XOR(v[d], v[a]), 0xb1); \
        v[c] = KW_B2_ADD(v[c], v[d]); \
        v[b] = KW_B2_ROTATE24(KW_B2_XOR(v[b], v[c])); \
        v[a] = KW_B2_ADD(v[a], KW_B2_ADD(v[b], m[y])); \
        v[d] = KW_B2_ROTATE16(KW_B2_XOR(v[d], v[a])); \
        v[c] = KW_B2_ADD(v[c], v[d]); \
        v[b] = KW_B2_XOR(v[b], v[c]); \
        v[b] = KW_B2_ROTATE63(v[b]); \
    } while (0)
#define KW_B2_ROUND(s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11, s12, s13, s14, s15) \
    do { \
        KW_B2_MIX(0, 4, 8, 12, s0, s1); \
        KW_B2_MIX(1, 5, 9, 13, s2, s3); \
        KW_B2_MIX(2, 6, 10, 14, s4, s5); \
        KW_B2_MIX(3, 7, 11, 15, s6, s7); \
        KW_B2_MIX(0, 5, 10, 15, s8, s9); \
        KW_B2_MIX(1, 6, 11, 12, s10, s11); \
        KW_B2_MIX(2, 7, 8, 13, s12, s13); \
        KW_B2_MIX(3, 4, 9, 14, s14, s15); \
    } while (0)

/* Four words of four pages, turned so that each register has one word of all. */
KW_B2_AVX2 static inline void kw_b2_turned(__m256i m[4], const uint8_t *const block[KW_B2_LANES], int at)
{
    __m256i a = _mm256_loadu_si256((const __m256i *)(block[0] + at)), b = _mm256_loadu_si256((const __m256i *)(block[1] + at));
    __m256i c = _mm256_loadu_si256((const __m256i *)(block[2] + at)), d = _mm256_loadu_si256((const __m256i *)(block[3] + at));
    __m256i ab02 = _mm256_unpacklo_epi64(a, b), ab13 = _mm256_unpackhi_epi64(a, b);
    __m256i cd02 = _mm256_unpacklo_epi64(c, d), cd13 = _mm256_unpackhi_epi64(c, d);
    m[0] = _mm256_permute2x128_si256(ab02, cd02, 0x20);
    m[1] = _mm256_permute2x128_si256(ab13, cd13, 0x20);
    m[2] = _mm256_permute2x128_si256(ab02, cd02, 0x31);
    m[3] = _mm256_permute2x128_si256(ab13, cd13, 0x31);
}

/* One block of each lane into h; `counted` bytes so far, with this block. */
KW_B2_AVX2 static void kw_b2_block(__m256i h[8], const uint8_t *const block[KW_B2_LANES], uint64_t counted, int last)
{
    const __m256i by24 = _mm256_setr_epi8(3, 4, 5, 6, 7, 0, 1, 2, 11, 12, 13, 14, 15, 8, 9, 10,
                                          3, 4, 5, 6, 7, 0, 1, 2, 11, 12, 13, 14, 15, 8, 9, 10);
    const __m256i by16 = _mm256_setr_epi8(2, 3, 4, 5, 6, 7, 0, 1, 10, 11, 12, 13, 14, 15, 8, 9,
                                          2, 3, 4, 5, 6, 7, 0, 1, 10, 11, 12, 13, 14, 15, 8, 9);
    __m256i v[16], m[16];
    for (int i = 0; i < 16; i += 4)
        kw_b2_turned(m + i, block, 8 * i);
    for (int i = 0; i < 8; i++) {
        v[i] = h[i];
        v[8 + i] = _mm256_set1_epi64x((long long)kw_b2_iv[i]);
    }
    v[12] = KW_B2_XOR(v[12], _mm256_set1_epi64x((long long)counted));
    if (last)
        v[14] = KW_B2_XOR(v[14], _mm256_set1_epi64x(-1));
    KW_B2_ROUND(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    KW_B2_ROUND(14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3);
    KW_B2_ROUND(11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4);
    KW_B2_ROUND(7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8);
    KW_B2_ROUND(9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13);
    KW_B2_ROUND(2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9);
    KW_B2_ROUND(12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11);
    KW_B2_ROUND(13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10);
    KW_B2_ROUND(6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5);
    KW_B2_ROUND(10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0);
    KW_B2_ROUND(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    KW_B2_ROUND(14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3);
    for (int i = 0; i < 8; i++)
        h[i] = KW_B2_XOR(h[i], KW_B2_XOR(v[i], v[8 + i]));
}

/* Of four pages the digests, as two big-endian numbers each. key: its bytes and then zeros; none: key_bytes 0. */
KW_B2_AVX2 static void kw_b2_four(
    const uint8_t *const page[KW_B2_LANES], const uint8_t key[KW_B2_BLOCK], int key_bytes, uint64_t (*out)[2])
{
    __m256i h[8];
    uint64_t counted = 0, words[KW_B2_LANES];
    for (int i = 0; i < 8; i++)
        h[i] = _mm256_set1_epi64x((long long)kw_b2_iv[i]);
    h[0] = KW_B2_XOR(h[0], _mm256_set1_epi64x(0x01010000 ^ key_bytes << 8 ^ KW_B2_DIGEST));
    if (key_bytes) {
        const uint8_t *const first[KW_B2_LANES] = {key, key, key, key};
        counted = KW_B2_BLOCK;
        kw_b2_block(h, first, counted, 0);
    }
    for (int at = 0; at < KW_B2_PAGE; at += KW_B2_BLOCK) {
        const uint8_t *const block[KW_B2_LANES] = {page[0] + at, page[1] + at, page[2] + at, page[3] + at};
        counted += KW_B2_BLOCK;
        kw_b2_block(h, block, counted, at + KW_B2_BLOCK == KW_B2_PAGE);
    }
    for (int i = 0; i < 2; i++) {
        _mm256_storeu_si256((__m256i *)words, h[i]);
        for (int k = 0; k < KW_B2_LANES; k++)
            out[k][i] = __builtin_bswap64(words[k]);
    }
}
#endif

/* Digests of n pages side by side, as two big-endian numbers each; for processors that can. */
static inline void kw_blake2b_pages(const uint8_t *pages, int64_t n, const uint8_t *key, int key_bytes, uint64_t *out)
{
#if defined(__x86_64__)
    uint64_t four[KW_B2_LANES][2];
    uint8_t block[KW_B2_BLOCK] = {0};
    memcpy(block, key, (size_t)key_bytes);
    for (int64_t i = 0; i < n; i += KW_B2_LANES) {
        const uint8_t *page[KW_B2_LANES];
        for (int k = 0; k < KW_B2_LANES; k++)
            page[k] = pages + (i + k < n ? i + k : i) * KW_B2_PAGE;
        kw_b2_four(page, block, key_bytes, four);
        for (int k = 0; k < KW_B2_LANES && i + k < n; k++)
            memcpy(out + 2 * (i + k), four[k], sizeof four[k]);
    }
#else
    (void)pages, (void)n, (void)key, (void)key_bytes, (void)out;
#endif
}
#endif
