// SPDX-License-Identifier: GPL-2.0-only
/*
 * The memory type of CPU mappings, and write-combining.
 *
 * Where the architecture tracks memory types by physical page, as x86 with PAT
 * does, a page has to be reserved as write-combining. Otherwise a fault maps
 * it with the type that is recorded for it, whatever the page protection of
 * the VMA is. Elsewhere the page protection is all there is, and the helpers
 * of the architecture that are used here do nothing.
 */
#include <linux/io.h>
#include <linux/pci.h>
#include <linux/pfn.h>
#include <linux/pgtable.h>
#include <linux/slab.h>
#include <kunit/visibility.h>

#include "vfio_pci_priv.h"

/* Per device: the architecture's record of each range is not accounted */
#define VFIO_PCI_MAX_WC_RANGES	4096

/**
 * vfio_pci_memtype_pgprot() - page protection of a mapping of device memory
 * @type: the memory type
 * @prot: the page protection for the access rights of the mapping
 *
 * Return: @prot with the memory type
 */
pgprot_t vfio_pci_memtype_pgprot(enum vfio_pci_memtype type, pgprot_t prot)
{
	switch (type) {
	case VFIO_PCI_MEMTYPE_WB:
		return prot;
	case VFIO_PCI_MEMTYPE_WC:
		return pgprot_decrypted(pgprot_writecombine(prot));
	default:
		return pgprot_decrypted(pgprot_noncached(prot));
	}
}
EXPORT_SYMBOL_IF_KUNIT(vfio_pci_memtype_pgprot);

/* Some architectures, and some machines, have no such type */
static bool vfio_pci_wc_supported(void)
{
	pgprot_t uc = vfio_pci_memtype_pgprot(VFIO_PCI_MEMTYPE_UC, PAGE_KERNEL);
	pgprot_t wc = vfio_pci_memtype_pgprot(VFIO_PCI_MEMTYPE_WC, PAGE_KERNEL);

	return arch_can_pci_mmap_wc() && pgprot_val(wc) != pgprot_val(uc);
}

/*
 * The PCI core maps the MSI-X table when interrupts are enabled, and relies on
 * the order of its writes.
 */
static bool vfio_pci_in_msix_table(struct vfio_pci_core_device *vdev,
				   unsigned int bar, const struct phys_vec *vec)
{
	phys_addr_t table, end;

	if (bar != vdev->msix_bar)
		return false;

	table = pci_resource_start(vdev->pdev, bar) + vdev->msix_offset;
	end = table + vdev->msix_size;
	return vec->paddr < PAGE_ALIGN(end) &&
	       vec->paddr + vec->len > ALIGN_DOWN(table, PAGE_SIZE);
}

/**
 * vfio_pci_wc_possible() - may these parts of a BAR be write-combining?
 * @vdev: the device
 * @bar: index of the BAR
 * @ranges: physical ranges in the BAR
 *
 * As for the resourceN_wc files in sysfs, the BAR must be prefetchable, which
 * means that merging writes does no harm.
 *
 * Return: true if they may, although vfio_pci_wc_reserve() can still fail
 */
bool vfio_pci_wc_possible(struct vfio_pci_core_device *vdev, unsigned int bar,
			  const struct vfio_pci_ranges *ranges)
{
	u32 i;

	if (!vfio_pci_wc_supported() ||
	    !(pci_resource_flags(vdev->pdev, bar) & IORESOURCE_PREFETCH))
		return false;

	for (i = 0; i < ranges->nr; i++) {
		if (vfio_pci_in_msix_table(vdev, bar, &ranges->vec[i]))
			return false;
	}
	return true;
}
EXPORT_SYMBOL_IF_KUNIT(vfio_pci_wc_possible);

/**
 * vfio_pci_wc_alloc() - prepare a reservation of pages
 * @ranges: the pages, which are copied
 *
 * Return: the reservation, to be freed by kfree() as long as vfio_pci_wc_add()
 * has not succeeded, or NULL
 */
struct vfio_pci_wc *vfio_pci_wc_alloc(const struct vfio_pci_ranges *ranges)
{
	struct vfio_pci_wc *wc;

	wc = kzalloc_flex(*wc, vec, ranges->nr, GFP_KERNEL_ACCOUNT);
	if (!wc)
		return NULL;

	memcpy(wc->vec, ranges->vec, array_size(ranges->nr, sizeof(*wc->vec)));
	wc->ranges.vec = wc->vec;
	wc->ranges.nr = ranges->nr;
	/* Not known before vfio_pci_wc_reserve(): assume it, to be safe */
	wc->of_page = true;
	return wc;
}

static void vfio_pci_wc_free_memtype(const struct vfio_pci_wc *wc, u32 nr)
{
	while (nr--)
		arch_io_free_memtype_wc(wc->vec[nr].paddr, wc->vec[nr].len);
}

/*
 * Ranges that overlap, here or in other reservations, stay write-combining
 * until all of them are freed.
 *
 * Return: 1 if the pages have the memory type now, 0 if each mapping has its
 * own, or a negative errno
 */
static int vfio_pci_wc_reserve_memtype(const struct vfio_pci_wc *wc)
{
	int ret = 0;
	u32 i;

	for (i = 0; i < wc->ranges.nr; i++) {
		ret = arch_io_try_reserve_memtype_wc(wc->vec[i].paddr,
						     wc->vec[i].len);
		if (ret < 0) {
			vfio_pci_wc_free_memtype(wc, i);
			break;
		}
	}
	return ret;
}

/*
 * If the kernel's own mapping of the BAR is in the way, drop it. It stays
 * dropped even if the reservation then fails.
 */
