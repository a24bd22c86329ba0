// SPDX-License-Identifier: GPL-2.0-only
/*
 * An operation that ends memory access of a device ends it at once for every mapping
 * of a BAR or DMABUF of it, and when access is back the same mappings work again.
 */
#include <errno.h>
#include <sched.h>
#include <signal.h>
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

static bool has_pm(struct vfio_pci_device *device)
{
	return vfio_pci_find_capability(device, PCI_CAP_ID_PM);
}

static bool has_reset(struct vfio_pci_device *device)
{
	return device->info.flags & VFIO_DEVICE_FLAGS_RESET;
}

static void enter_d3hot(struct vfio_pci_device *device)
{
	vfio_pci_set_power_state(device, PCI_PM_CTRL_STATE_MASK);
}

static void enter_d0(struct vfio_pci_device *device)
{
	vfio_pci_set_power_state(device, 0);
}

/* A mapping under test */
struct view {
	const char *what;
	int bar;
	void *vaddr;
	size_t size;
};

/* Each test is a process, and has its own. */
static struct view views[64];
static int nr_views;

static void views_add(const char *what, int bar, int fd, u64 offset,
		      size_t size, size_t misalign)
{
	VFIO_ASSERT_LT(nr_views, ARRAY_SIZE(views));

	views[nr_views++] = (struct view) {
		.what = what,
		.bar = bar,
		.vaddr = mmap_shared_aligned(fd, offset, size, SZ_2M, misalign),
		.size = size,
	};
}

/* Map [offset, offset + size) of the BAR, and of a DMABUF made of it. */
static void views_add_both(struct vfio_pci_device *device, int bar, u64 offset,
			   size_t size, size_t misalign)
{
	int fd = vfio_pci_dmabuf_export_range(device, bar, offset, size);

	offset += vfio_pci_region_offset(device, bar);
	views_add("BAR", bar, device->fd, offset, size, misalign);
	views_add("DMABUF", bar, fd, 0, size, misalign);
	close_assert(fd);
}

/* Two pages of the BAR, the other way round, and the second one alone */
static void views_add_ranges(struct vfio_pci_device *device, int bar)
{
	struct vfio_region_dma_range ranges[] = {
		{ page_size, page_size },
		{ 0, page_size },
	};
	int fd = vfio_pci_dmabuf_export(device, bar, ranges, 2);

	views_add("DMABUF of 2 ranges", bar, fd, 0, 2 * page_size, 0);
	views_add("end of DMABUF", bar, fd, page_size, page_size, 0);
	close_assert(fd);
}

/* Map each BAR in each way it allows. */
static void views_map(struct vfio_pci_device *device)
{
	struct vfio_region_info *info;
	int i;

	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		info = &device->bars[i].info;
		if (!(info->flags & VFIO_REGION_INFO_FLAG_MMAP))
			continue;
		if (info->size < page_size) {
			views_add("sub-page BAR", i, device->fd, info->offset,
				  page_size, 0);
			continue;
		}

		views_add_both(device, i, info->size - page_size,
			       page_size, 0);
		if (info->size >= 2 * page_size)
			views_add_ranges(device, i);
		if (info->size >= SZ_4M) {
			views_add_both(device, i, 0, SZ_2M, 0);
			views_add_both(device, i, 0, SZ_2M, page_size);
		}
	}

	VFIO_ASSERT_GT(nr_views, 0);
}

static void views_unmap(void)
{
	while (nr_views) {
		nr_views--;
		munmap_assert(views[nr_views].vaddr, views[nr_views].size);
	}
}

/* A touch of each page of each view raises @_sig, 0 for none. */
#define ASSERT_VIEWS(_sig) do {							\
	struct view *__view;							\
										\
	for (__view = views; __view < views + nr_views; __view++) {		\
		ASSERT_EQ((_sig), try_touch_pages(__view->vaddr,		\
						  __view->size)) {		\
			TH_LOG("BAR %d: %s", __view->bar, __view->what);	\
		}								\
	}									\
} while (0)

/*
 * Tests of one BAR use the last. Without @_supported, all devices are
 * supported.
 */
#define ACCESS_SETUP(_self, _supported) do {					\
	if (!getenv_u32("VFIO_SELFTESTS_READ_BARS", 0))				\
		SKIP(return, "No BARs known to be read without side effects");	\
	DMABUF_SETUP((_self), false, page_size);				\
	if ((_supported) && !(_supported)((_self)->device))			\
		SKIP(return, "Not supported by the device");			\
	(_self)->bar = vfio_pci_last_bar((_self)->device, page_size);		\
	views_map((_self)->device);						\
} while (0)

/* Ways to end access for a while ... */
FIXTURE(access_switch) {
	DMABUF_FIXTURE;
	int fd;
	void *vaddr;
};

FIXTURE_VARIANT(access_switch) {
	bool (*supported)(struct vfio_pci_device *device);
	void (*off)(struct vfio_pci_device *device);
	void (*on)(struct vfio_pci_device *device);
};

