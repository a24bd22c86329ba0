// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <sys/ioctl.h>

#include <linux/kernel.h>
#include <linux/types.h>

#include "../../../kselftest.h"
#include <libvfio.h>

static int page_table_open(void)
{
	return open("/dev/" VFIO_PCI_DMABUF_TEST_NAME, O_RDWR | O_CLOEXEC);
}

bool page_table_info_supported(void)
{
	int fd = page_table_open();

	return fd >= 0 && !close(fd);
}

static void page_table_add(const struct vfio_pci_dmabuf_test_entry *entry,
			   u64 bytes, struct page_table_info *info)
{
	info->nr_pte += entry->level == 0;
	info->nr_pmd += entry->level == 1;
	info->nr_pud += entry->level == 2;
	info->bytes += bytes;
	if (entry->writable)
		info->bytes_writable += bytes;
	if (entry->memtype == VFIO_PCI_DMABUF_TEST_UC)
		info->bytes_uc += bytes;
	if (entry->memtype == VFIO_PCI_DMABUF_TEST_WC)
		info->bytes_wc += bytes;
	if (entry->any_uncached)
		info->bytes_any_uncached += bytes;
}

void page_table_info(const void *vaddr, size_t size,
		     struct page_table_info *info)
{
	u64 next, addr, end = (u64)vaddr + size;
	struct vfio_pci_dmabuf_test_entry entry;
	int fd = page_table_open();

	VFIO_ASSERT_GE(fd, 0, "No test module\n");
	memset(info, 0, sizeof(*info));
	for (addr = (u64)vaddr; addr < end; addr = next) {
		next = addr + getpagesize();
		entry.addr = addr;
		if (ioctl(fd, VFIO_PCI_DMABUF_TEST_ENTRY, &entry)) {
			VFIO_ASSERT_EQ(errno, ENOENT);
			continue;
		}
		next = min_t(u64, (addr | (entry.size - 1)) + 1, end);
		page_table_add(&entry, next - addr, info);
	}
	close_assert(fd);
}

/* A PMD maps one page of PTEs, of 8 bytes each. */
u64 pmd_size_get(void)
{
	return (u64)getpagesize() * getpagesize() / sizeof(u64);
}

/* As the kernel's ARCH_SUPPORTS_PUD_PFNMAP */
bool has_pud_mappings(void)
{
#ifdef __x86_64__
	return true;
#else
	return false;
#endif
}
