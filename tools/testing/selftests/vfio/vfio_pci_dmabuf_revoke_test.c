// SPDX-License-Identifier: GPL-2.0-only
/*
 * VFIO_DEVICE_PCI_DMABUF_REVOKE: ends every mapping of one DMABUF permanently,
 * and touches nothing else.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/udmabuf.h>
#include <linux/vfio.h>

#include "kselftest_harness.h"

#include <libvfio/dmabuf_test.h>

#define NR_PAGES 16

FIXTURE(dmabuf_revoke) {
	DMABUF_FIXTURE;
	struct vfio_client *client;
	size_t size;
	int fd;
	void *vaddr;
};

/* The two halves of the memory, the other way round */
static void export_and_map(FIXTURE_DATA(dmabuf_revoke) *self)
{
	struct vfio_region_dma_range ranges[] = {
		{ self->size / 2, self->size / 2 },
		{ 0, self->size / 2 },
	};

	self->fd = vfio_pci_dmabuf_export(self->device, self->bar, ranges, 2);
	self->vaddr = mmap_shared(self->fd, 0, self->size);
}

FIXTURE_SETUP(dmabuf_revoke)
{
	self->client = vfio_client_start();
	DMABUF_SETUP(self, false, 4 * page_size);
	self->size = min_t(u64, self->bar_size, NR_PAGES * page_size);
	export_and_map(self);
}

FIXTURE_TEARDOWN(dmabuf_revoke)
{
	vfio_client_stop(self->client);
}

/* Is the DMABUF usable, or revoked for each kind of access? */
#define ASSERT_USABLE() \
	ASSERT_EQ(0, try_touch_pages(self->vaddr, self->size))
#define ASSERT_REVOKED() do {							\
	void *__vaddr;								\
										\
	ASSERT_EQ(SIGBUS, try_touch_pages(self->vaddr, self->size));		\
	ASSERT_EQ(SIGBUS, try_write32(self->vaddr + self->size - 4, 0));	\
	ASSERT_EQ(-EFAULT, pipe_write(self->vaddr));				\
	ASSERT_EQ(-ENODEV, __mmap_shared(self->fd, page_size, page_size,	\
					 PROT_READ, &__vaddr));			\
	ASSERT_REVOKE(-EBADFD, self->fd);					\
} while (0)

#define ASSERT_REVOKE(_ret, _fd) \
	ASSERT_EQ((_ret), __vfio_pci_dmabuf_revoke(self->device, (_fd)))

/* Touched or not, whole, in part, split, moved, by another fd, in a child */
TEST_F(dmabuf_revoke, every_alias_faults)
{
	void *untouched = mmap_shared(self->fd, 0, self->size);
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
	ASSERT_REVOKE(0, copy);
	ASSERT_REVOKED();
	ASSERT_EQ(SIGBUS, try_touch_pages(untouched, self->size));
	for (i = 0; i < ARRAY_SIZE(maps); i++) {
		ASSERT_EQ(SIGBUS, try_touch_pages(maps[i].vaddr,
						  maps[i].size)) {
			TH_LOG("mapping %d", i);
		}
	}
	ASSERT_EQ(SIGBUS, touch_pages_in_child(self->vaddr, self->size));
}

/*
 * A client loses the buffer, too. The right to revoke comes with the device fd, not
 * with the process that opened the device.
 */
TEST_F(dmabuf_revoke, client)
{
	struct vfio_client *client = self->client;

	vfio_client_mmap(client, self->fd, page_size, 2 * page_size);
	ASSERT_EQ(0, vfio_client_read32(client, page_size, NULL));
	ASSERT_EQ(0, vfio_client_revoke(client, self->device->fd, self->fd));
	ASSERT_EQ(SIGBUS, vfio_client_read32(client, 0, NULL));
	ASSERT_EQ(SIGBUS, vfio_client_write32(client, page_size, 0));
	ASSERT_EQ(-ENODEV, __vfio_client_mmap(client, self->fd, 0, page_size));
	ASSERT_REVOKED();
}

/* Other mappings of the same pages do not even fault again. */
TEST_F(dmabuf_revoke, other_mappings_not_affected)
{
	int other_fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						    self->size);
	void *other = mmap_shared(other_fd, 0, self->size);
	void *bar = self->device->bars[self->bar].vaddr;
	u64 faults;
	int i;

	ASSERT_EQ(0, try_touch_pages(other, self->size));
	ASSERT_EQ(0, try_touch_pages(bar, self->size));

	/* Repeated with buffers that are exported later */
	for (i = 0; i < 100; i++) {
		ASSERT_USABLE();
		ASSERT_REVOKE(0, self->fd);
		faults = nr_page_faults();
		ASSERT_EQ(0, try_touch_pages(other, self->size));
		ASSERT_EQ(0, try_touch_pages(bar, self->size));
		ASSERT_EQ(faults, nr_page_faults());
		ASSERT_REVOKED();

		munmap_assert(self->vaddr, self->size);
		close_assert(self->fd);
		export_and_map(self);
	}
}

