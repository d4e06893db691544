/* == held == */
/* Descriptors that a process holds: of pins, buffers, its userfaultfd. */
struct held { int p; u64 vpn; char kind; int fd, other; };
static struct held held[1024];
static int nr_held;

static struct held *find_held(int p, char kind, u64 vpn)
{
	for (int i = 0; i < nr_held; i++)
		if (held[i].p == p && held[i].kind == kind && held[i].vpn == vpn)
			return &held[i];
	return NULL;
}

static void __attribute__((unused)) close_held(int p, char kind, u64 vpn)
{
	struct held *one = find_held(p, kind, vpn);

	if (!one)
		return;
	CALL(p, SYS_close, (u64)one->fd);
	if (one->other >= 0)
		CALL(p, SYS_close, (u64)one->other);
	*one = held[--nr_held];
}

static void hold(int p, char kind, u64 vpn, long fd, long other)
{
	if (nr_held == 1024)
		die("more pins than were thought of");
	held[nr_held++] = (struct held){p, vpn, kind, (int)fd, (int)other};
}

/* A process ends or runs another program: buffers go by hand, the kernel would give them back some time after. */
static void __attribute__((unused)) drop_held(int p)
{
	for (int i = nr_held - 1; i >= 0; i--)
		if (held[i].p == p) {
			if (held[i].kind == 'b')
				CALL(p, SYS_io_uring_register, (u64)held[i].fd, 1 /* IORING_UNREGISTER_BUFFERS */);
			if (held[i].kind == 'b')
				CALL(p, SYS_close, (u64)held[i].fd);
			held[i] = held[--nr_held];
		}
}

/* == pin: held == */
static void op_pin(int p, u64 vpn)
{
	u64 *range = (void *)SLOT(p)->data;
	int *end = (void *)(range + 2);

	if ((ret = CALL(p, SYS_pipe2, (u64)end, O_CLOEXEC)) < 0)
		return;
	range[0] = AT(vpn), range[1] = PAGE;
	if ((ret = CALL(p, SYS_vmsplice, (u64)end[1], (u64)range, 1, 0)) != (long)PAGE) {
		CALL(p, SYS_close, (u64)end[0]);
		CALL(p, SYS_close, (u64)end[1]);
		return;
	}
	close_held(p, 'p', vpn);
	hold(p, 'p', vpn, end[0], end[1]);
	ret = 0;
}

/* == unpin: held == */
static void op_unpin(int p, u64 vpn) { close_held(p, 'p', vpn); }

/* == dmaunpin: held == */
static void op_dmaunpin(int p, u64 vpn)
{
	struct held *one = find_held(p, 'b', vpn);

	if (one)
		CALL(p, SYS_io_uring_register, (u64)one->fd, 1 /* IORING_UNREGISTER_BUFFERS */);
	close_held(p, 'b', vpn);
}

/* == dmapin: dmaunpin == */
static void op_dmapin(int p, u64 vpn, u64 n)
{
	u64 *range = (void *)SLOT(p)->data;
	long ring;

	memset(range, 0, 256);
	if ((ret = ring = CALL(p, SYS_io_uring_setup, 1, (u64)range)) < 0)
		return;
	range[0] = AT(vpn), range[1] = PAGES(n);
	if ((ret = CALL(p, SYS_io_uring_register, (u64)ring, 0 /* IORING_REGISTER_BUFFERS */, (u64)range, 1)) < 0) {
		CALL(p, SYS_close, (u64)ring);
		return;
	}
	op_dmaunpin(p, vpn);
	hold(p, 'b', vpn, ring, -1);
	ret = 0;
}

/* == uffd_request: held == */
enum { UFFD_API = 0xC018AA3F, UFFD_REGISTER = 0xC020AA00, UFFD_UNREGISTER = 0x8010AA01, UFFD_COPY = 0xC028AA03,
       UFFD_ZEROPAGE = 0xC020AA04, UFFD_MOVE = 0xC028AA05, UFFD_WRITEPROTECT = 0xC018AA06 };
