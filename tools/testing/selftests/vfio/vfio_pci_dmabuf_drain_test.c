// SPDX-License-Identifier: GPL-2.0-only
/*
 * An importer that does not let go of a DMABUF: who has to wait for it, who
 * has not, and how the wait ends. Needs CONFIG_VFIO_PCI_DMABUF_TEST.
 */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <linux/compiler.h>
#include <linux/dma-buf.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "kselftest_harness.h"

static const char *device_bdf;

static size_t page_size;

#define NR_PAGES 8

#define TRACING "/sys/kernel/tracing/"

/* What fdinfo has for a DMABUF that is waited for */
#define REVOKED	"revoked, waiting for importers"
#define OFF	"temporarily revoked"

/* Long enough to say that something waits; what does not comes back at once. */
#define WAITS_MS 200

/* On a slow machine, until what was waited for comes to its end. */
#define ENDS_MS 60000

FIXTURE(dmabuf_drain) {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	struct importer_guard *guard;
	int importer;
	/* How many times it is known to have been told to let go */
	int nr_told;
	bool tracing;
	int bar;
	size_t size;
	int fd;
	/* Another DMABUF of it, where a test has one */
	int other;
	void *vaddr;
};

/* What holds the buffer */
FIXTURE_VARIANT(dmabuf_drain) {
	unsigned int hold;
	unsigned int let_go;
};

FIXTURE_VARIANT_ADD(dmabuf_drain, map) {
	.hold = VFIO_PCI_DMABUF_TEST_MAP,
	.let_go = VFIO_PCI_DMABUF_TEST_UNMAP,
};

FIXTURE_VARIANT_ADD(dmabuf_drain, fence) {
	.hold = VFIO_PCI_DMABUF_TEST_FENCE,
	.let_go = VFIO_PCI_DMABUF_TEST_SIGNAL,
};

/* A test takes its time on a kernel that checks itself. */
#define TEST_DRAIN(_name) TEST_F_TIMEOUT(dmabuf_drain, _name, 300)

FIXTURE_SETUP(dmabuf_drain)
{
	const char *reason;

	self->importer = importer_open();
	if (self->importer < 0)
		SKIP(return, "No test importer");

	/* Before there is a BAR mapping to inherit */
	self->guard = importer_guard_start(self->importer);
	self->size = NR_PAGES * page_size;
	reason = dmabuf_test_open(device_bdf, true, self->size, &self->iommu,
				  &self->device, &self->bar);
	if (reason)
		SKIP(return, "%s", reason);

	self->fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						self->size);
	self->vaddr = mmap_shared(self->fd, 0, self->size);
	importer_attach(self->importer, self->device, self->fd, 0);
	ASSERT_EQ(0, importer_do(self->importer, variant->hold));
	ASSERT_EQ(0, try_touch_pages(self->vaddr, self->size));
}

/* Closing the fd is what lets go, as the process that dies does. */
static void importer_end(FIXTURE_DATA(dmabuf_drain) *self)
{
	if (self->importer < 0)
		return;

	importer_guard_stop(self->guard);
	close_assert(self->importer);
	self->importer = -1;
}

FIXTURE_TEARDOWN(dmabuf_drain)
{
	if (self->tracing)
		write_file(TRACING "events/vfio_pci/enable", 0, "0");
	importer_end(self);
	if (self->vaddr)
		munmap_assert(self->vaddr, self->size);
	close_assert(self->fd);
	if (self->device)
		vfio_pci_device_cleanup(self->device);
	iommu_cleanup(self->iommu);
}

/*
 * Something to do that may have to wait, in a thread. Its end is seen at a pipe:
 * the thread may not come back for a long time.
 */
struct job {
	FIXTURE_DATA(dmabuf_drain) *self;
	int (*fn)(FIXTURE_DATA(dmabuf_drain) *self);
	pthread_t thread;
	int done[2];
	int ret;
};

static void *job_main(void *arg)
{
	struct job *job = arg;

	job->ret = job->fn(job->self);
	close_assert(job->done[1]);

	return NULL;
}

