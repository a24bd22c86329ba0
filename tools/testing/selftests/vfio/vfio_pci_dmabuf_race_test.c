// SPDX-License-Identifier: GPL-2.0-only
/*
 * Access to a device's memory is revoked while others use it: touch it, map it,
 * unmap it, export it, import it, or hold descriptors of it.
 *
 * After the operation that revokes access has returned, no access succeeds; as long
 * as there is access, it finds the right data. See <libvfio/toucher.h>.
 *
 * $VFIO_RACE_ROUNDS sets the number of rounds of those races that have short ones.
 * The others, whose rounds include a reset, do a fraction of that.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <linux/compiler.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/userfaultfd.h>
#include <linux/vfio.h>

#include "kselftest_harness.h"

#include <libvfio/dmabuf_test.h>

#define NR_PAGES	32

/* How long a round may last until access is revoked */
#define MAX_DELAY_US	1500

/* The kernel driver of the device */
static char *driver;

FIXTURE(race) {
	DMABUF_FIXTURE;
	/* Child processes share it */
	struct touch_state state;
	size_t size;
	u32 rounds;
	u32 seed;
	bool unbinding;
	/* iommufd imports no more than one */
	bool one_range;
	/* For a second thread */
	int fd;
	void *vaddr;
	u32 racer_seed;
};

/* Shows the same data as map_bar(), from elsewhere in the BAR */
static int export(FIXTURE_DATA(race) *self)
{
	struct vfio_region_dma_range ranges[4];
	int i;

	if (self->one_range)
		return vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						    self->size);
	for (i = 0; i < 4; i++) {
		ranges[i].length = self->size / 4;
		ranges[i].offset = self->size + (3 - i) * self->size / 4;
	}
	return vfio_pci_dmabuf_export(self->device, self->bar, ranges, 4);
}

/* An O_PATH descriptor keeps a DMABUF that has no open file any more. */
static int export_o_path(FIXTURE_DATA(race) *self)
{
	int fd = export(self);
	int o_path = open_o_path(fd);

	close_assert(fd);
	return o_path;
}

/* In small pages: the more of them, the more faults there are to race with. */
static void *map_dmabuf(FIXTURE_DATA(race) *self, int fd)
{
	return mmap_shared_aligned(fd, 0, self->size, SZ_2M, page_size);
}

static void *map_bar(FIXTURE_DATA(race) *self)
{
	return vfio_pci_region_mmap_aligned(self->device, self->bar, 0,
					    self->size, SZ_2M, page_size);
}

FIXTURE_SETUP(race)
{
	DMABUF_SETUP(self, true, SZ_16M);
	self->size = NR_PAGES * page_size;
	self->rounds = getenv_u32("VFIO_RACE_ROUNDS", 100);
	self->seed = 1;
	touch_fill(self->device->bars[self->bar].vaddr, self->size);
	touch_fill(map_dmabuf(self, export(self)), self->size);

	/* BAR mappings in a child process would keep the device open. */
	vfio_pci_bar_unmap_all(self->device);
}

/*
 * The exit of the test has killed its threads and children, and closed the device.
 * So an unbind that is left of a failed test comes to its end.
 */
FIXTURE_TEARDOWN_PARENT(race)
{
	int ms;

	for (ms = 0; self->unbinding && ms < JOB_ENDS_MS; ms++) {
		self->unbinding = __sysfs_driver_bind(driver, device_bdf);
		usleep(1000);
	}
}

/* Debug kernels are slow. */
#define TEST_RACE(_name) TEST_F_TIMEOUT(race, _name, 600)

static void memory_off(FIXTURE_DATA(race) *self)
{
	touch_set_phase(&self->state, TOUCH_GOING);
	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	touch_set_phase(&self->state, TOUCH_OFF);
}

static void memory_on(FIXTURE_DATA(race) *self)
{
	touch_set_phase(&self->state, TOUCH_COMING);
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	touch_set_phase(&self->state, TOUCH_ON);
}

