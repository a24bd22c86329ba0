// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which page sizes the kernel uses for mappings of BARs and DMABUFs: large ones
 * wherever address, alignment and ranges allow, and never across an edge. Read from
 * the page tables in debugfs.
 */
#include <stdint.h>
#include <unistd.h>

#include <sys/mman.h>

#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio/dmabuf_test.h>

#include "kselftest_harness.h"

/* One range of the BAR: the same by both ways of mapping it */
FIXTURE(page_size) {
	DMABUF_FIXTURE;
};

FIXTURE_VARIANT(page_size) {
	bool dmabuf;
};

FIXTURE_VARIANT_ADD(page_size, bar) {
	.dmabuf = false,
};

FIXTURE_VARIANT_ADD(page_size, dmabuf) {
	.dmabuf = true,
};

FIXTURE_SETUP(page_size)
{
	DMABUF_SETUP(self, true, SZ_16M);
	if (!page_table_info_supported())
		SKIP(return, "No view of x86 page tables in debugfs");
}

FIXTURE_TEARDOWN(page_size)
{
}

/* A file and an offset in it, for mmap() of the BAR from @offset on */
static int open_span(FIXTURE_DATA(page_size) *self, bool dmabuf, u64 *offset,
		     size_t size)
{
	int fd;

	if (!dmabuf) {
		*offset += self->bar_offset;
		return dup(self->device->fd);
	}

	fd = vfio_pci_dmabuf_export_range(self->device, self->bar, *offset,
					  size);
	*offset = 0;
	return fd;
}

static void *map_span(FIXTURE_DATA(page_size) *self, bool dmabuf, u64 offset,
		      size_t size, size_t align, size_t misalign)
{
	int fd = open_span(self, dmabuf, &offset, size);
	void *vaddr = mmap_shared_aligned(fd, offset, size, align, misalign);

	close_assert(fd);
	return vaddr;
}

/* As many faults as entries: each maps one page, of the largest size that fits. */
#define ASSERT_FAULTS(_vaddr, _size, _pud, _pmd, _pte) do {			\
	ASSERT_EQ((_pud) + (_pmd) + (_pte),					\
		  faults_to_touch((_vaddr), (_size), page_size));		\
	ASSERT_ENTRIES((_vaddr), (_size), (_pud), (_pmd), (_pte));		\
} while (0)

TEST_F(page_size, puds)
{
	void *vaddr;

	if (self->bar_size < 2ULL * SZ_1G)
		SKIP(return, "BAR smaller than 2 GiB");

	vaddr = map_span(self, variant->dmabuf, 0, 2ULL * SZ_1G, SZ_1G, 0);
	ASSERT_EQ(2, faults_to_touch(vaddr, 2ULL * SZ_1G, SZ_4M));
	ASSERT_ENTRIES(vaddr, 2ULL * SZ_1G, 2, 0, 0);
	munmap_assert(vaddr, 2ULL * SZ_1G);

	/* A whole PUD is there, but not where one can be. */
	vaddr = map_span(self, variant->dmabuf, 0, SZ_1G + SZ_16M, SZ_1G,
			 SZ_1G - SZ_2M);
	ASSERT_FAULTS(vaddr, SZ_16M, 0, 8, 0);
}

TEST_F(page_size, pmds_and_ptes)
{
	const struct {
		u64 offset;
		size_t size;
		size_t misalign;
		u64 nr_pmd;
		u64 nr_pte;
	} spans[] = {
		{ SZ_4M, SZ_8M, 0, 4, 0 },
		/* misaligned: the address, the BAR, or both by the same */
		{ 0, SZ_4M, page_size, 0, 1024 },
		{ page_size, SZ_4M, 0, 0, 1024 },
		{ page_size, 3 * SZ_2M, page_size, 2, 512 },
		/* not beyond the end of the mapping */
		{ 0, 3 * SZ_1M, 0, 1, 256 },
	};
	void *vaddr;
	int i;

	for (i = 0; i < ARRAY_SIZE(spans); i++) {
		TH_LOG("offset 0x%llx, size 0x%zx, misaligned by 0x%zx",
		       (unsigned long long)spans[i].offset, spans[i].size,
		       spans[i].misalign);
		vaddr = map_span(self, variant->dmabuf, spans[i].offset,
				 spans[i].size, SZ_2M, spans[i].misalign);
		ASSERT_FAULTS(vaddr, spans[i].size, 0, spans[i].nr_pmd,
			      spans[i].nr_pte);
		munmap_assert(vaddr, spans[i].size);
	}
}

