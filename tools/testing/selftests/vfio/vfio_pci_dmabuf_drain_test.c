// SPDX-License-Identifier: GPL-2.0-only
/*
 * An importer that does not release a DMABUF: which operations wait for it, which
 * do not, and how the wait ends. Needs CONFIG_VFIO_PCI_DMABUF_TEST.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <linux/compiler.h>
#include <linux/dma-buf.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>

#include <libvfio/dmabuf_test.h>

#include "kselftest_harness.h"

#define NR_PAGES 8

/* What fdinfo has for a DMABUF whose importers are waited for */
#define REVOKED	"revoked, waiting for importers"
#define OFF	"temporarily revoked"

struct holder {
	int importer;
	struct importer_guard *guard;
	/* How many times it is known to have been told to release the buffer */
	int nr_told;
};

FIXTURE(dmabuf_drain) {
	DMABUF_FIXTURE;
	struct holder holder;
	size_t size;
	int fd;
	/* Another DMABUF of the BAR, where a test has one */
	int other;
	void *vaddr;
};

/* What holds the buffer */
FIXTURE_VARIANT(dmabuf_drain) {
	unsigned int hold;
	unsigned int release;
};

FIXTURE_VARIANT_ADD(dmabuf_drain, map) {
	.hold = VFIO_PCI_DMABUF_TEST_MAP,
	.release = VFIO_PCI_DMABUF_TEST_UNMAP,
};

FIXTURE_VARIANT_ADD(dmabuf_drain, fence) {
	.hold = VFIO_PCI_DMABUF_TEST_FENCE,
	.release = VFIO_PCI_DMABUF_TEST_SIGNAL,
};

/* A test takes its time on a kernel that checks itself. */
#define TEST_DRAIN(_name) TEST_F_TIMEOUT(dmabuf_drain, _name, 300)

/* Returns false if the kernel has no test importer. */
static bool holder_open(struct holder *holder)
{
	holder->importer = importer_open();
	holder->nr_told = 0;
	if (holder->importer < 0)
		return false;

	holder->guard = importer_guard_start(holder->importer);
	return true;
}

/* The close releases the buffer, as it does when the process dies. */
static void holder_close(struct holder *holder)
{
	if (holder->importer < 0)
		return;

	importer_guard_stop(holder->guard);
	close_assert(holder->importer);
	holder->importer = -1;
}

FIXTURE_SETUP(dmabuf_drain)
{
	/* Before there is a BAR mapping to inherit */
	if (!holder_open(&self->holder))
		SKIP(return, "No test importer");

	self->size = NR_PAGES * page_size;
	DMABUF_SETUP(self, true, self->size);
	self->fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						self->size);
	self->vaddr = mmap_shared(self->fd, 0, self->size);
	importer_attach(self->holder.importer, self->device, self->fd, 0);
	ASSERT_EQ(0, importer_do(self->holder.importer, variant->hold));
	ASSERT_EQ(0, try_touch_pages(self->vaddr, self->size));
}

FIXTURE_TEARDOWN(dmabuf_drain)
{
	holder_close(&self->holder);
}

/*
 * Has a wait begun, with the DMABUF in @state? The importer is told to release it
 * when all CPUs are out, right before it is waited for, each time anew.
 */
static bool reaches_wait(struct holder *holder, int fd, const char *state)
{
	int told = 0;
	int ms;

	for (ms = 0; ms < JOB_ENDS_MS && told <= holder->nr_told; ms++) {
		usleep(1000);
		told = importer_do(holder->importer,
				   VFIO_PCI_DMABUF_TEST_NR_INVALIDATED);
	}
	if (told != holder->nr_told + 1)
		return false;

	holder->nr_told = told;
	return vfio_pci_dmabuf_fdinfo_has(fd, "state", state);
}

/* What to do to the device, and to one of its DMABUFs */
static int do_memory_off(void *device, int fd)
{
	vfio_pci_cmd_clear(device, PCI_COMMAND_MEMORY);
	return 0;
}

static int do_memory_switch(void *device, int fd)
{
	vfio_pci_cmd_clear(device, PCI_COMMAND_MEMORY);
	vfio_pci_cmd_set(device, PCI_COMMAND_MEMORY);
	return 0;
}

