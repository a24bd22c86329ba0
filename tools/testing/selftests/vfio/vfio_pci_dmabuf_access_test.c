// SPDX-License-Identifier: GPL-2.0-only
/*
 * An operation that ends memory access of a device ends it at once for every mapping
 * of a BAR or DMABUF of it, and when access is back the same mappings work again.
 */
#include <errno.h>
#include <signal.h>
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

#include "kselftest_harness.h"

#include <libvfio/dmabuf_test.h>

static bool always_supported(struct vfio_pci_device *device)
{
	return true;
}

static bool has_pm(struct vfio_pci_device *device)
{
	return vfio_pci_find_capability(device, PCI_CAP_ID_PM);
}

static bool has_reset(struct vfio_pci_device *device)
{
	return device->info.flags & VFIO_DEVICE_FLAGS_RESET;
}

static void memory_off(struct vfio_pci_device *device)
{
	vfio_pci_cmd_clear(device, PCI_COMMAND_MEMORY);
}

static void memory_on(struct vfio_pci_device *device)
{
	vfio_pci_cmd_set(device, PCI_COMMAND_MEMORY);
}

static void enter_d3hot(struct vfio_pci_device *device)
{
	vfio_pci_set_power_state(device, PCI_PM_CTRL_STATE_MASK);
}

static void enter_d0(struct vfio_pci_device *device)
{
	vfio_pci_set_power_state(device, 0);
}

static void enter_low_power(struct vfio_pci_device *device)
{
	VFIO_ASSERT_EQ(__vfio_pci_low_power_entry(device), 0);
}

static void exit_low_power(struct vfio_pci_device *device)
{
	VFIO_ASSERT_EQ(__vfio_pci_low_power_exit(device), 0);
}

static void hot_reset(struct vfio_pci_device *device)
{
	VFIO_ASSERT_EQ(__vfio_pci_hot_reset(device), 0);
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

static void views_add(struct views *views, const char *what, int bar, int fd,
		      u64 offset, size_t size, size_t align, size_t misalign)
{
	VFIO_ASSERT_LT(views->nr, MAX_VIEWS);

	views->view[views->nr++] = (struct view) {
		.what = what,
		.bar = bar,
		.vaddr = mmap_shared_aligned(fd, offset, size, align, misalign),
		.size = size,
	};
}

/* Map [offset, offset + size) of the BAR, and of a DMABUF made of it. */
static void views_add_both(struct views *views, struct vfio_pci_device *device,
			   int bar, u64 offset, size_t size, size_t align,
			   size_t misalign)
{
	int fd = vfio_pci_dmabuf_export_range(device, bar, offset, size);

	offset += vfio_pci_region_offset(device, bar);
	views_add(views, "BAR", bar, device->fd, offset, size, align, misalign);
	views_add(views, "DMABUF", bar, fd, 0, size, align, misalign);
	close_assert(fd);
}

/* Two pages of the BAR, the other way round, and the second one alone */
static void views_add_ranges(struct views *views,
			     struct vfio_pci_device *device, int bar)
{
	struct vfio_region_dma_range ranges[] = {
		{ page_size, page_size },
		{ 0, page_size },
	};
	int fd = vfio_pci_dmabuf_export(device, bar, ranges,
					ARRAY_SIZE(ranges));

	views_add(views, "DMABUF of 2 ranges", bar, fd, 0, 2 * page_size,
		  page_size, 0);
	views_add(views, "end of DMABUF", bar, fd, page_size, page_size,
		  page_size, 0);
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
			views_add(views, "sub-page BAR", i, device->fd,
				  info->offset, page_size, page_size, 0);
			continue;
		}

		views_add_both(views, device, i, 0, page_size, page_size, 0);
		if (info->size >= 2 * page_size) {
			views_add_both(views, device, i, info->size - page_size,
				       page_size, page_size, 0);
			views_add_ranges(views, device, i);
		}
		if (info->size >= SZ_4M) {
			views_add_both(views, device, i, 0, SZ_2M, SZ_2M, 0);
			views_add_both(views, device, i, 0, SZ_2M, SZ_2M,
				       page_size);
		}
	}

	VFIO_ASSERT_GT(views->nr, 0);
}

static void views_unmap(struct views *views)
{
	while (views->nr) {
		struct view *view = &views->view[--views->nr];

		munmap_assert(view->vaddr, view->size);
	}
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

/* The members of all fixtures; any BAR does where one has to be named: the last */
#define ACCESS_FIXTURE								\
	DMABUF_FIXTURE;								\
	struct views views

#define ACCESS_SETUP(_self, _supported) do {					\
	if (!getenv_u32("VFIO_SELFTESTS_READ_BARS", 0))				\
		SKIP(return, "No BARs known to be read without side effects");	\
	DMABUF_SETUP((_self), false, page_size);				\
	if (!(_supported)((_self)->device))					\
		SKIP(return, "Not supported by the device");			\
	(_self)->bar = vfio_pci_last_bar((_self)->device, page_size);		\
	views_map(&(_self)->views, (_self)->device);				\
} while (0)

