/* == includes == */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <malloc.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef __x86_64__
#error "the scenario's processes are written for x86-64"
#endif

/* == core == */
typedef uint64_t u64;
#define PAGE 4096UL
#define AT(vpn) ((u64)(vpn) * PAGE)
#define PAGES(n) ((u64)(n) * PAGE)
#define BYTES(...) (const unsigned char[]){__VA_ARGS__}, sizeof((const unsigned char[]){__VA_ARGS__})
#define IDS(...) (const u64[]){__VA_ARGS__}, sizeof((const u64[]){__VA_ARGS__}) / sizeof(u64)

/* ---- A process of the scenario owns no page but the scenario's: all that libc had in it is unmapped, and it runs a
 * copy of the functions marked BARE, out of shared memory at ARENA. All below ARENA belongs to the scenario. */

#define ARENA 0x7ff000000000UL
#define TOP 0x7ffffffff000UL
#define ROOM 0x10000UL
#define ARENA_FD 3
#define BARE __attribute__((section("bare"), noinline))
#define SLOT(n) ((struct slot *)(ARENA + (1 + (u64)(n)) * ROOM))
#define COPIED(f) (ARENA + ((u64)(f) - (u64)__start_bare))

enum { DRIVER, PROCESS };

struct slot {
	uint32_t turn;  /* whose it is */
	u64 what;       /* to be done: a function of the copy */
	u64 word[8];    /* its arguments */
	long answer;
	char data[0x8000], stack[0x6000];
} __attribute__((aligned(64)));
_Static_assert(sizeof(struct slot) <= ROOM, "a slot is larger than its room");

extern char __start_bare[], __stop_bare[], bare_return[];
__asm__(".pushsection bare, \"ax\", @progbits\nbare_return: mov $15, %eax\nsyscall\n.popsection"); /* rt_sigreturn */

static inline __attribute__((always_inline)) long call(u64 nr, u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
	register u64 r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	long ret;

	__asm__ volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return ret;
}

BARE static long bare_call(u64 *word)
{
	return call(word[0], word[1], word[2], word[3], word[4], word[5], word[6]);
}

/* An access that faults goes on at its label 1 and gives -EFAULT: the handler finds the place in r15. */
BARE static void bare_fault(int number, siginfo_t *info, void *context)
{
	greg_t *reg = ((ucontext_t *)context)->uc_mcontext.gregs;

	(void)number, (void)info;
	reg[REG_RIP] = reg[REG_R15];
}

BARE static void bare_obey(struct slot *me)
{
	me->answer = call(SYS_getpid, 0, 0, 0, 0, 0, 0);
	for (;;) {
		__atomic_store_n(&me->turn, DRIVER, __ATOMIC_SEQ_CST);
		call(SYS_futex, (u64)&me->turn, FUTEX_WAKE, 1, 0, 0, 0);
		while (__atomic_load_n(&me->turn, __ATOMIC_SEQ_CST) == DRIVER)
			call(SYS_futex, (u64)&me->turn, FUTEX_WAIT, DRIVER, 0, 0, 0);
		me->answer = ((long (*)(u64 *))me->what)(me->word);
	}
}

/* ---- The driver's side of it. */

struct process {
	int pid, live, under, child;       /* under: in whose memory it runs; child: whom it waits for (vfork) */
	struct span { u64 vpn, n; } span[MOST_SPANS];
	int spans;
	struct page { u64 vpn, frame; long kind, tag; } *now, *before; /* its pages, at this record and the one before */
	long nr_now, nr_before;
	long stat[6];                      /* as expected */
	char *pages;                       /* changes as expected */
} process[NR_PROCESSES];

static long ret, expected_ret;
static int driver;

static void __attribute__((format(printf, 1, 2), noreturn)) die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(2);
}

/* Signals are blocked, and heeded where all can be put back. */
static void heed_signals(double seconds)
{
	struct timespec time = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
	sigset_t set;
	int number;

	sigprocmask(SIG_BLOCK, NULL, &set);
	number = sigtimedwait(&set, NULL, &time);
	if (number > 0)
		exit(128 + number);
}

