/* == start == */
/* A new process: without CLONE_VM with a memory of its own. It goes on in its own slot, on its own stack. */
BARE static long bare_start(u64 *word)
{
	register u64 r10 __asm__("r10") = 0, r8 __asm__("r8") = 0, slot __asm__("r12") = word[1], go __asm__("r13") = word[2];
	long pid;

	__asm__ volatile("syscall\ntest %%rax, %%rax\njnz 1f\nmov %%r12, %%rdi\ncall *%%r13\n1:"
			 : "=a"(pid) : "a"(SYS_clone), "D"(word[0]), "S"(word[3]), "d"(0), "r"(r10), "r"(r8), "r"(slot), "r"(go)
			 : "rcx", "r11", "memory");
	return pid;
}

/* Starts it; whoever drives us is its parent too (CLONE_PARENT). */
static void start(int p, int child, u64 flags)
{
	struct slot *slot = SLOT(child);
	u64 word[4] = {0x8011 | flags, (u64)slot, COPIED(bare_obey), (u64)(slot->stack + sizeof slot->stack)};

	slot->turn = PROCESS;
	memcpy(SLOT(p)->word, word, sizeof word);
	begin(p, bare_start);
}

static void started(int p, int child, int under)
{
	int owner = process[p].under < 0 ? p : process[p].under;

	born(child, 0, under < 0 ? -1 : owner);
	process[child].pid = (int)answer_of(child);
	CALL(child, SYS_close_range, ARENA_FD + 1, ~0U, 0);
	CALL(child, SYS_prctl, PR_SET_PDEATHSIG, SIGKILL);
}

/* == fork: start == */
static void op_fork(int p, int child)
{
	start(p, child, 0);
	if ((ret = answer_of(p)) < 0)
		return;
	started(p, child, -1);
	process[child].spans = process[p].under < 0 ? process[p].spans : process[process[p].under].spans;
	memcpy(process[child].span, process[process[p].under < 0 ? p : process[p].under].span, sizeof process[p].span);
	ret = 0;
}

/* == clone: start == */
static void op_clone(int p, int child)
{
	start(p, child, CLONE_VM);
	if ((ret = answer_of(p)) < 0)
		return;
	started(p, child, p);
	ret = 0;
}

/* == vfork: start == */
static void op_vfork(int p, int child)
{
	start(p, child, CLONE_VM | CLONE_VFORK);
	while (__atomic_load_n(&SLOT(p)->turn, __ATOMIC_SEQ_CST) == PROCESS &&
	       __atomic_load_n(&SLOT(child)->turn, __ATOMIC_SEQ_CST) == PROCESS)
		heed_signals(0.001);
	if (__atomic_load_n(&SLOT(child)->turn, __ATOMIC_SEQ_CST) == PROCESS && (ret = answer_of(p)) < 0)
		return;
	started(p, child, p);
	process[p].child = child;
	ret = 0;
}

static void __attribute__((unused)) op_vforked(int p)
{
	if (process[p].child != NR_PROCESSES)
		die("%s is not back from vfork", name[p]);
	process[p].child = -1;
	ret = answer_of(p);
	ret = ret < 0 ? ret : 0;
}

/* == spawn == */
static void op_spawn(int p)
{
	char number[12];
	char *args[] = {"reproduce", "process", number, NULL}, *none[] = {NULL};
	int pid;

	snprintf(number, sizeof number, "%d", p);
	SLOT(p)->turn = PROCESS;
	if ((pid = fork()) == 0) {
		execve("/proc/self/exe", args, none);
		_exit(127);
	}
	born(p, pid, -1);
	answer_of(p);
	strip(p);
	JOIN_CGROUP(pid);
	ret = 0;
}

/* == exit == */
static void let_go(int p)
{
	/* whoever waits for this one in vfork waits no more */
	for (int i = 0; i < NR_PROCESSES; i++)
		if (process[i].live && process[i].child == p)
			process[i].child = NR_PROCESSES;
}

static void __attribute__((unused)) op_exit(int p)
{
	LET_GO(p);
	memcpy(SLOT(p)->word, (u64[7]){SYS_exit_group}, 7 * sizeof(u64));
	begin(p, bare_call);
	waitpid(process[p].pid, NULL, 0);
	process[p].live = process[p].pid = 0;
	let_go(p);
	ret = 0;
}

