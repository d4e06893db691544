/* What decides in a scan's stead: functions that the scan asks (`ksm/_policy.pxd` says when and what they answer), and
 * what the scan keeps between two batches. */
#ifndef KSMWALK_POLICY_H
#define KSMWALK_POLICY_H
#include "_layout.h"

enum { KW_SCAN = 0, KW_PAUSE = 1, KW_LEAVE = 2 };                                     /* an area */
enum { KW_PAGE_OUT = 0, KW_PAGE_COMPARE = 1, KW_PAGE_NOW = 2, KW_PAGE_ZERO = 3, KW_PAGE_LEAVE = 4 }; /* a page */

/* Pages of one table, or of one huge page, that belong to one area; all arrays have room for 512. */
typedef struct {
    int32_t mm, vma;
    int32_t n;
    uint64_t addr[512];    /* bytes, ascending */
    int64_t pfn[512];
    int32_t item[512];     /* rmap_item, 0: none yet */
    uint64_t entry[512];   /* the entry that maps it, as the hardware has it */
    uint8_t act[512];      /* KW_PAGE_*: KW_PAGE_COMPARE when asked, to be changed */
} kw_pages;

/* How an area fared: pages looked at, and of those the ones merged now, merged before but copied by a write since, and
 * changed since the last look. */
typedef struct {
    int64_t visited, merged, broken, changed;
} kw_tally;

typedef struct {
    void *data;            /* handed to every function */
    int (*begin)(kw_world *w, void *data);
    int32_t (*order)(kw_world *w, void *data, int32_t *mms, int32_t n);
    int (*domain)(kw_world *w, void *data, int32_t mm);
    int (*area)(kw_world *w, void *data, int32_t mm, int32_t vma);
    int (*pages)(kw_world *w, void *data, kw_pages *pages);
    int (*page)(kw_world *w, void *data, int32_t item, int64_t pfn);
    int (*after)(kw_world *w, void *data, int32_t mm, int32_t vma, const kw_tally *tally);
} kw_policy;

typedef struct {
    kw_policy policy;
    int64_t area_serial;   /* vma whose answer in this scan is known, 0: none */
    int32_t area_mm, area_vma;
    int32_t area_answer;
    int32_t area_open;     /* its tally has not been handed out yet */
    kw_tally tally;
    uint64_t table_base;   /* of the pages whose answers are known, 1: none */
    uint8_t act[512];
    kw_pages pages;
    uint64_t *left_out;    /* [mms_cap] number of the last scan + 1 that left an mm out */
    uint64_t *rested;      /* [mms_cap] the same, when none of its items was in an unstable tree any more */
} kw_choosing;
#endif
