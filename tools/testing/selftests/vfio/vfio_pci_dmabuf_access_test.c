// SPDX-License-Identifier: GPL-2.0-only
/*
 * Whatever takes memory access away from a device takes it from everybody who
 * has a BAR or a DMABUF of it mapped, at once, and when it comes back the same
 * mappings work again.
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/limits.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "kselftest_harness.h"

static const char *device_bdf;

static size_t page_size;

/* Ways to take access away for a while ... */
struct access_switch {
	bool (*supported)(struct vfio_pci_device *device);
	void (*off)(struct vfio_pci_device *device);
	void (*on)(struct vfio_pci_device *device);
};

static bool always_supported(struct vfio_pci_device *device)
{
	return true;
}

static void memory_off(struct vfio_pci_device *device)
{
	vfio_pci_cmd_clear(device, PCI_COMMAND_MEMORY);
}

static void memory_on(struct vfio_pci_device *device)
{
	vfio_pci_cmd_set(device, PCI_COMMAND_MEMORY);
}

static const struct access_switch memory_switch = {
	.supported = always_supported,
	.off = memory_off,
	.on = memory_on,
};

static bool has_pm(struct vfio_pci_device *device)
{
	return vfio_pci_find_capability(device, PCI_CAP_ID_PM);
}

static void enter_d3hot(struct vfio_pci_device *device)
{
	vfio_pci_set_power_state(device, PCI_PM_CTRL_STATE_MASK);
}

static void enter_d0(struct vfio_pci_device *device)
{
	vfio_pci_set_power_state(device, 0);
}

static const struct access_switch d3hot_switch = {
	.supported = has_pm,
	.off = enter_d3hot,
	.on = enter_d0,
};

static void enter_low_power(struct vfio_pci_device *device)
{
	VFIO_ASSERT_EQ(__vfio_pci_low_power_entry(device), 0);
}

static void exit_low_power(struct vfio_pci_device *device)
{
	VFIO_ASSERT_EQ(__vfio_pci_low_power_exit(device), 0);
}

static const struct access_switch low_power_switch = {
	.supported = always_supported,
	.off = enter_low_power,
	.on = exit_low_power,
};

/* ... and ways to reset, which give it back before they return. */
struct access_reset {
	bool (*supported)(struct vfio_pci_device *device);
	void (*reset)(struct vfio_pci_device *device);
};

static bool has_reset(struct vfio_pci_device *device)
{
	return device->info.flags & VFIO_DEVICE_FLAGS_RESET;
}

static const struct access_reset ioctl_reset = {
	.supported = has_reset,
	.reset = vfio_pci_device_reset,
};

static const struct access_reset pcie_flr_reset = {
	.supported = vfio_pci_has_pcie_flr,
	.reset = vfio_pci_pcie_flr,
};

static const struct access_reset af_flr_reset = {
	.supported = vfio_pci_has_af_flr,
	.reset = vfio_pci_af_flr,
};

static void hot_reset(struct vfio_pci_device *device)
{
	VFIO_ASSERT_EQ(__vfio_pci_hot_reset(device), 0);
}

static const struct access_reset hot_reset_reset = {
	.supported = vfio_pci_hot_reset_is_ours,
	.reset = hot_reset,
};

/* Any BAR will do, where one has to be named: the last one. */
static const char *open_device(struct iommu **iommu,
			       struct vfio_pci_device **device, int *bar)
{
	const char *reason = dmabuf_test_open(device_bdf, false, page_size,
					      iommu, device, bar);

	if (!reason)
		*bar = vfio_pci_last_bar(*device, page_size);

	return reason;
}

/* A mapping under test */
struct view {
	const char *what;
	int bar;
	void *vaddr;
	size_t size;
};

#define MAX_VIEWS 64

struct views {
	struct view view[MAX_VIEWS];
	int nr;
};

