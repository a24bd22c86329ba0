// SPDX-License-Identifier: GPL-2.0-only
/*
 * The memory type of CPU mappings of a BAR.
 *
 * Where the architecture tracks memory types by physical page, as x86 with PAT
 * does, a page has to be reserved as write-combining, or vmf_insert_pfn() maps
 * it as what it is reserved for otherwise, whatever the page protection of the
 * VMA says. Elsewhere the page protection is all there is, and the helpers of
 * the architecture that are used here do nothing.
 */
#include <linux/io.h>
#include <linux/pci.h>
#include <linux/pfn.h>
#include <linux/pgtable.h>
#include <kunit/visibility.h>

#include "vfio_pci_priv.h"

/**
 * vfio_pci_memtype_pgprot() - page protection of a mapping of device memory
 * @wc: write-combining, or else uncached
 * @prot: what mmap() made of the access rights
 *
 * Return: @prot with the memory type
 */
pgprot_t vfio_pci_memtype_pgprot(bool wc, pgprot_t prot)
{
	prot = wc ? pgprot_writecombine(prot) : pgprot_noncached(prot);
	return pgprot_decrypted(prot);
}
EXPORT_SYMBOL_IF_KUNIT(vfio_pci_memtype_pgprot);

/* Some architectures, and some machines, have no such type */
static bool vfio_pci_memtype_has_wc(void)
{
	return arch_can_pci_mmap_wc() &&
	       pgprot_val(vfio_pci_memtype_pgprot(true, PAGE_KERNEL)) !=
	       pgprot_val(vfio_pci_memtype_pgprot(false, PAGE_KERNEL));
}

/**
 * vfio_pci_memtype_is_wc() - would a mapping of a page be write-combining?
 * @phys: address in the page
 * @wc: the mapping asks for write-combining, or else for uncached
 *
 * Return: true if it would, be it asked for or not
 */
bool vfio_pci_memtype_is_wc(phys_addr_t phys, bool wc)
{
	pgprot_t prot = vfio_pci_memtype_pgprot(wc, PAGE_KERNEL);

	pfnmap_setup_cachemode_pfn(PHYS_PFN(phys), &prot);
	return vfio_pci_memtype_has_wc() &&
	       pgprot_val(prot) ==
	       pgprot_val(vfio_pci_memtype_pgprot(true, PAGE_KERNEL));
}

/**
 * vfio_pci_memtype_of_page() - does the type belong to the page?
 * @ranges: pages that are reserved as write-combining
 *
 * Return: false where each mapping has the type that was asked for
 */
bool vfio_pci_memtype_of_page(const struct vfio_pci_ranges *ranges)
{
	return vfio_pci_memtype_is_wc(ranges->vec[0].paddr, false);
}

/*
 * The PCI core maps the MSI-X table when interrupts are enabled, and relies on
 * the order of its writes.
 */
static bool vfio_pci_memtype_in_msix_table(struct vfio_pci_core_device *vdev,
					   unsigned int bar,
					   const struct phys_vec *vec)
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
 * vfio_pci_memtype_can_wc() - may these parts of a BAR be write-combining?
 * @vdev: the device
 * @bar: index of the BAR
 * @ranges: physical ranges in the BAR
 *
 * As for the resourceN_wc files in sysfs, only a BAR that says of itself that
 * merging writes does no harm can be.
 *
 * Return: false if never
 */
bool vfio_pci_memtype_can_wc(struct vfio_pci_core_device *vdev,
			     unsigned int bar,
			     const struct vfio_pci_ranges *ranges)
{
	u32 i;

	if (!vfio_pci_memtype_has_wc() ||
	    !(pci_resource_flags(vdev->pdev, bar) & IORESOURCE_PREFETCH))
		return false;

	for (i = 0; i < ranges->nr; i++) {
		if (vfio_pci_memtype_in_msix_table(vdev, bar, &ranges->vec[i]))
			return false;
	}
	return true;
}
EXPORT_SYMBOL_IF_KUNIT(vfio_pci_memtype_can_wc);

static void vfio_pci_memtype_free(const struct vfio_pci_ranges *ranges, u32 nr)
{
	while (nr--)
		arch_io_free_memtype_wc(ranges->vec[nr].paddr,
					ranges->vec[nr].len);
}

/**
 * vfio_pci_memtype_reserve_wc() - make pages write-combining
 * @ranges: the pages, all in one BAR whose resource is claimed
 *
 * Ranges that overlap, here or in several calls, stay write-combining until all
 * of them are freed. Mappings that exist are not changed, nor are those made at
 * the same time: keep others from mapping.
 *
 * Return: 0, -EBUSY when somebody uses a page with another type, or -ENOMEM
 */
int vfio_pci_memtype_reserve_wc(const struct vfio_pci_ranges *ranges)
{
	const struct phys_vec *vec = ranges->vec;
	int ret;
	u32 i;

	for (i = 0; i < ranges->nr; i++) {
		ret = arch_io_reserve_memtype_wc(vec[i].paddr, vec[i].len);
		if (ret)
			goto err_free;

		/*
		 * Where the range, or a part of it, is reserved as uncached,
		 * that is what all of it is now.
		 */
		if (!vfio_pci_memtype_is_wc(vec[i].paddr, true)) {
			ret = -EBUSY;
			i++;
			goto err_free;
		}
	}
	return 0;

err_free:
	vfio_pci_memtype_free(ranges, i);
	return ret;
}

/**
 * vfio_pci_memtype_free_wc() - undo vfio_pci_memtype_reserve_wc()
 * @ranges: as reserved
 */
void vfio_pci_memtype_free_wc(const struct vfio_pci_ranges *ranges)
{
	vfio_pci_memtype_free(ranges, ranges->nr);
}
