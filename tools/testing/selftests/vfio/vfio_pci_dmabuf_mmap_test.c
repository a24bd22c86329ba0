// SPDX-License-Identifier: GPL-2.0-only
/*
 * mmap() of VFIO DMABUFs and of BARs, which the kernel maps in the same way: what
 * can be mapped, which page of the BAR then appears where, what may be done to the
 * mapping, and how long it lives.
 */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdint.h>
#include <unistd.h>

#include <sys/mman.h>

#include <linux/limits.h>
#include <linux/mman.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio/dmabuf_test.h>

#include "kselftest_harness.h"

/* The part of the buffer that the tests use, in pages */
#define NR_PAGES 16

/* And of a buffer with more ranges than a test writes down */
#define NR_MANY 1024

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

/* A DMABUF of any device. Its registers are read only, and only the first. */
FIXTURE(dmabuf_mmap) {
	DMABUF_FIXTURE;
	size_t size;
	int fd;
	/* The DMABUF and the BAR, mapped */
	void *vaddr;
	void *bar_vaddr;
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

FIXTURE_TEARDOWN(dmabuf_mmap)
{
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
	static const int prots[] = { PROT_READ, PROT_READ | PROT_WRITE };
	int i;

	for (i = 0; i < ARRAY_SIZE(prots); i++) {
		ASSERT_EQ(MAP_FAILED, mmap(NULL, page_size, prots[i],
					   MAP_PRIVATE, self->fd, 0));
		ASSERT_EQ(EINVAL, errno);
		ASSERT_EQ(MAP_FAILED, mmap(NULL, page_size, prots[i],
					   MAP_PRIVATE, self->device->fd,
					   self->bar_offset));
		ASSERT_EQ(EINVAL, errno);
	}
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
		{ self->fd, self->size - page_size, 2 * page_size },
		{ self->fd, self->size, page_size },
		{ self->fd, self->size + page_size, page_size },
		{ self->fd, 1ULL << 40, page_size },
		{ self->fd, 1ULL << 62, page_size },
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
	int ro = __vfio_pci_dmabuf_export_range(self->device, self->bar,
						O_RDONLY, 0, 0, page_size);
	int wo = __vfio_pci_dmabuf_export_range(self->device, self->bar,
						O_WRONLY, 0, 0, page_size);
	void *vaddr;

	ASSERT_LE(0, wo);
	ASSERT_EQ(-EACCES, __mmap_shared(wo, 0, page_size, PROT_READ, &vaddr));
	ASSERT_EQ(-EACCES, __mmap_shared(wo, 0, page_size, PROT_WRITE, &vaddr));

	ASSERT_LE(0, ro);
	ASSERT_EQ(-EACCES, __mmap_shared(ro, 0, page_size,
					 PROT_READ | PROT_WRITE, &vaddr));
	ASSERT_EQ(-EACCES, __mmap_shared(ro, 0, page_size, PROT_WRITE, &vaddr));
	ASSERT_EQ(0, __mmap_shared(ro, 0, page_size, PROT_READ, &vaddr));
	ASSERT_EQ(0, try_touch(vaddr));
	ASSERT_EQ(SIGSEGV, try_write32(vaddr, 0));
	ASSERT_EQ(-1, mprotect(vaddr, page_size, PROT_READ | PROT_WRITE));
	ASSERT_EQ(EACCES, errno);
	ASSERT_EQ(SIGSEGV, try_write32(vaddr, 0));
}

TEST_F(dmabuf_mmap, mprotect)
{
	ASSERT_EQ(0, try_touch(self->vaddr));
	ASSERT_EQ(0, mprotect(self->vaddr, self->size, PROT_NONE));
	ASSERT_EQ(SIGSEGV, try_touch(self->vaddr));

	ASSERT_EQ(0, mprotect(self->vaddr, self->size, PROT_READ));
	ASSERT_EQ(0, try_touch(self->vaddr));
	ASSERT_EQ(SIGSEGV, try_write32(self->vaddr, 0));

	ASSERT_EQ(0, mprotect(self->vaddr, self->size, PROT_READ | PROT_WRITE));
	ASSERT_EQ(0, try_touch_pages(self->vaddr, self->size));
}

TEST_F(dmabuf_mmap, survives_close_of_its_fd)
{
	ASSERT_EQ(0, try_touch(self->vaddr));
	close_assert(self->fd);

	/* The first page was there already, the others are faulted in now. */
	ASSERT_EQ(0, try_touch_pages(self->vaddr, self->size));
}

/* A mapping of device memory cannot grow, nor leave its pages behind. */
TEST_F(dmabuf_mmap, mremap_refused)
{
	ASSERT_EQ(MAP_FAILED, mremap(self->vaddr, self->size, 2 * self->size,
				     MREMAP_MAYMOVE));
	ASSERT_EQ(EFAULT, errno);

	ASSERT_EQ(MAP_FAILED, mremap(self->vaddr, self->size, self->size,
				     MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL));
	ASSERT_EQ(EINVAL, errno);

	/* The mapping is as before. */
	ASSERT_EQ(0, try_touch(self->vaddr));
}

TEST_F(dmabuf_mmap, madvise)
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
		/* There are no pages to populate, only page frames. */
		{ MADV_POPULATE_READ, EINVAL },
		{ MADV_POPULATE_WRITE, EINVAL },
	};
	int i;

	ASSERT_EQ(0, try_touch_pages(self->vaddr, self->size));
	for (i = 0; i < ARRAY_SIZE(refused); i++) {
		ASSERT_EQ(-1, madvise(self->vaddr, self->size,
				      refused[i].advice)) {
			TH_LOG("advice %d", refused[i].advice);
		}
		ASSERT_EQ(refused[i].error, errno) {
			TH_LOG("advice %d", refused[i].advice);
		}
	}
	ASSERT_EQ(0, try_touch_pages(self->vaddr, self->size));
}