/* mmap() and iommufd map the buffer; after the revoke neither can. */
static int mapper_main(void *arg, int fd)
{
	FIXTURE_DATA(race) *self = arg;
	void *vaddr;
	int ret;
	u32 i;

	for (i = 0; !READ_ONCE(self->state.stop); i++) {
		enum touch_phase phase = touch_get_phase(&self->state);

		if (i % 2)
			ret = __mmap_shared(self->fd, 0, self->size, PROT_READ,
					    &vaddr);
		else
			ret = __iommu_map_file(self->iommu, self->fd, 0,
					       self->size, SZ_1G);
		if (ret) {
			VFIO_ASSERT_EQ(ret, -ENODEV);
			VFIO_ASSERT_NE(touch_get_phase(&self->state), TOUCH_ON);
			continue;
		}
		VFIO_ASSERT_NE(phase, TOUCH_OFF);
		if (i % 2) {
			touch_page(&self->state, vaddr, i % NR_PAGES);
			munmap_assert(vaddr, self->size);
		} else {
			iommu_unmap_iova(self->iommu, SZ_1G, self->size);
		}
	}

	return 0;
}

/*
 * A revoked buffer stays revoked, whatever the device does at the same time:
 * memory is disabled, and pages of the buffer change their memory type. Only a
 * few times: QEMU before 8.2 may lose a timer of the guest when memory is
 * disabled or enabled.
 */
static int changer_main(void *arg, int fd)
{
	FIXTURE_DATA(race) *self = arg;
	int i;

	for (i = 0; i < 3; i++) {
		fd = vfio_pci_dmabuf_export_wc(self->device, self->bar,
					       self->size + 4 * page_size,
					       16 * page_size);
		VFIO_ASSERT_TRUE(fd >= 0 || fd == -EOPNOTSUPP);
		if (fd >= 0) {
			vfio_pci_dmabuf_revoke(self->device, fd);
			close_assert(fd);
		}
		vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
		random_delay(&self->racer_seed, 500);
		vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	}

	return 0;
}

/*
 * Rounds of a new buffer, which touchers and a thread of @racer use while it is
 * revoked; @phase is what holds until then. Some rounds wait until the touchers
 * have come to the buffer; in the others it may be revoked before the first
 * fault.
 */
static void against_revoke(FIXTURE_DATA(race) *self, u32 rounds,
			   enum touch_phase phase,
			   int (*racer)(void *arg, int fd))
{
	struct toucher touchers[2];
	struct job job;
	u32 i;

	for (i = 0; i < rounds; i++) {
		bool wait = i % 4 == 0;

		self->fd = export(self);
		self->vaddr = map_dmabuf(self, self->fd);

		touch_set_phase(&self->state, phase);
		touchers_start(touchers, &self->state, self->vaddr, self->size,
			       !racer && i % 2);
		if (racer)
			job_start(&job, racer, self, -1);
		VFIO_ASSERT_TRUE(!wait || count_grows(&self->state.nr_done));
		random_delay(&self->seed, MAX_DELAY_US);
		touch_set_phase(&self->state, TOUCH_GOING);
		vfio_pci_dmabuf_revoke(self->device, self->fd);
		touch_set_phase(&self->state, TOUCH_OFF);
		touch_pages(&self->state, self->vaddr, self->size);
		VFIO_ASSERT_TRUE(!wait || count_grows(&self->state.nr_refused));
		touchers_stop(touchers);
		if (racer)
			job_result(&job);
		touch_pages(&self->state, self->vaddr, self->size);

		VFIO_ASSERT_EQ(self->state.nr_wrong, 0);
		VFIO_ASSERT_EQ(__vfio_pci_dmabuf_revoke(self->device, self->fd),
			       -EBADFD);
		munmap_assert(self->vaddr, self->size);
		close_assert(self->fd);
	}
}

TEST_RACE(fault_against_revoke)
{
	against_revoke(self, 2 * self->rounds, TOUCH_ON, NULL);
}

TEST_RACE(mmap_and_import_against_revoke)
{
	self->one_range = true;
	against_revoke(self, self->rounds, TOUCH_ON, mapper_main);
}

TEST_RACE(revoke_against_changes_of_device)
{
	self->state.ones_allowed = true;
	against_revoke(self, self->rounds, TOUCH_COMING, changer_main);
}

