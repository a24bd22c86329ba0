// SPDX-License-Identifier: GPL-2.0-only
/*
 * DMABUFs and mappings when the driver is unbound from their device or the
 * device is removed, of a device that is open twice, and of two devices that
 * are reset together: $VFIO_EDU2_BDF and $VFIO_BOCHS2_BDF, which are functions
 * of one.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <linux/vfio.h>

#include "kselftest_harness.h"

#include <libvfio/dmabuf_test.h>

static const char *pair_bdfs[2];

/* On a slow machine, until what has to happen does */
#define WAIT_MS 20000

FIXTURE(unbind) {
	DMABUF_FIXTURE;
	struct vfio_client *client;
	char driver[64];
	int (*unbind)(const char *driver);
	/* A child process is in the unbind, or on the way to it */
	bool unbinding;
	int fd;
	void *vaddr;
};

static int unbind_driver(const char *driver)
{
	return __sysfs_driver_unbind(driver, device_bdf);
}

static int bind_driver(const char *driver)
{
	return __sysfs_driver_bind(driver, device_bdf);
}

/* As unplug does. After a rescan, driver_override is not set. */
static int remove_device(const char *driver)
{
	return sysfs_device_write(device_bdf, "remove", "1");
}

static int find_device(const char *driver)
{
	return write_file("/sys/bus/pci/rescan", 0, "1") ?:
	       sysfs_device_write(device_bdf, "driver_override", driver) ?:
	       bind_driver(driver);
}

/* Switch the power of the device's slot; with NULL, only look for the slot. */
static int write_slot(const char *val)
{
	char path[64], address[16];
	FILE *file;
	int i, nr;

	for (i = 1; i < 64; i++) {
		snprintf_assert(path, (int)sizeof(path),
				"/sys/bus/pci/slots/%d/address", i);
		file = fopen(path, "r");
		if (!file)
			continue;
		nr = fscanf(file, "%15s", address);
		VFIO_ASSERT_EQ(nr, 1);
		VFIO_ASSERT_EQ(fclose(file), 0);
		if (strncmp(address, device_bdf, strlen(address)))
			continue;
		snprintf_assert(path, (int)sizeof(path),
				"/sys/bus/pci/slots/%d/power", i);
		return val ? write_file(path, 0, val) : 0;
	}
	return -ENODEV;
}

static int unplug_device(const char *driver)
{
	return write_slot("0");
}

static int plug_device(const char *driver)
{
	return write_slot("1") ?:
	       sysfs_device_write(device_bdf, "driver_override", driver) ?:
	       bind_driver(driver);
}

FIXTURE_VARIANT(unbind) {
	int (*unbind)(const char *driver);
	int (*bind)(const char *driver);
	const char *bdf_env;	/* Of another device than the usual one */
};

FIXTURE_VARIANT_ADD(unbind, driver) {
	.unbind = unbind_driver,
	.bind = bind_driver,
};

FIXTURE_VARIANT_ADD(unbind, device) {
	.unbind = remove_device,
	.bind = find_device,
};

FIXTURE_VARIANT_ADD(unbind, slot) {
	.unbind = unplug_device,
	.bind = plug_device,
	.bdf_env = "VFIO_TESTDEV_BDF",
};

FIXTURE_SETUP(unbind)
{
	char *driver;

	self->client = vfio_client_start();
	self->unbind = variant->unbind;
	if (variant->bdf_env)
		device_bdf = vfio_selftests_get_named_bdf(variant->bdf_env);
	if (variant->bdf_env && (!device_bdf || write_slot(NULL)))
		SKIP(return, "No slot with power control");
	DMABUF_SETUP(self, false, page_size);
	driver = sysfs_driver_get(device_bdf);
	ASSERT_NE(NULL, driver);
	snprintf_assert(self->driver, (int)sizeof(self->driver), "%s", driver);
	free(driver);

	self->fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						page_size);
	self->vaddr = mmap_shared(self->fd, 0, page_size);
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
 * The device is bound again for the next test, also if this one has failed. By
 * then all that it held is gone, so an unbind that it left behind ends, too.
 */