FIXTURE_VARIANT_ADD(access_switch, memory_enable) {
	.off = vfio_pci_memory_off, .on = vfio_pci_memory_on,
};

FIXTURE_VARIANT_ADD(access_switch, d3hot) {
	.supported = has_pm, .off = enter_d3hot, .on = enter_d0,
};

FIXTURE_VARIANT_ADD(access_switch, low_power) {
	.off = vfio_pci_low_power_entry, .on = vfio_pci_low_power_exit,
};

FIXTURE_SETUP(access_switch)
{
	ACCESS_SETUP(self, variant->supported);
	self->fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						page_size);
	self->vaddr = mmap_shared(self->fd, 0, page_size);
}

FIXTURE_TEARDOWN(access_switch)
{
}

/* Touched before or not, of a new or an old buffer, mapped at any time */
TEST_F(access_switch, off_and_on)
{
	void *again;
	int i;

	for (i = 0; i < 4; i++) {
		variant->off(self->device);
		ASSERT_VIEWS(SIGBUS);
		if (i == 1) {
			views_unmap();
			views_map(self->device);
			ASSERT_VIEWS(SIGBUS);
			again = mmap_shared(self->fd, 0, page_size);
			ASSERT_EQ(SIGBUS, try_touch(again));
		}
		variant->on(self->device);
		ASSERT_VIEWS(0);
	}
	ASSERT_EQ(0, try_touch(again));
}

/* Writes and system calls fail like reads. */
TEST_F(access_switch, all_kinds_of_access)
{
	void *vaddrs[] = {
		self->vaddr, self->device->bars[self->bar].vaddr,
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(vaddrs); i++) {
		variant->off(self->device);
		ASSERT_EQ(SIGBUS, try_write32(vaddrs[i], 0));
		ASSERT_EQ(-EFAULT, pipe_write(vaddrs[i]));
		variant->on(self->device);
		ASSERT_EQ(sizeof(u32), pipe_write(vaddrs[i]));
	}
}

/* The next user of the device starts with access, whatever was left. */
TEST_F(access_switch, closed_while_off)
{
	void *again;

	ASSERT_EQ(0, try_touch(self->vaddr));
	variant->off(self->device);
	views_unmap();
	dmabuf_test_close(&self->device);
	ASSERT_EQ(SIGBUS, try_touch(self->vaddr));
	ASSERT_EQ(-ENODEV, __mmap_shared(self->fd, 0, page_size, PROT_READ,
					 &again));

	dmabuf_test_reopen(self->iommu, &self->device);
	ASSERT_EQ(SIGBUS, try_touch(self->vaddr));
	views_map(self->device);
	ASSERT_VIEWS(0);
}

/*
 * Access that is lost for two reasons is restored when both have ended. D3hot
 * and low power cannot be combined: the device enters and leaves low power
 * through D0.
 */
TEST_F(access_switch, memory_disabled_too)
{
	int i;

	if (variant->off == vfio_pci_memory_off)
		SKIP(return, "No second reason");

	for (i = 0; i < 2; i++) {
		vfio_pci_memory_off(self->device);
		variant->off(self->device);
		ASSERT_VIEWS(SIGBUS);
		(i ? variant->on : vfio_pci_memory_on)(self->device);
		ASSERT_VIEWS(SIGBUS);
		(i ? vfio_pci_memory_on : variant->on)(self->device);
		ASSERT_VIEWS(0);
	}
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

/* Returns the eventfd. */
static int enter_low_power_with_wakeup(struct vfio_pci_device *device, int flags)
{
	struct {
		struct vfio_device_feature feature;
		struct vfio_device_low_power_entry_with_wakeup entry;
	} args = {
		.feature.argsz = sizeof(args),
		.feature.flags = VFIO_DEVICE_FEATURE_SET |
			VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP,
		.entry.wakeup_eventfd = eventfd(0, EFD_CLOEXEC | flags),
	};

	VFIO_ASSERT_GE(args.entry.wakeup_eventfd, 0);
	ioctl_assert(device->fd, VFIO_DEVICE_FEATURE, &args);
	return args.entry.wakeup_eventfd;
}

/*
 * Low power that was entered with an eventfd ends with what wakes the device. The
 * revoke of a DMABUF does not.
 */
TEST_F(access_switch, wakeup)
{
	int wakeup, fd = vfio_pci_dmabuf_export_range(self->device, self->bar,
						      0, page_size);
	eventfd_t nr;

	if (variant->off != vfio_pci_low_power_entry)
		SKIP(return, "Not low power");

	wakeup = enter_low_power_with_wakeup(self->device, EFD_NONBLOCK);
	ASSERT_TRUE(falls_asleep(device_bdf));
	ASSERT_VIEWS(SIGBUS);
	vfio_pci_dmabuf_revoke(self->device, fd);
	ASSERT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(self->device, fd));
	ASSERT_EQ(-1, eventfd_read(wakeup, &nr));

	/* A read of config space wakes the device. */
	vfio_pci_config_readw(self->device, PCI_VENDOR_ID);
	ASSERT_EQ(0, eventfd_read(wakeup, &nr));
	ASSERT_VIEWS(0);

	/* Entered twice, it is left once; the second entry is an error. */
	vfio_pci_low_power_entry(self->device);
	ASSERT_EQ(-EINVAL, __vfio_pci_low_power_entry(self->device));
	ASSERT_VIEWS(SIGBUS);
	vfio_pci_low_power_exit(self->device);
	ASSERT_VIEWS(0);
}

