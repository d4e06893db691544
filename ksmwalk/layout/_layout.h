/* The structs behind the record arrays: one C struct per numpy record dtype of layout.py, same names, same offsets
 * (tests/test_layout.py holds them together), and the check macro of the checked build. */
#ifndef KSMWALK_LAYOUT_H
#define KSMWALK_LAYOUT_H
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

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


/* Named bits and codes; layout.py repeats them for Python and tests/test_layout.py holds the two together. */
enum {
    FRAME_ANON = 0x1,      /* anonymous (a KSM page too) */
    FRAME_KSM = 0x2,
    FRAME_HEAD = 0x4,      /* first frame of a huge folio */
    FRAME_TAIL = 0x8,      /* another frame of a huge folio */
    FRAME_ZERO = 0x10,     /* shared zero page, small or huge */
    FRAME_FILE = 0x20,     /* page cache or shmem */
    FRAME_HUGETLB = 0x40,
    FRAME_DEVICE = 0x80,   /* zone-device */
    FRAME_LRU = 0x100,     /* on a per-CPU LRU batch, which holds a reference */
    FRAME_LOCKED = 0x200,  /* page lock held by somebody else */
    FRAME_USED = 0x400,    /* allocated */
    FRAME_ELIGIBLE_MASK = 0x81, /* a page for KSM: of these bits exactly FRAME_ANON is set */
};
enum {
    VM_READ = 0x1, VM_WRITE = 0x2, VM_EXEC = 0x4, VM_SHARED = 0x8,
    VM_PFNMAP = 0x400, VM_LOCKED = 0x2000, VM_IO = 0x4000,
    VM_DONTCOPY = 0x20000, VM_DONTEXPAND = 0x40000, VM_NORESERVE = 0x200000, VM_HUGETLB = 0x400000,
    VM_UFFD_WP = 0x1000, VM_MIXEDMAP = 0x10000000, VM_HUGEPAGE = 0x20000000, VM_NOHUGEPAGE = 0x40000000,
};
#define VM_MERGEABLE 0x80000000ull
#define VM_DROPPABLE 0x10000000000ull
#define VM_DAX 0x20000000000ull       /* ours: the kernel asks the file instead */
enum {
    VM_MAYBE_GUARD = 0x800, /* guard markers were put in once */
    VM_MAYREAD = 0x10, VM_MAYWRITE = 0x20, VM_MAYEXEC = 0x40, VM_MAYSHARE = 0x80, VM_SEQ_READ = 0x8000, VM_RAND_READ = 0x10000,
    VM_ACCOUNT = 0x100000, VM_WIPEONFORK = 0x2000000, VM_DONTDUMP = 0x4000000,
};
enum { MM_EXITING = 1, MM_MERGE_ANY = 2, MM_HAS_SLOT = 4, MM_THP_DISABLED = 8, MM_USED = 16,
       MM_BACKING = 32, /* no address space: the pages of a file or of shared memory, by offset */
       MM_DEVICE = 64   /* MM_BACKING whose pages are zone-device (dax) */ };
enum { THP_NEVER = 0, THP_MADVISE = 1, THP_ALWAYS = 2 };
enum { ITEM_STABLE = 1, ITEM_UNSTABLE = 2, ITEM_HAS_CHECKSUM = 4, ITEM_USED = 8 };
enum { NODE_USED = 1, NODE_CHAIN = 2, NODE_DUP = 4, NODE_MIGRATE = 8 };
enum { STRATEGY_RANGE = 0, STRATEGY_PER_ADDRESS = 1 };
enum { EV_START = 1, EV_STOP, EV_ENTER, EV_EXIT, EV_NEW, EV_ADD, EV_ZERO, EV_RMI, EV_RMK };
/* What the compiled functions answer with besides a count or an index: always negative, never a valid index. */
enum {
    KW_OK = 0,
    KW_NONE = -1,          /* nothing there */
    KW_EBADENTRY = -2,     /* an entry that cannot be followed; the details are in kw_bad */
    KW_ENOROWS = -3,       /* arena of table pages full */
    KW_ENOFRAMES = -4,     /* no frame left */
    KW_ENOITEMS = -5,
    KW_ENONODES = -6,
    KW_ENOVMAS = -7,
    KW_EBUSYENTRY = -8,    /* map: something is mapped there already */
};
/* Page-table entry bits. */
#define PTE_P 0x1ull
#define PTE_RW 0x2ull
#define PTE_US 0x4ull
#define PTE_PWT 0x8ull
#define PTE_PCD 0x10ull
#define PTE_A 0x20ull
#define PTE_D 0x40ull
#define PTE_PS 0x80ull         /* at pmd and pud level; PTE_PAT at pte level */
#define PTE_PAT 0x80ull
#define PTE_G 0x100ull
#define PTE_PROTNONE 0x100ull  /* when P is clear */
#define PTE_SPECIAL 0x200ull
#define PTE_UFFD_WP 0x400ull
#define PTE_SOFT_DIRTY 0x800ull
#define PTE_PAT_LARGE 0x1000ull
#define PTE_NX 0x8000000000000000ull
#define PTE_PFN_MASK 0x000ffffffffff000ull
#define KW_PAGE_SIZE 4096ull
#define KW_PMD_SIZE 0x200000ull
#define KW_PUD_SIZE 0x40000000ull

