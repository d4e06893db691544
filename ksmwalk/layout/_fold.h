/* A hash of a page that finds pages which may be equal. It proves nothing: whether they are, their bytes have to tell.
 *
 * Multiply and fold, as wyhash does: two words of 64 bits are multiplied, the halves of the product laid over each other.
 * Eight chains that don't wait for each other keep the multiplier busy, so that it is done with a page as fast as the page
 * comes out of the second cache. The seeds are random numbers of the caller's. */
#ifndef KSMWALK_FOLD_H
#define KSMWALK_FOLD_H
#include <stdint.h>

enum { KW_PAGE_WORDS = 512, KW_FOLD_LANES = 8, KW_FOLD_SEEDS = 2 * KW_FOLD_LANES };

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

static inline uint64_t kw_hash_page(const uint64_t *words, const uint64_t *seeds)
{
    uint64_t lane[KW_FOLD_LANES], out = KW_PAGE_WORDS;
    for (int k = 0; k < KW_FOLD_LANES; k++)
        lane[k] = seeds[KW_FOLD_LANES + k];
    for (int i = 0; i < KW_PAGE_WORDS; i += 2 * KW_FOLD_LANES)
        for (int k = 0; k < KW_FOLD_LANES; k++)
            lane[k] = kw_fold(words[i + 2 * k] ^ seeds[k], words[i + 2 * k + 1] ^ lane[k]);
    for (int k = 0; k < KW_FOLD_LANES; k++)
        out = kw_fold(out ^ seeds[k], lane[k] ^ seeds[KW_FOLD_LANES + k]);
    return out;
}
#endif
