// SPDX-License-Identifier: GPL-2.0-only
/*
 * Events that are not caused through the owner's device fd: a reset by sysfs
 * or by the owner's group, suspend of the system, an error of PCI Express. The
 * client keeps working, what was revoked stays revoked, also in the meantime.
 *
 * With $VFIO_SELFTESTS_SLEEP the system goes to sleep (S3) for some seconds.
 * Without it everything but that last step is done.
 */
#include <poll.h>
#include <unistd.h>

#include <sys/mman.h>

#include <linux/vfio.h>

#include "kselftest_harness.h"

#include <libvfio/dmabuf_test.h>

/* The argument of /dev/aer_inject, see drivers/pci/pcie/aer_inject.c */
struct aer_error_inj {
	u8 bus;
	u8 dev;
	u8 fn;
	u32 uncor_status;
	u32 cor_status;
	u32 header_log[4];
	u32 domain;
};

/* These return a reason to skip, or NULL. */
static const char *reset_by_sysfs(struct vfio_pci_device *device)
{
	if (!(device->info.flags & VFIO_DEVICE_FLAGS_RESET))
		return "No reset";
	VFIO_ASSERT_EQ(sysfs_device_write(device->bdf, "reset", "1"), 0);
	return NULL;
}

static const char *reset_by_group(struct vfio_pci_device *device)
{
	int fds[2];

	/* A caller without the device's group resets and revokes nothing. */
	VFIO_ASSERT_EQ(pipe(fds), 0);
	VFIO_ASSERT_EQ(__vfio_pci_hot_reset_by(device, fds[0]), -EINVAL);
	VFIO_ASSERT_EQ(__vfio_pci_hot_reset_by(device, 0), -EINVAL);
	VFIO_ASSERT_EQ(__vfio_pci_hot_reset(device), 0);
	return NULL;
}

#define WAKEALARM "/sys/class/rtc/rtc0/wakealarm"

/*
 * Until the clock wakes the system up. On a slow machine this may be before the
 * system sleeps, and ends the attempt.
 */
static int sleep_and_wake_up(void)
{
	char count[32], alarm[16];
	int seconds, fd, ret = -EBUSY;
	ssize_t len;

	for (seconds = 4; ret && seconds < 100; seconds *= 2) {
		fd = open("/sys/power/wakeup_count", O_RDONLY | O_CLOEXEC);
		VFIO_ASSERT_LE(0, fd);
		len = read(fd, count, sizeof(count) - 1);
		VFIO_ASSERT_LT(0, len);
		count[len] = 0;
		close_assert(fd);

		snprintf(alarm, sizeof(alarm), "+%d", seconds);
		write_file(WAKEALARM, 0, "0");
		VFIO_ASSERT_EQ(write_file(WAKEALARM, 0, alarm), 0);
		ret = write_file("/sys/power/wakeup_count", 0, count) ?:
		      write_file("/sys/power/state", 0, "mem");
	}
	return ret;
}

#define PM_TEST_DELAY "/sys/module/suspend/parameters/pm_test_delay"

/* The device is in D3 for a while, if it has that. */
static int sleep_but_last_step(void)
{
	char old[16];
	int ret;

	snprintf(old, sizeof(old), "%lu", read_number(PM_TEST_DELAY));
	VFIO_ASSERT_EQ(write_file(PM_TEST_DELAY, 0, "0"), 0);
	VFIO_ASSERT_EQ(write_file("/sys/power/pm_test", 0, "platform"), 0);
	ret = write_file("/sys/power/state", 0, "mem");
	VFIO_ASSERT_EQ(write_file("/sys/power/pm_test", 0, "none"), 0);
	VFIO_ASSERT_EQ(write_file(PM_TEST_DELAY, 0, old), 0);
	return ret;
}

static const char *suspend_system(struct vfio_pci_device *device)
{
	if (getenv("VFIO_SELFTESTS_SLEEP"))
		VFIO_ASSERT_EQ(sleep_and_wake_up(), 0);
	else if (!access("/sys/power/pm_test", F_OK))
		VFIO_ASSERT_EQ(sleep_but_last_step(), 0);
	else
		return "No test of suspend";
	return NULL;
}

