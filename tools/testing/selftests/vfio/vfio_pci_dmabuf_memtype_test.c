// SPDX-License-Identifier: GPL-2.0-only
/*
 * The memory type of mappings of BARs and DMABUFs, read from the page tables:
 * return codes and data do not tell write-combining from uncached. On x86 it
 * belongs to the physical page, so this is also about what overlaps, and about
 * the kernel's own use of the BAR.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "kselftest_harness.h"

static const char *device_bdf;

static size_t page_size;

/* Of a buffer, and how many such buffers a device can have */
#define MAX_WC_RANGES	256
#define MAX_WC_BUFFERS	16

/* Is this a machine on which a mapping can be write-combining at all? */
static bool machine_has_wc(void)
{
	return nr_wc_memtypes(0, UINT64_MAX) >= 0;
}

/* That there is none is what the boot asked for. */
static bool started_with_nopat(void)
{
	FILE *file = fopen("/proc/cmdline", "r");
	char line[4096] = "";

	VFIO_ASSERT_NOT_NULL(file);
	VFIO_ASSERT_NOT_NULL(fgets(line, sizeof(line), file));
	VFIO_ASSERT_EQ(fclose(file), 0);

	return strstr(line, "nopat");
}

static int export_ranges(struct vfio_pci_device *device, int bar, u32 type,
			 const struct vfio_region_dma_range *ranges, u32 nr)
{
	return __vfio_pci_dmabuf_export(device, bar, O_RDWR | O_CLOEXEC, type,
					ranges, nr);
}

static int export_type(struct vfio_pci_device *device, int bar, u32 type,
		       u64 offset, u64 size)
{
	return __vfio_pci_dmabuf_export_range(device, bar, O_RDWR | O_CLOEXEC,
					      type, offset, size);
}

#define WC	VFIO_DEVICE_FEATURE_DMA_BUF_ATTR_WC
#define UC	VFIO_DEVICE_FEATURE_DMA_BUF_ATTR_UC

/* Which BARs can be write-combining: any device, any machine */
FIXTURE(memtype_bar) {
	struct iommu *iommu;
	struct vfio_pci_device *device;
};

FIXTURE_SETUP(memtype_bar)
{
	self->iommu = iommu_init(default_iommu_mode);
	self->device = vfio_pci_device_init(device_bdf, self->iommu);

	if (!vfio_pci_dmabuf_supported(self->device))
		SKIP(return, "No DMABUF export");
	if (!page_table_info_supported())
		SKIP(return, "No view of x86 page tables in debugfs");
}

FIXTURE_TEARDOWN(memtype_bar)
{
	vfio_pci_device_cleanup(self->device);
	iommu_cleanup(self->iommu);
}

TEST_F(memtype_bar, prefetchable_ones_only)
{
	u64 start, end, flags;
	int bar, nr = 0;

	ASSERT_FALSE(started_with_nopat() && machine_has_wc());
	for (bar = 0; bar < PCI_STD_NUM_BARS; bar++) {
		bool can;
		int fd;

		if (self->device->bars[bar].info.size < page_size ||
		    !self->device->bars[bar].vaddr)
			continue;

		sysfs_resource_get(device_bdf, bar, &start, &end, &flags);
		can = machine_has_wc() && flags & SYSFS_RESOURCE_PREFETCH;
		fd = export_type(self->device, bar, WC, 0, page_size);
		if (can) {
			ASSERT_LE(0, fd);
			close_assert(fd);
		} else {
			ASSERT_EQ(-EOPNOTSUPP, fd);
		}
		nr++;
	}
	ASSERT_LT(0, nr);
}

FIXTURE(memtype) {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	int bar;
	u64 size;
	/* Physical addresses of the BAR */
	u64 start;
	u64 end;
};

FIXTURE_SETUP(memtype)
{
	const char *reason;
	u64 flags;

	reason = dmabuf_test_open(device_bdf, true, SZ_16M,
				  &self->iommu, &self->device, &self->bar);
	if (reason)
		SKIP(return, "%s", reason);
	self->size = self->device->bars[self->bar].info.size;
	if (!page_table_info_supported())
		SKIP(return, "No view of x86 page tables in debugfs");
	if (started_with_nopat())
		SKIP(return, "Started with nopat");
	if (!machine_has_wc())
		SKIP(return, "No write-combining on this machine");

	sysfs_resource_get(device_bdf, self->bar, &self->start, &self->end,
			   &flags);
	ASSERT_TRUE(flags & SYSFS_RESOURCE_PREFETCH);
	ASSERT_EQ(0, nr_wc_memtypes(self->start, self->end));
}

/* When the device is closed nothing is left, whatever a test left behind. */
FIXTURE_TEARDOWN(memtype)
{
	vfio_pci_device_cleanup(self->device);
	if (self->start)
		EXPECT_EQ(0, nr_wc_memtypes(self->start, self->end));
	iommu_cleanup(self->iommu);
}

static int export_wc(FIXTURE_DATA(memtype) *self, u64 offset, u64 size)
{
	return export_type(self->device, self->bar, WC, offset, size);
}

static int nr_wc(FIXTURE_DATA(memtype) *self, u64 offset, u64 size)
{
	return nr_wc_memtypes(self->start + offset,
			      self->start + offset + size - 1);
}