/* == exec: exit == */
static void op_exec(int p)
{
	struct { u64 args[4], none[1]; char path[16], me[16], what[8], number[12]; } *data = (void *)SLOT(p)->data;

	LET_GO(p);
	strcpy(data->path, "/proc/self/exe");
	strcpy(data->me, "reproduce");
	strcpy(data->what, "process");
	snprintf(data->number, sizeof data->number, "%d", p);
	memcpy(data->args, (u64[4]){(u64)data->me, (u64)data->what, (u64)data->number}, sizeof data->args);
	data->none[0] = 0;
	if ((ret = CALL(p, SYS_execve, (u64)data->path, (u64)data->args, (u64)data->none)) < 0)
		return;
	born(p, process[p].pid, -1);
	strip(p);
	let_go(p);
	ret = 0;
}

/* == mmap == */
static void op_mmap(int p, u64 vpn, u64 n, int prot, int flags)
{
	ret = CALL(p, SYS_mmap, AT(vpn), PAGES(n), (u64)prot, (u64)(flags | MAP_FIXED | MAP_ANONYMOUS), -1UL, 0);
	ret = ret < 0 && ret >= -4095 ? ret : 0;
	if (!ret)
		add_span(p, vpn, n);
}

/* == mmap_file == */
static void op_mmap_file(int p, u64 vpn, u64 n, int prot, int flags)
{
	long fd;

	strcpy(SLOT(p)->data, "scenario");
	fd = CALL(p, SYS_memfd_create, (u64)SLOT(p)->data, 1);
	CALL(p, SYS_ftruncate, (u64)fd, PAGES(n));
	ret = CALL(p, SYS_mmap, AT(vpn), PAGES(n), (u64)prot, (u64)(flags | MAP_FIXED), (u64)fd, 0);
	ret = ret < 0 && ret >= -4095 ? ret : 0;
	CALL(p, SYS_close, (u64)fd);
	if (!ret)
		add_span(p, vpn, n);
}

/* == watch == */
static void op_watch(int p, u64 vpn, u64 n) { add_span(p, vpn, n); }

/* == mremap == */
static void op_mremap(int p, u64 vpn, u64 n, u64 new_n, int flags, u64 new_vpn)
{
	ret = CALL(p, SYS_mremap, AT(vpn), PAGES(n), PAGES(new_n), (u64)flags, AT(new_vpn));
	ret = ret < 0 && ret >= -4095 ? ret : 0;
	add_span(p, flags & MREMAP_FIXED ? new_vpn : vpn, new_n);
}

/* == advise == */
static void op_advise(int p, int other, u64 vpn, u64 n, int advice)
{
	u64 *range = (void *)SLOT(p)->data;
	long fd = CALL(p, SYS_pidfd_open, (u64)process[other].pid, 0);

	range[0] = AT(vpn), range[1] = PAGES(n);
	ret = fd < 0 ? fd : CALL(p, SYS_process_madvise, (u64)fd, (u64)range, 1, (u64)advice, 0);
	if (fd >= 0)
		CALL(p, SYS_close, (u64)fd);
	ret = ret == (long)PAGES(n) ? 0 : ret;
}

/* == write == */
/* A page with content id k holds k as 8 bytes, big-endian, and then zeros. */
BARE static long bare_write(u64 *word)
{
	u64 *pair = (u64 *)word[0], n = word[1];
	long done = 0;

	for (u64 i = 0; i < n && done == 0; i++) {
		u64 at = pair[2 * i] * PAGE, count = 511;

		__asm__ volatile("lea 1f(%%rip), %%r15\nmov $-14, %[done]\nmov %[first], (%[at])\nadd $8, %[at]\nxor %%eax, %%eax\n"
				 "rep stosq\nxor %k[done], %k[done]\n1:"
				 : [done] "=&r"(done), [at] "+&D"(at), "+&c"(count) : [first] "r"(__builtin_bswap64(pair[2 * i + 1]))
				 : "rax", "r15", "memory");
	}
	return done;
}

static void __attribute__((unused)) op_write(int p, const u64 (*pair)[2], size_t n)
{
	for (size_t some; n && ret == 0; n -= some, pair += some) {
		some = n < 1024 ? n : 1024;
		memcpy(SLOT(p)->data, pair, some * sizeof *pair);
		ret = TO(p, bare_write, (u64)SLOT(p)->data, some);
	}
}

