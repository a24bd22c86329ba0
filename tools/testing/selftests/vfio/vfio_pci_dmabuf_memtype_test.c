// SPDX-License-Identifier: GPL-2.0-only
/*
 * The memory type of mappings of BARs and DMABUFs, read from the page tables:
 * return codes and data do not distinguish write-combining from uncached. On x86
 * the type belongs to the physical page, so this also tests overlapping buffers
 * and the kernel's own accesses to the BAR. On arm64 each mapping has its own type.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/sizes.h>
#include <linux/vfio.h>

#include "kselftest_harness.h"

#include <libvfio/dmabuf_test.h>

/* Of a buffer, and how many such buffers a device can have */
#define MAX_WC_RANGES	256
#define MAX_WC_BUFFERS	16

#define WC	VFIO_DEVICE_FEATURE_DMA_BUF_ATTR_WC
#define UC	VFIO_DEVICE_FEATURE_DMA_BUF_ATTR_UC

/* Is the type that of the physical page, for all mappings of it? */
#ifdef __x86_64__
#define TYPE_OF_PAGE	true
#else
#define TYPE_OF_PAGE	false
#endif

/* What an uncached mapping is where it overlaps a write-combining buffer */
#define OVERLAPPED	(TYPE_OF_PAGE ? WC : UC)

/* Sizes that depend on that of a page: for pages of 4 KiB 2 MiB, 1 MiB, 64 KiB */
static u64 pmd_size, half, small;

/* Can a mapping be write-combining on this machine? */
static bool machine_has_wc(void)
{
	return !TYPE_OF_PAGE || nr_wc_memtypes(0, UINT64_MAX) >= 0;
}

/* The number of ranges on record as write-combining, where there is a record */
#define ASSERT_NR_WC(_nr, _start, _end) do {					\
	if (TYPE_OF_PAGE)							\
		ASSERT_EQ((_nr), nr_wc_memtypes((_start), (_end)));		\
} while (0)

#define ASSERT_NR_WC_OF_BAR(_nr) ASSERT_NR_WC(_nr, self->start, self->end)

/* Which BARs can be write-combining: any device, any machine */
TEST(prefetchable_bars_only)
{
	struct iommu *iommu = iommu_init(default_iommu_mode);
	struct vfio_pci_device *device = vfio_pci_device_init(device_bdf, iommu);
	int bar, fd, expected, nr = 0;
	u64 start, end, flags;

	if (!vfio_pci_dmabuf_supported(device))
		SKIP(return, "No DMABUF export");

	for (bar = 0; bar < PCI_STD_NUM_BARS; bar++) {
		if (device->bars[bar].info.size < page_size ||
		    !device->bars[bar].vaddr)
			continue;

		sysfs_resource_get(device_bdf, bar, &start, &end, &flags);
		expected = machine_has_wc() && flags & SYSFS_RESOURCE_PREFETCH ?
			   0 : -EOPNOTSUPP;
		fd = __vfio_pci_dmabuf_export_range(device, bar, O_RDWR, WC, 0,
						    page_size);
		ASSERT_EQ(expected, min(fd, 0)) TH_LOG("BAR %d", bar);
		nr++;
	}
	if (!nr)
		SKIP(return, "No BAR of a page");
}

FIXTURE(memtype) {
	DMABUF_FIXTURE;
	/* Physical addresses of the BAR */
	u64 start;
	u64 end;
};

FIXTURE_SETUP(memtype)
{
	u64 flags;

	pmd_size = pmd_size_get();
	half = pmd_size / 2;
	small = 16 * page_size;
	DMABUF_SETUP(self, true, 8 * pmd_size);
	if (!page_table_info_supported())
		SKIP(return, "No test module");
	if (!machine_has_wc())
		SKIP(return, "No write-combining on this machine");

	sysfs_resource_get(device_bdf, self->bar, &self->start, &self->end,
			   &flags);
	ASSERT_TRUE(flags & SYSFS_RESOURCE_PREFETCH);
}

/* Nothing is left when the device has been closed, whatever the test left. */
FIXTURE_TEARDOWN_PARENT(memtype)
{
	if (self->start && TYPE_OF_PAGE)
		EXPECT_EQ(0, nr_wc_memtypes(self->start, self->end));
}