static int do_reset(void *device, int fd)
{
	return __vfio_pci_device_reset(device);
}

static int do_close_device(void *device, int fd)
{
	vfio_pci_device_cleanup(device);
	return 0;
}

static int do_close_fd(void *device, int fd)
{
	return close(fd);
}

/* Start @_fn, which has to wait for the importer, with the DMABUF in @_state. */
#define ASSERT_WAITS(_job, _self, _fn, _state) do {				\
	job_start((_job), (_fn), (_self)->device, (_self)->fd);			\
	ASSERT_TRUE(reaches_wait(&(_self)->holder, (_self)->fd, (_state)));	\
	ASSERT_TRUE(job_waits(_job));						\
} while (0)

/* Have the importer release the DMABUF, and see @_job end. */
#define ASSERT_ENDS(_job, _self, _ret) do {					\
	ASSERT_EQ(0, importer_do((_self)->holder.importer, variant->release));	\
	ASSERT_TRUE(job_ends((_job), JOB_ENDS_MS));				\
	ASSERT_EQ((_ret), job_result(_job));					\
} while (0)

/* The DMABUF is revoked, and its importers have released it. */
#define ASSERT_DEAD(_fd) \
	ASSERT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(self->device, (_fd)))

static void nothing(int sig)
{
}

/* A signal that interrupts system calls and does nothing else */
static void catch_signal(int sig)
{
	struct sigaction action = { .sa_handler = nothing };

	VFIO_ASSERT_EQ(sigaction(sig, &action, NULL), 0);
}

/* Revoke waits for importers, not for CPUs. A second one waits, too. */
TEST_DRAIN(revoke_waits)
{
	struct job jobs[2];

	ASSERT_WAITS(&jobs[0], self, job_revoke, REVOKED);
	ASSERT_TRUE(vfio_pci_dmabuf_fdinfo_has(self->fd, "importers", "1"));
	ASSERT_EQ(SIGBUS, try_touch_pages(self->vaddr, self->size));
	ASSERT_EQ(1, importer_do(self->holder.importer,
				 VFIO_PCI_DMABUF_TEST_NR_INVALIDATED));
	ASSERT_WAITS(&jobs[1], self, job_revoke, REVOKED);

	ASSERT_ENDS(&jobs[0], self, 0);
	ASSERT_EQ(0, job_result(&jobs[1]));
	ASSERT_TRUE(vfio_pci_dmabuf_fdinfo_has(self->fd, "state", "revoked"));
	ASSERT_EQ(SIGBUS, try_touch_pages(self->vaddr, self->size));
	ASSERT_DEAD(self->fd);
}

TEST_DRAIN(close_of_importer_ends_the_wait)
{
	struct job job;

	ASSERT_WAITS(&job, self, job_revoke, REVOKED);
	holder_close(&self->holder);
	ASSERT_EQ(0, job_result(&job));
}

TEST_DRAIN(nothing_new_while_revoke_waits)
{
	int importer = importer_open();
	struct job job;
	void *vaddr;

	ASSERT_WAITS(&job, self, job_revoke, REVOKED);
	ASSERT_EQ(-ENODEV, __importer_attach(importer, self->device, self->fd,
					     0));
	ASSERT_EQ(-ENODEV, __iommu_map_file(self->iommu, self->fd, 0,
					    self->size, 1UL << 30));
	ASSERT_EQ(-ENODEV, __mmap_shared(self->fd, 0, self->size, PROT_READ,
					 &vaddr));
	if (variant->hold != VFIO_PCI_DMABUF_TEST_MAP)
		ASSERT_EQ(-ENODEV, importer_do(self->holder.importer,
					       VFIO_PCI_DMABUF_TEST_MAP));
	ASSERT_ENDS(&job, self, 0);
}

