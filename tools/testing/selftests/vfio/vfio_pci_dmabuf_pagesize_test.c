// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which page sizes the kernel uses for mappings of BARs and DMABUFs: large ones
 * wherever address, alignment and ranges allow, and never across an edge. Read from
 * the page tables.
 */
#include <unistd.h>

#include <sys/mman.h>

#include <linux/sizes.h>

#include "kselftest_harness.h"

#include <libvfio/dmabuf_test.h>

/* A range of the BAR: the same by both ways of mapping it */
FIXTURE(page_size) {
	DMABUF_FIXTURE;
	bool dmabuf;
};

FIXTURE_VARIANT(page_size) {
	bool dmabuf;
};

FIXTURE_VARIANT_ADD(page_size, bar) { .dmabuf = false };
FIXTURE_VARIANT_ADD(page_size, dmabuf) { .dmabuf = true };

/* 2 MiB with pages of 4 KiB, 512 MiB with pages of 64 KiB; and pages in it */
static u64 pmd_size;
static u64 pmd_ptes;

FIXTURE_SETUP(page_size)
{
	self->dmabuf = variant->dmabuf;
	pmd_size = pmd_size_get();
	pmd_ptes = pmd_size / page_size;
	DMABUF_SETUP(self, true, 8 * pmd_size);
	if (!page_table_info_supported())
		SKIP(return, "No test module");
}

FIXTURE_TEARDOWN(page_size)
{
}

/* A file and an offset in it, for mmap() of the BAR from @offset on */
static int open_span(FIXTURE_DATA(page_size) *self, u64 *offset, size_t size)
{
	int fd;

	if (!self->dmabuf) {
		*offset += self->bar_offset;
		return dup(self->device->fd);
	}

	fd = vfio_pci_dmabuf_export_range(self->device, self->bar, *offset,
					  size);
	*offset = 0;
	return fd;
}

static void *map_span(FIXTURE_DATA(page_size) *self, u64 offset, size_t size,
		      size_t align, size_t misalign)
{
	int fd = open_span(self, &offset, size);
	void *vaddr = mmap_shared_aligned(fd, offset, size, align, misalign);

	close_assert(fd);
	return vaddr;
}

/*
 * As many faults as entries: each maps one page, of the largest size that fits. All
 * are uncached, not write-combining.
 */
#define ASSERT_FAULTS(_vaddr, _size, _pmd, _pte) do {				\
	u64 __pmd = (_pmd), __pte = (_pte);					\
	const void *__vaddr = (_vaddr);						\
	struct page_table_info __info;						\
	size_t __size = (_size);						\
										\
	ASSERT_EQ(__pmd + __pte,						\
		  faults_to_touch(__vaddr, __size, page_size));			\
	page_table_info(__vaddr, __size, &__info);				\
	ASSERT_EQ(0, __info.nr_pud);						\
	ASSERT_EQ(__pmd, __info.nr_pmd);					\
	ASSERT_EQ(__pte, __info.nr_pte);					\
	ASSERT_EQ(__size, __info.bytes_uc);					\
} while (0)

TEST_F(page_size, puds)
{
	void *vaddr;

	if (!has_pud_mappings())
		SKIP(return, "No PUD mappings on this architecture");
	if (self->bar_size < 2ULL * SZ_1G)
		SKIP(return, "BAR smaller than 2 GiB");

	vaddr = map_span(self, 0, 2ULL * SZ_1G, SZ_1G, 0);
	ASSERT_EQ(2, faults_to_touch(vaddr, 2ULL * SZ_1G, SZ_4M));
	ASSERT_ENTRIES(vaddr, 2ULL * SZ_1G, 2, 0, 0);
	munmap_assert(vaddr, 2ULL * SZ_1G);

	/* Large enough for a PUD, but not aligned for one. */
	vaddr = map_span(self, 0, SZ_1G + SZ_16M, SZ_1G, SZ_1G - SZ_2M);
	ASSERT_FAULTS(vaddr, SZ_16M, 8, 0);
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
		{ 2 * pmd_size, 4 * pmd_size, 0, 4, 0 },
		/* misaligned: the address, the BAR, or both by the same */
		{ 0, 2 * pmd_size, page_size, 0, 2 * pmd_ptes },
		{ page_size, 2 * pmd_size, 0, 0, 2 * pmd_ptes },
		{ page_size, 3 * pmd_size, page_size, 2, pmd_ptes },
		/* not beyond the end of the mapping */
		{ 0, 3 * pmd_size / 2, 0, 1, pmd_ptes / 2 },
	};
	void *vaddr;
	int i;

	for (i = 0; i < ARRAY_SIZE(spans); i++) {
		TH_LOG("offset 0x%llx, size 0x%zx, misaligned by 0x%zx",
		       (unsigned long long)spans[i].offset, spans[i].size,
		       spans[i].misalign);
		vaddr = map_span(self, spans[i].offset, spans[i].size, pmd_size,
				 spans[i].misalign);
		ASSERT_FAULTS(vaddr, spans[i].size, spans[i].nr_pmd,
			      spans[i].nr_pte);
		munmap_assert(vaddr, spans[i].size);
	}
}

