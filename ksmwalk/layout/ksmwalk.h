/* The engine of ksmwalk for C: a table of functions, handed out by the installed package through a capsule.
 *
 *     #include "ksmwalk.h"                    // before any header of the C library: it includes Python.h
 *     kw_start(NULL);                         // in a program of one's own, once; in a module: kw_import()
 *     kw_host *host;
 *     kw->host_new(1 << 20, 1, 4, THP_NEVER, &host);
 *     kw_world *w = kw->host_world(host);
 *     int32_t mm = kw->mm_new(w, 0);
 *
 * Where the table is fetched by another file of the same program, KSMWALK_NO_PYTHON defined before the #include leaves
 * Python.h and the two functions that need it out. Directory of the header: ksmwalk.get_include().
 *
 * The rules for all functions:
 *   - An answer is 0, an index, a count or an address; a negative one is one of the KW_* codes of _layout.h or -errno,
 *     and kw->code_text puts it into words. After an error nothing has changed unless the function says otherwise.
 *   - w is what host_world gave for a Host that is still there; pointers are good for as many elements as the call says.
 *     That is not checked. Numbers of address spaces and ranges are: -ESRCH, -EINVAL.
 *   - addr, start, end, length are bytes; addresses of pages are multiples of 4096, ranges half-open.
 *   - A content is a key: equal keys are equal pages, their order is that of the bytes, the empty page is 0.
 *   - Functions named host_* take Python's lock (GIL) and may be called with or without it; all others call no Python and
 *     need no lock, but for one look for signals every 4096 visits or every gigabyte.
 *   - One thread at a time per Host, Python's threads included (host_enter).
 *   - The arrays behind w (its pointers and records are in _layout.h) may be read at any time and never move. */
#ifndef KSMWALK_H
#define KSMWALK_H
#ifndef KSMWALK_NO_PYTHON
#ifndef PY_SSIZE_T_CLEAN
#define PY_SSIZE_T_CLEAN
#endif
#include <Python.h>
#endif
#include <errno.h>
#include <stdint.h>
#include "_layout.h"
#include "_walk.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Raised when a function that was there changes its meaning; what is added at the end of kw_api changes its size only. */
#define KSMWALK_API 1
/* Differs where the records of _layout.h differ in size from those the package was built with. */
#define KSMWALK_RECORDS                                                                                                  \
    ((uint64_t)sizeof(kw_world) << 48 ^ (uint64_t)sizeof(kw_ctl) << 36 ^ (uint64_t)sizeof(kw_ksm) << 24                   \
     ^ (uint64_t)sizeof(kw_mm) << 18 ^ (uint64_t)sizeof(kw_vma) << 12 ^ (uint64_t)sizeof(kw_node) << 6                    \
     ^ (uint64_t)sizeof(kw_item) ^ (uint64_t)sizeof(kw_walk_state) << 30 ^ (uint64_t)sizeof(kw_link) << 42               \
     ^ (uint64_t)sizeof(kw_cursor) << 33 ^ (uint64_t)sizeof(kw_work) << 9 ^ (uint64_t)sizeof(kw_bad) << 3                 \
     ^ (uint64_t)sizeof(kw_anon) << 39 ^ (uint64_t)sizeof(kw_owners) << 21 ^ (uint64_t)sizeof(kw_batch) << 15             \
     ^ (uint64_t)sizeof(kw_slot) << 45 ^ (uint64_t)sizeof(kw_event) << 27 ^ (uint64_t)sizeof(kw_mapping) << 51)
#define KW_ANYWHERE UINT64_MAX  /* mm_map, mm_remap: wherever there is room */

/* A reference to a Python Host: it is the PyObject * of it. */
typedef struct kw_host kw_host;

/* The counters of /sys/kernel/mm/ksm, with the kernel's names. */
typedef struct {
    int64_t pages_scanned, pages_skipped, full_scans, pages_shared, pages_sharing, pages_unshared, pages_volatile;
    int64_t ksm_zero_pages, stable_node_chains, stable_node_dups;
    int64_t general_profit;  /* bytes */
} kw_counters;

