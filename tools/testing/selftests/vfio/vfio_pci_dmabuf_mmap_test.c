// SPDX-License-Identifier: GPL-2.0-only
/*
 * mmap() of VFIO DMABUFs and of BARs, which the kernel maps in the same way:
 * what can be mapped, which page of the BAR then shows where, what may be done
 * to the mapping, and how long it lives.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <unistd.h>

#include <sys/mman.h>

#include <linux/limits.h>
#include <linux/mman.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "kselftest_harness.h"

static const char *device_bdf;

static size_t page_size;

/* The part of the buffer that the tests look at, in pages. */
#define NR_PAGES 16

/* And of a buffer with more ranges than a test writes down */
#define NR_MANY 1024

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
	struct iommu *iommu;
	struct vfio_pci_device *device;
	int bar;
	size_t size;
	int fd;
};

FIXTURE_SETUP(dmabuf_mmap)
{
	const char *reason;

	reason = dmabuf_test_open(device_bdf, false, 4 * page_size,
				  &self->iommu, &self->device, &self->bar);
	if (reason)
		SKIP(return, "%s", reason);

	self->size = min_t(u64, self->device->bars[self->bar].info.size,
			   NR_PAGES * page_size);
	self->fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						self->size);
}

FIXTURE_TEARDOWN(dmabuf_mmap)
{
	if (self->fd >= 0)
		close_assert(self->fd);
	if (self->device)
		vfio_pci_device_cleanup(self->device);
	iommu_cleanup(self->iommu);
}

TEST_F(dmabuf_mmap, same_as_bar_and_pread)
{
	u64 offset = vfio_pci_region_offset(self->device, self->bar);
	void *vaddr = mmap_shared(self->fd, 0, self->size);
	u32 val;

	ASSERT_EQ(sizeof(val), pread(self->device->fd, &val, sizeof(val),
				     offset));
	ASSERT_EQ(val, read32(vaddr));
	ASSERT_EQ(val, read32(self->device->bars[self->bar].vaddr));

	munmap_assert(vaddr, self->size);
}

TEST_F(dmabuf_mmap, every_page_is_accessible)
{
	void *vaddr = mmap_shared(self->fd, 0, self->size);

	ASSERT_EQ(0, try_touch_pages(vaddr, self->size));

	munmap_assert(vaddr, self->size);
	ASSERT_EQ(SIGSEGV, try_touch_pages(vaddr, self->size));
}

TEST_F(dmabuf_mmap, map_private)
{
	ASSERT_EQ(MAP_FAILED, mmap(NULL, self->size, PROT_READ, MAP_PRIVATE,
				   self->fd, 0));
	ASSERT_EQ(EINVAL, errno);

	ASSERT_EQ(MAP_FAILED, mmap(NULL, self->size, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE, self->fd, 0));
	ASSERT_EQ(EINVAL, errno);
}

TEST_F(dmabuf_mmap, beyond_the_buffer)
{
	const struct {
		u64 offset;
		size_t size;
	} bad[] = {
		{ 0, self->size + page_size },
		{ 0, self->size + 1 },
		{ page_size, self->size },
		{ self->size - page_size, 2 * page_size },
		{ self->size, page_size },
		{ self->size + page_size, page_size },
		{ 1ULL << 40, page_size },
		{ 1ULL << 62, page_size },
		{ INT64_MAX & ~(page_size - 1), page_size },
	};
	void *vaddr;
	int i;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		ASSERT_EQ(-EINVAL, __mmap_shared(self->fd, bad[i].offset,
						 bad[i].size, PROT_READ,
						 &vaddr)) {
			TH_LOG("offset 0x%llx size 0x%zx",
			       (unsigned long long)bad[i].offset, bad[i].size);
		}
	}
}

TEST_F(dmabuf_mmap, last_page)
{
	void *vaddr;

	vaddr = mmap_shared(self->fd, self->size - page_size, page_size);
	ASSERT_EQ(0, try_touch(vaddr));
	ASSERT_EQ(0, try_touch(vaddr + page_size - sizeof(u32)));

	munmap_assert(vaddr, page_size);
}

static int export_with_flags(struct vfio_pci_device *device, int bar,
			     u32 open_flags)
{
	int fd = __vfio_pci_dmabuf_export_range(device, bar,
						open_flags | O_CLOEXEC, 0, 0,
						page_size);

	VFIO_ASSERT_GE(fd, 0);

	return fd;
}

