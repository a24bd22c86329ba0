// SPDX-License-Identifier: GPL-2.0-only
/*
 * DMABUFs and mappings when the driver is unbound from their device, and of two
 * devices that are reset together: $VFIO_EDU2_BDF and $VFIO_BOCHS2_BDF, which
 * are functions of one.
 */
#include <errno.h>
#include <poll.h>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/wait.h>

#include <linux/vfio.h>

#include <libvfio.h>

#include "kselftest_harness.h"

static const char *device_bdf;
static const char *pair_bdfs[2];

static size_t page_size;

/* Longer than an unbind takes when nothing holds it up */
#define UNBIND_MS 200

/* On a slow machine, until what has to happen does */
#define WAIT_MS 10000

FIXTURE(unbind) {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	struct vfio_client *client;
	char driver[64];
	/* A child process is in the unbind, or on the way to it */
	bool unbinding;
	int bar;
	int fd;
};

FIXTURE_SETUP(unbind)
{
	const char *reason;
	char *driver;

	self->client = vfio_client_start();
	reason = dmabuf_test_open(device_bdf, false, page_size, &self->iommu,
				  &self->device, &self->bar);
	if (reason)
		SKIP(return, "%s", reason);

	driver = sysfs_driver_get(device_bdf);
	ASSERT_NE(NULL, driver);
	snprintf_assert(self->driver, (int)sizeof(self->driver), "%s", driver);
	free(driver);

	self->fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						page_size);
	vfio_client_mmap(self->client, self->fd, 0, page_size);
	ASSERT_EQ(0, vfio_client_read32(self->client, 0, NULL));
}

static bool is_bound(void)
{
	char *driver = sysfs_driver_get(device_bdf);

	free(driver);
	return driver;
}

/*
 * The device is bound again for whoever comes next, which the test cannot do if
 * it exits in the midst. By then all that it held is gone, so an unbind that it
 * left behind comes to its end, too.
 */
FIXTURE_TEARDOWN_PARENT(unbind)
{
	int ms;

	for (ms = 0; ms < WAIT_MS && self->unbinding && is_bound(); ms++)
		usleep(1000);

	if (!is_bound())
		ASSERT_EQ(0, __sysfs_driver_bind(self->driver, device_bdf));
}

/* Hold nothing that the unbind waits for: no fd, no mapping of a BAR. */
static void let_go(struct vfio_pci_device *device)
{
	int i;

	VFIO_ASSERT_EQ(close_range(STDERR_FILENO + 1, ~0U, 0), 0);
	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		if (device->bars[i].vaddr)
			munmap_assert(device->bars[i].vaddr,
				      device->bars[i].info.size);
	}
}

/* Returns when the kernel, in the unbind, asks for the device. */
static pid_t unbind_start(FIXTURE_DATA(unbind) *self)
{
	struct pollfd request = {
		.fd = vfio_pci_request_eventfd(self->device),
		.events = POLLIN,
	};
	pid_t pid;

	self->unbinding = true;
	pid = fork();
	VFIO_ASSERT_GE(pid, 0);
	if (!pid) {
		let_go(self->device);
		_exit(-__sysfs_driver_unbind(self->driver, device_bdf));
	}

	VFIO_ASSERT_EQ(poll(&request, 1, WAIT_MS), 1);
	close_assert(request.fd);

	return pid;
}

/* Has it ended? Then without an error. */
static bool unbind_ended(pid_t pid)
{
	int status, ret;

	ret = waitpid(pid, &status, WNOHANG);
	VFIO_ASSERT_GE(ret, 0);
	if (ret)
		VFIO_ASSERT_EQ(status, 0);

	return ret;
}

static void unbind_finish(FIXTURE_DATA(unbind) *self, pid_t pid)
{
	int status;

	VFIO_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	VFIO_ASSERT_EQ(status, 0);
	self->unbinding = false;
}

/*
 * Only the owner of the device holds up the unbind. When it lets go, DMABUFs
 * that others still have do not.
 */