static void job_start(struct job *job, FIXTURE_DATA(dmabuf_drain) *self,
		      int (*fn)(FIXTURE_DATA(dmabuf_drain) *self))
{
	job->self = self;
	job->fn = fn;
	VFIO_ASSERT_EQ(pipe2(job->done, O_CLOEXEC), 0);
	VFIO_ASSERT_EQ(pthread_create(&job->thread, NULL, job_main, job), 0);
}

static bool job_ends(struct job *job, int timeout_ms)
{
	struct pollfd pollfd = { .fd = job->done[0] };

	return poll(&pollfd, 1, timeout_ms) == 1;
}

static bool job_waits(struct job *job)
{
	return !job_ends(job, WAITS_MS);
}

static int job_result(struct job *job)
{
	VFIO_ASSERT_TRUE(job_ends(job, ENDS_MS), "Still waiting\n");
	VFIO_ASSERT_EQ(pthread_join(job->thread, NULL), 0);
	close_assert(job->done[0]);

	return job->ret;
}

/*
 * Has a wait begun, with the DMABUF in @state? The importer is told to let go when
 * all CPUs are out, right before it is waited for, each time anew.
 */
static bool reaches_wait(FIXTURE_DATA(dmabuf_drain) *self, const char *state)
{
	int told = 0;
	int ms;

	for (ms = 0; ms < ENDS_MS && told <= self->nr_told; ms++) {
		usleep(1000);
		told = importer_do(self->importer,
				   VFIO_PCI_DMABUF_TEST_NR_INVALIDATED);
	}

	VFIO_ASSERT_EQ(told, self->nr_told + 1);
	self->nr_told = told;
	return vfio_pci_dmabuf_fdinfo_has(self->fd, "state", state);
}

static int do_revoke(FIXTURE_DATA(dmabuf_drain) *self)
{
	return __vfio_pci_dmabuf_revoke(self->device, self->fd);
}

static int do_memory_off(FIXTURE_DATA(dmabuf_drain) *self)
{
	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	return 0;
}

static int do_reset(FIXTURE_DATA(dmabuf_drain) *self)
{
	return __vfio_pci_device_reset(self->device);
}

static int do_close(FIXTURE_DATA(dmabuf_drain) *self)
{
	vfio_pci_device_cleanup(self->device);
	return 0;
}

static void nothing(int sig)
{
}

/* A signal that interrupts system calls and does nothing else */
static void catch_signal(int sig)
{
	struct sigaction action = { .sa_handler = nothing };

	VFIO_ASSERT_EQ(sigaction(sig, &action, NULL), 0);
}

TEST_DRAIN(revoke_waits)
{
	struct job job;

	job_start(&job, self, do_revoke);
	ASSERT_TRUE(reaches_wait(self, REVOKED));
	ASSERT_TRUE(job_waits(&job));

	ASSERT_TRUE(vfio_pci_dmabuf_fdinfo_has(self->fd, "importers", "1"));

	/* CPUs are not waited for: they are out already. */
	ASSERT_EQ(SIGBUS, try_touch_pages(self->vaddr, self->size));

	ASSERT_EQ(0, importer_do(self->importer, variant->let_go));
	ASSERT_EQ(0, job_result(&job));
	ASSERT_TRUE(vfio_pci_dmabuf_fdinfo_has(self->fd, "state", "revoked"));
	ASSERT_EQ(SIGBUS, try_touch_pages(self->vaddr, self->size));
	ASSERT_EQ(-EBADFD, do_revoke(self));
	ASSERT_EQ(1, importer_do(self->importer,
				 VFIO_PCI_DMABUF_TEST_NR_INVALIDATED));
}

/* What the trace says of @event, behind the name of the device, or NULL */
static const char *trace_of(const char *event, u64 ino)
{
	static char line[512];
	FILE *file = fopen(TRACING "trace", "r");
	char start[128];
	char *found = NULL;

	VFIO_ASSERT_NOT_NULL(file);
	snprintf(start, sizeof(start), "vfio_pci_dma_buf_%s: %s: ino=%lu", event,
		 device_bdf, ino);
	while (!found && fgets(line, sizeof(line), file)) {
		found = strstr(line, start);
		if (found)
			found += strlen(start);
		/* Or it is only the beginning of another number */
		if (found && !isspace(*found))
			found = NULL;
	}
	VFIO_ASSERT_EQ(fclose(file), 0);

	return found;
}