/* A holder of the fd can add fences all the time, and must not prolong the wait. */
TEST_DRAIN(late_fence_is_not_waited_for)
{
	struct holder other;
	struct job job;

	ASSERT_TRUE(holder_open(&other));
	importer_attach(other.importer, self->device, self->fd, 0);
	ASSERT_WAITS(&job, self, job_revoke, REVOKED);
	ASSERT_TRUE(vfio_pci_dmabuf_fdinfo_has(self->fd, "importers", "2"));
	EXPECT_EQ(0, importer_do(other.importer, VFIO_PCI_DMABUF_TEST_FENCE));
	EXPECT_TRUE(job_waits(&job));
	EXPECT_EQ(0, importer_do(self->holder.importer, variant->release));
	EXPECT_TRUE(job_ends(&job, JOB_ENDS_MS));
	EXPECT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(self->device, self->fd));

	holder_close(&other);
	ASSERT_EQ(0, job_result(&job));
}

/* The whole life of another buffer of the same device, and of a BAR mapping */
TEST_DRAIN(others_go_on_while_revoke_waits)
{
	void *vaddr, *bar;
	struct job job;
	int i;

	self->other = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						   self->size);
	vaddr = mmap_shared(self->other, 0, self->size);
	ASSERT_WAITS(&job, self, job_revoke, REVOKED);

	for (i = 0; i < 2; i++) {
		bar = vfio_pci_region_mmap(self->device, self->bar, 0,
					   self->size);
		ASSERT_EQ(0, try_touch_pages(vaddr, self->size));
		ASSERT_EQ(0, try_touch_pages(bar, self->size));
		vfio_pci_dmabuf_revoke(self->device, self->other);
		ASSERT_EQ(SIGBUS, try_touch_pages(vaddr, self->size));
		ASSERT_EQ(0, try_touch_pages(bar, self->size));
		munmap_assert(bar, self->size);
		munmap_assert(vaddr, self->size);
		close_assert(self->other);
		self->other = vfio_pci_dmabuf_export_range(self->device,
							   self->bar, 0,
							   self->size);
		vaddr = mmap_shared(self->other, 0, self->size);
	}
	ASSERT_TRUE(job_waits(&job));
	ASSERT_ENDS(&job, self, 0);
}

/* Calling again goes on waiting, until there is nothing to wait for. */
TEST_DRAIN(signal_ends_the_wait)
{
	struct job job;
	int i;

	catch_signal(SIGUSR1);
	for (i = 0; i < 2; i++) {
		ASSERT_WAITS(&job, self, job_revoke, REVOKED);
		ASSERT_EQ(0, pthread_kill(job.thread, SIGUSR1));
		ASSERT_EQ(-EINTR, job_result(&job));
		ASSERT_EQ(SIGBUS, try_touch_pages(self->vaddr, self->size));
	}

	ASSERT_EQ(0, importer_do(self->holder.importer, variant->release));
	vfio_pci_dmabuf_revoke(self->device, self->fd);
	ASSERT_DEAD(self->fd);
}

/* The exit status or, negative, the signal that ended it; INT_MIN if it goes on */
static int child_ends(pid_t pid, int timeout_ms)
{
	int status, ms;
	pid_t ended;

	for (ms = 0; ms <= timeout_ms; ms++) {
		ended = waitpid(pid, &status, WNOHANG);
		VFIO_ASSERT_NE(ended, -1);
		if (ended)
			return WIFEXITED(status) ? WEXITSTATUS(status) :
						   -WTERMSIG(status);
		usleep(1000);
	}
	return INT_MIN;
}

TEST_DRAIN(killed_and_continued)
{
	pid_t pid;

	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(!!__vfio_pci_dmabuf_revoke(self->device, self->fd));
	}

	ASSERT_TRUE(reaches_wait(&self->holder, self->fd, REVOKED));
	ASSERT_EQ(INT_MIN, child_ends(pid, JOB_WAITS_MS));
	ASSERT_EQ(0, kill(pid, SIGKILL));
	ASSERT_EQ(-SIGKILL, child_ends(pid, JOB_ENDS_MS));
	ASSERT_EQ(SIGBUS, try_touch_pages(self->vaddr, self->size));

	ASSERT_EQ(0, importer_do(self->holder.importer, variant->release));
	vfio_pci_dmabuf_revoke(self->device, self->fd);
	ASSERT_DEAD(self->fd);
}