static void set_scheduler(int policy, int priority)
{
	struct sched_param param = { .sched_priority = priority };

	VFIO_ASSERT_EQ(sched_setscheduler(0, policy, &param), 0);
}

static int touch_when_signalled(void *vaddr, int fd)
{
	eventfd_t nr;

	return eventfd_read(fd, &nr) ?: try_touch(vaddr);
}

/*
 * The eventfd is signalled when there is access again. The waiting thread has
 * real-time priority, and shares one CPU with the thread that wakes the
 * device. With CONFIG_PREEMPT the touch comes in the middle of the kernel's
 * signalling.
 */
TEST_F(access_switch, access_before_signal)
{
	cpu_set_t cpu;
	struct job job;
	int fd;

	if (variant->off != vfio_pci_low_power_entry)
		SKIP(return, "Not low power");

	fd = enter_low_power_with_wakeup(self->device, 0);
	ASSERT_TRUE(falls_asleep(device_bdf));
	CPU_ZERO(&cpu);
	CPU_SET(0, &cpu);
	ASSERT_EQ(0, sched_setaffinity(0, sizeof(cpu), &cpu));
	set_scheduler(SCHED_FIFO, 1);
	job_start(&job, touch_when_signalled, views[0].vaddr, fd);
	/* The new thread runs now, until it waits. */
	set_scheduler(SCHED_OTHER, 0);
	vfio_pci_config_readw(self->device, PCI_VENDOR_ID);
	ASSERT_EQ(0, job_result(&job));
}

/* ... and ways to reset, which restore access before they return. */
FIXTURE(access_reset) {
	DMABUF_FIXTURE;
};

FIXTURE_VARIANT(access_reset) {
	bool (*supported)(struct vfio_pci_device *device);
	void (*reset)(struct vfio_pci_device *device);
};

FIXTURE_VARIANT_ADD(access_reset, reset_ioctl) {
	.supported = has_reset, .reset = vfio_pci_device_reset,
};

FIXTURE_VARIANT_ADD(access_reset, pcie_flr) {
	.supported = vfio_pci_has_pcie_flr, .reset = vfio_pci_pcie_flr,
};

FIXTURE_VARIANT_ADD(access_reset, af_flr) {
	.supported = vfio_pci_has_af_flr, .reset = vfio_pci_af_flr,
};

FIXTURE_VARIANT_ADD(access_reset, hot_reset) {
	.supported = vfio_pci_hot_reset_is_ours, .reset = vfio_pci_hot_reset,
};

FIXTURE_SETUP(access_reset)
{
	ACCESS_SETUP(self, variant->supported);
	ASSERT_VIEWS(0);
}

FIXTURE_TEARDOWN(access_reset)
{
}

/*
 * No access can observe the reset itself. The page fault of the next access
 * shows that the mapping was unmapped. A revoked buffer stays revoked.
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
	for (i = 0; i < nr_views; i++) {
		ASSERT_EQ(1, faults_to_touch(views[i].vaddr, 4, 4)) {
			TH_LOG("BAR %d: %s", views[i].bar, views[i].what);
		}
	}
	ASSERT_VIEWS(0);

	views_unmap();
	views_map(self->device);
	ASSERT_VIEWS(0);
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
		{ "memory disabled", NULL, vfio_pci_memory_off,
		  vfio_pci_memory_on },
		{ "low power", NULL, vfio_pci_low_power_entry,
		  vfio_pci_low_power_exit },
		{ "D3hot", has_pm, enter_d3hot, NULL },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(reasons); i++) {
		if (reasons[i].supported && !reasons[i].supported(self->device))
			continue;

		TH_LOG("%s", reasons[i].name);
		reasons[i].off(self->device);
		ASSERT_VIEWS(SIGBUS);
		variant->reset(self->device);
		if (reasons[i].off == vfio_pci_memory_off)
			ASSERT_EQ(0, vfio_pci_config_readw(self->device,
							   PCI_COMMAND) &
				     PCI_COMMAND_MEMORY);
		if (reasons[i].on) {
			ASSERT_VIEWS(SIGBUS);
			reasons[i].on(self->device);
		}
		ASSERT_VIEWS(0);
	}
}

int main(int argc, char *argv[])
{
	dmabuf_test_init(&argc, argv);
	return test_harness_run(argc, argv);
}