/*
 * A DMABUF that is released, unlike one that is revoked, gives its pages back
 * some time later.
 */
static bool wc_ends(FIXTURE_DATA(memtype) *self, u64 offset, u64 size)
{
	return wait_for_wc_memtypes(self->start + offset,
				    self->start + offset + size - 1, 0);
}

static u32 nr_rounds(void)
{
	return getenv_u32("VFIO_RACE_ROUNDS", 50);
}

/* Keep the CPUs busy, so that what the kernel does in the background takes time. */
struct spinners {
	pthread_t threads[4];
	bool stop;
};

static void *spinner_main(void *arg)
{
	struct spinners *spinners = arg;

	while (!READ_ONCE(spinners->stop))
		;
	return NULL;
}

static void spinners_start(struct spinners *spinners)
{
	unsigned int i;

	spinners->stop = false;
	for (i = 0; i < ARRAY_SIZE(spinners->threads); i++)
		VFIO_ASSERT_EQ(pthread_create(&spinners->threads[i], NULL,
					      spinner_main, spinners), 0);
}

static void spinners_stop(struct spinners *spinners)
{
	unsigned int i;

	WRITE_ONCE(spinners->stop, true);
	for (i = 0; i < ARRAY_SIZE(spinners->threads); i++)
		VFIO_ASSERT_EQ(pthread_join(spinners->threads[i], NULL), 0);
}

static void *map_bar(FIXTURE_DATA(memtype) *self, u64 offset, size_t size)
{
	return vfio_pci_region_mmap_aligned(self->device, self->bar, offset,
					    size, SZ_2M, 0);
}

/* The entries of all pages, which are touched first, have to be of one type. */
#define ASSERT_TYPE(_vaddr, _size, _type) do {					\
	struct page_table_info __info;						\
										\
	ASSERT_EQ(0, try_touch_pages((_vaddr), (_size)));			\
	page_table_info((_vaddr), (_size), &__info);				\
	ASSERT_EQ((_size), __info.bytes);					\
	ASSERT_EQ((_type) == WC ? (_size) : 0, __info.bytes_pwt);		\
	ASSERT_EQ((_type) == WC ? 0 : (_size), __info.bytes_pcd);		\
	ASSERT_EQ(0, __info.bytes_pat);						\
} while (0)

TEST_F(memtype, small_pages)
{
	int wc = export_wc(self, page_size, SZ_64K);
	int uc = export_type(self->device, self->bar, UC, SZ_1M, SZ_64K);
	void *wc_map, *uc_map, *bar_map;

	ASSERT_LE(0, wc);
	ASSERT_LE(0, uc);
	wc_map = mmap_shared(wc, 0, SZ_64K);
	uc_map = mmap_shared(uc, 0, SZ_64K);
	bar_map = map_bar(self, SZ_2M, SZ_64K);

	ASSERT_TYPE(wc_map, SZ_64K, WC);
	ASSERT_TYPE(uc_map, SZ_64K, UC);
	ASSERT_TYPE(bar_map, SZ_64K, UC);
	page_table_print("write-combining DMABUF", wc_map, SZ_64K);
	page_table_print("uncached DMABUF", uc_map, SZ_64K);
	page_table_print("BAR", bar_map, SZ_64K);

	munmap_assert(wc_map, SZ_64K);
	munmap_assert(uc_map, SZ_64K);
	munmap_assert(bar_map, SZ_64K);
	close_assert(wc);
	close_assert(uc);
}

TEST_F(memtype, pmds)
{
	int fd = export_wc(self, SZ_4M, SZ_4M);
	void *vaddr;

	ASSERT_LE(0, fd);
	vaddr = mmap_shared_aligned(fd, 0, SZ_4M, SZ_2M, 0);
	ASSERT_TYPE(vaddr, SZ_4M, WC);
	ASSERT_ENTRIES(vaddr, SZ_4M, 0, 2, 0);
	page_table_print("write-combining DMABUF", vaddr, SZ_4M);

	munmap_assert(vaddr, SZ_4M);
	close_assert(fd);
}

TEST_F(memtype, puds)
{
	struct page_table_info info;
	void *vaddr;
	int fd;

	if (self->size < 2ULL * SZ_1G)
		SKIP(return, "BAR smaller than 2 GiB");

	fd = export_wc(self, 0, 2ULL * SZ_1G);
	ASSERT_LE(0, fd);
	vaddr = mmap_shared_aligned(fd, 0, 2ULL * SZ_1G, SZ_1G, 0);
	ASSERT_EQ(0, try_touch(vaddr));
	ASSERT_EQ(0, try_touch(vaddr + SZ_1G));
	page_table_info(vaddr, 2ULL * SZ_1G, &info);
	ASSERT_EQ(2, info.nr_pud);
	ASSERT_EQ(2ULL * SZ_1G, info.bytes_pwt);
	ASSERT_EQ(0, info.bytes_pcd);
	page_table_print("write-combining DMABUF", vaddr, 2ULL * SZ_1G);

	munmap_assert(vaddr, 2ULL * SZ_1G);
	close_assert(fd);
}

