/* The rival: the page-table walker one writes in an afternoon. Nested loops, one entry at a time, nothing clever; compiled
 * at -O3 by the bench. It writes the same 32-byte records as ksmwalk, into an array the caller has made large enough. */
#include <stdint.h>
#include <stddef.h>
#include <sys/ioctl.h>

struct mapping {
    uint64_t addr, pfn, flags;
    uint8_t level, perms;
    uint16_t unused;
    uint32_t nr;
};

#define P 0x1ull
#define RW 0x2ull
#define US 0x4ull
#define PS 0x80ull
#define G 0x100ull
#define NX 0x8000000000000000ull
#define FRAME 0x000ffffffffff000ull

struct walk {
    const uint64_t *rows;
    size_t nrows;
    struct mapping *out;
    size_t n, cap;
};

static void emit(struct walk *w, uint64_t addr, uint64_t e, int level, uint64_t perms)
{
    uint64_t frame = FRAME;
    if (level > 1)
        frame &= ~((1ull << (3 + 9 * level)) - 1);
    if (w->n == w->cap)
        return;
    struct mapping *m = &w->out[w->n++];
    uint64_t decoded = e & P ? e : e ^ FRAME;
    m->addr = addr;
    m->pfn = (decoded & frame) >> 12;
    m->flags = e & ~frame;
    m->level = level;
    m->perms = 1 | (perms & RW) | (perms & NX ? 0 : 4) | (perms & US ? 8 : 0);
    m->unused = 0;
    m->nr = 1;
}

/* perms: RW and US are set while every level allows them, NX once any level forbids. */
static void level(struct walk *w, uint64_t row, int lv, uint64_t base, uint64_t perms)
{
    const uint64_t *table = w->rows + row * 512;
    uint64_t size = 1ull << (3 + 9 * lv);
    for (int i = 0; i < 512; i++) {
        uint64_t e = table[i];
        if (!(e & (P | G)) && !(lv == 2 && (e & PS)))
            continue;
        uint64_t addr = base + i * size;
        uint64_t below = (perms & e & (RW | US)) | ((perms | e) & NX);
        if (lv == 1 || (lv <= 3 && (e & PS)))
            emit(w, addr, e, lv, below);
        else if ((e & FRAME) >> 12 < w->nrows)
            level(w, (e & FRAME) >> 12, lv - 1, addr, below);
    }
}

size_t rival_walk(const uint64_t *rows, size_t nrows, uint64_t root, int levels, struct mapping *out, size_t cap)
{
    struct walk w = {rows, nrows, out, 0, cap};
    level(&w, root, levels, 0, RW | US);
    return w.n;
}

/* The same walk many times over: what it takes without the call from Python. */
size_t rival_walk_again(const uint64_t *rows, size_t nrows, uint64_t root, int levels, struct mapping *out, size_t cap,
                        size_t times)
{
    size_t n = 0;
    while (times--) {
        __asm__ volatile("" ::: "memory");
        n += rival_walk(rows, nrows, root, levels, out, cap);
    }
    return n;
}

/* PAGEMAP_SCAN over [start, end): the number of regions, or -1. walk_end of a finished call is stale where more than 512
 * regions were found, so a short answer means done and a full one goes on from the end of the last region. */
struct page_region { uint64_t start, end, categories; };
struct pm_scan_arg {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define PAGEMAP_SCAN_IOCTL _IOWR('f', 16, struct pm_scan_arg)

int64_t pagemap_scan(int fd, uint64_t start, uint64_t end, struct page_region *vec, uint64_t len, uint64_t mask,
                     uint64_t give, uint64_t *pages)
{
    int64_t total = 0;
    *pages = 0;
    while (start < end) {
        struct pm_scan_arg arg = {.size = sizeof(arg), .start = start, .end = end, .vec = (uint64_t)(uintptr_t)vec,
                                  .vec_len = len, .category_mask = mask, .return_mask = give};
        int n = ioctl(fd, PAGEMAP_SCAN_IOCTL, &arg);
        if (n < 0)
            return -1;
        for (int i = 0; i < n; i++)
            *pages += (vec[i].end - vec[i].start) >> 12;
        total += n;
        if ((uint64_t)n < len)
            return total;
        start = vec[n - 1].end > arg.walk_end ? vec[n - 1].end : arg.walk_end;
    }
    return total;
}
