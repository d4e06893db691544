/* A hash of a page that finds pages which may be equal. It proves nothing: whether they are, their bytes have to tell.
 *
 * Halves of words are multiplied and added up in sixteen lanes, as in xxHash's XXH3, but with a random number of the
 * caller's for each word, so that nothing has to be stirred in between; in the end the lanes are multiplied and folded into
 * one. A page is hashed as fast as it comes out of the second cache. The wide twin is chosen as in _wide.h. */
#ifndef KSMWALK_FOLD_H
#define KSMWALK_FOLD_H
#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { KW_PAGE_WORDS = 512, KW_FOLD_LANES = 16, KW_FOLD_SEEDS = KW_PAGE_WORDS + 3 * KW_FOLD_LANES };

static inline uint64_t kw_fold(uint64_t a, uint64_t b)
{
#if defined(__SIZEOF_INT128__)
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
#else
    uint64_t a0 = (uint32_t)a, a1 = a >> 32, b0 = (uint32_t)b, b1 = b >> 32;
    uint64_t low = a0 * b0, one = a1 * b0 + (low >> 32), two = a0 * b1 + (uint32_t)one;
    return ((two << 32) | (uint32_t)low) ^ (a1 * b1 + (one >> 32) + (two >> 32));
#endif
}

static inline uint64_t kw_fold_lanes(const uint64_t *lane, const uint64_t *seeds)
{
    uint64_t out = KW_PAGE_WORDS;
    seeds += KW_PAGE_WORDS + KW_FOLD_LANES;
    for (int k = 0; k < KW_FOLD_LANES; k++)
        out = kw_fold(lane[k] ^ seeds[k], out ^ seeds[KW_FOLD_LANES + k]);
    return out;
}

static uint64_t kw_hash_page_plain(const uint64_t *words, const uint64_t *seeds)
{
    uint64_t lane[KW_FOLD_LANES];
    for (int k = 0; k < KW_FOLD_LANES; k++)
        lane[k] = seeds[KW_PAGE_WORDS + k];
    for (int i = 0; i < KW_PAGE_WORDS; i += KW_FOLD_LANES)
        for (int k = 0; k < KW_FOLD_LANES; k++) {
            uint64_t word = words[i + k] ^ seeds[i + k];
            /* the neighbour's word too: a half that is 0 by chance hides nothing */
            lane[k] += (uint64_t)(uint32_t)word * (word >> 32) + words[i + (k ^ 1)];
        }
    return kw_fold_lanes(lane, seeds);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static uint64_t kw_hash_page_avx2(const uint64_t *words, const uint64_t *seeds)
{
    __m256i lane[4];
    uint64_t out[KW_FOLD_LANES];
    for (int k = 0; k < 4; k++)
        lane[k] = _mm256_loadu_si256((const __m256i *)(seeds + KW_PAGE_WORDS) + k);
    for (int i = 0; i < KW_PAGE_WORDS; i += KW_FOLD_LANES)
        for (int k = 0; k < 4; k++) {
            __m256i plain = _mm256_loadu_si256((const __m256i *)(words + i) + k);
            __m256i word = _mm256_xor_si256(plain, _mm256_loadu_si256((const __m256i *)(seeds + i) + k));
            __m256i product = _mm256_mul_epu32(word, _mm256_srli_epi64(word, 32));
            lane[k] = _mm256_add_epi64(lane[k], _mm256_add_epi64(product, _mm256_shuffle_epi32(plain, 0x4e)));
        }
    for (int k = 0; k < 4; k++)
        _mm256_storeu_si256((__m256i *)out + k, lane[k]);
    return kw_fold_lanes(out, seeds);
}
#endif

/* wide 0: the plain twin. */
static inline uint64_t kw_hash_page(const uint64_t *words, const uint64_t *seeds, int wide)
{
#if defined(__x86_64__)
    if (wide && __builtin_cpu_supports("avx2"))
        return kw_hash_page_avx2(words, seeds);
#endif
    return kw_hash_page_plain(words, seeds);
}
#endif
