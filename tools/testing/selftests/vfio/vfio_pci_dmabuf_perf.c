// SPDX-License-Identifier: GPL-2.0-only
/*
 * What BAR mappings and DMABUFs cost, one line "NAME VALUE" per figure, "n/a"
 * where the kernel has no such thing: the program runs on kernels from before
 * mmap() and revoke of a DMABUF, to compare with.
 *
 * The costs are differences of the cycle counter. They are exact where that
 * counts instructions, in a guest of QEMU with -icount shift=0,sleep=off and
 * one CPU ("vmtest.sh -i"); on hardware take them for what such figures are.
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
#define SPAN_SIZE	SZ_16M
#define HUGE_BAR_SIZE	SZ_2G

static struct vfio_pci_device *device;
static size_t page_size;
static u32 bar;
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

static void touch(const void *vaddr)
{
	READ_ONCE(*(const u8 *)vaddr);
}

static long nr_faults(void)
{
	struct rusage usage;

	VFIO_ASSERT_EQ(getrusage(RUSAGE_THREAD, &usage), 0);
	return usage.ru_minflt;
}

static void print(const char *name, u64 value)
{
	printf("%s %llu\n", name, (unsigned long long)value);
}

static void print_na(const char *name)
{
	printf("%s n/a\n", name);
}

static void print_mean(const char *name, u64 sum, u64 nr)
{
	printf("%s %.1f\n", name, (double)sum / nr);
}

static int compare(const void *a, const void *b)
{
	u64 x = *(const u64 *)a, y = *(const u64 *)b;

	return x < y ? -1 : x > y;
}

/* A tick of the timer or a refill of a slab now and then is left out by this */
static void print_median(const char *name, u64 *values, int nr)
{
	qsort(values, nr, sizeof(*values), compare);
	print(name, values[nr / 2]);
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

	VFIO_ASSERT_GE(fd, 0, "Export failed: %s\n", strerror(errno));
	return fd;
}

static void *map_at(void *vaddr, int fd, u64 offset, size_t size)
{
	return mmap(vaddr, size, PROT_READ | PROT_WRITE,
		    MAP_SHARED | (vaddr ? MAP_FIXED : 0), fd, offset);
}

static void *map_assert(void *vaddr, int fd, u64 offset, size_t size)
{
	vaddr = map_at(vaddr, fd, offset, size);
	VFIO_ASSERT_NE(vaddr, MAP_FAILED, "mmap failed: %s\n", strerror(errno));
	return vaddr;
}

static u64 bar_offset(u64 offset)
{
	return vfio_pci_region_offset(device, bar) + offset;
}

static void make_hole(void)
{
	u8 *vaddr = mmap_reserve(SZ_2M, SZ_2M, 0);

	VFIO_ASSERT_EQ(mprotect(vaddr, page_size, PROT_READ | PROT_WRITE), 0);
	*vaddr = 1;
	hole = vaddr + 16 * page_size;
	VFIO_ASSERT_EQ(munmap(hole, page_size), 0);
}

static void find_features(void)
{
	void *vaddr;
	int fd;

	prepare_export(1);
	fd = export_assert();
	vaddr = map_at(NULL, fd, 0, page_size);
	can_mmap = vaddr != MAP_FAILED;
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
	print_mean(name, sum, NR_FAULTS);
}

static void measure_one_page_faults(void)
{
	int fd;

	one_page_faults("fault_bar", device->fd, bar_offset(0), page_size);
	if (!can_mmap)
		return print_na("fault_dmabuf");

	prepare_export(1);
	fd = export_assert();
	one_page_faults("fault_dmabuf", fd, 0, 0);
	close_assert(fd);
}

/* Means over all ranges of a buffer of one-page ranges */
static void range_faults(const char *name, void *vaddr, u32 nr_ranges)
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
	print_mean(name, sum, (u64)rounds * nr_ranges);
	close_assert(fd);
}

static void measure_range_faults(void)
{
	char name[32];
	void *vaddr;
	u32 nr;

	/*
	 * All at one address, with the same neighbours: where a mapping is in
	 * the tree of VMAs makes more of a difference than the ranges. Behind
	 * a page that keeps the first page table, out of reach of huge pages.
	 */
	vaddr = mmap_reserve((MAX_RANGES + 2) * page_size, SZ_2M, 0);
	VFIO_ASSERT_EQ(mprotect(vaddr, page_size, PROT_READ | PROT_WRITE), 0);
	*(u8 *)vaddr = 1;

	for (nr = 1; nr <= MAX_RANGES; nr *= 2) {
		snprintf_assert(name, sizeof(name), "fault_ranges_%u", nr);
		if (can_mmap)
			range_faults(name, vaddr + page_size, nr);
		else
			print_na(name);
	}
	munmap_assert(vaddr, (MAX_RANGES + 2) * page_size);
}