/* Pages of the BAR in reverse, so that no two of them become one range */
static void fill_downwards(struct vfio_region_dma_range *ranges, u32 nr)
{
	u32 i;

	for (i = 0; i < nr; i++) {
		ranges[i].offset = (nr - 1 - i) * page_size;
		ranges[i].length = page_size;
	}
}

TEST_F(memtype, many_ranges)
{
	struct vfio_region_dma_range ranges[MAX_WC_RANGES + 1];
	u64 size = MAX_WC_RANGES * page_size;
	void *vaddr;
	int fd;

	fill_downwards(ranges, MAX_WC_RANGES + 1);
	ASSERT_EQ(-E2BIG, export_ranges(self->device, self->bar, WC, ranges,
					MAX_WC_RANGES + 1));
	ASSERT_EQ(0, nr_wc(self, 0, self->size));

	fd = export_ranges(self->device, self->bar, WC, ranges, MAX_WC_RANGES);
	ASSERT_LE(0, fd);
	ASSERT_EQ(MAX_WC_RANGES, nr_wc(self, 0, self->size));
	vaddr = mmap_shared(fd, 0, size);
	ASSERT_TYPE(vaddr, size, WC);
	munmap_assert(vaddr, size);
	close_assert(fd);
	ASSERT_TRUE(wc_ends(self, 0, self->size));
}

/* All buffers of a device together have a limit as well. */
TEST_F(memtype, many_buffers)
{
	struct vfio_region_dma_range ranges[MAX_WC_RANGES];
	int fds[MAX_WC_BUFFERS];
	int i;

	fill_downwards(ranges, MAX_WC_RANGES);
	for (i = 0; i < MAX_WC_BUFFERS; i++) {
		fds[i] = export_ranges(self->device, self->bar, WC, ranges,
				       MAX_WC_RANGES);
		ASSERT_LE(0, fds[i]);
	}
	ASSERT_EQ(-ENOSPC, export_wc(self, 0, page_size));

	vfio_pci_dmabuf_revoke(self->device, fds[0]);
	close_assert(fds[0]);
	fds[0] = export_wc(self, 0, page_size);
	ASSERT_LE(0, fds[0]);

	for (i = 0; i < MAX_WC_BUFFERS; i++)
		close_assert(fds[i]);
	ASSERT_TRUE(wc_ends(self, 0, self->size));
}

/* The same page more than once, and neighbours that are merged */
TEST_F(memtype, ranges_overlap)
{
	struct vfio_region_dma_range ranges[] = {
		{ .offset = 0, .length = SZ_64K },
		{ .offset = page_size, .length = page_size },
		{ .offset = 2 * page_size, .length = SZ_64K },
		{ .offset = 0, .length = SZ_64K },
	};
	size_t size = 3 * SZ_64K + page_size;
	void *vaddr;
	int fd;

	fd = export_ranges(self->device, self->bar, WC, ranges, 4);
	ASSERT_LE(0, fd);
	vaddr = mmap_shared(fd, 0, size);
	ASSERT_TYPE(vaddr, size, WC);
	munmap_assert(vaddr, size);
	close_assert(fd);
	ASSERT_TRUE(wc_ends(self, 0, self->size));
}

/* A BAR mapping that is there already follows the pages, and only those. */
TEST_F(memtype, bar_mapping_first)
{
	void *vaddr = map_bar(self, 0, SZ_4M);
	u64 faults;
	int fd;

	ASSERT_TYPE(vaddr, SZ_4M, UC);
	ASSERT_ENTRIES(vaddr, SZ_4M, 0, 2, 0);

	fd = export_wc(self, SZ_1M, SZ_64K);
	ASSERT_LE(0, fd);
	ASSERT_TYPE(vaddr, SZ_1M, UC);
	ASSERT_TYPE(vaddr + SZ_1M, SZ_64K, WC);
	ASSERT_TYPE(vaddr + SZ_1M + SZ_64K, SZ_1M - SZ_64K, UC);
	ASSERT_TYPE(vaddr + SZ_2M, SZ_2M, UC);
	ASSERT_ENTRIES(vaddr, SZ_4M, 0, 1, 512);

	close_assert(fd);
	ASSERT_TRUE(wc_ends(self, 0, self->size));
	faults = nr_page_faults();
	ASSERT_TYPE(vaddr, SZ_4M, UC);
	ASSERT_NE(faults, nr_page_faults());

	munmap_assert(vaddr, SZ_4M);
}

TEST_F(memtype, bar_mapping_second)
{
	int fd = export_wc(self, SZ_1M, SZ_64K);
	void *vaddr;

	ASSERT_LE(0, fd);
	vaddr = map_bar(self, 0, SZ_4M);
	ASSERT_TYPE(vaddr + SZ_1M, SZ_64K, WC);
	ASSERT_TYPE(vaddr, SZ_1M, UC);
	ASSERT_TYPE(vaddr + SZ_1M + SZ_64K, SZ_1M - SZ_64K, UC);
	ASSERT_TYPE(vaddr + SZ_2M, SZ_2M, UC);
	ASSERT_ENTRIES(vaddr, SZ_4M, 0, 1, 512);

	close_assert(fd);
	ASSERT_TRUE(wc_ends(self, 0, self->size));
	ASSERT_TYPE(vaddr, SZ_4M, UC);
	munmap_assert(vaddr, SZ_4M);
}

