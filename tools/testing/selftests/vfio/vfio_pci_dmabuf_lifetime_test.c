// SPDX-License-Identifier: GPL-2.0-only
/*
 * DMABUFs and mappings when the driver is unbound from their device, of a device
 * that is open twice, and of two devices that are reset together: $VFIO_EDU2_BDF
 * and $VFIO_BOCHS2_BDF, which are functions of one.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <linux/vfio.h>

#include <libvfio/dmabuf_test.h>

#include "kselftest_harness.h"

static const char *pair_bdfs[2];

/* Longer than an unbind takes when nothing holds it up */
#define UNBIND_MS 200

/* On a slow machine, until what has to happen does */
#define WAIT_MS 10000

FIXTURE(unbind) {
	DMABUF_FIXTURE;
	struct vfio_client *client;
	char driver[64];
	/* A child process is in the unbind, or on the way to it */
	bool unbinding;
	int fd;
};

FIXTURE_SETUP(unbind)
{
	char *driver;

	self->client = vfio_client_start();
	DMABUF_SETUP(self, false, page_size);
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
 * The device is bound again for the next test, also if this one exits in the midst.
 * By then all that it held is gone, so an unbind that it left behind comes to its
 * end, too.
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
static void release_all(struct vfio_pci_device *device)
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
		release_all(self->device);
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
 * Only an open device holds up the unbind. Once it is closed, DMABUFs that others
 * still have do not.
 */
TEST_F(unbind, waits_for_device_but_not_for_client)
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
}

/* A device that is opened twice, by way of its group, and mapped by each fd */
FIXTURE(opened_twice) {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	void *dmabuf;
	void *bars[2];
	int fds[2];
};

FIXTURE_VARIANT(opened_twice) {
	int first;
};

FIXTURE_VARIANT_ADD(opened_twice, older_first) {
	.first = 0,
};

FIXTURE_VARIANT_ADD(opened_twice, newer_first) {
	.first = 1,
};

FIXTURE_SETUP(opened_twice)
{
	struct vfio_pci_device *device;
	int bar, i;

	default_iommu_mode = MODE_VFIO_TYPE1V2_IOMMU;
	DMABUF_OPEN(false, page_size, &self->iommu, &device, &bar);
	self->fds[0] = device->fd;
	self->fds[1] = ioctl(device->group_fd, VFIO_GROUP_GET_DEVICE_FD,
			     device_bdf);
	ASSERT_LE(0, self->fds[1]);

	self->dmabuf = mmap_shared(vfio_pci_dmabuf_export_range(device, bar, 0,
								page_size),
				   0, page_size);
	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		if (device->bars[i].vaddr)
			munmap_assert(device->bars[i].vaddr,
				      device->bars[i].info.size);
	}
	for (i = 0; i < 2; i++) {
		self->bars[i] = mmap_shared(self->fds[i],
					    vfio_pci_region_offset(device, bar),
					    page_size);
		ASSERT_EQ(0, try_touch(self->bars[i]));
	}
}

FIXTURE_TEARDOWN(opened_twice)
{
}

/* Each mapping keeps what it was made by, and the device is closed by the last. */
TEST_F(opened_twice, closed_in_turn)
{
	const int first = variant->first, second = !first;

	close_assert(self->fds[first]);
	ASSERT_EQ(0, try_touch(self->bars[first]));
	munmap_assert(self->bars[first], page_size);
	ASSERT_EQ(0, try_touch(self->bars[second]));
	ASSERT_EQ(0, try_touch(self->dmabuf));

	close_assert(self->fds[second]);
	ASSERT_EQ(0, try_touch(self->bars[second]));
	ASSERT_EQ(0, try_touch(self->dmabuf));
	munmap_assert(self->bars[second], page_size);
	ASSERT_EQ(SIGBUS, try_touch(self->dmabuf));
}

/* Two devices that are reset together, each with a mapping of its BAR and a DMABUF */
struct half {
	struct vfio_pci_device *device;
	void *bar;
	void *dmabuf;
	int fd;
};

FIXTURE(hot_reset_of_two) {
	struct iommu *iommu;
	struct half half[2];
};

static void half_map(struct half *half)
{
	int bar = vfio_pci_last_bar(half->device, page_size);

	VFIO_ASSERT_GE(bar, 0);
	half->fd = vfio_pci_dmabuf_export_range(half->device, bar, 0,
						page_size);
	half->bar = vfio_pci_region_mmap(half->device, bar, 0, page_size);
	half->dmabuf = mmap_shared(half->fd, 0, page_size);
}

/* What a touch of both mappings of one device has to answer */
#define ASSERT_HALF(_half, _sig) do {						\
	ASSERT_EQ((_sig), try_touch((_half)->bar));				\
	ASSERT_EQ((_sig), try_touch((_half)->dmabuf));				\
} while (0)

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
		ASSERT_HALF(&self->half[i], 0);
	}
}

FIXTURE_TEARDOWN(hot_reset_of_two)
{
}

TEST_F(hot_reset_of_two, revokes_mappings_of_both)
{
	int i;

	ASSERT_EQ(0, __vfio_pci_hot_reset(self->half[0].device));
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(1, faults_to_touch(self->half[i].bar, 4, 4));
		ASSERT_EQ(1, faults_to_touch(self->half[i].dmabuf, 4, 4));
	}
}

/* What is not a reset concerns the one device only, and the reset keeps it. */
TEST_F(hot_reset_of_two, each_keeps_its_own_state)
{
	vfio_pci_cmd_clear(self->half[1].device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, faults_to_touch(self->half[0].bar, 4, 4));
	ASSERT_EQ(0, faults_to_touch(self->half[0].dmabuf, 4, 4));
	ASSERT_HALF(&self->half[1], SIGBUS);
	ASSERT_EQ(0, __vfio_pci_hot_reset(self->half[0].device));
	ASSERT_HALF(&self->half[0], 0);
	ASSERT_HALF(&self->half[1], SIGBUS);

	vfio_pci_cmd_set(self->half[1].device, PCI_COMMAND_MEMORY);
	ASSERT_HALF(&self->half[1], 0);
}

/* The other one is reset too, and must not come to life by that. */
TEST_F(hot_reset_of_two, the_other_is_closed)
{
	struct half *other = &self->half[1];
	void *vaddr = other->dmabuf, *again;
	int fd = other->fd;

	munmap_assert(other->bar, page_size);
	dmabuf_test_close(&other->device);
	ASSERT_EQ(0, __vfio_pci_hot_reset(self->half[0].device));
	ASSERT_HALF(&self->half[0], 0);
	ASSERT_EQ(SIGBUS, try_touch(vaddr));
	ASSERT_EQ(-ENODEV, __mmap_shared(fd, 0, page_size, PROT_READ, &again));

	other->device = vfio_pci_device_init(pair_bdfs[1], self->iommu);
	half_map(other);
	ASSERT_HALF(other, 0);
	ASSERT_EQ(SIGBUS, try_touch(vaddr));
}

int main(int argc, char *argv[])
{
	dmabuf_test_init(&argc, argv);
	pair_bdfs[0] = vfio_selftests_get_named_bdf("VFIO_EDU2_BDF");
	pair_bdfs[1] = vfio_selftests_get_named_bdf("VFIO_BOCHS2_BDF");
	return test_harness_run(argc, argv);
}