static int revoke_at_once(void *arg, int fd)
{
	FIXTURE_DATA(race) *self = arg;
	int ret;

	while (touch_get_phase(&self->state) == TOUCH_ON)
		;
	random_delay(fd < 0 ? &self->seed : &self->racer_seed, 100);
	ret = __vfio_pci_dmabuf_revoke(self->device, self->fd);
	VFIO_ASSERT_EQ(try_touch(self->vaddr + self->size - page_size), SIGBUS);
	return ret;
}

/* Many pages, so that one revoke starts while the other still unmaps */
TEST_RACE(two_revokes)
{
	struct job job;
	int ret, other;
	u32 i;

	self->one_range = true;
	self->size = SZ_16M;
	for (i = 0; i < self->rounds; i++) {
		self->fd = export(self);
		self->vaddr = map_dmabuf(self, self->fd);
		ASSERT_EQ(0, try_touch_pages(self->vaddr, self->size));
		touch_set_phase(&self->state, TOUCH_ON);
		job_start(&job, revoke_at_once, self, 0);
		random_delay(&self->seed, MAX_DELAY_US);
		touch_set_phase(&self->state, TOUCH_GOING);
		ret = revoke_at_once(self, -1);
		other = job_result(&job);

		/* At least one has succeeded. */
		ASSERT_TRUE(!ret || !other);
		ASSERT_TRUE(!ret || ret == -EBADFD);
		ASSERT_TRUE(!other || other == -EBADFD);
		ASSERT_EQ(SIGBUS, try_touch_pages(self->vaddr, self->size));
		munmap_assert(self->vaddr, self->size);
		close_assert(self->fd);
	}
}

/*
 * New buffers and mappings, made while access goes away and comes back: each
 * has to start out as the device is, and to follow it. Some buffers have only
 * an O_PATH descriptor, and are released while the device walks its list.
 */
static int newcomer_main(void *arg, int fd)
{
	FIXTURE_DATA(race) *self = arg;
	u32 i;

	for (i = 0; !READ_ONCE(self->state.stop); i++) {
		void *vaddr;

		fd = i % 2 ? export(self) : export_o_path(self);
		vaddr = i % 2 ? map_dmabuf(self, fd) : map_bar(self);

		touch_page(&self->state, vaddr, i % NR_PAGES);
		touch_page(&self->state, vaddr, (i + 1) % NR_PAGES);
		touch_page(&self->state, vaddr, i % NR_PAGES);

		munmap_assert(vaddr, self->size);
		close_assert(fd);
	}

	return 0;
}

/*
 * Each round goes on until others have found access there. @revoke revokes and
 * restores access.
 */
static void against_device(FIXTURE_DATA(race) *self, u32 rounds,
			   void (*revoke)(FIXTURE_DATA(race) *self))
{
	struct toucher dmabuf_touchers[2], bar_touchers[2];
	void *bar = map_bar(self);
	struct job newcomer;
	u32 i;

	self->vaddr = map_dmabuf(self, export(self));
	self->state.ones_allowed = true;
	touchers_start(dmabuf_touchers, &self->state, self->vaddr, self->size,
		       true);
	touchers_start(bar_touchers, &self->state, bar, self->size, true);
	job_start(&newcomer, newcomer_main, self, -1);
	for (i = 0; i < rounds; i++) {
		VFIO_ASSERT_TRUE(count_grows(&self->state.nr_done));
		random_delay(&self->seed, MAX_DELAY_US);
		revoke(self);
		touch_pages(&self->state, self->vaddr, self->size);
		touch_pages(&self->state, bar, self->size);
		VFIO_ASSERT_EQ(self->state.nr_wrong, 0);
	}
	touchers_stop(dmabuf_touchers);
	touchers_stop(bar_touchers);
	job_result(&newcomer);
	VFIO_ASSERT_EQ(self->state.nr_wrong, 0);
}

static void memory_off_and_on(FIXTURE_DATA(race) *self)
{
	memory_off(self);
	touch_pages(&self->state, self->vaddr, self->size);
	VFIO_ASSERT_EQ(self->state.nr_wrong, 0);
	VFIO_ASSERT_TRUE(count_grows(&self->state.nr_refused));
	random_delay(&self->seed, MAX_DELAY_US);
	memory_on(self);
}

