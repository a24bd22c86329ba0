// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests of the memory type of DMABUFs, for what tests in an x86 guest
 * cannot show: the page tables there do not reflect the page protection of a
 * VMA, and no device of the selftests has its MSI-X table in a prefetchable
 * BAR.
 */
#include <kunit/test.h>
#include <linux/mm.h>
#include <linux/pci.h>
#include <linux/sizes.h>

#include "vfio_pci_priv.h"

MODULE_IMPORT_NS("EXPORTED_FOR_KUNIT_TESTING");

#define BAR		2
#define BAR_START	SZ_1G
/* The end of page 2 and the start of page 3 */
#define TABLE_OFFSET	(3 * PAGE_SIZE - 64)
#define TABLE_SIZE	SZ_1K

struct memtype_test {
	struct vfio_pci_core_device *vdev;
	struct resource *res;
	struct phys_vec vec[2];
	struct vfio_pci_ranges ranges;
};

static u64 memtype_prot(enum vfio_pci_memtype type)
{
	return pgprot_val(vfio_pci_memtype_pgprot(type, PAGE_SHARED));
}

/* The architecture defines the bits. Test that the right helper is used. */
static void memtype_pgprot(struct kunit *test)
{
	pgprot_t wc = pgprot_decrypted(pgprot_writecombine(PAGE_SHARED));
	pgprot_t uc = pgprot_decrypted(pgprot_noncached(PAGE_SHARED));

	KUNIT_EXPECT_EQ(test, pgprot_val(wc),
			memtype_prot(VFIO_PCI_MEMTYPE_WC));
	KUNIT_EXPECT_EQ(test, pgprot_val(uc),
			memtype_prot(VFIO_PCI_MEMTYPE_UC));
	KUNIT_EXPECT_EQ(test, pgprot_val(PAGE_SHARED),
			memtype_prot(VFIO_PCI_MEMTYPE_WB));
}

static bool can_wc(struct memtype_test *t, unsigned int page,
		   unsigned int nr_pages)
{
	/* Another range, which is no obstacle, comes first */
	t->vec[0].paddr = BAR_START + SZ_512K;
	t->vec[0].len = PAGE_SIZE;
	t->vec[1].paddr = BAR_START + page * PAGE_SIZE;
	t->vec[1].len = nr_pages * PAGE_SIZE;
	t->ranges.nr = 2;
	return vfio_pci_wc_possible(t->vdev, BAR, &t->ranges);
}

static void memtype_msix_table(struct kunit *test)
{
	struct memtype_test *t = test->priv;

	t->vdev->msix_bar = BAR;
	KUNIT_EXPECT_TRUE(test, can_wc(t, 0, 2));
	KUNIT_EXPECT_FALSE(test, can_wc(t, 0, 3));
	KUNIT_EXPECT_FALSE(test, can_wc(t, 2, 1));
	KUNIT_EXPECT_FALSE(test, can_wc(t, 3, 1));
	KUNIT_EXPECT_FALSE(test, can_wc(t, 3, 8));
	KUNIT_EXPECT_FALSE(test, can_wc(t, 0, 8));
	KUNIT_EXPECT_TRUE(test, can_wc(t, 4, 1));

	t->vdev->msix_bar = BAR + 1;
	KUNIT_EXPECT_TRUE(test, can_wc(t, 2, 1));
}

static void memtype_prefetchable(struct kunit *test)
{
	struct memtype_test *t = test->priv;

	t->vdev->msix_bar = 0xff;
	KUNIT_EXPECT_TRUE(test, can_wc(t, 0, 1));
	t->res->flags &= ~IORESOURCE_PREFETCH;
	KUNIT_EXPECT_FALSE(test, can_wc(t, 0, 1));
}

static int memtype_init(struct kunit *test)
{
	struct memtype_test *t = kunit_kzalloc(test, sizeof(*t), GFP_KERNEL);

	if (!t)
		return -ENOMEM;

	t->vdev = kunit_kzalloc(test, sizeof(*t->vdev), GFP_KERNEL);
	if (!t->vdev)
		return -ENOMEM;
	t->vdev->pdev = kunit_kzalloc(test, sizeof(*t->vdev->pdev), GFP_KERNEL);
	if (!t->vdev->pdev)
		return -ENOMEM;

	t->vdev->msix_offset = TABLE_OFFSET;
	t->vdev->msix_size = TABLE_SIZE;
	t->res = &t->vdev->pdev->resource[BAR];
	t->res->start = BAR_START;
	t->res->end = BAR_START + SZ_1M - 1;
	t->res->flags = IORESOURCE_MEM | IORESOURCE_PREFETCH;
	t->ranges.vec = t->vec;
	test->priv = t;
	return 0;
}

/* Nothing can be write-combining where the machine has no such type. */
static int memtype_init_wc(struct kunit *test)
{
	int ret = memtype_init(test);

	if (!ret && (!arch_can_pci_mmap_wc() ||
		     pgprot_val(pgprot_writecombine(PAGE_KERNEL)) ==
		     pgprot_val(pgprot_noncached(PAGE_KERNEL))))
		kunit_skip(test, "No write-combining on this machine");
	return ret;
}

static struct kunit_case memtype_cases[] = {
	KUNIT_CASE(memtype_pgprot),
	{}
};

static struct kunit_suite memtype_suite = {
	.name = "vfio_pci_memtype",
	.init = memtype_init,
	.test_cases = memtype_cases,
};

static struct kunit_case memtype_wc_cases[] = {
	KUNIT_CASE(memtype_msix_table),
	KUNIT_CASE(memtype_prefetchable),
	{}
};

static struct kunit_suite memtype_wc_suite = {
	.name = "vfio_pci_memtype_wc",
	.init = memtype_init_wc,
	.test_cases = memtype_wc_cases,
};

kunit_test_suites(&memtype_suite, &memtype_wc_suite);

MODULE_DESCRIPTION("KUnit tests of the memory type of VFIO PCI DMABUFs");
MODULE_LICENSE("GPL");
