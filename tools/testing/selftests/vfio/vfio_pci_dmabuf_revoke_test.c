// SPDX-License-Identifier: GPL-2.0-only
/*
 * VFIO_DEVICE_PCI_DMABUF_REVOKE: it ends every mapping of one DMABUF permanently,
 * and touches nothing else.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/dma-buf.h>
#include <linux/sizes.h>
#include <linux/udmabuf.h>
#include <linux/vfio.h>

#include <libvfio/dmabuf_test.h>

#include "kselftest_harness.h"

#define NR_PAGES 16

FIXTURE(dmabuf_revoke) {
	DMABUF_FIXTURE;
	struct vfio_client *client;
	size_t size;
	int fd;
	void *vaddr;
};

FIXTURE_SETUP(dmabuf_revoke)
{
	self->client = vfio_client_start();
	DMABUF_SETUP(self, false, 4 * page_size);
	self->size = min_t(u64, self->bar_size, NR_PAGES * page_size);
	self->fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						self->size);
	self->vaddr = mmap_shared(self->fd, 0, self->size);
}

FIXTURE_TEARDOWN(dmabuf_revoke)
{
	vfio_client_stop(self->client);
}

/* Is the DMABUF in use, or revoked for everybody and every kind of access? */
#define ASSERT_USABLE(_self)							\
	ASSERT_EQ(0, try_touch_pages((_self)->vaddr, (_self)->size))
#define ASSERT_REVOKED(_self) do {						\
	void *__again;								\
										\
	ASSERT_EQ(SIGBUS, try_touch_pages((_self)->vaddr, (_self)->size));	\
	ASSERT_EQ(SIGBUS, try_write32((_self)->vaddr + (_self)->size - 4, 0));	\
	ASSERT_EQ(-EFAULT, pipe_write((_self)->vaddr));				\
	ASSERT_EQ(-ENODEV, __mmap_shared((_self)->fd, page_size, page_size,	\
					 PROT_READ, &__again));			\
	ASSERT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke((_self)->device,		\
						    (_self)->fd));		\
} while (0)

TEST_F(dmabuf_revoke, touched_or_not)
{
	void *untouched = mmap_shared(self->fd, 0, self->size);

	ASSERT_USABLE(self);
	ASSERT_EQ(0, __vfio_pci_dmabuf_revoke(self->device, self->fd));
	ASSERT_REVOKED(self);
	ASSERT_EQ(SIGBUS, try_touch_pages(untouched, self->size));
}

/* Whole, in part, split, moved, by another fd, and in a child */
TEST_F(dmabuf_revoke, every_alias_faults)
{
	int copy = dup(self->fd);
	void *again = mmap_shared(copy, 0, self->size);
	void *end = mmap_shared(self->fd, self->size - page_size, page_size);
	void *split = mmap_shared(self->fd, page_size, 3 * page_size);
	void *old = mmap_shared(self->fd, page_size, 2 * page_size);
	void *moved = mmap_reserve(2 * page_size, page_size, 0);
	const struct {
		void *vaddr;
		size_t size;
	} maps[] = {
		{ self->vaddr, self->size }, { again, self->size },
		{ end, page_size }, { split, page_size },
		{ split + 2 * page_size, page_size }, { moved, 2 * page_size },
	};
	int i;

	munmap_assert(split + page_size, page_size);
	ASSERT_EQ(0, try_touch_pages(old, 2 * page_size));
	ASSERT_EQ(moved, mremap(old, 2 * page_size, 2 * page_size,
				MREMAP_MAYMOVE | MREMAP_FIXED, moved));
	for (i = 0; i < ARRAY_SIZE(maps); i++)
		ASSERT_EQ(0, try_touch_pages(maps[i].vaddr, maps[i].size));
	ASSERT_EQ(0, touch_pages_in_child(self->vaddr, self->size));

	close_assert(self->fd);
	self->fd = copy;
	vfio_pci_dmabuf_revoke(self->device, copy);
	for (i = 0; i < ARRAY_SIZE(maps); i++) {
		ASSERT_EQ(SIGBUS, try_touch_pages(maps[i].vaddr,
						  maps[i].size)) {
			TH_LOG("mapping %d", i);
		}
	}
	ASSERT_EQ(SIGBUS, touch_pages_in_child(self->vaddr, self->size));
	ASSERT_REVOKED(self);
}