/* There is nothing to lock, which is no error, and nothing to write back to. */
TEST_F(dmabuf_mmap, mlock_and_msync)
{
	ASSERT_EQ(0, mlock(self->vaddr, self->size));
	ASSERT_EQ(0, try_touch_pages(self->vaddr, self->size));
	ASSERT_EQ(0, munlock(self->vaddr, self->size));
	ASSERT_EQ(0, try_touch_pages(self->vaddr, self->size));

	ASSERT_EQ(0, msync(self->vaddr, self->size, MS_ASYNC));
	ASSERT_EQ(-1, msync(self->vaddr, self->size, MS_SYNC));
	ASSERT_EQ(EINVAL, errno);
	ASSERT_EQ(-1, msync(self->bar_vaddr, page_size, MS_SYNC));
	ASSERT_EQ(EINVAL, errno);
}

/* Pages of the parent are copied or faulted; the exit of the child is its own. */
TEST_F(dmabuf_mmap, fork)
{
	int i;

	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, touch_pages_in_child(self->vaddr, self->size));
		ASSERT_EQ(0, try_touch_pages(self->vaddr, self->size));
	}

	ASSERT_EQ(0, madvise(self->vaddr, self->size, MADV_DONTFORK));
	ASSERT_EQ(SIGSEGV, touch_pages_in_child(self->vaddr, self->size));
}

/*
 * The kernel reads the device for its user, but not for a debugger. The flags keep
 * the mapping out of core dumps, swap, KSM and GUP.
 */