typedef struct {
    uint32_t version;        /* KSMWALK_API of the package */
    uint32_t size;           /* bytes of this struct in the package */
    uint64_t records;        /* KSMWALK_RECORDS of the package */

    /* ---- texts */
    const char *(*code_text)(int64_t code);
        /* What a code says, in English; it stays. */
    const char *(*host_error)(void);
        /* What the last host_* call was refused for, in Python's words; good until the next one. */

    /* ---- Hosts */
    int (*host_new)(int64_t nr_frames, int nr_nodes, int levels, int thp, kw_host **host);
        /* A new Host: frames of 4 KiB, NUMA nodes, 4 or 5 levels of page tables, THP_*. -EINVAL: a number it can't have;
         * -ENOMEM; *host NULL then. */
    int (*host_of)(void *object, kw_host **host);
        /* The Host that a PyObject * is, with a reference of its own. -EINVAL: it is none. */
    void (*host_free)(kw_host *host);
        /* Gives the reference back; NULL is fine. The last one ends the Host, and w with it. */
    kw_world *(*host_world)(kw_host *host);
    int (*host_enter)(kw_host *host);
    int (*host_leave)(kw_host *host);
        /* Between the two, calls from other Python threads raise RuntimeError instead of meeting us. -EBUSY: another
         * thread is at work. Needed only where Python threads can reach the Host meanwhile. */
    int (*host_tunable)(kw_host *host, const char *name, int64_t value);
        /* Writes a file of /sys/kernel/mm/ksm: -errno as the kernel refuses it, -ENOENT: there is none. run = 2 unmerges
         * everything, run = 1 changes nothing by itself: scan does the work. */

    /* ---- address spaces: system calls */
    int32_t (*mm_new)(kw_world *w, int nid);
        /* The number of a new, empty one that prefers a NUMA node. */
    int32_t (*mm_fork)(kw_world *w, int32_t mm);
    int32_t (*mm_exec)(kw_world *w, int32_t mm);
        /* The number of the fresh one; the old one has exited. */
    int (*mm_exit)(kw_world *w, int32_t mm);
        /* One that Python holds a door to is better ended there. */
    int64_t (*mm_map)(kw_world *w, int32_t mm, uint64_t addr, uint64_t length, uint64_t flags);
        /* Private anonymous memory, at addr (what is there goes) or KW_ANYWHERE; its address. flags: VM_READ, VM_WRITE,
         * VM_EXEC, VM_HUGEPAGE, VM_NOHUGEPAGE, VM_NORESERVE, VM_DONTCOPY, VM_WIPEONFORK. -ENOMEM: no place. */
    int (*mm_unmap)(kw_world *w, int32_t mm, uint64_t addr, uint64_t length);
    int (*mm_protect)(kw_world *w, int32_t mm, uint64_t addr, uint64_t length, uint64_t prot);
        /* prot: VM_READ, VM_WRITE, VM_EXEC. At a hole it stops with -ENOMEM; what lies before it is done. */
    int (*mm_advise)(kw_world *w, int32_t mm, uint64_t addr, uint64_t length, int advice);
        /* advice: a number of madvise(2), 12 is MADV_MERGEABLE. -ENOMEM: there were holes, the rest is done. */
    int64_t (*mm_remap)(kw_world *w, int32_t mm, uint64_t addr, uint64_t old_length, uint64_t length, uint64_t to);
        /* Its address now; it may move, and with `to` other than KW_ANYWHERE it moves there. */
    int (*mm_merge_any)(kw_world *w, int32_t mm, int on);
        /* prctl(PR_SET_MEMORY_MERGE). */

    /* ---- contents */
    int (*write)(kw_world *w, int32_t mm, uint64_t addr, uint64_t key);
        /* A store that leaves its page with content key, the fault it takes included. -EFAULT: no area, or no right to.
         * KW_ENOFRAMES, KW_ENOROWS. */
    int64_t (*read)(kw_world *w, int32_t mm, uint64_t addr);
        /* The frame a load sees, the fault it takes included; else as write. */
    int64_t (*write_range)(kw_world *w, int32_t mm, uint64_t addr, int64_t n, const uint64_t *keys, int64_t stride,
                           int *code);
        /* Store keys[0], keys[stride], ... into n pages in a row. The number done; *code: 0, or why it stopped there. */
    int64_t (*write_at)(kw_world *w, int32_t mm, const uint64_t *addrs, int64_t n, const uint64_t *keys, int64_t stride,
                        int *code);
        /* The same at n addresses in this order, page aligned; random ones are fetched ahead. */
    int64_t (*look)(kw_world *w, int32_t mm, uint64_t addr, int64_t n, uint64_t *keys, int64_t *pfns);
        /* Contents and frames of n pages in a row without a fault: 0 and -1 where nothing is mapped. Either may be NULL. */
    int64_t (*translate)(kw_world *w, int32_t mm, uint64_t addr, uint64_t *entry, int *level);
        /* The frame that addr is mapped to, without a fault, with the raw entry (PTE_*) and its level (1, 2, 3), either of
         * which may be NULL; KW_NONE: nothing. The frame of a KSM page has FRAME_KSM in w->f_flags. */

    /* ---- KSM */
    int64_t (*scan)(kw_world *w, int64_t n, int *code);
        /* One batch of ksmd, at most n visits, whatever `run` says; how many there were. It ends at the end of a full scan.
         * *code: 0, or why it ended early; what was merged stays so. */
    int32_t (*scan_next)(kw_world *w, int64_t *pfn);
    int (*examine)(kw_world *w, int32_t item, int64_t pfn);
    void (*scan_begin)(kw_world *w);
        /* The same by its parts: the next (rmap_item, frame), 0 at the end of a full scan; one visit; and what comes first,
         * and again when anything else has changed the Host. See ksm/_engine.pxd. */
    void (*counters)(kw_world *w, kw_counters *counters);

    /* ---- page tables */
    int (*walk)(kw_world *w, int32_t mm, uint64_t start, uint64_t end, const kw_walk_ops *ops, void *user, int vmas);
        /* Calls ops for the entries of [start, end): vma by vma, or (vmas 0) as the tables are. 0, or what a callback
         * returned. KW_EBADENTRY, noted in w->bad: one that can't be followed, which ends it. */
    int64_t (*mappings)(kw_world *w, int32_t mm, uint64_t start, uint64_t end, int runs, kw_mapping *out, int64_t cap);
        /* All mappings of the range in ascending order, runs joined where asked for; how many. KW_EFULL: more than cap. */

    /* ---- frames */
    void (*drain)(kw_world *w);
        /* The batches of all CPUs, of new pages and of locked ones, let go of their references. */
} kw_api;

