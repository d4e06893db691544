/* The records of all arrays and the arrays of a Host: with _codes.h, their named bits and codes, the one place where they are
 * said. From both generate.py (see there) writes what Cython and Python have to know. */
#ifndef KSMWALK_LAYOUT_H
#define KSMWALK_LAYOUT_H
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include "_codes.h"
/* In the checked and trace builds every index into an arena goes through this; in the release build it is nothing. */
#ifdef KSMWALK_CHECKED
#define KW_CHECK(cond)                                                                         \
    do {                                                                                       \
        if (!(cond)) {                                                                         \
            fprintf(stderr, "ksmwalk: %s:%d: check failed: %s\n", __FILE__, __LINE__, #cond);  \
            abort();                                                                           \
        }                                                                                      \
    } while (0)
#else
#define KW_CHECK(cond) ((void)0)
#endif
static inline void kw_check(int ok) { (void)ok; KW_CHECK(ok); }
#define KW_LIKELY(x) __builtin_expect(!!(x), 1)
#define KW_UNLIKELY(x) __builtin_expect(!!(x), 0)
/* A virtual memory area. Linked in ascending order per mm; record 0 is "none". */
typedef struct {
    uint64_t start, end; /* bytes, half-open, page aligned */
    uint64_t flags;      /* VM_* bits */
    uint64_t pgoff;      /* pages: offset into the backing object */
    int32_t next, prev;  /* neighbours in the mm, 0: none */
    int32_t mm;
    int32_t backing;     /* 0: anonymous private; else number of the object mapped */
    int32_t anon_vma;    /* record of anons: that of new anonymous pages, 0: it never had one */
    uint16_t page_shift; /* 12, or 21/30 for hugetlb */
    uint16_t watcher;    /* number of the userfaultfd that watches it; 0 too where none does */
    int64_t serial;      /* number of this vma among all ever made */
    int32_t anon_chain;  /* record of anons: its pages have this one or one of those above it, 0: none */
    int32_t policy;      /* NUMA node that new pages go to + 1, 0: that of the mm */
    int64_t linked;      /* when it was put among its relatives, by number: those that begin at one page stand in this order */
} kw_vma;
/* What areas that one came from the other by fork know one another by (struct anon_vma). Record 0 is "none". */
typedef struct {
    int32_t above;       /* the next of the chain, 0: the root of a family; next free record */
    int32_t parent;      /* what new pages of the area got that was forked, 0: none */
    int32_t number;      /* among all ever made */
    int32_t areas;       /* areas whose new pages get it */
    int32_t children;    /* records whose parent it is */
    int32_t users;       /* areas whose chain begins here, and records that it is above */
} kw_anon;

/* An address space with its mm slot. Record 0 is the head of the circular slot list. */
typedef struct {
    int64_t root;        /* row of the top table */
    int32_t vma_first;   /* lowest vma, 0: none; next of the list (ctl.mms_free, ctl.mms_exited) it is on once it is gone */
    uint32_t flags;      /* MM_* bits */
    int32_t slot_next, slot_prev;
    int32_t rmap_list;   /* first (lowest) rmap_item, 0: none */
    int32_t nr_vmas;
    int64_t nr_rmap_items;
    int64_t nr_merging;  /* rmap_items on stable nodes */
    int64_t nr_zero;     /* zero pages placed by KSM */
    int64_t nr_tables;   /* table pages, the top one included */
    uint64_t epoch;      /* raised by whatever changes a mapping or a content of this mm */
    int64_t serial;      /* number of this address space among all ever made */
    int32_t nid;         /* preferred NUMA node */
    int32_t vma_hint;    /* the vma found last */
    int32_t domain;      /* merged only with pages of address spaces of the same number */
    int32_t cpu;         /* CPU its tasks run on: matters for batches only */
    int32_t tasks;       /* tasks besides the first that live in it */
    int32_t khuge;       /* its number among those that khugepaged got to know, 0: it knows nothing of it */
    int64_t users;       /* MM_BACKING: vmas that map it, and its maker while it has not let go */
    int64_t nr_pages;    /* MM_BACKING: pages it has, faults beyond fail */
    uint64_t start_brk, brk; /* where its heap begins (0: it has none) and ends */
    int32_t swap_next, swap_prev; /* neighbours on the list of those that were swapped out in part, 0: none */
} kw_mm;

/* The part of an rmap_item that every pass streams through: 32 bytes. Record 0 is "none". */
typedef struct {
    uint64_t addr;       /* bytes, page aligned */
    uint64_t checksum;   /* content key at the last visit; valid if ITEM_HAS_CHECKSUM */
    int32_t next;        /* next higher item of the mm, or next free record */
    int32_t mm;
    int32_t node;        /* stable node it is listed on, if ITEM_STABLE; else 0, or the one that went with it on its list */
    uint8_t flags;       /* ITEM_* bits */
    uint8_t seq;         /* low 8 bits of the scan that inserted it, if ITEM_UNSTABLE */
    uint8_t age;
    uint8_t skips;       /* remaining_skips */
} kw_item;
/* The part used only while in a tree or on a node's list: 24 bytes, same index as its item. */
typedef struct {
    uint64_t key;        /* unstable: content key when inserted */
    int32_t left, right; /* unstable: children;  stable: next and previous item of the node's list */
    int32_t parent;      /* unstable;  stable: number of its area's anon_vma (kw_anon), 0: there was no swap */
    uint32_t aux;        /* unstable: colour in bit 0; above it the low bits of ksm.generation when `key` was looked up */
} kw_link;

/* A stable node: a KSM page, or the head of a chain. Record 0 is "none". */
typedef struct {
    uint64_t key;
    uint64_t prune_time; /* chain head: milliseconds, when it was pruned last */
    int32_t pfn;         /* -1: stale (its page is gone), or a chain head */
    int32_t last_pfn;    /* the same, kept when pfn goes stale */
    int32_t left, right, parent; /* stable tree; next free record in `left`; next and previous while NODE_MIGRATE */
    uint8_t colour;      /* these four are a kw_rb */
    uint8_t flags;       /* NODE_* bits */
    uint16_t tree;       /* pair of trees it belongs to: domain * nr_nodes + NUMA node (0 while merging across them) */
    int32_t items;       /* first rmap_item of its list (newest), 0: none */
    int32_t count;       /* rmap_items on the list */
    int32_t dups;        /* chain head: first dup */
    int32_t dup_next, dup_prev; /* dup: neighbours in the chain, 0: none */
    int32_t chain;       /* dup: its chain head */
} kw_node;
/* The red-black links inside a kw_link (from `left` on) and a kw_node (likewise): what _trees.pxd works on. */
typedef struct {
    int32_t left, right, parent;
    uint8_t colour;      /* bit 0; the other bits belong to the record (little-endian) */
} kw_rb;

/* Who maps a folio of several pages: the record number head / 4 of one (no such folio is smaller, and each is aligned to
 * its size). "Maybe shared" is not counted by mappings but by two owners, as the kernel does. */
typedef struct {
    int32_t mm[2];       /* owners, 0: free */
    int32_t nr[2];       /* mappings of each; a leaf pmd counts 1 */
    int32_t total;       /* mappings of the folio, likewise */
    uint16_t order;      /* it has 1 << order pages */
    uint16_t shared;     /* FOLIO_* bits */
} kw_owners;

/* What waits on one CPU, a reference held to each. */
typedef struct {
    int32_t nr_lru;      /* new pages, up to ctl.lru_batch */
    int32_t nr_mlock;    /* small pages of locked areas */
    int64_t lru[64];     /* pfns */
    int64_t mlock[32];
    int64_t nr_lazy;     /* small pages that MADV_FREE marked */
    int64_t lazy[32];
} kw_batch;
/* A slot of the swap device. Record 0 is "none". */
typedef struct {
    uint64_t key;        /* content */
    uint64_t addr;       /* where the page of the swap cache came in first, bytes */
    int32_t pfn;         /* frame in the swap cache, 0: none */
    int32_t count;       /* entries that mean it; next free record while nobody does */
    int32_t root;        /* number of the family (kw_anon) of the area where that page came in */
    int32_t flags;       /* SLOT_* bits */
} kw_slot;
/* Arena bookkeeping, one record a host: how many records were ever used, and the first free one. */
typedef struct {
    int64_t rows_used, rows_free, rows_live, rows_cap;
    int64_t vmas_used, vmas_free, vmas_cap, anons_used, anons_free, anons_cap;
    int64_t mms_used, mms_free, mms_cap;
    int64_t mms_exited;    /* first of those that exited and wait until ksmd has cleaned their slots, 0: none */
    int64_t items_used, items_free, items_live, items_cap;
    int64_t stable_used, stable_free, stable_live, stable_cap;  /* stable nodes */
    int64_t trees_used, trees_cap; /* pairs of trees: nr_nodes for each domain up to the highest */
    int64_t nr_frames, nr_nodes, nr_blocks, nr_quads; /* the last: nr_frames / 4, rounded up */
    int64_t frames_used;   /* frames allocated */
    int64_t anon_vmas, anon_links; /* records of anons ever made; times that areas were put among their relatives */
    int64_t huge_zero;     /* pfn of the huge zero page, -1: none yet */
    int64_t lru_batch;     /* size of the LRU batch that holds a reference to new pages, 0: none (drained at once) */
    int64_t nr_cpus;       /* CPUs, each with its batches */
    int64_t kernel;        /* SWITCH_* bits, and the version between them: `kernels.BITS` */
    int64_t mthp[10];      /* [order]: folios of so many pages for anonymous memory: THP_* */
    int64_t khuge_none, khuge_shared, khuge_swap; /* khugepaged's max_ptes_none, max_ptes_shared, max_ptes_swap */
    int64_t slots_used, slots_free, slots_live, slots_cap; /* swap slots */
    int64_t slots_most;    /* pages of the swap device, 0: no swap */
    int64_t swap_first, born; /* the mm that swapoff begins with, 0: none; KW_BORN times the pages made while there was swap */
    int64_t folios;        /* folios of several pages ever made: 0 means that no record of their owners was written */
    int64_t dma_pins;      /* DMA pins held */
    int64_t levels, thp;   /* of page tables; huge pages for anonymous memory: THP_* */
    int64_t changes;       /* raised with every epoch: what looked before can tell in one read that something changed */
    int64_t vma_serial, mm_serial, khuges; /* vmas and address spaces ever made; those that khugepaged got to know */
} kw_ctl;
/* Tunables and counters of one KSM. */
typedef struct {
    int64_t run, pages_to_scan, sleep_millisecs, smart_scan, use_zero_pages, max_page_sharing, merge_across_nodes;
    int64_t prune_millisecs;
    int64_t advisor_mode, advisor_max_cpu, advisor_min_pages, advisor_max_pages, advisor_target;
    int64_t pages_scanned, pages_skipped, pages_shared, pages_sharing, pages_unshared, zero_pages;
    int64_t chains, dups, now_ms; /* the clock is an input */
    int64_t migrate;       /* first stable node waiting to change its NUMA tree, 0: none */
    int64_t events_on;
    int64_t cpu;           /* CPU that ksmd runs on */
    int64_t long_wait;     /* ksmd found nothing to do and sleeps until somebody registers */
    int64_t generation;    /* raised when others were found to have changed an mm since the engine looked last */
    int64_t tree_generation; /* generation when the unstable trees were emptied last */
    int64_t changes_seen;  /* ctl.changes when the engine looked last, its own changes included */
    int64_t advisor[8];    /* the advisor's own state */
} kw_ksm;
/* The scan cursor (struct ksm_scan). */
typedef struct {
    uint64_t address;
    uint64_t seqnr;        /* full scans completed */
    int32_t slot;          /* mm the cursor is in, 0: at the head (between scans) */
    int32_t link;          /* item after which rmap_list continues, 0: from the mm's first */
    int32_t vma;           /* hint: vma the address was last in */
    int32_t strategy;      /* 0 range, 1 per-address */
    int32_t real_lookups;  /* per-address: perform the lookups that meet a hole instead of counting them */
    int32_t unused;
    uint64_t cache_base;   /* 2 MiB region whose pte table the last search used, 1: none. Good within one batch only */
    int64_t cache_row;     /* that table */
    uint64_t cache_end;    /* end of the part of the region that lies in the vma */
} kw_cursor;
/* Work counts. */
typedef struct {
    int64_t entries[6];    /* [level]: entries read at level 5 (pgd) .. 2 (pmd); [0], [1] unused */
    int64_t ptes;          /* ptes read */
    int64_t searches;      /* range walks started by the finder with a full descent */
    int64_t cached;        /* range walks that went on in the table of the one before; a descent reads an entry a level */
    int64_t lookups;       /* one-address lookups */
    int64_t lookup_misses; /* of those, the ones that met a hole or no eligible page */
    int64_t callbacks;
    int64_t resched;       /* scheduling points passed */
    int64_t longest;       /* most entries and ptes read, or addresses looked up, between two pages handed out */
    int64_t holes;         /* none entries jumped over, all levels above pte */
    int64_t found;         /* pages handed out or skipped by smart scan */
} kw_work;

/* What ksmd did with pages: counts beside those of kw_ksm, for those who ask what it costs. Only differences mean
 * something: they are not kept, and begin at 0 with the arrays' binding. */
typedef struct {
    int64_t first;         /* rmap_items made */
    int64_t huge;          /* pages handed out or skipped that the range walk found in a huge page */
    int64_t merged;        /* visits of pages that are KSM's already */
    int64_t changed;       /* visits that ended with noting the content */
    int64_t hits;          /* searches of the stable tree that found the content */
    int64_t inserted;      /* searches of the unstable tree that ended with putting the item into it */
    int64_t merges;        /* pairs that became a KSM page */
    int64_t zeroed;        /* pages that were mapped to the zero page */
    int64_t splits;        /* huge pages split */
    int64_t joined;        /* rmap_items put on the list of a stable node */
    int64_t ksm_swpin_copy, cow_ksm; /* pages copied from the swap cache; KSM pages copied, by stores or unmerging */
} kw_done;
/* An entry that can't be followed. */
typedef struct {
    uint64_t addr, raw;
    int32_t level, kind;   /* kind: BAD_* */
} kw_bad;
/* One set of page tables as the walkers see it: a Host's arena, or a read-only image of someone else's memory. */
typedef struct {
    uint64_t *rows;        /* [nrows][512] */
    int64_t nrows;
    const uint64_t *frames;/* image that is not whole: frame numbers in ascending order, else NULL */
    const int64_t *order;  /* row of frames[i] */
    const int32_t *owner;  /* arena: whose table each row is (kw_world.r_owner), image: NULL */
    int64_t root;          /* row of the top table */
    int64_t levels;        /* 4 or 5 */
    int64_t max_pfn;       /* leaves at or beyond it are bad, 0: no check */
    int64_t readonly;
    int64_t budget;        /* tables that one walk may visit */
    kw_bad *bad;           /* the first bad_cap bad entries */
    int64_t bad_cap;
    int64_t bad_count;     /* all of them */
    kw_work *work;
} kw_tables;
/* One mapping, or a run of them: 32 bytes, dtype layout.MAPPING. */
typedef struct {
    uint64_t addr, pfn;
    uint64_t flags;        /* the raw entry without its frame bits */
    uint8_t level;         /* 1 pte, 2 pmd, 3 pud */
    uint8_t perms;         /* effective over all levels: PERM_* */
    uint16_t unused;
    uint32_t nr;           /* entries in the run, 1 where runs were not asked for */
} kw_mapping;
/* One event of a trace that a Host is driven with: 32 bytes, dtype layout.TRACE_EVENT. */
typedef struct {
    int64_t time;          /* nanoseconds since the trace began; events are applied in the order they stand in */
    uint64_t addr;         /* bytes; a load or store means the page it lies in */
    uint64_t key;          /* write: content; map, unmap, advise: length in bytes; fork: the child's number */
    int32_t mm;            /* number of the process within the trace */
    uint16_t operation;    /* OP_* */
    uint16_t arg;          /* map: PERM_* bits, 0: read and write; advise: number of the advice */
} kw_trace_event;
/* One event of the ksm:* trace points. */
typedef struct {
    int32_t kind;          /* EV_* */
    int32_t mm;
    int64_t a, b;          /* start/stop: seq, items; new/add: pfn, vaddr; ... */
    int32_t node;          /* stable node concerned */
    int32_t err;           /* 0 or -errno */
} kw_event;
/* Everything at once: pointers into the numpy arrays a Host owns. The arenas never move (see arena.py), so these are
 * made once and stay good for the Host's life. */
typedef struct kw_world kw_world;
struct kw_world {
    /* Arrays: `[length][columns]` in numbers or fields of kw_ctl; ~: huge pages are worth while for it. The records ever
     * used are kept: up to the field of the same name that ends in _used where the length ends in _cap. */
    kw_ctl *ctl;           /* [1] */
    uint64_t *rows;        /* [rows_cap][512]~ table pages; row number = frame number of the table page */
    int32_t *r_owner;      /* [rows_cap] whose table page it is: number of the mm * 8 + level; 0: free */
    kw_vma *vmas;          /* [vmas_cap] */
    kw_anon *anons;        /* [anons_cap] */
    kw_mm *mms;            /* [mms_cap] */
    kw_item *items;        /* [items_cap]~ */
    kw_link *links;        /* [items_cap]~ */
    kw_node *nodes;        /* [stable_cap]~ */
    kw_ksm *ksm;           /* [1] */
    kw_cursor *cursor;     /* [1] */
    kw_work *work;         /* [1] */
    kw_bad *bad;           /* [1] the entry that ended the last call with KW_EBADENTRY */
    int32_t *trees;        /* [trees_cap][2] roots of the stable (0) and unstable (1) tree of a domain and NUMA node */
    /* frames, indexed by pfn */
    uint16_t *f_flags;     /* [nr_frames]~ FRAME_* bits */
    uint8_t *f_nid;        /* [nr_frames]~ */
    uint32_t *f_head;      /* [nr_frames]~ pfn of the head of a folio of several pages, else 0 */
    int32_t *f_mapcount;   /* [nr_frames]~ */
    int32_t *f_extra;      /* [nr_frames]~ at the folio's head: references that are no mappings */
    uint64_t *f_key;       /* [nr_frames]~ content */
    int32_t *f_node;       /* [nr_frames]~ stable node of a KSM page, 0: none */
    int32_t *slot_of;      /* [nr_frames] swap slot of a page in the swap cache, 0: none. Not written without swap */
    int64_t *born_of;      /* [nr_frames] its age: ctl.born when it was made, negative: came_unlocked. Not written before there is swap */
    int32_t *pins_of;      /* [nr_frames] at the folio's head: DMA pins, references all. Not written without any */
    kw_owners *owners;     /* [nr_quads] of folios of several pages, by head / 4. Not written without any */
    kw_batch *batches;     /* [nr_cpus] */
    kw_slot *slots;        /* [slots_cap] */
    /* the frame allocator: blocks of 512 frames */
    uint64_t *b_free;      /* [nr_blocks][8] bit set = free */
    uint16_t *b_count;     /* [nr_blocks] free frames in the block */
    int32_t *b_next;       /* [nr_blocks] */
    int32_t *b_prev;       /* [nr_blocks] */
    int32_t *b_heads;      /* [2*nr_nodes] first partly free (0) and first wholly free (1) block, -1: none */
    kw_event *events;      /* [KW_RING] ring */
    int64_t *event_pos;    /* [1] events ever written */
    /* How the merge engine takes an item out of its tree before the cursor frees or skips it; NULL while there is none. */
    void (*leave_tree)(kw_world *w, int32_t item);
    /* What the merge engine does when a new full scan starts (drain LRU batches, drop nodes to migrate); or NULL. */
    void (*start_scan)(kw_world *w);
    /* Table pages freed since the arrays were bound: who keeps a pointer into a table across calls looks whether it moved. */
    int64_t rows_freed;
    int64_t freed_again, nr_freed, freed[1024]; /* what the call frees is taken first, the last first; 2 + node: of that node */
    int64_t nr_waited; /* of locked pages on its CPU's batch, before it */
    int64_t put_back;      /* slots of the LRU batches that pages take which are free by now, see khugepaged */
    kw_done done;
    int64_t nodes_gone;    /* stable nodes whose page is gone, once ksm/_late.pxd has counted them */
    void *late;            /* its scratch; NULL: none */
    /* Build what is built late before `trees`, `links` or the links of `nodes` are read; let go of the scratch. Or NULL. */
    void (*settle)(kw_world *w);
    void (*forget)(kw_world *w);
};
#endif
