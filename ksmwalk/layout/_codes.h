/* The named bits and codes of the records: with _layout.h, which includes it, the one place where they are said. A comment
 * `Name(Kind), PREFIX: text` in front of them makes them a class of layout.py. */
#ifndef KSMWALK_CODES_H
#define KSMWALK_CODES_H
/* Frame(IntFlag), FRAME_: What a frame is (`Frames.flags`). */
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
    FRAME_EXCLUSIVE = 0x800, /* anonymous, and of one mapping only: a store goes into it whatever refers to it */
    FRAME_LAZY = 0x1000,   /* MADV_FREE: reclaim frees it if nothing was stored since */
    FRAME_DIRTY = 0x2000,  /* its content is nowhere else, whatever its ptes say: MADV_FREE asks for a single mapping */
    FRAME_MLOCKED = 0x4000, /* locked, whatever its areas say: reclaim passes it by */
    FRAME_REFERENCED = 0x8000, /* used otherwise than through a page table: in use for khugepaged, whoever maps it */
};
enum { FRAME_ELIGIBLE_MASK = 0x81 }; /* a page for KSM: of these bits exactly FRAME_ANON is set */
/* LoadedPage(IntFlag), LOADED_: What a page to be loaded is, besides the FRAME_* bits of its frame (`host._load`). */
enum {
    LOADED_WRITABLE = 0x1000,  /* may be stored to without a fault */
    LOADED_LEAF = 0x2000,      /* one of the 512 of a leaf pmd, all of which stand together */
    LOADED_FOLIO = 0x4000,     /* of a folio of 512 frames that begins at the frame's own multiple of 512 */
    LOADED_FRESH = 0x8000,     /* an answer: nobody had the frame before */
};
/* Vm(IntFlag), VM_: vm_flags of a vma, with the kernel's bit values (DAX is ours). */
#define VM_READ 0x1ull
#define VM_WRITE 0x2ull
#define VM_EXEC 0x4ull
#define VM_SHARED 0x8ull
#define VM_MAYREAD 0x10ull
#define VM_MAYWRITE 0x20ull
#define VM_MAYEXEC 0x40ull
#define VM_MAYSHARE 0x80ull
#define VM_GROWSDOWN 0x100ull
#define VM_UFFD_MISSING 0x200ull
#define VM_PFNMAP 0x400ull
#define VM_MAYBE_GUARD 0x800ull       /* guard markers were put in once */
#define VM_UFFD_WP 0x1000ull
#define VM_LOCKED 0x2000ull
#define VM_IO 0x4000ull
#define VM_SEQ_READ 0x8000ull
#define VM_RAND_READ 0x10000ull
#define VM_DONTCOPY 0x20000ull
#define VM_DONTEXPAND 0x40000ull
#define VM_LOCKONFAULT 0x80000ull
#define VM_ACCOUNT 0x100000ull
#define VM_NORESERVE 0x200000ull
#define VM_HUGETLB 0x400000ull
#define VM_WIPEONFORK 0x2000000ull
#define VM_DONTDUMP 0x4000000ull
#define VM_MIXEDMAP 0x10000000ull
#define VM_HUGEPAGE 0x20000000ull
#define VM_NOHUGEPAGE 0x40000000ull
#define VM_MERGEABLE 0x80000000ull
#define VM_DROPPABLE 0x10000000000ull
#define VM_DAX 0x20000000000ull       /* the kernel asks the file instead */
#define VM_UFFD_MINOR 0x40000000000ull /* ours too, with the one below */
#define VM_UFFD_ASYNC 0x80000000000ull /* a store to a protected page takes the protection away, nobody is told */
/* MmFlag(IntFlag), MM_: State of an address space. */
enum {
    MM_EXITING = 1, MM_MERGE_ANY = 2, MM_HAS_SLOT = 4, MM_THP_DISABLED = 8, MM_USED = 16,
    MM_BACKING = 32,       /* no address space: the pages of a file or of shared memory, by offset */
    MM_DEVICE = 64,        /* MM_BACKING whose pages are zone-device (dax) */
    MM_LOCK_FUTURE = 128,  /* mlockall(MCL_FUTURE): what is mapped from now on is locked */
    MM_LOCK_ONFAULT = 256, /* and brought in page by page only (MCL_ONFAULT) */
};
/* Switch(IntFlag), SWITCH_: In what a kernel differs from Linux 6.18.44; `ksmwalk.kernels` says which has which. */
#define SWITCH_SCAN_EACH 0x1ull /* scans look up one address after the other */
#define SWITCH_UNMERGE_RANGE 0x2ull /* unmerging walks ranges */
#define SWITCH_STABLE_FIRST 0x4ull /* a visit searches the stable tree before it compares the checksum */
#define SWITCH_ZERO_UNTRACKED 0x8ull /* a page merged with the zero page is an ordinary zero page */
#define SWITCH_SPLIT_KEEPS_EMPTY 0x10ull /* empty parts of a split huge page stay pages */
#define SWITCH_OLD_CHAINS 0x20ull /* full dups are never found, chains of one dup stay chains */
#define SWITCH_NO_SMART_SCAN 0x40ull
#define SWITCH_FORK_INHERITS 0x80ull /* a child starts with the counts of its parent */
#define SWITCH_FORKED_HUGE_FAILS 0x100ull /* of several mappings of a huge page a split takes one a time, and fails until the last */
#define SWITCH_FORGETS 0x200ull /* a merge forgets checksum and age */
#define SWITCH_NONE_NO_PARTNER 0x400ull /* a search that meets a PROT_NONE page gives up, move_pages finds none, unmerging leaves it */
#define SWITCH_KEEPS_PROTECTED 0x800ull /* unmerging leaves KSM pages that userfaultfd write-protects */
#define SWITCH_POKE_FAILS 0x1000ull /* a debugger can't store where the area does not allow it */
#define SWITCH_MOVE_ONE_AREA 0x2000ull /* mremap moves no several areas */
#define SWITCH_NO_MERGE_ANY 0x4000ull /* no PR_SET_MEMORY_MERGE */
#define SWITCH_NO_COLLAPSE 0x8000ull /* no MADV_COLLAPSE */
#define SWITCH_BITS_LIE 0x10000ull /* /proc/kpageflags calls every anonymous page KSM's */
#define SWITCH_OLD_CALLS 0x20000ull /* no MADV_POPULATE_*, and other calls that take less */
#define SWITCH_NO_GUARD 0x40000ull /* no MADV_GUARD_*; process_madvise for oneself is as for others */
#define SWITCH_OLD_UFFD 0x80000ull /* no UFFDIO_MOVE, no asynchronous protection, none of absent anonymous pages */
#define SWITCH_COLLAPSES_NOTHING 0x100000ull /* MADV_COLLAPSE of no whole huge page is no error */
#define SWITCH_PARTS_COPIED 0x200000ull /* a store copies a part of a huge page that was shared, whoever has the page still */
#define SWITCH_LAST_PART_STAYS 0x400000ull /* but not where it is all that is mapped of the page */
#define SWITCH_TABLES_KEPT 0x800000ull /* MADV_DONTNEED frees no page tables */
#define SWITCH_MOVE_FORGETS 0x4000000000000ull /* above the version: a folio that moved piece by piece is as if it had not */
#define SWITCH_STAYS_PROTECTED 0x8000000000000ull /* no area is registered without the protection that it is registered with */
#define SWITCH_LAZY_NOT_COLLAPSED 0x10000000000000ull /* khugepaged leaves tables alone with a clean page that MADV_FREE marked */
#define SWITCH_READ_ONLY_STAYS 0x20000000000000ull /* small pages none of which may be stored to do not become a huge one */
#define SWITCH_REST_STAYS_LOCKED 0x40000000000000ull /* MREMAP_DONTUNMAP unlocks what it moves, not all of its area */
#define SWITCH_EMPTY_NOT_JOINED 0x80000000000000ull /* an area with pages that changes does not join one that never had any */
#define SWITCH_HUGE_ZERO_SPLIT 0x100000000000000ull /* a store to the huge zero page makes small ones of it */
#define SWITCH_SMALL_COLLAPSED 0x200000000000000ull /* khugepaged makes folios of the sizes allowed that are smaller than a huge page */
#define SWITCH_CHILD_ACCESSED 0x400000000000000ull /* a child's pages count as accessed where its parent's do */
#define SWITCH_ADVISED_ONCE 0x800000000000000ull /* MADV_HUGEPAGE where it was given before does nothing at all */
#define SWITCH_LAZY_EACH 0x1000000000000000ull /* of a folio that MADV_FREE marked page by page goes, not runs of pages */
/* Thp(IntEnum), THP_: Huge pages for anonymous memory: never, where madvise asks for them, always. */
enum { THP_NEVER = 0, THP_MADVISE = 1, THP_ALWAYS = 2 };
/* ItemFlag(IntFlag), ITEM_: State of an rmap_item. */
enum { ITEM_STABLE = 1, ITEM_UNSTABLE = 2, ITEM_HAS_CHECKSUM = 4, ITEM_USED = 8 };
/* NodeFlag(IntFlag), NODE_: State of a stable node. RESTLESS: the head of a chain that a search which passes it may change,
 * prune times aside. */
