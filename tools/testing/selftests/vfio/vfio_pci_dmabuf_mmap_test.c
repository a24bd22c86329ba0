// SPDX-License-Identifier: GPL-2.0-only
/*
 * mmap() of VFIO DMABUFs and of BARs, which the kernel maps in the same way: what
 * can be mapped, which page of the BAR then appears where, what may be done to the
 * mapping, and how long it lives.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <sys/mman.h>

#include <linux/dma-buf.h>
#include <linux/mman.h>
#include <linux/vfio.h>

#include "kselftest_harness.h"

#include <libvfio/dmabuf_test.h>

/* The part of the buffer that the tests use, in pages */
#define NR_PAGES 16

/* Enough mappings for a file or an inode per mapping to be noticed */
#define NR_MAPPINGS 600

static u32 read32(const void *addr)
{
	u32 val;

	VFIO_ASSERT_EQ(try_read32(addr, &val), 0);
	return val;
}

static void write32(void *addr, u32 val)
{
	VFIO_ASSERT_EQ(try_write32(addr, val), 0);
}

/* Is a BAR other than this one in the page? */
static bool page_is_shared(u64 page, const char *bdf, int bar)
{
	DIR *dir = opendir("/sys/bus/pci/devices");
	u64 start, end, flags;
	struct dirent *entry;
	bool shared = false;
	int i;

	VFIO_ASSERT_NOT_NULL(dir);
	while ((entry = readdir(dir))) {
		for (i = 0; entry->d_name[0] != '.' && i < PCI_STD_NUM_BARS; i++) {
			sysfs_resource_get(entry->d_name, i, &start, &end,
					   &flags);
			if (!(flags & SYSFS_RESOURCE_IO) && end &&
			    start < page + page_size && end >= page &&
			    (i != bar || strcmp(entry->d_name, bdf)))
				shared = true;
		}
	}
	closedir(dir);
	return shared;
}

/*
 * A BAR that is smaller than a page, as most are with pages of 64 KiB, is never
 * exported. It can be mapped, as a page, if the page starts with it and contains no
 * other BAR.
 */
TEST(bars_smaller_than_a_page)
{
	struct iommu *iommu = iommu_init(default_iommu_mode);
	struct vfio_pci_device *device = vfio_pci_device_init(device_bdf, iommu);
	u64 start, end, flags, page;
	struct vfio_region_info *info;
	bool mappable;
	int bar, nr = 0;
	void *vaddr;

	if (!vfio_pci_dmabuf_supported(device))
		SKIP(return, "No DMABUF export");

	for (bar = 0; bar < PCI_STD_NUM_BARS; bar++) {
		info = &device->bars[bar].info;
		sysfs_resource_get(device_bdf, bar, &start, &end, &flags);
		if (!info->size || info->size >= page_size ||
		    flags & SYSFS_RESOURCE_IO)
			continue;

		TH_LOG("BAR %d at 0x%lx", bar, (unsigned long)start);
		nr++;
		ASSERT_EQ(-EINVAL, __vfio_pci_dmabuf_export_range(device, bar,
								  O_RDWR, 0, 0,
								  page_size));
		page = start / page_size * page_size;
		mappable = start == page &&
			   !page_is_shared(page, device_bdf, bar);
		ASSERT_EQ(mappable,
			  !!(info->flags & VFIO_REGION_INFO_FLAG_MMAP));
		vaddr = mmap(NULL, page_size, PROT_READ, MAP_SHARED,
			     device->fd, info->offset);
		ASSERT_EQ(mappable, vaddr != MAP_FAILED);
		if (!mappable)
			ASSERT_EQ(EINVAL, errno);
		if (mappable && getenv_u32("VFIO_SELFTESTS_READ_BARS", 0))
			ASSERT_EQ(0, try_touch(vaddr));
	}
	if (!nr)
		SKIP(return, "No BAR smaller than a page");
}

/* A DMABUF of any device. Its registers are read only, and only the first. */
FIXTURE(dmabuf_mmap) {
	DMABUF_FIXTURE;
	size_t size;
	int fd;
	/* The DMABUF and the BAR, mapped */
	void *vaddr;
	void *bar_vaddr;
	struct vfio_client *client;
};

