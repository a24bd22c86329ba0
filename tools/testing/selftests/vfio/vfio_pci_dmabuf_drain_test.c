// SPDX-License-Identifier: GPL-2.0-only
/*
 * An importer that does not release a DMABUF: which operations wait for it,
 * which do not, and how the wait ends. Needs CONFIG_VFIO_PCI_DMABUF_TEST.
 *
 * A job does each step that might wait for the importer on a kernel with a bug.
 * So the main thread fails in time, and releases what the importer holds.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <sys/mman.h>

#include <linux/pci_regs.h>
#include <linux/vfio.h>

#include "kselftest_harness.h"

#include <libvfio/dmabuf_test.h>

/* The state in fdinfo of a DMABUF whose importers are waited for */
#define REVOKED	"revoked, waiting for importers"
#define OFF	"temporarily revoked"

/* On a slow machine, until something that must not wait has come to its end */
#define PROMPT_MS (JOB_ENDS_MS / 4)

FIXTURE(dmabuf_drain) {
	DMABUF_FIXTURE;
	/* One that holds the DMABUF, and one that is not attached */
	int importer;
	int spare;
	struct importer_guard *guards[2];
	size_t size;
	int fd;
	void *vaddr;
	/* Another DMABUF of the same memory, without importers */
	int other;
	void *other_vaddr;
};

/* The command by which the importer holds the buffer */
FIXTURE_VARIANT(dmabuf_drain) {
	unsigned int hold;
};

FIXTURE_VARIANT_ADD(dmabuf_drain, map) {
	.hold = VFIO_PCI_DMABUF_TEST_MAP,
};

FIXTURE_VARIANT_ADD(dmabuf_drain, fence) {
	.hold = VFIO_PCI_DMABUF_TEST_FENCE,
};

static void nothing(int sig)
{
}

static int export(FIXTURE_DATA(dmabuf_drain) *self)
{
	return vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
					    self->size);
}

FIXTURE_SETUP(dmabuf_drain)
{
	signal(SIGUSR1, nothing);
	/* Before there is a BAR mapping to inherit */
	self->importer = importer_open();
	self->spare = importer_open();
	if (self->spare < 0)
		SKIP(return, "No test importer");
	self->guards[0] = importer_guard_start(self->importer);
	self->guards[1] = importer_guard_start(self->spare);

	self->size = 8 * page_size;
	DMABUF_SETUP(self, true, self->size);
	self->fd = export(self);
	self->vaddr = mmap_shared(self->fd, 0, self->size);
	self->other = export(self);
	self->other_vaddr = mmap_shared(self->other, 0, self->size);
	importer_attach(self->importer, self->device, self->fd, 0);
	ASSERT_EQ(0, importer_do(self->importer, variant->hold));
	ASSERT_EQ(0, try_touch_pages(self->vaddr, self->size));
	ASSERT_EQ(0, try_touch_pages(self->other_vaddr, self->size));
}

/* A failed test may have jobs that wait. */
FIXTURE_TEARDOWN(dmabuf_drain)
{
	int i;

	importer_release(self->importer);
	importer_release(self->spare);
	for (i = 0; i < 2; i++) {
		if (self->guards[i])
			importer_guard_stop(self->guards[i]);
	}
}

#define NR_NOTIFIED(_importer) \
	importer_do((_importer), VFIO_PCI_DMABUF_TEST_NR_INVALIDATED)

/*
 * Has the wait of @job begun? Each operation notifies the importer after it
 * has unmapped CPUs, and right before it waits.
 */
static bool reaches_wait(struct job *job, int importer, int nr_notified)
{
	int ms, nr;

	for (ms = 0; ms < PROMPT_MS && !job_ends(job, 1); ms++) {
		nr = NR_NOTIFIED(importer);
		if (nr != nr_notified)
			return nr == nr_notified + 1;
	}
	return false;
}

/* Operations on the device, and on one of its DMABUFs */
static int do_memory_off(void *device, int fd)
{
	vfio_pci_cmd_clear(device, PCI_COMMAND_MEMORY);
	return 0;
}

