// SPDX-License-Identifier: GPL-2.0-only
/*
 * VFIO_DEVICE_PCI_DMABUF_REVOKE: it takes one DMABUF away from all who have it
 * mapped, for good, and touches nothing else.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/dma-buf.h>
#include <linux/sizes.h>
#include <linux/udmabuf.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "kselftest_harness.h"

static const char *device_bdf;

static size_t page_size;

#define NR_PAGES 16

FIXTURE(dmabuf_revoke) {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	struct vfio_client *client;
	int bar;
	size_t size;
	int fd;
};

FIXTURE_SETUP(dmabuf_revoke)
{
	const char *reason;

	self->client = vfio_client_start();
	reason = dmabuf_test_open(device_bdf, false, 4 * page_size,
				  &self->iommu, &self->device, &self->bar);
	if (reason)
		SKIP(return, "%s", reason);

	self->size = min_t(u64, self->device->bars[self->bar].info.size,
			   NR_PAGES * page_size);
	self->fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						self->size);
}

FIXTURE_TEARDOWN(dmabuf_revoke)
{
	vfio_client_stop(self->client);
	close_assert(self->fd);
	vfio_pci_device_cleanup(self->device);
	iommu_cleanup(self->iommu);
}

TEST_F(dmabuf_revoke, mapping_faults)
{
	void *vaddr = mmap_shared(self->fd, 0, self->size);

	ASSERT_EQ(0, try_touch_pages(vaddr, self->size));
	ASSERT_EQ(0, __vfio_pci_dmabuf_revoke(self->device, self->fd));

	ASSERT_EQ(SIGBUS, try_touch_pages(vaddr, self->size));
	ASSERT_EQ(SIGBUS, try_write32(vaddr + self->size - 4, 0));
	ASSERT_EQ(-EFAULT, pipe_write(vaddr));

	munmap_assert(vaddr, self->size);
}

/* The first fault of a mapping finds the buffer revoked. */
TEST_F(dmabuf_revoke, untouched_mapping_faults)
{
	void *vaddr = mmap_shared(self->fd, 0, self->size);

	vfio_pci_dmabuf_revoke(self->device, self->fd);
	ASSERT_EQ(SIGBUS, try_touch_pages(vaddr, self->size));

	munmap_assert(vaddr, self->size);
}

TEST_F(dmabuf_revoke, every_alias_faults)
{
	int copy = dup(self->fd);
	void *whole = mmap_shared(self->fd, 0, self->size);
	void *again = mmap_shared(copy, 0, self->size);
	void *end = mmap_shared(self->fd, self->size - page_size, page_size);
	void *split = mmap_shared(self->fd, page_size, 3 * page_size);

	munmap_assert(split + page_size, page_size);

	ASSERT_EQ(0, try_touch_pages(whole, self->size));
	ASSERT_EQ(0, try_touch_pages(again, self->size));
	ASSERT_EQ(0, try_touch(end));
	ASSERT_EQ(0, try_touch(split));
	ASSERT_EQ(0, try_touch(split + 2 * page_size));

	/* By another name, and with the first one gone. */
	close_assert(self->fd);
	self->fd = copy;
	vfio_pci_dmabuf_revoke(self->device, copy);

	ASSERT_EQ(SIGBUS, try_touch_pages(whole, self->size));
	ASSERT_EQ(SIGBUS, try_touch_pages(again, self->size));
	ASSERT_EQ(SIGBUS, try_touch(end));
	ASSERT_EQ(SIGBUS, try_touch(split));
	ASSERT_EQ(SIGBUS, try_touch(split + 2 * page_size));

	munmap_assert(whole, self->size);
	munmap_assert(again, self->size);
	munmap_assert(end, page_size);
	munmap_assert(split, 3 * page_size);
}