TEST_F(dmabuf_mmap, read_only_fd)
{
	int fd = export_with_flags(self->device, self->bar, O_RDONLY);
	void *vaddr;

	ASSERT_EQ(-EACCES, __mmap_shared(fd, 0, page_size,
					 PROT_READ | PROT_WRITE, &vaddr));
	ASSERT_EQ(-EACCES, __mmap_shared(fd, 0, page_size, PROT_WRITE, &vaddr));

	ASSERT_EQ(0, __mmap_shared(fd, 0, page_size, PROT_READ, &vaddr));
	ASSERT_EQ(0, try_touch(vaddr));
	ASSERT_EQ(SIGSEGV, try_write32(vaddr, 0));

	ASSERT_EQ(-1, mprotect(vaddr, page_size, PROT_READ | PROT_WRITE));
	ASSERT_EQ(EACCES, errno);
	ASSERT_EQ(SIGSEGV, try_write32(vaddr, 0));

	munmap_assert(vaddr, page_size);
	close_assert(fd);
}

/* Without read access nothing can be mapped, as for any file. */
TEST_F(dmabuf_mmap, write_only_fd)
{
	int fd = export_with_flags(self->device, self->bar, O_WRONLY);
	void *vaddr;

	ASSERT_EQ(-EACCES, __mmap_shared(fd, 0, page_size, PROT_READ, &vaddr));
	ASSERT_EQ(-EACCES, __mmap_shared(fd, 0, page_size, PROT_WRITE, &vaddr));

	close_assert(fd);
}

TEST_F(dmabuf_mmap, mprotect)
{
	void *vaddr = mmap_shared(self->fd, 0, self->size);

	ASSERT_EQ(0, try_touch(vaddr));
	ASSERT_EQ(0, mprotect(vaddr, self->size, PROT_NONE));
	ASSERT_EQ(SIGSEGV, try_touch(vaddr));

	ASSERT_EQ(0, mprotect(vaddr, self->size, PROT_READ));
	ASSERT_EQ(0, try_touch(vaddr));
	ASSERT_EQ(SIGSEGV, try_write32(vaddr, 0));

	ASSERT_EQ(0, mprotect(vaddr, self->size, PROT_READ | PROT_WRITE));
	ASSERT_EQ(0, try_touch_pages(vaddr, self->size));

	munmap_assert(vaddr, self->size);
}

TEST_F(dmabuf_mmap, survives_close_of_its_fd)
{
	void *vaddr = mmap_shared(self->fd, 0, self->size);

	ASSERT_EQ(0, try_touch(vaddr));
	close_assert(self->fd);
	self->fd = -1;

	/* The first page was there already, the others are faulted in now. */
	ASSERT_EQ(0, try_touch_pages(vaddr, self->size));

	munmap_assert(vaddr, self->size);
}

TEST_F(dmabuf_mmap, munmap_pieces)
{
	void *vaddr = mmap_shared(self->fd, 0, 4 * page_size);

	/* The middle first: this splits the mapping. */
	munmap_assert(vaddr + page_size, page_size);
	ASSERT_EQ(0, try_touch(vaddr));
	ASSERT_EQ(SIGSEGV, try_touch(vaddr + page_size));
	ASSERT_EQ(0, try_touch_pages(vaddr + 2 * page_size, 2 * page_size));

	munmap_assert(vaddr, page_size);
	ASSERT_EQ(SIGSEGV, try_touch(vaddr));
	ASSERT_EQ(0, try_touch_pages(vaddr + 2 * page_size, 2 * page_size));

	munmap_assert(vaddr + 3 * page_size, page_size);
	ASSERT_EQ(0, try_touch(vaddr + 2 * page_size));
	ASSERT_EQ(SIGSEGV, try_touch(vaddr + 3 * page_size));

	munmap_assert(vaddr + 2 * page_size, page_size);
}

TEST_F(dmabuf_mmap, map_fixed_over)
{
	void *vaddr = mmap_shared(self->fd, 0, 4 * page_size);

	ASSERT_EQ(0, try_touch_pages(vaddr, 4 * page_size));
	ASSERT_EQ(vaddr + page_size,
		  mmap(vaddr + page_size, page_size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));

	write32(vaddr + page_size, 0x12345678);
	ASSERT_EQ(0x12345678, read32(vaddr + page_size));
	ASSERT_EQ(0, try_touch(vaddr));
	ASSERT_EQ(0, try_touch_pages(vaddr + 2 * page_size, 2 * page_size));

	munmap_assert(vaddr, 4 * page_size);
}

/* A mapping of device memory cannot grow, nor leave its pages behind. */
TEST_F(dmabuf_mmap, mremap_refused)
{
	void *vaddr = mmap_shared(self->fd, 0, page_size);

	ASSERT_EQ(MAP_FAILED, mremap(vaddr, page_size, 2 * page_size,
				     MREMAP_MAYMOVE));
	ASSERT_EQ(EFAULT, errno);

	ASSERT_EQ(MAP_FAILED, mremap(vaddr, page_size, page_size,
				     MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL));
	ASSERT_EQ(EINVAL, errno);

	/* The mapping is as before. */
	ASSERT_EQ(0, try_touch(vaddr));
	munmap_assert(vaddr, page_size);
}

