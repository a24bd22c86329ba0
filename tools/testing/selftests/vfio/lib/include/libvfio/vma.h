/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_VMA_H
#define SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_VMA_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/types.h>

/* An entry of /proc/self/smaps */
struct vma_info {
	u64 start;
	u64 end;
	u64 offset;
	u64 inode;
	char name[256];
	/* VmFlags: two-letter names with a blank before and after each */
	char flags[128];
};

/* Describe the mapping at @vaddr, which must exist. */
void vma_info(const void *vaddr, struct vma_info *info);

/* What the page tables hold for a part of the address space */
struct page_table_info {
	/* Number of entries of each size: 4 KiB, 2 MiB and 1 GiB on x86 */
	u64 nr_pte;
	u64 nr_pmd;
	u64 nr_pud;
	/* Bytes mapped, and those with the bits that are the memory type on x86 */
	u64 bytes;
	u64 bytes_pwt;
	u64 bytes_pcd;
	u64 bytes_pat;
};

/*
 * Read the page tables of [vaddr, vaddr + size), which debugfs shows in a form
 * that depends on the architecture. That is slow: the kernel dumps all of them.
 */
bool page_table_info_supported(void);
void page_table_info(const void *vaddr, size_t size,
		     struct page_table_info *info);

/*
 * Number of ranges with physical addresses of @start to @end in them that x86 has
 * on record as write-combining; -1 if there is no such record.
 */
int nr_wc_memtypes(u64 start, u64 end);

/* For programs that use kselftest_harness.h: these are all the entries. */
#define ASSERT_ENTRIES(_vaddr, _size, _pud, _pmd, _pte) do {			\
	struct page_table_info __info;						\
										\
	page_table_info((_vaddr), (_size), &__info);				\
	ASSERT_EQ((_pud), __info.nr_pud);					\
	ASSERT_EQ((_pmd), __info.nr_pmd);					\
	ASSERT_EQ((_pte), __info.nr_pte);					\
} while (0)

/* Have write(2) read the u32 at @vaddr. Returns the bytes read or -errno. */
int pipe_write(const void *vaddr);

#endif /* SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_VMA_H */