static int export_type(FIXTURE_DATA(memtype) *self, u32 type, u64 offset,
		       u64 size)
{
	int fd = __vfio_pci_dmabuf_export_range(self->device, self->bar,
						O_RDWR | O_CLOEXEC, type,
						offset, size);

	VFIO_ASSERT_GE(fd, 0, "Export failed: %s\n", strerror(-fd));
	return fd;
}

/*
 * Write-combining of closed buffers ends asynchronously. Wait for that; the
 * caller has no other write-combining buffer. The export waits for work that
 * is still in progress.
 */
static void end_closed(FIXTURE_DATA(memtype) *self)
{
	int fd, ms = 0;

	while (TYPE_OF_PAGE && nr_wc_memtypes(self->start, self->end) &&
	       ms++ < JOB_ENDS_MS)
		usleep(1000);
	fd = export_type(self, WC, 4 * pmd_size, page_size);
	vfio_pci_dmabuf_revoke(self->device, fd);
	close_assert(fd);
}

static void *map_bar(FIXTURE_DATA(memtype) *self, u64 offset, size_t size)
{
	return vfio_pci_region_mmap_aligned(self->device, self->bar, offset,
					    size, pmd_size, 0);
}

/* The entries of all pages, which are touched first, have to be of one type. */
#define ASSERT_TYPE(_vaddr, _size, _type) do {					\
	struct page_table_info __info;						\
	const void *__vaddr = (_vaddr);						\
										\
	ASSERT_EQ(0, try_touch_pages(__vaddr, (_size)));			\
	page_table_info(__vaddr, (_size), &__info);				\
	ASSERT_EQ((_size), __info.bytes);					\
	ASSERT_EQ((_type) == WC ? (_size) : 0, __info.bytes_wc);		\
	ASSERT_EQ((_type) == WC ? 0 : (_size), __info.bytes_uc);		\
	ASSERT_EQ((_size), __info.bytes_any_uncached);				\
} while (0)

/* Pages @_from to @_to of an uncached mapping are in a write-combining buffer. */
#define ASSERT_OVERLAP(_map, _size, _from, _to) do {				\
	if (_from)								\
		ASSERT_TYPE((_map), (_from), UC);				\
	ASSERT_TYPE((_map) + (_from), (_to) - (_from), OVERLAPPED);		\
	ASSERT_TYPE((_map) + (_to), (_size) - (_to), UC);			\
} while (0)

TEST_F(memtype, small_pages_and_pmds)
{
	int fd = export_type(self, WC, 2 * pmd_size, 2 * pmd_size);
	void *pmds = mmap_shared_aligned(fd, 0, 2 * pmd_size, pmd_size, 0);
	void *ptes = mmap_shared_aligned(fd, 0, 2 * pmd_size, pmd_size,
					 page_size);

	ASSERT_TRUE(vfio_pci_dmabuf_fdinfo_has(fd, "memory-type",
					       "write-combining"));
	ASSERT_TYPE(pmds, 2 * pmd_size, WC);
	ASSERT_ENTRIES(pmds, 2 * pmd_size, 0, 2, 0);
	ASSERT_TYPE(ptes, 2 * pmd_size, WC);
	ASSERT_ENTRIES(ptes, 2 * pmd_size, 0, 0, 2 * pmd_size / page_size);
}

TEST_F(memtype, puds)
{
	const size_t size = 2ULL * SZ_1G;
	void *vaddr, *second;
	int fd;

	if (!has_pud_mappings())
		SKIP(return, "No PUD mappings on this architecture");
	if (self->bar_size < size)
		SKIP(return, "BAR smaller than 2 GiB");

	fd = export_type(self, WC, 0, size);
	vaddr = mmap_shared_aligned(fd, 0, size, SZ_1G, 0);
	ASSERT_TYPE(vaddr, size, WC);
	ASSERT_ENTRIES(vaddr, size, 2, 0, 0);
	vfio_pci_dmabuf_revoke(self->device, fd);

	/* Uncached large pages are as large as the others allow. */
	export_type(self, WC, SZ_1G + SZ_4M, page_size);
	vaddr = vfio_pci_region_mmap_aligned(self->device, self->bar, 0, size,
					     SZ_1G, 0);
	second = vaddr + SZ_1G;
	ASSERT_OVERLAP(second, SZ_8M, SZ_4M, SZ_4M + page_size);
	ASSERT_ENTRIES(second, SZ_8M, 0, 3, 512);
	ASSERT_TYPE(vaddr, SZ_1G, UC);
	ASSERT_ENTRIES(vaddr, SZ_1G, 1, 0, 0);
}