/* Far from them, huge pages stay as large as they can be. */
TEST_F(memtype, bar_mapping_of_puds)
{
	void *vaddr, *second;
	int fd;

	if (self->size < 2ULL * SZ_1G)
		SKIP(return, "BAR smaller than 2 GiB");

	fd = export_wc(self, SZ_1G + SZ_4M, page_size);
	ASSERT_LE(0, fd);
	vaddr = vfio_pci_region_mmap_aligned(self->device, self->bar, 0,
					     2ULL * SZ_1G, SZ_1G, 0);
	second = vaddr + SZ_1G;
	ASSERT_TYPE(second + SZ_4M, page_size, WC);
	ASSERT_TYPE(second + SZ_4M + page_size, SZ_2M - page_size, UC);
	ASSERT_TYPE(second, SZ_4M, UC);
	ASSERT_ENTRIES(second, SZ_8M, 0, 2, 512);
	ASSERT_TYPE(vaddr, SZ_1G, UC);
	ASSERT_ENTRIES(vaddr, SZ_1G, 1, 0, 0);

	munmap_assert(vaddr, 2ULL * SZ_1G);
	close_assert(fd);
}

/* An uncached DMABUF of the same pages does as a BAR mapping does. */
TEST_F(memtype, uncached_dmabuf_first)
{
	int uc = export_type(self->device, self->bar, UC, 0, SZ_2M);
	void *uc_map = mmap_shared_aligned(uc, 0, SZ_2M, SZ_2M, 0);
	int wc;

	ASSERT_TYPE(uc_map, SZ_2M, UC);
	wc = export_wc(self, 0, SZ_1M);
	ASSERT_LE(0, wc);
	ASSERT_TYPE(uc_map, SZ_1M, WC);
	ASSERT_TYPE(uc_map + SZ_1M, SZ_1M, UC);

	vfio_pci_dmabuf_revoke(self->device, wc);
	ASSERT_TYPE(uc_map, SZ_2M, UC);
	munmap_assert(uc_map, SZ_2M);
	close_assert(uc);
	close_assert(wc);
}

/* Mappings far from the pages take no new fault. */
TEST_F(memtype, others_are_left_alone)
{
	void *vaddr = map_bar(self, SZ_4M, SZ_2M);
	u64 faults;
	int fd;

	ASSERT_EQ(0, try_touch(vaddr));
	fd = export_wc(self, 0, SZ_64K);
	ASSERT_LE(0, fd);
	vfio_pci_dmabuf_revoke(self->device, fd);
	faults = nr_page_faults();
	ASSERT_EQ(0, try_touch(vaddr));
	ASSERT_EQ(faults, nr_page_faults());

	munmap_assert(vaddr, SZ_2M);
	close_assert(fd);
}

/* Pages of two buffers stay write-combining until the last of them goes. */
TEST_F(memtype, two_buffers)
{
	void *bar_map = map_bar(self, 0, SZ_2M);
	int fds[2];

	fds[0] = export_wc(self, 0, SZ_64K);
	fds[1] = export_wc(self, SZ_32K, SZ_64K);
	ASSERT_LE(0, fds[0]);
	ASSERT_LE(0, fds[1]);
	ASSERT_EQ(2, nr_wc(self, 0, self->size));
	ASSERT_TYPE(bar_map, SZ_64K + SZ_32K, WC);

	vfio_pci_dmabuf_revoke(self->device, fds[0]);
	ASSERT_EQ(1, nr_wc(self, 0, self->size));
	ASSERT_TYPE(bar_map, SZ_32K, UC);
	ASSERT_TYPE(bar_map + SZ_32K, SZ_64K, WC);

	vfio_pci_dmabuf_revoke(self->device, fds[1]);
	ASSERT_EQ(0, nr_wc(self, 0, self->size));
	ASSERT_TYPE(bar_map, SZ_2M, UC);

	munmap_assert(bar_map, SZ_2M);
	close_assert(fds[0]);
	close_assert(fds[1]);
}

/* The mapping, too, keeps a buffer, and with it the type of its pages. */
TEST_F(memtype, mapping_outlives_fd)
{
	int fd = export_wc(self, 0, SZ_64K);
	void *vaddr;

	ASSERT_LE(0, fd);
	vaddr = mmap_shared(fd, 0, SZ_64K);
	close_assert(fd);
	usleep(20000);
	ASSERT_TYPE(vaddr, SZ_64K, WC);
	ASSERT_EQ(1, nr_wc(self, 0, SZ_64K));
	munmap_assert(vaddr, SZ_64K);
	ASSERT_TRUE(wc_ends(self, 0, SZ_64K));
}

TEST_F(memtype, revoke_takes_access)
{
	int fd = export_wc(self, 0, SZ_64K);
	void *vaddr;

	ASSERT_LE(0, fd);
	vaddr = mmap_shared(fd, 0, SZ_64K);
	ASSERT_TYPE(vaddr, SZ_64K, WC);
	vfio_pci_dmabuf_revoke(self->device, fd);
	ASSERT_EQ(0, nr_wc(self, 0, SZ_64K));
	ASSERT_EQ(SIGBUS, try_touch_pages(vaddr, SZ_64K));
	ASSERT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(self->device, fd));
	munmap_assert(vaddr, SZ_64K);
	close_assert(fd);
}