static long answer_of(int p)
{
	struct slot *slot = SLOT(p);
	struct timespec second = {1, 0};

	while (__atomic_load_n(&slot->turn, __ATOMIC_SEQ_CST) == PROCESS) {
		syscall(SYS_futex, &slot->turn, FUTEX_WAIT, PROCESS, &second, NULL, 0);
		heed_signals(0);
		if (process[p].pid > 0 && waitpid(process[p].pid, NULL, WNOHANG) > 0) {
			process[p].live = process[p].pid = 0;
			die("process %s ended by itself", name[p]);
		}
	}
	return slot->answer;
}

static void begin(int p, void *what)
{
	if (!process[p].live || process[p].child >= 0)
		die("process %s %s", name[p], process[p].live ? "waits for its vfork child" : "is not there: its fork failed");
	SLOT(p)->what = COPIED(what);
	__atomic_store_n(&SLOT(p)->turn, PROCESS, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, &SLOT(p)->turn, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static long words_to(int p, void *what, const u64 *word, size_t n)
{
	memset(SLOT(p)->word, 0, sizeof SLOT(p)->word);
	memcpy(SLOT(p)->word, word, n * sizeof *word);
	begin(p, what);
	return answer_of(p);
}

#define TO(p, what, ...) words_to(p, what, (u64[]){__VA_ARGS__}, sizeof((u64[]){__VA_ARGS__}) / sizeof(u64))
/* A system call of a process: what it returns, or -errno. */
#define CALL(p, ...) TO(p, bare_call, __VA_ARGS__)
#define in(p, ...) (ret = CALL(p, __VA_ARGS__))

static void __attribute__((unused)) add_span(int p, u64 vpn, u64 n)
{
	int owner = process[p].under, i;
	struct process *its = &process[owner < 0 ? p : owner];

	for (i = 0; i < its->spans && its->span[i].vpn < vpn; i++)
		;
	if (i == its->spans || its->span[i].vpn != vpn) {
		if (its->spans == MOST_SPANS)
			die("more mappings than were thought of");
		memmove(&its->span[i + 1], &its->span[i], (size_t)(its->spans++ - i) * sizeof *its->span);
		its->span[i] = (struct span){vpn, n};
	}
	if (its->span[i].n < n)
		its->span[i].n = n;
}

static __attribute__((unused)) void born(int p, int pid, int under)
{
	process[p].pid = pid;
	process[p].live = 1;
	process[p].under = under;
	process[p].child = -1;
	process[p].spans = 0;
}

/* What main() of a new program becomes. */
static void __attribute__((noreturn)) become(int p)
{
	u64 action[4] = {COPIED(bare_fault), 0x44000004 /* SA_RESTORER | SA_NODEFER | SA_SIGINFO */, COPIED(bare_return), 0};
	extern const ptrdiff_t __rseq_offset __attribute__((weak));
	char *thread;

	/* the program is a private mapping of a file, as any program is */
	if (mmap((void *)ARENA, ROOM, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED, ARENA_FD, 0) == MAP_FAILED ||
	    mmap((void *)(ARENA + ROOM), NR_PROCESSES * ROOM, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, ARENA_FD,
		 ROOM) == MAP_FAILED)
		die("the shared memory can't be mapped: %s", strerror(errno));
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	syscall(SYS_rt_sigaction, SIGSEGV, action, NULL, 8);
	syscall(SYS_rt_sigaction, SIGBUS, action, NULL, 8);
	/* what the kernel was told to write to is going to be unmapped */
	syscall(SYS_set_tid_address, NULL);
	__asm__("mov %%fs:0, %0" : "=r"(thread));
	if (&__rseq_offset)
		syscall(334 /* rseq */, thread + __rseq_offset, 32, 1, 0x53053053);
	__asm__ volatile("mov %0, %%rsp\ncall *%1" : : "r"(SLOT(p)->stack + sizeof SLOT(p)->stack),
			 "r"(COPIED(bare_obey)), "D"(SLOT(p)) : "memory");
	__builtin_unreachable();
}

static __attribute__((unused)) void strip(int p)
{
	u64 end = ARENA + (1 + NR_PROCESSES) * ROOM;

	CALL(p, SYS_munmap, 0, ARENA);
	CALL(p, SYS_munmap, end, TOP - end);
}

/* ---- Files: what is changed is noted, and put back at the end. */

#define KSM "/sys/kernel/mm/ksm/"
#define THP "/sys/kernel/mm/transparent_hugepage/"

static struct { char path[96], text[64]; } noted[64];
static int nr_noted;

static int read_file(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY);
	ssize_t n = fd < 0 ? -1 : read(fd, text, size - 1);
	char *from;

	if (fd >= 0)
		close(fd);
	text[n > 0 ? n : 0] = 0;
	text[strcspn(text, "\n")] = 0;
	/* of a choice the word in brackets */
	if ((from = strchr(text, '[')) && strchr(from, ']')) {
		memmove(text, from + 1, strlen(from));
		*strchr(text, ']') = 0;
	}
	return n < 0 ? -1 : 0;
}

static int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY), error = fd < 0 || write(fd, text, strlen(text)) < 0 ? errno : 0;

	if (fd >= 0)
		close(fd);
	return -error;
}

