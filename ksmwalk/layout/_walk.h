/* What a walk with function pointers is given and hands to them: the one place where it is said, for C (ksmwalk.h) and
 * for Cython (tables/_walk.pxd), where the contract of the walk stands too. */
#ifndef KSMWALK_WALK_H
#define KSMWALK_WALK_H
#include "_layout.h"

enum {
    KW_ACTION_SUBTREE = 0,    /* descend */
    KW_ACTION_CONTINUE = 1,   /* don't descend below this entry */
    KW_ACTION_AGAIN = 2,      /* read the entry again and call again */
};

typedef struct kw_walk_state kw_walk_state;
typedef int (*kw_entry_fn)(uint64_t *entry, uint64_t addr, uint64_t next, kw_walk_state *walk);
typedef int (*kw_range_fn)(uint64_t start, uint64_t end, kw_walk_state *walk);
typedef void (*kw_done_fn)(kw_walk_state *walk);
typedef int (*kw_hole_fn)(uint64_t addr, uint64_t next, int depth, kw_walk_state *walk);

/* NULL: not set. A callback returns 0 to go on; any other value ends the walk and is its result. */
typedef struct {
    kw_entry_fn pgd_entry, p4d_entry, pud_entry, pmd_entry, pte_entry, hugetlb_entry;
    kw_hole_fn pte_hole;
    kw_range_fn test_walk;    /* asked for every vma: 0 walk it, > 0 skip it, < 0 end the walk with that */
    kw_range_fn pre_vma;
    kw_done_fn post_vma;
} kw_walk_ops;

struct kw_walk_state {
    const kw_walk_ops *ops;
    void *user;               /* the caller's own */
    kw_tables *tables;
    kw_world *world;          /* NULL: an image */
    int32_t mm;               /* 0: none */
    int32_t vma;              /* 0: none (outside every vma, or a walk without vmas) */
    int action;               /* KW_ACTION_*: a callback of a pud or pmd may set it */
    int level;                /* of the entry a callback is called for */
    int lowest;               /* lowest level that has a callback */
    int stop_on_bad;
    int failed;               /* what the walk ends with after a post_vma that failed; else 0 */
    int64_t rows[6];          /* of the tables the walk stands on, by level; -1: none */
    int64_t freed;            /* world->rows_freed when they were last known to be there */
};
#endif