TEST_F(memtype, mprotect_keeps_the_type)
{
	int fd = export_wc(self, 0, SZ_64K);
	void *vaddr;

	ASSERT_LE(0, fd);
	vaddr = mmap_shared(fd, 0, SZ_64K);
	ASSERT_TYPE(vaddr, SZ_64K, WC);
	ASSERT_EQ(0, mprotect(vaddr, SZ_32K, PROT_READ));
	ASSERT_TYPE(vaddr, SZ_64K, WC);
	ASSERT_EQ(0, mprotect(vaddr, SZ_64K, PROT_READ | PROT_WRITE));
	ASSERT_TYPE(vaddr, SZ_64K, WC);
	munmap_assert(vaddr, SZ_64K);
	close_assert(fd);
}

/* Access comes and goes, the type stays. Exports are made while it is away. */
TEST_F(memtype, memory_disable)
{
	int fds[2];
	void *vaddr;

	fds[0] = export_wc(self, 0, SZ_64K);
	ASSERT_LE(0, fds[0]);
	vaddr = mmap_shared(fds[0], 0, SZ_64K);
	ASSERT_TYPE(vaddr, SZ_64K, WC);

	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(SIGBUS, try_touch_pages(vaddr, SZ_64K));
	fds[1] = export_wc(self, SZ_1M, SZ_64K);
	ASSERT_LE(0, fds[1]);
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);

	ASSERT_TYPE(vaddr, SZ_64K, WC);
	munmap_assert(vaddr, SZ_64K);
	vaddr = mmap_shared(fds[1], 0, SZ_64K);
	ASSERT_TYPE(vaddr, SZ_64K, WC);
	munmap_assert(vaddr, SZ_64K);
	close_assert(fds[0]);
	close_assert(fds[1]);
}

TEST_F(memtype, reset)
{
	int fd = export_wc(self, 0, SZ_64K);
	void *vaddr;

	if (!(self->device->info.flags & VFIO_DEVICE_FLAGS_RESET))
		SKIP(return, "Device cannot be reset");

	ASSERT_LE(0, fd);
	vaddr = mmap_shared(fd, 0, SZ_64K);
	ASSERT_TYPE(vaddr, SZ_64K, WC);
	vfio_pci_device_reset(self->device);
	ASSERT_TYPE(vaddr, SZ_64K, WC);
	munmap_assert(vaddr, SZ_64K);
	close_assert(fd);
}

/* Close takes the pages back, be the buffer mapped or about to be released. */
TEST_F(memtype, close_of_device)
{
	int fd = export_wc(self, 0, SZ_64K);
	void *vaddr;

	ASSERT_LE(0, fd);
	vaddr = mmap_shared(fd, 0, SZ_64K);
	ASSERT_TYPE(vaddr, SZ_64K, WC);
	close_assert(export_wc(self, SZ_1M, SZ_64K));

	vfio_pci_device_cleanup(self->device);
	ASSERT_EQ(0, nr_wc(self, 0, self->size));
	ASSERT_EQ(SIGBUS, try_touch_pages(vaddr, SZ_64K));

	/* The next open is not concerned with what is left of the last. */
	self->device = vfio_pci_device_init(device_bdf, self->iommu);
	ASSERT_TYPE(self->device->bars[self->bar].vaddr, SZ_4M, UC);
	munmap_assert(vaddr, SZ_64K);
	close_assert(fd);
	usleep(20000);
	ASSERT_TYPE(self->device->bars[self->bar].vaddr, SZ_4M, UC);
}

/* The type is for CPUs: importers do not care. */
TEST_F(memtype, import)
{
	int fd = export_wc(self, 0, SZ_64K);

	ASSERT_LE(0, fd);
	if (self->iommu->iommufd) {
		ASSERT_EQ(0, __iommu_map_file(self->iommu, fd, 0, SZ_64K,
					      SZ_1G));
		vfio_pci_dmabuf_revoke(self->device, fd);
		iommu_unmap_iova(self->iommu, SZ_1G, SZ_64K);
	}
	close_assert(fd);
}

static void region_rw(FIXTURE_DATA(memtype) *self, bool write, u64 offset,
		      void *data, size_t size)
{
	u64 pos = vfio_pci_region_offset(self->device, self->bar) + offset;
	ssize_t ret;

	ret = write ? pwrite(self->device->fd, data, size, pos) :
		      pread(self->device->fd, data, size, pos);
	VFIO_ASSERT_EQ(ret, size);
}

/* Data that tells where it was written, at any alignment */
static void fill(u8 *data, size_t size, u8 seed)
{
	size_t i;

	for (i = 0; i < size; i++)
		data[i] = seed + i + (i >> 8);
}

/*
 * read() and write() of the region do the same as ever: in pages of either type,
 * across their edges, at odd offsets, and with nothing left in a write buffer.
 */