/* A virtual memory area. Linked in ascending order per mm; record 0 is "none". */
typedef struct {
    uint64_t start, end; /* bytes, half-open, page aligned */
    uint64_t flags;      /* VM_* bits */
    uint64_t pgoff;      /* pages: offset into the backing object */
    int32_t next, prev;  /* neighbours in the mm, 0: none */
    int32_t mm;
    int32_t backing;     /* 0: anonymous private; else number of the object mapped */
    int32_t anon_vma;    /* 0: never had an anonymous page */
    int32_t page_shift;  /* 12, or 21/30 for hugetlb */
    int64_t reserved;    /* serial number * 2 + 1 if its anon_vma chain came through a fork */
} kw_vma;

/* An address space with its mm slot. Record 0 is the head of the circular slot list. */
typedef struct {
    int64_t root;        /* row of the top table */
    int32_t vma_first;   /* lowest vma, 0: none */
    uint32_t flags;      /* MM_* bits */
    int32_t slot_next, slot_prev;
    int32_t rmap_list;   /* first (lowest) rmap_item, 0: none */
    int32_t nr_vmas;
    int64_t nr_rmap_items;
    int64_t nr_merging;  /* rmap_items on stable nodes */
    int64_t nr_zero;     /* zero pages placed by KSM */
    int64_t nr_tables;   /* table pages, the top one included */
    uint64_t epoch;      /* raised by whatever changes a mapping or a content of this mm */
    int64_t reserved;    /* preferred NUMA node;  MM_BACKING: vmas that map it */
    int64_t length;      /* MM_BACKING: pages it has, faults beyond fail;  else: the vma found last, a hint */
} kw_mm;

/* The part of an rmap_item that every pass streams through: 32 bytes. Record 0 is "none". */
typedef struct {
    uint64_t addr;       /* bytes, page aligned */
    uint64_t checksum;   /* content key at the last visit; valid if ITEM_HAS_CHECKSUM */
    int32_t next;        /* next higher item of the mm, or next free record */
    int32_t mm;
    int32_t node;        /* stable node it is listed on, if ITEM_STABLE */
    uint8_t flags;       /* ITEM_* bits */
    uint8_t seq;         /* low 8 bits of the scan that inserted it, if ITEM_UNSTABLE */
    uint8_t age;
    uint8_t skips;       /* remaining_skips */
} kw_item;

/* The part used only while in a tree or on a node's list: 24 bytes, same index as its item. */
typedef struct {
    uint64_t key;        /* unstable: content key when inserted */
    int32_t left, right; /* unstable: children;  stable: next and previous item of the node's list */
    int32_t parent;      /* unstable */
    uint32_t aux;        /* unstable: colour in bit 0; above it the low bits of ksm.generation when `key` was looked up */
} kw_link;