/*
 * What the device itself does has to wait as well, and no signal ends that wait:
 * there is no reset with DMA underway.
 */
#define ASSERT_DEVICE_WAITS(_self, _fn, _state) do {				\
	struct job __job;							\
										\
	catch_signal(SIGUSR1);							\
	ASSERT_WAITS(&__job, (_self), (_fn), (_state));				\
	ASSERT_EQ(0, pthread_kill(__job.thread, SIGUSR1));			\
	ASSERT_TRUE(job_waits(&__job));						\
	ASSERT_ENDS(&__job, (_self), 0);					\
} while (0)

TEST_DRAIN(memory_disable_waits)
{
	ASSERT_DEVICE_WAITS(self, do_memory_off, OFF);
	ASSERT_EQ(SIGBUS, try_touch_pages(self->vaddr, self->size));
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, try_touch_pages(self->vaddr, self->size));

	/* The importer may come again, and is then waited for again. */
	ASSERT_EQ(0, importer_do(self->holder.importer, variant->hold));
	ASSERT_DEVICE_WAITS(self, do_memory_off, OFF);
}

TEST_DRAIN(reset_waits)
{
	if (!(self->device->info.flags & VFIO_DEVICE_FLAGS_RESET))
		SKIP(return, "The device has no reset");

	ASSERT_DEVICE_WAITS(self, do_reset, OFF);
	ASSERT_EQ(0, try_touch_pages(self->vaddr, self->size));
}

/* The buffer is dead from the beginning of the close. */
TEST_DRAIN(close_waits)
{
	ASSERT_DEVICE_WAITS(self, do_close_device, REVOKED);
	ASSERT_EQ(SIGBUS, try_touch_pages(self->vaddr, self->size));
}

/* Touch pages in a child that ends with what came of it. */
static pid_t touching_child(void *vaddr, size_t size)
{
	pid_t pid = fork();

	VFIO_ASSERT_GE(pid, 0);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(try_touch_pages(vaddr, size));
	}
	return pid;
}

/*
 * While a reset waits for an importer, a touch of a permanently revoked buffer does
 * not wait; that of another buffer waits, can be killed, and is done in the end.
 */
TEST_DRAIN(faults_during_reset)
{
	void *vaddr[3];
	struct job job;
	pid_t pid[3];
	int i, fd;

	if (!(self->device->info.flags & VFIO_DEVICE_FLAGS_RESET))
		SKIP(return, "The device has no reset");

	for (i = 0; i < 3; i++) {
		fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						  self->size);
		vaddr[i] = mmap_shared(fd, 0, self->size);
		if (!i)
			vfio_pci_dmabuf_revoke(self->device, fd);
	}

	ASSERT_WAITS(&job, self, do_reset, OFF);
	for (i = 0; i < 3; i++)
		pid[i] = touching_child(vaddr[i], self->size);
	EXPECT_EQ(SIGBUS, child_ends(pid[0], JOB_ENDS_MS));
	EXPECT_EQ(INT_MIN, child_ends(pid[1], JOB_WAITS_MS));
	EXPECT_EQ(0, kill(pid[1], SIGKILL));
	EXPECT_EQ(-SIGKILL, child_ends(pid[1], JOB_ENDS_MS));
	EXPECT_EQ(INT_MIN, child_ends(pid[2], 0));

	ASSERT_ENDS(&job, self, 0);
	ASSERT_EQ(0, child_ends(pid[2], JOB_ENDS_MS));
}

/*
 * Revoke does not wait for a reset in progress, whatever that waits for; the revoke
 * of what the reset waits for has to wait for the same importer.
 */
