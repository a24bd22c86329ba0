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
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
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
	struct touch_state *state;
	size_t size;
	u32 rounds;
	u32 few_rounds;
	u32 seed;
	bool has_reset;
	bool unbinding;
	/* What a second thread works with */
	int fd;
	void *vaddr;
	u32 racer_seed;
	u32 racer_delay_us;
};

/* BAR mappings in a child process would keep the device open. */
static void device_open(FIXTURE_DATA(race) *self)
{
	int i;

	if (!self->device)
		dmabuf_test_reopen(self->iommu, &self->device);
	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		if (self->device->bars[i].vaddr)
			madvise(self->device->bars[i].vaddr,
				self->device->bars[i].info.size,
				MADV_DONTFORK);
	}
}

static int export(FIXTURE_DATA(race) *self)
{
	return vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
					    self->size);
}

static int export_wc(FIXTURE_DATA(race) *self, u64 offset, u64 size)
{
	return __vfio_pci_dmabuf_export_range(self->device, self->bar,
					      O_RDWR | O_CLOEXEC,
					      VFIO_DEVICE_FEATURE_DMA_BUF_ATTR_WC,
					      offset, size);
}

/* The same to look at, from elsewhere in the BAR */
static int export_ranges(FIXTURE_DATA(race) *self)
{
	struct vfio_region_dma_range ranges[4];
	int i;

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
	int fd;

	DMABUF_SETUP(self, true, SZ_16M);
	device_open(self);

	self->has_reset = self->device->info.flags & VFIO_DEVICE_FLAGS_RESET;
	self->size = NR_PAGES * page_size;
	self->rounds = getenv_u32("VFIO_RACE_ROUNDS", 100);
	self->few_rounds = self->rounds / 25 + 1;
	self->seed = 1;
	self->state = touch_state_alloc();
	touch_fill(self->device->bars[self->bar].vaddr, self->size);
	fd = export_ranges(self);
	touch_fill(map_dmabuf(self, fd), self->size);
	close_assert(fd);
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

/* A test takes its time on a kernel that checks itself. */
#define TEST_RACE(_name) TEST_F_TIMEOUT(race, _name, 600)

static void delay(FIXTURE_DATA(race) *self)
{
	random_delay(&self->seed, MAX_DELAY_US);
}

static void memory_off(FIXTURE_DATA(race) *self)
{
	touch_set_phase(self->state, TOUCH_GOING);
	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	touch_set_phase(self->state, TOUCH_OFF);
}

static void memory_on(FIXTURE_DATA(race) *self)
{
	touch_set_phase(self->state, TOUCH_COMING);
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	touch_set_phase(self->state, TOUCH_ON);
}

/*
 * Replace a part of the mapping by nothing, then by a new mapping: made elsewhere
 * and moved, as a MAP_FIXED that fails would leave a hole, which may become a
 * thread's stack. The first page stays, to be refused in the end.
 */
static int remapper_main(void *arg, int fd)
{
	FIXTURE_DATA(race) *self = arg;

	while (!READ_ONCE(self->state->stop)) {
		u32 page = rand_r(&self->racer_seed) % (NR_PAGES - 1) + 1;
		u32 nr = rand_r(&self->racer_seed) % (NR_PAGES - page) + 1;
		void *vaddr = self->vaddr + page * page_size;
		size_t size = nr * page_size;
		void *new;
		int ret;

		new = mmap(vaddr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS |
			   MAP_FIXED | MAP_NORESERVE, -1, 0);
		VFIO_ASSERT_EQ(new, vaddr);
		ret = __mmap_shared(self->fd, page * page_size, size, PROT_READ,
				    &new);
		if (ret) {
			VFIO_ASSERT_EQ(ret, -ENODEV);
			VFIO_ASSERT_NE(touch_get_phase(self->state), TOUCH_ON);
			continue;
		}
		new = mremap(new, size, size, MREMAP_MAYMOVE | MREMAP_FIXED,
			     vaddr);
		VFIO_ASSERT_EQ(new, vaddr);
	}

	return 0;
}

/* iommufd maps and unmaps the buffer; after the revoke it cannot. */
static int importer_main(void *arg, int fd)
{
	FIXTURE_DATA(race) *self = arg;

	while (!READ_ONCE(self->state->stop)) {
		enum touch_phase phase = touch_get_phase(self->state);
		int ret;

		ret = __iommu_map_file(self->iommu, self->fd, 0, self->size,
				       SZ_1G);
		if (!ret) {
			VFIO_ASSERT_NE(phase, TOUCH_OFF);
			iommu_unmap_iova(self->iommu, SZ_1G, self->size);
			continue;
		}
		VFIO_ASSERT_EQ(ret, -ENODEV);
		VFIO_ASSERT_NE(touch_get_phase(self->state), TOUCH_ON);
	}

	return 0;
}

/*
 * Dead is dead, whatever the device does at the same time. Only a few times: QEMU
 * before 8.2 may lose a timer of the guest when memory is disabled or enabled.
 */
static int toggler_main(void *arg, int fd)
{
	FIXTURE_DATA(race) *self = arg;
	int i;

	for (i = 0; i < 3; i++) {
		vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
		random_delay(&self->racer_seed, 500);
		vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
		random_delay(&self->racer_seed, 500);
	}

	return 0;
}

/* Pages of the buffer become write-combining and uncached, and are unmapped. */
static int wc_main(void *arg, int fd)
{
	FIXTURE_DATA(race) *self = arg;

	while (!READ_ONCE(self->state->stop)) {
		fd = export_wc(self, self->size + 4 * page_size, 16 * page_size);
		VFIO_ASSERT_GE(fd, 0);
		vfio_pci_dmabuf_revoke(self->device, fd);
		close_assert(fd);
	}

	return 0;
}

/*
 * Rounds of a new buffer, which touchers and a thread of @racer use while it is
 * revoked. Some rounds wait until the touchers have come to the buffer; in the
 * others it may be revoked before the first fault.
 */
static void against_revoke(FIXTURE_DATA(race) *self, u32 rounds,
			   int (*racer)(void *arg, int fd))
{
	struct toucher touchers[2];
	struct job job;
	u32 i;

	for (i = 0; i < rounds; i++) {
		bool wait = i % 4 == 0;

		self->fd = racer == wc_main ? export_ranges(self) : export(self);
		self->vaddr = map_dmabuf(self, self->fd);

		touch_set_phase(self->state, racer == toggler_main ?
					     TOUCH_COMING : TOUCH_ON);
		touchers_start(touchers, self->state, self->vaddr, self->size,
			       !racer && i % 2);
		if (racer)
			job_start(&job, racer, self, -1);
		VFIO_ASSERT_TRUE(!wait || touch_grows(&self->state->nr_done));
		delay(self);
		touch_set_phase(self->state, TOUCH_GOING);
		vfio_pci_dmabuf_revoke(self->device, self->fd);
		touch_set_phase(self->state, TOUCH_OFF);
		touch_pages(self->state, self->vaddr, self->size);
		VFIO_ASSERT_TRUE(!wait || touch_grows(&self->state->nr_refused));
		touchers_stop(touchers);
		if (racer)
			job_result(&job);
		touch_pages(self->state, self->vaddr, self->size);

		VFIO_ASSERT_EQ(self->state->nr_wrong, 0);
		VFIO_ASSERT_EQ(__vfio_pci_dmabuf_revoke(self->device, self->fd),
			       -EBADFD);
		VFIO_ASSERT_EQ(__iommu_map_file(self->iommu, self->fd, 0,
						self->size, SZ_2G), -ENODEV);
		munmap_assert(self->vaddr, self->size);
		close_assert(self->fd);
	}
}

TEST_RACE(fault_against_revoke)
{
	against_revoke(self, 2 * self->rounds, NULL);
}

TEST_RACE(fault_against_munmap_and_revoke)
{
	self->state->segv_allowed = true;
	against_revoke(self, self->rounds, remapper_main);
}

TEST_RACE(import_against_revoke)
{
	against_revoke(self, self->rounds, importer_main);
}

TEST_RACE(revoke_against_memory_disable)
{
	self->state->ones_allowed = true;
	against_revoke(self, self->rounds, toggler_main);
}

TEST_RACE(revoke_against_write_combining)
{
	int fd = export_wc(self, 0, page_size);

	if (fd == -EOPNOTSUPP)
		SKIP(return, "No write-combining");
	close_assert(fd);
	against_revoke(self, 3 * self->rounds, wc_main);
}

/* Each round goes on until others have found access there, and gone. */
static void against_memory_disable(FIXTURE_DATA(race) *self, void *vaddr)
{
	u32 i;

	for (i = 0; i < self->rounds / 4 + 1; i++) {
		VFIO_ASSERT_TRUE(touch_grows(&self->state->nr_done));
		delay(self);
		memory_off(self);
		touch_pages(self->state, vaddr, self->size);
		VFIO_ASSERT_TRUE(touch_grows(&self->state->nr_refused));
		delay(self);
		memory_on(self);
		touch_pages(self->state, vaddr, self->size);
		VFIO_ASSERT_EQ(self->state->nr_wrong, 0);
	}
}

static void fault_against_memory(FIXTURE_DATA(race) *self, void *vaddr)
{
	struct toucher touchers[2];

	self->state->ones_allowed = true;
	touchers_start(touchers, self->state, vaddr, self->size, true);
	against_memory_disable(self, vaddr);
	touchers_stop(touchers);
	VFIO_ASSERT_EQ(self->state->nr_wrong, 0);
}

TEST_RACE(dmabuf_fault_against_memory_disable)
{
	fault_against_memory(self, map_dmabuf(self, export(self)));
}

TEST_RACE(bar_fault_against_memory_disable)
{
	fault_against_memory(self, map_bar(self));
}

/*
 * New buffers and mappings, made while access goes away and comes back: each has to
 * start out as the device is, and to follow it. Others are without a file, and are
 * released while the device walks its list.
 */
static int newcomer_main(void *arg, int fd)
{
	FIXTURE_DATA(race) *self = arg;
	u32 i;

	for (i = 0; !READ_ONCE(self->state->stop); i++) {
		void *vaddr;

		fd = i % 2 ? export(self) : export_o_path(self);
		vaddr = i % 2 ? map_dmabuf(self, fd) : map_bar(self);

		touch_page(self->state, vaddr, i % NR_PAGES);
		touch_page(self->state, vaddr, (i + 1) % NR_PAGES);
		touch_page(self->state, vaddr, i % NR_PAGES);

		munmap_assert(vaddr, self->size);
		close_assert(fd);
	}

	return 0;
}

TEST_RACE(export_and_mmap_against_memory_disable)
{
	struct job newcomers[2];

	self->state->ones_allowed = true;
	job_start(&newcomers[0], newcomer_main, self, -1);
	job_start(&newcomers[1], newcomer_main, self, -1);
	against_memory_disable(self, map_bar(self));
	WRITE_ONCE(self->state->stop, true);
	job_result(&newcomers[0]);
	job_result(&newcomers[1]);
	ASSERT_EQ(0, self->state->nr_wrong);
}

/*
 * A DMABUF, a BAR mapping and new mappings at the same time, and the device reset:
 * touches wait for the end of the reset, and are done.
 */
TEST_RACE(fault_against_reset)
{
	struct toucher dmabuf_touchers[2], bar_touchers[2];
	struct job newcomer;
	void *dmabuf, *bar;
	u32 i;

	if (!self->has_reset)
		SKIP(return, "The device has no reset");

	dmabuf = map_dmabuf(self, export(self));
	bar = map_bar(self);
	self->state->ones_allowed = true;
	touchers_start(dmabuf_touchers, self->state, dmabuf, self->size, false);
	touchers_start(bar_touchers, self->state, bar, self->size, false);
	job_start(&newcomer, newcomer_main, self, -1);
	for (i = 0; i < self->few_rounds; i++) {
		ASSERT_TRUE(touch_grows(&self->state->nr_done));
		delay(self);
		touch_set_phase(self->state, TOUCH_GOING);
		vfio_pci_device_reset(self->device);
		touch_set_phase(self->state, TOUCH_ON);
		touch_pages(self->state, dmabuf, self->size);
		touch_pages(self->state, bar, self->size);
	}
	touchers_stop(dmabuf_touchers);
	touchers_stop(bar_touchers);
	job_result(&newcomer);
	ASSERT_EQ(0, self->state->nr_wrong);
	ASSERT_EQ(0, self->state->nr_refused);
}

static int close_late(void *arg, int fd)
{
	FIXTURE_DATA(race) *self = arg;

	random_delay(&self->racer_seed, self->racer_delay_us);
	close_assert(fd);
	return 0;
}

/* Returns the result of the revoke if access was gone by then. */
static int revoke_at_once(void *arg, int fd)
{
	FIXTURE_DATA(race) *self = arg;
	u32 *seed = fd < 0 ? &self->seed : &self->racer_seed;
	int ret;

	while (touch_get_phase(self->state) == TOUCH_ON)
		;
	random_delay(seed, 100);
	ret = __vfio_pci_dmabuf_revoke(self->device, self->fd);
	if (!try_touch(self->vaddr + SZ_16M - page_size))
		return -EEXIST;
	return ret;
}

/* Many pages, so that the one comes while the other unmaps them */
TEST_RACE(two_revokes)
{
	struct job job;
	int ret, other;
	u32 i;

	for (i = 0; i < self->rounds; i++) {
		self->fd = vfio_pci_dmabuf_export_range(self->device, self->bar,
							0, SZ_16M);
		self->vaddr = mmap_shared_aligned(self->fd, 0, SZ_16M, SZ_2M,
						  page_size);
		ASSERT_EQ(0, try_touch_pages(self->vaddr, SZ_16M));
		touch_set_phase(self->state, TOUCH_ON);
		job_start(&job, revoke_at_once, self, 0);
		delay(self);
		touch_set_phase(self->state, TOUCH_GOING);
		ret = revoke_at_once(self, -1);
		other = job_result(&job);

		/* One has done it, if not both together. */
		ASSERT_TRUE(!ret || !other);
		ASSERT_TRUE(!ret || ret == -EBADFD);
		ASSERT_TRUE(!other || other == -EBADFD);
		ASSERT_EQ(SIGBUS, try_touch_pages(self->vaddr, SZ_16M));
		ASSERT_EQ(-EBADFD,
			  __vfio_pci_dmabuf_revoke(self->device, self->fd));
		munmap_assert(self->vaddr, SZ_16M);
		close_assert(self->fd);
	}
}

/* The last fd goes, and with a mapping or without one the buffer. */
TEST_RACE(close_of_fd_against_revoke)
{
	struct job job;
	u32 i;

	self->racer_delay_us = 20;
	for (i = 0; i < 4 * self->rounds; i++) {
		int fd = export(self);
		void *vaddr = i % 2 ? map_dmabuf(self, fd) : NULL;
		int ret;

		job_start(&job, close_late, self, fd);
		random_delay(&self->seed, 20);
		ret = __vfio_pci_dmabuf_revoke(self->device, fd);
		ASSERT_TRUE(!ret || ret == -EBADF);
		if (vaddr) {
			ASSERT_EQ(ret ? 0 : SIGBUS,
				  try_touch_pages(vaddr, self->size));
			munmap_assert(vaddr, self->size);
		}
		job_result(&job);
	}
}

/* Returns when the kernel, in the unbind, asks for the device. */
static pid_t unbind_start(FIXTURE_DATA(race) *self)
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
		VFIO_ASSERT_EQ(close_range(STDERR_FILENO + 1, ~0U, 0), 0);
		_exit(-__sysfs_driver_unbind(driver, device_bdf));
	}
	VFIO_ASSERT_EQ(poll(&request, 1, JOB_ENDS_MS), 1);
	close_assert(request.fd);
	return pid;
}