TEST_F(memtype, read_and_write)
{
	static const struct {
		u64 offset;
		size_t size;
	} spans[] = {
		{ SZ_64K, 8 },			/* uncached */
		{ SZ_1M, 4 },			/* write-combining */
		{ SZ_1M + SZ_32K + 3, 13 },
		{ SZ_1M - 5, 11 },		/* across the edges */
		{ SZ_1M + SZ_64K - 4097, 8195 },
		{ SZ_1M - SZ_16K, SZ_128K },
	};
	static u8 data[SZ_128K], back[SZ_128K];
	void *bar_map = map_bar(self, 0, SZ_2M);
	int i, fd;

	fd = export_wc(self, SZ_1M, SZ_64K);
	ASSERT_LE(0, fd);

	for (i = 0; i < ARRAY_SIZE(spans); i++) {
		u64 offset = spans[i].offset;
		size_t size = spans[i].size;

		fill(data, size, i);
		region_rw(self, true, offset, data, size);
		memcpy(back, bar_map + offset, size);
		ASSERT_EQ(0, memcmp(data, back, size));

		memset(back, 0, size);
		region_rw(self, false, offset, back, size);
		ASSERT_EQ(0, memcmp(data, back, size));
	}

	/* Reading and writing leaves no trace in the types. */
	ASSERT_EQ(1, nr_wc(self, 0, self->size));
	ASSERT_TYPE(bar_map, SZ_1M, UC);
	ASSERT_TYPE(bar_map + SZ_1M, SZ_64K, WC);

	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(-1, pread(self->device->fd, back, 4,
			    vfio_pci_region_offset(self->device, self->bar) +
			    SZ_1M));
	ASSERT_EQ(EIO, errno);
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);

	munmap_assert(bar_map, SZ_2M);
	close_assert(fd);
}

static int ioeventfd(FIXTURE_DATA(memtype) *self, u64 offset, u64 data, int fd)
{
	struct vfio_device_ioeventfd arg = {
		.argsz = sizeof(arg),
		.flags = VFIO_DEVICE_IOEVENTFD_32,
		.offset = vfio_pci_region_offset(self->device, self->bar) +
			  offset,
		.data = data,
		.fd = fd,
	};

	return ioctl(self->device->fd, VFIO_DEVICE_IOEVENTFD, &arg) ?
	       -errno : 0;
}

static bool ioeventfd_writes(FIXTURE_DATA(memtype) *self, u64 offset, int fd,
			     u32 expected)
{
	u32 val = 0;
	int ms;

	region_rw(self, true, offset, &val, sizeof(val));
	VFIO_ASSERT_EQ(eventfd_write(fd, 1), 0);
	for (ms = 0; ms < 1000 && val != expected; ms++) {
		region_rw(self, false, offset, &val, sizeof(val));
		usleep(1000);
	}

	return val == expected;
}

TEST_F(memtype, ioeventfd)
{
	int event = eventfd(0, EFD_CLOEXEC);
	int fd;

	ASSERT_LE(0, event);
	ASSERT_EQ(0, ioeventfd(self, SZ_64K, 0x1234, event));
	ASSERT_TRUE(ioeventfd_writes(self, SZ_64K, event, 0x1234));

	/* It goes on when the kernel's mapping of the BAR has gone. */
	fd = export_wc(self, SZ_1M, SZ_64K);
	ASSERT_LE(0, fd);
	ASSERT_TRUE(ioeventfd_writes(self, SZ_64K, event, 0x1234));

	/* Its page is not for combining, with a part of it, around it, or all. */
	ASSERT_EQ(-EBUSY, export_wc(self, SZ_64K, page_size));
	ASSERT_EQ(-EBUSY, export_wc(self, 0, SZ_128K));
	ASSERT_EQ(1, nr_wc(self, 0, self->size));
	ASSERT_TRUE(ioeventfd_writes(self, SZ_64K, event, 0x1234));

	/* And the other way round */
	ASSERT_EQ(-EBUSY, ioeventfd(self, SZ_1M, 0x5678, event));
	ASSERT_EQ(0, ioeventfd(self, SZ_2M, 0x5678, event));
	ASSERT_TRUE(ioeventfd_writes(self, SZ_2M, event, 0x5678));

	ASSERT_EQ(0, ioeventfd(self, SZ_64K, 0x1234, -1));
	ASSERT_EQ(0, ioeventfd(self, SZ_2M, 0x5678, -1));
	close_assert(fd);
	fd = export_wc(self, 0, SZ_128K);
	ASSERT_LE(0, fd);
	close_assert(fd);
	close_assert(event);
}

/* What is closed does not count, although it ends a moment later. */
TEST_F_TIMEOUT(memtype, closed_does_not_count, 300)
{
	struct vfio_region_dma_range ranges[MAX_WC_RANGES];
	u32 i, rounds = nr_rounds();
	struct spinners spinners;
	int fds[MAX_WC_BUFFERS];

	fill_downwards(ranges, MAX_WC_RANGES);
	for (i = 0; i < MAX_WC_BUFFERS; i++) {
		fds[i] = export_ranges(self->device, self->bar, WC, ranges,
				       MAX_WC_RANGES);
		ASSERT_LE(0, fds[i]);
	}

	spinners_start(&spinners);
	for (i = 0; i < rounds; i++) {
		close_assert(fds[0]);
		if (i % 2)
			ASSERT_NE(-EBUSY, __vfio_pci_hot_reset(self->device));
		fds[0] = export_ranges(self->device, self->bar, WC, ranges,
				       MAX_WC_RANGES);
		ASSERT_LE(0, fds[0]);
	}
	spinners_stop(&spinners);

	for (i = 0; i < MAX_WC_BUFFERS; i++)
		close_assert(fds[i]);
}