TEST_F(dmabuf_revoke, huge_mapping_faults)
{
	size_t bar_size = self->device->bars[self->bar].info.size;
	size_t size = min_t(size_t, bar_size, SZ_4M);
	int fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0, size);
	void *huge = mmap_shared_aligned(fd, 0, size, SZ_2M, 0);
	void *small = mmap_shared_aligned(fd, 0, size, SZ_2M, page_size);

	ASSERT_EQ(0, try_touch_pages(huge, size));
	ASSERT_EQ(0, try_touch_pages(small, size));
	vfio_pci_dmabuf_revoke(self->device, fd);
	ASSERT_EQ(SIGBUS, try_touch_pages(huge, size));
	ASSERT_EQ(SIGBUS, try_touch_pages(small, size));

	munmap_assert(huge, size);
	munmap_assert(small, size);
	close_assert(fd);
}

TEST_F(dmabuf_revoke, multi_range_mapping_faults)
{
	struct vfio_region_dma_range ranges[] = {
		{ 2 * page_size, 2 * page_size },
		{ 0, page_size },
		{ page_size, 2 * page_size },
	};
	size_t size = 5 * page_size;
	int fd = vfio_pci_dmabuf_export(self->device, self->bar, ranges,
					ARRAY_SIZE(ranges));
	void *vaddr = mmap_shared(fd, 0, size);

	ASSERT_EQ(0, try_touch_pages(vaddr, size));
	vfio_pci_dmabuf_revoke(self->device, fd);
	ASSERT_EQ(SIGBUS, try_touch_pages(vaddr, size));

	munmap_assert(vaddr, size);
	close_assert(fd);
}

TEST_F(dmabuf_revoke, client_faults)
{
	vfio_client_mmap(self->client, self->fd, page_size, 2 * page_size);

	ASSERT_EQ(0, vfio_client_read32(self->client, 0, NULL));
	ASSERT_EQ(0, vfio_client_read32(self->client, page_size, NULL));

	vfio_pci_dmabuf_revoke(self->device, self->fd);

	ASSERT_EQ(SIGBUS, vfio_client_read32(self->client, 0, NULL));
	ASSERT_EQ(SIGBUS, vfio_client_read32(self->client, page_size, NULL));
	ASSERT_EQ(SIGBUS, vfio_client_write32(self->client, page_size, 0));

	ASSERT_EQ(-ENODEV, __vfio_client_mmap(self->client, self->fd, 0,
					      page_size));
}

/* Holding a slice gives no power over it: that takes the device. */
TEST_F(dmabuf_revoke, client_cannot_revoke)
{
	void *vaddr = mmap_shared(self->fd, 0, self->size);

	ASSERT_EQ(-ENOTTY, vfio_client_revoke(self->client, self->fd,
					      self->fd));
	ASSERT_EQ(0, try_touch_pages(vaddr, self->size));

	munmap_assert(vaddr, self->size);
}

/* The power comes with the device fd, not with the process that opened it. */
TEST_F(dmabuf_revoke, whoever_has_the_device_fd_revokes)
{
	void *vaddr = mmap_shared(self->fd, 0, self->size);

	ASSERT_EQ(0, try_touch_pages(vaddr, self->size));
	ASSERT_EQ(0, vfio_client_revoke(self->client, self->device->fd,
					self->fd));
	ASSERT_EQ(SIGBUS, try_touch_pages(vaddr, self->size));

	munmap_assert(vaddr, self->size);
}

TEST_F(dmabuf_revoke, forked_child_faults)
{
	void *vaddr = mmap_shared(self->fd, 0, 4 * page_size);

	ASSERT_EQ(0, touch_pages_in_child(vaddr, 4 * page_size));
	vfio_pci_dmabuf_revoke(self->device, self->fd);
	ASSERT_EQ(SIGBUS, touch_pages_in_child(vaddr, 4 * page_size));

	munmap_assert(vaddr, 4 * page_size);
}