TEST_F(unbind, waits_for_owner_but_not_for_client)
{
	void *vaddr = mmap_shared(self->fd, 0, page_size);
	pid_t pid;

	pid = unbind_start(self);
	usleep(UNBIND_MS * 1000);
	ASSERT_FALSE(unbind_ended(pid));
	ASSERT_EQ(0, vfio_client_read32(self->client, 0, NULL));
	ASSERT_EQ(0, try_touch(vaddr));

	vfio_pci_device_cleanup(self->device);
	unbind_finish(self, pid);

	ASSERT_EQ(SIGBUS, vfio_client_read32(self->client, 0, NULL));
	ASSERT_EQ(SIGBUS, try_touch(vaddr));
	ASSERT_EQ(-ENODEV, __vfio_client_mmap(self->client, self->fd, 0,
					      page_size));

	munmap_assert(vaddr, page_size);
}

TEST_F(unbind, waits_for_bar_mapping)
{
	void *bar;
	pid_t pid;

	/* Started first, so that it does not inherit the mapping. */
	pid = unbind_start(self);
	bar = vfio_pci_region_mmap(self->device, self->bar, 0, page_size);
	vfio_pci_device_cleanup(self->device);
	usleep(UNBIND_MS * 1000);
	ASSERT_FALSE(unbind_ended(pid));
	ASSERT_EQ(0, try_touch(bar));
	ASSERT_EQ(0, vfio_client_read32(self->client, 0, NULL));

	munmap_assert(bar, page_size);
	unbind_finish(self, pid);
	ASSERT_EQ(SIGBUS, vfio_client_read32(self->client, 0, NULL));
}

/* A path to the DMABUF outlives all its descriptors, and holds up nothing. */
TEST_F(unbind, does_not_wait_for_o_path)
{
	int fd = open_o_path(self->fd);

	/* The client loses its mapping to one that is refused. */
	ASSERT_EQ(-EINVAL, __vfio_client_mmap(self->client, self->fd, 0,
					      2 * page_size));
	close_assert(self->fd);

	vfio_pci_device_cleanup(self->device);
	ASSERT_EQ(0, __sysfs_driver_unbind(self->driver, device_bdf));

	close_assert(fd);
}

/* The same device, bound again, has nothing to do with the old buffer. */
TEST_F(unbind, bound_again)
{
	void *vaddr = mmap_shared(self->fd, 0, page_size);
	struct vfio_pci_device *device;
	void *new;
	int fd;

	vfio_pci_device_cleanup(self->device);
	ASSERT_EQ(0, __sysfs_driver_unbind(self->driver, device_bdf));
	ASSERT_EQ(0, __sysfs_driver_bind(self->driver, device_bdf));
	device = vfio_pci_device_init(device_bdf, self->iommu);

	ASSERT_EQ(SIGBUS, try_touch(vaddr));
	ASSERT_EQ(-ENODEV, __vfio_pci_dmabuf_revoke(device, self->fd));
	ASSERT_EQ(-ENODEV, __mmap_shared(self->fd, 0, page_size, PROT_READ,
					 &new));

	fd = vfio_pci_dmabuf_export_range(device, self->bar, 0, page_size);
	new = mmap_shared(fd, 0, page_size);
	ASSERT_EQ(0, try_touch(new));

	munmap_assert(new, page_size);
	munmap_assert(vaddr, page_size);
	close_assert(fd);
	vfio_pci_device_cleanup(device);
	ASSERT_EQ(0, __sysfs_driver_unbind(self->driver, device_bdf));
}

/* One of the two devices, with a mapping of its BAR and of a DMABUF */
struct half {
	struct vfio_pci_device *device;
	void *bar;
	void *dmabuf;
};

FIXTURE(hot_reset_of_two) {
	struct iommu *iommu;
	struct half half[2];
};

static void half_map(struct half *half)
{
	int bar = vfio_pci_last_bar(half->device, page_size);
	int fd;

	VFIO_ASSERT_GE(bar, 0);
	fd = vfio_pci_dmabuf_export_range(half->device, bar, 0, page_size);
	half->bar = vfio_pci_region_mmap(half->device, bar, 0, page_size);
	half->dmabuf = mmap_shared(fd, 0, page_size);
	close_assert(fd);

	VFIO_ASSERT_EQ(try_touch(half->bar), 0);
	VFIO_ASSERT_EQ(try_touch(half->dmabuf), 0);
}

