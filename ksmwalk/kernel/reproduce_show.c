/* == show == */
/* ---- What is expected beside what is there. */

enum { ABSENT, ANON, IS_KSM, HUGE, ZERO, OTHER, SWAP };
#define NO_FRAME (~0UL - 1)
#define UNSHOWN LONG_MIN
#define NR_COUNTERS ((int)(sizeof counter / sizeof *counter))

static const char *const stat_name[6] = {"ksm_rmap_items", "ksm_zero_pages", "ksm_merging_pages", "ksm_process_profit",
					 "ksm_merge_any", "ksm_mergeable"};
static long expected_counter[NR_COUNTERS_ROOM], base[NR_COUNTERS_ROOM];
static int records, differing, differs, shown, kpageflags = -1, lies;
static struct { u64 frame; long number; } ksm_page[1 << 16];
static long nr_ksm_pages, next_number;

static void __attribute__((unused)) returned(long value) { expected_ret = value; }

static void __attribute__((unused)) counters(const char *text)
{
	char its[64];
	long value;
	int used;

	for (; sscanf(text, " %63[^=]=%ld%n", its, &value, &used) == 2; text += used)
		for (int i = 0; i < NR_COUNTERS; i++)
			if (!strcmp(counter[i], its))
				expected_counter[i] = value;
}

static void __attribute__((unused)) stat_of(int p, long items, long zero, long merging, long profit, long any, long mergeable)
{
	long row[6] = {items, zero, merging, profit, any, mergeable};

	memcpy(process[p].stat, row, sizeof row);
}

static int steady(const char *kind, const char *its)
{
	char both[128];

	snprintf(both, sizeof both, "%s%s", kind, its);
	for (int i = 0; unsteady[i]; i++)
		if (!strcmp(unsteady[i], both) || !strcmp(unsteady[i], its) ||
		    (*kind && unsteady[i][0] == *kind && !unsteady[i][1]))
			return 0;
	return 1;
}

static void line(const char *whose, const char *what, const char *model, const char *kernel, int ok)
{
	if (!shown++)
		printf("   %-32s  %-30s  %s\n", "", "model", "kernel");
	printf("%s%-8s %-23s  %-30s  %s\n", ok ? "   " : "!= ", whose, what, model, kernel);
	differs |= !ok;
}

static void number_line(const char *whose, const char *what, long model, long kernel)
{
	char one[32], other[32];

	snprintf(one, sizeof one, "%ld", model);
	snprintf(other, sizeof other, "%ld", kernel);
	line(whose, what, one, other, model == kernel);
}

static long read_number(const char *path, long otherwise)
{
	char text[64];

	return read_file(path, text, sizeof text) ? otherwise : strtol(text, NULL, 10);
}

static void show_counters(void)
{
	static long before[NR_COUNTERS_ROOM], expected_before[NR_COUNTERS_ROOM];

	for (int i = 0; i < NR_COUNTERS; i++) {
		long now = read_number(path_of(KSM, counter[i]), UNSHOWN);

		if (now == UNSHOWN || !steady("c.", counter[i]))
			continue;
		now -= base[i];
		if (now != before[i] || expected_counter[i] != expected_before[i] || now != expected_counter[i])
			number_line("", counter[i], expected_counter[i], now);
		before[i] = now;
		expected_before[i] = expected_counter[i];
	}
}

static void show_stat(int p)
{
	char file[64], text[1024], *at;
	int fd, n;

	snprintf(file, sizeof file, "/proc/%d/ksm_stat", process[p].pid);
	fd = open(file, O_RDONLY);
	n = fd < 0 ? 0 : (int)read(fd, text, sizeof text - 1);
	if (fd >= 0)
		close(fd);
	text[n > 0 ? n : 0] = 0;
	for (int i = 0; i < 6; i++) {
		long now = UNSHOWN;

		snprintf(file, sizeof file, "/proc/%d/%s", process[p].pid, stat_name[i]);
		if ((at = strstr(text, stat_name[i])))
			now = (at += strcspn(at, " "), strncmp(at, " yes", 4) ? strtol(at, NULL, 10) : 1);
		else if (i == 2)
			now = read_number(file, UNSHOWN);
		if (now == UNSHOWN || process[p].stat[i] == UNSHOWN || !steady("s.", name[p]) || !steady("s.", stat_name[i] + 4))
			continue;
		if (now != process[p].stat[i] || now)
			number_line(name[p], stat_name[i] + 4, process[p].stat[i], now);
	}
}