/* mmap(), first access and munmap() of one page, and all of it, deferred too */
static void map_cycle(const char *what, int fd, u64 offset)
{
	u64 map[NR_ROUNDS], fault[NR_ROUNDS], unmap[NR_ROUNDS], sum[NR_ROUNDS];
	u64 t[4], start;
	char name[32];
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
	snprintf_assert(name, sizeof(name), "%s_mmap", what);
	print_median(name, map, NR_ROUNDS);
	snprintf_assert(name, sizeof(name), "%s_first_fault", what);
	print_median(name, fault, NR_ROUNDS);
	snprintf_assert(name, sizeof(name), "%s_munmap", what);
	print_median(name, unmap, NR_ROUNDS);
	snprintf_assert(name, sizeof(name), "%s_cycle", what);
	print_median(name, sum, NR_ROUNDS);

	start = cycles();
	for (i = 0; i < NR_FAULTS; i++) {
		map_at(hole, fd, offset, page_size);
		touch(hole);
		munmap(hole, page_size);
	}
	snprintf_assert(name, sizeof(name), "%s_cycle_mean", what);
	print_mean(name, cycles() - start, NR_FAULTS);
}

static void measure_map_cycle(void)
{
	int fd;

	map_cycle("bar", device->fd, bar_offset(0));
	if (!can_mmap) {
		print_na("dmabuf_mmap");
		print_na("dmabuf_first_fault");
		print_na("dmabuf_munmap");
		print_na("dmabuf_cycle");
		print_na("dmabuf_cycle_mean");
		return;
	}

	prepare_export(1);
	fd = export_assert();
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
	print_median("export", export, NR_ROUNDS);
	print_median("close", closing, NR_ROUNDS);

	t[0] = cycles();
	for (i = 0; i < NR_FAULTS; i++)
		close(export_prepared());
	print_mean("export_close_mean", cycles() - t[0], NR_FAULTS);
}

static void revokes(const char *name, bool mapped)
{
	u64 values[NR_ROUNDS], start;
	void *vaddr;
	int fd, i;

	if (!can_revoke || (mapped && !can_mmap))
		return print_na(name);

	prepare_export(1);
	for (i = 0; i < NR_ROUNDS; i++) {
		fd = export_assert();
		if (mapped) {
			vaddr = map_assert(hole, fd, 0, page_size);
			touch(vaddr);
		}
		start = cycles();
		__vfio_pci_dmabuf_revoke_fd(device->fd, fd);
		values[i] = cycles() - start;
		if (mapped)
			munmap_assert(vaddr, page_size);
		close_assert(fd);
	}
	print_median(name, values, NR_ROUNDS);
}

/* Revoke while @nr other buffers are mapped, which are not to notice */
static void revoke_among(u32 nr)
{
	static int fds[MAX_BUFFERS];
	char name[32];
	void *vaddr;
	long faults;
	u32 i;

	prepare_export(1);
	vaddr = mmap_reserve(nr * page_size, page_size, 0);
	for (i = 0; i < nr; i++) {
		fds[i] = export_assert();
		map_assert(vaddr + i * page_size, fds[i], 0, page_size);
	}
	touch_each_page(vaddr, nr);

	snprintf_assert(name, sizeof(name), "revoke_among_%u", nr);
	revokes(name, true);

	faults = nr_faults();
	touch_each_page(vaddr, nr);
	snprintf_assert(name, sizeof(name), "revoke_among_%u_faults", nr);
	print(name, nr_faults() - faults);

	munmap_assert(vaddr, nr * page_size);
	for (i = 0; i < nr; i++)
		close_assert(fds[i]);
}

static void measure_revoke(void)
{
	static const u32 others[] = { 1, 64, NR_BUFFERS, MAX_BUFFERS };
	char name[32];
	int i;

	revokes("revoke", false);
	revokes("revoke_mapped", true);

	for (i = 0; i < ARRAY_SIZE(others); i++) {
		if (can_mmap && can_revoke) {
			revoke_among(others[i]);
			continue;
		}
		snprintf_assert(name, sizeof(name), "revoke_among_%u",
				others[i]);
		print_na(name);
		snprintf_assert(name, sizeof(name), "revoke_among_%u_faults",
				others[i]);
		print_na(name);
	}
}