static void unbind_finish(FIXTURE_DATA(race) *self, pid_t pid)
{
	int status;

	VFIO_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	VFIO_ASSERT_EQ(status, 0);
	VFIO_ASSERT_EQ(__sysfs_driver_bind(driver, device_bdf), 0);
	self->unbinding = false;
}

/*
 * A DMABUF does not keep its device open, nor does it hold up the unbind, which
 * waits for the close. Nothing of the next opening is for the old buffer.
 */
static void against_close(FIXTURE_DATA(race) *self, u32 rounds, bool unbind)
{
	struct toucher touchers[2];
	struct job job;
	void *vaddr;
	pid_t pid;
	u32 i;
	int fd;

	self->state->ones_allowed = true;
	self->racer_delay_us = 2000;
	for (i = 0; i < rounds; i++) {
		fd = export(self);
		vaddr = map_dmabuf(self, fd);

		touch_set_phase(self->state, TOUCH_ON);
		touchers_start(touchers, self->state, vaddr, self->size, i % 2);
		VFIO_ASSERT_TRUE(touch_grows(&self->state->nr_done));
		if (unbind)
			pid = unbind_start(self);
		job_start(&job, close_late, self, export_o_path(self));
		delay(self);
		touch_set_phase(self->state, TOUCH_GOING);
		dmabuf_test_close(&self->device);
		touch_set_phase(self->state, TOUCH_OFF);
		touch_pages(self->state, vaddr, self->size);
		if (unbind)
			unbind_finish(self, pid);
		device_open(self);
		VFIO_ASSERT_TRUE(touch_grows(&self->state->nr_refused));
		touchers_stop(touchers);
		job_result(&job);

		VFIO_ASSERT_EQ(self->state->nr_wrong, 0);
		VFIO_ASSERT_EQ(__vfio_pci_dmabuf_revoke(self->device, fd), -ENODEV);
		munmap_assert(vaddr, self->size);
		close_assert(fd);
	}
}

