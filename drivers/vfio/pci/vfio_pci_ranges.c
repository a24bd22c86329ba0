// SPDX-License-Identifier: GPL-2.0-only
/*
 * The physical ranges of a DMABUF, and the lookup of the PFN behind a page.
 *
 * These functions depend on their arguments only, so that KUnit can compare
 * them with a simple reference.
 */
#include <linux/align.h>
#include <linux/mm.h>
#include <linux/overflow.h>
#include <linux/pfn.h>
#include <kunit/visibility.h>

#include "vfio_pci_priv.h"

/**
 * vfio_pci_ranges_finish() - prepare a list of ranges for lookups
 * @ranges: nr and vec filled in, end pointing to nr elements if nr > 1
 *
 * Merges neighbours that are physically contiguous, so that large pages can
 * cross from one to the next, which may reduce @ranges->nr. The lengths must
 * add up to no more than an unsigned long can count in pages.
 */
void vfio_pci_ranges_finish(struct vfio_pci_ranges *ranges)
{
	struct phys_vec *vec = ranges->vec;
	unsigned long end = 0;
	u32 i, last = 0;

	for (i = 1; i < ranges->nr; i++) {
		if (vec[last].paddr + vec[last].len == vec[i].paddr)
			vec[last].len += vec[i].len;
		else
			vec[++last] = vec[i];
	}
	ranges->nr = last + 1;

	for (i = 0; last && i <= last; i++) {
		end += vec[i].len >> PAGE_SHIFT;
		ranges->end[i] = end;
	}
}
EXPORT_SYMBOL_IF_KUNIT(vfio_pci_ranges_finish);

/* Index of the first range that ends after @pgoff, or nr if there is none */
static u32 vfio_pci_ranges_search(const struct vfio_pci_ranges *ranges,
				  unsigned long pgoff)
{
	u32 low = 0, high = ranges->nr;

	while (low < high) {
		u32 mid = low + (high - low) / 2;

		if (ranges->end[mid] <= pgoff)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

/**
 * vfio_pci_ranges_find_pfn() - find what to map at a faulting address
 * @ranges: the ranges that are mapped
 * @vma: the mapping. Only vm_start, vm_end and vm_pgoff are used.
 * @pgoff_base: the vm_pgoff at which @ranges start
 * @address: the address to map, inside @vma
 * @order: the size asked for, as a power of two of pages
 * @pfn: on success the first PFN of the naturally aligned page of @order that
 *	covers @address
 *
 * Such a page has to lie inside the VMA and inside one range, and the physical
 * address has to be aligned as well. vm_pgoff is user input: it may have any
 * value, and differs from @pgoff_base in the parts of a VMA that was split.
 *
 * Return: 0; -ERANGE if a page of @order does not fit, but a smaller one may;
 * -EFAULT if @address is outside of the ranges.
 */
int vfio_pci_ranges_find_pfn(const struct vfio_pci_ranges *ranges,
			     const struct vm_area_struct *vma,
			     unsigned long pgoff_base, unsigned long address,
			     unsigned int order, unsigned long *pfn)
{
	unsigned long size = PAGE_SIZE << order;
	unsigned long addr = ALIGN_DOWN(address, size);
	unsigned long pgoff, start = 0, end;
	u32 i = 0;

	if (addr < vma->vm_start || vma->vm_end - addr < size)
		return -ERANGE;

	pgoff = (addr - vma->vm_start) >> PAGE_SHIFT;
	if (check_add_overflow(pgoff, vma->vm_pgoff, &pgoff) ||
	    check_sub_overflow(pgoff, pgoff_base, &pgoff))
		return -EFAULT;

	if (ranges->nr == 1) {
		end = ranges->vec[0].len >> PAGE_SHIFT;
	} else {
		i = vfio_pci_ranges_search(ranges, pgoff);
		if (i == ranges->nr)
			return -EFAULT;
		end = ranges->end[i];
		if (i)
			start = ranges->end[i - 1];
	}

	if (pgoff >= end)
		return -EFAULT;
	if (end - pgoff < 1UL << order)
		return -ERANGE;

	*pfn = PHYS_PFN(ranges->vec[i].paddr) + pgoff - start;
	return IS_ALIGNED(*pfn, 1UL << order) ? 0 : -ERANGE;
}
EXPORT_SYMBOL_IF_KUNIT(vfio_pci_ranges_find_pfn);