TEST_F(dmabuf_revoke, large_and_small_pages)
{
	size_t size = min_t(size_t, self->bar_size, SZ_4M);
	int fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0, size);
	void *large = mmap_shared_aligned(fd, 0, size, SZ_2M, 0);
	void *small = mmap_shared_aligned(fd, 0, size, SZ_2M, page_size);

	ASSERT_EQ(0, try_touch_pages(large, size));
	ASSERT_EQ(0, try_touch_pages(small, size));
	vfio_pci_dmabuf_revoke(self->device, fd);
	ASSERT_EQ(SIGBUS, try_touch_pages(large, size));
	ASSERT_EQ(SIGBUS, try_touch_pages(small, size));
}

TEST_F(dmabuf_revoke, multi_range_mapping)
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

/*
 * The right to revoke comes with the device fd: not with the DMABUF, nor with the
 * process that opened the device.
 */
TEST_F(dmabuf_revoke, right_to_revoke)
{
	ASSERT_EQ(-ENOTTY, vfio_client_revoke(self->client, self->fd,
					      self->fd));
	ASSERT_USABLE(self);
	ASSERT_EQ(0, vfio_client_revoke(self->client, self->device->fd,
					self->fd));
	ASSERT_REVOKED(self);
}

/* What else maps the same pages is not disturbed, by a fault neither. */
TEST_F(dmabuf_revoke, others_are_left_alone)
{
	int other_fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						    self->size);
	void *other = mmap_shared(other_fd, 0, self->size);
	void *bar = self->device->bars[self->bar].vaddr;
	u64 faults;
	int i;

	ASSERT_USABLE(self);
	ASSERT_EQ(0, try_touch_pages(other, self->size));
	ASSERT_EQ(0, try_touch_pages(bar, self->size));

	/* Also of what is exported later, many times */
	for (i = 0; i < 100; i++) {
		vfio_pci_dmabuf_revoke(self->device, self->fd);
		faults = nr_page_faults();
		ASSERT_EQ(0, try_touch_pages(other, self->size));
		ASSERT_EQ(0, try_touch_pages(bar, self->size));
		ASSERT_EQ(faults, nr_page_faults());
		ASSERT_REVOKED(self);

		munmap_assert(self->vaddr, self->size);
		close_assert(self->fd);
		self->fd = vfio_pci_dmabuf_export_range(self->device, self->bar,
							0, self->size);
		self->vaddr = mmap_shared(self->fd, 0, self->size);
		ASSERT_USABLE(self);
	}
}

/* A revoke is not undone by what gives access back to the device. */
TEST_F(dmabuf_revoke, stays_revoked)
{
	vfio_pci_dmabuf_revoke(self->device, self->fd);
	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	ASSERT_REVOKED(self);
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	ASSERT_REVOKED(self);
	if (self->device->info.flags & VFIO_DEVICE_FLAGS_RESET)
		vfio_pci_device_reset(self->device);
	ASSERT_REVOKED(self);
}

/* Not even if access was away when the buffer was revoked */
TEST_F(dmabuf_revoke, while_memory_is_disabled)
{
	ASSERT_USABLE(self);
	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(SIGBUS, try_touch_pages(self->vaddr, self->size));
	ASSERT_EQ(0, __vfio_pci_dmabuf_revoke(self->device, self->fd));
	ASSERT_REVOKED(self);
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	ASSERT_REVOKED(self);
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
	int i;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		args.argsz = bad[i];
		ASSERT_EQ(-EINVAL, revoke_ioctl(self->device, &args));
	}
	ASSERT_USABLE(self);

	args.argsz = 8;
	ASSERT_EQ(0, revoke_ioctl(self->device, &args));
	ASSERT_REVOKED(self);
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