TEST_F(dmabuf_mmap, access_by_the_kernel)
{
	static const char * const flags[] = {
		" sh ", " io ", " pf ", " de ", " dd ",
	};
	void *vaddrs[] = { self->vaddr, self->bar_vaddr };
	struct vma_info info;
	int i, j;

	for (i = 0; i < ARRAY_SIZE(vaddrs); i++) {
		ASSERT_EQ(sizeof(u32), pipe_write(vaddrs[i]));
		ASSERT_EQ(-EFAULT, process_vm_read_self(vaddrs[i]));
		ASSERT_EQ(-EIO, proc_mem_read_self(vaddrs[i]));

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
 * address and the BAR.
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

	snprintf_assert(name, (int)sizeof(name), "/dmabuf:%s:%s/%d",
			basename((char *)node), device_bdf, self->bar);
	ASSERT_STREQ(name, page.name);
	ASSERT_STREQ(name, whole.name);
}

TEST_F(dmabuf_mmap, export_leaves_bar_mapping_alone)
{
	u64 faults;

	ASSERT_EQ(0, try_touch_pages(self->bar_vaddr, self->size));
	ASSERT_EQ(0, try_touch_pages(self->vaddr, self->size));
	munmap_assert(self->vaddr, self->size);
	close_assert(self->fd);

	faults = nr_page_faults();
	ASSERT_EQ(0, try_touch_pages(self->bar_vaddr, self->size));
	ASSERT_EQ(faults, nr_page_faults());
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

/* A DMABUF does not keep its device open, and does not come back with it. */
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

/* A BAR mapping keeps the device open, and so the DMABUF alive. */
TEST_F(dmabuf_mmap, bar_mapping_keeps_device_open)
{
	void *bar = vfio_pci_region_mmap(self->device, self->bar, page_size,
					 page_size);

	dmabuf_test_close(&self->device);
	ASSERT_EQ(0, try_touch(bar));
	ASSERT_ALIVE(self);
	ASSERT_EQ(0, try_touch(mmap_shared(self->fd, 0, self->size)));

	munmap_assert(bar, page_size);
	ASSERT_DEAD(self);
}

/* So does what munmap() left of one, wherever mremap() put it. */
TEST_F(dmabuf_mmap, rest_of_bar_mapping_keeps_device_open)
{
	void *bar = vfio_pci_region_mmap(self->device, self->bar, 0,
					 3 * page_size);
	void *moved = mmap_reserve(page_size, page_size, 0);

	dmabuf_test_close(&self->device);
	munmap_assert(bar + page_size, page_size);
	munmap_assert(bar, page_size);
	ASSERT_ALIVE(self);

	ASSERT_EQ(moved, mremap(bar + 2 * page_size, page_size, page_size,
				MREMAP_MAYMOVE | MREMAP_FIXED, moved));
	ASSERT_EQ(0, try_touch(moved));
	ASSERT_ALIVE(self);

	munmap_assert(moved, page_size);
	ASSERT_DEAD(self);
}

/* And one that only a child has any more. */
TEST_F(dmabuf_mmap, bar_mapping_of_child_keeps_device_open)
{
	struct vfio_client *client;
	void *bar;

	/* Nothing of the device is left but the one mapping ... */
	bar = vfio_pci_region_mmap(self->device, self->bar, 0, page_size);
	dmabuf_test_close(&self->device);

	/* ... which a process made now has a copy of. */
	client = vfio_client_start();
	munmap_assert(bar, page_size);
	ASSERT_ALIVE(self);

	vfio_client_stop(client);
	ASSERT_DEAD(self);
}

static void toggle_memory(struct vfio_pci_device *device)
{
	vfio_pci_cmd_clear(device, PCI_COMMAND_MEMORY);
	vfio_pci_cmd_set(device, PCI_COMMAND_MEMORY);
}

/* A holder of a path to the buffer keeps neither the buffer nor the device. */
TEST_F(dmabuf_mmap, o_path_holder)
{
	int fd = open_o_path(self->fd);

	close_assert(self->fd);
	ASSERT_ALIVE(self);
	munmap_assert(self->vaddr, self->size);

	/* The file is gone, the inode is not. */
	toggle_memory(self->device);
	dmabuf_test_reopen(self->iommu, &self->device);
	toggle_memory(self->device);
	close_assert(fd);
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
 * Nobody can get the buffer under a BAR mapping and map it differently; a path to it
 * does not keep the device open either.
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

/* Nor in place, where the new VMA would not be one that holds the device. */
TEST_F(dmabuf_mmap, bar_mapping_cannot_be_remapped)
{
	ASSERT_EQ(-1, remap_file_pages(self->bar_vaddr, page_size, 0, 1, 0));
	ASSERT_EQ(EINVAL, errno);
}

/* mmap() of a BAR makes no file: it does not depend on how many there may be. */
FIXTURE(file_max) {
	DMABUF_FIXTURE;
	char file_max[32];
};

#define FILE_MAX "/proc/sys/fs/file-max"

FIXTURE_SETUP(file_max)
{
	int fd = open(FILE_MAX, O_RDONLY | O_CLOEXEC);

	DMABUF_SETUP(self, false, page_size);
	ASSERT_LT(0, read(fd, self->file_max, sizeof(self->file_max) - 1));
	ASSERT_EQ(0, write_file(FILE_MAX, 0, "1"));
}

FIXTURE_TEARDOWN_PARENT(file_max)
{
	if (*self->file_max)
		ASSERT_EQ(0, write_file(FILE_MAX, 0, self->file_max));
}

/* The limit is not for root. */
static int map_without_files(void *arg)
{
	FIXTURE_DATA(file_max) *self = arg;
	void *vaddr;
	int i;

	if (setresuid(65534, 65534, 65534))
		return 1;
	if (open("/dev/null", O_RDONLY) >= 0 || errno != ENFILE)
		return 2;

	for (i = 0; i < NR_MAPPINGS; i++) {
		if (__mmap_shared(self->device->fd, self->bar_offset, page_size,
				  PROT_READ, &vaddr) || try_touch(vaddr))
			return 3;
	}
	return 0;
}

TEST_F(file_max, bar_mappings)
{
	ASSERT_EQ(0, run_in_child(map_without_files, self));
}

TEST_F(file_max, bar_mappings_make_no_inodes)
{
	u64 inodes = count_inodes();
	int i;

	for (i = 0; i < NR_MAPPINGS; i++)
		mmap_shared(self->device->fd, self->bar_offset, page_size);
	ASSERT_GT(inodes + NR_MAPPINGS / 2, count_inodes());
}

/* A BAR of real memory, to see which page appears where. */
FIXTURE(dmabuf_memory) {
	DMABUF_FIXTURE;
	struct vfio_client *client;
	void *mem;
};

/* What fill_pages() writes to the first and, inverted, to the last word. */
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
	/* Started here, the client has nothing of the device. */
	self->client = vfio_client_start();
	DMABUF_SETUP(self, true, NR_MANY * page_size);
	self->mem = self->device->bars[self->bar].vaddr;
	fill_pages(self->mem, 0, NR_PAGES);
}

FIXTURE_TEARDOWN(dmabuf_memory)
{
	vfio_client_stop(self->client);
}

/* Export pages of the BAR, in this order, each (first, number). */
#define export_pages(_self, ...) ({						\
	typeof(_self) __self = (_self);						\
	const u64 __pages[][2] = { __VA_ARGS__ };				\
	struct vfio_region_dma_range __ranges[ARRAY_SIZE(__pages)];		\
	int __i;								\
										\
	for (__i = 0; __i < ARRAY_SIZE(__pages); __i++) {			\
		__ranges[__i].offset = __pages[__i][0] * page_size;		\
		__ranges[__i].length = __pages[__i][1] * page_size;		\
	}									\
	vfio_pci_dmabuf_export(__self->device, __self->bar, __ranges,		\
			       ARRAY_SIZE(__pages));				\
})

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