/* Two pages each that overlap, in reverse: no two of them become one range */
static int export_pages(FIXTURE_DATA(memtype) *self, u32 nr)
{
	struct vfio_region_dma_range ranges[MAX_WC_RANGES + 1];
	u32 i;

	for (i = 0; i < nr; i++) {
		ranges[i].offset = (nr - 1 - i) * page_size;
		ranges[i].length = 2 * page_size;
	}
	return __vfio_pci_dmabuf_export(self->device, self->bar, O_RDWR, WC,
					ranges, nr);
}

/* Of a buffer, and of all buffers of a device; what was closed does not count. */
TEST_F(memtype, limits)
{
	u64 size = MAX_WC_RANGES * 2 * page_size;
	int fds[MAX_WC_BUFFERS];
	int i;

	ASSERT_EQ(-E2BIG, export_pages(self, MAX_WC_RANGES + 1));
	ASSERT_NR_WC_OF_BAR(0);
	for (i = 0; i < MAX_WC_BUFFERS; i++) {
		fds[i] = export_pages(self, MAX_WC_RANGES);
		ASSERT_LE(0, fds[i]);
	}
	ASSERT_EQ(-ENOSPC, export_pages(self, 1));
	ASSERT_TYPE(mmap_shared(fds[0], 0, size), size, WC);

	vfio_pci_dmabuf_revoke(self->device, fds[0]);
	close_assert(fds[1]);
	ASSERT_LE(0, export_pages(self, MAX_WC_RANGES));
	ASSERT_LE(0, export_pages(self, MAX_WC_RANGES));
	ASSERT_EQ(-ENOSPC, export_pages(self, 1));
}

/*
 * Uncached mappings of the same pages, of a BAR or DMABUF, have their type, made
 * before or after; those next to them keep theirs, and when write-combining has
 * ended large pages are possible again.
 */
TEST_F(memtype, uncached_mapping_overlaps)
{
	const char * const names[] = { "BAR", "DMABUF", "DMABUF of two ranges" };
	struct vfio_region_dma_range ranges[] = {
		{ 0, pmd_size }, { 2 * pmd_size, pmd_size },
	};
	int fds[] = {
		self->device->fd,
		export_type(self, UC, 0, 2 * pmd_size),
		__vfio_pci_dmabuf_export(self->device, self->bar, O_RDWR, UC,
					 ranges, 2),
	};
	u64 offset;
	void *map;
	int i, fd, wc;

	for (i = 0; i < 6; i++) {
		bool before = i & 1;

		TH_LOG("%s mapped %s", names[i / 2],
		       before ? "before" : "after");
		fd = fds[i / 2];
		offset = i / 2 ? 0 : self->bar_offset;
		map = mmap_shared_aligned(fd, offset, 2 * pmd_size, pmd_size,
					  0);
		if (before) {
			ASSERT_TYPE(map, 2 * pmd_size, UC);
			ASSERT_ENTRIES(map, 2 * pmd_size, 0, 2, 0);
		}
		wc = export_type(self, WC, half, small);
		ASSERT_OVERLAP(map, 2 * pmd_size, half, half + small);
		if (TYPE_OF_PAGE)
			ASSERT_ENTRIES(map, 2 * pmd_size, 0, 1,
				       pmd_size / page_size);
		else
			ASSERT_ENTRIES(map, 2 * pmd_size, 0, 2, 0);

		if (before)
			vfio_pci_dmabuf_revoke(self->device, wc);
		close_assert(wc);
		if (!before)
			end_closed(self);
		ASSERT_TYPE(map, 2 * pmd_size, UC);
		munmap_assert(map, 2 * pmd_size);

		map = mmap_shared_aligned(fd, offset, 2 * pmd_size, pmd_size,
					  0);
		ASSERT_TYPE(map, 2 * pmd_size, UC);
		ASSERT_ENTRIES(map, 2 * pmd_size, 0, 2, 0);
		munmap_assert(map, 2 * pmd_size);
	}
}