/* A revoke outlasts the return of access, and works while access is lost. */
TEST_F(dmabuf_revoke, stays_revoked)
{
	ASSERT_USABLE();
	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	ASSERT_REVOKE(0, self->fd);
	ASSERT_REVOKED();
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	ASSERT_REVOKED();
	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	ASSERT_REVOKED();
	if (self->device->info.flags & VFIO_DEVICE_FLAGS_RESET)
		vfio_pci_device_reset(self->device);
	ASSERT_REVOKED();
}

/* The interface itself: one line of its documentation each. */

static int revoke_ioctl(struct vfio_pci_device *device, void *arg)
{
	int ret = ioctl(device->fd, VFIO_DEVICE_PCI_DMABUF_REVOKE, arg);

	return ret ? -errno : 0;
}

/* Of a larger struct the known members are used, and the rest is ignored. */
TEST_F(dmabuf_revoke, argsz)
{
	static const struct {
		u32 argsz;
		int error;
	} cases[] = {
		{ 0, EINVAL }, { 1, EINVAL }, { 4, EINVAL }, { 7, EINVAL },
		{ 8 }, { 9 }, { 12 }, { 16 }, { 4096 }, { UINT32_MAX },
	};
	char buf[4096];
	struct vfio_pci_dmabuf_revoke *args = (void *)buf;
	int i, fd;

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						  page_size);
		memset(buf, 0xa5, sizeof(buf));
		args->argsz = cases[i].argsz;
		args->dmabuf_fd = fd;
		ASSERT_EQ(-cases[i].error, revoke_ioctl(self->device, args)) {
			TH_LOG("argsz %u", args->argsz);
		}
		ASSERT_EQ(cases[i].error ? 0 : -EBADFD,
			  __vfio_pci_dmabuf_revoke(self->device, fd));
		close_assert(fd);
	}
}

/* The argument is input only, and all of it has to be readable. */
TEST_F(dmabuf_revoke, memory_of_argument)
{
	void *pages = mmap_reserve(2 * page_size, page_size, 0);
	struct vfio_pci_dmabuf_revoke *args = pages;

	ASSERT_EQ(0, mprotect(pages, page_size, PROT_READ | PROT_WRITE));
	args->argsz = sizeof(*args);
	args->dmabuf_fd = self->fd;
	/* argsz can be read, the fd behind it cannot */
	memcpy(pages + page_size - sizeof(u32), args, sizeof(u32));
	ASSERT_EQ(0, mprotect(pages, page_size, PROT_READ));

	ASSERT_EQ(-EFAULT, revoke_ioctl(self->device, NULL));
	ASSERT_EQ(-EFAULT, revoke_ioctl(self->device, (void *)-8UL));
	ASSERT_EQ(-EFAULT, revoke_ioctl(self->device,
					pages + page_size - sizeof(u32)));
	ASSERT_EQ(0, revoke_ioctl(self->device, args));
}

/* A DMABUF of another exporter, or -1 */
static int udmabuf_create(void)
{
	struct udmabuf_create create = {
		.memfd = memfd_create("udmabuf", MFD_ALLOW_SEALING),
		.size = page_size,
	};
	int udmabuf = open("/dev/udmabuf", O_RDWR | O_CLOEXEC);

	VFIO_ASSERT_EQ(ftruncate(create.memfd, page_size), 0);
	VFIO_ASSERT_EQ(fcntl(create.memfd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	return ioctl(udmabuf, UDMABUF_CREATE, &create);
}

/* An O_PATH descriptor names a file without opening it. */
TEST_F(dmabuf_revoke, bad_fd)
{
	int closed = dup(self->fd), udmabuf = udmabuf_create();
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
		{ udmabuf, udmabuf < 0 ? EBADF : ENODEV },
	};
	int i;

	if (udmabuf < 0)
		TH_LOG("No DMABUF of another exporter");
	close_assert(closed);
	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		ASSERT_EQ(-bad[i].error,
			  __vfio_pci_dmabuf_revoke(self->device, bad[i].fd)) {
			TH_LOG("fd %d, number %d", bad[i].fd, i);
		}
	}
	ASSERT_USABLE();
}

int main(int argc, char *argv[])
{
	dmabuf_test_init(&argc, argv);
	return test_harness_run(argc, argv);
}