/* there is nobody to answer a fault: a missing page gives SIGBUS, a store to a protected one is let through */
enum { SIGBUS_ON_MISSING = 1 << 7, WP_UNPOPULATED = 1 << 13, WP_ASYNC = 1 << 15, CAN_MOVE = 1 << 16 };

static long open_uffd(int p)
{
	static const u64 features[] = {SIGBUS_ON_MISSING | WP_ASYNC | WP_UNPOPULATED | CAN_MOVE,
				       SIGBUS_ON_MISSING | WP_ASYNC | WP_UNPOPULATED, SIGBUS_ON_MISSING};
	struct held *one = find_held(p, 'u', 0);
	u64 *data = (void *)SLOT(p)->data;
	long fd, error = 0;

	if (one)
		return one->fd;
	for (int i = 0; i < 3; i++) {
		if ((fd = CALL(p, SYS_userfaultfd, O_CLOEXEC)) < 0)
			return fd;
		memcpy(data, (u64[3]){0xAA, features[i]}, 24);
		if ((error = CALL(p, SYS_ioctl, (u64)fd, UFFD_API, (u64)data)) == 0) {
			hold(p, 'u', 0, fd, -1);
			return fd;
		}
		CALL(p, SYS_close, (u64)fd);
	}
	return error;
}

/* An ioctl of the process's userfaultfd; the words of its structure are in the slot's data afterwards. */
static long __attribute__((unused)) uffd_request(int p, u64 request, u64 a, u64 b, u64 c, u64 d, u64 e)
{
	long fd = open_uffd(p);

	memcpy(SLOT(p)->data, (u64[5]){a, b, c, d, e}, 40);
	return fd < 0 ? fd : CALL(p, SYS_ioctl, (u64)fd, request, (u64)SLOT(p)->data);
}

/* == uffd: uffd_request == */
static void op_uffd(int p, u64 vpn, u64 n, u64 mode) { ret = uffd_request(p, UFFD_REGISTER, AT(vpn), PAGES(n), mode, 0, 0); }

/* == uffd_unregister: uffd_request == */
static void op_uffd_unregister(int p, u64 vpn, u64 n) { ret = uffd_request(p, UFFD_UNREGISTER, AT(vpn), PAGES(n), 0, 0, 0); }

/* == uffd_protect: uffd_request == */
static void op_uffd_protect(int p, u64 vpn, u64 n, u64 on)
{
	ret = uffd_request(p, UFFD_WRITEPROTECT, AT(vpn), PAGES(n), on, 0, 0);
}

/* == uffd_copy: uffd_request == */
static void op_uffd_copy(int p, u64 vpn, u64 mode, const u64 *id, size_t n)
{
	u64 *page = (void *)(SLOT(p)->data + PAGE);

	ret = open_uffd(p);
	ret = ret < 0 ? ret : 0;
	for (size_t i = 0; i < n && ret == 0; i++) {
		memset(page, 0, PAGE);
		page[0] = __builtin_bswap64(id[i]);
		ret = uffd_request(p, UFFD_COPY, AT(vpn + i), (u64)page, PAGE, mode, 0);
	}
}

/* == uffd_zero: uffd_request == */
static void op_uffd_zero(int p, u64 vpn, u64 n)
{
	for (u64 i = 0; i < n && ret == 0; i++)
		ret = uffd_request(p, UFFD_ZEROPAGE, AT(vpn + i), PAGE, 0, 0, 0);
}

/* == uffd_move: uffd_request == */
static void op_uffd_move(int p, u64 vpn, u64 from, u64 n)
{
	for (u64 done = 0; done < n && ret == 0;) {
		long error = uffd_request(p, UFFD_MOVE, AT(vpn + done), AT(from + done), PAGES(n - done), 0, 0);
		long moved = error && error != -EAGAIN ? error : ((long *)SLOT(p)->data)[4];

		ret = moved > 0 ? 0 : moved ? moved : -EAGAIN;
		done += moved > 0 ? (u64)moved / PAGE : 0;
	}
}