/* mmap() chooses addresses that allow large pages, and takes those of the caller. */
TEST_F(page_size, address_chosen_by_kernel)
{
	void *vaddr, *free;
	u64 offset = 0;
	int i, fd;

	fd = open_span(self, &offset, 8 * pmd_size);
	for (i = 0; i < 4; i++) {
		/* A neighbour, so that it is not aligned by accident */
		ASSERT_NE(MAP_FAILED, mmap(NULL, page_size, PROT_READ,
					   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
		vaddr = mmap_shared(fd, offset, 8 * pmd_size);
		ASSERT_FAULTS(vaddr, 8 * pmd_size, 8, 0);
	}

	/* With more free space than is mapped, as the kernel looks for more */
	free = mmap_reserve(16 * pmd_size, pmd_size, page_size);
	munmap_assert(free, 16 * pmd_size);
	vaddr = mmap(free, 8 * pmd_size, PROT_READ, MAP_SHARED, fd, offset);
	ASSERT_EQ(free, vaddr);
}

/* A hole in the middle of a PMD leaves small pages, the others stay. */
TEST_F(page_size, pmd_split_by_munmap)
{
	void *vaddr = map_span(self, 0, 2 * pmd_size, pmd_size, 0);
	void *hole = vaddr + pmd_size + 5 * page_size;

	ASSERT_FAULTS(vaddr, 2 * pmd_size, 2, 0);
	munmap_assert(hole, page_size);
	ASSERT_EQ(SIGSEGV, try_touch(hole));
	ASSERT_EQ(0, try_touch_pages(vaddr, pmd_size + 5 * page_size));
	ASSERT_EQ(0, try_touch_pages(hole + page_size,
				     pmd_size - 6 * page_size));
	ASSERT_ENTRIES(vaddr, 2 * pmd_size, 0, 1, pmd_ptes - 1);
}

#define MAX_RANGES 5

TEST_F(page_size, ranges)
{
	const u64 pmd = pmd_size, half = pmd / 2, page = page_size;
	const struct {
		const char *name;
		struct vfio_region_dma_range ranges[MAX_RANGES];
		u64 nr_pmd;
		u64 nr_pte;
	} cases[] = {
		{ "contiguous ones are merged", {
			{ 0, half }, { half, half / 2 },
			{ half + half / 2, half / 2 }, { pmd, half },
			{ pmd + half, half } }, 2, 0 },
		/* The first PMD; then the edge; then memory that fits no PMD */
		{ "no PMD across an edge",
			{ { 0, 3 * half }, { 4 * pmd, 3 * half } },
			1, 2 * pmd_ptes },
		{ "PMDs on both sides of an edge",
			{ { 2 * pmd, pmd }, { 0, pmd } }, 2, 0 },
		/* Together they make up a PMD, but in the wrong order. */
		{ "reversed neighbours",
			{ { half, half }, { 0, half } }, 0, pmd_ptes },
		/* A small range in front shifts the rest so that nothing fits ... */
		{ "shifted by a page",
			{ { 4 * pmd, page }, { 0, pmd } }, 0, pmd_ptes + 1 },
		/* ... or to where it does. */
		{ "aligned by a range in front",
			{ { 4 * pmd, page }, { page, 2 * pmd - page } },
			1, pmd_ptes },
	};
	const struct vfio_region_dma_range *ranges;
	int c, nr, fd;
	void *vaddr;
	size_t size;

	if (!self->dmabuf)
		SKIP(return, "Only a DMABUF has several ranges");

	for (c = 0; c < ARRAY_SIZE(cases); c++) {
		TH_LOG("%s", cases[c].name);
		ranges = cases[c].ranges;
		size = 0;
		for (nr = 0; nr < MAX_RANGES && ranges[nr].length; nr++)
			size += ranges[nr].length;
		fd = vfio_pci_dmabuf_export(self->device, self->bar, ranges,
					    nr);
		vaddr = mmap_shared_aligned(fd, 0, size, pmd_size, 0);
		ASSERT_FAULTS(vaddr, size, cases[c].nr_pmd, cases[c].nr_pte);
	}
}

int main(int argc, char *argv[])
{
	dmabuf_test_init(&argc, argv);
	return test_harness_run(argc, argv);
}