/* How long it took, if it succeeded */
static u64 trace_ns(const char *event, u64 ino)
{
	const char *found = trace_of(event, ino);
	char *end;
	u64 ns;

	VFIO_ASSERT_NOT_NULL(found);
	VFIO_ASSERT_EQ(strncmp(found, " ns=", 4), 0);
	ns = strtoul(found + 4, &end, 10);
	VFIO_ASSERT_EQ(strcmp(end, " ret=0\n"), 0);

	return ns;
}

/* What an operator sees of a revoke that waits, and of its end */
TEST_DRAIN(trace)
{
	char expected[32];
	struct stat st;
	struct job job;

	if (write_file(TRACING "events/vfio_pci/enable", 0, "1"))
		SKIP(return, "No trace events");
	self->tracing = true;
	ASSERT_EQ(0, write_file(TRACING "trace", O_TRUNC, " "));
	ASSERT_EQ(0, fstat(self->fd, &st));

	munmap_assert(self->vaddr, self->size);
	self->vaddr = mmap_shared(self->fd, 0, self->size);
	ASSERT_NE(NULL, trace_of("mmap", st.st_ino));

	job_start(&job, self, do_revoke);
	ASSERT_TRUE(reaches_wait(self, REVOKED));
	ASSERT_TRUE(job_waits(&job));
	ASSERT_NE(NULL, trace_of("zap", st.st_ino));
	snprintf(expected, sizeof(expected), " maps=%d\n",
		 variant->hold == VFIO_PCI_DMABUF_TEST_MAP);
	ASSERT_STREQ(expected, trace_of("drain_begin", st.st_ino));
	ASSERT_EQ(NULL, trace_of("drain_end", st.st_ino));
	ASSERT_EQ(NULL, trace_of("revoke", st.st_ino));

	ASSERT_EQ(0, importer_do(self->importer, variant->let_go));
	ASSERT_EQ(0, job_result(&job));

	/* It was waiting before job_waits() began to. */
	ASSERT_LE(WAITS_MS * 1000000UL, trace_ns("drain_end", st.st_ino));
	ASSERT_LE(trace_ns("drain_end", st.st_ino),
		  trace_ns("revoke", st.st_ino));
}

TEST_DRAIN(importer_that_dies_lets_go)
{
	struct job job;

	job_start(&job, self, do_revoke);
	ASSERT_TRUE(reaches_wait(self, REVOKED));
	ASSERT_TRUE(job_waits(&job));
	importer_end(self);
	ASSERT_EQ(0, job_result(&job));
}

TEST_DRAIN(nothing_new_while_revoke_waits)
{
	int importer = importer_open();
	struct job job;
	void *vaddr;

	job_start(&job, self, do_revoke);
	ASSERT_TRUE(reaches_wait(self, REVOKED));
	ASSERT_TRUE(job_waits(&job));

	ASSERT_EQ(-ENODEV, __importer_attach(importer, self->device, self->fd,
					     0));
	ASSERT_EQ(-ENODEV, __iommu_map_file(self->iommu, self->fd, 0,
					    self->size, 1UL << 30));
	ASSERT_EQ(-ENODEV, __mmap_shared(self->fd, 0, self->size, PROT_READ,
					 &vaddr));
	if (variant->hold != VFIO_PCI_DMABUF_TEST_MAP)
		ASSERT_EQ(-ENODEV, importer_do(self->importer,
					       VFIO_PCI_DMABUF_TEST_MAP));

	ASSERT_EQ(0, importer_do(self->importer, variant->let_go));
	ASSERT_EQ(0, job_result(&job));
	close_assert(importer);
}