/* Of touching each page of a mapping once; without @align at any address */
static void span_faults(const char *what, int fd, u64 offset, size_t size,
			size_t align, size_t misalign)
{
	u64 nr = size / page_size;
	char name[48];
	void *vaddr;
	long faults;
	u64 sum;

	vaddr = align ? mmap_shared_aligned(fd, offset, size, align, misalign) :
			map_assert(NULL, fd, offset, size);
	faults = nr_faults();
	sum = touch_each_page(vaddr, nr);
	faults = nr_faults() - faults;
	munmap_assert(vaddr, size);

	snprintf_assert(name, sizeof(name), "%s_faults", what);
	print(name, faults);
	snprintf_assert(name, sizeof(name), "%s_per_page", what);
	print_mean(name, sum, nr);
}

static void dmabuf_span(const char *what, const struct vfio_region_dma_range *r,
			u32 nr, size_t size, size_t align, size_t misalign)
{
	char name[48];
	int fd;

	if (!can_mmap || device->bars[bar].info.size < size) {
		snprintf_assert(name, sizeof(name), "%s_faults", what);
		print_na(name);
		snprintf_assert(name, sizeof(name), "%s_per_page", what);
		return print_na(name);
	}

	fd = vfio_pci_dmabuf_export(device, bar, r, nr);
	span_faults(what, fd, 0, size, align, misalign);
	close_assert(fd);
}

static void measure_spans(void)
{
	struct vfio_region_dma_range huge = { .length = HUGE_BAR_SIZE };
	struct vfio_region_dma_range span = { .length = SPAN_SIZE };
	struct vfio_region_dma_range halves[] = {
		{ .length = SZ_1M },
		{ .offset = SZ_1M, .length = SPAN_SIZE - SZ_1M },
	};

	if (device->bars[bar].info.size >= HUGE_BAR_SIZE) {
		span_faults("bar_2g", device->fd, bar_offset(0), HUGE_BAR_SIZE,
			    SZ_1G, 0);
	} else {
		print_na("bar_2g_faults");
		print_na("bar_2g_per_page");
	}
	dmabuf_span("dmabuf_2g", &huge, 1, HUGE_BAR_SIZE, SZ_1G, 0);

	/* Two ranges that are neighbours, with the border inside a huge page */
	dmabuf_span("dmabuf_16m_merged", halves, 2, SPAN_SIZE, SZ_2M, 0);

	span_faults("bar_16m", device->fd, bar_offset(0), SPAN_SIZE, 0, 0);
	span_faults("bar_16m_misaligned", device->fd, bar_offset(0), SPAN_SIZE,
		    SZ_2M, page_size);
	dmabuf_span("dmabuf_16m_misaligned", &span, 1, SPAN_SIZE, SZ_2M,
		    page_size);
}

/* Of a mapping in which no large page fits, touched once */
static void measure_misaligned_touch(void)
{
	u64 values[NR_ROUNDS];
	void *vaddr;
	int i;

	for (i = 0; i < NR_ROUNDS; i++) {
		vaddr = mmap_shared_aligned(device->fd, bar_offset(0),
					    SPAN_SIZE, SZ_2M, page_size);
		values[i] = touch_each_page(vaddr + SZ_4M, 1);
		munmap_assert(vaddr, SPAN_SIZE);
	}
	print_median("bar_misaligned_touch", values, NR_ROUNDS);
}

static u64 meminfo(const char *field)
{
	char line[128];
	u64 kib = 0;
	FILE *file;

	file = fopen("/proc/meminfo", "r");
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
	static void *maps[NR_BUFFERS];
	int fds[NR_BUFFERS];
	u64 slab, used;
	int i, nr;

	prepare_export(1);
	slab = meminfo("Slab:");
	for (i = 0; i < NR_BUFFERS; i++)
		fds[i] = export_assert();
	print("memory_per_dmabuf", (meminfo("Slab:") - slab) / NR_BUFFERS);
	for (i = 0; i < NR_BUFFERS; i++)
		close_assert(fds[i]);

	slab = meminfo("Slab:");
	for (i = 0; i < NR_BUFFERS; i++)
		maps[i] = map_assert(NULL, device->fd, bar_offset(0),
				     page_size);
	print("memory_per_bar_mapping",
	      (meminfo("Slab:") - slab) / NR_BUFFERS);
	for (i = 0; i < NR_BUFFERS; i++)
		munmap_assert(maps[i], page_size);

	prepare_export(MAX_RANGES);
	nr = 64;
	used = meminfo("MemFree:");
	for (i = 0; i < nr; i++)
		fds[i] = export_assert();
	used -= meminfo("MemFree:");
	print_mean("memory_per_range", used, nr * MAX_RANGES);
	for (i = 0; i < nr; i++)
		close_assert(fds[i]);
}

struct worker {
	pthread_t thread;
	pthread_barrier_t *barrier;
	int fd;
	u64 offset;
	size_t size;
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
	struct worker *w = arg;
	void *vaddr;
	u32 i;