/* == uffd_wp: uffd_request == */
/* By a userfaultfd for this alone, which stays open: to close it is to undo it. */
static void op_uffd_wp(int p, u64 vpn, u64 n)
{
	u64 *data = (void *)SLOT(p)->data;
	long fd = CALL(p, SYS_userfaultfd, O_CLOEXEC);

	memcpy(data, (u64[10]){0xAA, WP_ASYNC, 0, AT(vpn), PAGES(n), 2, 0, AT(vpn), PAGES(n), 1}, 80);
	ret = fd < 0 ? fd : CALL(p, SYS_ioctl, (u64)fd, UFFD_API, (u64)data);
	ret = ret < 0 ? ret : CALL(p, SYS_ioctl, (u64)fd, UFFD_REGISTER, (u64)(data + 3));
	ret = ret < 0 ? ret : CALL(p, SYS_ioctl, (u64)fd, UFFD_WRITEPROTECT, (u64)(data + 7));
	if (ret < 0 && fd >= 0)
		CALL(p, SYS_close, (u64)fd);
}

/* == cgroup == */
static char cgroup[256];

static void remove_cgroup(void)
{
	for (int i = 0; rmdir(cgroup) < 0 && errno == EBUSY && i < 500; i++)
		usleep(10000);
}

static void make_cgroup(void)
{
	FILE *mounts = fopen("/proc/self/mounts", "r");
	char place[200], kind[32], options[256], text[256];

	while (!*cgroup && fscanf(mounts, "%*s %199s %31s %255s %*d %*d", place, kind, options) == 3) {
		int one = !strcmp(kind, "cgroup") && strstr(options, "memory");
		int two = !strcmp(kind, "cgroup2") && !read_file(path_of(place, "/cgroup.subtree_control"), text, sizeof text) &&
			  strstr(text, "memory");

		if (one || two)
			snprintf(cgroup, sizeof cgroup, "%s/reproduce-%d", place, getpid());
	}
	fclose(mounts);
	if (!*cgroup || mkdir(cgroup, 0700) < 0)
		die("no memory cgroup can be made");
	undo[nr_undo++] = remove_cgroup;
}

static void join_cgroup(int pid)
{
	char text[12];

	snprintf(text, sizeof text, "%d", pid);
	if (write_file(path_of(cgroup, "/cgroup.procs"), text))
		die("a process can't be put into %s", cgroup);
}

/* == reclaim: cgroup == */
static void op_reclaim(int wait)
{
	char file[40];

	if (wait)
		heed_signals(2.2); /* until the cgroup's statistics are up to date: they say what is in use */
	for (int p = 0; p < NR_PROCESSES; p++)
		if (process[p].live) {
			snprintf(file, sizeof file, "/proc/%d/clear_refs", process[p].pid);
			write_file(file, "1");
		}
	if ((ret = write_file(path_of(cgroup, "/memory.force_empty"), "0")) == -ENOENT)
		ret = write_file(path_of(cgroup, "/memory.reclaim"), "1G");
	ret = ret == -EAGAIN ? 0 : ret; /* less than was asked for: all there was */
}

/* == swap == */
#include <sys/swap.h>
#include <sys/sysmacros.h>

static long zram = -1;
static char device[40];

static void remove_swap(void)
{
	char text[16], file[64];

	snprintf(text, sizeof text, "%ld", zram);
	snprintf(file, sizeof file, "/sys/block/zram%ld/reset", zram);
	swapoff(device);
	for (int i = 0; write_file(file, "1") == -EBUSY && i < 500; i++)
		usleep(10000);
	for (int i = 0; write_file("/sys/class/zram-control/hot_remove", text) == -EBUSY && i < 500; i++)
		usleep(10000);
	unlink("/run/reproduce-swap");
}