static void views_add(struct views *views, const char *what, int bar,
		      void *vaddr, size_t size)
{
	VFIO_ASSERT_LT(views->nr, MAX_VIEWS);

	views->view[views->nr++] = (struct view) {
		.what = what,
		.bar = bar,
		.vaddr = vaddr,
		.size = size,
	};
}

/* Map @size bytes at @offset of the BAR, and of a DMABUF made of them. */
static void views_add_small(struct views *views, struct vfio_pci_device *device,
			    int bar, u64 offset, size_t size)
{
	int fd = vfio_pci_dmabuf_export_range(device, bar, offset, size);

	views_add(views, "BAR", bar,
		  vfio_pci_region_mmap(device, bar, offset, size), size);
	views_add(views, "DMABUF", bar, mmap_shared(fd, 0, size), size);
	views_add(views, "end of DMABUF", bar,
		  mmap_shared(fd, size - page_size, page_size), page_size);

	close_assert(fd);
}

/* Two pages of the BAR, the other way round. */
static void views_add_ranges(struct views *views,
			     struct vfio_pci_device *device, int bar)
{
	struct vfio_region_dma_range ranges[] = {
		{ page_size, page_size },
		{ 0, page_size },
	};
	int fd = vfio_pci_dmabuf_export(device, bar, ranges,
					ARRAY_SIZE(ranges));

	views_add(views, "DMABUF of 2 ranges", bar,
		  mmap_shared(fd, 0, 2 * page_size), 2 * page_size);

	close_assert(fd);
}

/* Mappings that take a huge page, and others that cannot. */
static void views_add_huge(struct views *views, struct vfio_pci_device *device,
			   int bar)
{
	u64 offset = vfio_pci_region_offset(device, bar);
	int fd = vfio_pci_dmabuf_export_range(device, bar, 0, SZ_2M);

	views_add(views, "BAR, huge", bar,
		  mmap_shared_aligned(device->fd, offset, SZ_2M, SZ_2M, 0),
		  SZ_2M);
	views_add(views, "BAR, misaligned", bar,
		  mmap_shared_aligned(device->fd, offset, SZ_2M, SZ_2M,
				      page_size), SZ_2M);
	views_add(views, "DMABUF, huge", bar,
		  mmap_shared_aligned(fd, 0, SZ_2M, SZ_2M, 0), SZ_2M);
	views_add(views, "DMABUF, misaligned", bar,
		  mmap_shared_aligned(fd, 0, SZ_2M, SZ_2M, page_size), SZ_2M);

	close_assert(fd);
}

/* Map each BAR in each way it allows. */
static void views_map(struct views *views, struct vfio_pci_device *device)
{
	int i;

	views->nr = 0;

	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		struct vfio_region_info *info = &device->bars[i].info;

		if (!(info->flags & VFIO_REGION_INFO_FLAG_MMAP))
			continue;

		if (info->size < page_size) {
			views_add(views, "sub-page BAR", i,
				  vfio_pci_region_mmap(device, i, 0,
						       page_size), page_size);
			continue;
		}

		views_add_small(views, device, i, 0, page_size);
		if (info->size >= 2 * page_size) {
			views_add_small(views, device, i, page_size,
					page_size);
			views_add_small(views, device, i,
					info->size - page_size, page_size);
			views_add_ranges(views, device, i);
		}
		if (info->size >= SZ_4M)
			views_add_huge(views, device, i);
	}

	VFIO_ASSERT_GT(views->nr, 0);
}

static void views_unmap(struct views *views)
{
	int i;

	for (i = 0; i < views->nr; i++)
		munmap_assert(views->view[i].vaddr, views->view[i].size);

	views->nr = 0;
}

