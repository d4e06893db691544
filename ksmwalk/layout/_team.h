/* Threads that share one piece of work for as long as a call takes, and the few atomic steps they need. */
#ifndef KSMWALK_TEAM_H
#define KSMWALK_TEAM_H
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#define KW_TEAM_MOST 256

typedef void (*kw_job)(void *shared, int who);

typedef struct {
    kw_job job;
    void *shared;
    int who;
    pthread_t thread;
} kw_member;

static void *kw_member_run(void *p)
{
    kw_member *m = (kw_member *)p;
    m->job(m->shared, m->who);
    return NULL;
}

/* job(shared, 0) here and job(shared, 1) to job(shared, n - 1) beside it, n at most KW_TEAM_MOST; back when all are
 * through. Where the system gives fewer threads fewer are called. They take no signals: those are for Python's threads. */
static void kw_team(kw_job job, void *shared, int n)
{
    kw_member members[KW_TEAM_MOST];
    sigset_t all, before;
    int made = 1;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (; made < n; made++) {
        kw_member *m = &members[made];
        m->job = job;
        m->shared = shared;
        m->who = made;
        if (pthread_create(&m->thread, NULL, kw_member_run, m))
            break;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    job(shared, 0);
    while (--made > 0)
        pthread_join(members[made].thread, NULL);
}

/* The number at p, which is one higher for whoever comes next. */
static inline int64_t kw_next(int64_t *p) { return __atomic_fetch_add(p, 1, __ATOMIC_RELAXED); }

/* What kw_say said last; with it comes all that was written before. */
static inline int64_t kw_hear(const int64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void kw_say(int64_t *p, int64_t value) { __atomic_store_n(p, value, __ATOMIC_RELEASE); }

/* n words from one array into another. Those of a unit have just been written, and large calls of memcpy are slow from
 * there on processors whose `rep movsb` is. */
static inline void kw_copy(uint64_t *to, const uint64_t *from, int64_t n)
{
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        memcpy(to + i, from + i, 64);
        __asm__ volatile("" ::: "memory");
    }
    for (; i < n; i++)
        to[i] = from[i];
}

/* One step of waiting for another thread, the `times`-th: short ones at first, later the processor is left to others. */
static inline void kw_wait(int64_t times)
{
    struct timespec nap = {0, 50000};
    if (times > 400)
        nanosleep(&nap, NULL);
    else if (times > 200)
        sched_yield();
#if defined(__x86_64__)
    else
        __builtin_ia32_pause();
#endif
}
#endif