static int vfio_pci_wc_reserve_in_bar(struct vfio_pci_core_device *vdev,
				      unsigned int bar, struct vfio_pci_wc *wc)
{
	int ret;

	lockdep_assert_held_write(&vdev->memory_lock);

	ret = vfio_pci_wc_reserve_memtype(wc);
	if (ret != -EBUSY)
		return ret;

	ret = vfio_pci_drop_iomap(vdev, bar);
	return ret ?: vfio_pci_wc_reserve_memtype(wc);
}

static void vfio_pci_wc_unlist(struct vfio_pci_dma_bufs *bufs,
			       struct vfio_pci_wc *wc)
{
	spin_lock(&bufs->lock);
	list_del(&wc->elm);
	spin_unlock(&bufs->lock);
	WRITE_ONCE(bufs->nr_wc_ranges, bufs->nr_wc_ranges - wc->ranges.nr);
}

/**
 * vfio_pci_wc_add() - list pages that are about to be reserved
 * @vdev: the device, memory_lock held for writing
 * @wc: the pages
 *
 * From now on, faults of uncached DMABUFs map no large page that contains one
 * of them.
 *
 * Return: 0, or -ENOSPC if the device has too many ranges
 */
int vfio_pci_wc_add(struct vfio_pci_core_device *vdev, struct vfio_pci_wc *wc)
{
	struct vfio_pci_dma_bufs *bufs = vdev->dma_bufs;

	lockdep_assert_held_write(&vdev->memory_lock);

	if (wc->ranges.nr > VFIO_PCI_MAX_WC_RANGES - bufs->nr_wc_ranges)
		return -ENOSPC;

	WRITE_ONCE(bufs->nr_wc_ranges, bufs->nr_wc_ranges + wc->ranges.nr);
	spin_lock(&bufs->lock);
	list_add(&wc->elm, &bufs->wc);
	spin_unlock(&bufs->lock);
	return 0;
}

/**
 * vfio_pci_wc_reserve() - make pages write-combining
 * @vdev: the device, memory_lock held for writing
 * @bar: index of the BAR, whose resource is claimed
 * @wc: the pages, all in that BAR, after vfio_pci_wc_add()
 *
 * Faults go on, and map pages with their new type as soon as each is reserved.
 * If @wc->of_page is set afterwards, the caller has to unmap them: on success
 * what was mapped before, and on failure what may have been mapped meanwhile.
 * Until then a page may be mapped with both types, neither of which is
 * cacheable.
 *
 * Return: 0; -EBUSY if a page is in use with another type; -EOPNOTSUPP if a
 * driver in the kernel uses the BAR; or -ENOMEM
 */
int vfio_pci_wc_reserve(struct vfio_pci_core_device *vdev, unsigned int bar,
			struct vfio_pci_wc *wc)
{
	struct vfio_pci_dma_bufs *bufs = vdev->dma_bufs;
	int ret;

	lockdep_assert_held_write(&vdev->memory_lock);

	ret = vfio_pci_wc_reserve_in_bar(vdev, bar, wc);
	if (ret < 0)
		return ret;

	wc->reserved = true;
	spin_lock(&bufs->lock);
	wc->of_page = ret;
	spin_unlock(&bufs->lock);
	return 0;
}

/**
 * vfio_pci_wc_unreserve() - let faults map pages with their former type
 * @wc: after vfio_pci_wc_reserve(), which may have failed
 *
 * If @wc->of_page is set, the caller has to unmap what is mapped now, before
 * vfio_pci_wc_free().
 */
void vfio_pci_wc_unreserve(struct vfio_pci_wc *wc)
{
	if (wc->reserved)
		vfio_pci_wc_free_memtype(wc, wc->ranges.nr);
	wc->reserved = false;
}

/**
 * vfio_pci_wc_free() - allow large pages again, and free the reservation
 * @vdev: the device, memory_lock held for writing
 * @wc: after vfio_pci_wc_unreserve()
 */
void vfio_pci_wc_free(struct vfio_pci_core_device *vdev, struct vfio_pci_wc *wc)
{
	lockdep_assert_held_write(&vdev->memory_lock);

	vfio_pci_wc_unlist(vdev->dma_bufs, wc);
	kfree(wc);
}

/**
 * vfio_pci_wc_overlaps() - may a part of a large page be write-combining?
 * @bufs: the DMABUFs of the device
 * @pfn: first PFN of the large page
 * @order: its order
 *
 * An entry of the page table has one memory type, that of its first page. Where
 * this may differ within a large page, small ones are needed.
 *
 * Context: The lock of a DMABUF is held, may take bufs->lock.
 * Return: true if so
 */
bool vfio_pci_wc_overlaps(struct vfio_pci_dma_bufs *bufs, unsigned long pfn,
			  unsigned int order)
{
	phys_addr_t start = PFN_PHYS(pfn), size = PAGE_SIZE << order;
	struct vfio_pci_wc *wc;
	u32 i;

	/*
	 * Without such pages, do not take a lock that all DMABUFs of the device
	 * share. To miss a new number here is safe: the unmap that follows
	 * vfio_pci_wc_add() takes the lock of the DMABUF later, and finds what
	 * this fault maps.
	 */
	if (!READ_ONCE(bufs->nr_wc_ranges))
		return false;

	guard(spinlock)(&bufs->lock);

	list_for_each_entry(wc, &bufs->wc, elm) {
		for (i = 0; wc->of_page && i < wc->ranges.nr; i++) {
			if (wc->vec[i].paddr < start + size &&
			    wc->vec[i].paddr + wc->vec[i].len > start)
				return true;
		}
	}
	return false;
}