FIXTURE_TEARDOWN_PARENT(unbind)
{
	const char *bdf = device_bdf;
	int ms;

	/* What FIXTURE_SETUP() has set is that of the child process. */
	if (variant->bdf_env)
		device_bdf = vfio_selftests_get_named_bdf(variant->bdf_env);
	if (!device_bdf)
		return;
	for (ms = 0; ms < WAIT_MS && self->unbinding && is_bound(); ms++)
		usleep(1000);

	if (!is_bound())
		ASSERT_EQ(0, variant->bind(self->driver));
	device_bdf = bdf;
}

/* Unbind the driver in a child that holds no fd, and no mapping of a BAR. */
static int do_unbind(void *arg, int fd)
{
	FIXTURE_DATA(unbind) *self = arg;
	int status;
	pid_t pid;

	self->unbinding = true;
	pid = fork();
	VFIO_ASSERT_GE(pid, 0);
	if (!pid) {
		VFIO_ASSERT_EQ(close_range(STDERR_FILENO + 1, ~0U, 0), 0);
		vfio_pci_bar_unmap_all(self->device);
		_exit(-self->unbind(self->driver));
	}
	VFIO_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	self->unbinding = false;
	return status;
}

#define ASSERT_GONE() do {							\
	void *__vaddr;								\
										\
	ASSERT_EQ(SIGBUS, vfio_client_read32(self->client, 0, NULL));		\
	ASSERT_EQ(SIGBUS, try_touch(self->vaddr));				\
	ASSERT_EQ(-ENODEV, __mmap_shared(self->fd, 0, page_size, PROT_READ,	\
					 &__vaddr));				\
} while (0)

/*
 * The device fd and a mapping of a BAR hold up the unbind. Once both are gone,
 * DMABUFs that other processes still have do not.
 */
TEST_F(unbind, waits_for_device)
{
	struct pollfd request = {
		.fd = vfio_pci_request_eventfd(self->device),
		.events = POLLIN,
	};
	struct job job;
	void *bar;

	job_start(&job, do_unbind, self, -1);
	/* The kernel, in the unbind, asks for the device. */
	ASSERT_EQ(1, poll(&request, 1, WAIT_MS));
	bar = vfio_pci_region_mmap(self->device, self->bar, 0, page_size);
	ASSERT_TRUE(job_waits(&job));
	ASSERT_EQ(0, vfio_client_read32(self->client, 0, NULL));
	ASSERT_EQ(0, try_touch(self->vaddr));

	vfio_pci_device_cleanup(self->device);
	ASSERT_TRUE(job_waits(&job));
	ASSERT_EQ(0, vfio_client_read32(self->client, 0, NULL));
	ASSERT_EQ(0, try_touch(self->vaddr));
	ASSERT_EQ(0, try_touch(bar));

	munmap_assert(bar, page_size);
	ASSERT_TRUE(job_ends(&job, WAIT_MS));
	ASSERT_EQ(0, job_result(&job));
	ASSERT_GONE();
}

/*
 * A path to a DMABUF outlives all its descriptors, and holds up nothing
 * either. Old buffers stay revoked when the device is bound again.
 */
TEST_F(unbind, does_not_wait_for_buffers)
{
	int fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
					      page_size);
	int path = open_o_path(fd);

	close_assert(fd);
	/* The file is gone, the inode is not. */
	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	vfio_pci_device_cleanup(self->device);
	ASSERT_EQ(0, variant->unbind(self->driver));
	ASSERT_GONE();
	close_assert(path);

	ASSERT_EQ(0, variant->bind(self->driver));
	self->device = vfio_pci_device_init(device_bdf, self->iommu);
	ASSERT_GONE();
	ASSERT_EQ(-ENODEV, __vfio_pci_dmabuf_revoke(self->device, self->fd));
	fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
					  page_size);
	ASSERT_EQ(0, try_touch(mmap_shared(fd, 0, page_size)));
}

/*
 * A device that is opened twice, by way of its group, and mapped by each fd.
 * Each mapping keeps what it was made by, and the device is closed by the last.
 */