/* Nor is it in the way of others. */
TEST_F(memtype, closed_is_gone)
{
	int event = eventfd(0, EFD_CLOEXEC);
	u32 i, rounds = nr_rounds();
	struct spinners spinners;

	ASSERT_LE(0, event);
	spinners_start(&spinners);
	for (i = 0; i < rounds; i++) {
		close_assert(export_wc(self, SZ_1M, SZ_64K));
		ASSERT_EQ(0, ioeventfd(self, SZ_1M, 0x1234, event));
		ASSERT_EQ(0, ioeventfd(self, SZ_1M, 0x1234, -1));
	}
	spinners_stop(&spinners);
	close_assert(event);
}

/* A conflict in one range of several undoes the others. */
TEST_F(memtype, conflict_changes_nothing)
{
	struct vfio_region_dma_range ranges[] = {
		{ .offset = SZ_1M, .length = SZ_64K },
		{ .offset = SZ_64K, .length = page_size },
		{ .offset = SZ_4M, .length = SZ_64K },
	};
	int event = eventfd(0, EFD_CLOEXEC);

	ASSERT_LE(0, event);
	ASSERT_EQ(0, ioeventfd(self, SZ_64K, 1, event));
	ASSERT_EQ(-EBUSY, export_ranges(self->device, self->bar, WC, ranges,
					ARRAY_SIZE(ranges)));
	ASSERT_EQ(0, nr_wc(self, 0, self->size));
	ASSERT_TYPE(self->device->bars[self->bar].vaddr, SZ_8M, UC);
	ASSERT_EQ(0, ioeventfd(self, SZ_64K, 1, -1));
	close_assert(event);
}

struct racer {
	FIXTURE_DATA(memtype) *self;
	bool stop;
	u64 nr;
	u64 nr_wrong;
};

/* write() and read() in a page that changes its type, and next to it */
static void *rw_main(void *arg)
{
	struct racer *racer = arg;
	u8 data[64], back[64];

	while (!READ_ONCE(racer->stop)) {
		fill(data, sizeof(data), racer->nr++);
		region_rw(racer->self, true, SZ_1M - 32, data, sizeof(data));
		region_rw(racer->self, false, SZ_1M - 32, back, sizeof(back));
		if (memcmp(data, back, sizeof(data)))
			racer->nr_wrong++;
	}
	return NULL;
}

/* Faults of a BAR mapping of these pages */
static void *touch_main(void *arg)
{
	struct racer *racer = arg;
	void *vaddr;

	while (!READ_ONCE(racer->stop)) {
		vaddr = map_bar(racer->self, 0, SZ_2M);
		if (try_touch_pages(vaddr + SZ_1M - SZ_64K, SZ_128K))
			racer->nr_wrong++;
		munmap_assert(vaddr, SZ_2M);
		racer->nr++;
	}
	return NULL;
}

/*
 * Whatever goes on in the pages meanwhile: when an export has returned they are
 * write-combining, and when a revoke has returned they are uncached, in the new
 * mapping and in the old.
 */
TEST_F_TIMEOUT(memtype, races, 300)
{
	u32 i, rounds = nr_rounds();
	struct racer racers[] = { { self }, { self } };
	void *bar_map = map_bar(self, SZ_1M, SZ_64K);
	pthread_t threads[2];
	void *vaddr;
	int fd;

	ASSERT_EQ(0, pthread_create(&threads[0], NULL, rw_main, &racers[0]));
	ASSERT_EQ(0, pthread_create(&threads[1], NULL, touch_main, &racers[1]));

	for (i = 0; i < rounds; i++) {
		fd = export_wc(self, SZ_1M, SZ_64K);
		ASSERT_LE(0, fd);
		vaddr = mmap_shared(fd, 0, SZ_64K);
		ASSERT_TYPE(vaddr, SZ_64K, WC);
		ASSERT_TYPE(bar_map, SZ_64K, WC);
		if (i % 2) {
			vfio_pci_dmabuf_revoke(self->device, fd);
			ASSERT_TYPE(bar_map, SZ_64K, UC);
		}
		munmap_assert(vaddr, SZ_64K);
		close_assert(fd);
		ASSERT_TRUE(wc_ends(self, 0, self->size));
		ASSERT_TYPE(bar_map, SZ_64K, UC);
	}

	for (i = 0; i < 2; i++) {
		WRITE_ONCE(racers[i].stop, true);
		ASSERT_EQ(0, pthread_join(threads[i], NULL));
		ASSERT_EQ(0, racers[i].nr_wrong);
		ASSERT_LT(0, racers[i].nr);
	}
	munmap_assert(bar_map, SZ_64K);
}