TEST_RACE(fault_against_close)
{
	against_close(self, self->few_rounds, false);
}

TEST_RACE(fault_against_unbind)
{
	against_close(self, 2, true);
}

/* A process that has nothing but the DMABUF, and runs @fn over and over */
static void child_start(void (*fn)(int fd), int fd, int policy)
{
	struct sched_param param = {};
	pid_t pid = fork();

	VFIO_ASSERT_GE(pid, 0);
	if (pid)
		return;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	VFIO_ASSERT_EQ(dup2(fd, STDERR_FILENO + 1), STDERR_FILENO + 1);
	VFIO_ASSERT_EQ(close_range(STDERR_FILENO + 2, ~0U, 0), 0);
	VFIO_ASSERT_EQ(sched_setscheduler(0, policy, &param), 0);
	while (1)
		fn(STDERR_FILENO + 1);
}

/* Fault in pages again and again, as the owner of the device unmaps them */
static void fault_all(int fd)
{
	static void *vaddr;

	if (!vaddr)
		vaddr = mmap_shared_aligned(fd, 0, SZ_16M, SZ_2M, page_size);
	try_touch_pages(vaddr, SZ_16M);
}

static void spin(int fd)
{
}

/* A client that has nothing but a descriptor cannot refuse the owner a reset. */
TEST_RACE(hot_reset_against_faults)
{
	int i, fd;

	if (!vfio_pci_hot_reset_is_ours(self->device))
		SKIP(return, "No hot reset of the device alone");

	fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0, SZ_16M);
	for (i = 0; i < 2; i++)
		child_start(fault_all, fd, SCHED_OTHER);
	usleep(200000);
	for (i = 0; i < 30; i++) {
		ASSERT_EQ(0, __vfio_pci_hot_reset(self->device));
		usleep(20000);
	}
	ASSERT_EQ(0, waitpid(-1, NULL, WNOHANG));
}