/* ---- Pages: from /proc/PID/pagemap and /proc/kpageflags. */

static u64 flags_of(u64 frame)
{
	u64 flags = 0;

	if (kpageflags < 0 || pread(kpageflags, &flags, 8, (off_t)(frame * 8)) != 8)
		die("/proc/kpageflags can't be read");
	return flags;
}

static long kind_of(u64 frame)
{
	u64 flags = flags_of(frame);

	return flags >> 24 & 1 ? ZERO : flags >> 21 & 1 ? IS_KSM : !(flags >> 12 & 1) ? OTHER : flags >> 22 & 1 ? HUGE : ANON;
}

static void read_part(int p, int fd, u64 vpn, u64 end, int swapped)
{
	static u64 entry[1 << 12];

	for (ssize_t got; vpn < end; vpn += (u64)got / 8) {
		u64 n = end - vpn < 1 << 12 ? end - vpn : 1 << 12;

		got = pread(fd, entry, n * 8, (off_t)(vpn * 8));
		if (got < 8)
			return;
		for (u64 i = 0; i < (u64)got / 8; i++) {
			struct process *its = &process[p];
			int there = entry[i] >> 63;
			u64 frame = entry[i] & ((1UL << 55) - 1);

			if (!there && !(swapped && entry[i] >> 62 & 1))
				continue;
			if (!(its->nr_now & (its->nr_now - 1)))
				its->now = realloc(its->now, (size_t)(2 * its->nr_now + 1) * sizeof *its->now);
			its->now[its->nr_now++] = (struct page){vpn + i, there ? frame : NO_FRAME, there ? kind_of(frame) : SWAP, 0};
		}
	}
}

/* == giant == */
/* Of a large mapping the present parts are asked for (PAGEMAP_SCAN, Linux 6.7). */
static void read_span(int p, int fd, u64 vpn, u64 end, int swapped)
{
	struct { u64 start, end, categories; } region[256];
	struct {
		u64 size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, mask, anyof, back;
	} scan = {96, 0, AT(vpn), AT(end), 0, (u64)region, 256, 0, 0, 0, 1 << 3 | (swapped ? 1 << 4 : 0), 1 << 3 | 1 << 4};
	long found;

	if (end - vpn <= 1 << 14) {
		read_part(p, fd, vpn, end, swapped);
		return;
	}
	do {
		if ((found = syscall(SYS_ioctl, fd, 0xC0606610 /* PAGEMAP_SCAN */, &scan)) < 0)
			die("PAGEMAP_SCAN: %s", strerror(errno));
		for (long i = 0; i < found; i++)
			read_part(p, fd, region[i].start / PAGE, region[i].end / PAGE, swapped);
		scan.start = scan.walk_end;
	} while (scan.start < scan.end);
}

/* == shared == */
static int mapped_now(u64 frame)
{
	for (int p = 0; p < NR_PROCESSES; p++)
		for (long i = 0; i < process[p].nr_now; i++)
			if (process[p].now[i].frame == frame && process[p].now[i].kind == IS_KSM)
				return 1;
	return 0;
}

static const struct page *page_before(int p, u64 vpn)
{
	long low = 0, high = process[p].nr_before;

	while (low < high) {
		long middle = (low + high) / 2;

		if (process[p].before[middle].vpn < vpn)
			low = middle + 1;
		else
			high = middle;
	}
	return low < process[p].nr_before && process[p].before[low].vpn == vpn ? &process[p].before[low] : NULL;
}