static const char *inject_error(struct vfio_pci_device *device, u32 status)
{
	struct aer_error_inj error = { .uncor_status = status };
	int fd = open("/dev/aer_inject", O_WRONLY | O_CLOEXEC);
	struct pollfd reported = { .events = POLLIN };
	u32 bus, dev, fn;
	int nr;

	if (fd < 0)
		return "No injection of errors";

	nr = sscanf(device->bdf, "%x:%x:%x.%x", &error.domain, &bus, &dev, &fn);
	VFIO_ASSERT_EQ(nr, 4);
	error.bus = bus;
	error.dev = dev;
	error.fn = fn;
	reported.fd = vfio_pci_error_eventfd(device);
	if (write(fd, &error, sizeof(error)) < 0)
		return "No report of errors by the device";
	VFIO_ASSERT_EQ(poll(&reported, 1, JOB_ENDS_MS), 1);
	close_assert(reported.fd);
	close_assert(fd);
	return NULL;
}

static const char *report_error(struct vfio_pci_device *device)
{
	return inject_error(device, PCI_ERR_UNC_POISON_TLP);
}

FIXTURE(modes) {
	DMABUF_FIXTURE;
	struct vfio_client *client;
	int fd;
	void *vaddr;
	int revoked_fd;
	void *revoked;
};

FIXTURE_VARIANT(modes) {
	const char *iommu_mode;
	const char *(*go)(struct vfio_pci_device *device);
	/* Are mappings revoked meanwhile, to be faulted in again? */
	bool faults;
};

FIXTURE_VARIANT_ADD(modes, reset_by_sysfs) {
	.iommu_mode = MODE_IOMMUFD,
	.go = reset_by_sysfs,
};

FIXTURE_VARIANT_ADD(modes, reset_by_type1_group) {
	.iommu_mode = MODE_VFIO_TYPE1V2_IOMMU,
	.go = reset_by_group,
	.faults = true,
};

FIXTURE_VARIANT_ADD(modes, reset_by_iommufd_group) {
	.iommu_mode = MODE_IOMMUFD_COMPAT_TYPE1V2,
	.go = reset_by_group,
	.faults = true,
};

FIXTURE_VARIANT_ADD(modes, suspend) {
	.iommu_mode = MODE_IOMMUFD,
	.go = suspend_system,
};

FIXTURE_VARIANT_ADD(modes, error) {
	.iommu_mode = MODE_IOMMUFD,
	.go = report_error,
};

FIXTURE_SETUP(modes)
{
	self->client = vfio_client_start();
	default_iommu_mode = variant->iommu_mode;
	DMABUF_SETUP(self, false, page_size);
	self->fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						page_size);
	self->vaddr = mmap_shared(self->fd, 0, page_size);
	vfio_client_mmap(self->client, self->fd, 0, page_size);

	self->revoked_fd = vfio_pci_dmabuf_export_range(self->device, self->bar,
							0, page_size);
	self->revoked = mmap_shared(self->revoked_fd, 0, page_size);
	ASSERT_EQ(0, try_touch(self->revoked));
	vfio_pci_dmabuf_revoke(self->device, self->revoked_fd);
}

FIXTURE_TEARDOWN(modes)
{
	vfio_client_stop(self->client);
}

/* The second time while memory is disabled, which only the owner may end */
TEST_F(modes, client_keeps_working)
{
	struct touch_state *state = mmap(NULL, sizeof(*state),
					 PROT_READ | PROT_WRITE,
					 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct toucher touchers[2];
	const char *reason;
	void *again;
	int i;

	ASSERT_NE(MAP_FAILED, state);
	touch_set_phase(state, TOUCH_OFF);
	for (i = 0; i < 2; i++) {
		if (i)
			vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
		ASSERT_EQ(i ? SIGBUS : 0, try_touch(self->vaddr));
		ASSERT_EQ(i ? SIGBUS : 0,
			  vfio_client_read32(self->client, 0, NULL));

		touchers_start(touchers, state, self->revoked, page_size, true);
		ASSERT_TRUE(count_grows(&state->nr_refused));
		reason = variant->go(self->device);
		touchers_stop(touchers);
		if (reason)
			SKIP(return, "%s", reason);

		ASSERT_EQ(0, state->nr_wrong);
		ASSERT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(self->device,
							    self->revoked_fd));
		ASSERT_EQ(-ENODEV, __mmap_shared(self->revoked_fd, 0, page_size,
						 PROT_READ, &again));
		if (i) {
			ASSERT_EQ(SIGBUS, try_touch(self->vaddr));
			ASSERT_EQ(SIGBUS, vfio_client_read32(self->client, 0,
							     NULL));
			vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
		}
		ASSERT_EQ(i || variant->faults,
			  faults_to_touch(self->vaddr, 4, 4));
		ASSERT_EQ(0, vfio_client_read32(self->client, 0, NULL));
	}

	/* The owner, too: with other buffers, and revoke ends this one. */
	close_assert(vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						  page_size));
	vfio_pci_dmabuf_revoke(self->device, self->fd);
	ASSERT_EQ(SIGBUS, vfio_client_read32(self->client, 0, NULL));
}