/* Each page of each view answers @_sig, 0 for none. */
#define ASSERT_VIEWS(_views, _sig) do {						\
	struct views *__views = (_views);					\
	int __v;								\
										\
	for (__v = 0; __v < __views->nr; __v++) {				\
		struct view *__view = &__views->view[__v];			\
										\
		ASSERT_EQ((_sig), try_touch_pages(__view->vaddr,		\
						  __view->size)) {		\
			TH_LOG("BAR %d: %s", __view->bar, __view->what);	\
		}								\
	}									\
} while (0)

FIXTURE(access_switch) {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	struct vfio_client *client;
	const struct access_switch *access;
	struct views views;
	int bar;
	int fd;
};

FIXTURE_VARIANT(access_switch) {
	const struct access_switch *access;
};

FIXTURE_VARIANT_ADD(access_switch, memory_enable) {
	.access = &memory_switch,
};

FIXTURE_VARIANT_ADD(access_switch, d3hot) {
	.access = &d3hot_switch,
};

FIXTURE_VARIANT_ADD(access_switch, low_power) {
	.access = &low_power_switch,
};

FIXTURE_SETUP(access_switch)
{
	const char *reason;

	self->client = vfio_client_start();
	self->access = variant->access;
	reason = open_device(&self->iommu, &self->device, &self->bar);
	if (reason)
		SKIP(return, "%s", reason);
	if (!self->access->supported(self->device))
		SKIP(return, "Not supported by the device");

	self->fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						page_size);
}

FIXTURE_TEARDOWN(access_switch)
{
	views_unmap(&self->views);
	vfio_client_stop(self->client);
	close_assert(self->fd);
	vfio_pci_device_cleanup(self->device);
	iommu_cleanup(self->iommu);
}

TEST_F(access_switch, off_and_on)
{
	int i;

	views_map(&self->views, self->device);
	ASSERT_VIEWS(&self->views, 0);

	for (i = 0; i < 3; i++) {
		self->access->off(self->device);
		ASSERT_VIEWS(&self->views, SIGBUS);
		self->access->on(self->device);
		ASSERT_VIEWS(&self->views, 0);
	}
}

TEST_F(access_switch, untouched_mappings)
{
	views_map(&self->views, self->device);

	self->access->off(self->device);
	ASSERT_VIEWS(&self->views, SIGBUS);
	self->access->on(self->device);
	ASSERT_VIEWS(&self->views, 0);
}

TEST_F(access_switch, mapped_while_off)
{
	self->access->off(self->device);
	views_map(&self->views, self->device);
	ASSERT_VIEWS(&self->views, SIGBUS);

	self->access->on(self->device);
	ASSERT_VIEWS(&self->views, 0);

	self->access->off(self->device);
	ASSERT_VIEWS(&self->views, SIGBUS);
	self->access->on(self->device);
}

/* The buffer was made when there was access, only its mapping was not. */
TEST_F(access_switch, exported_before_mapped_while_off)
{
	void *vaddr;

	self->access->off(self->device);

	ASSERT_EQ(0, __mmap_shared(self->fd, 0, page_size,
				   PROT_READ | PROT_WRITE, &vaddr));
	ASSERT_EQ(SIGBUS, try_touch(vaddr));
	self->access->on(self->device);
	ASSERT_EQ(0, try_touch(vaddr));

	munmap_assert(vaddr, page_size);
}

/* Writes and system calls are answered like reads. */
TEST_F(access_switch, all_kinds_of_access)
{
	void *dmabuf = mmap_shared(self->fd, 0, page_size);
	void *bar = vfio_pci_region_mmap(self->device, self->bar, 0, page_size);

	ASSERT_EQ(0, try_touch(dmabuf));
	ASSERT_EQ(0, try_touch(bar));

	self->access->off(self->device);
	ASSERT_EQ(SIGBUS, try_write32(dmabuf, 0));
	ASSERT_EQ(SIGBUS, try_write32(bar, 0));
	ASSERT_EQ(-EFAULT, pipe_write(dmabuf));
	ASSERT_EQ(-EFAULT, pipe_write(bar));

	self->access->on(self->device);
	ASSERT_EQ(sizeof(u32), pipe_write(dmabuf));
	ASSERT_EQ(sizeof(u32), pipe_write(bar));

	munmap_assert(dmabuf, page_size);
	munmap_assert(bar, page_size);
}