/* Ways to end access for a while ... */
FIXTURE(access_switch) {
	ACCESS_FIXTURE;
	struct vfio_client *client;
	int fd;
	void *vaddr;
};

FIXTURE_VARIANT(access_switch) {
	bool (*supported)(struct vfio_pci_device *device);
	void (*off)(struct vfio_pci_device *device);
	void (*on)(struct vfio_pci_device *device);
};

FIXTURE_VARIANT_ADD(access_switch, memory_enable) {
	.supported = always_supported,
	.off = memory_off,
	.on = memory_on,
};

FIXTURE_VARIANT_ADD(access_switch, d3hot) {
	.supported = has_pm,
	.off = enter_d3hot,
	.on = enter_d0,
};

FIXTURE_VARIANT_ADD(access_switch, low_power) {
	.supported = always_supported,
	.off = enter_low_power,
	.on = exit_low_power,
};

FIXTURE_SETUP(access_switch)
{
	self->client = vfio_client_start();
	ACCESS_SETUP(self, variant->supported);
	self->fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						page_size);
	self->vaddr = mmap_shared(self->fd, 0, page_size);
}

FIXTURE_TEARDOWN(access_switch)
{
	vfio_client_stop(self->client);
}

/* Touched before or not, of a new or an old buffer, mapped at any time */
TEST_F(access_switch, off_and_on)
{
	void *again;
	int i;

	for (i = 0; i < 4; i++) {
		variant->off(self->device);
		ASSERT_VIEWS(&self->views, SIGBUS);
		if (i == 1) {
			views_unmap(&self->views);
			views_map(&self->views, self->device);
			ASSERT_VIEWS(&self->views, SIGBUS);
			again = mmap_shared(self->fd, 0, page_size);
			ASSERT_EQ(SIGBUS, try_touch(again));
		}
		variant->on(self->device);
		ASSERT_VIEWS(&self->views, 0);
	}
	ASSERT_EQ(0, try_touch(again));
}

/* Writes and system calls are answered like reads, a client like the owner. */
TEST_F(access_switch, all_kinds_of_access)
{
	void *vaddrs[] = {
		self->vaddr, self->device->bars[self->bar].vaddr,
	};
	int i;

	vfio_client_mmap(self->client, self->fd, 0, page_size);
	ASSERT_EQ(0, vfio_client_read32(self->client, 0, NULL));

	variant->off(self->device);
	for (i = 0; i < ARRAY_SIZE(vaddrs); i++) {
		ASSERT_EQ(SIGBUS, try_write32(vaddrs[i], 0));
		ASSERT_EQ(-EFAULT, pipe_write(vaddrs[i]));
	}
	ASSERT_EQ(SIGBUS, vfio_client_read32(self->client, 0, NULL));
	vfio_client_mmap(self->client, self->fd, 0, page_size);
	ASSERT_EQ(SIGBUS, vfio_client_read32(self->client, 0, NULL));

	variant->on(self->device);
	for (i = 0; i < ARRAY_SIZE(vaddrs); i++)
		ASSERT_EQ(sizeof(u32), pipe_write(vaddrs[i]));
	ASSERT_EQ(0, vfio_client_read32(self->client, 0, NULL));
}

/* The next user of the device starts with access, whatever was left. */
TEST_F(access_switch, closed_while_off)
{
	void *again;

	ASSERT_EQ(0, try_touch(self->vaddr));
	variant->off(self->device);
	views_unmap(&self->views);
	dmabuf_test_close(&self->device);
	ASSERT_EQ(SIGBUS, try_touch(self->vaddr));
	ASSERT_EQ(-ENODEV, __mmap_shared(self->fd, 0, page_size, PROT_READ,
					 &again));

	dmabuf_test_reopen(self->iommu, &self->device);
	ASSERT_EQ(SIGBUS, try_touch(self->vaddr));
	views_map(&self->views, self->device);
	ASSERT_VIEWS(&self->views, 0);
}

/*
 * Access that is away for two reasons comes back with the end of the last. D3hot
 * and low power are no such pair: low power is entered and left by way of D0.
 */
TEST_F(access_switch, memory_disabled_too)
{
	int i;

	if (variant->off == memory_off)
		SKIP(return, "No second reason");

	for (i = 0; i < 2; i++) {
		memory_off(self->device);
		variant->off(self->device);
		ASSERT_VIEWS(&self->views, SIGBUS);
		(i ? variant->on : memory_on)(self->device);
		ASSERT_VIEWS(&self->views, SIGBUS);
		(i ? memory_on : variant->on)(self->device);
		ASSERT_VIEWS(&self->views, 0);
	}
}

FIXTURE(low_power) {
	ACCESS_FIXTURE;
};

FIXTURE_SETUP(low_power)
{
	ACCESS_SETUP(self, always_supported);
}

FIXTURE_TEARDOWN(low_power)
{
}