/*
 * Pages of two buffers stay write-combining until the last of them goes. Mappings
 * far from the pages take no new fault.
 */
TEST_F(memtype, two_buffers)
{
	void *map = map_bar(self, 0, pmd_size);
	void *far = map_bar(self, 2 * pmd_size, pmd_size);
	int fds[2];

	ASSERT_EQ(0, try_touch(far));
	fds[0] = export_type(self, WC, 0, small);
	fds[1] = export_type(self, WC, small / 2, small);
	ASSERT_OVERLAP(map, pmd_size, 0, small + small / 2);
	vfio_pci_dmabuf_revoke(self->device, fds[0]);
	ASSERT_OVERLAP(map, pmd_size, small / 2, small + small / 2);
	close_assert(fds[1]);
	end_closed(self);
	ASSERT_TYPE(map, pmd_size, UC);
	ASSERT_EQ(0, faults_to_touch(far, page_size, page_size));
}

static void switch_memory(FIXTURE_DATA(memtype) *self)
{
	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
}

static void reset(FIXTURE_DATA(memtype) *self)
{
	if (self->device->info.flags & VFIO_DEVICE_FLAGS_RESET)
		vfio_pci_device_reset(self->device);
	else
		switch_memory(self);
}

/* Write-combining of a closed buffer ends with nothing else done. */
TEST_F(memtype, end_of_closed_buffer)
{
	void *map = map_bar(self, half, small);
	struct page_table_info info = {};
	int i, ms;

	for (i = 0; i < 10; i++) {
		int fd = export_type(self, WC, half, small);

		ASSERT_TYPE(map, small, OVERLAPPED);
		close_assert(fd);
		for (ms = 0; ms < JOB_ENDS_MS && info.bytes_uc != small; ms++) {
			usleep(1000);
			ASSERT_EQ(0, try_touch_pages(map, small));
			page_table_info(map, small, &info);
		}
		ASSERT_EQ(small, info.bytes_uc);
		info.bytes_uc = 0;
	}
	end_closed(self);
	ASSERT_NR_WC_OF_BAR(0);
}

/*
 * Neither page protection nor access that goes and comes changes the type, nor the
 * end of another buffer, as long as the buffer is mapped.
 */
TEST_F(memtype, type_is_kept)
{
	int fd = export_type(self, WC, 0, small);
	void *vaddr = mmap_shared(fd, 0, small);
	struct page_table_info info;

	close_assert(fd);
	ASSERT_TYPE(vaddr, small, WC);
	ASSERT_EQ(0, mprotect(vaddr, small / 2, PROT_READ));
	ASSERT_TYPE(vaddr, small, WC);
	page_table_info(vaddr, small, &info);
	ASSERT_EQ(small / 2, info.bytes_writable);
	ASSERT_EQ(0, mprotect(vaddr, small, PROT_READ | PROT_WRITE));
	ASSERT_TYPE(vaddr, small, WC);

	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(SIGBUS, try_touch_pages(vaddr, small));
	fd = export_type(self, WC, half, small);
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	ASSERT_TYPE(vaddr, small, WC);
	ASSERT_TYPE(mmap_shared(fd, 0, small), small, WC);
	reset(self);
	ASSERT_TYPE(vaddr, small, WC);

	vfio_pci_dmabuf_revoke(self->device, fd);
	ASSERT_NR_WC_OF_BAR(1);
	ASSERT_TYPE(vaddr, small, WC);
}