/* The argument is input only, and all of it has to be readable. */
TEST_F(dmabuf_revoke, memory_of_argument)
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

	args = pages;
	args->argsz = sizeof(*args);
	args->dmabuf_fd = self->fd;
	ASSERT_EQ(0, mprotect(pages, page_size, PROT_READ));
	ASSERT_EQ(0, revoke_ioctl(self->device, args));
}

/* An O_PATH descriptor names a file without opening it. */
TEST_F(dmabuf_revoke, bad_fd)
{
	int closed = dup(self->fd);
	const struct {
		int fd;
		int error;
	} bad[] = {
		{ -1, EBADF },
		{ INT32_MIN, EBADF },
		{ INT32_MAX, EBADF },
		{ open_o_path(self->fd), EBADF },
		{ closed, EBADF },
		{ open("/dev/null", O_RDWR | O_CLOEXEC), EINVAL },
		{ memfd_create("revoke", MFD_CLOEXEC), EINVAL },
		{ self->device->fd, EINVAL },
		{ self->iommu->iommufd, EINVAL },
	};
	int i;

	close_assert(closed);
	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		ASSERT_EQ(-bad[i].error,
			  __vfio_pci_dmabuf_revoke(self->device, bad[i].fd)) {
			TH_LOG("fd %d, number %d", bad[i].fd, i);
		}
	}
	ASSERT_USABLE(self);
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
}

TEST_F(dmabuf_revoke, dmabuf_of_another_device)
{
	const char *bdf = vfio_selftests_get_other_bdf(device_bdf);
	struct vfio_pci_device *other;

	if (!bdf)
		SKIP(return, "No second device");

	other = vfio_pci_device_init(bdf, self->iommu);

	ASSERT_EQ(-ENODEV, __vfio_pci_dmabuf_revoke(other, self->fd));
	ASSERT_USABLE(self);

	/* Nor does it report whether the buffer is revoked already. */
	vfio_pci_dmabuf_revoke(self->device, self->fd);
	ASSERT_EQ(-ENODEV, __vfio_pci_dmabuf_revoke(other, self->fd));
}

/* Revoked or not: after the close of its device a buffer has none. */
TEST_F(dmabuf_revoke, device_closed_and_reopened)
{
	int revoked = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						   page_size);

	vfio_pci_dmabuf_revoke(self->device, revoked);
	dmabuf_test_reopen(self->iommu, &self->device);
	ASSERT_EQ(-ENODEV, __vfio_pci_dmabuf_revoke(self->device, self->fd));
	ASSERT_EQ(-ENODEV, __vfio_pci_dmabuf_revoke(self->device, revoked));
}

/* Without a bound iommufd the device file gives access to nothing. */
TEST_F(dmabuf_revoke, device_not_bound)
{
	const char *path = vfio_pci_get_cdev_path(device_bdf);
	int fd = open(path, O_RDWR | O_CLOEXEC);

	ASSERT_GE(fd, 0);
	ASSERT_EQ(-EINVAL, __vfio_pci_dmabuf_revoke_fd(fd, self->fd));
	ASSERT_EQ(0, __vfio_pci_dmabuf_revoke(self->device, self->fd));
	free((void *)path);
}

/*
 * The ioctls of a DMABUF fd are requests of importers to the exporter.
 * Number 4 was once proposed as a revoke; it has to stay unknown.
 */
TEST_F(dmabuf_revoke, no_ioctl_of_the_dmabuf_revokes)
{
	struct vfio_pci_dmabuf_revoke args = {
		.argsz = sizeof(args),
		.dmabuf_fd = self->fd,
	};

	ASSERT_EQ(-1, ioctl(self->fd, _IO(DMA_BUF_BASE, 4), NULL));
	ASSERT_EQ(ENOTTY, errno);
	ASSERT_EQ(-1, ioctl(self->fd, _IO(DMA_BUF_BASE, 4), &args));
	ASSERT_EQ(ENOTTY, errno);
	ASSERT_EQ(-1, ioctl(self->fd, VFIO_DEVICE_PCI_DMABUF_REVOKE, &args));
	ASSERT_EQ(ENOTTY, errno);
	ASSERT_USABLE(self);
}

int main(int argc, char *argv[])
{
	dmabuf_test_init(&argc, argv);
	return test_harness_run(argc, argv);
}
