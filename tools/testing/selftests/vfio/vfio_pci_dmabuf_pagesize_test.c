// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which page sizes the kernel uses for mappings of BARs and DMABUFs: huge ones
 * wherever address, alignment and ranges allow, and never across an edge. Read
 * from the page tables, by way of debugfs.
 */
#include <stdint.h>
#include <unistd.h>

#include <sys/mman.h>

#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "kselftest_harness.h"

static const char *device_bdf;

static size_t page_size;

FIXTURE(page_size) {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	int bar;
	u64 size;
};

FIXTURE_SETUP(page_size)
{
	const char *reason;

	reason = dmabuf_test_open(device_bdf, true, SZ_16M,
				  &self->iommu, &self->device, &self->bar);
	if (reason)
		SKIP(return, "%s", reason);
	self->size = self->device->bars[self->bar].info.size;

	if (!page_table_info_supported())
		SKIP(return, "No view of x86 page tables in debugfs");
}

FIXTURE_TEARDOWN(page_size)
{
	vfio_pci_device_cleanup(self->device);
	iommu_cleanup(self->iommu);
}

/* Map the BAR itself, or a DMABUF of it, from @offset on. */
static void *map_span(struct vfio_pci_device *device, int bar, bool dmabuf,
		      u64 offset, size_t size, size_t align, size_t misalign)
{
	void *vaddr;
	int fd;

	if (!dmabuf)
		return vfio_pci_region_mmap_aligned(device, bar, offset, size,
						    align, misalign);

	fd = vfio_pci_dmabuf_export_range(device, bar, offset, size);
	vaddr = mmap_shared_aligned(fd, 0, size, align, misalign);
	close_assert(fd);

	return vaddr;
}

/* One range of the BAR: the same by both ways of mapping it. */
FIXTURE_VARIANT(page_size) {
	bool dmabuf;
};

FIXTURE_VARIANT_ADD(page_size, bar) {
	.dmabuf = false,
};

FIXTURE_VARIANT_ADD(page_size, dmabuf) {
	.dmabuf = true,
};

TEST_F(page_size, two_puds)
{
	void *vaddr;

	if (self->size < 2ULL * SZ_1G)
		SKIP(return, "BAR smaller than 2 GiB");

	vaddr = map_span(self->device, self->bar, variant->dmabuf, 0,
			 2ULL * SZ_1G, SZ_1G, 0);
	ASSERT_EQ(2, faults_to_touch(vaddr, 2ULL * SZ_1G, SZ_4M));
	ASSERT_ENTRIES(vaddr, 2ULL * SZ_1G, 2, 0, 0);

	munmap_assert(vaddr, 2ULL * SZ_1G);
}

/* A whole PUD is there, but not where one can be. */
TEST_F(page_size, no_pud_when_misaligned)
{
	void *vaddr;

	if (self->size < 2ULL * SZ_1G)
		SKIP(return, "BAR smaller than 2 GiB");

	vaddr = map_span(self->device, self->bar, variant->dmabuf, 0,
			 SZ_1G + SZ_16M, SZ_1G, SZ_1G - SZ_2M);
	ASSERT_EQ(0, try_touch_pages(vaddr, SZ_16M));
	ASSERT_ENTRIES(vaddr, SZ_16M, 0, 8, 0);

	munmap_assert(vaddr, SZ_1G + SZ_16M);
}

TEST_F(page_size, pmds)
{
	void *vaddr = map_span(self->device, self->bar, variant->dmabuf, SZ_4M,
			       SZ_8M, SZ_2M, 0);

	ASSERT_EQ(4, faults_to_touch(vaddr, SZ_8M, SZ_64K));
	ASSERT_ENTRIES(vaddr, SZ_8M, 0, 4, 0);

	munmap_assert(vaddr, SZ_8M);
}