static const char *path_of(const char *folder, const char *file)
{
	static char path[8][256];
	static int at;

	at = (at + 1) % 8;
	snprintf(path[at], sizeof *path, "%s%s", folder, file);
	return path[at];
}

static void note(const char *path)
{
	if (nr_noted < 64 && !read_file(path, noted[nr_noted].text, sizeof noted->text))
		snprintf(noted[nr_noted++].path, sizeof noted->path, "%s", path);
}

/* Another value until the end; what is not there stays as it is. */
static void change(const char *path, const char *text)
{
	char now[64];
	int error;

	if (read_file(path, now, sizeof now))
		return;
	note(path); /* if it has this value already, too: it may change yet */
	if (strcmp(now, text) && (error = write_file(path, text)))
		die("%s refuses %s: %s", path, text, strerror(-error));
}

static void (*undo[8])(void);
static int nr_undo;

static void put_back(void)
{
	if (getpid() != driver)
		return;
	for (int p = 0; p < NR_PROCESSES; p++)
		if (process[p].pid > 0 && process[p].live) {
			kill(process[p].pid, SIGKILL);
			waitpid(process[p].pid, NULL, 0);
		}
	write_file(KSM "run", "2");
	while (nr_undo)
		undo[--nr_undo]();
	write_file(KSM "advisor_mode", "none");
	while (nr_noted--)
		if (write_file(noted[nr_noted].path, noted[nr_noted].text))
			fprintf(stderr, "could not be put back: %s: %s\n", noted[nr_noted].path, noted[nr_noted].text);
}

/* ---- ksmd, batch by batch. */

static int ksmd;

static int kernel_thread(const char *its_name)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	char text[256];
	int pid = 0, parent;

	while (!pid && (entry = readdir(proc)))
		if (atoi(entry->d_name) > 0 && !read_file(path_of(path_of("/proc/", entry->d_name), "/stat"), text, sizeof text) &&
		    !strncmp(strchr(text, '(') + 1, its_name, strlen(its_name)) && strchr(text, '(')[1 + strlen(its_name)] == ')' &&
		    sscanf(strrchr(text, ')') + 1, " %*c %d", &parent) == 1 && parent == 2)
			pid = atoi(entry->d_name);
	closedir(proc);
	return pid;
}

static int asleep(int pid)
{
	char file[40], text[256];

	snprintf(file, sizeof file, "/proc/%d/syscall", pid);
	if (!read_file(file, text, sizeof text) && !strncmp(text, "running", 7))
		return 0;
	snprintf(file, sizeof file, "/proc/%d/stat", pid);
	return !read_file(file, text, sizeof text) && strrchr(text, ')') && strrchr(text, ')')[2] == 'S';
}

/* Wakes ksmd for one batch: it does when the time it waits for is another than it was. */
static void batch(void)
{
	static int other;

	write_file(KSM "sleep_millisecs", (other ^= 1) ? "4000000001" : "4000000000");
}

/* Waits until ksmd sleeps, and has KSM's mutex once: writing what `run` is does nothing else. */
static void settle(void)
{
	char text[64];

	while (!asleep(ksmd))
		sched_yield();
	read_file(KSM "run", text, sizeof text);
	write_file(KSM "run", text);
}

/* Drains the LRU batches of all CPUs: that is what move_pages() begins with. */
static void drain(void)
{
	static char *page;
	int node = 0, status = 0;

	if (!page)
		page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	*page = 1;
	if (syscall(SYS_move_pages, 0, 1UL, (void **)&page, &node, &status, 2) < 0)
		die("move_pages: %s", strerror(errno));
}
