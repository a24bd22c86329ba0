// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests of the PFN lookup for DMABUFs, mostly against a reference that
 * knows neither merging nor binary search.
 */
#include <kunit/test.h>
#include <linux/mm.h>
#include <linux/prandom.h>
#include <linux/sizes.h>

#include "vfio_pci_priv.h"

MODULE_IMPORT_NS("EXPORTED_FOR_KUNIT_TESTING");

#define MAX_RANGES	10000
#define MAX_ORDER	18
#define VM_START	(IS_ENABLED(CONFIG_64BIT) ? SZ_1G : SZ_1M)

struct ranges_test {
	struct rnd_state rnd;
	struct phys_vec *orig;		/* as user space would pass it */
	u32 nr;
	u64 pages;
	struct vfio_pci_ranges ranges;	/* the same, ready for lookups */
};

static u32 rnd_below(struct ranges_test *t, u32 limit)
{
	return prandom_u32_state(&t->rnd) % limit;
}

static void push_range(struct ranges_test *t, u64 pfn, u64 pages)
{
	t->orig[t->nr].paddr = (phys_addr_t)pfn << PAGE_SHIFT;
	t->orig[t->nr].len = pages << PAGE_SHIFT;
	t->nr++;
	t->pages += pages;
}

static void finish(struct ranges_test *t)
{
	memcpy(t->ranges.vec, t->orig, t->nr * sizeof(*t->orig));
	t->ranges.nr = t->nr;
	vfio_pci_ranges_finish(&t->ranges);
}

static void restart(struct ranges_test *t)
{
	t->nr = 0;
	t->pages = 0;
}

/* Some continue their neighbour, some repeat it, others are anywhere */
static void random_ranges(struct ranges_test *t, u32 nr)
{
	u64 pfn = 0x1000, pages = 1;

	restart(t);
	while (t->nr < nr) {
		switch (rnd_below(t, 4)) {
		case 0:
			pfn += pages;
			break;
		case 1:
			break;
		case 2:
			pfn = ALIGN(rnd_below(t, SZ_256M), 512);
			break;
		default:
			pfn = rnd_below(t, SZ_256M);
		}
		/* 10,000 of the largest must fit the VMA of a 32 bit system */
		pages = 1 + rnd_below(t, nr > 100 ? 16 : 1 << rnd_below(t, 11));
		push_range(t, pfn, pages);
	}
	finish(t);
}

/* PFN of page @pgoff or -1, and in @left the pages to the end of its range */
static s64 ref_page(struct ranges_test *t, u64 pgoff, u64 *left)
{
	u32 i;

	for (i = 0; i < t->nr; i++) {
		u64 pages = t->orig[i].len >> PAGE_SHIFT;

		if (pgoff < pages) {
			*left = pages - pgoff;
			return (t->orig[i].paddr >> PAGE_SHIFT) + pgoff;
		}
		pgoff -= pages;
	}
	return -1;
}

static int ref_find_pfn(struct ranges_test *t, struct vm_area_struct *vma,
			u64 pgoff_base, u64 address, unsigned int order,
			unsigned long *pfn)
{
	u64 size = (u64)PAGE_SIZE << order;
	u64 addr = address - (address & (size - 1));
	u64 pgoff, left, done = 0;
	s64 first;

	if (addr < vma->vm_start || addr + size > vma->vm_end)
		return -ERANGE;

	pgoff = (addr - vma->vm_start) / PAGE_SIZE + vma->vm_pgoff;
	if (pgoff < pgoff_base)
		return -EFAULT;
	pgoff -= pgoff_base;

	first = ref_page(t, pgoff, &left);
	if (first < 0)
		return -EFAULT;

	for (; done < 1ULL << order; done += left) {
		if (ref_page(t, pgoff + done, &left) != first + done)
			return -ERANGE;
	}
	if (first & ((1ULL << order) - 1))
		return -ERANGE;
	*pfn = first;
	return 0;
}

static void compare(struct kunit *test, struct vm_area_struct *vma,
		    unsigned long pgoff_base, unsigned long address,
		    unsigned int order)
{
	struct ranges_test *t = test->priv;
	unsigned long pfn = 0, ref_pfn = 0;
	int ret, ref;

	ret = vfio_pci_ranges_find_pfn(&t->ranges, vma, pgoff_base, address,
				       order, &pfn);
	ref = ref_find_pfn(t, vma, pgoff_base, address, order, &ref_pfn);
	KUNIT_EXPECT_EQ_MSG(test, ret, ref,
			    "%u ranges, [%lx, %lx) pgoff %lx - %lx, address %lx order %u",
			    t->nr, vma->vm_start, vma->vm_end, vma->vm_pgoff,
			    pgoff_base, address, order);
	if (ret || ref)
		return;
	KUNIT_EXPECT_EQ(test, pfn, ref_pfn);
}