/* mmap() chooses addresses that allow large pages, and takes those of the caller. */
TEST_F(page_size, address_of_the_kernel)
{
	void *vaddr, *free;
	u64 offset = 0;
	int i, fd;

	fd = open_span(self, variant->dmabuf, &offset, SZ_16M);
	for (i = 0; i < 4; i++) {
		/* A neighbour, so that it is not aligned by accident */
		ASSERT_NE(MAP_FAILED, mmap(NULL, page_size, PROT_READ,
					   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
		vaddr = mmap_shared(fd, offset, SZ_16M);
		ASSERT_FAULTS(vaddr, SZ_16M, 0, 8, 0);
	}

	/* With more room behind it than is mapped: that is how the kernel looks */
	free = mmap_reserve(SZ_32M, SZ_2M, page_size);
	munmap_assert(free, SZ_32M);
	vaddr = mmap(free, SZ_16M, PROT_READ, MAP_SHARED, fd, offset);
	ASSERT_EQ(free, vaddr);
}

/* A hole in the middle of a PMD leaves small pages, the others stay. */
TEST_F(page_size, pmd_split_by_munmap)
{
	void *vaddr = map_span(self, variant->dmabuf, 0, SZ_4M, SZ_2M, 0);
	void *hole = vaddr + SZ_2M + 5 * page_size;

	ASSERT_FAULTS(vaddr, SZ_4M, 0, 2, 0);
	munmap_assert(hole, page_size);
	ASSERT_EQ(SIGSEGV, try_touch(hole));
	ASSERT_EQ(0, try_touch_pages(vaddr, SZ_2M + 5 * page_size));
	ASSERT_EQ(0, try_touch_pages(hole + page_size, SZ_2M - 6 * page_size));
	ASSERT_ENTRIES(vaddr, SZ_4M, 0, 1, 511);
}

/* Nothing is mapped but by a fault. */
TEST_F(page_size, pmds_come_back)
{
	void *vaddr = map_span(self, variant->dmabuf, 0, SZ_4M, SZ_2M, 0);

	ASSERT_FAULTS(vaddr, SZ_4M, 0, 2, 0);
	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	ASSERT_ENTRIES(vaddr, SZ_4M, 0, 0, 0);
	ASSERT_EQ(SIGBUS, try_touch(vaddr));
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	ASSERT_ENTRIES(vaddr, SZ_4M, 0, 0, 0);
	ASSERT_FAULTS(vaddr, SZ_4M, 0, 2, 0);
}

/* Uncached, not write-combining: with PAT that is PCD alone. */
TEST_F(page_size, entries_are_uncached)
{
	size_t size = SZ_4M + page_size;
	void *vaddr = map_span(self, variant->dmabuf, 0, size, SZ_2M, 0);
	struct page_table_info info;

	ASSERT_EQ(0, try_touch_pages(vaddr, size));
	page_table_info(vaddr, size, &info);
	ASSERT_EQ(size, info.bytes);
	ASSERT_EQ(size, info.bytes_pcd);
	ASSERT_EQ(0, info.bytes_pwt);
	ASSERT_EQ(0, info.bytes_pat);
}

/* Several ranges: only a DMABUF has them. */
FIXTURE(page_size_ranges) {
	DMABUF_FIXTURE;
};

/* By the number of PMDs and PTEs that they take, and the first page of each */
FIXTURE_VARIANT(page_size_ranges) {
	struct vfio_region_dma_range ranges[5];
	u64 nr_pmd;
	u64 nr_pte;
};

FIXTURE_VARIANT_ADD(page_size_ranges, contiguous_ones_are_merged) {
	.ranges = {
		{ 0, SZ_1M }, { SZ_1M, SZ_512K }, { SZ_1M + SZ_512K, SZ_512K },
		{ SZ_2M, SZ_1M }, { SZ_2M + SZ_1M, SZ_1M },
	},
	.nr_pmd = 2,
};

/* The first PMD; then the edge; then memory that fits no PMD */
FIXTURE_VARIANT_ADD(page_size_ranges, no_pmd_across_an_edge) {
	.ranges = { { 0, 3 * SZ_1M }, { SZ_8M, 3 * SZ_1M } },
	.nr_pmd = 1,
	.nr_pte = 1024,
};

FIXTURE_VARIANT_ADD(page_size_ranges, pmds_on_both_sides_of_an_edge) {
	.ranges = { { SZ_4M, SZ_2M }, { 0, SZ_2M } },
	.nr_pmd = 2,
};

/* Together they make up a PMD, but in the wrong order. */
FIXTURE_VARIANT_ADD(page_size_ranges, reversed_neighbours) {
	.ranges = { { SZ_1M, SZ_1M }, { 0, SZ_1M } },
	.nr_pte = 512,
};

/* A small range in front shifts the rest so that nothing fits ... */
FIXTURE_VARIANT_ADD(page_size_ranges, shifted_by_a_page) {
	.ranges = { { SZ_8M, SZ_4K }, { 0, SZ_2M } },
	.nr_pte = 513,
};

/* ... or to where it does. */
FIXTURE_VARIANT_ADD(page_size_ranges, aligned_by_a_range_in_front) {
	.ranges = { { SZ_8M, SZ_4K }, { SZ_4K, 2 * SZ_2M - SZ_4K } },
	.nr_pmd = 1,
	.nr_pte = 512,
};

FIXTURE_SETUP(page_size_ranges)
{
	DMABUF_SETUP(self, true, SZ_16M);
	if (!page_table_info_supported())
		SKIP(return, "No view of x86 page tables in debugfs");
}

FIXTURE_TEARDOWN(page_size_ranges)
{
}

/* Does @vaddr show @offset of the BAR? Written here, read there. */
static bool shows_offset(FIXTURE_DATA(page_size_ranges) *self, const void *vaddr,
			 u64 offset)
{
	void *mem = self->device->bars[self->bar].vaddr + offset;
	static u32 tag = 0xbeef0000;
	u32 val;

	VFIO_ASSERT_EQ(try_write32(mem, ++tag), 0);
	VFIO_ASSERT_EQ(try_read32(vaddr, &val), 0);

	return val == tag;
}

TEST_F(page_size_ranges, entries)
{
	size_t size = 0, end;
	void *vaddr;
	u32 i, nr;
	int fd;

	for (nr = 0; nr < 5 && variant->ranges[nr].length; nr++)
		size += variant->ranges[nr].length;
	fd = vfio_pci_dmabuf_export(self->device, self->bar, variant->ranges,
				    nr);
	vaddr = mmap_shared_aligned(fd, 0, size, SZ_2M, 0);
	ASSERT_FAULTS(vaddr, size, 0, variant->nr_pmd, variant->nr_pte);

	for (i = 0; i < nr; i++) {
		u64 first = variant->ranges[i].offset;

		end = variant->ranges[i].length;
		ASSERT_TRUE(shows_offset(self, vaddr, first));
		ASSERT_TRUE(shows_offset(self, vaddr + end - page_size,
					 first + end - page_size));
		vaddr += end;
	}
}

int main(int argc, char *argv[])
{
	dmabuf_test_init(&argc, argv);
	return test_harness_run(argc, argv);
}