TEST_RACE(use_against_memory_disable)
{
	against_device(self, self->rounds / 4 + 1, memory_off_and_on);
}

static void reset(FIXTURE_DATA(race) *self)
{
	touch_set_phase(&self->state, TOUCH_GOING);
	vfio_pci_device_reset(self->device);
	touch_set_phase(&self->state, TOUCH_ON);
}

/* Touches wait for the end of the reset, and are done. */
TEST_RACE(use_against_reset)
{
	if (!(self->device->info.flags & VFIO_DEVICE_FLAGS_RESET))
		SKIP(return, "The device has no reset");

	against_device(self, self->rounds / 25 + 1, reset);
	ASSERT_EQ(0, self->state.nr_refused);
}

static int close_late(void *arg, int fd)
{
	FIXTURE_DATA(race) *self = arg;

	random_delay(&self->racer_seed, 2000);
	close_assert(fd);
	return 0;
}

/*
 * A DMABUF does not keep its device open, nor does it hold up the unbind,
 * which waits for the close. The old buffer stays revoked when the device is
 * opened again.
 */
TEST_RACE(fault_against_close_and_unbind)
{
	struct toucher touchers[2];
	struct job job;
	void *vaddr;
	pid_t pid;
	u32 i;
	int fd;

	self->state.ones_allowed = true;
	for (i = 0; i < self->rounds / 25 + 2; i++) {
		bool unbind = i % 2;

		fd = export(self);
		vaddr = map_dmabuf(self, fd);

		touch_set_phase(&self->state, TOUCH_ON);
		touchers_start(touchers, &self->state, vaddr, self->size,
			       unbind);
		ASSERT_TRUE(count_grows(&self->state.nr_done));
		if (unbind) {
			self->unbinding = true;
			pid = fork_child(-1);
			if (!pid)
				_exit(-__sysfs_driver_unbind(driver,
							     device_bdf));
		}
		job_start(&job, close_late, self, export_o_path(self));
		random_delay(&self->seed, MAX_DELAY_US);
		touch_set_phase(&self->state, TOUCH_GOING);
		dmabuf_test_close(&self->device);
		touch_set_phase(&self->state, TOUCH_OFF);
		touch_pages(&self->state, vaddr, self->size);
		if (unbind) {
			ASSERT_EQ(0, wait_child(pid));
			ASSERT_EQ(0, __sysfs_driver_bind(driver, device_bdf));
			self->unbinding = false;
		}
		dmabuf_test_reopen(self->iommu, &self->device);
		vfio_pci_bar_unmap_all(self->device);
		ASSERT_TRUE(count_grows(&self->state.nr_refused));
		touchers_stop(touchers);
		job_result(&job);

		ASSERT_EQ(0, self->state.nr_wrong);
		ASSERT_EQ(-ENODEV, __vfio_pci_dmabuf_revoke(self->device, fd));
		munmap_assert(vaddr, self->size);
		close_assert(fd);
	}
}

/*
 * System calls that are held up where they copy to or from user memory, because the
 * page is missing and userfaultfd takes its time. Nobody else may have to wait for
 * that copy: it might be for the thread that is to provide the page.
 */
static int held_read(void *arg, int fd)
{
	FIXTURE_DATA(race) *self = arg;

	return pread(fd, self->vaddr, 4, self->bar_offset);
}

static int held_write(void *arg, int fd)
{
	FIXTURE_DATA(race) *self = arg;

	return pwrite(fd, self->vaddr, 4, self->bar_offset);
}

/* Of the argument only the ranges are missing. */
static int held_export(void *arg, int fd)
{
	FIXTURE_DATA(race) *self = arg;
	struct vfio_device_feature_dma_buf *dma_buf = self->vaddr -
						      sizeof(*dma_buf);
	struct vfio_device_feature *feature = (void *)dma_buf - sizeof(*feature);

	feature->argsz = sizeof(*feature) + sizeof(*dma_buf) +
			 sizeof(dma_buf->dma_ranges[0]);
	feature->flags = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF;
	dma_buf->region_index = self->bar;
	dma_buf->open_flags = O_RDWR | O_CLOEXEC;
	dma_buf->nr_ranges = 1;

	return ioctl(fd, VFIO_DEVICE_FEATURE, feature);
}