/* KSM pages are numbered as they are first seen; one that compaction has moved keeps its number. */
static long number_of(int p, const struct page *page)
{
	const struct page *before = page_before(p, page->vpn);
	long number = -1;

	for (long i = 0; i < nr_ksm_pages; i++)
		if (ksm_page[i].frame == page->frame)
			return ksm_page[i].number;
	if (before && before->kind == IS_KSM && !mapped_now(before->frame))
		number = before->tag;
	if (nr_ksm_pages == 1 << 16)
		die("more KSM pages than were thought of");
	ksm_page[nr_ksm_pages].frame = page->frame;
	ksm_page[nr_ksm_pages].number = number < 0 ? next_number++ : number;
	return ksm_page[nr_ksm_pages++].number;
}

/* Those that are none any more; one that only memory has which is not shown is one still. */
static void forget_ksm_pages(void)
{
	long kept = 0;

	for (long i = 0; i < nr_ksm_pages; i++)
		if (mapped_now(ksm_page[i].frame) || kind_of(ksm_page[i].frame) == IS_KSM)
			ksm_page[kept++] = ksm_page[i];
	nr_ksm_pages = kept;
}

struct place { u64 frame; int p; struct page *page; };

static int by_frame(const void *one, const void *other)
{
	const struct place *a = one, *b = other;

	if (a->frame != b->frame)
		return a->frame < b->frame ? -1 : 1;
	return a->p != b->p ? a->p - b->p : a->page->vpn < b->page->vpn ? -1 : 1;
}

/* A page whose frame is mapped at an earlier place too is told by that place: process * 2^48 + vpn + 1. */
static void share(void)
{
	long n = 0, views = 0;
	struct place *all, *first;

	for (int p = 0; p < NR_PROCESSES; p++) {
		n += process[p].nr_now;
		views += process[p].live && process[p].under < 0;
	}
	first = all = malloc((size_t)(n + 1) * sizeof *all);
	n = 0;
	for (int p = 0; p < NR_PROCESSES; p++)
		for (long i = 0; i < process[p].nr_now; i++) {
			struct page *page = &process[p].now[i];

			if (page->kind == IS_KSM)
				page->tag = number_of(p, page);
			else if (page->kind != ZERO && page->kind != SWAP)
				all[n++] = (struct place){page->frame, p, page};
		}
	qsort(all, (size_t)n, sizeof *all, by_frame);
	for (long i = 0; views > 1 && i < n; i++) {
		if (all[i].frame != first->frame)
			first = &all[i];
		if (&all[i] != first)
			all[i].page->tag = ((long)first->p << 48) + (long)first->page->vpn + 1;
	}
	free(all);
}

struct change { u64 vpn; long kind, tag; int moved; };

static void print_run(FILE *out, const struct change *run, u64 n)
{
	static const char letter[] = "-akhzfs";

	fprintf(out, "%s%lu+%lu:%c", ftell(out) ? " " : "", run->vpn, n, letter[run->kind]);
	if (run->kind == IS_KSM)
		fprintf(out, "%ld", run->tag);
	else if (run->tag)
		fprintf(out, "@%s:%lu", name[(run->tag - 1) >> 48], (u64)(run->tag - 1) & ((1UL << 48) - 1));
	fprintf(out, "%s", run->moved ? "'" : "");
}

/* The pages that are others than at the record before, as runs vpn+n:code. */
static char *changes(int p)
{
	struct process *its = &process[p];
	struct change run = {0, 0, 0, 0}, one;
	char *text = NULL;
	size_t size;
	FILE *out = open_memstream(&text, &size);
	u64 n = 0;

	fflush(out);
	for (long i = 0, k = 0; i < its->nr_now || k < its->nr_before;) {
		const struct page *now = i < its->nr_now ? &its->now[i] : NULL;
		const struct page *was = k < its->nr_before ? &its->before[k] : NULL;

		if (was && (!now || was->vpn < now->vpn)) {
			one = (struct change){was->vpn, ABSENT, 0, 0};
			k++;
		} else {
			int both = was && was->vpn == now->vpn;
			int still = both && now->kind == IS_KSM && was->kind == IS_KSM && now->tag == was->tag;

			one = (struct change){now->vpn, now->kind, now->tag, both && was->frame != now->frame && now->kind != ZERO && !still};
			i++, k += both;
			if (both && now->kind == was->kind && now->tag == was->tag && !one.moved)
				continue;
		}
		if (n && run.vpn + n == one.vpn && run.kind == one.kind && run.tag == one.tag && run.moved == one.moved) {
			n++;
			continue;
		}
		if (n)
			print_run(out, &run, n), fflush(out);
		run = one;
		n = 1;
	}
	if (n)
		print_run(out, &run, n);
	fclose(out);
	return text;
}