/* Have @vma map from page @skip on, at an address of some alignment */
static void map_from(struct ranges_test *t, struct vm_area_struct *vma,
		     u64 skip, unsigned long pgoff_base)
{
	vma->vm_start = VM_START;
	if (rnd_below(t, 2))
		vma->vm_start += rnd_below(t, 1024) << PAGE_SHIFT;
	vma->vm_end = vma->vm_start + ((t->pages - skip) << PAGE_SHIFT);
	vma->vm_pgoff = pgoff_base + skip;
}

static void random_lookups(struct kunit *test, int lookups)
{
	static const unsigned int orders[] = { 0, 1, 2, 4, 9, MAX_ORDER };
	struct ranges_test *t = test->priv;
	int i;

	for (i = 0; i < lookups; i++) {
		unsigned long pgoff_base = rnd_below(t, 2) ? 2UL << 28 : 0;
		struct vm_area_struct vma = {};
		unsigned long addr;

		map_from(t, &vma, rnd_below(t, t->pages), pgoff_base);
		/* Or less than all the rest, as munmap() may leave it */
		if (rnd_below(t, 2))
			vma.vm_end -= (unsigned long)
				rnd_below(t, vma_pages(&vma)) << PAGE_SHIFT;
		addr = vma.vm_start +
			((unsigned long)rnd_below(t, vma_pages(&vma)) <<
			 PAGE_SHIFT);
		compare(test, &vma, pgoff_base, addr,
			orders[rnd_below(t, ARRAY_SIZE(orders))]);
	}
}

static void ranges_random(struct kunit *test)
{
	static const u32 counts[] = { 1, 2, 3, 5, 17, 100, 1000, MAX_RANGES };
	struct ranges_test *t = test->priv;
	int i, round;

	for (i = 0; i < ARRAY_SIZE(counts); i++) {
		for (round = 0; round < (counts[i] > 100 ? 1 : 20); round++) {
			random_ranges(t, counts[i]);
			random_lookups(test, 100);
		}
	}
}

/* Each page of each range, at each order: nothing falls between edges */
static void ranges_every_page(struct kunit *test)
{
	struct ranges_test *t = test->priv;
	unsigned int order;
	int round;

	for (round = 0; round < 20; round++) {
		struct vm_area_struct vma = {};
		unsigned long addr;

		random_ranges(t, 1 + rnd_below(t, 4));
		map_from(t, &vma, 0, 0);
		for (addr = vma.vm_start; addr < vma.vm_end; addr += PAGE_SIZE)
			for (order = 0; order <= 9; order++)
				compare(test, &vma, 0, addr, order);
	}
}

static void ranges_merged(struct kunit *test)
{
	struct ranges_test *t = test->priv;
	struct vm_area_struct vma = { .vm_start = SZ_1G };
	unsigned long pfn = 0;
	u32 i;

	restart(t);
	for (i = 0; i < 512; i++)
		push_range(t, 0x200 + i, 1);
	finish(t);
	vma.vm_end = vma.vm_start + 512 * PAGE_SIZE;

	KUNIT_EXPECT_EQ(test, t->ranges.nr, 1);
	KUNIT_EXPECT_EQ(test, 0, vfio_pci_ranges_find_pfn(&t->ranges, &vma, 0,
							  vma.vm_end - 1,
							  9, &pfn));
	KUNIT_EXPECT_EQ(test, pfn, 0x200);

	/* In reverse order the same pages do not form a large page */
	restart(t);
	for (i = 0; i < 512; i++)
		push_range(t, 0x3ff - i, 1);
	finish(t);
	KUNIT_EXPECT_EQ(test, t->ranges.nr, 512);
	KUNIT_EXPECT_EQ(test, -ERANGE,
			vfio_pci_ranges_find_pfn(&t->ranges, &vma, 0,
						 vma.vm_start, 1, &pfn));
}