TEST_F(access_switch, client)
{
	vfio_client_mmap(self->client, self->fd, 0, page_size);
	ASSERT_EQ(0, vfio_client_read32(self->client, 0, NULL));

	self->access->off(self->device);
	ASSERT_EQ(SIGBUS, vfio_client_read32(self->client, 0, NULL));
	vfio_client_mmap(self->client, self->fd, 0, page_size);
	ASSERT_EQ(SIGBUS, vfio_client_read32(self->client, 0, NULL));

	self->access->on(self->device);
	ASSERT_EQ(0, vfio_client_read32(self->client, 0, NULL));
}

TEST_F(access_switch, revoked_while_off)
{
	void *vaddr = mmap_shared(self->fd, 0, page_size);

	views_map(&self->views, self->device);
	ASSERT_EQ(0, try_touch(vaddr));

	self->access->off(self->device);
	ASSERT_EQ(0, __vfio_pci_dmabuf_revoke(self->device, self->fd));
	ASSERT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(self->device, self->fd));
	ASSERT_VIEWS(&self->views, SIGBUS);
	self->access->on(self->device);

	/* The others come back, it does not. */
	ASSERT_VIEWS(&self->views, 0);
	ASSERT_EQ(SIGBUS, try_touch(vaddr));

	munmap_assert(vaddr, page_size);
}

/* The next user of the device starts with access, whatever was left. */
TEST_F(access_switch, closed_while_off)
{
	void *vaddr = mmap_shared(self->fd, 0, page_size);
	void *again;

	ASSERT_EQ(0, try_touch(vaddr));
	self->access->off(self->device);
	vfio_pci_device_cleanup(self->device);

	ASSERT_EQ(SIGBUS, try_touch(vaddr));
	ASSERT_EQ(-ENODEV, __mmap_shared(self->fd, 0, page_size, PROT_READ,
					 &again));

	self->device = vfio_pci_device_init(device_bdf, self->iommu);
	ASSERT_EQ(SIGBUS, try_touch(vaddr));
	views_map(&self->views, self->device);
	ASSERT_VIEWS(&self->views, 0);

	munmap_assert(vaddr, page_size);
}

/* Access that is away for two reasons comes back with the second. */
FIXTURE(access_two_reasons) {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	struct views views;
};

FIXTURE_VARIANT(access_two_reasons) {
	const struct access_switch *first;
	const struct access_switch *second;
};

FIXTURE_VARIANT_ADD(access_two_reasons, memory_and_d3hot) {
	.first = &memory_switch,
	.second = &d3hot_switch,
};

FIXTURE_VARIANT_ADD(access_two_reasons, memory_and_low_power) {
	.first = &memory_switch,
	.second = &low_power_switch,
};

/*
 * Not a pair: D3hot and low power. Low power is reached by way of D0 and ends
 * there.
 */

FIXTURE_SETUP(access_two_reasons)
{
	const char *reason;
	int bar;

	reason = open_device(&self->iommu, &self->device, &bar);
	if (reason)
		SKIP(return, "%s", reason);
	if (!variant->first->supported(self->device) ||
	    !variant->second->supported(self->device))
		SKIP(return, "Not supported by the device");

	views_map(&self->views, self->device);
}

FIXTURE_TEARDOWN(access_two_reasons)
{
	views_unmap(&self->views);
	vfio_pci_device_cleanup(self->device);
	iommu_cleanup(self->iommu);
}

TEST_F(access_two_reasons, first_ends_last)
{
	ASSERT_VIEWS(&self->views, 0);

	variant->first->off(self->device);
	variant->second->off(self->device);
	ASSERT_VIEWS(&self->views, SIGBUS);

	variant->second->on(self->device);
	ASSERT_VIEWS(&self->views, SIGBUS);
	variant->first->on(self->device);
	ASSERT_VIEWS(&self->views, 0);
}

