# Declarations of _layout.h: the structs behind the record arrays (same names and offsets as the dtypes of layout.py),
# the named bits, and the check macro of the checked build. No code lives here.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "_layout.h" nogil:
    void kw_check(bint ok) noexcept
    bint KW_LIKELY(bint x) noexcept
    bint KW_UNLIKELY(bint x) noexcept

    enum:
        FRAME_ANON
        FRAME_KSM
        FRAME_HEAD
        FRAME_TAIL
        FRAME_ZERO
        FRAME_FILE
        FRAME_HUGETLB
        FRAME_DEVICE
        FRAME_LRU
        FRAME_LOCKED
        FRAME_USED
        FRAME_ELIGIBLE_MASK
        VM_READ
        VM_WRITE
        VM_EXEC
        VM_SHARED
        VM_PFNMAP
        VM_LOCKED
        VM_IO
        VM_DONTCOPY
        VM_DONTEXPAND
        VM_NORESERVE
        VM_HUGETLB
        VM_UFFD_WP
        VM_MIXEDMAP
        VM_HUGEPAGE
        VM_NOHUGEPAGE
        MM_EXITING
        MM_MERGE_ANY
        MM_HAS_SLOT
        MM_THP_DISABLED
        MM_USED
        MM_BACKING
        MM_DEVICE
        THP_NEVER
        THP_MADVISE
        THP_ALWAYS
        VM_MAYBE_GUARD
        VM_MAYREAD
        VM_MAYWRITE
        VM_MAYEXEC
        VM_MAYSHARE
        VM_SEQ_READ
        VM_RAND_READ
        VM_ACCOUNT
        VM_WIPEONFORK
        VM_DONTDUMP
        ITEM_STABLE
        ITEM_UNSTABLE
        ITEM_HAS_CHECKSUM
        ITEM_USED
        NODE_USED
        NODE_CHAIN
        NODE_DUP
        NODE_MIGRATE
        STRATEGY_RANGE
        STRATEGY_PER_ADDRESS
        EV_START
        EV_STOP
        EV_ENTER
        EV_EXIT
        EV_NEW
        EV_ADD
        EV_ZERO
        EV_RMI
        EV_RMK
        KW_OK
        KW_NONE
        KW_EBADENTRY
        KW_ENOROWS
        KW_ENOFRAMES
        KW_ENOITEMS
        KW_ENONODES
        KW_ENOVMAS
        KW_EBUSYENTRY
        BAD_FRAME
        BAD_LOOP
        BAD_LEAF
        BAD_PFN
        BAD_NONPRESENT
        BAD_BUDGET
        PERM_R
        PERM_W
        PERM_X
        PERM_U

    const uint64_t VM_MERGEABLE, VM_DROPPABLE, VM_DAX
    const uint64_t PTE_P
    const uint64_t PTE_RW
    const uint64_t PTE_US
    const uint64_t PTE_PWT
    const uint64_t PTE_PCD
    const uint64_t PTE_A
    const uint64_t PTE_D
    const uint64_t PTE_PS
    const uint64_t PTE_PAT
    const uint64_t PTE_G
    const uint64_t PTE_PROTNONE
    const uint64_t PTE_SPECIAL
    const uint64_t PTE_UFFD_WP
    const uint64_t PTE_SOFT_DIRTY
    const uint64_t PTE_PAT_LARGE
    const uint64_t PTE_NX
    const uint64_t PTE_PFN_MASK
    const uint64_t KW_PAGE_SIZE
    const uint64_t KW_PMD_SIZE
    const uint64_t KW_PUD_SIZE

    ctypedef struct kw_vma:
        uint64_t start, end
        uint64_t flags
        uint64_t pgoff
        int32_t next, prev
        int32_t mm
        int32_t backing
        int32_t anon_vma
        int32_t page_shift
        int64_t reserved

    ctypedef struct kw_mm:
        int64_t root
        int32_t vma_first
        uint32_t flags
        int32_t slot_next, slot_prev
        int32_t rmap_list
        int32_t nr_vmas
        int64_t nr_rmap_items
        int64_t nr_merging
        int64_t nr_zero
        int64_t nr_tables
        uint64_t epoch
        int64_t reserved
        int64_t length

    ctypedef struct kw_item:
        uint64_t addr
        uint64_t checksum
        int32_t next
        int32_t mm
        int32_t node
        uint8_t flags
        uint8_t seq
        uint8_t age
        uint8_t skips

    ctypedef struct kw_link:
        uint64_t key
        int32_t left, right
        int32_t parent
        uint32_t aux

    ctypedef struct kw_node:
        uint64_t key
        uint64_t prune_time
        int64_t pfn
        int32_t left, right, parent
        uint8_t color
        uint8_t flags
        uint8_t nid
        uint8_t reserved
        int32_t items
        int32_t count
        int32_t dups
        int32_t dup_next, dup_prev
        int32_t chain

    ctypedef struct kw_rb:
        int32_t left, right, parent
        uint8_t colour

    ctypedef struct kw_ctl:
        int64_t rows_used, rows_free, rows_live, rows_cap
        int64_t vmas_used, vmas_free, vmas_cap
        int64_t mms_used, mms_free, mms_cap
        int64_t items_used, items_free, items_live, items_cap
        int64_t nodes_used, nodes_free, nodes_live, nodes_cap
        int64_t nr_frames, nr_nodes, nr_blocks
        int64_t frames_used
        int64_t anon_vmas
        int64_t huge_zero
        int64_t lru_batch
        int64_t lru_pending
        int64_t levels
        int64_t thp
        int64_t vma_serial
        int64_t changes
        int64_t lru[64]

    ctypedef struct kw_ksm:
        int64_t run, pages_to_scan, sleep_millisecs, smart_scan, use_zero_pages, max_page_sharing, merge_across_nodes
        int64_t prune_millisecs
        int64_t advisor_mode, advisor_max_cpu, advisor_min_pages, advisor_max_pages, advisor_target
        int64_t pages_scanned, pages_skipped, pages_shared, pages_sharing, pages_unshared, zero_pages
        int64_t chains, dups
        int64_t now_ms
        int64_t migrate
        int64_t events_on
        int64_t long_wait
        int64_t generation
        int64_t tree_generation
        int64_t changes_seen
        int64_t advisor[8]

    ctypedef struct kw_cursor:
        uint64_t address
        uint64_t seqnr
        int32_t slot
        int32_t link
        int32_t vma
        int32_t strategy
        int32_t real_lookups
        int32_t reserved
        uint64_t cache_base
        int64_t cache_row
        uint64_t cache_end

    ctypedef struct kw_work:
        int64_t entries[6]
        int64_t ptes
        int64_t searches
        int64_t cached
        int64_t lookups
        int64_t lookup_misses
        int64_t callbacks
        int64_t resched
        int64_t longest
        int64_t holes
        int64_t found

    ctypedef struct kw_bad:
        uint64_t addr
        uint64_t raw
        int32_t level
        int32_t kind

    ctypedef struct kw_tables:
        uint64_t *rows
        int64_t nrows
        const uint64_t *frames
        const int64_t *order
        int64_t root
        int64_t levels
        int64_t max_pfn
        int64_t readonly
        int64_t budget
        kw_bad *bad
        int64_t bad_cap
        int64_t bad_count
        kw_work *work

    ctypedef struct kw_mapping:
        uint64_t addr, pfn
        uint64_t flags
        uint8_t level
        uint8_t perms
        uint16_t reserved
        uint32_t nr

    ctypedef struct kw_event:
        int32_t kind
        int32_t mm
        int64_t a, b
        int32_t node
        int32_t err

    ctypedef struct kw_world:
        uint64_t *rows
        kw_ctl *ctl
        kw_vma *vmas
        kw_mm *mms
        kw_item *items
        kw_link *links
        kw_node *nodes
        kw_ksm *ksm
        kw_cursor *cursor
        kw_work *work
        int32_t *trees
        uint16_t *f_flags
        uint8_t *f_nid
        uint32_t *f_head
        int32_t *f_mapcount
        int32_t *f_refs
        uint64_t *f_key
        int32_t *f_node
        uint64_t *b_free
        uint16_t *b_count
        int32_t *b_next
        int32_t *b_prev
        int32_t *b_heads
        kw_event *events
        int64_t *event_pos
        void (*leave_tree)(kw_world *w, int32_t item) noexcept nogil
        void (*start_scan)(kw_world *w) noexcept nogil