TEST_F(dmabuf_memory, ranges)
{
	u64 end = self->bar_size / page_size;
	int one = export_pages(self, { 3, 4 });
	int any_order = export_pages(self, { 8, 2 }, { 2, 3 }, { 15, 1 },
				     { 0, 1 });
	int contiguous = export_pages(self, { 4, 2 }, { 6, 1 }, { 7, 3 });
	/* Contiguous, but the other way round: nothing to merge */
	int reversed = export_pages(self, { 7, 1 }, { 6, 1 }, { 5, 1 });
	int at_end = export_pages(self, { end - 2, 2 }, { 0, 1 });

	fill_pages(self->mem, end - 2, 2);
	ASSERT_SHOWS(mmap_shared(one, 0, 4 * page_size), 3, 4, 5, 6);
	ASSERT_SHOWS(mmap_shared(any_order, 0, 7 * page_size),
		     8, 9, 2, 3, 4, 15, 0);
	ASSERT_SHOWS(mmap_shared(contiguous, 0, 6 * page_size),
		     4, 5, 6, 7, 8, 9);
	ASSERT_SHOWS(mmap_shared(reversed, 0, 3 * page_size), 7, 6, 5);
	ASSERT_SHOWS(mmap_shared(at_end, 0, 3 * page_size),
		     end - 2, end - 1, 0);
}

TEST_F(dmabuf_memory, ranges_touched_backwards)
{
	int fd = export_pages(self, { 8, 2 }, { 2, 2 }, { 12, 1 });
	void *vaddr = mmap_shared(fd, 0, 5 * page_size);

	ASSERT_SHOWS(vaddr + 4 * page_size, 12);
	ASSERT_SHOWS(vaddr + 3 * page_size, 3);
	ASSERT_SHOWS(vaddr + 2 * page_size, 2);
	ASSERT_SHOWS(vaddr + 1 * page_size, 9);
	ASSERT_SHOWS(vaddr, 8);
}

TEST_F(dmabuf_memory, overlapping_ranges_alias)
{
	int fd = export_pages(self, { 2, 4 }, { 4, 4 }, { 5, 1 });
	void *vaddr = mmap_shared(fd, 0, 9 * page_size);

	ASSERT_SHOWS(vaddr, 2, 3, 4, 5, 4, 5, 6, 7, 5);

	write32(vaddr + 3 * page_size + 64, 0xabcd);
	ASSERT_EQ(0xabcd, read32(vaddr + 5 * page_size + 64));
	ASSERT_EQ(0xabcd, read32(vaddr + 8 * page_size + 64));
	ASSERT_EQ(0xabcd, read32(self->mem + 5 * page_size + 64));
}