/* A stable node: a KSM page, or the head of a chain. Record 0 is "none". */
typedef struct {
    uint64_t key;
    uint64_t prune_time; /* chain head: milliseconds, when it was pruned last; else the frame, kept when pfn goes stale */
    int64_t pfn;         /* -1: stale (its page is gone), or a chain head */
    int32_t left, right, parent; /* stable tree; next free record in `left`; next and previous while NODE_MIGRATE */
    uint8_t color;       /* these four are a kw_rb */
    uint8_t flags;       /* NODE_* bits */
    uint8_t nid;         /* NUMA tree it is in */
    uint8_t reserved;
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

/* Arena bookkeeping, one record a host: how many records were ever used, and the first free one. */
typedef struct {
    int64_t rows_used, rows_free, rows_live, rows_cap;
    int64_t vmas_used, vmas_free, vmas_cap;
    int64_t mms_used, mms_free, mms_cap;
    int64_t items_used, items_free, items_live, items_cap;
    int64_t nodes_used, nodes_free, nodes_live, nodes_cap;
    int64_t nr_frames, nr_nodes, nr_blocks;
    int64_t frames_used;   /* frames allocated */
    int64_t anon_vmas;     /* anon_vma families handed out */
    int64_t huge_zero;     /* pfn of the huge zero page, -1: none yet */
    int64_t lru_batch;     /* size of the LRU batch that holds a reference to new pages, 0: none (drained at once) */
    int64_t lru_pending;   /* pages in it */
    int64_t levels;
    int64_t thp;           /* huge pages for anonymous memory: THP_* */
    int64_t vma_serial;    /* vmas ever made */
    int64_t changes;       /* raised with every epoch: what looked before can tell in one read that something changed */
    int64_t lru[64];       /* pfns in the batch */
} kw_ctl;

/* Tunables and counters of one KSM. */
typedef struct {
    int64_t run, pages_to_scan, sleep_millisecs, smart_scan, use_zero_pages, max_page_sharing, merge_across_nodes;
    int64_t prune_millisecs;
    int64_t advisor_mode, advisor_max_cpu, advisor_min_pages, advisor_max_pages, advisor_target;
    int64_t pages_scanned, pages_skipped, pages_shared, pages_sharing, pages_unshared, zero_pages;
    int64_t chains, dups;
    int64_t now_ms;        /* the clock, an input */
    int64_t migrate;       /* first stable node waiting to change its NUMA tree, 0: none */
    int64_t events_on;
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
    int32_t reserved;
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

/* An entry that can't be followed. */
typedef struct {
    uint64_t addr;
    uint64_t raw;
    int32_t level;
    int32_t kind;          /* BAD_* */
} kw_bad;
enum {
    BAD_FRAME = 1,   /* points to a table frame that is not there */
    BAD_LOOP,        /* points to a table that is being walked already */
    BAD_LEAF,        /* PS bit at a level that has no leaves */
    BAD_PFN,         /* leaf beyond the end of memory */
    BAD_NONPRESENT,  /* neither none nor present above the pmd level */
    BAD_BUDGET,      /* more tables than any honest image has: tables shared beyond reason */
};

/* One set of page tables as the walkers see it: a Host's arena, or a read-only image of someone else's memory. */
typedef struct {
    uint64_t *rows;        /* [nrows][512] */
    int64_t nrows;
    const uint64_t *frames;/* image that is not whole: frame numbers in ascending order, else NULL */
    const int64_t *order;  /* row of frames[i] */
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
    uint16_t reserved;
    uint32_t nr;           /* entries in the run, 1 where runs were not asked for */
} kw_mapping;
enum { PERM_R = 1, PERM_W = 2, PERM_X = 4, PERM_U = 8 };

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
    uint64_t *rows;        /* [rows_cap][512]; row number = frame number of the table page */
    kw_ctl *ctl;
    kw_vma *vmas;
    kw_mm *mms;
    kw_item *items;
    kw_link *links;
    kw_node *nodes;
    kw_ksm *ksm;
    kw_cursor *cursor;
    kw_work *work;
    int32_t *trees;        /* [2][nr_nodes]: root of the stable (0) and unstable (1) tree of a NUMA node */
    /* frames, indexed by pfn */
    uint16_t *f_flags;     /* FRAME_* bits */
    uint8_t *f_nid;
    uint32_t *f_head;      /* pfn of the folio's head */
    int32_t *f_mapcount;
    int32_t *f_refs;       /* at the folio's head: references, mappings included */
    uint64_t *f_key;       /* content */
    int32_t *f_node;       /* stable node of a KSM page, 0: none */
    /* the frame allocator: blocks of 512 frames */
    uint64_t *b_free;      /* [nr_blocks][8]: bit set = free */
    uint16_t *b_count;     /* free frames in the block */
    int32_t *b_next, *b_prev;
    int32_t *b_heads;      /* [2][nr_nodes]: first partly free (0) and first wholly free (1) block */
    kw_event *events;      /* ring */
    int64_t *event_pos;    /* [0] written, [1] capacity */
    /* The door through which the merge engine takes an item out of its tree before the cursor frees or skips it;
     * NULL while there is no merge engine. */
    void (*leave_tree)(kw_world *w, int32_t item);
    /* What the merge engine does when a new full scan starts (drain LRU batches, drop nodes to migrate); or NULL. */
    void (*start_scan)(kw_world *w);
};
#endif
