// SPDX-License-Identifier: GPL-2.0-only
/*
 * A client that has nothing but DMABUFs does not hold up the owner of the device.
 *
 * Processes of another uid use the DMABUFs in one of several ways, at the lowest
 * priority beside busy loops. So they stop at any point of what they do, and go on
 * much later. Meanwhile a real-time owner takes memory access away, in each way there
 * is. What counts is how long the owner waits for others: not the time that it runs,
 * which is long in a slow guest.
 *
 * $VFIO_OWNER_ROUNDS sets how often each is done: only a few times, as QEMU before
 * 8.2 may lose a timer of the guest when memory is disabled or enabled.
 * $VFIO_OWNER_SCALE multiplies the limits, as timers are late in a slow guest.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
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
#include <sys/wait.h>

#include <linux/compiler.h>
#include <linux/dma-buf.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include "kselftest_harness.h"

#include <libvfio/dmabuf_test.h>

#define MAX_ROUNDS	16
#define MAX_PROCESSES	32
#define NR_MAPPINGS	1000

/*
 * The limits of the shortest wait, unless that without clients is long, and of the
 * longest one. A client without CPU makes the owner wait for seconds, but not each
 * time.
 */
#define SHORTEST_US	50000LL
#define LONGEST_US	2000000LL

/* What the client does over and over, with the DMABUF @fd of SZ_1M */
static void attack_fault(int fd)
{
	void *vaddr;

	if (__mmap_shared(fd, 0, SZ_1M, PROT_READ, &vaddr))
		return;
	try_touch_pages(vaddr, SZ_1M);
	try_touch_pages(vaddr, SZ_1M);
	munmap_assert(vaddr, SZ_1M);
}

static void attack_map(int fd)
{
	void *vaddr;

	if (!__mmap_shared(fd, 0, SZ_1M, PROT_READ, &vaddr))
		munmap_assert(vaddr, SZ_1M);
}

static void attack_many(int fd)
{
	static void *vaddr[NR_MAPPINGS];
	int i;

	for (i = 0; i < NR_MAPPINGS; i++) {
		if (!vaddr[i] && __mmap_shared(fd, i % 2 * page_size, page_size,
					       PROT_READ, &vaddr[i]))
			vaddr[i] = NULL;
		else
			try_touch(vaddr[i]);
	}
}

static void attack_poll(int fd)
{
	struct pollfd pollfd = { .fd = fd, .events = POLLIN | POLLOUT };

	poll(&pollfd, 1, 0);
}

static void attack_sync(int fd)
{
	struct dma_buf_sync sync = { DMA_BUF_SYNC_START | DMA_BUF_SYNC_RW };

	ioctl(fd, DMA_BUF_IOCTL_SYNC, &sync);
	sync.flags = DMA_BUF_SYNC_END | DMA_BUF_SYNC_RW;
	ioctl(fd, DMA_BUF_IOCTL_SYNC, &sync);
}

static void attack_sync_file(int fd)
{
	struct dma_buf_export_sync_file file = { DMA_BUF_SYNC_RW, -1 };
	struct dma_buf_import_sync_file import = { DMA_BUF_SYNC_RW, -1 };

	if (!ioctl(fd, DMA_BUF_IOCTL_EXPORT_SYNC_FILE, &file))
		import.fd = file.fd;
	VFIO_ASSERT_EQ(ioctl(fd, DMA_BUF_IOCTL_IMPORT_SYNC_FILE, &import), -1);
	if (import.fd >= 0)
		close_assert(import.fd);
}

static void attack_fdinfo(int fd)
{
	vfio_pci_dmabuf_fdinfo(fd);
}

/* Keep the descriptors and a mapping, which is all that this client does. */
static void attack_keep(int fd)
{
	static void *vaddr;

	if (!vaddr && !__mmap_shared(fd, 0, SZ_1M, PROT_READ, &vaddr))
		try_touch_pages(vaddr, SZ_1M);
	usleep(1000);
}

FIXTURE(owner) {
	DMABUF_FIXTURE;
	u32 rounds;
	u32 scale;
	int fds[MAX_ROUNDS];
	int round;
	pid_t pids[MAX_PROCESSES];
	int nr_pids;
	/* How often each client has come round */
	u64 *counts;
};

FIXTURE_VARIANT(owner) {
	void (*attack)(int fd);
	/* What happens to a client during each operation of the owner */
	int sig;
	/*
	 * The DMABUFs have importers that release them when told, so that the
	 * owner needs the locks that are for importers
	 */
	bool imported;
};

