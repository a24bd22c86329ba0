// SPDX-License-Identifier: GPL-2.0-only
/*
 * What BAR mappings and DMABUFs cost, one line "NAME VALUE" per figure. It is
 * "n/a" on a kernel without mmap() or revoke of DMABUFs, to compare with.
 *
 * The figures are differences of the cycle counter, which are exact where that
 * counts instructions: in QEMU with -icount shift=0,sleep=off and one CPU
 * ("vmtest.sh -i").
 *
 * With an argument, the number of threads, only their throughput is measured,
 * in real time.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <linux/compiler.h>
#include <linux/sizes.h>
#include <linux/types.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "kselftest.h"

#define NR_FAULTS	4096
#define NR_ROUNDS	101
#define NR_BUFFERS	1000
#define MAX_BUFFERS	10000
#define NR_OPENS	11
#define MAX_RANGES	16384
#define MAX_THREADS	16
#define NR_MAPPINGS	4

static struct vfio_pci_device *device;
static size_t page_size;
static u32 bar;
static u64 bar_offset;
/* A kernel with REVOKE has mmap() of DMABUFs, too. */
static bool can_mmap, can_revoke;

/* An unused page of address space whose page table stays for its neighbours */
static void *hole;

/* A prepared VFIO_DEVICE_FEATURE_DMA_BUF, so that only the ioctl is measured */
static struct vfio_device_feature *export_args;

static u64 cycles(void)
{
#if defined(__x86_64__) || defined(__i386__)
	return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
	u64 val;

	asm volatile("isb; mrs %0, cntvct_el0" : "=r"(val) : : "memory");
	return val;
#endif
}

/* CPU time of this thread. For real time libvfio has now_ns(). */
static u64 cpu_ns(void)
{
	struct timespec ts;

	VFIO_ASSERT_EQ(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts), 0);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

static void touch(const void *vaddr)
{
	READ_ONCE(*(const u8 *)vaddr);
}

