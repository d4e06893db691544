/* == main == */
static void scenario(void);

/* Somebody with mergeable memory, or with rmap_items, on a machine where nobody else may use KSM. */
static int foreign(void)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	int found = 0;

	while (!found && (entry = readdir(proc))) {
		char text[1024] = "", *at;
		int fd = atoi(entry->d_name) > 0 ? open(path_of(path_of("/proc/", entry->d_name), "/ksm_stat"), O_RDONLY) : -1;

		if (fd < 0)
			continue;
		text[0] = 0;
		if (read(fd, text, sizeof text - 1) > 0 && (strstr(text, "ksm_mergeable: yes") ||
		    ((at = strstr(text, "ksm_rmap_items")) && atol(at + strlen("ksm_rmap_items")))))
			found = atoi(entry->d_name);
		close(fd);
	}
	closedir(proc);
	return found;
}

/* The driver gets no page meanwhile and gives none back: both would be seen in the batches of the CPU it runs on. */
static void keep_quiet(void)
{
	extern char __bss_start[], _end[];
	volatile char stack[1 << 18];
	size_t room = 32 << 20;
	char *heap;

	mallopt(M_MMAP_THRESHOLD, 1 << 30);
	mallopt(M_TRIM_THRESHOLD, 1 << 30);
	if ((heap = malloc(room)))
		memset(heap, 1, room);
	free(heap);
	for (size_t i = 0; i < sizeof stack; i += PAGE)
		stack[i] = 1;
	for (volatile char *at = __bss_start; at < _end; at += PAGE)
		*at = *at;
}

static void take_ksm(void)
{
	char text[64];
	int pid;

	if (geteuid() || access(KSM "run", W_OK))
		die("root is needed, and a kernel with KSM");
	if (!(ksmd = kernel_thread("ksmd")))
		die("no ksmd among the processes");
	read_file(KSM "run", text, sizeof text);
	if (!strcmp(text, "1") || read_number(KSM "pages_shared", 0))
		die("KSM is in use: run is %s, pages_shared is %ld", text, read_number(KSM "pages_shared", 0));
	if ((pid = foreign()))
		die("another process has mergeable memory: %d", pid);
	driver = getpid();
	atexit(put_back);
	note(KSM "run");
	for (size_t i = 0; i < sizeof knob / sizeof *knob; i++)
		note(path_of(KSM, knob[i][0]));
	change(THP "khugepaged/scan_sleep_millisecs", "4294967295");
	write_file(KSM "run", "2");
	for (size_t i = 0; i < sizeof knob / sizeof *knob; i++)
		if (strcmp(knob[i][0], "sleep_millisecs") && !read_file(path_of(KSM, knob[i][0]), text, sizeof text) &&
		    strcmp(text, knob[i][1]))
			write_file(path_of(KSM, knob[i][0]), knob[i][1]);
	write_file(KSM "run", "0");
}

static void surround(void)
{
	void *area = mmap(NULL, 1 << 22, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int khugepaged_pid = kernel_thread("khugepaged");
	size_t i;

	for (i = 0; i < sizeof around / sizeof *around; i++)
		change(path_of(THP, around[i][0]), around[i][1]);
	MAKE_SWAP();
	MAKE_CGROUP();
	/* khugepaged that knows nobody would begin a pass with the first to come */
	madvise(area, 1 << 22, MADV_HUGEPAGE);
	for (i = 0; khugepaged_pid && !asleep(khugepaged_pid) && i < 1000; i++)
		heed_signals(0.001);
	batch();
	settle();
	for (i = 0; *tunable[i][0]; i++)
		if (write_file(path_of(KSM, tunable[i][0]), tunable[i][1]) && strcmp(tunable[i][1], tunable[i][2]))
			die("%s%s refuses %s", KSM, tunable[i][0], tunable[i][1]);
}

static void look_at_kernel(void)
{
	u64 *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), entry = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY);
	struct utsname kernel;

	*page = 1;
	kpageflags = open("/proc/kpageflags", O_RDONLY);
	if (pread(fd, &entry, 8, (off_t)((u64)page / PAGE * 8)) == 8)
		lies = flags_of(entry & ((1UL << 55) - 1)) >> 21 & 1;
	close(fd);
	uname(&kernel);
	printf("%s\nkernel %s (%s); the model is Linux %s\n", TITLE, kernel.release, kernel.version, MODEL);
	if (lies)
		printf("pages are not compared: /proc/kpageflags of this kernel calls every anonymous page KSM's\n");
	for (int i = 0; i < NR_COUNTERS; i++)
		base[i] = strcmp(counter[i], "pages_scanned") && strcmp(counter[i], "pages_skipped") &&
			  strcmp(counter[i], "ksm_zero_pages") ? 0 : read_number(path_of(KSM, counter[i]), 0);
	/* pages that KSM is said to have placed before now count in its profit */
	for (int i = 0; i < NR_COUNTERS; i++)
		if (!strcmp(counter[i], "general_profit"))
			base[i] = read_number(KSM "ksm_zero_pages", 0) * (long)PAGE;
}

int main(int argc, char **argv)
{
	char *none[] = {NULL};
	sigset_t set;
	int fd;

	if (argc == 3 && !strcmp(argv[1], "process") && atoi(argv[2]) < NR_PROCESSES)
		become(atoi(argv[2]));
	/* addresses that are always the same leave the scenario its own */
	if (!(personality(0xffffffff) & ADDR_NO_RANDOMIZE) && personality(personality(0xffffffff) | ADDR_NO_RANDOMIZE) >= 0)
		execve("/proc/self/exe", argv, none);
	keep_quiet();
	sigemptyset(&set);
	sigaddset(&set, SIGINT), sigaddset(&set, SIGTERM), sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	fd = (int)syscall(SYS_memfd_create, "reproduce", 0);
	if (fd < 0 || (fd != ARENA_FD && dup2(fd, ARENA_FD) < 0) || ftruncate(ARENA_FD, (1 + NR_PROCESSES) * ROOM) < 0 ||
	    mmap((void *)ARENA, (1 + NR_PROCESSES) * ROOM, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, ARENA_FD, 0) == MAP_FAILED)
		die("no shared memory: %s", strerror(errno));
	memset((void *)ARENA, 0, (1 + NR_PROCESSES) * ROOM);
	memcpy((void *)ARENA, __start_bare, (size_t)(__stop_bare - __start_bare));
	take_ksm();
	surround();
	look_at_kernel();
	SHOW_VMSTAT_FIRST();
	drain();
	scenario();
	printf("%d records, %s", records, differing ? "" : "all equal\n");
	if (differing)
		printf("%d differ\n", differing);
	return differing > 0;
}