/* Who has the fd can add fences all the time, and must not prolong the wait. */
TEST_DRAIN(late_fence_is_not_waited_for)
{
	struct importer_guard *guard;
	int other = importer_open();
	struct job job;

	guard = importer_guard_start(other);
	importer_attach(other, self->device, self->fd, 0);
	job_start(&job, self, do_revoke);
	ASSERT_TRUE(reaches_wait(self, REVOKED));
	ASSERT_TRUE(vfio_pci_dmabuf_fdinfo_has(self->fd, "importers", "2"));
	ASSERT_EQ(0, importer_do(other, VFIO_PCI_DMABUF_TEST_FENCE));
	ASSERT_TRUE(job_waits(&job));
	ASSERT_EQ(0, importer_do(self->importer, variant->let_go));
	ASSERT_EQ(0, job_result(&job));
	ASSERT_EQ(-EBADFD, do_revoke(self));

	importer_guard_stop(guard);
	close_assert(other);
}

/* The whole life of another buffer of the same device, and of a BAR mapping */
TEST_DRAIN(others_go_on_while_revoke_waits)
{
	int other = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						 self->size);
	void *old = mmap_shared(other, 0, self->size);
	void *new, *bar;
	struct job job;
	int fd;

	job_start(&job, self, do_revoke);
	ASSERT_TRUE(reaches_wait(self, REVOKED));
	ASSERT_TRUE(job_waits(&job));

	ASSERT_EQ(0, try_touch_pages(old, self->size));
	vfio_pci_dmabuf_revoke(self->device, other);
	ASSERT_EQ(SIGBUS, try_touch_pages(old, self->size));

	fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
					  self->size);
	new = mmap_shared(fd, 0, self->size);
	bar = vfio_pci_region_mmap(self->device, self->bar, 0, self->size);
	ASSERT_EQ(0, try_touch_pages(new, self->size));
	ASSERT_EQ(0, try_touch_pages(bar, self->size));
	vfio_pci_dmabuf_revoke(self->device, fd);
	ASSERT_EQ(SIGBUS, try_touch_pages(new, self->size));
	ASSERT_EQ(0, try_touch_pages(bar, self->size));
	ASSERT_TRUE(job_waits(&job));

	munmap_assert(bar, self->size);
	munmap_assert(new, self->size);
	munmap_assert(old, self->size);
	close_assert(fd);
	close_assert(other);

	ASSERT_EQ(0, importer_do(self->importer, variant->let_go));
	ASSERT_EQ(0, job_result(&job));
}

TEST_DRAIN(second_revoke_waits_too)
{
	struct job jobs[2];

	job_start(&jobs[0], self, do_revoke);
	ASSERT_TRUE(reaches_wait(self, REVOKED));
	ASSERT_TRUE(job_waits(&jobs[0]));
	job_start(&jobs[1], self, do_revoke);
	ASSERT_TRUE(reaches_wait(self, REVOKED));
	ASSERT_TRUE(job_waits(&jobs[1]));

	ASSERT_EQ(0, importer_do(self->importer, variant->let_go));
	ASSERT_EQ(0, job_result(&jobs[0]));
	ASSERT_EQ(0, job_result(&jobs[1]));
	ASSERT_EQ(-EBADFD, do_revoke(self));
}

TEST_DRAIN(signal_ends_the_wait)
{
	struct job job;

	catch_signal(SIGUSR1);
	job_start(&job, self, do_revoke);
	ASSERT_TRUE(reaches_wait(self, REVOKED));
	ASSERT_TRUE(job_waits(&job));
	ASSERT_EQ(0, pthread_kill(job.thread, SIGUSR1));
	ASSERT_EQ(-EINTR, job_result(&job));
	ASSERT_EQ(SIGBUS, try_touch_pages(self->vaddr, self->size));

	/* Calling again goes on waiting, until there is nothing to wait for. */
	job_start(&job, self, do_revoke);
	ASSERT_TRUE(reaches_wait(self, REVOKED));
	ASSERT_TRUE(job_waits(&job));
	ASSERT_EQ(0, pthread_kill(job.thread, SIGUSR1));
	ASSERT_EQ(-EINTR, job_result(&job));

	ASSERT_EQ(0, importer_do(self->importer, variant->let_go));
	ASSERT_EQ(0, do_revoke(self));
	ASSERT_EQ(-EBADFD, do_revoke(self));
}