/* Also in a mapping that has no fd and no address of its time any more. */
TEST_F(dmabuf_revoke, moved_mapping_faults)
{
	void *vaddr = mmap_shared(self->fd, page_size, 2 * page_size);
	void *target = mmap_reserve(2 * page_size, page_size, 0);

	ASSERT_EQ(0, try_touch_pages(vaddr, 2 * page_size));
	ASSERT_EQ(target, mremap(vaddr, 2 * page_size, 2 * page_size,
				 MREMAP_MAYMOVE | MREMAP_FIXED, target));
	ASSERT_EQ(0, try_touch_pages(target, 2 * page_size));

	vfio_pci_dmabuf_revoke(self->device, self->fd);
	ASSERT_EQ(SIGBUS, try_touch_pages(target, 2 * page_size));

	munmap_assert(target, 2 * page_size);
}

TEST_F(dmabuf_revoke, second_revoke)
{
	int copy = dup(self->fd);

	vfio_pci_dmabuf_revoke(self->device, self->fd);
	ASSERT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(self->device, self->fd));
	ASSERT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(self->device, copy));

	close_assert(copy);
}

TEST_F(dmabuf_revoke, mmap_after_revoke)
{
	void *vaddr;

	vfio_pci_dmabuf_revoke(self->device, self->fd);
	ASSERT_EQ(-ENODEV, __mmap_shared(self->fd, 0, self->size,
					 PROT_READ | PROT_WRITE, &vaddr));
	ASSERT_EQ(-ENODEV, __mmap_shared(self->fd, page_size, page_size,
					 PROT_READ, &vaddr));
}

TEST_F(dmabuf_revoke, export_again)
{
	void *old = mmap_shared(self->fd, 0, self->size);
	void *new;
	int fd;

	ASSERT_EQ(0, try_touch_pages(old, self->size));
	vfio_pci_dmabuf_revoke(self->device, self->fd);

	fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
					  self->size);
	new = mmap_shared(fd, 0, self->size);
	ASSERT_EQ(0, try_touch_pages(new, self->size));
	ASSERT_EQ(SIGBUS, try_touch_pages(old, self->size));

	munmap_assert(old, self->size);
	munmap_assert(new, self->size);
	close_assert(fd);
}

/* What else shows the same pages is not disturbed, by a fault neither. */
TEST_F(dmabuf_revoke, others_are_left_alone)
{
	int other_fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						    self->size);
	void *vaddr = mmap_shared(self->fd, 0, self->size);
	void *other = mmap_shared(other_fd, 0, self->size);
	void *bar = vfio_pci_region_mmap(self->device, self->bar, 0,
					 self->size);
	u64 faults;

	ASSERT_EQ(0, try_touch_pages(vaddr, self->size));
	ASSERT_EQ(0, try_touch_pages(other, self->size));
	ASSERT_EQ(0, try_touch_pages(bar, self->size));

	vfio_pci_dmabuf_revoke(self->device, self->fd);

	faults = nr_page_faults();
	ASSERT_EQ(0, try_touch_pages(other, self->size));
	ASSERT_EQ(0, try_touch_pages(bar, self->size));
	ASSERT_EQ(faults, nr_page_faults());
	ASSERT_EQ(SIGBUS, try_touch_pages(vaddr, self->size));

	munmap_assert(vaddr, self->size);
	munmap_assert(other, self->size);
	munmap_assert(bar, self->size);
	close_assert(other_fd);
}

/* Nothing of a revoke is undone by what gives access back to the device. */
TEST_F(dmabuf_revoke, stays_revoked)
{
	void *vaddr = mmap_shared(self->fd, 0, self->size);

	vfio_pci_dmabuf_revoke(self->device, self->fd);

	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(SIGBUS, try_touch_pages(vaddr, self->size));

	if (self->device->info.flags & VFIO_DEVICE_FLAGS_RESET)
		vfio_pci_device_reset(self->device);
	ASSERT_EQ(SIGBUS, try_touch_pages(vaddr, self->size));
	ASSERT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(self->device, self->fd));

	munmap_assert(vaddr, self->size);
}