/* Close of the device ends write-combining of mapped and of closed buffers. */
TEST_F(memtype, close_of_device)
{
	int fd = export_type(self, WC, 0, small);
	void *vaddr = mmap_shared(fd, 0, small);

	ASSERT_TYPE(vaddr, small, WC);
	close_assert(export_type(self, WC, half, small));
	dmabuf_test_close(&self->device);
	ASSERT_NR_WC_OF_BAR(0);
	ASSERT_EQ(SIGBUS, try_touch_pages(vaddr, small));

	/* The next user of the device is not affected by the old buffer. */
	dmabuf_test_reopen(self->iommu, &self->device);
	ASSERT_TYPE(self->device->bars[self->bar].vaddr, 2 * pmd_size, UC);
	munmap_assert(vaddr, small);
	close_assert(fd);
	end_closed(self);
	ASSERT_TYPE(self->device->bars[self->bar].vaddr, 2 * pmd_size, UC);
}

static void region_rw(FIXTURE_DATA(memtype) *self, bool write, u64 offset,
		      void *data, size_t size)
{
	u64 pos = self->bar_offset + offset;
	ssize_t ret;

	ret = write ? pwrite(self->device->fd, data, size, pos) :
		      pread(self->device->fd, data, size, pos);
	VFIO_ASSERT_EQ(ret, size);
}

/* Data that identifies where it was written, at any alignment */
static void fill(u8 *data, size_t size, u8 seed)
{
	size_t i;

	for (i = 0; i < size; i++)
		data[i] = seed + i + (i >> 8);
}

/*
 * read() and write() of the region do the same in pages of either type, across
 * their edges, at odd offsets, and leave nothing in a write buffer.
 */
TEST_F(memtype, read_and_write)
{
	const struct {
		u64 offset;
		size_t size;
	} spans[] = {
		{ small, 8 },			/* uncached */
		{ half, 4 },			/* write-combining */
		{ half + small / 2 + 3, 13 },
		{ half - 5, 11 },		/* across the edges */
		{ half + small - 1025, 2051 },
		{ half - SZ_4K, SZ_8K },
	};
	u8 data[SZ_8K], back[SZ_8K];
	void *map = map_bar(self, 0, pmd_size);
	int i;

	export_type(self, WC, half, small);
	for (i = 0; i < ARRAY_SIZE(spans); i++) {
		u64 offset = spans[i].offset;
		size_t size = spans[i].size;

		fill(data, size, i);
		region_rw(self, true, offset, data, size);
		ASSERT_TRUE(mmio_equals(map + offset, data, size));

		memset(back, 0, size);
		region_rw(self, false, offset, back, size);
		ASSERT_EQ(0, memcmp(data, back, size));
	}

	/* Reading and writing leaves no trace in the types. */
	ASSERT_NR_WC_OF_BAR(1);
	ASSERT_OVERLAP(map, pmd_size, half, half + small);

	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(-1, pread(self->device->fd, back, 4,
			    self->bar_offset + half));
	ASSERT_EQ(EIO, errno);
}

static int ioeventfd(FIXTURE_DATA(memtype) *self, u64 offset, u64 data, int fd)
{
	struct vfio_device_ioeventfd arg = {
		.argsz = sizeof(arg),
		.flags = VFIO_DEVICE_IOEVENTFD_32,
		.offset = self->bar_offset + offset,
		.data = data,
		.fd = fd,
	};

	return ioctl(self->device->fd, VFIO_DEVICE_IOEVENTFD, &arg) ?
	       -errno : 0;
}

/* The write may be left to a thread of the kernel. */
static bool ioeventfd_writes(FIXTURE_DATA(memtype) *self, u64 offset, int fd,
			     u32 expected)
{
	u32 val = 0;
	int ms;

	region_rw(self, true, offset, &val, sizeof(val));
	VFIO_ASSERT_EQ(eventfd_write(fd, 1), 0);
	for (ms = 0; ms < JOB_ENDS_MS && val != expected; ms++) {
		region_rw(self, false, offset, &val, sizeof(val));
		usleep(1000);
	}

	return val == expected;
}

/* It works in a page of either type, registered before or after the type changes. */
TEST_F(memtype, ioeventfd)
{
	int i, fd = -1, event = eventfd(0, EFD_CLOEXEC);
	u64 offset = half + small / 2 + 8;

	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, ioeventfd(self, offset, 0x1234, event));
		ASSERT_TRUE(ioeventfd_writes(self, offset, event, 0x1234));
		if (!i)
			fd = export_type(self, WC, half, small);
		else
			vfio_pci_dmabuf_revoke(self->device, fd);
		ASSERT_TRUE(ioeventfd_writes(self, offset, event, 0x1234));
		ASSERT_EQ(0, ioeventfd(self, offset, 0x1234, -1));
		ASSERT_NR_WC_OF_BAR(i ? 0 : 1);
	}
}