enum { NODE_USED = 1, NODE_CHAIN = 2, NODE_DUP = 4, NODE_MIGRATE = 8, NODE_RESTLESS = 16 };
/* SlotFlag(IntFlag), SLOT_: State of a swap slot. KSM: what went out was a KSM page. */
enum { SLOT_USED = 1, SLOT_KSM = 2, SLOT_EXCLUSIVE = 4 };
/* maybe shared; to be split when it moves; used again; in the swap cache, where reclaim put it in vain; looked at by the
 * shrinker, which does so once */
enum { FOLIO_SHARED = 1, FOLIO_PARTED = 2, FOLIO_ACTIVE = 4, FOLIO_CACHED = 8, FOLIO_LOOKED = 16 };
/* Batch(IntEnum), BATCH_: Pages that wait together on a CPU: as many as the kernel lets, Linux 5.10 and 6.1, and the most that
 * `lru_batch` of a Host may be set to. */
enum { BATCH_SIZE = 31, BATCH_OLD = 15, BATCH_MOST = 63 };
/* Strategy(IntEnum), STRATEGY_: How the cursor finds the next page: the 2025 range walk, or one address at a time. */
enum { STRATEGY_RANGE = 0, STRATEGY_PER_ADDRESS = 1 };
/* Event(IntEnum), EV_: The ksm:* trace events a Host can record. */
enum {
    EV_START = 1, EV_STOP = 2, EV_ENTER = 3, EV_EXIT = 4, EV_NEW = 5, EV_ADD = 6, EV_ZERO = 7, EV_RMI = 8, EV_RMK = 9,
};
/* Operation(IntEnum), OP_: What an event of a trace does. */
enum { OP_READ = 1, OP_WRITE = 2, OP_MAP = 3, OP_UNMAP = 4, OP_ADVISE = 5, OP_FORK = 6, OP_EXIT = 7 };
/* Bad(IntEnum), BAD_: Why an entry can't be followed. */
enum {
    BAD_FRAME = 1,         /* points to a table frame that is not there */
    BAD_LOOP = 2,          /* points to a table that is being walked already */
    BAD_LEAF = 3,          /* PS bit at a level that has no leaves */
    BAD_PFN = 4,           /* leaf beyond the end of memory */
    BAD_NONPRESENT = 5,    /* neither none nor present above the pmd level */
    BAD_BUDGET = 6,        /* more tables than any honest image has: tables shared beyond reason */
};
/* Perm(IntFlag), PERM_: Effective permissions of a mapping over all levels. */
enum { PERM_R = 1, PERM_W = 2, PERM_X = 4, PERM_U = 8 };
/* Code(IntEnum), KW_E: What compiled functions answer besides a count, an index or -errno; `errors.check` tells them apart. */
enum {
    KW_OK = 0,
    KW_NONE = -1,             /* nothing there: an answer, not an error */
    /* Errors that no errno stands for: below all of those (4095 is the highest). */
    KW_EBADENTRY = -5001,     /* an entry that can't be followed: kw_world.bad */
    KW_ENOROWS = -5002,       /* arena of table pages full */
    KW_ENOFRAMES = -5003,     /* no frame left */
    KW_ENOITEMS = -5004,
    KW_ENONODES = -5005,
    KW_ENOVMAS = -5006,
    KW_ENOMMS = -5007,
    KW_EBUSYENTRY = -5008,    /* something is mapped there already, or somebody holds a reference */
    KW_EFULL = -5009,         /* the output has no room for more */
    KW_EINTR = -5010,         /* a signal came: what is done is done, the rest is not */
    KW_EPOLICY = -5011,       /* a policy raised */
};
enum { KW_RING = 65536, KW_BORN = 1024 }; /* records in the ring of events; from one page's age to the next */
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
#define PTE_CLEAN 0x10000000000000ull  /* ours, of the bits left to software: not stored to since Mm.clear_touched */
#define PTE_NX 0x8000000000000000ull
#define PTE_PFN_MASK 0x000ffffffffff000ull
#define KW_PAGE_SIZE 4096ull
#define KW_PMD_SIZE 0x200000ull
#define KW_PUD_SIZE 0x40000000ull
#endif