/* The only swap device: compressed memory. */
static void make_swap(u64 mib)
{
	char text[64], file[64];
	uint32_t page[PAGE / 4] = {0};
	char others[4096];
	struct stat is;
	int fd = open("/proc/swaps", O_RDONLY), major_nr, minor_nr;
	ssize_t n = fd < 0 ? -1 : read(fd, others, sizeof others);

	/* behind the line that names the columns there is one for each */
	if (n < 0 || memchr(others, '\n', (size_t)n) != others + n - 1)
		die(n < 0 ? "no swap in this kernel" : "other swap is in use");
	close(fd);
	if ((zram = read_number("/sys/class/zram-control/hot_add", -1)) < 0)
		die("no zram (a kernel without it, or its module is not loaded)");
	snprintf(device, sizeof device, "/dev/zram%ld", zram);
	undo[nr_undo++] = remove_swap;
	snprintf(file, sizeof file, "/sys/block/zram%ld/dev", zram);
	read_file(file, text, sizeof text);
	if (sscanf(text, "%d:%d", &major_nr, &minor_nr) == 2 && stat(device, &is) < 0) {
		strcpy(device, "/run/reproduce-swap");
		unlink(device);
		mknod(device, S_IFBLK | 0600, makedev((unsigned)major_nr, (unsigned)minor_nr));
	}
	snprintf(file, sizeof file, "/sys/block/zram%ld/disksize", zram);
	snprintf(text, sizeof text, "%lu", mib << 20);
	write_file(file, text);
	memset(page, 0, sizeof page);
	page[256] = 1, page[257] = (uint32_t)((mib << 20) / PAGE - 1);
	memcpy((char *)page + PAGE - 10, "SWAPSPACE2", 10);
	fd = open(device, O_WRONLY);
	if (write(fd, page, PAGE) != (ssize_t)PAGE || fsync(fd) < 0 || close(fd) < 0 || swapon(device, 0) < 0)
		die("%s can't be swapped to: %s", device, strerror(errno));
}

/* == swapoff: swap == */
static void op_swapoff(void) { ret = swapoff(device) < 0 ? -errno : 0; }

/* == swapon: swap == */
static void op_swapon(void) { ret = swapon(device, 0) < 0 ? -errno : 0; }

/* == khuge == */
#include <sys/resource.h>

static int khugepaged, its_nice;

static void khugepaged_as_before(void) { setpriority(PRIO_PROCESS, (id_t)khugepaged, its_nice); }

/* One pass of khugepaged over all processes: it begins a batch when its time between batches is changed. */
static void op_khuge(void)
{
	char text[64], scans[64], sleep_now[64], batch_now[64];
	double waited = 0;

	if (!read_file(THP "enabled", text, sizeof text) && !strcmp(text, "never"))
		return; /* there is none */
	if (!khugepaged) {
		if (!(khugepaged = kernel_thread("khugepaged"))) {
			ret = -ESRCH;
			return;
		}
		its_nice = getpriority(PRIO_PROCESS, (id_t)khugepaged);
		undo[nr_undo++] = khugepaged_as_before;
		setpriority(PRIO_PROCESS, (id_t)khugepaged, 0);
	}
	read_file(THP "khugepaged/full_scans", scans, sizeof scans);
	read_file(THP "khugepaged/pages_to_scan", batch_now, sizeof batch_now);
	write_file(THP "khugepaged/pages_to_scan", "4294967295");
	for (int i = 0; (read_file(THP "khugepaged/full_scans", text, sizeof text), !strcmp(text, scans)) || !asleep(khugepaged); i++) {
		if (i % 2000 == 0) {
			read_file(THP "khugepaged/scan_sleep_millisecs", sleep_now, sizeof sleep_now);
			write_file(THP "khugepaged/scan_sleep_millisecs", strcmp(sleep_now, "4294967294") ? "4294967294" : "4294967295");
		}
		heed_signals(0.0005);
		if ((waited += 0.0005) > 120)
			die("khugepaged makes no pass");
	}
	write_file(THP "khugepaged/pages_to_scan", batch_now);
}