/* Does something over and over, and counts. */
struct racer {
	FIXTURE_DATA(memtype) *self;
	void (*fn)(struct racer *racer);
	void *vaddr;
	pthread_barrier_t *barrier;
	pthread_t thread;
	bool stop;
	u64 nr;
	u64 nr_wrong;
};

static void *racer_main(void *arg)
{
	struct racer *racer = arg;

	for (; !READ_ONCE(racer->stop); racer->nr++)
		racer->fn(racer);
	return NULL;
}

static void racers_start(FIXTURE_DATA(memtype) *self, struct racer *racers,
			 int nr)
{
	int i;

	for (i = 0; i < nr; i++) {
		racers[i].self = self;
		VFIO_ASSERT_EQ(pthread_create(&racers[i].thread, NULL,
					      racer_main, &racers[i]), 0);
	}
}

/* Has all of it been right? */
static bool racers_stop(struct racer *racers, int nr)
{
	bool good = true;
	int i;

	for (i = 0; i < nr; i++) {
		WRITE_ONCE(racers[i].stop, true);
		VFIO_ASSERT_EQ(pthread_join(racers[i].thread, NULL), 0);
		good &= racers[i].nr && !racers[i].nr_wrong;
	}
	return good;
}

/* write() and read() in a page that changes its type, and next to it */
static void rw_around_edge(struct racer *racer)
{
	u8 data[64], back[64];

	fill(data, sizeof(data), racer->nr);
	region_rw(racer->self, true, half - 32, data, sizeof(data));
	region_rw(racer->self, false, half - 32, back, sizeof(back));
	if (memcmp(data, back, sizeof(data)))
		racer->nr_wrong++;
}

/* Faults of a BAR mapping of these pages */
static void touch_bar(struct racer *racer)
{
	void *vaddr = map_bar(racer->self, 0, pmd_size);

	if (try_touch_pages(vaddr + half - small, 2 * small))
		racer->nr_wrong++;
	munmap_assert(vaddr, pmd_size);
}

/*
 * Other threads use the pages at the same time: when an export has returned they
 * are write-combining, and when a revoke has returned they are uncached, in new
 * mappings and in old ones. Not each round reads the page tables.
 */
TEST_F(memtype, races)
{
	struct racer racers[] = {
		{ .fn = rw_around_edge },
		{ .fn = touch_bar },
	};
	void *map = map_bar(self, half, small);
	u32 i, rounds = 6 * getenv_u32("VFIO_RACE_ROUNDS", 50);
	void *vaddr;
	int fd;

	racers_start(self, racers, ARRAY_SIZE(racers));
	for (i = 0; i < rounds; i++) {
		bool look = !(i % 5), revoke = i % 2;

		fd = export_type(self, WC, half, small);
		if (look) {
			vaddr = mmap_shared(fd, 0, small);
			ASSERT_TYPE(vaddr, small, WC);
			ASSERT_TYPE(map, small, OVERLAPPED);
			munmap_assert(vaddr, small);
		}
		if (revoke)
			vfio_pci_dmabuf_revoke(self->device, fd);
		close_assert(fd);
		if (!revoke)
			end_closed(self);
		ASSERT_NR_WC_OF_BAR(0);
		if (look)
			ASSERT_TYPE(map, small, UC);
	}
	ASSERT_TRUE(racers_stop(racers, ARRAY_SIZE(racers)));
}

static void touch_in_step(struct racer *racer)
{
	pthread_barrier_wait(racer->barrier);
	if (try_touch_pages(racer->vaddr, page_size))
		racer->nr_wrong++;
	pthread_barrier_wait(racer->barrier);
}

/*
 * Two threads touch pages of what one large page could map, while the buffer that
 * forbids that page is revoked: one fault may find what the other has inserted.
 */