TEST_DRAIN(revoke_during_reset)
{
	struct job reset, revoke, revoke_other;
	void *vaddr;

	if (!(self->device->info.flags & VFIO_DEVICE_FLAGS_RESET))
		SKIP(return, "The device has no reset");

	self->other = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						   self->size);
	vaddr = mmap_shared(self->other, 0, self->size);
	ASSERT_EQ(0, try_touch_pages(vaddr, self->size));

	ASSERT_WAITS(&reset, self, do_reset, OFF);
	job_start(&revoke_other, job_revoke, self->device, self->other);
	ASSERT_TRUE(job_ends(&revoke_other, JOB_ENDS_MS / 4));
	ASSERT_EQ(0, job_result(&revoke_other));
	ASSERT_EQ(SIGBUS, try_touch_pages(vaddr, self->size));
	ASSERT_DEAD(self->other);

	job_start(&revoke, job_revoke, self->device, self->fd);
	ASSERT_TRUE(job_waits(&revoke));
	ASSERT_TRUE(vfio_pci_dmabuf_fdinfo_has(self->fd, "state", REVOKED));
	ASSERT_EQ(SIGBUS, try_touch_pages(self->vaddr, self->size));
	ASSERT_ENDS(&reset, self, 0);
	ASSERT_EQ(0, job_result(&revoke));
	ASSERT_EQ(SIGBUS, try_touch_pages(self->vaddr, self->size));
	ASSERT_DEAD(self->fd);
}

/*
 * The one who closes the last fd of a DMABUF may be the one whom a reset waits for.
 * So the close must not wait for the reset.
 */
TEST_DRAIN(close_of_last_fd_while_device_waits)
{
	struct job job, close_job;

	self->other = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						   self->size);
	ASSERT_WAITS(&job, self, do_memory_off, OFF);
	job_start(&close_job, do_close_fd, self->device, self->other);
	ASSERT_TRUE(job_ends(&close_job, JOB_ENDS_MS / 4));
	ASSERT_EQ(0, job_result(&close_job));

	/* The importer may be the last to have the DMABUF that is waited for. */
	munmap_assert(self->vaddr, self->size);
	close_assert(self->fd);
	ASSERT_TRUE(job_waits(&job));
	holder_close(&self->holder);
	ASSERT_EQ(0, job_result(&job));
}

/* A revoke that waits does not keep the device from a reset: that joins it. */
TEST_DRAIN(memory_disable_while_revoke_waits)
{
	struct job revoke, off;

	ASSERT_WAITS(&revoke, self, job_revoke, REVOKED);
	ASSERT_WAITS(&off, self, do_memory_off, REVOKED);
	ASSERT_ENDS(&revoke, self, 0);
	ASSERT_EQ(0, job_result(&off));
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(SIGBUS, try_touch_pages(self->vaddr, self->size));
	ASSERT_DEAD(self->fd);
}

/* mmap(), munmap() and export */
static int do_map_all(void *arg, int fd)
{
	FIXTURE_DATA(dmabuf_drain) *self = arg;
	void *vaddr;
	int i;

	for (i = 0; i < 2; i++) {
		self->other = vfio_pci_dmabuf_export_range(self->device,
							   self->bar, 0,
							   self->size);
		vaddr = mmap_shared(self->fd, 0, self->size);
		munmap_assert(vaddr, self->size);
		vaddr = vfio_pci_region_mmap(self->device, self->bar, 0,
					     self->size);
		munmap_assert(vaddr, self->size);
	}
	return 0;
}

/*
 * While the device waits, nothing that maps or unmaps has to wait: it holds the
 * lock of its address space, on which all threads of the process depend.
 */
TEST_DRAIN(mmap_does_not_wait_for_device)
{
	struct job job, map;
	void *dmabuf, *bar;

	ASSERT_WAITS(&job, self, do_memory_off, OFF);
	job_start(&map, do_map_all, self, -1);
	ASSERT_TRUE(job_ends(&map, JOB_ENDS_MS / 4));
	bar = vfio_pci_region_mmap(self->device, self->bar, 0, self->size);
	dmabuf = mmap_shared(self->other, 0, self->size);
	ASSERT_ENDS(&job, self, 0);

	/* What was made meanwhile is as the device is. */
	ASSERT_EQ(SIGBUS, try_touch_pages(bar, self->size));
	ASSERT_EQ(SIGBUS, try_touch_pages(dmabuf, self->size));
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, try_touch_pages(bar, self->size));
	ASSERT_EQ(0, try_touch_pages(dmabuf, self->size));
}

