/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_PAGE_TABLE_H
#define SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_PAGE_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/types.h>

#include "../../../../../../../drivers/vfio/pci/vfio_pci_dmabuf_test.h"

/* The entries of the page tables for a part of the address space */
struct page_table_info {
	u64 nr_pte;
	u64 nr_pmd;
	u64 nr_pud;
	/* Bytes mapped, those that can be written, and those of either type */
	u64 bytes;
	u64 bytes_writable;
	u64 bytes_uc;
	u64 bytes_wc;
	/* Bytes that KVM may map with another uncached type */
	u64 bytes_any_uncached;
};

/*
 * Read the entries of [vaddr, vaddr + size), which are of mappings of devices. The
 * kernel reports them with CONFIG_VFIO_PCI_DMABUF_TEST.
 */
bool page_table_info_supported(void);
void page_table_info(const void *vaddr, size_t size,
		     struct page_table_info *info);

/* Bytes that a PMD maps, and whether a device can be mapped by PUDs */
u64 pmd_size_get(void);
bool has_pud_mappings(void);

/* For programs that use kselftest_harness.h: these are all the entries. */
#define ASSERT_ENTRIES(_vaddr, _size, _pud, _pmd, _pte) do {			\
	struct page_table_info __info;						\
										\
	page_table_info((_vaddr), (_size), &__info);				\
	ASSERT_EQ((_pud), __info.nr_pud);					\
	ASSERT_EQ((_pmd), __info.nr_pmd);					\
	ASSERT_EQ((_pte), __info.nr_pte);					\
} while (0)

#endif /* SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_PAGE_TABLE_H */