/* Without a reset, use memory disable, which is the same to importers. */
static int do_reset(void *arg, int fd)
{
	struct vfio_pci_device *device = arg;

	if (device->info.flags & VFIO_DEVICE_FLAGS_RESET)
		return __vfio_pci_device_reset(device);
	vfio_pci_cmd_clear(device, PCI_COMMAND_MEMORY);
	vfio_pci_cmd_set(device, PCI_COMMAND_MEMORY);
	return 0;
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

/* Start @_fn, which has to wait for the importer with the DMABUF in @_state. */
#define ASSERT_WAITS(_job, _fn, _state) do {					\
	int __nr_notified = NR_NOTIFIED(self->importer);			\
										\
	job_start((_job), (_fn), self->device, self->fd);			\
	ASSERT_TRUE(reaches_wait((_job), self->importer, __nr_notified));	\
	ASSERT_TRUE(job_waits(_job));						\
	ASSERT_TRUE(vfio_pci_dmabuf_fdinfo_has(self->fd, "state", (_state)));	\
} while (0)

/* @_job has no reason to wait any more. */
#define ASSERT_JOB_ENDS(_job, _ret) do {					\
	ASSERT_TRUE(job_ends((_job), PROMPT_MS));				\
	ASSERT_EQ((_ret), job_result(_job));					\
} while (0)

#define ASSERT_RELEASE_ENDS(_job) do {						\
	importer_release(self->importer);					\
	ASSERT_JOB_ENDS((_job), 0);						\
} while (0)

#define ASSERT_TOUCH(_sig, _vaddr) \
	ASSERT_EQ((_sig), try_touch_pages((_vaddr), self->size))

/* The DMABUF is revoked, and its importers have released it. */
#define ASSERT_DEAD(_fd) \
	ASSERT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(self->device, (_fd)))

#define ASSERT_ATTACH(_ret, _fd, _flags) \
	ASSERT_EQ((_ret), __importer_attach(self->spare, self->device, (_fd), \
					    (_flags)))