/* Independent of what holds the buffer */
FIXTURE(dmabuf_importer) {
	DMABUF_FIXTURE;
	int importer;
	int timeline;
	int fd;
};

FIXTURE_SETUP(dmabuf_importer)
{
	self->timeline = -1;
	self->importer = importer_open();
	if (self->importer < 0)
		SKIP(return, "No test importer");

	DMABUF_SETUP(self, false, page_size);
	self->fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						page_size);
}

/* The close of the timeline signals its fences. */
FIXTURE_TEARDOWN(dmabuf_importer)
{
	if (self->timeline >= 0)
		close_assert(self->timeline);
	close_assert(self->importer);
}

#define UNABLE	(VFIO_PCI_DMABUF_TEST_NO_INVALIDATE | VFIO_PCI_DMABUF_TEST_NO_P2P)

/* An importer that cannot be told to release a buffer, or cannot do peer-to-peer */
TEST_F(dmabuf_importer, attach)
{
	ASSERT_EQ(-EOPNOTSUPP,
		  __importer_attach(self->importer, self->device, self->fd,
				    VFIO_PCI_DMABUF_TEST_NO_INVALIDATE));
	ASSERT_EQ(-EOPNOTSUPP,
		  __importer_attach(self->importer, self->device, self->fd,
				    VFIO_PCI_DMABUF_TEST_NO_P2P));
	ASSERT_EQ(-EOPNOTSUPP, __importer_attach(self->importer, self->device,
						 self->fd, UNABLE));
	importer_attach(self->importer, self->device, self->fd, 0);
}

/* An attachment alone holds nothing, and there is no new one afterwards. */
TEST_F(dmabuf_importer, attached_but_not_mapped)
{
	int importer = importer_open();

	importer_attach(self->importer, self->device, self->fd, 0);
	vfio_pci_dmabuf_revoke(self->device, self->fd);
	ASSERT_EQ(-ENODEV, importer_do(self->importer,
				       VFIO_PCI_DMABUF_TEST_MAP));
	ASSERT_DEAD(self->fd);
	ASSERT_EQ(-ENODEV, __importer_attach(importer, self->device, self->fd,
					     0));
}

/*
 * The importer as it should be releases the buffer when told, and nobody waits. It
 * is told when access goes, not when it comes back.
 */
TEST_F(dmabuf_importer, releases_when_told)
{
	importer_attach(self->importer, self->device, self->fd,
			VFIO_PCI_DMABUF_TEST_PROMPT);
	ASSERT_EQ(0, importer_do(self->importer, VFIO_PCI_DMABUF_TEST_MAP));
	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(1, importer_do(self->importer,
				 VFIO_PCI_DMABUF_TEST_NR_INVALIDATED));
	ASSERT_EQ(-ENODEV, importer_do(self->importer,
				       VFIO_PCI_DMABUF_TEST_MAP));
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(1, importer_do(self->importer,
				 VFIO_PCI_DMABUF_TEST_NR_INVALIDATED));
	ASSERT_EQ(0, importer_do(self->importer, VFIO_PCI_DMABUF_TEST_MAP));
	vfio_pci_dmabuf_revoke(self->device, self->fd);
	ASSERT_EQ(2, importer_do(self->importer,
				 VFIO_PCI_DMABUF_TEST_NR_INVALIDATED));
}

/* A buffer starts out as the device is, for importers too. */
TEST_F(dmabuf_importer, exported_while_memory_disabled)
{
	int fd;

	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
					  page_size);
	ASSERT_EQ(-ENODEV, __importer_attach(self->importer, self->device, fd,
					     0));
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	importer_attach(self->importer, self->device, fd, 0);
	ASSERT_EQ(0, importer_do(self->importer, VFIO_PCI_DMABUF_TEST_MAP));
}

/* Of drivers/dma-buf/sw_sync.c, not in any header */
struct sw_sync_create_fence_data {
	u32 value;
	char name[32];
	s32 fence;
};

#define SW_SYNC_IOC_CREATE_FENCE _IOWR('W', 0, struct sw_sync_create_fence_data)