/* A buffer that lost access with its device is revoked on top of that. */
TEST_F(dmabuf_revoke, while_memory_is_disabled)
{
	void *vaddr = mmap_shared(self->fd, 0, self->size);
	void *again;

	ASSERT_EQ(0, try_touch_pages(vaddr, self->size));

	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(SIGBUS, try_touch_pages(vaddr, self->size));
	ASSERT_EQ(0, __vfio_pci_dmabuf_revoke(self->device, self->fd));
	ASSERT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(self->device, self->fd));
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);

	ASSERT_EQ(SIGBUS, try_touch_pages(vaddr, self->size));
	ASSERT_EQ(-ENODEV, __mmap_shared(self->fd, 0, self->size, PROT_READ,
					 &again));
	ASSERT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(self->device, self->fd));

	munmap_assert(vaddr, self->size);
}

TEST_F(dmabuf_revoke, many_rounds)
{
	int i;

	for (i = 0; i < 100; i++) {
		int fd = vfio_pci_dmabuf_export_range(self->device, self->bar,
						      0, self->size);
		void *vaddr = mmap_shared(fd, 0, self->size);

		ASSERT_EQ(0, try_touch(vaddr));
		vfio_pci_dmabuf_revoke(self->device, fd);
		ASSERT_EQ(SIGBUS, try_touch(vaddr));

		munmap_assert(vaddr, self->size);
		close_assert(fd);
	}
}

/* The interface itself: one line of its documentation each. */

static int revoke_ioctl(struct vfio_pci_device *device, void *arg)
{
	if (ioctl(device->fd, VFIO_DEVICE_PCI_DMABUF_REVOKE, arg))
		return -errno;

	return 0;
}

TEST_F(dmabuf_revoke, uapi_layout)
{
	ASSERT_EQ(8, sizeof(struct vfio_pci_dmabuf_revoke));
	ASSERT_EQ(4, offsetof(struct vfio_pci_dmabuf_revoke, dmabuf_fd));
	ASSERT_EQ(_IO(VFIO_TYPE, VFIO_BASE + 22),
		  VFIO_DEVICE_PCI_DMABUF_REVOKE);
}

TEST_F(dmabuf_revoke, argsz_too_small)
{
	static const u32 bad[] = { 0, 1, 4, 7 };
	struct vfio_pci_dmabuf_revoke args = { .dmabuf_fd = self->fd };
	void *vaddr = mmap_shared(self->fd, 0, self->size);
	int i;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		args.argsz = bad[i];
		ASSERT_EQ(-EINVAL, revoke_ioctl(self->device, &args));
	}
	ASSERT_EQ(0, try_touch_pages(vaddr, self->size));

	args.argsz = 8;
	ASSERT_EQ(0, revoke_ioctl(self->device, &args));
	ASSERT_EQ(SIGBUS, try_touch_pages(vaddr, self->size));

	munmap_assert(vaddr, self->size);
}

/* A struct from the future: what is known of it is used. */
TEST_F(dmabuf_revoke, argsz_larger)
{
	static const u32 sizes[] = { 9, 12, 16, 4096, UINT32_MAX };
	char buf[4096];
	struct vfio_pci_dmabuf_revoke *args = (void *)buf;
	int garbage, i;

	for (garbage = 0; garbage < 2; garbage++) {
		for (i = 0; i < ARRAY_SIZE(sizes); i++) {
			int fd = vfio_pci_dmabuf_export_range(self->device,
							      self->bar, 0,
							      page_size);

			memset(buf, garbage ? 0xa5 : 0, sizeof(buf));
			args->argsz = sizes[i];
			args->dmabuf_fd = fd;
			ASSERT_EQ(0, revoke_ioctl(self->device, args));
			ASSERT_EQ(-EBADFD, revoke_ioctl(self->device, args));
			close_assert(fd);
		}
	}
}

