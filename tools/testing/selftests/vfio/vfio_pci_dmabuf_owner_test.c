// SPDX-License-Identifier: GPL-2.0-only
/*
 * A client that has nothing but DMABUFs does not hold up the owner of the device.
 *
 * Processes of another uid use the DMABUFs in one of several ways, at the lowest
 * priority beside busy loops. So they stop at any point of what they do, and go on
 * much later. Meanwhile a real-time owner ends memory access, in each way there is.
 *
 * Whether the owner has slept is exact. Times are not: a busy host takes the CPU from
 * the guest for up to seconds. It takes the more, the more the guest uses, so the times
 * without clients are measured beside the same busy loops, just before.
 *
 * $VFIO_OWNER_ROUNDS sets how often each is done: only a few times, as QEMU before
 * 8.2 may lose a timer of the guest when memory is disabled or enabled.
 * $VFIO_OWNER_SCALE multiplies the limits, for a slow guest.
 * $VFIO_OWNER_MAPPINGS is the number of mappings of each client with many.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <linux/compiler.h>
#include <linux/dma-buf.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include "kselftest_harness.h"

#include <libvfio/dmabuf_test.h>

#define MAX_ROUNDS	64
#define MAX_PROCESSES	64
#define MAX_MAPPINGS	65000U
#define FAULT_SIZE	SZ_64M

/*
 * The limit is this, or three times the longest time without clients. The shortest
 * time may not exceed it, nor any in which the owner has slept, if the operation does
 * not sleep by itself. Resets and close do: they end access in the same way as memory
 * disable does, and the host may add seconds to each of their sleeps.
 */
#define LIMIT_US	50000LL

/* A client repeats one of these with the DMABUF @fd of FAULT_SIZE */
static void attack_fault(int fd)
{
	static size_t offset;
	static void *vaddr;

	/* Pages of the smallest size, and so many that they last */
	if (!vaddr)
		vaddr = mmap_shared_aligned(fd, 0, FAULT_SIZE, SZ_2M, page_size);
	try_touch_pages(vaddr + offset, SZ_256K);
	offset = (offset + SZ_256K) % FAULT_SIZE;
}

static void attack_map(int fd)
{
	void *vaddr;

	if (__mmap_shared(fd, 0, SZ_1M, PROT_READ, &vaddr))
		return;
	try_touch_pages(vaddr, SZ_1M);
	munmap_assert(vaddr, SZ_1M);
}