TEST_F(dmabuf_mmap, madvise)
{
	void *vaddr = mmap_shared(self->fd, 0, self->size);
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
	};
	int i;

	ASSERT_EQ(0, try_touch_pages(vaddr, self->size));

	for (i = 0; i < ARRAY_SIZE(refused); i++) {
		ASSERT_EQ(-1, madvise(vaddr, self->size, refused[i].advice)) {
			TH_LOG("advice %d", refused[i].advice);
		}
		ASSERT_EQ(refused[i].error, errno) {
			TH_LOG("advice %d", refused[i].advice);
		}
	}

	/* There are no pages to populate or to poison, only page frames. */
	ASSERT_EQ(-1, madvise(vaddr, self->size, MADV_POPULATE_READ));
	ASSERT_EQ(EINVAL, errno);
	ASSERT_EQ(-1, madvise(vaddr, self->size, MADV_POPULATE_WRITE));
	ASSERT_EQ(EINVAL, errno);

	ASSERT_EQ(0, try_touch_pages(vaddr, self->size));
	munmap_assert(vaddr, self->size);
}

TEST_F(dmabuf_mmap, mlock)
{
	void *vaddr = mmap_shared(self->fd, 0, self->size);

	/* Nothing to lock, and no reason to fail. */
	ASSERT_EQ(0, mlock(vaddr, self->size));
	ASSERT_EQ(0, try_touch_pages(vaddr, self->size));
	ASSERT_EQ(0, munlock(vaddr, self->size));
	ASSERT_EQ(0, try_touch_pages(vaddr, self->size));

	munmap_assert(vaddr, self->size);
}

/* There is nothing to write back to, for a BAR neither. */
TEST_F(dmabuf_mmap, msync)
{
	void *vaddr = mmap_shared(self->fd, 0, self->size);

	ASSERT_EQ(0, msync(vaddr, self->size, MS_ASYNC));
	ASSERT_EQ(-1, msync(vaddr, self->size, MS_SYNC));
	ASSERT_EQ(EINVAL, errno);
	ASSERT_EQ(-1, msync(self->device->bars[self->bar].vaddr, page_size,
			    MS_SYNC));
	ASSERT_EQ(EINVAL, errno);

	munmap_assert(vaddr, self->size);
}

TEST_F(dmabuf_mmap, fork)
{
	void *vaddr = mmap_shared(self->fd, 0, 4 * page_size);

	/* Pages of the parent are copied or faulted; the child's exit is its. */
	ASSERT_EQ(0, touch_pages_in_child(vaddr, 4 * page_size));
	ASSERT_EQ(0, try_touch_pages(vaddr, 4 * page_size));
	ASSERT_EQ(0, touch_pages_in_child(vaddr, 4 * page_size));
	ASSERT_EQ(0, try_touch_pages(vaddr, 4 * page_size));

	ASSERT_EQ(0, madvise(vaddr, 4 * page_size, MADV_DONTFORK));
	ASSERT_EQ(SIGSEGV, touch_pages_in_child(vaddr, 4 * page_size));

	munmap_assert(vaddr, 4 * page_size);
}

/* The kernel reads the device for its user, but not for a debugger. */
TEST_F(dmabuf_mmap, access_by_syscalls)
{
	void *vaddr = mmap_shared(self->fd, 0, self->size);
	void *bar = self->device->bars[self->bar].vaddr;
	void *vaddrs[] = { vaddr, bar };
	int i;

	for (i = 0; i < ARRAY_SIZE(vaddrs); i++) {
		ASSERT_EQ(sizeof(u32), pipe_write(vaddrs[i]));
		ASSERT_EQ(-EFAULT, process_vm_read_self(vaddrs[i]));
		ASSERT_EQ(-EIO, proc_mem_read_self(vaddrs[i]));
	}

	munmap_assert(vaddr, self->size);
}

/*
 * The mapping must keep out of core dumps, swap, KSM, fork-time surprises and
 * GUP: these flags have the kernel do so.
 */
TEST_F(dmabuf_mmap, vm_flags)
{
	static const char * const flags[] = {
		" sh ", " io ", " pf ", " de ", " dd ",
	};
	void *vaddr = mmap_shared(self->fd, 0, self->size);
	void *vaddrs[] = {
		vaddr, self->device->bars[self->bar].vaddr,
	};
	char line[256];
	int i, j;

	for (i = 0; i < ARRAY_SIZE(vaddrs); i++) {
		vma_flags(vaddrs[i], line, sizeof(line));

		for (j = 0; j < ARRAY_SIZE(flags); j++) {
			ASSERT_NE(NULL, strstr(line, flags[j])) {
				TH_LOG("no%sin '%s'", flags[j], line);
			}
		}
	}

	munmap_assert(vaddr, self->size);
}