TEST_F(page_size, no_pmd_when_address_is_misaligned)
{
	void *vaddr = map_span(self->device, self->bar, variant->dmabuf, 0,
			       SZ_4M, SZ_2M, page_size);

	ASSERT_EQ(0, try_touch_pages(vaddr, SZ_4M));
	ASSERT_ENTRIES(vaddr, SZ_4M, 0, 0, 1024);

	munmap_assert(vaddr, SZ_4M);
}

TEST_F(page_size, no_pmd_when_bar_is_misaligned)
{
	void *vaddr = map_span(self->device, self->bar, variant->dmabuf,
			       page_size, SZ_4M, SZ_2M, 0);

	ASSERT_EQ(0, try_touch_pages(vaddr, SZ_4M));
	ASSERT_ENTRIES(vaddr, SZ_4M, 0, 0, 1024);

	munmap_assert(vaddr, SZ_4M);
}

/*
 * What a fault maps along is around it: as far as the mapping goes, but on
 * neither side beyond the aligned block that the page is in. How large that is
 * the first fault tells: more than a page, and at most a page table.
 */
TEST_F(page_size, neighbours_are_of_one_block)
{
	static const size_t touched[] = {
		SZ_1M, SZ_2M + SZ_256K + SZ_64K, 3 * SZ_2M - SZ_4K,
	};
	void *vaddr = map_span(self->device, self->bar, variant->dmabuf,
			       page_size, 3 * SZ_2M, SZ_2M, 0);
	struct page_table_info info;
	size_t block = 0;
	int i;

	for (i = 0; i < ARRAY_SIZE(touched); i++) {
		ASSERT_EQ(1, faults_to_touch(vaddr + touched[i], page_size,
					     page_size));
		if (!i) {
			page_table_info(vaddr, 3 * SZ_2M, &info);
			block = info.bytes;
			ASSERT_LT(page_size, block);
			ASSERT_GE(SZ_2M, block);
			ASSERT_EQ(0, block & (block - 1));
		}
		ASSERT_ENTRIES(vaddr + (touched[i] & ~(block - 1)), block, 0, 0,
			       block / page_size);
		ASSERT_ENTRIES(vaddr, 3 * SZ_2M, 0, 0,
			       (i + 1) * (block / page_size));
	}

	munmap_assert(vaddr, 3 * SZ_2M);
}

/* Both are misaligned by the same: huge pages fit in between. */
TEST_F(page_size, pmds_inside_misaligned_span)
{
	void *vaddr = map_span(self->device, self->bar, variant->dmabuf,
			       page_size, 3 * SZ_2M, SZ_2M, page_size);

	ASSERT_EQ(0, try_touch_pages(vaddr, 3 * SZ_2M));
	ASSERT_ENTRIES(vaddr, 3 * SZ_2M, 0, 2, 512);
	ASSERT_ENTRIES(vaddr, SZ_2M - page_size, 0, 0, 511);

	munmap_assert(vaddr, 3 * SZ_2M);
}

TEST_F(page_size, no_pmd_beyond_the_mapping)
{
	void *vaddr = map_span(self->device, self->bar, variant->dmabuf, 0,
			       3 * SZ_1M, SZ_2M, 0);

	ASSERT_EQ(0, try_touch_pages(vaddr, 3 * SZ_1M));
	ASSERT_ENTRIES(vaddr, 3 * SZ_1M, 0, 1, 256);

	munmap_assert(vaddr, 3 * SZ_1M);
}

/* A hole in the middle of a PMD leaves small pages, the others stay. */
TEST_F(page_size, pmd_split_by_munmap)
{
	void *vaddr = map_span(self->device, self->bar, variant->dmabuf, 0,
			       SZ_4M, SZ_2M, 0);
	void *hole = vaddr + SZ_2M + 5 * page_size;

	ASSERT_EQ(0, try_touch_pages(vaddr, SZ_4M));
	ASSERT_ENTRIES(vaddr, SZ_4M, 0, 2, 0);

	munmap_assert(hole, page_size);
	ASSERT_EQ(SIGSEGV, try_touch(hole));
	ASSERT_EQ(0, try_touch_pages(vaddr, SZ_2M + 5 * page_size));
	ASSERT_EQ(0, try_touch_pages(hole + page_size, SZ_2M - 6 * page_size));
	ASSERT_ENTRIES(vaddr, SZ_4M, 0, 1, 511);

	munmap_assert(vaddr, SZ_4M);
}