TEST_DRAIN(killed_and_continued)
{
	int status;
	pid_t pid;

	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(do_revoke(self) ? 1 : 0);
	}

	ASSERT_TRUE(reaches_wait(self, REVOKED));
	usleep(WAITS_MS * 1000);
	ASSERT_EQ(0, waitpid(pid, &status, WNOHANG));
	ASSERT_EQ(0, kill(pid, SIGKILL));
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	ASSERT_EQ(SIGBUS, try_touch_pages(self->vaddr, self->size));

	ASSERT_EQ(0, importer_do(self->importer, variant->let_go));
	ASSERT_EQ(0, do_revoke(self));
	ASSERT_EQ(-EBADFD, do_revoke(self));
}

/*
 * What the device itself does has to wait as well, and nothing ends that but the
 * importer: there is no reset with DMA underway.
 */
static void device_waits(struct __test_metadata *_metadata,
			 FIXTURE_DATA(dmabuf_drain) *self, unsigned int let_go,
			 int (*fn)(FIXTURE_DATA(dmabuf_drain) *self),
			 const char *state)
{
	struct job job;

	catch_signal(SIGUSR1);
	job_start(&job, self, fn);
	ASSERT_TRUE(reaches_wait(self, state));
	ASSERT_TRUE(job_waits(&job));
	ASSERT_EQ(0, pthread_kill(job.thread, SIGUSR1));
	ASSERT_TRUE(job_waits(&job));

	ASSERT_EQ(0, importer_do(self->importer, let_go));
	ASSERT_EQ(0, job_result(&job));
}

TEST_DRAIN(memory_disable_waits)
{
	device_waits(_metadata, self, variant->let_go, do_memory_off, OFF);
	ASSERT_EQ(SIGBUS, try_touch_pages(self->vaddr, self->size));
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, try_touch_pages(self->vaddr, self->size));

	/* The importer may come again, and is then waited for again. */
	ASSERT_EQ(0, importer_do(self->importer, variant->hold));
	device_waits(_metadata, self, variant->let_go, do_memory_off, OFF);
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
}

TEST_DRAIN(reset_waits)
{
	if (!(self->device->info.flags & VFIO_DEVICE_FLAGS_RESET))
		SKIP(return, "The device has no reset");

	device_waits(_metadata, self, variant->let_go, do_reset, OFF);
	ASSERT_EQ(0, try_touch_pages(self->vaddr, self->size));
}

TEST_DRAIN(close_waits)
{
	device_waits(_metadata, self, variant->let_go, do_close, OFF);
	ASSERT_EQ(SIGBUS, try_touch_pages(self->vaddr, self->size));
	self->device = NULL;
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

/*
 * While a reset or its like waits for an importer, what is revoked for good does
 * not wait with it, and what does wait can be killed.
 */
TEST_DRAIN(faults_while_device_waits)
{
	int dead = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						self->size);
	int usable = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						  self->size);
	void *dead_map = mmap_shared(dead, 0, self->size);
	void *usable_map = mmap_shared(usable, 0, self->size);
	struct job job;
	pid_t pid;

	vfio_pci_dmabuf_revoke(self->device, dead);
	job_start(&job, self, do_memory_off);
	ASSERT_TRUE(reaches_wait(self, OFF));

	pid = touching_child(dead_map, self->size);
	EXPECT_EQ(SIGBUS, child_ends(pid, ENDS_MS));

	pid = touching_child(usable_map, self->size);
	EXPECT_EQ(INT_MIN, child_ends(pid, WAITS_MS));
	ASSERT_EQ(0, kill(pid, SIGKILL));
	EXPECT_EQ(-SIGKILL, child_ends(pid, ENDS_MS));

	ASSERT_EQ(0, importer_do(self->importer, variant->let_go));
	ASSERT_EQ(0, job_result(&job));

	munmap_assert(usable_map, self->size);
	munmap_assert(dead_map, self->size);
	close_assert(usable);
	close_assert(dead);
}