static void half_close(struct half *half)
{
	if (!half->device)
		return;

	munmap_assert(half->bar, page_size);
	munmap_assert(half->dmabuf, page_size);
	vfio_pci_device_cleanup(half->device);
	half->device = NULL;
}

FIXTURE_SETUP(hot_reset_of_two)
{
	int i;

	if (!pair_bdfs[0] || !pair_bdfs[1])
		SKIP(return, "No two functions of a device");

	self->iommu = iommu_init(default_iommu_mode);
	for (i = 0; i < 2; i++) {
		self->half[i].device = vfio_pci_device_init(pair_bdfs[i],
							    self->iommu);
		if (!vfio_pci_dmabuf_supported(self->half[i].device))
			SKIP(return, "No DMABUF export");
		half_map(&self->half[i]);
	}
}

FIXTURE_TEARDOWN(hot_reset_of_two)
{
	half_close(&self->half[0]);
	half_close(&self->half[1]);
	iommu_cleanup(self->iommu);
}

TEST_F(hot_reset_of_two, takes_mappings_of_both)
{
	int i;

	ASSERT_EQ(0, __vfio_pci_hot_reset(self->half[0].device));

	for (i = 0; i < 2; i++) {
		ASSERT_EQ(1, faults_to_touch(self->half[i].bar, 4, 4));
		ASSERT_EQ(1, faults_to_touch(self->half[i].dmabuf, 4, 4));
	}
}

TEST_F(hot_reset_of_two, each_keeps_its_own_state)
{
	vfio_pci_cmd_clear(self->half[1].device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, __vfio_pci_hot_reset(self->half[0].device));

	ASSERT_EQ(0, try_touch(self->half[0].bar));
	ASSERT_EQ(0, try_touch(self->half[0].dmabuf));
	ASSERT_EQ(SIGBUS, try_touch(self->half[1].bar));
	ASSERT_EQ(SIGBUS, try_touch(self->half[1].dmabuf));

	vfio_pci_cmd_set(self->half[1].device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, try_touch(self->half[1].bar));
	ASSERT_EQ(0, try_touch(self->half[1].dmabuf));
}

/* The other one is reset too, and must not come to life by that. */
TEST_F(hot_reset_of_two, the_other_is_closed)
{
	struct half *other = &self->half[1];
	int bar = vfio_pci_last_bar(other->device, page_size);
	int fd = vfio_pci_dmabuf_export_range(other->device, bar, 0, page_size);
	void *vaddr = mmap_shared(fd, 0, page_size);
	void *again;

	half_close(other);
	ASSERT_EQ(0, __vfio_pci_hot_reset(self->half[0].device));
	ASSERT_EQ(0, try_touch(self->half[0].dmabuf));
	ASSERT_EQ(SIGBUS, try_touch(vaddr));
	ASSERT_EQ(-ENODEV, __mmap_shared(fd, 0, page_size, PROT_READ, &again));

	other->device = vfio_pci_device_init(pair_bdfs[1], self->iommu);
	half_map(other);
	ASSERT_EQ(SIGBUS, try_touch(vaddr));

	munmap_assert(vaddr, page_size);
	close_assert(fd);
}

/* What is not a reset concerns the one device only. */
TEST_F(hot_reset_of_two, disabled_memory_is_of_one)
{
	vfio_pci_cmd_clear(self->half[0].device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(SIGBUS, try_touch(self->half[0].bar));
	ASSERT_EQ(SIGBUS, try_touch(self->half[0].dmabuf));
	ASSERT_EQ(0, faults_to_touch(self->half[1].bar, 4, 4));
	ASSERT_EQ(0, faults_to_touch(self->half[1].dmabuf, 4, 4));
	vfio_pci_cmd_set(self->half[0].device, PCI_COMMAND_MEMORY);
}

int main(int argc, char *argv[])
{
	page_size = getpagesize();
	device_bdf = vfio_selftests_get_bdf(&argc, argv);
	pair_bdfs[0] = vfio_selftests_get_named_bdf("VFIO_EDU2_BDF");
	pair_bdfs[1] = vfio_selftests_get_named_bdf("VFIO_BOCHS2_BDF");
	return test_harness_run(argc, argv);
}
