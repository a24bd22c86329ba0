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

/*
 * Number of write-combining entries in x86's list of PAT memory types that
 * overlap @start to @end; -1 if the kernel has no such list.
 */
int nr_wc_memtypes(u64 start, u64 end);

/* Have write(2) read the u32 at @vaddr. Returns the bytes read or -errno. */
int pipe_write(const void *vaddr);

#endif /* SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_VMA_H */
