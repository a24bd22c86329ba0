// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <linux/kernel.h>
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