/* How long the calling thread has not been running, and how often it has slept */
static s64 waited_us(long *nr_waits)
{
	struct timespec now, ran;
	struct rusage usage;

	VFIO_ASSERT_EQ(getrusage(RUSAGE_THREAD, &usage), 0);
	*nr_waits = usage.ru_nvcsw;
	VFIO_ASSERT_EQ(clock_gettime(CLOCK_MONOTONIC, &now), 0);
	VFIO_ASSERT_EQ(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ran), 0);
	return (now.tv_sec - ran.tv_sec) * 1000000LL +
	       (now.tv_nsec - ran.tv_nsec) / 1000;
}

/*
 * Nor can it hold up a real-time owner by faults that get no CPU. What counts is
 * the time for which the owner waits for others: neither what it needs itself, which
 * is long in a slow guest, nor that for which the host stops the guest. A task
 * without CPU would make the owner wait for seconds.
 */
TEST_RACE(real_time_owner_against_starved_faults)
{
	struct sched_param fifo = { .sched_priority = 50 };
	int fd, i, nr = 4 * sysconf(_SC_NPROCESSORS_ONLN);
	long nr_before, nr_after;
	s64 us, longest = 0;

	nr = min(nr, 32);
	fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0, SZ_16M);
	for (i = 0; i < nr; i++)
		child_start(spin, fd, SCHED_OTHER);
	for (i = 0; i < nr / 2; i++)
		child_start(fault_all, fd, SCHED_IDLE);
	if (sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &fifo))
		SKIP(return, "No real-time scheduling");

	sleep(3);
	for (i = 0; i < 60; i++) {
		usleep(20000 + rand_r(&self->seed) % 20000);
		us = -waited_us(&nr_before);
		vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
		us += waited_us(&nr_after);
		if (nr_after != nr_before)
			longest = max(longest, us);
		vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	}
	TH_LOG("waited for %lld us at most", (long long)longest);
	ASSERT_GT(1000000, longest);
	ASSERT_EQ(0, waitpid(-1, NULL, WNOHANG));
}