TEST_F(access_two_reasons, first_ends_first)
{
	ASSERT_VIEWS(&self->views, 0);

	variant->first->off(self->device);
	variant->second->off(self->device);
	ASSERT_VIEWS(&self->views, SIGBUS);

	variant->first->on(self->device);
	ASSERT_VIEWS(&self->views, SIGBUS);
	variant->second->on(self->device);
	ASSERT_VIEWS(&self->views, 0);
}

/* Entered twice, low power is left once; the second entry is an error. */
TEST(second_low_power_entry)
{
	struct vfio_pci_device *device;
	const char *reason;
	struct iommu *iommu;
	struct views views;
	int bar;

	reason = open_device(&iommu, &device, &bar);
	if (reason)
		SKIP(return, "%s", reason);

	views_map(&views, device);

	enter_low_power(device);
	ASSERT_EQ(-EINVAL, __vfio_pci_low_power_entry(device));
	ASSERT_VIEWS(&views, SIGBUS);
	exit_low_power(device);
	ASSERT_VIEWS(&views, 0);

	views_unmap(&views);
	vfio_pci_device_cleanup(device);
	iommu_cleanup(iommu);
}

/* Is the device asleep, within some seconds? */
static bool falls_asleep(const char *bdf)
{
	char path[PATH_MAX], status[32] = "";
	int ms;

	snprintf_assert(path, PATH_MAX,
			"/sys/bus/pci/devices/%s/power/runtime_status", bdf);
	for (ms = 0; ms < 10000; ms += 10) {
		FILE *file = fopen(path, "r");

		VFIO_ASSERT_NOT_NULL(file);
		VFIO_ASSERT_NOT_NULL(fgets(status, sizeof(status), file));
		VFIO_ASSERT_EQ(fclose(file), 0);
		if (!strcmp(status, "suspended\n"))
			return true;
		usleep(10000);
	}

	return false;
}

/* Low power that was entered with an eventfd ends with what wakes the device. */
TEST(wakeup_ends_low_power)
{
	struct {
		struct vfio_device_feature feature;
		struct vfio_device_low_power_entry_with_wakeup entry;
	} args = {
		.feature.argsz = sizeof(args),
		.feature.flags = VFIO_DEVICE_FEATURE_SET |
			VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP,
	};
	struct vfio_pci_device *device;
	const char *reason;
	struct iommu *iommu;
	struct views views;
	eventfd_t nr;
	int bar;

	reason = open_device(&iommu, &device, &bar);
	if (reason)
		SKIP(return, "%s", reason);

	views_map(&views, device);
	ASSERT_VIEWS(&views, 0);

	args.entry.wakeup_eventfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	ASSERT_LE(0, args.entry.wakeup_eventfd);
	ASSERT_EQ(0, ioctl(device->fd, VFIO_DEVICE_FEATURE, &args));
	ASSERT_TRUE(falls_asleep(device_bdf));
	ASSERT_VIEWS(&views, SIGBUS);
	ASSERT_EQ(-1, eventfd_read(args.entry.wakeup_eventfd, &nr));

	/* To look at the config space wakes it. */
	vfio_pci_config_readw(device, PCI_VENDOR_ID);
	ASSERT_EQ(0, eventfd_read(args.entry.wakeup_eventfd, &nr));
	ASSERT_VIEWS(&views, 0);

	close_assert(args.entry.wakeup_eventfd);
	views_unmap(&views);
	vfio_pci_device_cleanup(device);
	iommu_cleanup(iommu);
}

FIXTURE(access_reset) {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	const struct access_reset *reset;
	struct views views;
	int bar;
};

FIXTURE_VARIANT(access_reset) {
	const struct access_reset *reset;
};