/* All that would have to wait for a lock of the device */
static int use_device(void *arg, int fd)
{
	FIXTURE_DATA(race) *self = arg;
	int wc = vfio_pci_dmabuf_export_wc(self->device, self->bar, SZ_8M,
					   page_size);
	void *vaddr;
	u32 val;

	fd = export(self);
	vaddr = map_dmabuf(self, fd);
	memory_off(self);
	touch_pages(&self->state, vaddr, self->size);
	memory_on(self);
	touch_pages(&self->state, vaddr, self->size);
	VFIO_ASSERT_EQ(pread(self->device->fd, &val, sizeof(val),
			     self->bar_offset + SZ_8M), sizeof(val));
	if (wc != -EOPNOTSUPP) {
		vfio_pci_dmabuf_revoke(self->device, wc);
		close_assert(wc);
	}
	vfio_pci_dmabuf_revoke(self->device, fd);
	munmap_assert(vaddr, self->size);
	close_assert(fd);
	return 0;
}

/* Let self->vaddr be a missing page, with a present one before it. */
static void userfaultfd_start(FIXTURE_DATA(race) *self)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = {
		.range.len = page_size,
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	self->fd = syscall(__NR_userfaultfd, O_CLOEXEC);
	VFIO_ASSERT_GE(self->fd, 0);
	self->vaddr = mmap(NULL, 2 * page_size, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	VFIO_ASSERT_NE(self->vaddr, MAP_FAILED);
	self->vaddr += page_size;
	reg.range.start = (u64)self->vaddr;
	ioctl_assert(self->fd, UFFDIO_API, &api);
	ioctl_assert(self->fd, UFFDIO_REGISTER, &reg);
}

/* Returns what @call returned, given @data as the missing page. */
static int hold_call(FIXTURE_DATA(race) *self, int (*call)(void *arg, int fd),
		     void *data)
{
	struct uffdio_copy copy = { .src = (u64)data, .len = page_size };
	struct job held, use;
	struct uffd_msg msg;
	bool free;
	int ret;

	userfaultfd_start(self);
	job_start(&held, call, self, self->device->fd);
	VFIO_ASSERT_EQ(read(self->fd, &msg, sizeof(msg)), sizeof(msg));
	VFIO_ASSERT_EQ(msg.event, UFFD_EVENT_PAGEFAULT);

	/* If it waits for the copy, it does so for ever. */
	job_start(&use, use_device, self, -1);
	free = job_ends(&use, JOB_ENDS_MS);
	copy.dst = (u64)self->vaddr;
	ioctl_assert(self->fd, UFFDIO_COPY, &copy);
	ret = job_result(&held);
	job_result(&use);
	VFIO_ASSERT_TRUE(free, "The call blocks other users\n");
	close_assert(self->fd);

	return ret;
}

TEST_RACE(user_copy_blocks_no_other_user)
{
	void *data = calloc_assert(1, page_size);
	struct vfio_region_dma_range *range = data;
	int i, fd = syscall(__NR_userfaultfd, O_CLOEXEC);

	if (fd < 0)
		SKIP(return, "No userfaultfd");
	close_assert(fd);

	/* First with the kernel's mapping of the BAR, which WC exports unmap */
	self->state.ones_allowed = true;
	*(u32 *)data = touch_pattern(0);
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(4, hold_call(self, held_read, data));
		ASSERT_EQ(4, hold_call(self, held_write, data));
	}

	range->offset = 0;
	range->length = self->size;
	fd = hold_call(self, held_export, data);
	ASSERT_GE(fd, 0);
	vfio_pci_dmabuf_revoke(self->device, fd);
	ASSERT_EQ(0, self->state.nr_wrong);
}

int main(int argc, char *argv[])
{
	dmabuf_test_init(&argc, argv);
	driver = sysfs_driver_get(device_bdf);
	return test_harness_run(argc, argv);
}