static void attack_many(int fd)
{
	static u32 nr;
	static void *vaddr[MAX_MAPPINGS];
	u32 i;

	if (!nr)
		nr = min(getenv_u32("VFIO_OWNER_MAPPINGS", 100), MAX_MAPPINGS);
	for (i = 0; i < nr; i++) {
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
	vfio_pci_dmabuf_fdinfo(fd, "vfio-pci-");
}

/* Keep the descriptors and a mapping, which is all that this client does. */
static void attack_keep(int fd)
{
	static void *vaddr;

	if (!vaddr && !__mmap_shared(fd, 0, SZ_1M, PROT_READ, &vaddr))
		try_touch_pages(vaddr, SZ_1M);
	usleep(1000);
}

/*
 * Each mapping needs a page table of its own, and stays. Such a client is above
 * memory.high, and sleeps when it has got memory.
 */
static void attack_grow(int fd)
{
	void *vaddr = mmap_reserve(page_size, SZ_2M, 0);

	if (mmap(vaddr, page_size, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) ==
	    vaddr)
		try_touch(vaddr);
	else
		munmap_assert(vaddr, page_size);
}

#define CGROUP "/sys/fs/cgroup/vfio_owner"

static bool cgroup_make(void)
{
	write_file("/sys/fs/cgroup/cgroup.subtree_control", O_WRONLY, "+memory");
	mkdir(CGROUP, 0755);
	return !write_file(CGROUP "/memory.high", O_WRONLY, "0");
}

FIXTURE(owner) {
	DMABUF_FIXTURE;
	u32 rounds;
	u32 scale;
	/* One of them is revoked before the device is closed */
	int fds[2];
	int importers[2];
	pid_t pids[MAX_PROCESSES];
	int nr_pids;
	/* The first ones are busy loops */
	int nr_loops;
	int nr_clients;
	/* Rounds of each client */
	u64 *counts;
};

FIXTURE_VARIANT(owner) {
	void (*attack)(int fd);
	/* Done to a client during each operation of the owner */
	int sig;
	/*
	 * The DMABUFs have importers that release them when notified, so that
	 * the owner needs the locks that are for importers
	 */
	bool imported;
	/*
	 * The clients map and unmap, or exit, which takes i_mmap_rwsem of the
	 * DMABUF: the lock with which a client that is preempted does hold up
	 * the owner, now and then.
	 */
	bool unmaps;
};

#define OWNER_VARIANT(_attack, _imported)					\
	FIXTURE_VARIANT_ADD(owner, _attack) {					\
		.attack = attack_##_attack,					\
		.imported = (_imported),					\
	}

OWNER_VARIANT(fault, false);
OWNER_VARIANT(many, false);
OWNER_VARIANT(keep, false);
OWNER_VARIANT(poll, true);
OWNER_VARIANT(sync, true);
OWNER_VARIANT(sync_file, true);
OWNER_VARIANT(fdinfo, true);
FIXTURE_VARIANT_ADD(owner, map) {
	.attack = attack_map,
	.unmaps = true,
};

FIXTURE_VARIANT_ADD(owner, fault_stopped) {
	.attack = attack_fault,
	.sig = SIGSTOP,
};

FIXTURE_VARIANT_ADD(owner, fault_killed) {
	.attack = attack_fault,
	.sig = SIGKILL,
	.unmaps = true,
};

FIXTURE_VARIANT_ADD(owner, fault_throttled) {
	.attack = attack_grow,
	.unmaps = true,
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
	return __vfio_pci_dmabuf_revoke(self->device, self->fds[0]);
}

static int do_close(FIXTURE_DATA(owner) *self)
{
	dmabuf_test_close(&self->device);
	return 0;
}

static const struct operation {
	const char *name;
	int (*fn)(FIXTURE_DATA(owner) *self);
	bool sleeps;
} operations[] = {
	{ "memory off", do_memory_off, false },
	{ "reset", do_reset, true },
	{ "hot reset", do_hot_reset, true },
	{ "revoke", do_revoke, false },
	{ "close", do_close, true },	/* The last */
};

#define NR_OPERATIONS ((int)ARRAY_SIZE(operations))

/* How long each operation took, and whether the owner has slept in it */
struct times {
	long long us[NR_OPERATIONS][MAX_ROUNDS];
	bool slept[NR_OPERATIONS][MAX_ROUNDS];
};

static long long now_us(void)
{
	return now_ns() / 1000;
}

static long nr_sleeps(void)
{
	struct rusage usage;

	VFIO_ASSERT_EQ(getrusage(RUSAGE_THREAD, &usage), 0);
	return usage.ru_nvcsw;
}

static int set_policy(int policy, int priority)
{
	struct sched_param param = { .sched_priority = priority };

	return sched_setscheduler(0, policy | SCHED_RESET_ON_FORK, &param);
}

FIXTURE_SETUP(owner)
{
	DMABUF_SETUP(self, true, FAULT_SIZE);
	self->rounds = getenv_u32("VFIO_OWNER_ROUNDS", 3);
	ASSERT_TRUE(self->rounds && self->rounds <= MAX_ROUNDS);
	self->scale = getenv_u32("VFIO_OWNER_SCALE", 1);
	self->nr_loops = 2 * sysconf(_SC_NPROCESSORS_ONLN);
	/* One can be killed in each operation. */
	self->nr_clients = max(self->nr_loops, NR_OPERATIONS + 1);
	ASSERT_GE(MAX_PROCESSES, self->nr_loops + self->nr_clients);
	self->counts = mmap(NULL, page_size, PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->counts);
}

static void kill_all(FIXTURE_DATA(owner) *self)
{
	int i;

	for (i = 0; i < self->nr_pids; i++)
		kill(self->pids[i], SIGKILL);
	while (self->nr_pids)
		wait_child(self->pids[--self->nr_pids]);
}

/* The children die with their parent, the test. */
FIXTURE_TEARDOWN(owner)
{
	if (variant->attack == attack_grow)
		rmdir(CGROUP);
}

static void open_and_export(FIXTURE_DATA(owner) *self)
{
	int i;

	if (!self->device)
		dmabuf_test_reopen(self->iommu, &self->device);
	/* A mapping that a client inherits would keep the device open. */
	vfio_pci_bar_unmap_all(self->device);
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	for (i = 0; i < 2; i++)
		self->fds[i] = vfio_pci_dmabuf_export_range(self->device,
							    self->bar, 0,
							    FAULT_SIZE);
}

/* The importers stay attached, if the kernel has them. */
static void import(FIXTURE_DATA(owner) *self, int i)
{
	int importer = importer_open();

	self->importers[i] = importer;
	if (importer < 0)
		return;
	importer_attach(importer, self->device, self->fds[i],
			VFIO_PCI_DMABUF_TEST_PROMPT);
	VFIO_ASSERT_EQ(importer_do(importer, VFIO_PCI_DMABUF_TEST_MAP), 0);
}

static void close_all(FIXTURE_DATA(owner) *self, bool imported)
{
	int i;

	for (i = 0; i < 2; i++) {
		close_assert(self->fds[i]);
		if (imported && self->importers[i] >= 0)
			close_assert(self->importers[i]);
	}
}

/* It has @fd and nothing else. Without @attack it is a busy loop. */
static pid_t child_start(int fd, void (*attack)(int fd), u64 *count)
{
	pid_t pid = fork_child(fd);

	if (pid)
		return pid;

	if (attack == attack_grow)
		VFIO_ASSERT_EQ(write_file(CGROUP "/cgroup.procs", O_WRONLY, "0"), 0);
	VFIO_ASSERT_EQ(setgroups(0, NULL), 0);
	VFIO_ASSERT_EQ(setresuid(65534, 65534, 65534), 0);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_DUMPABLE, 1);
	while (!attack)
		barrier();
	for (;;) {
		attack(STDIN_FILENO);
		WRITE_ONCE(*count, *count + 1);
	}
}