TEST_F(dmabuf_revoke, unreadable_argument)
{
	void *pages = mmap(NULL, 2 * page_size, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct vfio_pci_dmabuf_revoke *args;

	ASSERT_NE(MAP_FAILED, pages);
	ASSERT_EQ(-EFAULT, revoke_ioctl(self->device, NULL));
	ASSERT_EQ(-EFAULT, revoke_ioctl(self->device, (void *)-8UL));

	/* argsz can be read, the fd behind it cannot */
	args = pages + page_size - sizeof(u32);
	args->argsz = sizeof(*args);
	ASSERT_EQ(0, mprotect(pages + page_size, page_size, PROT_NONE));
	ASSERT_EQ(-EFAULT, revoke_ioctl(self->device, args));

	munmap_assert(pages, 2 * page_size);
}

/* The argument is input only. */
TEST_F(dmabuf_revoke, read_only_argument)
{
	struct vfio_pci_dmabuf_revoke *args;

	args = mmap(NULL, page_size, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, args);

	args->argsz = sizeof(*args);
	args->dmabuf_fd = self->fd;
	ASSERT_EQ(0, mprotect(args, page_size, PROT_READ));
	ASSERT_EQ(0, revoke_ioctl(self->device, args));

	munmap_assert(args, page_size);
}

TEST_F(dmabuf_revoke, fd_not_open)
{
	int closed = dup(self->fd);

	close_assert(closed);

	ASSERT_EQ(-EBADF, __vfio_pci_dmabuf_revoke(self->device, -1));
	ASSERT_EQ(-EBADF, __vfio_pci_dmabuf_revoke(self->device, INT32_MIN));
	ASSERT_EQ(-EBADF, __vfio_pci_dmabuf_revoke(self->device, INT32_MAX));
	ASSERT_EQ(-EBADF, __vfio_pci_dmabuf_revoke(self->device, closed));
}

TEST_F(dmabuf_revoke, fd_is_no_dmabuf)
{
	int file = open("/dev/null", O_RDWR | O_CLOEXEC);
	int memfd = memfd_create("revoke", MFD_CLOEXEC);

	ASSERT_GE(file, 0);
	ASSERT_GE(memfd, 0);

	ASSERT_EQ(-EINVAL, __vfio_pci_dmabuf_revoke(self->device, file));
	ASSERT_EQ(-EINVAL, __vfio_pci_dmabuf_revoke(self->device, memfd));
	ASSERT_EQ(-EINVAL, __vfio_pci_dmabuf_revoke(self->device,
						    self->device->fd));
	ASSERT_EQ(-EINVAL, __vfio_pci_dmabuf_revoke(self->device,
						    self->iommu->iommufd));

	close_assert(file);
	close_assert(memfd);
}

/* An O_PATH descriptor names a file without opening it. */
TEST_F(dmabuf_revoke, fd_is_o_path)
{
	void *vaddr = mmap_shared(self->fd, 0, self->size);
	int fd = open_o_path(self->fd);

	ASSERT_EQ(-EBADF, __vfio_pci_dmabuf_revoke(self->device, fd));
	ASSERT_EQ(0, try_touch_pages(vaddr, self->size));

	munmap_assert(vaddr, self->size);
	close_assert(fd);
}

/* Returns the fd of a DMABUF of the udmabuf driver, or -1 */
static int udmabuf_create(void)
{
	struct udmabuf_create create = {
		.flags = UDMABUF_FLAGS_CLOEXEC,
		.size = page_size,
	};
	int udmabuf, fd;

	udmabuf = open("/dev/udmabuf", O_RDWR | O_CLOEXEC);
	if (udmabuf < 0)
		return -1;

	create.memfd = memfd_create("udmabuf", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	VFIO_ASSERT_GE((int)create.memfd, 0);
	VFIO_ASSERT_EQ(ftruncate(create.memfd, page_size), 0);
	VFIO_ASSERT_EQ(fcntl(create.memfd, F_ADD_SEALS, F_SEAL_SHRINK), 0);

	fd = ioctl(udmabuf, UDMABUF_CREATE, &create);
	VFIO_ASSERT_GE(fd, 0);

	close_assert(create.memfd);
	close_assert(udmabuf);

	return fd;
}

TEST_F(dmabuf_revoke, dmabuf_of_another_exporter)
{
	int fd = udmabuf_create();
	void *vaddr;

	if (fd < 0)
		SKIP(return, "No /dev/udmabuf");

	vaddr = mmap_shared(fd, 0, page_size);
	ASSERT_EQ(-ENODEV, __vfio_pci_dmabuf_revoke(self->device, fd));
	ASSERT_EQ(0, try_touch(vaddr));

	munmap_assert(vaddr, page_size);
	close_assert(fd);
}

TEST_F(dmabuf_revoke, dmabuf_of_another_device)
{
	const char *bdf = vfio_selftests_get_other_bdf(device_bdf);
	void *vaddr = mmap_shared(self->fd, 0, self->size);
	struct vfio_pci_device *other;

	if (!bdf)
		SKIP(return, "No second device");

	other = vfio_pci_device_init(bdf, self->iommu);

	ASSERT_EQ(0, try_touch_pages(vaddr, self->size));
	ASSERT_EQ(-ENODEV, __vfio_pci_dmabuf_revoke(other, self->fd));
	ASSERT_EQ(0, try_touch_pages(vaddr, self->size));

	/* Nor does it tell whether the buffer is revoked already. */
	vfio_pci_dmabuf_revoke(self->device, self->fd);
	ASSERT_EQ(-ENODEV, __vfio_pci_dmabuf_revoke(other, self->fd));

	vfio_pci_device_cleanup(other);
	munmap_assert(vaddr, self->size);
}

TEST_F(dmabuf_revoke, device_closed_and_reopened)
{
	vfio_pci_device_cleanup(self->device);
	self->device = vfio_pci_device_init(device_bdf, self->iommu);

	ASSERT_EQ(-ENODEV, __vfio_pci_dmabuf_revoke(self->device, self->fd));
}

/* Revoked for good or not: after the close of its device a buffer has none. */
TEST_F(dmabuf_revoke, revoked_before_device_closed)
{
	vfio_pci_dmabuf_revoke(self->device, self->fd);
	vfio_pci_device_cleanup(self->device);
	self->device = vfio_pci_device_init(device_bdf, self->iommu);

	ASSERT_EQ(-ENODEV, __vfio_pci_dmabuf_revoke(self->device, self->fd));
}

/* Without a bound iommufd the device file gives access to nothing. */
TEST_F(dmabuf_revoke, device_not_bound)
{
	const char *path = vfio_pci_get_cdev_path(device_bdf);
	int fd = open(path, O_RDWR | O_CLOEXEC);

	ASSERT_GE(fd, 0);
	ASSERT_EQ(-EINVAL, __vfio_pci_dmabuf_revoke_fd(fd, self->fd));
	ASSERT_EQ(0, __vfio_pci_dmabuf_revoke(self->device, self->fd));

	close_assert(fd);
	free((void *)path);
}

/*
 * What can be done with a DMABUF fd is for importers to ask of the exporter.
 * Number 4 was once proposed as a revoke; it has to stay unknown.
 */
TEST_F(dmabuf_revoke, no_ioctl_of_the_dmabuf_revokes)
{
	struct vfio_pci_dmabuf_revoke args = {
		.argsz = sizeof(args),
		.dmabuf_fd = self->fd,
	};
	void *vaddr = mmap_shared(self->fd, 0, self->size);

	ASSERT_EQ(0, try_touch_pages(vaddr, self->size));

	ASSERT_EQ(-1, ioctl(self->fd, _IO(DMA_BUF_BASE, 4), NULL));
	ASSERT_EQ(ENOTTY, errno);
	ASSERT_EQ(-1, ioctl(self->fd, _IO(DMA_BUF_BASE, 4), &args));
	ASSERT_EQ(ENOTTY, errno);
	ASSERT_EQ(-1, ioctl(self->fd, VFIO_DEVICE_PCI_DMABUF_REVOKE, &args));
	ASSERT_EQ(ENOTTY, errno);

	ASSERT_EQ(0, try_touch_pages(vaddr, self->size));
	munmap_assert(vaddr, self->size);
}

int main(int argc, char *argv[])
{
	page_size = getpagesize();
	device_bdf = vfio_selftests_get_bdf(&argc, argv);
	return test_harness_run(argc, argv);
}