/* Put a fence into the DMABUF. Returns false if the kernel has none. */
static bool add_fence(FIXTURE_DATA(dmabuf_importer) *self)
{
	struct dma_buf_import_sync_file import = { .flags = DMA_BUF_SYNC_WRITE };
	struct sw_sync_create_fence_data create = { .value = 1 };

	self->timeline = open("/sys/kernel/debug/sync/sw_sync",
			      O_RDWR | O_CLOEXEC);
	if (self->timeline < 0)
		return false;

	ioctl_assert(self->timeline, SW_SYNC_IOC_CREATE_FENCE, &create);
	import.fd = create.fence;
	ioctl_assert(self->fd, DMA_BUF_IOCTL_IMPORT_SYNC_FILE, &import);
	close_assert(create.fence);
	return true;
}

/* A fence is waited for on behalf of an importer, so without importer not at all. */
TEST_F(dmabuf_importer, fence_without_attachment)
{
	static int (* const fns[])(void *arg, int fd) = {
		do_memory_switch, do_reset, job_revoke, do_close_device,
	};
	struct job job;
	int i;

	if (!add_fence(self))
		SKIP(return, "No fences by CONFIG_SW_SYNC");
	if (!(self->device->info.flags & VFIO_DEVICE_FLAGS_RESET))
		SKIP(return, "The device has no reset");

	for (i = 0; i < ARRAY_SIZE(fns); i++) {
		job_start(&job, fns[i], self->device, self->fd);
		ASSERT_TRUE(job_ends(&job, JOB_ENDS_MS / 4)) {
			TH_LOG("operation %d waits", i);
		}
		ASSERT_EQ(0, job_result(&job));
	}
}

TEST_F(dmabuf_importer, fence_with_attachment)
{
	struct job job;

	importer_attach(self->importer, self->device, self->fd, 0);
	if (!add_fence(self))
		SKIP(return, "No fences by CONFIG_SW_SYNC");

	job_start(&job, job_revoke, self->device, self->fd);
	EXPECT_TRUE(job_waits(&job));
	close_assert(self->timeline);
	self->timeline = -1;
	ASSERT_EQ(0, job_result(&job));
}

/* Map and unmap as fast as it goes, while the buffer is revoked */
struct mapper {
	int importer;
	bool stop;
	bool revoked;
};

static void *mapper_main(void *arg)
{
	struct mapper *mapper = arg;

	while (!READ_ONCE(mapper->stop)) {
		bool revoked = __atomic_load_n(&mapper->revoked,
					       __ATOMIC_SEQ_CST);
		int ret = importer_do(mapper->importer,
				      VFIO_PCI_DMABUF_TEST_MAP);

		VFIO_ASSERT_TRUE(ret == -ENODEV || (!ret && !revoked));
		importer_do(mapper->importer, VFIO_PCI_DMABUF_TEST_UNMAP);
	}

	return NULL;
}

TEST_F_TIMEOUT(dmabuf_importer, map_against_revoke, 300)
{
	u32 rounds = 4 * getenv_u32("VFIO_RACE_ROUNDS", 50);
	u32 seed = 1;
	u32 i;

	for (i = 0; i < rounds; i++) {
		struct mapper mapper = { .importer = importer_open() };
		int fd = vfio_pci_dmabuf_export_range(self->device, self->bar,
						      0, page_size);
		pthread_t thread;

		/* Every second one also releases the buffer when told. */
		importer_attach(mapper.importer, self->device, fd,
				i % 2 ? VFIO_PCI_DMABUF_TEST_PROMPT : 0);
		ASSERT_EQ(0, pthread_create(&thread, NULL, mapper_main,
					    &mapper));
		random_delay(&seed, 500);
		vfio_pci_dmabuf_revoke(self->device, fd);
		__atomic_store_n(&mapper.revoked, true, __ATOMIC_SEQ_CST);
		random_delay(&seed, 100);
		WRITE_ONCE(mapper.stop, true);
		ASSERT_EQ(0, pthread_join(thread, NULL));
		close_assert(mapper.importer);
		close_assert(fd);
	}
}

int main(int argc, char *argv[])
{
	dmabuf_test_init(&argc, argv);
	return test_harness_run(argc, argv);
}