FIXTURE_SETUP(dmabuf_mmap)
{
	DMABUF_SETUP(self, false, 4 * page_size);
	self->size = min_t(u64, self->bar_size, NR_PAGES * page_size);
	self->fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						self->size);
	self->vaddr = mmap_shared(self->fd, 0, self->size);
	self->bar_vaddr = self->device->bars[self->bar].vaddr;
}

/* A client may keep the device open. */
FIXTURE_TEARDOWN(dmabuf_mmap)
{
	if (self->client)
		vfio_client_stop(self->client);
}

TEST_F(dmabuf_mmap, every_page_is_accessible)
{
	void *last = mmap_shared(self->fd, self->size - page_size, page_size);
	u32 val;

	ASSERT_EQ(sizeof(val), pread(self->device->fd, &val, sizeof(val),
				     self->bar_offset));
	ASSERT_EQ(val, read32(self->vaddr));
	ASSERT_EQ(val, read32(self->bar_vaddr));

	ASSERT_EQ(0, try_touch_pages(self->vaddr, self->size));
	ASSERT_EQ(0, try_touch(last + page_size - sizeof(u32)));
	munmap_assert(self->vaddr, self->size);
	ASSERT_EQ(SIGSEGV, try_touch_pages(self->vaddr, self->size));
}

TEST_F(dmabuf_mmap, map_private)
{
	ASSERT_EQ(MAP_FAILED, mmap(NULL, page_size, PROT_READ, MAP_PRIVATE,
				   self->fd, 0));
	ASSERT_EQ(EINVAL, errno);
	ASSERT_EQ(MAP_FAILED, mmap(NULL, page_size, PROT_READ, MAP_PRIVATE,
				   self->device->fd, self->bar_offset));
	ASSERT_EQ(EINVAL, errno);
}

TEST_F(dmabuf_mmap, beyond_the_end)
{
	const u64 bar = self->bar_offset, bar_end = bar + self->bar_size;
	const int device = self->device->fd;
	const struct {
		int fd;
		u64 offset;
		size_t size;
	} bad[] = {
		{ self->fd, 0, self->size + page_size },
		{ self->fd, 0, self->size + 1 },
		{ self->fd, page_size, self->size },
		{ self->fd, self->size, page_size },
		{ self->fd, 1ULL << 40, page_size },
		{ self->fd, INT64_MAX & ~(page_size - 1), page_size },
		{ device, bar, self->bar_size + page_size },
		{ device, bar_end - page_size, 2 * page_size },
		{ device, bar_end, page_size },
		{ device, self->device->config_space.offset, page_size },
	};
	void *vaddr;
	int i;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		ASSERT_EQ(-EINVAL, __mmap_shared(bad[i].fd, bad[i].offset,
						 bad[i].size, PROT_READ,
						 &vaddr)) {
			TH_LOG("offset 0x%llx size 0x%zx",
			       (unsigned long long)bad[i].offset, bad[i].size);
		}
	}
}

/* Without read access nothing can be mapped, as for any file. */
TEST_F(dmabuf_mmap, access_mode_of_fd)
{
	const int rw = PROT_READ | PROT_WRITE;
	int ro = __vfio_pci_dmabuf_export_range(self->device, self->bar,
						O_RDONLY, 0, 0, page_size);
	int wo = __vfio_pci_dmabuf_export_range(self->device, self->bar,
						O_WRONLY, 0, 0, page_size);
	void *vaddr;

	ASSERT_LE(0, wo);
	ASSERT_EQ(-EACCES, __mmap_shared(wo, 0, page_size, PROT_READ, &vaddr));
	ASSERT_EQ(-EACCES, __mmap_shared(wo, 0, page_size, PROT_WRITE, &vaddr));

	ASSERT_LE(0, ro);
	ASSERT_EQ(-EACCES, __mmap_shared(ro, 0, page_size, rw, &vaddr));
	ASSERT_EQ(-EACCES, __mmap_shared(ro, 0, page_size, PROT_WRITE, &vaddr));
	ASSERT_EQ(0, __mmap_shared(ro, 0, page_size, PROT_READ, &vaddr));
	ASSERT_EQ(0, try_touch(vaddr));
	ASSERT_EQ(SIGSEGV, try_write32(vaddr, 0));
	ASSERT_EQ(-1, mprotect(vaddr, page_size, rw));
	ASSERT_EQ(EACCES, errno);
	ASSERT_EQ(SIGSEGV, try_write32(vaddr, 0));
}