/*
 * System calls that are held up where they copy to or from user memory, because the
 * page is missing and userfaultfd takes its time. Nobody else may have to wait for
 * that copy: it might be for the thread that is to provide the page.
 */
enum held_call {
	HELD_WRITE = 1,
	HELD_CONFIG = 2,
	HELD_EXPORT = 4,
	HELD_REVOKE = 8,
};

/* Of the argument only the ranges are missing. */
static int held_export(FIXTURE_DATA(race) *self, void *page)
{
	struct vfio_device_feature_dma_buf *dma_buf = page - sizeof(*dma_buf);
	struct vfio_device_feature *feature = (void *)dma_buf - sizeof(*feature);

	feature->argsz = sizeof(*feature) + sizeof(*dma_buf) +
			 sizeof(dma_buf->dma_ranges[0]);
	feature->flags = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF;
	dma_buf->region_index = self->bar;
	dma_buf->open_flags = O_RDWR | O_CLOEXEC;
	dma_buf->flags = 0;
	dma_buf->nr_ranges = 1;

	return ioctl(self->device->fd, VFIO_DEVICE_FEATURE, feature);
}

static int held_call(void *arg, int call)
{
	FIXTURE_DATA(race) *self = arg;
	int fd = self->device->fd, size = 4;
	u64 pos = self->bar_offset;

	if (call & HELD_EXPORT)
		return held_export(self, self->vaddr);
	if (call & HELD_REVOKE)
		return ioctl(fd, VFIO_DEVICE_PCI_DMABUF_REVOKE, self->vaddr);
	if (call & HELD_CONFIG) {
		pos = self->device->config_space.offset + PCI_COMMAND;
		size = 2;
	}
	return call & HELD_WRITE ? pwrite(fd, self->vaddr, size, pos) :
				   pread(fd, self->vaddr, size, pos);
}

