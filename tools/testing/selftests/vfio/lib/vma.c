// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>


#include <linux/kernel.h>
#include <linux/sizes.h>
#include <linux/types.h>

#include "../../../kselftest.h"
#include <libvfio.h>

void vma_info(const void *vaddr, struct vma_info *info)
{
	static const char flags[] = "VmFlags:";
	FILE *file = fopen("/proc/self/smaps", "r");
	u64 addr = (u64)vaddr;
	bool found = false;
	char line[512];

	VFIO_ASSERT_NOT_NULL(file);
	memset(info, 0, sizeof(*info));
	while (!found && fgets(line, sizeof(line), file)) {
		struct vma_info vma = {};

		/* The first line of an entry has addresses, the last one flags. */
		if (sscanf(line, "%lx-%lx %*s %lx %*s %lu %255[^\n]",
			   &vma.start, &vma.end, &vma.offset, &vma.inode,
			   vma.name) >= 4)
			*info = vma;

		found = addr >= info->start && addr < info->end &&
			!strncmp(line, flags, strlen(flags));
	}
	VFIO_ASSERT_EQ(fclose(file), 0);
	VFIO_ASSERT_TRUE(found, "No mapping at %p\n", vaddr);

	snprintf(info->flags, sizeof(info->flags), "%s", line + strlen(flags));
}

/* A line of the dump: addresses, size, bits set, and the level of the entry */
static void page_table_line(const char *line, u64 start, u64 end,
			    struct page_table_info *info)
{
	u64 from, to, bytes;

	/* Without this bit it is a hole, or the kernel. */
	if (!strstr(line, "USR") ||
	    sscanf(line, "0x%lx-0x%lx", &from, &to) != 2 ||
	    from >= end || to <= start)
		return;

	bytes = min(to, end) - max(from, start);
	info->bytes += bytes;
	if (strstr(line, "PWT"))
		info->bytes_pwt += bytes;
	if (strstr(line, "PCD"))
		info->bytes_pcd += bytes;
	if (strstr(line, "PAT"))
		info->bytes_pat += bytes;

	if (strstr(line, "pte"))
		info->nr_pte += bytes / SZ_4K;
	else if (strstr(line, "pmd"))
		info->nr_pmd += bytes / SZ_2M;
	else if (strstr(line, "pud"))
		info->nr_pud += bytes / SZ_1G;
}

#define PAGE_TABLES "/sys/kernel/debug/page_tables/"

static FILE *page_table_open(void)
{
	/* Only there with page table isolation */
	FILE *file = fopen(PAGE_TABLES "current_user", "r");

	return file ?: fopen(PAGE_TABLES "current_kernel", "r");
}

bool page_table_info_supported(void)
{
#ifdef __x86_64__
	FILE *file = page_table_open();

	return file && !fclose(file);
#else
	return false;
#endif
}

void page_table_info(const void *vaddr, size_t size,
		     struct page_table_info *info)
{
	FILE *file = page_table_open();
	char line[256];

	VFIO_ASSERT_NOT_NULL(file, "No page tables in debugfs\n");
	memset(info, 0, sizeof(*info));
	while (fgets(line, sizeof(line), file))
		page_table_line(line, (u64)vaddr, (u64)vaddr + size, info);
	VFIO_ASSERT_EQ(fclose(file), 0);
}

static int nr_wc_memtypes_once(u64 start, u64 end)
{
	FILE *file = fopen("/sys/kernel/debug/x86/pat_memtype_list", "r");
	char line[256];
	u64 from, to;
	int nr = 0;

	if (!file)
		return -1;

	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "PAT: [mem 0x%lx-0x%lx]", &from, &to) == 2 &&
		    from <= end && start < to &&
		    strstr(line, "] write-combining"))
			nr++;
	}
	VFIO_ASSERT_EQ(fclose(file), 0);
	return nr;
}

/*
 * The kernel walks the list by position, and misses an entry if one before it is
 * removed meanwhile: read it more than once.
 */
int nr_wc_memtypes(u64 start, u64 end)
{
	int i, nr = -1;

	for (i = 0; i < 10; i++)
		nr = max(nr, nr_wc_memtypes_once(start, end));
	return nr;
}

int pipe_write(const void *vaddr)
{
	int fds[2];
	int ret;

	VFIO_ASSERT_EQ(pipe(fds), 0);
	ret = write(fds[1], vaddr, sizeof(u32));
	if (ret < 0)
		ret = -errno;
	close_assert(fds[0]);
	close_assert(fds[1]);

	return ret;
}