/* vm_pgoff values that no mmap() lets through, but which must not wrap */
static void ranges_wild_pgoff(struct kunit *test)
{
	static const unsigned long pgoffs[] = {
		0, 1, 7, 8, 9, 1UL << 28, LONG_MAX, ULONG_MAX - 8,
		ULONG_MAX - 7, ULONG_MAX - 1, ULONG_MAX,
	};
	struct ranges_test *t = test->priv;
	struct vm_area_struct vma = { .vm_start = SZ_1G };
	unsigned long pfn = 0;
	int i, j, ret;

	restart(t);
	push_range(t, 0x100, 4);
	push_range(t, 0x300, 4);
	finish(t);
	vma.vm_end = vma.vm_start + 8 * PAGE_SIZE;

	for (i = 0; i < ARRAY_SIZE(pgoffs); i++) {
		for (j = 0; j < ARRAY_SIZE(pgoffs); j++) {
			vma.vm_pgoff = pgoffs[i];
			ret = vfio_pci_ranges_find_pfn(&t->ranges, &vma,
						       pgoffs[j],
						       vma.vm_end - PAGE_SIZE,
						       0, &pfn);
			/* Page 7 of the VMA is that of the buffer if equal */
			if (pgoffs[i] == pgoffs[j] &&
			    pgoffs[i] <= ULONG_MAX - 7) {
				KUNIT_EXPECT_EQ(test, ret, 0);
				KUNIT_EXPECT_EQ(test, pfn, 0x303);
			} else if (pgoffs[i] >= pgoffs[j] ||
				   pgoffs[j] - pgoffs[i] > 7) {
				KUNIT_EXPECT_EQ(test, ret, -EFAULT);
			}
		}
	}
}

/* One VMA at each end of the address space */
static void ranges_vma_edges(struct kunit *test)
{
	const unsigned long size = 512 * PAGE_SIZE;
	struct ranges_test *t = test->priv;
	struct vm_area_struct low = { .vm_end = size };
	struct vm_area_struct high = {
		.vm_start = ALIGN_DOWN(ULONG_MAX, size) - size,
		.vm_end = ALIGN_DOWN(ULONG_MAX, size),
	};
	unsigned int order;

	restart(t);
	push_range(t, 0x200, 512);
	finish(t);

	for (order = 0; order <= MAX_ORDER; order++) {
		compare(test, &low, 0, 0, order);
		compare(test, &low, 0, size - PAGE_SIZE, order);
		if (order > 9)
			continue; /* the reference would wrap around */
		compare(test, &high, 0, high.vm_start, order);
		compare(test, &high, 0, high.vm_end - PAGE_SIZE, order);
	}
}

static int ranges_init(struct kunit *test)
{
	struct ranges_test *t = kunit_kzalloc(test, sizeof(*t), GFP_KERNEL);

	if (!t)
		return -ENOMEM;
	t->orig = kunit_kcalloc(test, MAX_RANGES, sizeof(*t->orig), GFP_KERNEL);
	t->ranges.vec = kunit_kcalloc(test, MAX_RANGES,
				      sizeof(*t->ranges.vec), GFP_KERNEL);
	t->ranges.end = kunit_kcalloc(test, MAX_RANGES,
				      sizeof(*t->ranges.end), GFP_KERNEL);
	if (!t->orig || !t->ranges.vec || !t->ranges.end)
		return -ENOMEM;

	prandom_seed_state(&t->rnd, 7304);
	test->priv = t;
	return 0;
}

/* Memory that shares its first page with other memory is not exported. */
static void ranges_start_on_a_page(struct kunit *test)
{
	struct vfio_region_dma_range range = { .length = PAGE_SIZE };
	phys_addr_t start = SZ_1G, len = 2 * PAGE_SIZE;
	struct phys_vec vec;

	KUNIT_EXPECT_EQ(test, 0, vfio_pci_core_fill_phys_vec(&vec, &range, 1,
							     start, len));
	start += SZ_1K;
	KUNIT_EXPECT_EQ(test, -EINVAL,
			vfio_pci_core_fill_phys_vec(&vec, &range, 1, start,
						    len));
}

static struct kunit_case ranges_cases[] = {
	KUNIT_CASE_SLOW(ranges_random),
	KUNIT_CASE(ranges_every_page),
	KUNIT_CASE(ranges_merged),
	KUNIT_CASE(ranges_wild_pgoff),
	KUNIT_CASE(ranges_vma_edges),
	KUNIT_CASE(ranges_start_on_a_page),
	{}
};

static struct kunit_suite ranges_suite = {
	.name = "vfio_pci_ranges",
	.init = ranges_init,
	.test_cases = ranges_cases,
};

kunit_test_suite(ranges_suite);

MODULE_DESCRIPTION("KUnit tests of the PFN lookup for VFIO PCI DMABUFs");
MODULE_LICENSE("GPL");