#define ASSERT_SPARE(_ret, _command) \
	ASSERT_EQ((_ret), importer_do(self->spare, \
				      VFIO_PCI_DMABUF_TEST_##_command))

/* Revoke waits for importers, not for CPUs. A second one waits, too. */
TEST_F(dmabuf_drain, revoke_waits)
{
	struct job jobs[2];
	void *vaddr;

	ASSERT_WAITS(&jobs[0], job_revoke, REVOKED);
	ASSERT_TRUE(vfio_pci_dmabuf_fdinfo_has(self->fd, "importers", "1"));
	ASSERT_TOUCH(SIGBUS, self->vaddr);
	ASSERT_WAITS(&jobs[1], job_revoke, REVOKED);

	/* Nor is there anything new meanwhile. */
	ASSERT_ATTACH(-ENODEV, self->fd, 0);
	ASSERT_EQ(-ENODEV, __iommu_map_file(self->iommu, self->fd, 0,
					    self->size, 1UL << 30));
	ASSERT_EQ(-ENODEV, __mmap_shared(self->fd, 0, self->size, PROT_READ,
					 &vaddr));

	ASSERT_RELEASE_ENDS(&jobs[0]);
	ASSERT_JOB_ENDS(&jobs[1], 0);
	ASSERT_TRUE(vfio_pci_dmabuf_fdinfo_has(self->fd, "state", "revoked"));
	ASSERT_TOUCH(SIGBUS, self->vaddr);
	ASSERT_DEAD(self->fd);
}

/* Calling again goes on waiting, until there is nothing to wait for. */
TEST_F(dmabuf_drain, signal_ends_the_wait)
{
	struct job job;
	int i;

	for (i = 0; i < 2; i++) {
		ASSERT_WAITS(&job, job_revoke, REVOKED);
		ASSERT_EQ(0, pthread_kill(job.thread, SIGUSR1));
		ASSERT_JOB_ENDS(&job, -EINTR);
		ASSERT_TOUCH(SIGBUS, self->vaddr);
	}

	importer_release(self->importer);
	vfio_pci_dmabuf_revoke(self->device, self->fd);
	ASSERT_DEAD(self->fd);
}

/* The device waits for importers that an interrupted revoke has left, but once. */
TEST_F(dmabuf_drain, memory_disable_after_interrupted_revoke)
{
	struct job job;
	int nr_notified;

	ASSERT_WAITS(&job, job_revoke, REVOKED);
	ASSERT_EQ(0, pthread_kill(job.thread, SIGUSR1));
	ASSERT_JOB_ENDS(&job, -EINTR);
	ASSERT_WAITS(&job, do_memory_off, REVOKED);
	ASSERT_RELEASE_ENDS(&job);

	nr_notified = NR_NOTIFIED(self->importer);
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(nr_notified, NR_NOTIFIED(self->importer));
	ASSERT_DEAD(self->fd);
}

/*
 * The operations of the device have to wait as well, and no signal ends that
 * wait: there is no reset with DMA underway.
 */
#define ASSERT_DEVICE_WAITS(_fn, _state) do {					\
	struct job __job;							\
										\
	ASSERT_WAITS(&__job, (_fn), (_state));					\
	ASSERT_EQ(0, pthread_kill(__job.thread, SIGUSR1));			\
	ASSERT_TRUE(job_waits(&__job));						\
	ASSERT_RELEASE_ENDS(&__job);						\
} while (0)

/* The importer may come again, and is then waited for again. */
TEST_F(dmabuf_drain, memory_disable_waits)
{
	int i;

	for (i = 0; i < 2; i++) {
		ASSERT_DEVICE_WAITS(do_memory_off, OFF);
		ASSERT_TOUCH(SIGBUS, self->vaddr);
		vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
		ASSERT_TOUCH(0, self->vaddr);
		ASSERT_EQ(0, importer_do(self->importer, variant->hold));
	}
}

/* The buffer is dead from the beginning of the close. */
TEST_F(dmabuf_drain, close_waits)
{
	ASSERT_DEVICE_WAITS(do_close_device, REVOKED);
	ASSERT_TOUCH(SIGBUS, self->vaddr);
}

static int do_touch(void *vaddr, int fd)
{
	return try_touch_pages(vaddr, page_size);
}

static int do_reap(void *arg, int pid)
{
	return wait_child(pid);
}

/* A part of the mapping at @vaddr, which a touch of its start may wait for */
static int do_unmap_end(void *vaddr, int fd)
{
	munmap_assert(vaddr + page_size, page_size);
	munmap_assert(mmap_shared(fd, 0, page_size), page_size);
	return 0;
}

/*
 * While a reset waits for an importer, a touch of a permanently revoked buffer
 * does not wait; that of another buffer or of the BAR waits, can be killed, and
 * succeeds. Other threads map and unmap meanwhile, also in the same mapping.
 */
TEST_F(dmabuf_drain, faults_during_reset)
{
	int i, fd = export(self);
	void *revoked_vaddr = mmap_shared(fd, 0, self->size);
	void *vaddrs[] = {
		self->other_vaddr,
		vfio_pci_region_mmap(self->device, self->bar, 0, self->size),
	};
	struct job job, revoked, touches[2], child, unmap;
	pid_t pid;

	vfio_pci_dmabuf_revoke(self->device, fd);
	ASSERT_WAITS(&job, do_reset, OFF);
	job_start(&revoked, do_touch, revoked_vaddr, 0);
	ASSERT_JOB_ENDS(&revoked, SIGBUS);

	for (i = 0; i < 2; i++) {
		pid = fork_child(-1);
		if (!pid)
			_exit(do_touch(vaddrs[i], 0));
		job_start(&child, do_reap, NULL, pid);
		ASSERT_TRUE(job_waits(&child));
		ASSERT_EQ(0, kill(pid, SIGKILL));
		ASSERT_JOB_ENDS(&child, SIGKILL);

		job_start(&touches[i], do_touch, vaddrs[i], 0);
		ASSERT_TRUE(job_waits(&touches[i]));
		job_start(&unmap, do_unmap_end, vaddrs[i], self->other);
		ASSERT_JOB_ENDS(&unmap, 0);
	}

	ASSERT_RELEASE_ENDS(&job);
	ASSERT_JOB_ENDS(&touches[0], 0);
	ASSERT_JOB_ENDS(&touches[1], 0);
}

/*
 * Revoke does not wait for a reset in progress, whatever that waits for; the
 * revoke of what the reset waits for has to wait for the same importer.
 */
TEST_F(dmabuf_drain, revoke_during_reset)
{
	struct job reset, revoke, revoke_other;

	ASSERT_WAITS(&reset, do_reset, OFF);
	job_start(&revoke_other, job_revoke, self->device, self->other);
	ASSERT_JOB_ENDS(&revoke_other, 0);
	ASSERT_TOUCH(SIGBUS, self->other_vaddr);
	ASSERT_DEAD(self->other);

	ASSERT_WAITS(&revoke, job_revoke, REVOKED);
	ASSERT_TOUCH(SIGBUS, self->vaddr);
	ASSERT_RELEASE_ENDS(&reset);
	ASSERT_JOB_ENDS(&revoke, 0);
	ASSERT_TOUCH(SIGBUS, self->vaddr);
	ASSERT_DEAD(self->fd);
}

/*
 * A reset may wait for the process that closes the last fd of a DMABUF. So the
 * close must not wait for the reset.
 */
TEST_F(dmabuf_drain, close_of_last_fd_while_device_waits)
{
	struct job job, close_job;

	munmap_assert(self->other_vaddr, self->size);
	ASSERT_WAITS(&job, do_memory_off, OFF);
	job_start(&close_job, do_close_fd, self->device, self->other);
	ASSERT_JOB_ENDS(&close_job, 0);

	/* The importer may be the last to hold the DMABUF. */
	munmap_assert(self->vaddr, self->size);
	close_assert(self->fd);
	ASSERT_TRUE(job_waits(&job));
	importer_guard_stop(self->guards[0]);
	self->guards[0] = NULL;
	close_assert(self->importer);
	ASSERT_JOB_ENDS(&job, 0);
}

/*
 * A revoke that waits holds no lock of the device: other buffers can be
 * revoked, and a reset joins the wait.
 */
TEST_F(dmabuf_drain, memory_disable_while_revoke_waits)
{
	struct job revoke, revoke_other, off;

	ASSERT_WAITS(&revoke, job_revoke, REVOKED);
	job_start(&revoke_other, job_revoke, self->device, self->other);
	ASSERT_JOB_ENDS(&revoke_other, 0);
	ASSERT_WAITS(&off, do_memory_off, REVOKED);
	ASSERT_RELEASE_ENDS(&revoke);
	ASSERT_JOB_ENDS(&off, 0);
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	ASSERT_TOUCH(SIGBUS, self->vaddr);
	ASSERT_DEAD(self->fd);
}

/* mmap(), munmap() and export */
static int do_map_all(void *arg, int fd)
{
	FIXTURE_DATA(dmabuf_drain) *self = arg;

	munmap_assert(self->vaddr, self->size);
	munmap_assert(mmap_shared(fd, 0, self->size), self->size);
	self->vaddr = vfio_pci_region_mmap(self->device, self->bar, 0,
					   self->size);
	self->other_vaddr = mmap_shared(export(self), 0, self->size);
	return 0;
}

/*
 * While the device waits, nothing that maps or unmaps has to wait: it holds the
 * lock of its address space, on which all threads of the process depend.
 */
TEST_F(dmabuf_drain, mmap_does_not_wait_for_device)
{
	struct job job, map;

	ASSERT_WAITS(&job, do_memory_off, OFF);
	job_start(&map, do_map_all, self, self->fd);
	ASSERT_JOB_ENDS(&map, 0);
	ASSERT_RELEASE_ENDS(&job);

	/* New buffers and mappings are as the device is. */
	ASSERT_TOUCH(SIGBUS, self->vaddr);
	ASSERT_TOUCH(SIGBUS, self->other_vaddr);
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	ASSERT_TOUCH(0, self->vaddr);
	ASSERT_TOUCH(0, self->other_vaddr);
}

/* The following use the other DMABUF. */

/*
 * An importer that cannot be notified to release a buffer, or cannot do
 * peer-to-peer DMA, cannot attach. There is no wait for an attachment alone.
 */
TEST_F(dmabuf_drain, attached_but_not_mapped)
{
	ASSERT_ATTACH(-EOPNOTSUPP, self->other,
		      VFIO_PCI_DMABUF_TEST_NO_INVALIDATE);
	ASSERT_ATTACH(-EOPNOTSUPP, self->other, VFIO_PCI_DMABUF_TEST_NO_P2P);
	ASSERT_ATTACH(0, self->other, 0);
	vfio_pci_dmabuf_revoke(self->device, self->other);
	ASSERT_SPARE(-ENODEV, MAP);
	ASSERT_DEAD(self->other);
}

/*
 * A proper importer releases the buffer when notified, so no operation waits.
 * It is notified when access is lost, not when it is restored.
 */
TEST_F(dmabuf_drain, prompt_importer)
{
	importer_release(self->importer);
	ASSERT_ATTACH(0, self->other, VFIO_PCI_DMABUF_TEST_PROMPT);
	ASSERT_SPARE(0, MAP);
	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	ASSERT_SPARE(1, NR_INVALIDATED);
	ASSERT_SPARE(-ENODEV, MAP);
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	ASSERT_SPARE(1, NR_INVALIDATED);
	ASSERT_SPARE(0, MAP);
	vfio_pci_dmabuf_revoke(self->device, self->other);
	ASSERT_SPARE(2, NR_INVALIDATED);
}

/* A buffer starts out as the device is, for importers too. */
TEST_F(dmabuf_drain, exported_while_memory_disabled)
{
	int fd;

	importer_release(self->importer);
	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	fd = export(self);
	ASSERT_ATTACH(-ENODEV, fd, 0);
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	ASSERT_ATTACH(0, fd, 0);
	ASSERT_SPARE(0, MAP);
}

static int do_hot_reset(void *device, int fd)
{
	return __vfio_pci_hot_reset(device);
}

/*
 * A hot reset that fails, as another device of the set is locked, has not ended the
 * DMA mappings of those devices that it could lock.
 */
TEST(failed_hot_reset)
{
	const char *bdfs[] = {
		vfio_selftests_get_named_bdf("VFIO_EDU2_BDF"),
		vfio_selftests_get_named_bdf("VFIO_BOCHS2_BDF"),
	};
	struct vfio_pci_device *devices[2];
	struct importer_guard *guards[2];
	int importers[2], fd, bar, i;
	struct job off, reset;
	struct iommu *iommu;

	if (!bdfs[0] || !bdfs[1])
		SKIP(return, "No two functions of a device");
	for (i = 0; i < 2; i++) {
		importers[i] = importer_open();
		if (importers[i] < 0)
			SKIP(return, "No test importer");
		guards[i] = importer_guard_start(importers[i]);
	}

	iommu = iommu_init(default_iommu_mode);
	for (i = 0; i < 2; i++) {
		devices[i] = vfio_pci_device_init(bdfs[i], iommu);
		bar = vfio_pci_last_bar(devices[i], page_size);
		fd = vfio_pci_dmabuf_export_range(devices[i], bar, 0, page_size);
		importer_attach(importers[i], devices[i], fd, 0);
		ASSERT_EQ(0, importer_do(importers[i],
					 VFIO_PCI_DMABUF_TEST_MAP));
	}

	for (i = 0; i < 2; i++) {
		int nr_notified = NR_NOTIFIED(importers[!i]);

		job_start(&off, do_memory_off, devices[i], -1);
		EXPECT_TRUE(reaches_wait(&off, importers[i], 0));
		job_start(&reset, do_hot_reset, devices[!i], -1);
		EXPECT_TRUE(job_ends(&reset, PROMPT_MS));
		EXPECT_EQ(nr_notified, NR_NOTIFIED(importers[!i]));
		/* The other one is released only if the test has failed. */
		importer_release(importers[i]);
		if (!__test_passed(_metadata))
			importer_release(importers[!i]);
		ASSERT_EQ(-EBUSY, job_result(&reset));
		ASSERT_JOB_ENDS(&off, 0);
		vfio_pci_cmd_set(devices[i], PCI_COMMAND_MEMORY);
		ASSERT_EQ(0, importer_do(importers[i],
					 VFIO_PCI_DMABUF_TEST_MAP));
	}
	for (i = 0; i < 2; i++) {
		importer_release(importers[i]);
		importer_guard_stop(guards[i]);
	}
}

int main(int argc, char *argv[])
{
	dmabuf_test_init(&argc, argv);
	return test_harness_run(argc, argv);
}