/*
 * Uncached mappings of what has been write-combining have small pages for as
 * long as the device is open, and large ones next to that.
 */
TEST_F(memtype, no_large_pages_afterwards)
{
	void *bar_map = map_bar(self, 0, SZ_4M);
	int fd;

	ASSERT_TYPE(bar_map, SZ_4M, UC);
	ASSERT_ENTRIES(bar_map, SZ_4M, 0, 2, 0);

	fd = export_wc(self, SZ_1M, SZ_64K);
	ASSERT_LE(0, fd);
	vfio_pci_dmabuf_revoke(self->device, fd);
	close_assert(fd);
	munmap_assert(bar_map, SZ_4M);

	bar_map = map_bar(self, 0, SZ_4M);
	ASSERT_TYPE(bar_map, SZ_4M, UC);
	ASSERT_ENTRIES(bar_map, SZ_4M, 0, 1, SZ_2M / page_size);
	munmap_assert(bar_map, SZ_4M);
}

struct neighbour {
	pthread_barrier_t *barrier;
	void *vaddr;
	int nr_wrong;
};

static void *neighbour_main(void *arg)
{
	struct neighbour *neighbour = arg;

	while (pthread_barrier_wait(neighbour->barrier), neighbour->vaddr) {
		if (try_touch_pages(neighbour->vaddr, page_size))
			neighbour->nr_wrong++;
		pthread_barrier_wait(neighbour->barrier);
	}
	return NULL;
}

/*
 * Two threads touch pages of what one large page could map while that which
 * forbids it comes to an end. Neither may find such a page in its way.
 */
TEST_F_TIMEOUT(memtype, end_against_faults_of_neighbours, 300)
{
	pthread_barrier_t barrier;
	struct neighbour neighbours[2] = { { &barrier }, { &barrier } };
	u32 i, rounds = nr_rounds() * 10;
	pthread_t threads[2];
	void *bar_map;
	int j, fd;

	pthread_barrier_init(&barrier, NULL, 3);
	for (j = 0; j < 2; j++)
		ASSERT_EQ(0, pthread_create(&threads[j], NULL, neighbour_main,
					    &neighbours[j]));

	for (i = 0; i < rounds; i++) {
		bar_map = map_bar(self, 0, SZ_2M);
		neighbours[0].vaddr = bar_map;
		neighbours[1].vaddr = bar_map + SZ_1M - page_size;
		fd = export_wc(self, SZ_1M, SZ_64K);
		ASSERT_LE(0, fd);

		pthread_barrier_wait(&barrier);
		usleep(i % 16);
		vfio_pci_dmabuf_revoke(self->device, fd);
		pthread_barrier_wait(&barrier);

		close_assert(fd);
		munmap_assert(bar_map, SZ_2M);
	}

	neighbours[0].vaddr = NULL;
	neighbours[1].vaddr = NULL;
	pthread_barrier_wait(&barrier);
	for (j = 0; j < 2; j++) {
		ASSERT_EQ(0, pthread_join(threads[j], NULL));
		ASSERT_EQ(0, neighbours[j].nr_wrong);
	}
	pthread_barrier_destroy(&barrier);
}

/* Of two at the same time, one release races with the other's export. */
static void *exporter_main(void *arg)
{
	struct racer *racer = arg;
	int fd;

	while (!READ_ONCE(racer->stop)) {
		fd = export_wc(racer->self, SZ_1M + SZ_32K, SZ_64K);
		if (fd < 0)
			racer->nr_wrong++;
		else
			close_assert(fd);
		racer->nr++;
	}
	return NULL;
}

/*
 * The other release zaps what is in common, so the page tables, which take a
 * while to read, are for the end. Until then look at what is on record.
 */
TEST_F_TIMEOUT(memtype, release_against_export, 300)
{
	struct racer racer = { self };
	u32 i, rounds = nr_rounds();
	void *vaddr = NULL;
	pthread_t thread;
	int fd;

	ASSERT_EQ(0, pthread_create(&thread, NULL, exporter_main, &racer));
	for (i = 0; i < rounds; i++) {
		if (vaddr)
			munmap_assert(vaddr, SZ_64K);
		fd = export_wc(self, SZ_1M, SZ_64K);
		ASSERT_LE(0, fd);
		vaddr = mmap_shared(fd, 0, SZ_64K);
		close_assert(fd);
		ASSERT_EQ(0, try_touch_pages(vaddr, SZ_64K));
		ASSERT_LT(0, nr_wc(self, SZ_1M, SZ_32K));
	}
	WRITE_ONCE(racer.stop, true);
	ASSERT_EQ(0, pthread_join(thread, NULL));
	ASSERT_EQ(0, racer.nr_wrong);
	ASSERT_LT(0, racer.nr);

	ASSERT_TRUE(wait_for_wc_memtypes(self->start, self->end, 1));
	ASSERT_TYPE(vaddr, SZ_64K, WC);
	munmap_assert(vaddr, SZ_64K);
	ASSERT_TRUE(wc_ends(self, 0, self->size));
}

int main(int argc, char *argv[])
{
	page_size = getpagesize();
	device_bdf = vfio_selftests_get_bdf(&argc, argv);
	return test_harness_run(argc, argv);
}