TEST(opened_twice)
{
	struct vfio_pci_device *device;
	void *dmabuf, *bars[2];
	struct iommu *iommu;
	u64 offset;
	int fds[2], fd, bar, first, i;

	default_iommu_mode = MODE_VFIO_TYPE1V2_IOMMU;
	for (first = 0; first < 2; first++) {
		DMABUF_OPEN(false, page_size, &iommu, &device, &bar);
		vfio_pci_bar_unmap_all(device);
		offset = vfio_pci_region_offset(device, bar);
		fds[0] = device->fd;
		fds[1] = ioctl(device->group_fd, VFIO_GROUP_GET_DEVICE_FD,
			       device_bdf);
		ASSERT_LE(0, fds[1]);
		fd = vfio_pci_dmabuf_export_range(device, bar, 0, page_size);
		dmabuf = mmap_shared(fd, 0, page_size);
		for (i = 0; i < 2; i++) {
			bars[i] = mmap_shared(fds[i], offset, page_size);
			ASSERT_EQ(0, try_touch(bars[i]));
		}

		for (i = 0; i < 2; i++) {
			close_assert(fds[first ^ i]);
			ASSERT_EQ(0, try_touch(bars[first ^ i]));
			ASSERT_EQ(0, try_touch(dmabuf));
			munmap_assert(bars[first ^ i], page_size);
			ASSERT_EQ(i ? SIGBUS : 0, try_touch(dmabuf));
		}
		close_assert(device->group_fd);
		iommu_cleanup(iommu);
	}
}

/* Two devices that are reset together, each with a BAR and a DMABUF mapped */
struct half {
	struct vfio_pci_device *device;
	void *bar;
	void *dmabuf;
	int fd;
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

/* The expected result of touching both mappings of one device */
#define ASSERT_HALF(_half, _sig) do {						\
	ASSERT_EQ((_sig), try_touch((_half)->bar));				\
	ASSERT_EQ((_sig), try_touch((_half)->dmabuf));				\
} while (0)

/* How many faults it takes to touch both */
#define ASSERT_FAULTS(_half, _nr) do {						\
	ASSERT_EQ((_nr), faults_to_touch((_half)->bar, 4, 4));			\
	ASSERT_EQ((_nr), faults_to_touch((_half)->dmabuf, 4, 4));		\
} while (0)

/*
 * Unlike a reset, memory disable is of one device, and a reset keeps it. If
 * the other device is closed it is reset too, and must not get access by that.
 */
TEST(hot_reset_of_two)
{
	struct half half[2], *one = &half[0], *other = &half[1];
	struct iommu *iommu = iommu_init(default_iommu_mode);
	void *again;
	int i;

	if (!pair_bdfs[0] || !pair_bdfs[1])
		SKIP(return, "No two functions of a device");

	for (i = 0; i < 2; i++) {
		half[i].device = vfio_pci_device_init(pair_bdfs[i], iommu);
		if (!vfio_pci_dmabuf_supported(half[i].device))
			SKIP(return, "No DMABUF export");
		half_map(&half[i]);
		ASSERT_HALF(&half[i], 0);
	}

	ASSERT_EQ(0, __vfio_pci_hot_reset(one->device));
	ASSERT_FAULTS(one, 1);
	ASSERT_FAULTS(other, 1);

	vfio_pci_cmd_clear(other->device, PCI_COMMAND_MEMORY);
	ASSERT_FAULTS(one, 0);
	ASSERT_HALF(other, SIGBUS);
	ASSERT_EQ(0, __vfio_pci_hot_reset(one->device));
	ASSERT_HALF(one, 0);
	ASSERT_HALF(other, SIGBUS);
	vfio_pci_cmd_set(other->device, PCI_COMMAND_MEMORY);
	ASSERT_HALF(other, 0);

	munmap_assert(other->bar, page_size);
	dmabuf_test_close(&other->device);
	ASSERT_EQ(0, __vfio_pci_hot_reset(one->device));
	ASSERT_HALF(one, 0);
	ASSERT_EQ(SIGBUS, try_touch(other->dmabuf));
	ASSERT_EQ(-ENODEV, __mmap_shared(other->fd, 0, page_size, PROT_READ,
					 &again));
	other->device = vfio_pci_device_init(pair_bdfs[1], iommu);
	ASSERT_EQ(SIGBUS, try_touch(other->dmabuf));
	half_map(other);
	ASSERT_HALF(other, 0);
}

int main(int argc, char *argv[])
{
	dmabuf_test_init(&argc, argv);
	pair_bdfs[0] = vfio_selftests_get_named_bdf("VFIO_EDU2_BDF");
	pair_bdfs[1] = vfio_selftests_get_named_bdf("VFIO_BOCHS2_BDF");
	return test_harness_run(argc, argv);
}