static int do_close_other(FIXTURE_DATA(dmabuf_drain) *self)
{
	close_assert(self->other);
	return 0;
}

/* Of drivers/dma-buf/sw_sync.c, not in any header */
struct sw_sync_create_fence_data {
	u32 value;
	char name[32];
	s32 fence;
};

#define SW_SYNC_IOC_CREATE_FENCE _IOWR('W', 0, struct sw_sync_create_fence_data)
#define SW_SYNC_IOC_INC		 _IOW('W', 1, u32)

/*
 * Who puts the last fd of a DMABUF may be who has yet to signal its fence. So the
 * close must not wait for who waits for that.
 */
TEST_DRAIN(last_fd_while_device_waits)
{
	struct dma_buf_import_sync_file import = { .flags = DMA_BUF_SYNC_WRITE };
	struct sw_sync_create_fence_data create = { .value = 1 };
	int timeline = open("/sys/kernel/debug/sync/sw_sync", O_RDWR);
	struct job job, close_job;
	u32 steps = 1;

	if (timeline < 0)
		SKIP(return, "No fences by CONFIG_SW_SYNC");

	self->other = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						   self->size);
	ioctl_assert(timeline, SW_SYNC_IOC_CREATE_FENCE, &create);
	import.fd = create.fence;
	ioctl_assert(self->other, DMA_BUF_IOCTL_IMPORT_SYNC_FILE, &import);
	close_assert(create.fence);

	/* It is the first that is waited for. */
	ASSERT_EQ(0, importer_do(self->importer, variant->let_go));
	job_start(&job, self, do_memory_off);
	ASSERT_TRUE(vfio_pci_dmabuf_reaches_state(self->other, OFF, ENDS_MS));
	ASSERT_TRUE(job_waits(&job));

	job_start(&close_job, self, do_close_other);
	EXPECT_TRUE(job_ends(&close_job, ENDS_MS));
	ASSERT_TRUE(job_waits(&job));

	ioctl_assert(timeline, SW_SYNC_IOC_INC, &steps);
	ASSERT_EQ(0, job_result(&close_job));
	ASSERT_EQ(0, job_result(&job));
	close_assert(timeline);
}

/* A reset is not kept from a device by a revoke that waits, but joins it. */
TEST_DRAIN(memory_disable_while_revoke_waits)
{
	struct job revoke, off;

	job_start(&revoke, self, do_revoke);
	ASSERT_TRUE(reaches_wait(self, REVOKED));
	ASSERT_TRUE(job_waits(&revoke));
	job_start(&off, self, do_memory_off);
	ASSERT_TRUE(reaches_wait(self, REVOKED));
	ASSERT_TRUE(job_waits(&off));

	ASSERT_EQ(0, importer_do(self->importer, variant->let_go));
	ASSERT_EQ(0, job_result(&revoke));
	ASSERT_EQ(0, job_result(&off));
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(SIGBUS, try_touch_pages(self->vaddr, self->size));
	ASSERT_EQ(-EBADFD, do_revoke(self));
}

/*
 * While access is taken from the whole device, which holds the lock that faults
 * need, nobody who maps or unmaps has to wait: they hold the lock of their
 * address space, on which all threads of the process depend.
 */