/*
 * mm refuses some calls for device memory: a mapping cannot grow nor leave its pages
 * behind, and there are no struct pages to populate, reclaim or write back.
 */
TEST_F(dmabuf_mmap, refused_by_mm)
{
	static const struct {
		int advice;
		int error;
	} refused[] = {
		{ MADV_DONTNEED, EINVAL },
		{ MADV_FREE, EINVAL },
		{ MADV_REMOVE, ENODEV },
		{ MADV_COLD, EINVAL },
		{ MADV_PAGEOUT, EINVAL },
		{ MADV_DOFORK, EINVAL },
		{ MADV_DODUMP, EINVAL },
		{ MADV_POPULATE_READ, EINVAL },
		{ MADV_POPULATE_WRITE, EINVAL },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(refused); i++) {
		TH_LOG("advice %d", refused[i].advice);
		ASSERT_EQ(-1, madvise(self->vaddr, self->size,
				      refused[i].advice));
		ASSERT_EQ(refused[i].error, errno);
	}

	ASSERT_EQ(MAP_FAILED, mremap(self->vaddr, self->size, 2 * self->size,
				     MREMAP_MAYMOVE));
	ASSERT_EQ(EFAULT, errno);
	ASSERT_EQ(MAP_FAILED, mremap(self->vaddr, self->size, self->size,
				     MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL));
	ASSERT_EQ(EINVAL, errno);

	ASSERT_EQ(-1, msync(self->vaddr, self->size, MS_SYNC));
	ASSERT_EQ(EINVAL, errno);
	ASSERT_EQ(-1, msync(self->bar_vaddr, page_size, MS_SYNC));
	ASSERT_EQ(EINVAL, errno);

	/* There is nothing to lock, which is no error. */
	ASSERT_EQ(0, mlock(self->vaddr, self->size));
	ASSERT_EQ(0, try_touch_pages(self->vaddr, self->size));

	/* Last, as it unmaps: the new VMA would not hold the device. */
	ASSERT_EQ(-1, remap_file_pages(self->bar_vaddr, page_size, 0,
				       self->bar_offset / page_size + 1, 0));
	ASSERT_EQ(EINVAL, errno);
}

/* The flags keep the mapping out of core dumps, swap, KSM and GUP. */
TEST_F(dmabuf_mmap, flags_of_mapping)
{
	static const char * const flags[] = {
		" sh ", " io ", " pf ", " de ", " dd ",
	};
	void *vaddrs[] = { self->vaddr, self->bar_vaddr };
	struct vma_info info;
	int i, j;

	for (i = 0; i < ARRAY_SIZE(vaddrs); i++) {
		vma_info(vaddrs[i], &info);
		for (j = 0; j < ARRAY_SIZE(flags); j++) {
			ASSERT_NE(NULL, strstr(info.flags, flags[j])) {
				TH_LOG("no%sin '%s'", flags[j], info.flags);
			}
		}
	}
}

/*
 * All mappings of a BAR are of one file. Its name is that of the device node, the
 * address and the BAR, and no client can give that to a DMABUF.
 */
TEST_F(dmabuf_mmap, file_of_bar_mappings)
{
	u64 offset = self->bar_offset + page_size;
	void *vaddr = mmap_shared(self->device->fd, offset, page_size);
	const char *node = vfio_pci_get_cdev_path(device_bdf);
	struct vma_info whole, page, dmabuf;
	char name[256];

	vma_info(self->bar_vaddr, &whole);
	vma_info(vaddr, &page);
	vma_info(self->vaddr, &dmabuf);
	ASSERT_EQ(vaddr + page_size, (void *)page.end);
	ASSERT_EQ(offset, page.offset);
	ASSERT_EQ(whole.inode, page.inode);
	ASSERT_NE(whole.inode, dmabuf.inode);

	snprintf_assert(name, (int)sizeof(name), "/%s:%s/%d",
			basename((char *)node), device_bdf, self->bar);
	ASSERT_STREQ(name, page.name);
	ASSERT_STREQ(name, whole.name);

	ioctl_assert(self->fd, DMA_BUF_SET_NAME, name + 1);
	vma_info(self->vaddr, &dmabuf);
	ASSERT_EQ(0, strncmp(dmabuf.name, "/dmabuf:", 8));
}