/* == fill: write == */
static void op_fill(int p, u64 vpn, const u64 *id, size_t n)
{
	u64 (*pair)[2] = calloc(n, sizeof *pair);
	size_t used = 0;

	for (size_t i = 0; i < n; i++)
		if (id[i] != LEFT_ALONE)
			pair[used][0] = vpn + i, pair[used++][1] = id[i];
	op_write(p, (const u64(*)[2])pair, used);
	free(pair);
}

/* == touch == */
BARE static long bare_touch(u64 *word)
{
	long done;

	__asm__ volatile("lea 1f(%%rip), %%r15\nmov $-14, %[done]\nmovzbl (%[at]), %%eax\nxor %k[done], %k[done]\n1:"
			 : [done] "=&r"(done) : [at] "r"(word[0]) : "rax", "r15", "memory");
	return done;
}

static void op_touch(int p, const u64 *vpn, size_t n)
{
	for (size_t i = 0; i < n && ret == 0; i++)
		ret = TO(p, bare_touch, AT(vpn[i]));
}

/* == memset == */
BARE static long bare_memset(u64 *word)
{
	u64 at = word[0], n = word[2];
	long done;

	__asm__ volatile("lea 1f(%%rip), %%r15\nmov $-14, %[done]\nrep stosb\nxor %k[done], %k[done]\n1:"
			 : [done] "=&r"(done), "+&D"(at), "+&c"(n) : "a"(word[1]) : "r15", "memory");
	return done;
}

static void __attribute__((unused)) op_memset(int p, u64 vpn, int byte, u64 n)
{
	ret = TO(p, bare_memset, AT(vpn), (u64)byte, n);
}

/* == store: memset == */
/* Bytes that are equal at once. */
static void op_store(int p, u64 vpn, u64 offset, const unsigned char *byte, size_t n)
{
	for (size_t from = 0, to; from < n && ret == 0; from = to) {
		for (to = from; to < n && byte[to] == byte[from]; to++)
			;
		ret = TO(p, bare_memset, AT(vpn) + offset + from, byte[from], to - from);
	}
}

/* == pwrite == */
static void op_pwrite(int p, const u64 (*pair)[2], size_t n)
{
	char file[40];
	u64 page[PAGE / 8] = {0};
	int fd;

	snprintf(file, sizeof file, "/proc/%d/mem", process[p].pid);
	ret = (fd = open(file, O_RDWR)) < 0 ? -errno : 0;
	for (size_t i = 0; i < n && ret == 0; i++) {
		page[0] = __builtin_bswap64(pair[i][1]);
		if (pwrite(fd, page, PAGE, (off_t)AT(pair[i][0])) < 0)
			ret = -errno;
	}
	close(fd);
}

/* == set == */
static void op_set(const char *knob, const char *value) { ret = write_file(path_of(KSM, knob), value); }

/* == run == */
static void op_run(const char *value)
{
	/* from between two batches into the long wait, so that run=1 scans at once */
	if ((ret = write_file(KSM "run", value)) == 0 && strcmp(value, "1"))
		batch();
}

/* == step == */
static void op_step(void) { batch(); }

/* == sleep == */
static void op_sleep(double seconds) { heed_signals(seconds); }

/* == drain == */
static void op_drain(void) { drain(); }

/* == cpu == */
static void op_cpu(int p, int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	ret = sched_setaffinity(process[p].pid, sizeof set, &set) < 0 ? -errno : 0;
}

/* == cpu_ksmd == */
static cpu_set_t ksmd_ran_on;

static void ksmd_anywhere(void) { sched_setaffinity(ksmd, sizeof ksmd_ran_on, &ksmd_ran_on); }

static void op_cpu_ksmd(int cpu)
{
	static int noted_already;
	cpu_set_t set;

	if (!noted_already++) {
		sched_getaffinity(ksmd, sizeof ksmd_ran_on, &ksmd_ran_on);
		undo[nr_undo++] = ksmd_anywhere;
	}
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	ret = sched_setaffinity(ksmd, sizeof set, &set) < 0 ? -errno : 0;
}