TEST_F(memtype, end_against_faults_of_neighbours)
{
	u32 i, rounds = 10 * getenv_u32("VFIO_RACE_ROUNDS", 50);
	pthread_barrier_t barrier;
	struct racer racers[] = {
		{ .fn = touch_in_step, .barrier = &barrier },
		{ .fn = touch_in_step, .barrier = &barrier },
	};
	void *map;
	int fd;

	pthread_barrier_init(&barrier, NULL, 3);
	racers_start(self, racers, ARRAY_SIZE(racers));
	for (i = 0; i < rounds; i++) {
		map = map_bar(self, 0, pmd_size);
		racers[0].vaddr = map;
		racers[1].vaddr = map + half - page_size;
		fd = export_type(self, WC, half, small);

		pthread_barrier_wait(&barrier);
		usleep(i % 16);
		vfio_pci_dmabuf_revoke(self->device, fd);
		WRITE_ONCE(racers[0].stop, i + 1 == rounds);
		WRITE_ONCE(racers[1].stop, i + 1 == rounds);
		pthread_barrier_wait(&barrier);

		close_assert(fd);
		munmap_assert(map, pmd_size);
	}
	ASSERT_TRUE(racers_stop(racers, ARRAY_SIZE(racers)));
}

/*
 * An export that fails as its last page is in use, uncached, while another thread
 * maps its first page: that does not stay write-combining.
 */
TEST_F(memtype, export_fails_half_way)
{
	u32 i, rounds = 4 * getenv_u32("VFIO_RACE_ROUNDS", 50);
	struct vfio_region_dma_range ranges[MAX_WC_RANGES];
	pthread_barrier_t barrier;
	struct racer racer = { .fn = touch_in_step, .barrier = &barrier };
	char path[PATH_MAX];
	void *map;
	int fd;

	if (!TYPE_OF_PAGE)
		SKIP(return, "No type of the page");
	for (i = 0; i < MAX_WC_RANGES; i++) {
		ranges[i].offset = 2 * i * page_size;
		ranges[i].length = page_size;
	}
	snprintf_assert(path, (int)sizeof(path),
			"/sys/bus/pci/devices/%s/resource%d", device_bdf,
			self->bar);
	fd = open(path, O_RDWR);
	ASSERT_LE(0, fd);
	if (__mmap_shared(fd, ranges[MAX_WC_RANGES - 1].offset, page_size,
			  PROT_READ, &map))
		SKIP(return, "sysfs maps no BAR of a driver (IO_STRICT_DEVMEM)");

	pthread_barrier_init(&barrier, NULL, 2);
	racers_start(self, &racer, 1);
	for (i = 0; i < rounds; i++) {
		map = map_bar(self, 0, page_size);
		racer.vaddr = map;
		pthread_barrier_wait(&barrier);
		ASSERT_EQ(-EBUSY, __vfio_pci_dmabuf_export(self->device,
							   self->bar, O_RDWR, WC,
							   ranges,
							   MAX_WC_RANGES));
		WRITE_ONCE(racer.stop, i + 1 == rounds);
		pthread_barrier_wait(&barrier);
		ASSERT_TYPE(map, page_size, UC);
		munmap_assert(map, page_size);
	}
	ASSERT_TRUE(racers_stop(&racer, 1));
}

static void export_and_close(struct racer *racer)
{
	close_assert(export_type(racer->self, WC, half + small / 2, small));
}

/* An export ends buffers that were closed meanwhile, also overlapping ones. */
TEST_F(memtype, close_against_export)
{
	u32 i, rounds = getenv_u32("VFIO_RACE_ROUNDS", 50);
	struct racer racer = { .fn = export_and_close };
	void *vaddr;
	int fd;

	racers_start(self, &racer, 1);
	for (i = 0; i < rounds; i++) {
		fd = export_type(self, WC, half, small);
		vaddr = mmap_shared(fd, 0, small);
		close_assert(fd);
		ASSERT_EQ(0, try_touch_pages(vaddr, small));
		munmap_assert(vaddr, small);
	}
	ASSERT_TRUE(racers_stop(&racer, 1));
	end_closed(self);
	ASSERT_NR_WC_OF_BAR(0);
}

int main(int argc, char *argv[])
{
	dmabuf_test_init(&argc, argv);
	return test_harness_run(argc, argv);
}
