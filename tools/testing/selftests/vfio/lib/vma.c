// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <sys/uio.h>

#include <linux/kernel.h>
#include <linux/sizes.h>
#include <linux/types.h>

#include "../../../kselftest.h"
#include <libvfio.h>

/* The first line of an entry; the others have no address */
static bool parse_vma(const char *line, struct vma_info *info)
{
	unsigned long long start, end, offset, inode;
	int name = 0;

	if (sscanf(line, "%llx-%llx %*s %llx %*s %llu %n", &start, &end,
		   &offset, &inode, &name) != 4)
		return false;

	info->start = start;
	info->end = end;
	info->offset = offset;
	info->inode = inode;
	snprintf(info->name, sizeof(info->name), "%s", line + name);
	info->name[strcspn(info->name, "\n")] = '\0';

	return true;
}

void vma_info(const void *vaddr, struct vma_info *info)
{
	static const char flags[] = "VmFlags:";
	FILE *file = fopen("/proc/self/smaps", "r");
	bool found = false;
	char line[512];

	VFIO_ASSERT_NOT_NULL(file);
	while (!found && fgets(line, sizeof(line), file)) {
		if (parse_vma(line, info) ||
		    strncmp(line, flags, strlen(flags)))
			continue;

		/* The last line of the entry */
		found = (u64)vaddr >= info->start && (u64)vaddr < info->end;
		snprintf(info->flags, sizeof(info->flags), "%s",
			 line + strlen(flags));
	}
	VFIO_ASSERT_EQ(fclose(file), 0);
	VFIO_ASSERT_TRUE(found, "No mapping at %p\n", vaddr);
}

/* A line of the dump: addresses, size, bits set, and the level of the entry */
static void page_table_line(const char *line, u64 start, u64 end,
			    struct page_table_info *info)
{
	unsigned long long from, to;
	u64 bytes;

	/* Without this bit it is a hole, or the kernel. */
	if (!strstr(line, "USR") ||
	    sscanf(line, "0x%llx-0x%llx", &from, &to) != 2)
		return;

	from = max_t(u64, from, start);
	to = min_t(u64, to, end);
	if (from >= to)
		return;

	bytes = to - from;
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

static FILE *page_table_open(void)
{
	/* The first is there with page table isolation only. */
	static const char * const paths[] = {
		"/sys/kernel/debug/page_tables/current_user",
		"/sys/kernel/debug/page_tables/current_kernel",
	};
	FILE *file = NULL;
	int i;

	for (i = 0; i < ARRAY_SIZE(paths) && !file; i++)
		file = fopen(paths[i], "r");

	return file;
}

bool page_table_info_supported(void)
{
	FILE *file;

#ifndef __x86_64__
	return false;
#endif
	file = page_table_open();
	if (!file)
		return false;

	VFIO_ASSERT_EQ(fclose(file), 0);

	return true;
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
	unsigned long long first, behind;
	char line[256], type[32];
	int nr = 0;

	if (!file)
		return -1;

	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "PAT: [mem 0x%llx-0x%llx] %31s",
			   &first, &behind, type) == 3 &&
		    !strcmp(type, "write-combining") &&
		    first <= end && start < behind)
			nr++;
	}

	VFIO_ASSERT_EQ(fclose(file), 0);
	return nr;
}

/*
 * The kernel goes through the list by position. One that is there the whole time
 * is missed when one before it goes, so read it more than once.
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

	VFIO_ASSERT_EQ(close(fds[0]), 0);
	VFIO_ASSERT_EQ(close(fds[1]), 0);

	return ret;
}

int process_vm_read_self(const void *vaddr)
{
	u32 val;
	struct iovec local = {
		.iov_base = &val,
		.iov_len = sizeof(val),
	};
	struct iovec remote = {
		.iov_base = (void *)vaddr,
		.iov_len = sizeof(val),
	};
	ssize_t ret;

	ret = process_vm_readv(getpid(), &local, 1, &remote, 1, 0);

	return ret < 0 ? -errno : ret;
}

int proc_mem_read_self(const void *vaddr)
{
	ssize_t ret;
	u32 val;
	int fd;

	fd = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
	VFIO_ASSERT_GE(fd, 0);

	ret = pread(fd, &val, sizeof(val), (off_t)vaddr);
	if (ret < 0)
		ret = -errno;

	VFIO_ASSERT_EQ(close(fd), 0);

	return ret;
}