/* Is the DMABUF usable, or has it died with its device? */
#define ASSERT_ALIVE(_self)							\
	ASSERT_EQ(0, try_touch_pages((_self)->vaddr, (_self)->size))
#define ASSERT_DEAD(_self) do {							\
	void *__again;								\
										\
	ASSERT_EQ(SIGBUS, try_touch_pages((_self)->vaddr, (_self)->size));	\
	ASSERT_EQ(-ENODEV, __mmap_shared((_self)->fd, 0, page_size, PROT_READ,	\
					 &__again));				\
} while (0)

/*
 * A DMABUF does not keep its device open, and stays revoked if it is reopened.
 */
TEST_F(dmabuf_mmap, dies_with_the_device)
{
	void *untouched = mmap_shared(self->fd, 0, self->size);

	ASSERT_ALIVE(self);
	dmabuf_test_close(&self->device);
	ASSERT_DEAD(self);
	ASSERT_EQ(SIGBUS, try_touch_pages(untouched, self->size));

	dmabuf_test_reopen(self->iommu, &self->device);
	ASSERT_DEAD(self);
	self->fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						self->size);
	self->vaddr = mmap_shared(self->fd, 0, self->size);
	ASSERT_ALIVE(self);
}

/*
 * A BAR mapping keeps the device open, and so the DMABUF usable. That includes
 * the rest after munmap(), a mapping moved by mremap(), and one that only a
 * child still has.
 */
TEST_F(dmabuf_mmap, bar_mapping_keeps_device_open)
{
	void *bar = vfio_pci_region_mmap(self->device, self->bar, 0,
					 3 * page_size);
	void *moved = mmap_reserve(page_size, page_size, 0);

	dmabuf_test_close(&self->device);
	ASSERT_EQ(0, try_touch_pages(bar, 3 * page_size));
	ASSERT_EQ(0, try_touch(mmap_shared(self->fd, 0, self->size)));

	munmap_assert(bar + page_size, page_size);
	munmap_assert(bar, page_size);
	ASSERT_ALIVE(self);

	ASSERT_EQ(moved, mremap(bar + 2 * page_size, page_size, page_size,
				MREMAP_MAYMOVE | MREMAP_FIXED, moved));
	ASSERT_EQ(0, try_touch(moved));
	ASSERT_ALIVE(self);

	self->client = vfio_client_start();
	munmap_assert(moved, page_size);
	ASSERT_ALIVE(self);

	vfio_client_stop(self->client);
	self->client = NULL;
	ASSERT_DEAD(self);
}