/* All that would have to wait for a lock of the device */
static int use_device(void *arg, int fd)
{
	FIXTURE_DATA(race) *self = arg;
	int wc = export_wc(self, SZ_8M, page_size);
	void *vaddr;
	u32 val;

	fd = export(self);
	vaddr = map_dmabuf(self, fd);
	memory_off(self);
	touch_pages(self->state, vaddr, self->size);
	memory_on(self);
	touch_pages(self->state, vaddr, self->size);
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

/* Returns what the call returned, given @data as the missing page. */
static int hold_call(FIXTURE_DATA(race) *self, int call, void *data)
{
	struct uffdio_copy copy = { .src = (u64)data, .len = page_size };
	struct job held, use;
	struct uffd_msg msg;
	bool free;
	int ret;

	userfaultfd_start(self);
	job_start(&held, held_call, self, call);
	VFIO_ASSERT_EQ(read(self->fd, &msg, sizeof(msg)), sizeof(msg));
	VFIO_ASSERT_EQ(msg.event, UFFD_EVENT_PAGEFAULT);

	/* If it waits for the copy, it does so for ever. */
	job_start(&use, use_device, self, -1);
	free = job_ends(&use, JOB_ENDS_MS);
	copy.dst = (u64)self->vaddr;
	ioctl_assert(self->fd, UFFDIO_COPY, &copy);
	ret = job_result(&held);
	job_result(&use);
	VFIO_ASSERT_TRUE(free, "Call %d holds up others\n", call);
	close_assert(self->fd);

	return ret;
}

TEST_RACE(user_copy_holds_up_nobody)
{
	void *data = calloc_assert(1, page_size);
	struct vfio_region_dma_range *range = data;
	struct vfio_pci_dmabuf_revoke *args = data;
	int i, fd = syscall(__NR_userfaultfd, O_CLOEXEC);

	if (fd < 0)
		SKIP(return, "No userfaultfd");
	close_assert(fd);

	/* First with the kernel's mapping of the BAR, which WC exports unmap */
	self->state->ones_allowed = true;
	*(u32 *)data = touch_pattern(0);
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(4, hold_call(self, 0, data));
		ASSERT_EQ(4, hold_call(self, HELD_WRITE, data));
	}

	range->offset = 0;
	range->length = self->size;
	fd = hold_call(self, HELD_EXPORT, data);
	ASSERT_GE(fd, 0);

	args->argsz = sizeof(*args);
	args->dmabuf_fd = fd;
	ASSERT_EQ(0, hold_call(self, HELD_REVOKE, data));
	ASSERT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(self->device, fd));

	*(u16 *)data = vfio_pci_config_readw(self->device, PCI_COMMAND);
	ASSERT_EQ(2, hold_call(self, HELD_CONFIG | HELD_WRITE, data));
	ASSERT_EQ(2, hold_call(self, HELD_CONFIG, data));

	ASSERT_EQ(0, self->state->nr_wrong);
}

int main(int argc, char *argv[])
{
	dmabuf_test_init(&argc, argv);
	driver = sysfs_driver_get(device_bdf);
	return test_harness_run(argc, argv);
}