TEST_F(page_size, pmds_come_back)
{
	void *vaddr = map_span(self->device, self->bar, variant->dmabuf, 0,
			       SZ_4M, SZ_2M, 0);

	ASSERT_EQ(2, faults_to_touch(vaddr, SZ_4M, SZ_64K));
	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	ASSERT_ENTRIES(vaddr, SZ_4M, 0, 0, 0);
	ASSERT_EQ(SIGBUS, try_touch(vaddr));
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);

	/* Nothing is mapped but by a fault. */
	ASSERT_ENTRIES(vaddr, SZ_4M, 0, 0, 0);
	ASSERT_EQ(2, faults_to_touch(vaddr, SZ_4M, SZ_64K));
	ASSERT_ENTRIES(vaddr, SZ_4M, 0, 2, 0);

	munmap_assert(vaddr, SZ_4M);
}

/* Uncached, not write-combining: with PAT that is PCD alone. */
TEST_F(page_size, entries_are_uncached)
{
	void *vaddr = map_span(self->device, self->bar, variant->dmabuf, 0,
			       SZ_4M + page_size, SZ_2M, 0);
	struct page_table_info info;

	ASSERT_EQ(0, try_touch_pages(vaddr, SZ_4M + page_size));
	page_table_info(vaddr, SZ_4M + page_size, &info);
	ASSERT_EQ(SZ_4M + page_size, info.bytes);
	ASSERT_EQ(info.bytes, info.bytes_pcd);
	ASSERT_EQ(0, info.bytes_pwt);
	ASSERT_EQ(0, info.bytes_pat);

	munmap_assert(vaddr, SZ_4M + page_size);
}

/* Several ranges: only a DMABUF has them. */
FIXTURE(page_size_ranges) {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	int bar;
};

FIXTURE_SETUP(page_size_ranges)
{
	const char *reason;

	reason = dmabuf_test_open(device_bdf, true, SZ_16M,
				  &self->iommu, &self->device, &self->bar);
	if (reason)
		SKIP(return, "%s", reason);

	if (!page_table_info_supported())
		SKIP(return, "No view of x86 page tables in debugfs");
}

FIXTURE_TEARDOWN(page_size_ranges)
{
	vfio_pci_device_cleanup(self->device);
	iommu_cleanup(self->iommu);
}

static void *map_ranges(struct vfio_pci_device *device, int bar,
			const struct vfio_region_dma_range *ranges, int nr)
{
	size_t size = 0;
	void *vaddr;
	int fd, i;

	for (i = 0; i < nr; i++)
		size += ranges[i].length;

	fd = vfio_pci_dmabuf_export(device, bar, ranges, nr);
	vaddr = mmap_shared_aligned(fd, 0, size, SZ_2M, 0);
	close_assert(fd);
	VFIO_ASSERT_EQ(try_touch_pages(vaddr, size), 0);

	return vaddr;
}

/* Does @vaddr show @offset of the BAR? Written here, read there. */
static bool shows_offset(struct vfio_pci_device *device, int bar,
			 const void *vaddr, u64 offset)
{
	void *mem = device->bars[bar].vaddr + offset;
	static u32 tag = 0xbeef0000;
	u32 val;

	VFIO_ASSERT_EQ(try_write32(mem, ++tag), 0);
	VFIO_ASSERT_EQ(try_read32(vaddr, &val), 0);

	return val == tag;
}

TEST_F(page_size_ranges, contiguous_neighbours_are_merged)
{
	static const struct vfio_region_dma_range ranges[] = {
		{ 0, SZ_1M },
		{ SZ_1M, SZ_512K },
		{ SZ_1M + SZ_512K, SZ_512K },
		{ SZ_2M, SZ_1M },
		{ SZ_2M + SZ_1M, SZ_1M },
	};
	void *vaddr = map_ranges(self->device, self->bar, ranges,
				 ARRAY_SIZE(ranges));

	ASSERT_ENTRIES(vaddr, SZ_4M, 0, 2, 0);

	munmap_assert(vaddr, SZ_4M);
}