#define OWNER_VARIANT(_attack, _imported)					\
	FIXTURE_VARIANT_ADD(owner, _attack) {					\
		.attack = attack_##_attack,					\
		.imported = (_imported),					\
	}

OWNER_VARIANT(fault, false);
OWNER_VARIANT(map, false);
OWNER_VARIANT(many, false);
OWNER_VARIANT(keep, false);
OWNER_VARIANT(poll, true);
OWNER_VARIANT(sync, true);
OWNER_VARIANT(sync_file, true);
OWNER_VARIANT(fdinfo, true);
FIXTURE_VARIANT_ADD(owner, fault_stopped) {
	.attack = attack_fault,
	.sig = SIGSTOP,
};

FIXTURE_VARIANT_ADD(owner, fault_killed) {
	.attack = attack_fault,
	.sig = SIGKILL,
};

/* The operations of the owner, all of which have to succeed */
static int do_memory_off(FIXTURE_DATA(owner) *self)
{
	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	return 0;
}

static int do_reset(FIXTURE_DATA(owner) *self)
{
	return self->device->info.flags & VFIO_DEVICE_FLAGS_RESET ?
	       __vfio_pci_device_reset(self->device) : 0;
}

static int do_hot_reset(FIXTURE_DATA(owner) *self)
{
	return vfio_pci_hot_reset_is_ours(self->device) ?
	       __vfio_pci_hot_reset(self->device) : 0;
}

static int do_revoke(FIXTURE_DATA(owner) *self)
{
	return __vfio_pci_dmabuf_revoke(self->device, self->fds[self->round]);
}

static int do_close(FIXTURE_DATA(owner) *self)
{
	dmabuf_test_close(&self->device);
	return 0;
}

static const struct operation {
	const char *name;
	int (*fn)(FIXTURE_DATA(owner) *self);
} operations[] = {
	{ "memory off", do_memory_off },
	{ "reset", do_reset },
	{ "hot reset", do_hot_reset },
	{ "revoke", do_revoke },
	{ "close", do_close },	/* The last, once */
};

#define NR_OPERATIONS ((int)ARRAY_SIZE(operations))

/* Per operation, without clients. Shared by the tests, each of which is a process. */
static long long *base_us;

static void open_and_export(FIXTURE_DATA(owner) *self)
{
	u32 i;

	if (!self->device)
		dmabuf_test_reopen(self->iommu, &self->device);
	/* A mapping that a client inherits would keep the device open. */
	vfio_pci_bar_unmap_all(self->device);
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	for (i = 0; i < self->rounds; i++)
		self->fds[i] = vfio_pci_dmabuf_export_range(self->device,
							    self->bar, 0, SZ_1M);
}

FIXTURE_SETUP(owner)
{
	DMABUF_SETUP(self, true, SZ_1M);
	self->rounds = getenv_u32("VFIO_OWNER_ROUNDS", 5);
	ASSERT_TRUE(self->rounds && self->rounds <= MAX_ROUNDS);
	self->scale = getenv_u32("VFIO_OWNER_SCALE", 1);
	open_and_export(self);
	self->counts = mmap(NULL, page_size, PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->counts);
}

/* The importers stay attached, if the kernel has them. */
static void import_all(FIXTURE_DATA(owner) *self)
{
	int importer;
	u32 i;

	for (i = 0; i < self->rounds; i++) {
		importer = importer_open();
		if (importer < 0)
			return;
		importer_attach(importer, self->device, self->fds[i],
				VFIO_PCI_DMABUF_TEST_PROMPT);
		VFIO_ASSERT_EQ(importer_do(importer, VFIO_PCI_DMABUF_TEST_MAP), 0);
	}
}

static void kill_all(FIXTURE_DATA(owner) *self)
{
	while (self->nr_pids)
		kill(self->pids[--self->nr_pids], SIGKILL);
}

/* The children die with their parent, the test. */
FIXTURE_TEARDOWN(owner)
{
	kill_all(self);
}

/* Without @attack it is a busy loop. */
static pid_t child_start(FIXTURE_DATA(owner) *self, void (*attack)(int fd),
			 u64 *count)
{
	pid_t pid = fork();
	u32 i;

	VFIO_ASSERT_GE(pid, 0);
	if (pid)
		return pid;

	VFIO_ASSERT_EQ(setgroups(0, NULL), 0);
	VFIO_ASSERT_EQ(setresuid(65534, 65534, 65534), 0);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_DUMPABLE, 1);
	close_assert(self->device->fd);
	close_assert(self->iommu->iommufd);
	for (i = 0; !attack; i++)
		barrier();
	for (i = 0; ; i++) {
		attack(self->fds[i % self->rounds]);
		WRITE_ONCE(*count, *count + 1);
	}
}