/* Open what is mapped in one page. Returns the fd or -errno. */
static int open_mapped(const void *vaddr, int flags)
{
	char path[64];
	int fd;

	snprintf_assert(path, (int)sizeof(path), "/proc/self/map_files/%lx-%lx",
			(long)vaddr, (long)vaddr + page_size);
	fd = open(path, flags | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

/*
 * The buffer under a BAR mapping cannot be opened through map_files, and an
 * O_PATH descriptor of it does not keep the device open.
 */
TEST_F(dmabuf_mmap, buffer_of_bar_mapping)
{
	void *bar = vfio_pci_region_mmap(self->device, self->bar, 0, page_size);
	int fd = open_mapped(bar, O_PATH);

	if (fd < 0)
		SKIP(return, "No /proc/self/map_files");

	ASSERT_EQ(-ENXIO, open_mapped(bar, O_RDWR));
	ASSERT_EQ(-ENXIO, open_mapped(bar, O_RDONLY));

	dmabuf_test_close(&self->device);
	ASSERT_ALIVE(self);
	munmap_assert(bar, page_size);
	ASSERT_DEAD(self);
	dmabuf_test_reopen(self->iommu, &self->device);
}

/* mmap() of a BAR does not depend on how many files and inodes there may be. */
TEST_F(dmabuf_mmap, bar_mappings_make_no_files)
{
	u64 files = read_number("/proc/sys/fs/file-nr");
	u64 inodes = count_inodes();
	int i;

	for (i = 0; i < NR_MAPPINGS; i++)
		mmap_shared(self->device->fd, self->bar_offset, page_size);
	ASSERT_GT(files + NR_MAPPINGS / 2, read_number("/proc/sys/fs/file-nr"));
	ASSERT_GT(inodes + NR_MAPPINGS / 2, count_inodes());
}

/* A BAR of real memory, to see which page appears where. */
FIXTURE(dmabuf_memory) {
	DMABUF_FIXTURE;
	void *mem;
};

/* fill_pages() writes it to the first and, inverted, to the last word. */
static u32 page_tag(u64 page)
{
	return 0x5a000000 | page;
}

static void fill_pages(void *mem, u64 first, u64 nr)
{
	u64 page;

	for (page = first; page < first + nr; page++) {
		write32(mem + page * page_size, page_tag(page));
		write32(mem + (page + 1) * page_size - sizeof(u32),
			~page_tag(page));
	}
}

/* Is page @page of the BAR at @vaddr? */
static bool shows_page(const void *vaddr, u64 page)
{
	return read32(vaddr) == page_tag(page) &&
	       read32(vaddr + page_size - sizeof(u32)) == ~page_tag(page);
}

FIXTURE_SETUP(dmabuf_memory)
{
	DMABUF_SETUP(self, true, 2 * NR_PAGES * page_size);
	self->mem = self->device->bars[self->bar].vaddr;
	fill_pages(self->mem, 0, NR_PAGES);
}

FIXTURE_TEARDOWN(dmabuf_memory)
{
}

#define MAX_RANGES 4

/* Export pages of the BAR: the first one of each range, and their number or 0 */
static int export_pages(FIXTURE_DATA(dmabuf_memory) *self,
			const u64 pages[MAX_RANGES][2])
{
	struct vfio_region_dma_range ranges[MAX_RANGES];
	int nr;

	for (nr = 0; nr < MAX_RANGES && pages[nr][1]; nr++) {
		ranges[nr].offset = pages[nr][0] * page_size;
		ranges[nr].length = pages[nr][1] * page_size;
	}
	return vfio_pci_dmabuf_export(self->device, self->bar, ranges, nr);
}

/* As above, with the pages written in place */
#define EXPORT_PAGES(_self, ...) \
	export_pages((_self), (const u64[MAX_RANGES][2]) { __VA_ARGS__ })

/* Do the pages from @vaddr on show these pages of the BAR? */
#define ASSERT_SHOWS(_vaddr, ...) do {						\
	const u64 __shown[] = { __VA_ARGS__ };					\
	const void *__vaddr = (_vaddr);						\
	int __j;								\
										\
	for (__j = 0; __j < ARRAY_SIZE(__shown); __j++) {			\
		ASSERT_TRUE(shows_page(__vaddr + __j * page_size,		\
				       __shown[__j])) {				\
			TH_LOG("page %d shows 0x%x", __j,			\
			       read32(__vaddr + __j * page_size));		\
		}								\
	}									\
} while (0)

/* Map @fd from its page @page to its end. */
static void *map_from(int fd, u64 page)
{
	return mmap_shared(fd, page * page_size,
			   lseek(fd, 0, SEEK_END) - page * page_size);
}

TEST_F(dmabuf_memory, ranges)
{
	const u64 end = self->bar_size / page_size;
	int fd;

	fd = EXPORT_PAGES(self, { 3, 4 });
	ASSERT_SHOWS(map_from(fd, 0), 3, 4, 5, 6);
	ASSERT_SHOWS(map_from(fd, 3), 6);

	/* In any order */
	fd = EXPORT_PAGES(self, { 8, 2 }, { 2, 3 }, { 15, 1 }, { 0, 1 });
	ASSERT_SHOWS(map_from(fd, 0), 8, 9, 2, 3, 4, 15, 0);
	ASSERT_SHOWS(map_from(fd, 1), 9, 2, 3, 4, 15, 0);
	ASSERT_SHOWS(map_from(fd, 4), 4, 15, 0);

	/* Contiguous, reversed and overlapping */
	fd = EXPORT_PAGES(self, { 4, 2 }, { 6, 1 }, { 7, 3 });
	ASSERT_SHOWS(map_from(fd, 1), 5, 6, 7, 8, 9);
	fd = EXPORT_PAGES(self, { 7, 1 }, { 6, 1 }, { 5, 1 });
	ASSERT_SHOWS(map_from(fd, 1), 6, 5);
	fd = EXPORT_PAGES(self, { 2, 4 }, { 4, 4 }, { 5, 1 });
	ASSERT_SHOWS(map_from(fd, 0), 2, 3, 4, 5, 4, 5, 6, 7, 5);

	/* The end of the BAR */
	fill_pages(self->mem, end - 2, 2);
	fd = EXPORT_PAGES(self, { end - 2, 2 }, { 0, 1 });
	ASSERT_SHOWS(map_from(fd, 0), end - 2, end - 1, 0);
}

/* The same word by a DMABUF, its aliases, the BAR, read() and write() */
TEST_F(dmabuf_memory, aliases)
{
	u64 offset = self->bar_offset + 5 * page_size;
	int fd = EXPORT_PAGES(self, { 4, 2 });
	void *a = mmap_shared(fd, page_size, page_size);
	void *b = mmap_shared(dup(fd), page_size, page_size);
	void *c = mmap_shared(EXPORT_PAGES(self, { 5, 2 }), 0, 2 * page_size);
	void *bar = self->mem + 5 * page_size;
	u32 val = 0x2222;

	write32(a, 0x1111);
	ASSERT_EQ(0x1111, read32(b));
	ASSERT_EQ(0x1111, read32(c));
	ASSERT_EQ(0x1111, read32(bar));
	ASSERT_EQ(4, pwrite(self->device->fd, &val, 4, offset));
	ASSERT_EQ(0x2222, read32(a));
	write32(bar, 0x3333);
	ASSERT_EQ(4, pread(self->device->fd, &val, 4, offset));
	ASSERT_EQ(0x3333, val);
	ASSERT_EQ(0x3333, read32(b));
	write32(c, 0x4444);

	close_assert(fd);
	munmap_assert(a, page_size);
	ASSERT_EQ(0x4444, read32(b));
	ASSERT_SHOWS(c + page_size, 6);
}

/* After a split, the rest of a mapping shows the same pages as before. */
TEST_F(dmabuf_memory, split_keeps_offsets)
{
	int fd = EXPORT_PAGES(self, { 8, 2 }, { 2, 4 });
	void *vaddr = mmap_shared(fd, 0, 6 * page_size);
	void *bar = vfio_pci_region_mmap(self->device, self->bar,
					 2 * page_size, 6 * page_size);

	/* The middle, then both ends */
	munmap_assert(vaddr + 2 * page_size, page_size);
	ASSERT_SHOWS(vaddr, 8, 9);
	ASSERT_SHOWS(vaddr + 3 * page_size, 3, 4, 5);
	munmap_assert(vaddr, page_size);
	munmap_assert(vaddr + 5 * page_size, page_size);
	ASSERT_SHOWS(vaddr + page_size, 9);
	ASSERT_SHOWS(vaddr + 3 * page_size, 3, 4);
	ASSERT_EQ(SIGSEGV, try_touch(vaddr));
	ASSERT_EQ(SIGSEGV, try_touch(vaddr + 2 * page_size));
	ASSERT_EQ(SIGSEGV, try_touch(vaddr + 5 * page_size));

	/* By another mapping instead of munmap() */
	ASSERT_NE(MAP_FAILED, mmap(bar + 2 * page_size, page_size, PROT_NONE,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
				   0));
	ASSERT_SHOWS(bar, 2, 3);
	ASSERT_SHOWS(bar + 3 * page_size, 5, 6, 7);
}

/* A part of a mapping that is moved shows the same pages as before. */
TEST_F(dmabuf_memory, mremap)
{
	int fd = EXPORT_PAGES(self, { 8, 2 }, { 2, 4 });
	void *vaddr = map_from(fd, 1);
	void *part = mmap_reserve(2 * page_size, page_size, 0);

	ASSERT_SHOWS(vaddr, 9, 2, 3, 4, 5);
	ASSERT_EQ(part, mremap(vaddr + page_size, 2 * page_size, 2 * page_size,
			       MREMAP_MAYMOVE | MREMAP_FIXED, part));
	ASSERT_EQ(SIGSEGV, try_touch_pages(vaddr + page_size, 2 * page_size));
	ASSERT_SHOWS(vaddr, 9);
	ASSERT_SHOWS(part, 2, 3);
	ASSERT_SHOWS(vaddr + 3 * page_size, 4, 5);
}

int main(int argc, char *argv[])
{
	dmabuf_test_init(&argc, argv);
	return test_harness_run(argc, argv);
}