TEST_F(page_size_ranges, no_pmd_across_an_edge)
{
	static const struct vfio_region_dma_range ranges[] = {
		{ 0, 3 * SZ_1M },
		{ SZ_8M, 3 * SZ_1M },
	};
	void *vaddr = map_ranges(self->device, self->bar, ranges,
				 ARRAY_SIZE(ranges));
	void *edge = vaddr + 3 * SZ_1M;

	/* The first PMD; then the edge; then memory that fits no PMD. */
	ASSERT_ENTRIES(vaddr, 6 * SZ_1M, 0, 1, 1024);
	ASSERT_TRUE(shows_offset(self->device, self->bar, edge - page_size,
				 3 * SZ_1M - page_size));
	ASSERT_TRUE(shows_offset(self->device, self->bar, edge, SZ_8M));

	munmap_assert(vaddr, 6 * SZ_1M);
}

TEST_F(page_size_ranges, pmds_on_both_sides_of_an_edge)
{
	static const struct vfio_region_dma_range ranges[] = {
		{ SZ_4M, SZ_2M },
		{ 0, SZ_2M },
	};
	void *vaddr = map_ranges(self->device, self->bar, ranges,
				 ARRAY_SIZE(ranges));

	ASSERT_ENTRIES(vaddr, SZ_4M, 0, 2, 0);
	ASSERT_TRUE(shows_offset(self->device, self->bar,
				 vaddr + SZ_2M - page_size,
				 SZ_4M + SZ_2M - page_size));
	ASSERT_TRUE(shows_offset(self->device, self->bar, vaddr + SZ_2M, 0));

	munmap_assert(vaddr, SZ_4M);
}

/* Together they make up a PMD, but in the wrong order. */
TEST_F(page_size_ranges, reversed_neighbours)
{
	static const struct vfio_region_dma_range ranges[] = {
		{ SZ_1M, SZ_1M },
		{ 0, SZ_1M },
	};
	void *vaddr = map_ranges(self->device, self->bar, ranges,
				 ARRAY_SIZE(ranges));

	ASSERT_ENTRIES(vaddr, SZ_2M, 0, 0, 512);

	munmap_assert(vaddr, SZ_2M);
}

/* A small range in front shifts the rest so that nothing fits. */
TEST_F(page_size_ranges, shifted_by_a_page)
{
	struct vfio_region_dma_range ranges[] = {
		{ SZ_8M, page_size },
		{ 0, SZ_2M },
	};
	void *vaddr = map_ranges(self->device, self->bar, ranges,
				 ARRAY_SIZE(ranges));

	ASSERT_ENTRIES(vaddr, SZ_2M + page_size, 0, 0, 513);
	ASSERT_TRUE(shows_offset(self->device, self->bar, vaddr + page_size,
				 0));

	munmap_assert(vaddr, SZ_2M + page_size);
}

/* And here it shifts it to where it does. */
TEST_F(page_size_ranges, aligned_by_a_range_in_front)
{
	struct vfio_region_dma_range ranges[] = {
		{ SZ_8M, page_size },
		{ page_size, 2 * SZ_2M - page_size },
	};
	void *vaddr = map_ranges(self->device, self->bar, ranges,
				 ARRAY_SIZE(ranges));

	ASSERT_ENTRIES(vaddr, SZ_4M, 0, 1, 512);
	ASSERT_TRUE(shows_offset(self->device, self->bar, vaddr, SZ_8M));
	ASSERT_TRUE(shows_offset(self->device, self->bar, vaddr + page_size,
				 page_size));

	munmap_assert(vaddr, SZ_4M);
}

int main(int argc, char *argv[])
{
	page_size = getpagesize();
	device_bdf = vfio_selftests_get_bdf(&argc, argv);
	return test_harness_run(argc, argv);
}