static bool falls_asleep(const char *bdf)
{
	char path[PATH_MAX], status[32] = "";
	int ms;

	snprintf_assert(path, PATH_MAX,
			"/sys/bus/pci/devices/%s/power/runtime_status", bdf);
	for (ms = 0; ms < JOB_ENDS_MS; ms += 10) {
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
TEST_F(low_power, wakeup)
{
	struct {
		struct vfio_device_feature feature;
		struct vfio_device_low_power_entry_with_wakeup entry;
	} args = {
		.feature.argsz = sizeof(args),
		.feature.flags = VFIO_DEVICE_FEATURE_SET |
			VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP,
		.entry.wakeup_eventfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
	};
	eventfd_t nr;

	ASSERT_LE(0, args.entry.wakeup_eventfd);
	ASSERT_EQ(0, ioctl(self->device->fd, VFIO_DEVICE_FEATURE, &args));
	ASSERT_TRUE(falls_asleep(device_bdf));
	ASSERT_VIEWS(&self->views, SIGBUS);
	ASSERT_EQ(-1, eventfd_read(args.entry.wakeup_eventfd, &nr));

	/* To read the config space wakes it. */
	vfio_pci_config_readw(self->device, PCI_VENDOR_ID);
	ASSERT_EQ(0, eventfd_read(args.entry.wakeup_eventfd, &nr));
	ASSERT_VIEWS(&self->views, 0);

	/* Entered twice, it is left once; the second entry is an error. */
	enter_low_power(self->device);
	ASSERT_EQ(-EINVAL, __vfio_pci_low_power_entry(self->device));
	ASSERT_VIEWS(&self->views, SIGBUS);
	exit_low_power(self->device);
	ASSERT_VIEWS(&self->views, 0);
}

/* ... and ways to reset, which restore access before they return. */
FIXTURE(access_reset) {
	ACCESS_FIXTURE;
};

FIXTURE_VARIANT(access_reset) {
	bool (*supported)(struct vfio_pci_device *device);
	void (*reset)(struct vfio_pci_device *device);
};

FIXTURE_VARIANT_ADD(access_reset, reset_ioctl) {
	.supported = has_reset,
	.reset = vfio_pci_device_reset,
};

FIXTURE_VARIANT_ADD(access_reset, pcie_flr) {
	.supported = vfio_pci_has_pcie_flr,
	.reset = vfio_pci_pcie_flr,
};

FIXTURE_VARIANT_ADD(access_reset, af_flr) {
	.supported = vfio_pci_has_af_flr,
	.reset = vfio_pci_af_flr,
};

FIXTURE_VARIANT_ADD(access_reset, hot_reset) {
	.supported = vfio_pci_hot_reset_is_ours,
	.reset = hot_reset,
};

FIXTURE_SETUP(access_reset)
{
	ACCESS_SETUP(self, variant->supported);
	ASSERT_VIEWS(&self->views, 0);
}

FIXTURE_TEARDOWN(access_reset)
{
}

/*
 * The reset is over before anybody can see a mapping without access. What shows
 * that there was none is the new fault that it takes to use a mapping again. A
 * revoked buffer stays revoked.
 */
TEST_F(access_reset, unmaps_every_mapping)
{
	int fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
					      page_size);
	void *revoked = mmap_shared(fd, 0, page_size);
	int i;

	ASSERT_EQ(0, try_touch(revoked));
	vfio_pci_dmabuf_revoke(self->device, fd);
	variant->reset(self->device);
	ASSERT_EQ(SIGBUS, try_touch(revoked));
	ASSERT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(self->device, fd));
	for (i = 0; i < self->views.nr; i++) {
		struct view *view = &self->views.view[i];

		ASSERT_EQ(1, faults_to_touch(view->vaddr, 4, 4)) {
			TH_LOG("BAR %d: %s", view->bar, view->what);
		}
	}
	ASSERT_VIEWS(&self->views, 0);

	views_unmap(&self->views);
	views_map(&self->views, self->device);
	ASSERT_VIEWS(&self->views, 0);
}

/*
 * A reset restores access only if nothing else has ended it: not if memory is
 * disabled, nor in low power, from which the device is woken for its reset. It does
 * put a device in D3hot into D0.
 */
TEST_F(access_reset, access_ended_before)
{
	static const struct {
		const char *name;
		bool (*supported)(struct vfio_pci_device *device);
		void (*off)(struct vfio_pci_device *device);
		void (*on)(struct vfio_pci_device *device);
	} reasons[] = {
		{ "memory disabled", always_supported, memory_off, memory_on },
		{ "low power", always_supported, enter_low_power,
		  exit_low_power },
		{ "D3hot", has_pm, enter_d3hot, NULL },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(reasons); i++) {
		if (!reasons[i].supported(self->device))
			continue;

		TH_LOG("%s", reasons[i].name);
		reasons[i].off(self->device);
		ASSERT_VIEWS(&self->views, SIGBUS);
		variant->reset(self->device);
		if (reasons[i].off == memory_off)
			ASSERT_EQ(0, vfio_pci_config_readw(self->device,
							   PCI_COMMAND) &
				     PCI_COMMAND_MEMORY);
		if (reasons[i].on) {
			ASSERT_VIEWS(&self->views, SIGBUS);
			reasons[i].on(self->device);
		}
		ASSERT_VIEWS(&self->views, 0);
	}
}

int main(int argc, char *argv[])
{
	dmabuf_test_init(&argc, argv);
	return test_harness_run(argc, argv);
}