TEST_DRAIN(mmap_does_not_wait_for_device)
{
	void *dmabuf, *bar;
	struct job job;
	int fd;

	job_start(&job, self, do_memory_off);
	ASSERT_TRUE(reaches_wait(self, OFF));
	ASSERT_TRUE(job_waits(&job));

	/* If one of these waits, the harness ends the test. */
	dmabuf = mmap_shared(self->fd, 0, self->size);
	bar = vfio_pci_region_mmap(self->device, self->bar, 0, self->size);
	fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
					  self->size);
	munmap_assert(bar, self->size);
	munmap_assert(dmabuf, self->size);
	bar = vfio_pci_region_mmap(self->device, self->bar, 0, self->size);
	dmabuf = mmap_shared(fd, 0, self->size);
	ASSERT_TRUE(job_waits(&job));

	ASSERT_EQ(0, importer_do(self->importer, variant->let_go));
	ASSERT_EQ(0, job_result(&job));

	/* What was made meanwhile is as the device is. */
	ASSERT_EQ(SIGBUS, try_touch_pages(bar, self->size));
	ASSERT_EQ(SIGBUS, try_touch_pages(dmabuf, self->size));
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, try_touch_pages(bar, self->size));
	ASSERT_EQ(0, try_touch_pages(dmabuf, self->size));

	munmap_assert(bar, self->size);
	munmap_assert(dmabuf, self->size);
	close_assert(fd);
}

/* Independent of what holds the buffer */
FIXTURE(dmabuf_importer) {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	int importer;
	int bar;
	int fd;
};

FIXTURE_SETUP(dmabuf_importer)
{
	const char *reason;

	self->importer = importer_open();
	if (self->importer < 0)
		SKIP(return, "No test importer");

	reason = dmabuf_test_open(device_bdf, false, page_size, &self->iommu,
				  &self->device, &self->bar);
	if (reason)
		SKIP(return, "%s", reason);
	self->fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						page_size);
}

FIXTURE_TEARDOWN(dmabuf_importer)
{
	close_assert(self->importer);
	close_assert(self->fd);
	vfio_pci_device_cleanup(self->device);
	iommu_cleanup(self->iommu);
}

/* One that cannot be told to let go must not get hold of the buffer. */
TEST_F(dmabuf_importer, cannot_revoke)
{
	ASSERT_EQ(-EOPNOTSUPP,
		  __importer_attach(self->importer, self->device, self->fd,
				    VFIO_PCI_DMABUF_TEST_NO_INVALIDATE));
	importer_attach(self->importer, self->device, self->fd, 0);
}

TEST_F(dmabuf_importer, cannot_do_peer_to_peer)
{
	ASSERT_EQ(-EOPNOTSUPP,
		  __importer_attach(self->importer, self->device, self->fd,
				    VFIO_PCI_DMABUF_TEST_NO_P2P));
}

TEST_F(dmabuf_importer, not_attached_to_revoked)
{
	vfio_pci_dmabuf_revoke(self->device, self->fd);
	ASSERT_EQ(-ENODEV, __importer_attach(self->importer, self->device,
					     self->fd, 0));
}

/* An attachment alone holds nothing. */
TEST_F(dmabuf_importer, attached_but_not_mapped)
{
	importer_attach(self->importer, self->device, self->fd, 0);
	vfio_pci_dmabuf_revoke(self->device, self->fd);
	ASSERT_EQ(-ENODEV, importer_do(self->importer,
				       VFIO_PCI_DMABUF_TEST_MAP));
	ASSERT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(self->device, self->fd));
}

/* The importer as it should be: told once, it lets go, and nobody waits. */
TEST_F(dmabuf_importer, lets_go_when_told)
{
	importer_attach(self->importer, self->device, self->fd,
			VFIO_PCI_DMABUF_TEST_PROMPT);
	ASSERT_EQ(0, importer_do(self->importer, VFIO_PCI_DMABUF_TEST_MAP));
	vfio_pci_dmabuf_revoke(self->device, self->fd);
	ASSERT_EQ(1, importer_do(self->importer,
				 VFIO_PCI_DMABUF_TEST_NR_INVALIDATED));
}

/* It is told when access goes, not when it comes back. */
TEST_F(dmabuf_importer, not_told_of_return)
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

	ASSERT_EQ(0, importer_do(self->importer, VFIO_PCI_DMABUF_TEST_UNMAP));
	vfio_pci_dmabuf_revoke(self->device, fd);
	close_assert(fd);
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

		/* Every second one also lets go when it is told to. */
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
	page_size = getpagesize();
	device_bdf = vfio_selftests_get_bdf(&argc, argv);
	return test_harness_run(argc, argv);
}