	vaddr = mmap_reserve(NR_MAPPINGS * w->size, SZ_2M, page_size);
	for (i = 0; i < NR_MAPPINGS; i++)
		map_assert(vaddr + i * w->size, w->fd, w->offset, w->size);

	pthread_barrier_wait(w->barrier);
	w->waits = nr_waits();
	touch_each_page(vaddr, NR_MAPPINGS * w->size / page_size);
	w->waits = nr_waits() - w->waits;
	pthread_barrier_wait(w->barrier);

	munmap_assert(vaddr, NR_MAPPINGS * w->size);
	return NULL;
}

static u64 now_ns(clockid_t clock)
{
	struct timespec ts;

	VFIO_ASSERT_EQ(clock_gettime(clock, &ts), 0);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

/*
 * Nanoseconds of real time by page of all threads together, and how often one
 * of them had to sleep for another, as it does for an exclusive lock.
 */
static void run_threads(const char *what, const int *fds, u64 offset,
			size_t size, u32 nr)
{
	u64 nr_pages = (u64)nr * NR_MAPPINGS * (size / page_size);
	struct worker workers[MAX_THREADS];
	pthread_barrier_t barrier;
	char name[48];
	long waits = 0;
	u64 time;
	u32 i;

	pthread_barrier_init(&barrier, NULL, nr + 1);
	for (i = 0; i < nr; i++) {
		workers[i] = (struct worker) {
			.barrier = &barrier,
			.fd = fds[i],
			.offset = offset,
			.size = size,
		};
		VFIO_ASSERT_EQ(pthread_create(&workers[i].thread, NULL, work,
					      &workers[i]), 0);
	}
	pthread_barrier_wait(&barrier);
	time = now_ns(CLOCK_MONOTONIC);
	pthread_barrier_wait(&barrier);
	time = now_ns(CLOCK_MONOTONIC) - time;
	for (i = 0; i < nr; i++) {
		VFIO_ASSERT_EQ(pthread_join(workers[i].thread, NULL), 0);
		waits += workers[i].waits;
	}
	pthread_barrier_destroy(&barrier);

	snprintf_assert(name, sizeof(name), "threads_%u_%s_ns", nr, what);
	print_mean(name, time, nr_pages);
	snprintf_assert(name, sizeof(name), "threads_%u_%s_waits", nr, what);
	print(name, waits);
}

static void measure_threads(u32 nr)
{
	size_t size = NR_FAULTS * page_size;
	int same[MAX_THREADS], own[MAX_THREADS];
	u32 i;

	for (i = 0; i < nr; i++)
		same[i] = device->fd;
	run_threads("bar", same, bar_offset(0), size, nr);

	if (!can_mmap)
		return;

	/* Pages in ranges of their own are faulted in one by one */
	prepare_export(NR_FAULTS);
	for (i = 0; i < nr; i++)
		own[i] = export_assert();
	for (i = 0; i < nr; i++)
		same[i] = own[0];
	run_threads("one_dmabuf", same, 0, size, nr);
	run_threads("dmabufs", own, 0, size, nr);
	for (i = 0; i < nr; i++)
		close_assert(own[i]);
}

/* Without a method there is no reset */
static void set_reset_method(const char *bdf, const char *method)
{
	char path[PATH_MAX];
	int fd;

	snprintf_assert(path, sizeof(path),
			"/sys/bus/pci/devices/%s/reset_method", bdf);
	fd = open(path, O_WRONLY);
	if (fd < 0)
		return;
	VFIO_ASSERT_EQ(write(fd, method, strlen(method)), strlen(method));
	close_assert(fd);
}

/* In nanoseconds of CPU time, as the kernel sleeps now and then */
static void measure_open(const char *bdf, struct iommu *iommu)
{
	u64 values[NR_OPENS], start;
	int i;

	set_reset_method(bdf, "\n");
	for (i = 0; i < NR_OPENS; i++) {
		start = now_ns(CLOCK_THREAD_CPUTIME_ID);
		vfio_pci_device_cleanup(vfio_pci_device_init(bdf, iommu));
		values[i] = now_ns(CLOCK_THREAD_CPUTIME_ID) - start;
	}
	set_reset_method(bdf, "default\n");
	print_median("open_close", values, NR_OPENS);
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

	make_hole();
	find_features();

	if (nr_threads) {
		measure_threads(nr_threads);
	} else {
		/* First, as the others leave free objects behind */
		measure_memory();
		measure_one_page_faults();
		measure_range_faults();
		measure_map_cycle();
		measure_export();
		measure_revoke();
		measure_spans();
		measure_misaligned_touch();
	}

	free(export_args);
	return KSFT_PASS;
}