/* The name of a mapping says what it maps: device node, address and BAR. */
TEST_F(dmabuf_mmap, name_of_bar_mapping)
{
	u64 offset = vfio_pci_region_offset(self->device, self->bar) +
		     page_size;
	struct vma_info info;
	char bar[16];
	void *vaddr;

	vaddr = mmap_shared(self->device->fd, offset, page_size);
	vma_info(vaddr, &info);

	ASSERT_EQ(vaddr + page_size, (void *)info.end);
	ASSERT_EQ(offset, info.offset);
	ASSERT_NE(NULL, strstr(info.name, "vfio")) TH_LOG("%s", info.name);
	ASSERT_NE(NULL, strstr(info.name, device_bdf)) TH_LOG("%s", info.name);

	snprintf_assert(bar, sizeof(bar), "%d", self->bar);
	ASSERT_EQ(0, strcmp(bar, info.name + strlen(info.name) - strlen(bar)))
		TH_LOG("%s", info.name);

	munmap_assert(vaddr, page_size);
}

TEST_F(dmabuf_mmap, export_leaves_bar_mapping_alone)
{
	void *bar = vfio_pci_region_mmap(self->device, self->bar, 0,
					 self->size);
	void *vaddr;
	u64 faults;

	ASSERT_EQ(0, try_touch_pages(bar, self->size));

	vaddr = mmap_shared(self->fd, 0, self->size);
	ASSERT_EQ(0, try_touch_pages(vaddr, self->size));
	munmap_assert(vaddr, self->size);
	close_assert(self->fd);
	self->fd = -1;

	faults = nr_page_faults();
	ASSERT_EQ(0, try_touch_pages(bar, self->size));
	ASSERT_EQ(faults, nr_page_faults());

	munmap_assert(bar, self->size);
}

/* mmap() of the device file follows the rules of a file, as ever. */
TEST_F(dmabuf_mmap, bar_mmap_rules)
{
	u64 bar_size = self->device->bars[self->bar].info.size;
	u64 offset = vfio_pci_region_offset(self->device, self->bar);
	int fd = self->device->fd;
	void *vaddr;

	ASSERT_EQ(MAP_FAILED, mmap(NULL, page_size, PROT_READ, MAP_PRIVATE, fd,
				   offset));
	ASSERT_EQ(EINVAL, errno);

	ASSERT_EQ(-EINVAL, __mmap_shared(fd, offset, bar_size + page_size,
					 PROT_READ, &vaddr));
	ASSERT_EQ(-EINVAL, __mmap_shared(fd, offset + bar_size, page_size,
					 PROT_READ, &vaddr));
	ASSERT_EQ(-EINVAL, __mmap_shared(fd, self->device->config_space.offset,
					 page_size, PROT_READ, &vaddr));
}

static void close_device(struct vfio_pci_device **device)
{
	vfio_pci_device_cleanup(*device);
	*device = NULL;
}

/* A DMABUF does not keep its device open: it dies with it. */
TEST_F(dmabuf_mmap, dies_with_the_device)
{
	void *touched = mmap_shared(self->fd, 0, self->size);
	void *untouched = mmap_shared(self->fd, 0, self->size);
	void *vaddr;

	ASSERT_EQ(0, try_touch_pages(touched, self->size));

	close_device(&self->device);

	ASSERT_EQ(SIGBUS, try_touch_pages(touched, self->size));
	ASSERT_EQ(SIGBUS, try_touch_pages(untouched, self->size));
	ASSERT_EQ(-ENODEV, __mmap_shared(self->fd, 0, self->size, PROT_READ,
					 &vaddr));

	munmap_assert(touched, self->size);
	munmap_assert(untouched, self->size);
}

/* Opening the device again does not bring it back. */
TEST_F(dmabuf_mmap, stays_dead_when_device_reopens)
{
	void *vaddr = mmap_shared(self->fd, 0, self->size);
	void *again;
	int fd;

	close_device(&self->device);
	self->device = vfio_pci_device_init(device_bdf, self->iommu);

	ASSERT_EQ(SIGBUS, try_touch_pages(vaddr, self->size));
	ASSERT_EQ(-ENODEV, __mmap_shared(self->fd, 0, self->size, PROT_READ,
					 &again));

	fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
					  self->size);
	again = mmap_shared(fd, 0, self->size);
	ASSERT_EQ(0, try_touch_pages(again, self->size));

	munmap_assert(again, self->size);
	munmap_assert(vaddr, self->size);
	close_assert(fd);
}