/* SCHED_IDLE, once it has done its first round */
static pid_t client_start(int fd, void (*attack)(int fd), u64 *count)
{
	struct sched_param param = {};
	pid_t pid = child_start(fd, attack, count);

	VFIO_ASSERT_TRUE(count_grows(count));
	VFIO_ASSERT_EQ(sched_setscheduler(pid, SCHED_IDLE, &param), 0);
	return pid;
}

static void loops_start(FIXTURE_DATA(owner) *self)
{
	while (self->nr_pids < self->nr_loops)
		self->pids[self->nr_pids++] = child_start(-1, NULL, NULL);
}

static void clients_start(FIXTURE_DATA(owner) *self,
			  const FIXTURE_VARIANT(owner) *variant)
{
	int i;

	for (i = 0; i < self->nr_clients; i++)
		self->pids[self->nr_pids++] = client_start(self->fds[i % 2],
							   variant->attack,
							   &self->counts[i]);
}

/* Each operation once, with @sig during each of them to a client */
static void do_round(FIXTURE_DATA(owner) *self, struct times *times, int round,
		     int sig)
{
	pid_t victim = 0;
	long long start;
	long sleeps;
	int i;

	for (i = 0; i < NR_OPERATIONS; i++) {
		usleep(15000 + round * 5000);
		if (sig) {
			victim = self->pids[self->nr_loops +
					    (round + i) % self->nr_clients];
			kill(victim, sig);
		}
		sleeps = nr_sleeps();
		start = now_us();
		VFIO_ASSERT_EQ(operations[i].fn(self), 0, "%s failed\n",
			       operations[i].name);
		times->us[i][round] = now_us() - start;
		times->slept[i][round] = nr_sleeps() != sleeps;
		if (self->device)
			vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
		if (sig == SIGSTOP)
			kill(victim, SIGCONT);
		if (sig != SIGKILL)
			VFIO_ASSERT_EQ(waitpid(-1, NULL, WNOHANG), 0);
	}
}

static void judge(struct __test_metadata *_metadata,
		  const FIXTURE_VARIANT(owner) *variant,
		  const struct operation *op, u32 rounds, u32 scale,
		  const long long *base, const long long *us, const bool *slept)
{
	long long shortest = us[0], longest = 0, slept_us = 0, base_us = 0, limit;
	u32 i;

	for (i = 0; i < rounds; i++) {
		base_us = max(base_us, base[i]);
		shortest = min(shortest, us[i]);
		longest = max(longest, us[i]);
		if (slept[i])
			slept_us = max(slept_us, us[i]);
	}
	TH_LOG("%s: %lld to %lld us, %lld us if it slept, without clients up to %lld us",
	       op->name, shortest, longest, slept_us, base_us);

	limit = max(LIMIT_US, 3 * base_us) * scale;
	EXPECT_GE(limit, shortest);
	if (!variant->unmaps && !op->sleeps)
		EXPECT_GE(limit, slept_us);
}

TEST_F(owner, is_not_held_up)
{
	static struct times base, times;
	u32 round;
	int i;

	if (set_policy(SCHED_FIFO, 50))
		SKIP(return, "No real-time scheduling");
	if (variant->attack == attack_grow && !cgroup_make())
		SKIP(return, "No memory cgroup");

	for (round = 0; round < self->rounds; round++) {
		open_and_export(self);
		ASSERT_EQ(0, set_policy(SCHED_OTHER, 0));
		loops_start(self);
		ASSERT_EQ(0, set_policy(SCHED_FIFO, 50));
		do_round(self, &base, round, 0);
		close_all(self, false);

		open_and_export(self);
		for (i = 0; i < 2 && variant->imported; i++)
			import(self, i);
		ASSERT_EQ(0, set_policy(SCHED_OTHER, 0));
		clients_start(self, variant);
		ASSERT_EQ(0, set_policy(SCHED_FIFO, 50));
		usleep(100000);
		do_round(self, &times, round, variant->sig);
		kill_all(self);
		close_all(self, variant->imported);
	}

	if (variant->attack == attack_grow)
		ASSERT_NE(0, read_key(CGROUP "/memory.events", "high"));
	for (i = 0; i < NR_OPERATIONS; i++)
		judge(_metadata, variant, &operations[i], self->rounds, self->scale,
		      base.us[i], times.us[i], times.slept[i]);
}

int main(int argc, char *argv[])
{
	dmabuf_test_init(&argc, argv);
	return test_harness_run(argc, argv);
}