/* Has the device, as it really is, been reset since its memory was enabled? */
static bool memory_is_off(void)
{
	char path[64];
	u16 cmd;
	int fd;

	snprintf_assert(path, (int)sizeof(path),
			"/sys/bus/pci/devices/%s/config", device_bdf);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	VFIO_ASSERT_GE(fd, 0);
	VFIO_ASSERT_EQ(pread(fd, &cmd, sizeof(cmd), PCI_COMMAND), sizeof(cmd));
	close_assert(fd);
	return !(cmd & PCI_COMMAND_MEMORY);
}

/*
 * The kernel resets the bus after a fatal error, and no driver restores what is lost.
 * The owner finds out, and closes the device.
 */
TEST(fatal_error)
{
	struct vfio_client *client = vfio_client_start();
	struct vfio_pci_device *device;
	int bar, fd, revoked_fd, ms;
	const char *reason;
	struct iommu *iommu;
	void *revoked;
	u32 old, val;

	DMABUF_OPEN(false, page_size, &iommu, &device, &bar);
	fd = vfio_pci_dmabuf_export_range(device, bar, 0, page_size);
	vfio_client_mmap(client, fd, 0, page_size);
	ASSERT_EQ(0, vfio_client_read32(client, 0, &old));
	revoked_fd = vfio_pci_dmabuf_export_range(device, bar, 0, page_size);
	revoked = mmap_shared(revoked_fd, 0, page_size);
	ASSERT_EQ(0, try_touch(revoked));
	vfio_pci_dmabuf_revoke(device, revoked_fd);

	reason = inject_error(device, PCI_ERR_UNC_DLP);
	if (reason)
		SKIP(return, "%s", reason);
	for (ms = 0; !memory_is_off(); ms++) {
		ASSERT_LT(ms, JOB_ENDS_MS);
		ASSERT_EQ(SIGBUS, try_touch(revoked));
		ASSERT_EQ(0, vfio_client_read32(client, 0, NULL));
		usleep(1000);
	}
	/* Busy until the recovery is over */
	for (ms = 0; __vfio_pci_device_reset(device); ms++) {
		ASSERT_LT(ms, JOB_ENDS_MS);
		ASSERT_EQ(SIGBUS, try_touch(revoked));
		usleep(1000);
	}
	ASSERT_EQ(SIGBUS, try_touch(revoked));
	ASSERT_EQ(0, vfio_client_read32(client, 0, NULL));
	vfio_pci_dmabuf_revoke(device, fd);
	ASSERT_EQ(SIGBUS, vfio_client_read32(client, 0, NULL));

	dmabuf_test_reopen(iommu, &device);
	ASSERT_FALSE(memory_is_off());
	ASSERT_EQ(SIGBUS, vfio_client_read32(client, 0, NULL));
	ASSERT_EQ(-ENODEV, __vfio_pci_dmabuf_revoke(device, fd));
	fd = vfio_pci_dmabuf_export_range(device, bar, 0, page_size);
	vfio_client_mmap(client, fd, 0, page_size);
	ASSERT_EQ(0, vfio_client_read32(client, 0, &val));
	ASSERT_EQ(old, val);
	vfio_client_stop(client);
}

/* The BAR of I/O ports, which is like one of memory that is smaller than a page */
TEST(io_ports)
{
	const char *bdf = vfio_selftests_get_named_bdf("VFIO_TESTDEV_BDF");
	struct iommu *iommu = iommu_init(default_iommu_mode);
	struct vfio_pci_device *device;
	struct vfio_region_info *info;
	u64 start, end, flags;
	void *vaddr;

	if (!bdf)
		SKIP(return, "No device with a BAR of I/O ports");

	sysfs_resource_get(bdf, 1, &start, &end, &flags);
	ASSERT_TRUE(flags & SYSFS_RESOURCE_IO);
	device = vfio_pci_device_init(bdf, iommu);
	info = &device->bars[1].info;
	ASSERT_EQ(end - start + 1, info->size);
	ASSERT_EQ(VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE,
		  info->flags);
	ASSERT_EQ(-EINVAL, __mmap_shared(device->fd, info->offset, page_size,
					 PROT_READ, &vaddr));
	ASSERT_EQ(-EINVAL, __vfio_pci_dmabuf_export_range(device, 1, O_RDWR, 0,
							  0, page_size));
}

int main(int argc, char *argv[])
{
	dmabuf_test_init(&argc, argv);
	return test_harness_run(argc, argv);
}