/* A BAR mapping keeps the device open, and so the DMABUF alive. */
TEST_F(dmabuf_mmap, bar_mapping_keeps_device_open)
{
	void *bar = vfio_pci_region_mmap(self->device, self->bar, page_size,
					 page_size);
	void *vaddr = mmap_shared(self->fd, 0, self->size);
	void *again;

	close_device(&self->device);

	ASSERT_EQ(0, try_touch(bar));
	ASSERT_EQ(0, try_touch_pages(vaddr, self->size));
	again = mmap_shared(self->fd, 0, self->size);
	ASSERT_EQ(0, try_touch_pages(again, self->size));

	munmap_assert(bar, page_size);

	ASSERT_EQ(SIGBUS, try_touch_pages(vaddr, self->size));
	ASSERT_EQ(SIGBUS, try_touch_pages(again, self->size));

	munmap_assert(vaddr, self->size);
	munmap_assert(again, self->size);
}

/* So does what munmap() left of one, wherever mremap() put it. */
TEST_F(dmabuf_mmap, rest_of_bar_mapping_keeps_device_open)
{
	void *bar = vfio_pci_region_mmap(self->device, self->bar, 0,
					 3 * page_size);
	void *vaddr = mmap_shared(self->fd, 0, self->size);
	void *moved = mmap_reserve(page_size, page_size, 0);

	close_device(&self->device);

	munmap_assert(bar + page_size, page_size);
	munmap_assert(bar, page_size);
	ASSERT_EQ(0, try_touch_pages(vaddr, self->size));

	ASSERT_EQ(moved, mremap(bar + 2 * page_size, page_size, page_size,
				MREMAP_MAYMOVE | MREMAP_FIXED, moved));
	ASSERT_EQ(0, try_touch(moved));
	ASSERT_EQ(0, try_touch_pages(vaddr, self->size));

	munmap_assert(moved, page_size);
	ASSERT_EQ(SIGBUS, try_touch_pages(vaddr, self->size));

	munmap_assert(vaddr, self->size);
}

/* And one that only a child has any more. */
TEST_F(dmabuf_mmap, bar_mapping_of_child_keeps_device_open)
{
	void *vaddr = mmap_shared(self->fd, 0, self->size);
	struct vfio_client *client;
	void *bar;

	/* Nothing of the device is left but the one mapping ... */
	bar = vfio_pci_region_mmap(self->device, self->bar, 0, page_size);
	close_device(&self->device);

	/* ... which a process made now has a copy of. */
	client = vfio_client_start();
	munmap_assert(bar, page_size);
	ASSERT_EQ(0, try_touch_pages(vaddr, self->size));

	vfio_client_stop(client);
	ASSERT_EQ(SIGBUS, try_touch_pages(vaddr, self->size));

	munmap_assert(vaddr, self->size);
}

/* Whoever keeps a path to the buffer keeps neither it nor the device. */
TEST_F(dmabuf_mmap, o_path_holder)
{
	void *vaddr = mmap_shared(self->fd, 0, self->size);
	int fd = open_o_path(self->fd);

	close_assert(self->fd);
	self->fd = -1;
	ASSERT_EQ(0, try_touch_pages(vaddr, self->size));
	munmap_assert(vaddr, self->size);

	/* The file is gone, the buffer is not: what walks them must cope. */
	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	close_device(&self->device);
	self->device = vfio_pci_device_init(device_bdf, self->iommu);
	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);

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

/* A path to a BAR mapping does not keep the device open either. */
TEST_F(dmabuf_mmap, o_path_holder_of_bar_mapping)
{
	void *bar = vfio_pci_region_mmap(self->device, self->bar, 0, page_size);
	void *vaddr = mmap_shared(self->fd, 0, self->size);
	int fd = open_mapped(bar, O_PATH);

	if (fd < 0)
		SKIP(return, "No /proc/self/map_files");

	close_device(&self->device);
	ASSERT_EQ(0, try_touch_pages(vaddr, self->size));
	munmap_assert(bar, page_size);
	ASSERT_EQ(SIGBUS, try_touch_pages(vaddr, self->size));

	munmap_assert(vaddr, self->size);
	close_assert(fd);
}

/* Nobody can get the buffer under a BAR mapping and map it differently. */
TEST_F(dmabuf_mmap, bar_mapping_cannot_be_reopened)
{
	void *bar = vfio_pci_region_mmap(self->device, self->bar, 0, page_size);
	int fd = open_mapped(bar, O_PATH);

	if (fd < 0)
		SKIP(return, "No /proc/self/map_files");

	ASSERT_EQ(-ENXIO, open_mapped(bar, O_RDWR));
	ASSERT_EQ(-ENXIO, open_mapped(bar, O_RDONLY));

	munmap_assert(bar, page_size);
	close_assert(fd);
}