/* At a priority at which it gets next to nothing, once it is at work */
static pid_t client_start(FIXTURE_DATA(owner) *self,
			  void (*attack)(int fd), u64 *count)
{
	struct sched_param param = {};
	pid_t pid = child_start(self, attack, count);

	VFIO_ASSERT_TRUE(touch_grows(count));
	VFIO_ASSERT_EQ(sched_setscheduler(pid, SCHED_IDLE, &param), 0);
	return pid;
}

/* For how long the calling thread has not been running */
static long long waited_us(void)
{
	struct timespec now, ran;

	VFIO_ASSERT_EQ(clock_gettime(CLOCK_MONOTONIC, &now), 0);
	VFIO_ASSERT_EQ(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ran), 0);
	return (now.tv_sec - ran.tv_sec) * 1000000LL +
	       (now.tv_nsec - ran.tv_nsec) / 1000;
}

struct waits {
	long long shortest;
	long long longest;
};

static struct waits measure(FIXTURE_DATA(owner) *self,
			    const struct operation *op, int sig, int nr_clients)
{
	bool close = op->fn == do_close;
	int i, victim, nr = close ? 1 : self->rounds;
	struct waits waits = { .shortest = LLONG_MAX };
	long long us;

	for (i = 0; i < nr; i++) {
		self->round = i;
		victim = nr_clients ? i % nr_clients : 0;
		usleep(20000 + i * 5000);
		if (nr_clients && sig)
			kill(self->pids[victim], sig);
		us = -waited_us();
		VFIO_ASSERT_EQ(op->fn(self), 0, "%s failed\n", op->name);
		us += waited_us();
		waits.shortest = min(us, waits.shortest);
		waits.longest = max(us, waits.longest);
		if (!close)
			vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
		if (nr_clients && sig == SIGSTOP)
			kill(self->pids[victim], SIGCONT);
		if (nr_clients && sig != SIGKILL)
			VFIO_ASSERT_EQ(waitpid(-1, NULL, WNOHANG), 0);
	}
	return waits;
}

static int set_policy(int policy, int priority)
{
	struct sched_param param = { .sched_priority = priority };

	return sched_setscheduler(0, policy | SCHED_RESET_ON_FORK, &param);
}

TEST_F(owner, is_not_held_up)
{
	int i, nr = min(2 * (int)sysconf(_SC_NPROCESSORS_ONLN), MAX_PROCESSES / 2);
	struct waits waits;
	long long limit;

	if (set_policy(SCHED_FIFO, 50))
		SKIP(return, "No real-time scheduling");
	if (!base_us[NR_OPERATIONS - 1]) {
		for (i = 0; i < NR_OPERATIONS; i++) {
			waits = measure(self, &operations[i], 0, 0);
			base_us[i] = waits.shortest + 1;
		}
		open_and_export(self);
	}
	ASSERT_EQ(0, set_policy(SCHED_OTHER, 0));

	if (variant->imported)
		import_all(self);
	for (i = 0; i < nr; i++)
		self->pids[self->nr_pids++] = client_start(self, variant->attack,
							   &self->counts[i]);
	for (i = 0; i < nr; i++)
		self->pids[self->nr_pids++] = child_start(self, NULL, NULL);
	ASSERT_EQ(0, set_policy(SCHED_FIFO, 50));
	usleep(300000);

	for (i = 0; i < NR_OPERATIONS; i++) {
		waits = measure(self, &operations[i], variant->sig, nr);
		TH_LOG("%s: %lld to %lld us, without clients %lld us",
		       operations[i].name, waits.shortest, waits.longest,
		       base_us[i]);
		limit = max(SHORTEST_US, 3 * base_us[i]);
		/* That of a single round may be that of a late timer. */
		if (operations[i].fn != do_close)
			EXPECT_GE(limit * self->scale, waits.shortest);
		EXPECT_GE(LONGEST_US * self->scale, waits.longest);
	}
}

int main(int argc, char *argv[])
{
	base_us = mmap(NULL, sizeof(*base_us) * NR_OPERATIONS,
		       PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	VFIO_ASSERT_NE(base_us, MAP_FAILED);
	dmabuf_test_init(&argc, argv);
	return test_harness_run(argc, argv);
}