FIXTURE_VARIANT_ADD(access_reset, reset_ioctl) {
	.reset = &ioctl_reset,
};

FIXTURE_VARIANT_ADD(access_reset, pcie_flr) {
	.reset = &pcie_flr_reset,
};

FIXTURE_VARIANT_ADD(access_reset, af_flr) {
	.reset = &af_flr_reset,
};

FIXTURE_VARIANT_ADD(access_reset, hot_reset) {
	.reset = &hot_reset_reset,
};

FIXTURE_SETUP(access_reset)
{
	const char *reason;

	self->reset = variant->reset;
	reason = open_device(&self->iommu, &self->device, &self->bar);
	if (reason)
		SKIP(return, "%s", reason);
	if (!self->reset->supported(self->device))
		SKIP(return, "Not supported by the device");

	views_map(&self->views, self->device);
	ASSERT_VIEWS(&self->views, 0);
}

FIXTURE_TEARDOWN(access_reset)
{
	views_unmap(&self->views);
	vfio_pci_device_cleanup(self->device);
	iommu_cleanup(self->iommu);
}

/*
 * The reset is over before anybody can see a mapping without access. That it
 * was without is seen from this: it takes a new fault to use it again.
 */
TEST_F(access_reset, takes_every_mapping_away)
{
	int i;

	self->reset->reset(self->device);

	for (i = 0; i < self->views.nr; i++) {
		struct view *view = &self->views.view[i];

		ASSERT_EQ(1, faults_to_touch(view->vaddr, 4, 4)) {
			TH_LOG("BAR %d: %s", view->bar, view->what);
		}
	}

	ASSERT_VIEWS(&self->views, 0);
}

TEST_F(access_reset, memory_stays_disabled)
{
	memory_off(self->device);
	ASSERT_VIEWS(&self->views, SIGBUS);

	self->reset->reset(self->device);
	ASSERT_EQ(0, vfio_pci_config_readw(self->device, PCI_COMMAND) &
		     PCI_COMMAND_MEMORY);
	ASSERT_VIEWS(&self->views, SIGBUS);

	memory_on(self->device);
	ASSERT_VIEWS(&self->views, 0);
}

/* A device in low power is woken for its reset, and sleeps again. */
TEST_F(access_reset, low_power_stays)
{
	enter_low_power(self->device);
	self->reset->reset(self->device);
	ASSERT_VIEWS(&self->views, SIGBUS);

	exit_low_power(self->device);
	ASSERT_VIEWS(&self->views, 0);
}

/* A reset puts the device into D0. */
TEST_F(access_reset, d3hot_ends)
{
	if (!has_pm(self->device))
		SKIP(return, "No power management capability");

	enter_d3hot(self->device);
	ASSERT_VIEWS(&self->views, SIGBUS);
	self->reset->reset(self->device);
	ASSERT_VIEWS(&self->views, 0);
}

TEST_F(access_reset, new_mappings_work)
{
	self->reset->reset(self->device);
	views_unmap(&self->views);
	views_map(&self->views, self->device);
	ASSERT_VIEWS(&self->views, 0);
}

TEST_F(access_reset, revoked_buffer_stays_revoked)
{
	int fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
					      page_size);
	void *vaddr = mmap_shared(fd, 0, page_size);

	ASSERT_EQ(0, try_touch(vaddr));
	vfio_pci_dmabuf_revoke(self->device, fd);
	self->reset->reset(self->device);

	ASSERT_EQ(SIGBUS, try_touch(vaddr));
	ASSERT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(self->device, fd));
	ASSERT_VIEWS(&self->views, 0);

	munmap_assert(vaddr, page_size);
	close_assert(fd);
}

int main(int argc, char *argv[])
{
	page_size = getpagesize();
	device_bdf = vfio_selftests_get_bdf(&argc, argv);
	return test_harness_run(argc, argv);
}