/* Nor in place, where the new VMA would not be one that holds the device. */
TEST_F(dmabuf_mmap, bar_mapping_cannot_be_remapped)
{
	void *bar = vfio_pci_region_mmap(self->device, self->bar, 0,
					 2 * page_size);

	ASSERT_EQ(-1, remap_file_pages(bar, page_size, 0, 1, 0));
	ASSERT_EQ(EINVAL, errno);

	munmap_assert(bar, 2 * page_size);
}

/* A BAR of real memory, to see which page shows where. */
FIXTURE(dmabuf_memory) {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	struct vfio_client *client;
	int bar;
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
	const char *reason;

	/* Started here, the client has nothing of the device. */
	self->client = vfio_client_start();
	reason = dmabuf_test_open(device_bdf, true, NR_MANY * page_size,
				  &self->iommu, &self->device, &self->bar);
	if (reason)
		SKIP(return, "%s", reason);

	self->mem = self->device->bars[self->bar].vaddr;
	fill_pages(self->mem, 0, NR_PAGES);
}

FIXTURE_TEARDOWN(dmabuf_memory)
{
	vfio_client_stop(self->client);
	vfio_pci_device_cleanup(self->device);
	iommu_cleanup(self->iommu);
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

TEST_F(dmabuf_memory, one_range)
{
	int fd = export_pages(self, { 3, 4 });
	void *vaddr = mmap_shared(fd, 0, 4 * page_size);

	ASSERT_SHOWS(vaddr, 3, 4, 5, 6);

	munmap_assert(vaddr, 4 * page_size);
	close_assert(fd);
}

TEST_F(dmabuf_memory, ranges_in_any_order)
{
	int fd = export_pages(self, { 8, 2 }, { 2, 3 }, { 15, 1 }, { 0, 1 });
	void *vaddr = mmap_shared(fd, 0, 7 * page_size);

	ASSERT_SHOWS(vaddr, 8, 9, 2, 3, 4, 15, 0);

	munmap_assert(vaddr, 7 * page_size);
	close_assert(fd);
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

	munmap_assert(vaddr, 5 * page_size);
	close_assert(fd);
}

TEST_F(dmabuf_memory, contiguous_neighbours)
{
	int fd = export_pages(self, { 4, 2 }, { 6, 1 }, { 7, 3 });
	void *vaddr = mmap_shared(fd, 0, 6 * page_size);

	ASSERT_SHOWS(vaddr, 4, 5, 6, 7, 8, 9);

	munmap_assert(vaddr, 6 * page_size);
	close_assert(fd);
}

/* Contiguous, but laid out the other way round: nothing to merge. */
TEST_F(dmabuf_memory, reversed_neighbours)
{
	int fd = export_pages(self, { 7, 1 }, { 6, 1 }, { 5, 1 }, { 4, 1 });
	void *vaddr = mmap_shared(fd, 0, 4 * page_size);

	ASSERT_SHOWS(vaddr, 7, 6, 5, 4);

	munmap_assert(vaddr, 4 * page_size);
	close_assert(fd);
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

	munmap_assert(vaddr, 9 * page_size);
	close_assert(fd);
}

TEST_F(dmabuf_memory, offset_into_ranges)
{
	int fd = export_pages(self, { 8, 2 }, { 2, 3 }, { 12, 2 });
	void *vaddr;

	vaddr = mmap_shared(fd, page_size, 5 * page_size);
	ASSERT_SHOWS(vaddr, 9, 2, 3, 4, 12);
	munmap_assert(vaddr, 5 * page_size);

	vaddr = mmap_shared(fd, 3 * page_size, 2 * page_size);
	ASSERT_SHOWS(vaddr, 3, 4);
	munmap_assert(vaddr, 2 * page_size);

	vaddr = mmap_shared(fd, 6 * page_size, page_size);
	ASSERT_SHOWS(vaddr, 13);
	munmap_assert(vaddr, page_size);

	close_assert(fd);
}

TEST_F(dmabuf_memory, end_of_the_bar)
{
	u64 bar_pages = self->device->bars[self->bar].info.size / page_size;
	int fd = export_pages(self, { bar_pages - 2, 2 }, { 0, 1 });
	void *vaddr = mmap_shared(fd, 0, 3 * page_size);

	fill_pages(self->mem, bar_pages - 2, 2);
	ASSERT_SHOWS(vaddr, bar_pages - 2, bar_pages - 1, 0);

	munmap_assert(vaddr, 3 * page_size);
	close_assert(fd);
}

TEST_F(dmabuf_memory, many_ranges)
{
	const int nr = NR_MANY, check = 97;
	struct vfio_region_dma_range *ranges;
	void *vaddr;
	int fd, i;

	ranges = calloc_assert(nr, sizeof(*ranges));
	for (i = 0; i < nr; i++) {
		ranges[i].offset = (u64)(nr - 1 - i) * page_size;
		ranges[i].length = page_size;
	}
	fd = vfio_pci_dmabuf_export(self->device, self->bar, ranges, nr);
	vaddr = mmap_shared(fd, 0, (size_t)nr * page_size);

	for (i = 0; i < nr; i += check) {
		fill_pages(self->mem, nr - 1 - i, 1);
		ASSERT_SHOWS(vaddr + (size_t)i * page_size, nr - 1 - i);
	}
	ASSERT_EQ(0, try_touch_pages(vaddr, (size_t)nr * page_size));

	munmap_assert(vaddr, (size_t)nr * page_size);
	close_assert(fd);
	free(ranges);
}

TEST_F(dmabuf_memory, one_memory_by_every_way)
{
	u64 offset = vfio_pci_region_offset(self->device, self->bar) +
		     3 * page_size + 128;
	int fd = export_pages(self, { 3, 1 });
	void *vaddr = mmap_shared(fd, 0, page_size);
	u32 val = 0x1111;

	write32(vaddr + 128, val);
	ASSERT_EQ(val, read32(self->mem + 3 * page_size + 128));
	ASSERT_EQ(4, pread(self->device->fd, &val, 4, offset));
	ASSERT_EQ(0x1111, val);

	val = 0x2222;
	ASSERT_EQ(4, pwrite(self->device->fd, &val, 4, offset));
	ASSERT_EQ(0x2222, read32(vaddr + 128));

	write32(self->mem + 3 * page_size + 128, 0x3333);
	ASSERT_EQ(0x3333, read32(vaddr + 128));

	munmap_assert(vaddr, page_size);
	close_assert(fd);
}

TEST_F(dmabuf_memory, aliases)
{
	int fd = export_pages(self, { 4, 2 });
	int other = export_pages(self, { 5, 2 });
	int copy = dup(fd);
	void *a = mmap_shared(fd, 0, 2 * page_size);
	void *b = mmap_shared(copy, page_size, page_size);
	void *c = mmap_shared(other, 0, 2 * page_size);

	ASSERT_SHOWS(a, 4, 5);
	ASSERT_SHOWS(b, 5);
	ASSERT_SHOWS(c, 5, 6);

	write32(a + page_size + 256, 0x77);
	ASSERT_EQ(0x77, read32(b + 256));
	ASSERT_EQ(0x77, read32(c + 256));

	close_assert(fd);
	munmap_assert(a, 2 * page_size);
	ASSERT_SHOWS(b, 5);
	ASSERT_SHOWS(c, 5, 6);

	munmap_assert(b, page_size);
	munmap_assert(c, 2 * page_size);
	close_assert(copy);
	close_assert(other);
}

/* After a split, what is left must not slide. */
TEST_F(dmabuf_memory, split_keeps_offsets)
{
	int fd = export_pages(self, { 8, 2 }, { 2, 4 });
	void *vaddr = mmap_shared(fd, 0, 6 * page_size);

	munmap_assert(vaddr + 2 * page_size, page_size);
	ASSERT_SHOWS(vaddr, 8, 9);
	ASSERT_SHOWS(vaddr + 3 * page_size, 3, 4, 5);

	munmap_assert(vaddr, 6 * page_size);
	close_assert(fd);
}

TEST_F(dmabuf_memory, split_bar_mapping_keeps_offsets)
{
	void *vaddr = vfio_pci_region_mmap(self->device, self->bar,
					   2 * page_size, 6 * page_size);

	munmap_assert(vaddr + 2 * page_size, page_size);
	ASSERT_SHOWS(vaddr, 2, 3);
	ASSERT_SHOWS(vaddr + 3 * page_size, 5, 6, 7);

	munmap_assert(vaddr, 6 * page_size);
}

TEST_F(dmabuf_memory, mremap_moves_and_shrinks)
{
	int fd = export_pages(self, { 8, 2 }, { 2, 4 });
	void *vaddr = mmap_shared(fd, page_size, 5 * page_size);
	void *target = mmap_reserve(5 * page_size, page_size, 0);
	void *moved;

	ASSERT_SHOWS(vaddr, 9, 2);

	moved = mremap(vaddr, 5 * page_size, 5 * page_size,
		       MREMAP_MAYMOVE | MREMAP_FIXED, target);
	ASSERT_EQ(target, moved);
	ASSERT_EQ(SIGSEGV, try_touch_pages(vaddr, 5 * page_size));
	ASSERT_SHOWS(moved, 9, 2, 3, 4, 5);

	ASSERT_EQ(moved, mremap(moved, 5 * page_size, 3 * page_size, 0));
	ASSERT_SHOWS(moved, 9, 2, 3);
	ASSERT_EQ(SIGSEGV, try_touch(moved + 3 * page_size));

	munmap_assert(moved, 3 * page_size);
	close_assert(fd);
}

/* A part of a mapping, moved elsewhere, goes on showing what it did. */
TEST_F(dmabuf_memory, mremap_of_a_part)
{
	int fd = export_pages(self, { 8, 2 }, { 2, 4 });
	void *vaddr = mmap_shared(fd, 0, 6 * page_size);
	void *target = mmap_reserve(2 * page_size, page_size, 0);

	ASSERT_EQ(target, mremap(vaddr + page_size, 2 * page_size,
				 2 * page_size, MREMAP_MAYMOVE | MREMAP_FIXED,
				 target));
	ASSERT_SHOWS(vaddr, 8);
	ASSERT_SHOWS(target, 9, 2);
	ASSERT_SHOWS(vaddr + 3 * page_size, 3, 4, 5);

	munmap_assert(target, 2 * page_size);
	munmap_assert(vaddr, 6 * page_size);
	close_assert(fd);
}

TEST_F(dmabuf_memory, client_has_only_the_fd)
{
	int fd = export_pages(self, { 8, 1 }, { 2, 2 });
	u32 val;

	vfio_client_mmap(self->client, fd, 0, 3 * page_size);
	close_assert(fd);

	ASSERT_EQ(0, vfio_client_read32(self->client, 0, &val));
	ASSERT_EQ(page_tag(8), val);
	ASSERT_EQ(0, vfio_client_read32(self->client, 2 * page_size, &val));
	ASSERT_EQ(page_tag(3), val);

	ASSERT_EQ(0, vfio_client_write32(self->client, page_size + 64, 0x99));
	ASSERT_EQ(0x99, read32(self->mem + 2 * page_size + 64));
}

TEST_F(dmabuf_memory, client_cannot_map_more)
{
	int fd = export_pages(self, { 8, 2 });

	ASSERT_EQ(-EINVAL, __vfio_client_mmap(self->client, fd, 0,
					      3 * page_size));
	ASSERT_EQ(-EINVAL, __vfio_client_mmap(self->client, fd, 2 * page_size,
					      page_size));
	ASSERT_EQ(0, __vfio_client_mmap(self->client, fd, page_size,
					page_size));

	close_assert(fd);
}

static int write_in_child(void *arg)
{
	return try_write32(arg, 0x4444);
}

TEST_F(dmabuf_memory, child_writes_for_parent)
{
	int fd = export_pages(self, { 8, 1 });
	void *vaddr = mmap_shared(fd, 0, page_size);

	ASSERT_EQ(0, run_in_child(write_in_child, vaddr + 512));
	ASSERT_EQ(0x4444, read32(vaddr + 512));

	munmap_assert(vaddr, page_size);
	close_assert(fd);
}

/*
 * BARs smaller than a page: the page they are on can be mapped if nobody else
 * is on it, but a DMABUF, made of whole pages, does not fit.
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

	self->size = self->device->bars[self->bar].info.size;
	self->offset = vfio_pci_region_offset(self->device, self->bar);
}

FIXTURE_TEARDOWN(subpage_bar)
{
	vfio_pci_device_cleanup(self->device);
	iommu_cleanup(self->iommu);
}

TEST_F(subpage_bar, mmap)
{
	void *vaddr = mmap_shared(self->device->fd, self->offset, self->size);
	void *page = mmap_shared(self->device->fd, self->offset, page_size);
	u32 val;

	ASSERT_EQ(4, pread(self->device->fd, &val, 4, self->offset));
	ASSERT_EQ(val, read32(vaddr));
	ASSERT_EQ(val, read32(page));

	munmap_assert(vaddr, self->size);
	munmap_assert(page, page_size);
}

TEST_F(subpage_bar, mmap_is_one_page)
{
	void *vaddr;

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

	munmap_assert(vaddr, self->size);
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

TEST_F(subpage_bar, mapping_keeps_device_open)
{
	void *vaddr = mmap_shared(self->device->fd, self->offset, self->size);

	vfio_pci_device_cleanup(self->device);
	ASSERT_EQ(0, try_touch(vaddr));
	munmap_assert(vaddr, self->size);

	self->device = vfio_pci_device_init(device_bdf, self->iommu);
}

int main(int argc, char *argv[])
{
	page_size = getpagesize();
	device_bdf = vfio_selftests_get_bdf(&argc, argv);
	return test_harness_run(argc, argv);
}