#define print(_value, _name, ...) \
	printf(_name " %llu\n", ##__VA_ARGS__, (unsigned long long)(_value))
#define print_mean(_sum, _nr, _name, ...) \
	printf(_name " %.1f\n", ##__VA_ARGS__, (double)(_sum) / (_nr))
#define print_median(_values, _name, ...) \
	print(median(_values, ARRAY_SIZE(_values)), _name, ##__VA_ARGS__)
#define print_na(_name, ...) printf(_name " n/a\n", ##__VA_ARGS__)

static int compare(const void *a, const void *b)
{
	u64 x = *(const u64 *)a, y = *(const u64 *)b;

	return x < y ? -1 : x > y;
}

/* Leaves out a tick of the timer or a refill of a slab now and then */
static u64 median(u64 *values, int nr)
{
	qsort(values, nr, sizeof(*values), compare);
	return values[nr / 2];
}

static void prepare_export(u32 nr_ranges)
{
	struct vfio_device_feature_dma_buf *dma_buf;
	size_t argsz;
	u32 i;

	argsz = sizeof(*export_args) + sizeof(*dma_buf) +
		sizeof(dma_buf->dma_ranges[0]) * nr_ranges;
	free(export_args);
	export_args = calloc_assert(1, argsz);
	export_args->argsz = argsz;
	export_args->flags = VFIO_DEVICE_FEATURE_GET |
			     VFIO_DEVICE_FEATURE_DMA_BUF;

	dma_buf = (void *)export_args->data;
	dma_buf->region_index = bar;
	dma_buf->open_flags = O_RDWR | O_CLOEXEC;
	dma_buf->nr_ranges = nr_ranges;

	/* One page each, and none is followed by its physical neighbour */
	for (i = 0; i < nr_ranges; i++) {
		dma_buf->dma_ranges[i].offset = (i ^ 1) * page_size;
		dma_buf->dma_ranges[i].length = page_size;
	}
}

static int export_prepared(void)
{
	return ioctl(device->fd, VFIO_DEVICE_FEATURE, export_args);
}

static int export_assert(void)
{
	int fd = export_prepared();

	VFIO_ASSERT_GE(fd, 0);
	return fd;
}

static void *map_at(void *vaddr, int fd, u64 offset, size_t size)
{
	return mmap(vaddr, size, PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_FIXED, fd, offset);
}

static void map_assert(void *vaddr, int fd, u64 offset, size_t size)
{
	VFIO_ASSERT_EQ(map_at(vaddr, fd, offset, size), vaddr);
}

/* Reserve address space, and use the first page so that its page table stays. */
static void *reserve(size_t size)
{
	void *vaddr = mmap_reserve(size, SZ_2M, 0);

	VFIO_ASSERT_EQ(mprotect(vaddr, page_size, PROT_READ | PROT_WRITE), 0);
	*(u8 *)vaddr = 1;
	return vaddr;
}

static void find_features(void)
{
	void *vaddr;
	int fd;

	prepare_export(1);
	fd = export_assert();
	can_mmap = !__mmap_shared(fd, 0, page_size, PROT_READ, &vaddr);
	can_revoke = !__vfio_pci_dmabuf_revoke_fd(device->fd, fd);
	if (can_mmap)
		munmap_assert(vaddr, page_size);
	close_assert(fd);
}

static u64 touch_each_page(const void *vaddr, u64 nr)
{
	u64 i, start = cycles();

	for (i = 0; i < nr; i++)
		touch(vaddr + i * page_size);
	return cycles() - start;
}

/* Faults of one-page mappings, each at the same address, of changing pages */
static void one_page_faults(const char *name, int fd, u64 offset, u64 stride)
{
	u64 sum = 0;
	int i;

	for (i = 0; i < NR_FAULTS; i++) {
		map_assert(hole, fd, offset + i * stride, page_size);
		sum += touch_each_page(hole, 1);
		munmap_assert(hole, page_size);
	}
	print_mean(sum, NR_FAULTS, "%s", name);
}

/* Means over all ranges of a buffer of one-page ranges */
static void range_faults(void *vaddr, u32 nr_ranges)
{
	u32 rounds = nr_ranges < NR_FAULTS ? NR_FAULTS / nr_ranges : 1;
	size_t size = nr_ranges * page_size;
	u64 sum = 0;
	int fd, i;

	prepare_export(nr_ranges);
	fd = export_assert();
	for (i = 0; i < rounds; i++) {
		map_assert(vaddr, fd, 0, size);
		sum += touch_each_page(vaddr, nr_ranges);
		munmap_assert(vaddr, size);
	}
	print_mean(sum, (u64)rounds * nr_ranges, "fault_ranges_%u", nr_ranges);
	close_assert(fd);
}

static void measure_range_faults(void)
{
	void *vaddr;
	u32 nr;

	/*
	 * All at one address, as the place of a mapping in the tree of VMAs
	 * makes more of a difference than the ranges; out of reach of huge pages.
	 */
	vaddr = reserve((MAX_RANGES + 2) * page_size);
	for (nr = 1; nr <= MAX_RANGES; nr *= 2) {
		if (can_mmap)
			range_faults(vaddr + page_size, nr);
		else
			print_na("fault_ranges_%u", nr);
	}
	munmap_assert(vaddr, (MAX_RANGES + 2) * page_size);
}

/* mmap(), first access and munmap() of one page, and all of it, deferred too */
static void map_cycle(const char *what, int fd, u64 offset)
{
	u64 map[NR_ROUNDS], fault[NR_ROUNDS], unmap[NR_ROUNDS], sum[NR_ROUNDS];
	u64 t[4], start;
	int i;

	for (i = 0; i < NR_ROUNDS; i++) {
		t[0] = cycles();
		map_at(hole, fd, offset, page_size);
		t[1] = cycles();
		touch(hole);
		t[2] = cycles();
		munmap(hole, page_size);
		t[3] = cycles();

		map[i] = t[1] - t[0];
		fault[i] = t[2] - t[1];
		unmap[i] = t[3] - t[2];
		sum[i] = t[3] - t[0];
	}
	print_median(map, "%s_mmap", what);
	print_median(fault, "%s_first_fault", what);
	print_median(unmap, "%s_munmap", what);
	print_median(sum, "%s_cycle", what);

	start = cycles();
	for (i = 0; i < NR_FAULTS; i++) {
		map_at(hole, fd, offset, page_size);
		touch(hole);
		munmap(hole, page_size);
	}
	print_mean(cycles() - start, NR_FAULTS, "%s_cycle_mean", what);
}

static void measure_one_page(void)
{
	static const char * const names[] = {
		"fault_dmabuf", "dmabuf_mmap", "dmabuf_first_fault",
		"dmabuf_munmap", "dmabuf_cycle", "dmabuf_cycle_mean",
	};
	int fd, i;

	one_page_faults("fault_bar", device->fd, bar_offset, page_size);
	map_cycle("bar", device->fd, bar_offset);

	for (i = 0; i < ARRAY_SIZE(names) && !can_mmap; i++)
		print_na("%s", names[i]);
	if (!can_mmap)
		return;

	prepare_export(1);
	fd = export_assert();
	one_page_faults("fault_dmabuf", fd, 0, 0);
	map_cycle("dmabuf", fd, 0);
	close_assert(fd);
}

static void measure_export(void)
{
	u64 export[NR_ROUNDS], closing[NR_ROUNDS], t[3];
	int fd, i;

	prepare_export(1);
	for (i = 0; i < NR_ROUNDS; i++) {
		t[0] = cycles();
		fd = export_prepared();
		t[1] = cycles();
		close(fd);
		t[2] = cycles();

		VFIO_ASSERT_GE(fd, 0);
		export[i] = t[1] - t[0];
		closing[i] = t[2] - t[1];
	}
	print_median(export, "export");
	print_median(closing, "close");

	t[0] = cycles();
	for (i = 0; i < NR_FAULTS; i++)
		close(export_prepared());
	print_mean(cycles() - t[0], NR_FAULTS, "export_close_mean");
}

static u64 revoke_cycles(bool mapped)
{
	u64 values[NR_ROUNDS], start;
	int fd, i;

	prepare_export(1);
	for (i = 0; i < NR_ROUNDS; i++) {
		fd = export_assert();
		if (mapped) {
			map_assert(hole, fd, 0, page_size);
			touch(hole);
		}
		start = cycles();
		__vfio_pci_dmabuf_revoke_fd(device->fd, fd);
		values[i] = cycles() - start;
		if (mapped)
			munmap_assert(hole, page_size);
		close_assert(fd);
	}

	return median(values, NR_ROUNDS);
}

/* Revoke while @nr other buffers are mapped, which must not take new faults */
static void revoke_among(u32 nr)
{
	static int fds[MAX_BUFFERS];
	void *vaddr;
	u64 faults;
	u32 i;

	prepare_export(1);
	vaddr = mmap_reserve(nr * page_size, page_size, 0);
	for (i = 0; i < nr; i++) {
		fds[i] = export_assert();
		map_assert(vaddr + i * page_size, fds[i], 0, page_size);
	}
	touch_each_page(vaddr, nr);

	print(revoke_cycles(true), "revoke_among_%u", nr);

	faults = nr_page_faults();
	touch_each_page(vaddr, nr);
	print(nr_page_faults() - faults, "revoke_among_%u_faults", nr);

	munmap_assert(vaddr, nr * page_size);
	for (i = 0; i < nr; i++)
		close_assert(fds[i]);
}

static void measure_revoke(void)
{
	static const u32 others[] = { 1, 64, NR_BUFFERS, MAX_BUFFERS };
	int i;

	if (can_revoke) {
		print(revoke_cycles(false), "revoke");
		print(revoke_cycles(true), "revoke_mapped");
	} else {
		print_na("revoke");
		print_na("revoke_mapped");
	}

	for (i = 0; i < ARRAY_SIZE(others); i++) {
		if (can_revoke) {
			revoke_among(others[i]);
			continue;
		}
		print_na("revoke_among_%u", others[i]);
		print_na("revoke_among_%u_faults", others[i]);
	}
}

struct span {
	const char *name;
	bool dmabuf;
	u32 size;
	/* Of the address; without @align any */
	u32 align;
	bool misaligned;
	/* Where a second range starts; 0 for one range */
	u32 border;
};

/* Touch each page of a mapping once */
static void measure_span(const struct span *span)
{
	struct vfio_region_dma_range ranges[] = {
		{ .length = span->border ?: span->size },
		{ .offset = span->border, .length = span->size - span->border },
	};
	u64 nr = span->size / page_size, offset = 0, faults, sum;
	int fd = device->fd;
	void *vaddr;

	if (device->bars[bar].info.size < span->size ||
	    (span->dmabuf && !can_mmap)) {
		print_na("%s_faults", span->name);
		print_na("%s_per_page", span->name);
		return;
	}

	if (span->dmabuf)
		fd = vfio_pci_dmabuf_export(device, bar, ranges,
					    span->border ? 2 : 1);
	else
		offset = bar_offset;

	vaddr = !span->align ? mmap_shared(fd, offset, span->size) :
		mmap_shared_aligned(fd, offset, span->size, span->align,
				    span->misaligned ? page_size : 0);
	faults = nr_page_faults();
	sum = touch_each_page(vaddr, nr);
	print(nr_page_faults() - faults, "%s_faults", span->name);
	print_mean(sum, nr, "%s_per_page", span->name);

	munmap_assert(vaddr, span->size);
	if (span->dmabuf)
		close_assert(fd);
}

static void measure_spans(void)
{
	static const struct span spans[] = {
		{ "bar_2g", false, SZ_2G, SZ_1G },
		{ "dmabuf_2g", true, SZ_2G, SZ_1G },
		/* Adjacent ranges, with the border inside a huge page */
		{ "dmabuf_16m_merged", true, SZ_16M, SZ_2M, false, SZ_1M },
		{ "bar_16m", false, SZ_16M },
		{ "bar_16m_misaligned", false, SZ_16M, SZ_2M, true },
		{ "dmabuf_16m_misaligned", true, SZ_16M, SZ_2M, true },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(spans); i++)
		measure_span(&spans[i]);
}

/* Of a mapping in which no large page fits, touched once */
static void measure_misaligned_touch(void)
{
	u64 values[NR_ROUNDS];
	void *vaddr;
	int i;

	for (i = 0; i < NR_ROUNDS; i++) {
		vaddr = mmap_shared_aligned(device->fd, bar_offset,
					    SZ_16M, SZ_2M, page_size);
		values[i] = touch_each_page(vaddr + SZ_4M, 1);
		munmap_assert(vaddr, SZ_16M);
	}
	print_median(values, "bar_misaligned_touch");
}

static u64 meminfo(const char *field)
{
	FILE *file = fopen("/proc/meminfo", "r");
	char line[128];
	u64 kib = 0;

	VFIO_ASSERT_NOT_NULL(file);
	while (fgets(line, sizeof(line), file)) {
		if (!strncmp(line, field, strlen(field)))
			kib = strtoull(line + strlen(field), NULL, 10);
	}
	VFIO_ASSERT_EQ(fclose(file), 0);
	return kib * SZ_1K;
}

/* Kernel memory of a buffer with its file, of a mapping, and of a range more */
static void measure_memory(void)
{
	static void *maps[MAX_BUFFERS];	/* many: slabs are counted by the page */
	int fds[NR_BUFFERS];
	u64 slab, used;
	int i, nr = 64;

	prepare_export(1);
	slab = meminfo("Slab:");
	for (i = 0; i < NR_BUFFERS; i++)
		fds[i] = export_assert();
	print((meminfo("Slab:") - slab) / NR_BUFFERS, "memory_per_dmabuf");
	for (i = 0; i < NR_BUFFERS; i++)
		close_assert(fds[i]);

	slab = meminfo("Slab:");
	for (i = 0; i < MAX_BUFFERS; i++)
		maps[i] = mmap_shared(device->fd, bar_offset, page_size);
	print((meminfo("Slab:") - slab) / MAX_BUFFERS, "memory_per_bar_mapping");
	for (i = 0; i < MAX_BUFFERS; i++)
		munmap_assert(maps[i], page_size);

	prepare_export(MAX_RANGES);
	used = meminfo("MemFree:");
	for (i = 0; i < nr; i++)
		fds[i] = export_assert();
	used -= meminfo("MemFree:");
	print_mean(used, nr * MAX_RANGES, "memory_per_range");
	for (i = 0; i < nr; i++)
		close_assert(fds[i]);
}

static pthread_barrier_t barrier;

struct worker {
	pthread_t thread;
	int fd;
	u64 offset;
	long waits;
};

static long nr_waits(void)
{
	struct rusage usage;

	VFIO_ASSERT_EQ(getrusage(RUSAGE_THREAD, &usage), 0);
	return usage.ru_nvcsw;
}

/* Map first, so that nothing but faults happens between the barriers */
static void *work(void *arg)
{
	size_t size = NR_FAULTS * page_size;
	struct worker *w = arg;
	void *vaddr;
	u32 i;

	vaddr = mmap_reserve(NR_MAPPINGS * size, SZ_2M, page_size);
	for (i = 0; i < NR_MAPPINGS; i++)
		map_assert(vaddr + i * size, w->fd, w->offset, size);

	pthread_barrier_wait(&barrier);
	w->waits = nr_waits();
	touch_each_page(vaddr, NR_MAPPINGS * NR_FAULTS);
	w->waits = nr_waits() - w->waits;
	pthread_barrier_wait(&barrier);

	munmap_assert(vaddr, NR_MAPPINGS * size);
	return NULL;
}

/*
 * Nanoseconds of real time per page of all threads together, and how often a
 * thread slept, as it does for an exclusive lock that another one holds.
 */
static void run_threads(const char *what, const int *fds, bool same_fd,
			u64 offset, u32 nr)
{
	struct worker workers[MAX_THREADS];
	long waits = 0;
	u64 time;
	u32 i;

	VFIO_ASSERT_EQ(pthread_barrier_init(&barrier, NULL, nr + 1), 0);
	for (i = 0; i < nr; i++) {
		workers[i].fd = fds[same_fd ? 0 : i];
		workers[i].offset = offset;
		VFIO_ASSERT_EQ(pthread_create(&workers[i].thread, NULL, work,
					      &workers[i]), 0);
	}
	pthread_barrier_wait(&barrier);
	time = now_ns();
	pthread_barrier_wait(&barrier);
	time = now_ns() - time;
	for (i = 0; i < nr; i++) {
		VFIO_ASSERT_EQ(pthread_join(workers[i].thread, NULL), 0);
		waits += workers[i].waits;
	}
	pthread_barrier_destroy(&barrier);

	print_mean(time, nr * NR_MAPPINGS * NR_FAULTS, "threads_%u_%s_ns", nr,
		   what);
	print(waits, "threads_%u_%s_waits", nr, what);
}

static void measure_threads(u32 nr)
{
	int fds[MAX_THREADS];
	u32 i;

	run_threads("bar", &device->fd, true, bar_offset, nr);
	if (!can_mmap)
		return;

	/* Pages in ranges of their own are faulted in one by one */
	prepare_export(NR_FAULTS);
	for (i = 0; i < nr; i++)
		fds[i] = export_assert();
	run_threads("one_dmabuf", fds, true, 0, nr);
	run_threads("dmabufs", fds, false, 0, nr);
	for (i = 0; i < nr; i++)
		close_assert(fds[i]);
}

/* In nanoseconds of CPU time, as the kernel sleeps now and then */
static void measure_open(const char *bdf, struct iommu *iommu)
{
	u64 values[NR_OPENS], start;
	char path[PATH_MAX];
	int i, ret;

	/* Without a method there is no reset, and without reset no file. */
	snprintf_assert(path, (int)sizeof(path),
			"/sys/bus/pci/devices/%s/reset_method", bdf);
	ret = write_file(path, 0, "\n");
	VFIO_ASSERT_TRUE(!ret || ret == -ENOENT);
	for (i = 0; i < NR_OPENS; i++) {
		start = cpu_ns();
		vfio_pci_device_cleanup(vfio_pci_device_init(bdf, iommu));
		values[i] = cpu_ns() - start;
	}
	VFIO_ASSERT_EQ(write_file(path, 0, "default\n"), ret);
	print_median(values, "open_close");
}

static void open_device(int *argc, char *argv[])
{
	struct rlimit limit = { MAX_BUFFERS + NR_BUFFERS,
				MAX_BUFFERS + NR_BUFFERS };
	struct iommu *iommu;
	const char *bdf;
	int index;

	/* By default the one with a BAR of 2 GiB in the guest of vmtest.sh */
	bdf = vfio_selftests_get_named_bdf("VFIO_IVSHMEM_BDF");
	if (bdf)
		VFIO_ASSERT_EQ(setenv("VFIO_SELFTESTS_BDF", bdf, true), 0);
	bdf = vfio_selftests_get_bdf(argc, argv);

	page_size = getpagesize();
	iommu = iommu_init(default_iommu_mode);
	measure_open(bdf, iommu);
	device = vfio_pci_device_init(bdf, iommu);
	index = vfio_pci_memory_bar(device, MAX_RANGES * page_size);
	if (index < 0)
		ksft_exit_skip("%s: no BAR of plain memory with %lu pages\n",
			       bdf, (unsigned long)MAX_RANGES);
	bar = index;
	bar_offset = vfio_pci_region_offset(device, bar);
	VFIO_ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

int main(int argc, char *argv[])
{
	u32 nr_threads;

	open_device(&argc, argv);
	nr_threads = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
	if (argc > 1 && (!nr_threads || nr_threads > MAX_THREADS)) {
		fprintf(stderr, "usage: %s [THREADS] [BDF]\n", argv[0]);
		return KSFT_FAIL;
	}

	hole = reserve(SZ_2M) + 16 * page_size;
	munmap_assert(hole, page_size);
	find_features();

	if (nr_threads) {
		measure_threads(nr_threads);
	} else {
		/* First, as the others leave free objects behind */
		measure_memory();
		measure_one_page();
		measure_range_faults();
		measure_export();
		measure_revoke();
		measure_spans();
		measure_misaligned_touch();
	}

	free(export_args);
	return KSFT_PASS;
}