TEST_F(dmabuf_memory, offset_into_ranges)
{
	int fd = export_pages(self, { 8, 2 }, { 2, 3 }, { 12, 2 });

	ASSERT_SHOWS(mmap_shared(fd, page_size, 5 * page_size),
		     9, 2, 3, 4, 12);
	ASSERT_SHOWS(mmap_shared(fd, 3 * page_size, 2 * page_size), 3, 4);
	ASSERT_SHOWS(mmap_shared(fd, 6 * page_size, page_size), 13);
}

TEST_F(dmabuf_memory, many_ranges)
{
	struct vfio_region_dma_range ranges[NR_MANY];
	void *vaddr;
	int fd, i;

	for (i = 0; i < NR_MANY; i++) {
		ranges[i].offset = (u64)(NR_MANY - 1 - i) * page_size;
		ranges[i].length = page_size;
	}
	fd = vfio_pci_dmabuf_export(self->device, self->bar, ranges, NR_MANY);
	vaddr = mmap_shared(fd, 0, NR_MANY * page_size);

	fill_pages(self->mem, 0, NR_MANY);
	for (i = 0; i < NR_MANY; i++)
		ASSERT_SHOWS(vaddr + i * page_size, NR_MANY - 1 - i);
}

/* The same memory by a DMABUF, its aliases, the BAR, read() and write() */
TEST_F(dmabuf_memory, aliases)
{
	u64 offset = self->bar_offset + 5 * page_size + 256;
	int fd = export_pages(self, { 4, 2 });
	int other = export_pages(self, { 5, 2 });
	void *a = mmap_shared(fd, 0, 2 * page_size);
	void *b = mmap_shared(dup(fd), page_size, page_size);
	void *c = mmap_shared(other, 0, 2 * page_size);
	u32 val = 0x2222;

	write32(a + page_size + 256, 0x77);
	ASSERT_EQ(0x77, read32(b + 256));
	ASSERT_EQ(0x77, read32(c + 256));
	ASSERT_EQ(0x77, read32(self->mem + 5 * page_size + 256));
	ASSERT_EQ(4, pwrite(self->device->fd, &val, 4, offset));
	ASSERT_EQ(0x2222, read32(a + page_size + 256));
	write32(self->mem + 5 * page_size + 256, 0x3333);
	ASSERT_EQ(4, pread(self->device->fd, &val, 4, offset));
	ASSERT_EQ(0x3333, val);
	ASSERT_EQ(0x3333, read32(b + 256));

	close_assert(fd);
	munmap_assert(a, 2 * page_size);
	ASSERT_SHOWS(b, 5);
	ASSERT_SHOWS(c, 5, 6);
}