static void __attribute__((unused)) pages(int p, const char *text)
{
	free(process[p].pages);
	process[p].pages = strdup(text);
}

static void show_pages(void)
{
	for (int p = 0; p < NR_PROCESSES; p++) {
		char file[40];
		u64 end = 0;
		int fd;

		process[p].nr_now = 0;
		if (!process[p].live || process[p].under >= 0)
			continue;
		snprintf(file, sizeof file, "/proc/%d/pagemap", process[p].pid);
		fd = open(file, O_RDONLY);
		for (int i = 0; i < process[p].spans; i++) {
			struct span *span = &process[p].span[i];
			u64 from = span->vpn > end ? span->vpn : end;

			if (span->vpn + span->n <= end)
				continue;
			end = span->vpn + span->n;
			READ_PAGES(p, fd, from, end, SHOW_SWAPPED);
		}
		close(fd);
	}
	forget_ksm_pages();
	share();
	for (int p = 0; p < NR_PROCESSES; p++) {
		struct page *now = process[p].now;
		const char *model = process[p].pages ? process[p].pages : "";
		char *kernel = changes(p);

		if (process[p].live && process[p].under < 0 && steady("p.", name[p]) && !lies && (*model || *kernel))
			line(name[p], "pages", *model ? model : "-", *kernel ? kernel : "-", !strcmp(model, kernel));
		free(kernel);
		free(process[p].pages);
		process[p].pages = NULL;
		process[p].now = process[p].before;
		process[p].before = now;
		process[p].nr_before = process[p].nr_now;
		process[p].nr_now = 0;
	}
}

/* == vmstat == */
static long expected_vmstat[sizeof watched / sizeof *watched];

static void __attribute__((unused)) vmstat(const char *text)
{
	char its[64];
	long value;
	int used;

	for (; sscanf(text, " %63[^=]=%ld%n", its, &value, &used) == 2; text += used)
		for (size_t i = 0; i < sizeof watched / sizeof *watched; i++)
			if (!strcmp(watched[i], its))
				expected_vmstat[i] = value;
}

/* By what counters of the machine have changed since they were last asked. */
static void show_vmstat(int first)
{
	static long before[sizeof watched / sizeof *watched];
	FILE *file = fopen("/proc/vmstat", "r");
	char its[64];
	long now;

	while (fscanf(file, "%63s %ld", its, &now) == 2)
		for (size_t i = 0; i < sizeof watched / sizeof *watched; i++)
			if (!strcmp(watched[i], its)) {
				long grown = first ? 0 : now - before[i];

				if ((grown || expected_vmstat[i]) && steady("v.", its))
					number_line("vmstat", its, expected_vmstat[i], grown);
				expected_vmstat[i] = 0;
				before[i] = now;
			}
	fclose(file);
}

/* == compare == */
/* Ends an operation: all that was said of it since is held against the kernel. */
static __attribute__((unused)) void compare(const char *op)
{
	settle();
	heed_signals(0);
	differs = shown = 0;
	printf("%d  %s\n", records++, op);
	if ((ret || expected_ret) && steady("", "ret"))
		number_line("", "returned", expected_ret, ret);
	show_counters();
	for (int p = 0; p < NR_PROCESSES; p++)
		if (process[p].live)
			show_stat(p);
	show_pages();
	SHOW_VMSTAT();
	differing += differs;
	ret = expected_ret = 0;
	if (SETTLE)
		drain();
	fflush(stdout);
}