/* The table; NULL until kw_start or kw_import was called in any file of this program or module. */
__attribute__((weak, visibility("hidden"))) const kw_api *kw;

#ifndef KSMWALK_NO_PYTHON
/* Fetches the table: in a module that Python calls, at its import, with the GIL held. 0; -1 with an exception set. */
static inline int kw_import(void) {
    PyObject *module = PyImport_ImportModule("ksmwalk.embedding._capsule");
    const kw_api *api = NULL;
    if (module != NULL)
        api = (const kw_api *)PyCapsule_Import("ksmwalk.embedding._capsule.api", 0);
    Py_XDECREF(module);
    if (api == NULL)
        return -1;
    if (api->version != KSMWALK_API || api->size < sizeof(kw_api) || api->records != KSMWALK_RECORDS) {
        PyErr_SetString(PyExc_ImportError, "compiled with the headers of another ksmwalk than the one that is installed:"
                                           " compile again");
        return -1;
    }
    kw = api;
    return 0;
}

/* Starts a Python inside this program, if none runs, and fetches the table. The Python lock is let go of.
 *
 * python: the path of the interpreter whose packages are to be found (that of a virtual environment, say); NULL: what the
 * environment variable KSMWALK_PYTHON says, else the `python3` of PATH. 0; -1: the reason is on stderr. */
static inline int kw_start(const char *python) {
    int code, fresh = !Py_IsInitialized();
    PyGILState_STATE lock = PyGILState_LOCKED;
    if (kw != NULL)
        return 0;
    if (fresh) {
        PyConfig config;
        PyStatus status;
        PyConfig_InitPythonConfig(&config);
        config.install_signal_handlers = 0;
        config.parse_argv = 0;
        if (python == NULL)
            python = getenv("KSMWALK_PYTHON");
        status = PyConfig_SetBytesString(&config, &config.program_name, python != NULL ? python : "python3");
        if (!PyStatus_Exception(status))
            status = Py_InitializeFromConfig(&config);
        PyConfig_Clear(&config);
        if (PyStatus_Exception(status)) {
            fprintf(stderr, "ksmwalk: no Python: %s\n", status.err_msg != NULL ? status.err_msg : "?");
            return -1;
        }
    } else {
        lock = PyGILState_Ensure();
    }
    code = kw_import();
    if (code < 0)
        PyErr_Print();
    if (fresh)
        PyEval_SaveThread();
    else
        PyGILState_Release(lock);
    return code;
}
#endif

#ifdef __cplusplus
}
#endif
#endif