/* After a split, what is left of a DMABUF or BAR mapping must not slide. */
TEST_F(dmabuf_memory, split_keeps_offsets)
{
	int fd = export_pages(self, { 8, 2 }, { 2, 4 });
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

/* A mapping or a part of it, moved elsewhere, goes on showing what it did. */
TEST_F(dmabuf_memory, mremap)
{
	int fd = export_pages(self, { 8, 2 }, { 2, 4 });
	void *vaddr = mmap_shared(fd, page_size, 5 * page_size);
	void *target = mmap_reserve(5 * page_size, page_size, 0);
	void *part = mmap_reserve(page_size, page_size, 0);

	ASSERT_SHOWS(vaddr, 9, 2);
	ASSERT_EQ(target, mremap(vaddr, 5 * page_size, 5 * page_size,
				 MREMAP_MAYMOVE | MREMAP_FIXED, target));
	ASSERT_EQ(SIGSEGV, try_touch_pages(vaddr, 5 * page_size));
	ASSERT_SHOWS(target, 9, 2, 3, 4, 5);

	ASSERT_EQ(target, mremap(target, 5 * page_size, 4 * page_size, 0));
	ASSERT_EQ(SIGSEGV, try_touch(target + 4 * page_size));

	ASSERT_EQ(part, mremap(target + page_size, page_size, page_size,
			       MREMAP_MAYMOVE | MREMAP_FIXED, part));
	ASSERT_SHOWS(target, 9);
	ASSERT_SHOWS(part, 2);
	ASSERT_SHOWS(target + 2 * page_size, 3, 4);
}

TEST_F(dmabuf_memory, client_has_only_the_fd)
{
	int fd = export_pages(self, { 8, 1 }, { 2, 2 });
	u32 val;

	ASSERT_EQ(-EINVAL, __vfio_client_mmap(self->client, fd, 0,
					      4 * page_size));
	ASSERT_EQ(-EINVAL, __vfio_client_mmap(self->client, fd, 3 * page_size,
					      page_size));
	vfio_client_mmap(self->client, fd, 0, 3 * page_size);
	close_assert(fd);

	ASSERT_EQ(0, vfio_client_read32(self->client, 0, &val));
	ASSERT_EQ(page_tag(8), val);
	ASSERT_EQ(0, vfio_client_read32(self->client, 2 * page_size, &val));
	ASSERT_EQ(page_tag(3), val);
	ASSERT_EQ(0, vfio_client_write32(self->client, page_size + 64, 0x99));
	ASSERT_EQ(0x99, read32(self->mem + 2 * page_size + 64));
}

static int write_in_child(void *arg)
{
	return try_write32(arg, 0x4444);
}

TEST_F(dmabuf_memory, child_writes_for_parent)
{
	void *vaddr = mmap_shared(export_pages(self, { 8, 1 }), 0, page_size);

	ASSERT_EQ(0, run_in_child(write_in_child, vaddr + 512));
	ASSERT_EQ(0x4444, read32(vaddr + 512));
}

/*
 * BARs smaller than a page: the page can be mapped if nothing else is on it, but a
 * DMABUF, made of whole pages, does not fit.
 */
FIXTURE(subpage_bar) {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	int bar;
	u64 offset;
	u64 size;
};

FIXTURE_SETUP(subpage_bar)
{
	int i;

	self->iommu = iommu_init(default_iommu_mode);
	self->device = vfio_pci_device_init(device_bdf, self->iommu);
	self->bar = -1;

	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		struct vfio_region_info *info = &self->device->bars[i].info;

		if ((info->flags & VFIO_REGION_INFO_FLAG_MMAP) &&
		    info->size < page_size)
			self->bar = i;
	}

	if (self->bar < 0)
		SKIP(return, "No BAR smaller than a page that can be mapped");
	if (!getenv_u32("VFIO_SELFTESTS_READ_BARS", 0))
		SKIP(return, "No BAR known to be plain memory");

	self->size = self->device->bars[self->bar].info.size;
	self->offset = vfio_pci_region_offset(self->device, self->bar);
}

FIXTURE_TEARDOWN(subpage_bar)
{
}

TEST_F(subpage_bar, mmap)
{
	void *vaddr = mmap_shared(self->device->fd, self->offset, self->size);
	void *page = mmap_shared(self->device->fd, self->offset, page_size);
	u32 val;

	ASSERT_EQ(4, pread(self->device->fd, &val, 4, self->offset));
	ASSERT_EQ(val, read32(vaddr));
	ASSERT_EQ(val, read32(page));

	ASSERT_EQ(-EINVAL, __mmap_shared(self->device->fd, self->offset,
					 2 * page_size, PROT_READ, &vaddr));
	ASSERT_EQ(-EINVAL, __mmap_shared(self->device->fd,
					 self->offset + page_size, page_size,
					 PROT_READ, &vaddr));
}

TEST_F(subpage_bar, memory_disabled)
{
	void *vaddr = mmap_shared(self->device->fd, self->offset, self->size);

	ASSERT_EQ(0, try_touch(vaddr));
	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(SIGBUS, try_touch(vaddr));
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, try_touch(vaddr));

	dmabuf_test_close(&self->device);
	ASSERT_EQ(0, try_touch(vaddr));
}

TEST_F(subpage_bar, no_dmabuf)
{
	const u64 sizes[] = { self->size, page_size };
	int i;

	if (!vfio_pci_dmabuf_supported(self->device))
		SKIP(return, "No DMABUF export");

	for (i = 0; i < ARRAY_SIZE(sizes); i++)
		ASSERT_EQ(-EINVAL,
			  __vfio_pci_dmabuf_export_range(self->device,
							 self->bar, O_RDWR, 0,
							 0, sizes[i]));
}

int main(int argc, char *argv[])
{
	dmabuf_test_init(&argc, argv);
	return test_harness_run(argc, argv);
}
