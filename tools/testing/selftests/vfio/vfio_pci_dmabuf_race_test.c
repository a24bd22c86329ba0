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
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <linux/compiler.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/userfaultfd.h>
#include <linux/vfio.h>

#include <libvfio/dmabuf_test.h>

#include "kselftest_harness.h"

#define NR_PAGES	32

#define MAX_CHILDREN	64

/* How long a round may last until access is revoked */
#define MAX_DELAY_US	1500

FIXTURE(dmabuf_race) {
	DMABUF_FIXTURE;
	struct touch_state *state;
	size_t size;
	u32 rounds;
	u32 seed;
	/* What a second thread works with */
	int fd;
	void *vaddr;
	/* Processes to be killed at the end */
	pid_t children[MAX_CHILDREN];
	int nr_children;
};

/* BAR mappings in a child process would keep the device open. */
static void device_open(FIXTURE_DATA(dmabuf_race) *self)
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

static void device_close(FIXTURE_DATA(dmabuf_race) *self)
{
	dmabuf_test_close(&self->device);
}

FIXTURE_SETUP(dmabuf_race)
{
	DMABUF_SETUP(self, true, SZ_16M);
	device_open(self);

	self->size = NR_PAGES * page_size;
	self->rounds = getenv_u32("VFIO_RACE_ROUNDS", 100);
	self->seed = 1;
	self->state = touch_state_alloc();
	touch_fill(self->device->bars[self->bar].vaddr, self->size);
}

FIXTURE_TEARDOWN(dmabuf_race)
{
	int i;

	WRITE_ONCE(self->state->stop, true);
	for (i = 0; i < self->nr_children; i++) {
		kill(self->children[i], SIGKILL);
		waitpid(self->children[i], NULL, 0);
	}
}

/* A test takes its time on a kernel that checks itself. */
#define TEST_RACE(_name) TEST_F_TIMEOUT(dmabuf_race, _name, 600)

static u32 few_rounds(FIXTURE_DATA(dmabuf_race) *self)
{
	return self->rounds / 25 + 1;
}

static int export(FIXTURE_DATA(dmabuf_race) *self)
{
	return vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
					    self->size);
}

static int export_wc(FIXTURE_DATA(dmabuf_race) *self, u64 offset, u64 size)
{
	return __vfio_pci_dmabuf_export_range(self->device, self->bar,
					      O_RDWR | O_CLOEXEC,
					      VFIO_DEVICE_FEATURE_DMA_BUF_ATTR_WC,
					      offset, size);
}

/* In small pages: the more of them, the more faults there are to race with. */
static void *map_dmabuf(FIXTURE_DATA(dmabuf_race) *self, int fd)
{
	return mmap_shared_aligned(fd, 0, self->size, SZ_2M, page_size);
}

static void *map_bar(FIXTURE_DATA(dmabuf_race) *self)
{
	return vfio_pci_region_mmap_aligned(self->device, self->bar, 0,
					    self->size, SZ_2M, page_size);
}

/* Two threads, from either end of the mapping, or one and a process */
static void touchers_start(FIXTURE_DATA(dmabuf_race) *self,
			   struct toucher *touchers, void *vaddr, bool process)
{
	WRITE_ONCE(self->state->stop, false);
	touchers[0].backwards = process;
	toucher_start(&touchers[0], self->state, vaddr, self->size, process);
	touchers[1].backwards = !process;
	toucher_start(&touchers[1], self->state, vaddr, self->size, false);
}

static void touchers_stop(FIXTURE_DATA(dmabuf_race) *self,
			  struct toucher *touchers)
{
	WRITE_ONCE(self->state->stop, true);
	toucher_join(&touchers[0]);
	toucher_join(&touchers[1]);
}

static void delay(FIXTURE_DATA(dmabuf_race) *self)
{
	random_delay(&self->seed, MAX_DELAY_US);
}

static void thread_start(pthread_t *thread, void *(*fn)(void *), void *arg)
{
	VFIO_ASSERT_EQ(pthread_create(thread, NULL, fn, arg), 0);
}

static void *thread_join(pthread_t thread)
{
	void *ret;

	VFIO_ASSERT_EQ(pthread_join(thread, &ret), 0);
	return ret;
}

static void revoke_dmabuf(FIXTURE_DATA(dmabuf_race) *self, int fd)
{
	touch_set_phase(self->state, TOUCH_GOING);
	vfio_pci_dmabuf_revoke(self->device, fd);
	touch_set_phase(self->state, TOUCH_OFF);
}

static void memory_off(FIXTURE_DATA(dmabuf_race) *self)
{
	touch_set_phase(self->state, TOUCH_GOING);
	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	touch_set_phase(self->state, TOUCH_OFF);
}

static void memory_on(FIXTURE_DATA(dmabuf_race) *self)
{
	touch_set_phase(self->state, TOUCH_COMING);
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	touch_set_phase(self->state, TOUCH_ON);
}

/* Touches wait while the device is being reset, then they are done. */
static void reset(FIXTURE_DATA(dmabuf_race) *self)
{
	touch_set_phase(self->state, TOUCH_GOING);
	vfio_pci_device_reset(self->device);
	touch_set_phase(self->state, TOUCH_ON);
}

/* All accesses were as they had to be, and some were done and some refused. */
#define ASSERT_TOUCHES(_self, _some_refused) do {				\
	ASSERT_TRUE(touch_all_right((_self)->state));				\
	ASSERT_LT(0, (_self)->state->nr_done);					\
	ASSERT_EQ((_some_refused), (_self)->state->nr_refused > 0);		\
} while (0)

TEST_RACE(fault_against_revoke)
{
	struct toucher touchers[2];
	u32 i;

	for (i = 0; i < 2 * self->rounds; i++) {
		int fd = export(self);
		void *vaddr = map_dmabuf(self, fd);

		touch_set_phase(self->state, TOUCH_ON);
		touchers_start(self, touchers, vaddr, i % 2);
		delay(self);
		revoke_dmabuf(self, fd);
		touch_pages(self->state, vaddr, self->size);
		touchers_stop(self, touchers);

		ASSERT_TRUE(touch_all_right(self->state));
		munmap_assert(vaddr, self->size);
		close_assert(fd);
	}
	ASSERT_TOUCHES(self, true);
}

static void fault_against_memory(struct __test_metadata *_metadata,
				 FIXTURE_DATA(dmabuf_race) *self, void *vaddr)
{
	struct toucher touchers[2];
	u32 i;

	self->state->ones_allowed = true;
	touchers_start(self, touchers, vaddr, true);
	for (i = 0; i < self->rounds && !self->state->nr_wrong; i++) {
		delay(self);
		memory_off(self);
		touch_pages(self->state, vaddr, self->size);
		delay(self);
		memory_on(self);
		touch_pages(self->state, vaddr, self->size);
	}
	touchers_stop(self, touchers);
	ASSERT_TOUCHES(self, true);
}

TEST_RACE(dmabuf_fault_against_memory_disable)
{
	fault_against_memory(_metadata, self, map_dmabuf(self, export(self)));
}

TEST_RACE(bar_fault_against_memory_disable)
{
	fault_against_memory(_metadata, self, map_bar(self));
}

/* A DMABUF does not keep its device open. */
TEST_RACE(fault_against_close)
{
	struct toucher touchers[2];
	void *vaddr;
	u32 i;
	int fd;

	self->state->ones_allowed = true;
	for (i = 0; i < few_rounds(self); i++) {
		fd = export(self);
		vaddr = map_dmabuf(self, fd);

		touch_set_phase(self->state, TOUCH_ON);
		touchers_start(self, touchers, vaddr, i % 2);
		delay(self);
		touch_set_phase(self->state, TOUCH_GOING);
		device_close(self);
		touch_set_phase(self->state, TOUCH_OFF);
		touch_pages(self->state, vaddr, self->size);

		/* Nothing of the next opening is for the old buffer. */
		device_open(self);
		touch_pages(self->state, vaddr, self->size);
		touchers_stop(self, touchers);

		ASSERT_TRUE(touch_all_right(self->state));
		ASSERT_EQ(-ENODEV, __vfio_pci_dmabuf_revoke(self->device, fd));
		munmap_assert(vaddr, self->size);
		close_assert(fd);
	}
	ASSERT_TOUCHES(self, true);
}

/* Made elsewhere and moved, as a MAP_FIXED that fails would leave a hole. */
static void map_over(void *vaddr, int fd, u64 offset, size_t size)
{
	void *new;
	int ret;

	ret = __mmap_shared(fd, offset, size, PROT_READ, &new);
	if (ret) {
		VFIO_ASSERT_EQ(ret, -ENODEV);
		return;
	}

	VFIO_ASSERT_EQ(mremap(new, size, size, MREMAP_MAYMOVE | MREMAP_FIXED,
			      vaddr), vaddr);
}

/* Replace a part of the mapping by nothing, then by a new mapping. */
static void *remapper_main(void *arg)
{
	FIXTURE_DATA(dmabuf_race) *self = arg;
	u32 seed = 2;

	while (!READ_ONCE(self->state->stop)) {
		u32 page = rand_r(&seed) % NR_PAGES;
		u32 nr = rand_r(&seed) % (NR_PAGES - page) + 1;
		void *vaddr = self->vaddr + page * page_size;
		void *ret;

		/* Not munmap(): what comes next may be a thread's stack. */
		ret = mmap(vaddr, nr * page_size, PROT_NONE, MAP_PRIVATE |
			   MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
		VFIO_ASSERT_EQ(ret, vaddr);
		map_over(vaddr, self->fd, page * page_size, nr * page_size);
	}

	return NULL;
}

TEST_RACE(fault_against_munmap_and_revoke)
{
	struct toucher touchers[2];
	pthread_t remapper;
	u32 i;

	self->state->segv_allowed = true;
	for (i = 0; i < self->rounds; i++) {
		self->fd = export(self);
		self->vaddr = map_dmabuf(self, self->fd);

		touch_set_phase(self->state, TOUCH_ON);
		touchers_start(self, touchers, self->vaddr, false);
		thread_start(&remapper, remapper_main, self);
		delay(self);
		revoke_dmabuf(self, self->fd);
		touch_pages(self->state, self->vaddr, self->size);
		touchers_stop(self, touchers);
		thread_join(remapper);
		touch_pages(self->state, self->vaddr, self->size);

		ASSERT_TRUE(touch_all_right(self->state));
		munmap_assert(self->vaddr, self->size);
		close_assert(self->fd);
	}
	ASSERT_TOUCHES(self, true);
}

/*
 * New buffers and mappings, made while access goes away and comes back: each has to
 * start out as the device is, and to follow it.
 */
static void *newcomer_main(void *arg)
{
	FIXTURE_DATA(dmabuf_race) *self = arg;
	u32 i;

	for (i = 0; !READ_ONCE(self->state->stop); i++) {
		int fd = i % 2 ? export(self) : -1;
		void *vaddr = i % 2 ? map_dmabuf(self, fd) : map_bar(self);

		touch_page(self->state, vaddr, i % NR_PAGES);
		touch_page(self->state, vaddr, (i + 1) % NR_PAGES);
		touch_page(self->state, vaddr, i % NR_PAGES);

		munmap_assert(vaddr, self->size);
		if (fd >= 0)
			close_assert(fd);
	}

	return NULL;
}

TEST_RACE(export_and_mmap_against_memory_disable)
{
	pthread_t newcomers[2];
	u32 i;

	self->state->ones_allowed = true;
	thread_start(&newcomers[0], newcomer_main, self);
	thread_start(&newcomers[1], newcomer_main, self);
	for (i = 0; i < self->rounds; i++) {
		delay(self);
		memory_off(self);
		delay(self);
		memory_on(self);
	}
	WRITE_ONCE(self->state->stop, true);
	thread_join(newcomers[0]);
	thread_join(newcomers[1]);
	ASSERT_TOUCHES(self, true);
}

/* A DMABUF, a BAR mapping and new mappings at the same time, and the device reset */
TEST_RACE(fault_against_reset)
{
	struct toucher dmabuf_touchers[2], bar_touchers[2];
	pthread_t newcomer;
	void *dmabuf, *bar;
	u32 i;

	if (!(self->device->info.flags & VFIO_DEVICE_FLAGS_RESET))
		SKIP(return, "The device has no reset");

	dmabuf = map_dmabuf(self, export(self));
	bar = map_bar(self);
	self->state->ones_allowed = true;
	self->state->never_refused = true;
	touchers_start(self, dmabuf_touchers, dmabuf, false);
	touchers_start(self, bar_touchers, bar, false);
	thread_start(&newcomer, newcomer_main, self);
	for (i = 0; i < few_rounds(self); i++) {
		delay(self);
		reset(self);
		touch_pages(self->state, dmabuf, self->size);
		touch_pages(self->state, bar, self->size);
	}
	touchers_stop(self, dmabuf_touchers);
	touchers_stop(self, bar_touchers);
	thread_join(newcomer);
	ASSERT_TOUCHES(self, false);
}

/* Returns the result of the revoke, and whether access was gone by then. */
struct revoker {
	FIXTURE_DATA(dmabuf_race) *self;
	pthread_barrier_t *barrier;
	pthread_t thread;
	u32 seed;
	int ret;
	int sig;
};

static void *revoker_main(void *arg)
{
	struct revoker *revoker = arg;
	FIXTURE_DATA(dmabuf_race) *self = revoker->self;

	pthread_barrier_wait(revoker->barrier);
	random_delay(&revoker->seed, 20);
	revoker->ret = __vfio_pci_dmabuf_revoke(self->device, self->fd);
	revoker->sig = try_touch_pages(self->vaddr, self->size);

	return NULL;
}

TEST_RACE(two_revokes)
{
	struct revoker revokers[2];
	struct toucher touchers[2];
	pthread_barrier_t barrier;
	u32 i, j;

	ASSERT_EQ(0, pthread_barrier_init(&barrier, NULL, 2));
	for (i = 0; i < self->rounds; i++) {
		self->fd = export(self);
		self->vaddr = map_dmabuf(self, self->fd);

		touch_set_phase(self->state, TOUCH_GOING);
		touchers_start(self, touchers, self->vaddr, false);
		for (j = 0; j < ARRAY_SIZE(revokers); j++) {
			revokers[j].self = self;
			revokers[j].barrier = &barrier;
			revokers[j].seed = 2 * i + j;
			thread_start(&revokers[j].thread, revoker_main,
				     &revokers[j]);
		}
		for (j = 0; j < ARRAY_SIZE(revokers); j++) {
			thread_join(revokers[j].thread);
			touch_set_phase(self->state, TOUCH_OFF);
			ASSERT_TRUE(!revokers[j].ret ||
				    revokers[j].ret == -EBADFD);
			ASSERT_EQ(SIGBUS, revokers[j].sig);
		}
		/* One has done it, if not both together. */
		ASSERT_TRUE(!revokers[0].ret || !revokers[1].ret);
		touchers_stop(self, touchers);

		ASSERT_TRUE(touch_all_right(self->state));
		ASSERT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(self->device,
							    self->fd));
		munmap_assert(self->vaddr, self->size);
		close_assert(self->fd);
	}
}

/* Dead is dead, whatever the device does at the same time. */
static void *memory_toggler_main(void *arg)
{
	FIXTURE_DATA(dmabuf_race) *self = arg;
	u32 seed = 3;

	while (!READ_ONCE(self->state->stop)) {
		vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
		random_delay(&seed, 500);
		vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
		random_delay(&seed, 500);
	}

	return NULL;
}

TEST_RACE(revoke_against_memory_disable)
{
	pthread_t toggler;
	u32 i, j;

	thread_start(&toggler, memory_toggler_main, self);
	for (i = 0; i < self->rounds; i++) {
		int fd = export(self);
		void *vaddr = map_dmabuf(self, fd);

		try_touch_pages(vaddr, self->size);
		vfio_pci_dmabuf_revoke(self->device, fd);
		for (j = 0; j < 4; j++)
			ASSERT_EQ(SIGBUS, try_touch_pages(vaddr, self->size));
		ASSERT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(self->device, fd));

		munmap_assert(vaddr, self->size);
		close_assert(fd);
	}
	WRITE_ONCE(self->state->stop, true);
	thread_join(toggler);
}

/* Faults of a mapping that changes */
static void *touch_vaddr_main(void *arg)
{
	FIXTURE_DATA(dmabuf_race) *self = arg;
	void *vaddr;

	while (!READ_ONCE(self->state->stop)) {
		vaddr = READ_ONCE(self->vaddr);
		if (vaddr)
			try_touch_pages(vaddr, self->size);
	}

	return NULL;
}

/* Pages of the buffer become write-combining and uncached, and are unmapped. */
static void *wc_main(void *arg)
{
	FIXTURE_DATA(dmabuf_race) *self = arg;
	int fd;

	while (!READ_ONCE(self->state->stop)) {
		fd = export_wc(self, 4 * page_size, 16 * page_size);
		VFIO_ASSERT_GE(fd, 0);
		vfio_pci_dmabuf_revoke(self->device, fd);
		close_assert(fd);
	}

	return NULL;
}

static void check_revoked(FIXTURE_DATA(dmabuf_race) *self, void *vaddr)
{
	VFIO_ASSERT_EQ(try_touch_pages(vaddr, self->size), SIGBUS);
}

TEST_RACE(revoke_against_write_combining)
{
	struct vfio_region_dma_range ranges[4];
	size_t size = self->size / 4;
	pthread_t wc, toucher;
	u32 i, j;
	int fd;

	fd = export_wc(self, 0, page_size);
	if (fd == -EOPNOTSUPP)
		SKIP(return, "No write-combining");
	close_assert(fd);
	for (j = 0; j < 4; j++)
		ranges[j] = (struct vfio_region_dma_range){ (3 - j) * size, size };

	thread_start(&wc, wc_main, self);
	thread_start(&toucher, touch_vaddr_main, self);
	for (i = 0; i < 3 * self->rounds; i++) {
		void *vaddr, *old = self->vaddr;

		fd = vfio_pci_dmabuf_export(self->device, self->bar, ranges, 4);
		vaddr = map_dmabuf(self, fd);
		WRITE_ONCE(self->vaddr, vaddr);
		try_touch_pages(vaddr, self->size);
		random_delay(&self->seed, 100);
		vfio_pci_dmabuf_revoke(self->device, fd);
		check_revoked(self, vaddr);

		/* What access is given back to is not this buffer. */
		if (i % 16 == 1) {
			vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
			vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
			check_revoked(self, vaddr);
		}
		if (i % 64 == 2 &&
		    self->device->info.flags & VFIO_DEVICE_FLAGS_RESET) {
			vfio_pci_device_reset(self->device);
			check_revoked(self, vaddr);
		}
		/* The other thread may still be at the mapping before. */
		if (old)
			check_revoked(self, old);
		close_assert(fd);
	}
	WRITE_ONCE(self->state->stop, true);
	thread_join(wc);
	thread_join(toucher);
}

/* iommufd maps and unmaps the buffer; after the revoke it cannot. */
static void *importer_main(void *arg)
{
	FIXTURE_DATA(dmabuf_race) *self = arg;
	iova_t iova = SZ_1G;

	while (!READ_ONCE(self->state->stop)) {
		enum touch_phase phase = touch_get_phase(self->state);
		int ret;

		ret = __iommu_map_file(self->iommu, self->fd, 0, self->size,
				       iova);
		if (ret)
			VFIO_ASSERT_EQ(ret, -ENODEV);
		else
			VFIO_ASSERT_NE(phase, TOUCH_OFF);
		if (!ret)
			iommu_unmap_iova(self->iommu, iova, self->size);
	}

	return NULL;
}

TEST_RACE(import_against_revoke)
{
	pthread_t importer;
	u32 i;

	for (i = 0; i < self->rounds; i++) {
		self->fd = export(self);
		self->vaddr = map_dmabuf(self, self->fd);

		touch_set_phase(self->state, TOUCH_ON);
		WRITE_ONCE(self->state->stop, false);
		thread_start(&importer, importer_main, self);
		delay(self);
		revoke_dmabuf(self, self->fd);
		touch_pages(self->state, self->vaddr, self->size);
		ASSERT_EQ(-ENODEV, __iommu_map_file(self->iommu, self->fd, 0,
						    self->size, SZ_2G));
		WRITE_ONCE(self->state->stop, true);
		thread_join(importer);

		ASSERT_TRUE(touch_all_right(self->state));
		munmap_assert(self->vaddr, self->size);
		close_assert(self->fd);
	}
}

/* Closes its fd some time later. */
struct closer {
	int fd;
	u32 seed;
	u32 max_delay_us;
};

static void *closer_main(void *arg)
{
	struct closer *closer = arg;

	random_delay(&closer->seed, closer->max_delay_us);
	close_assert(closer->fd);

	return NULL;
}

static pthread_t closer_start(FIXTURE_DATA(dmabuf_race) *self,
			      struct closer *closer, int fd, u32 max_delay_us)
{
	pthread_t thread;

	*closer = (struct closer){ fd, rand_r(&self->seed), max_delay_us };
	thread_start(&thread, closer_main, closer);
	return thread;
}

/* The last fd goes, and with a mapping or without one the buffer. */
TEST_RACE(close_of_fd_against_revoke)
{
	struct closer closer;
	pthread_t thread;
	u32 i;

	for (i = 0; i < 4 * self->rounds; i++) {
		int fd = export(self);
		void *vaddr = i % 2 ? map_dmabuf(self, fd) : NULL;
		int ret;

		thread = closer_start(self, &closer, fd, 20);
		random_delay(&self->seed, 20);
		ret = __vfio_pci_dmabuf_revoke(self->device, fd);
		if (vaddr)
			ASSERT_EQ(ret ? 0 : SIGBUS,
				  try_touch_pages(vaddr, self->size));
		ASSERT_TRUE(!ret || ret == -EBADF);
		thread_join(thread);

		if (vaddr)
			munmap_assert(vaddr, self->size);
	}
}

/*
 * An O_PATH descriptor keeps a DMABUF that has no open file any more, so that it
 * may still be on the list of its device when the device walks that.
 */
static int export_o_path(FIXTURE_DATA(dmabuf_race) *self)
{
	int fd = export(self);
	int o_path = open_o_path(fd);

	close_assert(fd);
	return o_path;
}

static void *o_path_main(void *arg)
{
	FIXTURE_DATA(dmabuf_race) *self = arg;

	while (!READ_ONCE(self->state->stop))
		close_assert(export_o_path(self));

	return NULL;
}

static void o_path_memory_disable(FIXTURE_DATA(dmabuf_race) *self, void **vaddr)
{
	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	VFIO_ASSERT_EQ(try_touch_pages(vaddr[0], self->size), SIGBUS);
	VFIO_ASSERT_EQ(try_touch_pages(vaddr[1], self->size), SIGBUS);
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
}

static void o_path_reset(FIXTURE_DATA(dmabuf_race) *self, void **vaddr)
{
	vfio_pci_device_reset(self->device);
	VFIO_ASSERT_EQ(faults_to_touch(vaddr[0], page_size, page_size), 1);
	VFIO_ASSERT_EQ(faults_to_touch(vaddr[1], page_size, page_size), 1);
}

/* The walk passes over such buffers, and reaches those before and behind them. */
static void o_path_against(struct __test_metadata *_metadata,
			   FIXTURE_DATA(dmabuf_race) *self, u32 rounds,
			   void (*fn)(FIXTURE_DATA(dmabuf_race) *self,
				      void **vaddr))
{
	pthread_t holder;
	void *vaddr[2];
	int fds[2];
	u32 i, j;

	thread_start(&holder, o_path_main, self);
	for (i = 0; i < rounds; i++) {
		int o_path = -1;

		for (j = 0; j < 2; j++) {
			fds[j] = export(self);
			vaddr[j] = map_dmabuf(self, fds[j]);
			if (!j)
				o_path = export_o_path(self);
			ASSERT_EQ(0, try_touch_pages(vaddr[j], self->size));
		}
		fn(self, vaddr);
		for (j = 0; j < 2; j++) {
			ASSERT_EQ(0, try_touch_pages(vaddr[j], self->size));
			munmap_assert(vaddr[j], self->size);
			close_assert(fds[j]);
		}
		close_assert(o_path);
	}
	WRITE_ONCE(self->state->stop, true);
	thread_join(holder);
}

TEST_RACE(o_path_against_memory_disable)
{
	o_path_against(_metadata, self, self->rounds, o_path_memory_disable);
}

TEST_RACE(o_path_against_reset)
{
	if (!(self->device->info.flags & VFIO_DEVICE_FLAGS_RESET))
		SKIP(return, "The device has no reset");

	o_path_against(_metadata, self, few_rounds(self), o_path_reset);
}

TEST_RACE(o_path_against_close)
{
	struct closer closer;
	pthread_t thread;
	void *vaddr;
	u32 i;
	int fd;

	for (i = 0; i < few_rounds(self); i++) {
		int o_path = export_o_path(self);

		fd = export(self);
		vaddr = map_dmabuf(self, fd);
		ASSERT_EQ(0, try_touch_pages(vaddr, self->size));
		thread = closer_start(self, &closer, export_o_path(self), 2000);
		device_close(self);
		ASSERT_EQ(SIGBUS, try_touch_pages(vaddr, self->size));
		thread_join(thread);
		device_open(self);
		ASSERT_EQ(SIGBUS, try_touch_pages(vaddr, self->size));
		munmap_assert(vaddr, self->size);
		close_assert(o_path);
		close_assert(fd);
	}
}

static int do_unbind(void *driver, int fd)
{
	return __sysfs_driver_unbind(driver, device_bdf);
}

/*
 * The unbind waits for the close, and ends what was left mapped. A holder of the
 * DMABUF, by a path too, does not hold it up.
 */
TEST_RACE(fault_against_unbind)
{
	char *driver = sysfs_driver_get(device_bdf);
	int fd = export(self), o_path = export_o_path(self);
	void *vaddr = map_dmabuf(self, fd);
	struct toucher touchers[2];
	struct job unbind;

	self->state->ones_allowed = true;
	touchers_start(self, touchers, vaddr, true);
	job_start(&unbind, do_unbind, driver, -1);
	ASSERT_TRUE(job_waits(&unbind));

	touch_set_phase(self->state, TOUCH_GOING);
	device_close(self);
	touch_set_phase(self->state, TOUCH_OFF);
	touch_pages(self->state, vaddr, self->size);
	ASSERT_EQ(0, job_result(&unbind));
	touch_pages(self->state, vaddr, self->size);
	ASSERT_EQ(0, __sysfs_driver_bind(driver, device_bdf));
	device_open(self);
	touch_pages(self->state, vaddr, self->size);
	touchers_stop(self, touchers);

	ASSERT_TOUCHES(self, true);
	ASSERT_EQ(-ENODEV, __vfio_pci_dmabuf_revoke(self->device, fd));
	close_assert(o_path);
}

/* A process that has nothing but the DMABUF, and runs @fn over and over */
static void child_start(FIXTURE_DATA(dmabuf_race) *self,
			void (*fn)(int fd, size_t size), int fd, size_t size,
			int policy)
{
	struct sched_param param = {};
	pid_t pid = fork();

	VFIO_ASSERT_GE(pid, 0);
	if (pid) {
		VFIO_ASSERT_LT(self->nr_children, MAX_CHILDREN);
		self->children[self->nr_children++] = pid;
		return;
	}

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	VFIO_ASSERT_EQ(dup2(fd, STDERR_FILENO + 1), STDERR_FILENO + 1);
	VFIO_ASSERT_EQ(close_range(STDERR_FILENO + 2, ~0U, 0), 0);
	VFIO_ASSERT_EQ(sched_setscheduler(0, policy, &param), 0);
	while (1)
		fn(STDERR_FILENO + 1, size);
}

/* Map it and fault in all pages */
static void fault_new_mapping(int fd, size_t size)
{
	void *vaddr = mmap_shared_aligned(fd, 0, size, SZ_2M, page_size);

	try_touch_pages(vaddr, size);
	munmap_assert(vaddr, size);
}

/* Fault in pages again and again, as the owner of the device unmaps them */
static void fault_one_mapping(int fd, size_t size)
{
	static void *vaddr;

	if (!vaddr)
		vaddr = mmap_shared_aligned(fd, 0, size, SZ_2M, page_size);
	try_touch_pages(vaddr, size);
}

static void spin(int fd, size_t size)
{
}

/* A client that has nothing but a descriptor cannot refuse the owner a reset. */
TEST_RACE(hot_reset_against_faults)
{
	int i, fd;

	if (!vfio_pci_hot_reset_is_ours(self->device))
		SKIP(return, "No hot reset of the device alone");

	fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0, SZ_8M);
	for (i = 0; i < 2; i++)
		child_start(self, fault_new_mapping, fd, SZ_8M, SCHED_OTHER);
	usleep(200000);
	for (i = 0; i < 30; i++) {
		ASSERT_EQ(0, __vfio_pci_hot_reset(self->device));
		usleep(20000);
	}
}

static u64 now_us(void)
{
	struct timespec ts;

	VFIO_ASSERT_EQ(clock_gettime(CLOCK_MONOTONIC, &ts), 0);
	return ts.tv_sec * 1000000ULL + ts.tv_nsec / 1000;
}

/* The longest that disabling memory takes the owner */
static u64 slowest_memory_disable(FIXTURE_DATA(dmabuf_race) *self, int rounds)
{
	u64 start, slowest = 0;

	while (rounds--) {
		usleep(20000 + rand_r(&self->seed) % 20000);
		start = now_us();
		vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
		slowest = max(slowest, now_us() - start);
		vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	}
	return slowest;
}

/*
 * Nor can it hold up a real-time owner by faults that get no CPU: the limit is far
 * above what the host of a guest may add, and far below what a starved task waits.
 */
TEST_RACE(real_time_owner_against_starved_faults)
{
	struct sched_param fifo = { .sched_priority = 50 };
	int fd, i, nr = 4 * sysconf(_SC_NPROCESSORS_ONLN);
	u64 alone, slowest;

	nr = min(nr, MAX_CHILDREN / 2);
	fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0, SZ_16M);
	for (i = 0; i < nr; i++)
		child_start(self, spin, fd, 0, SCHED_OTHER);
	if (sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &fifo))
		SKIP(return, "No real-time scheduling");

	alone = slowest_memory_disable(self, 20);
	for (i = 0; i < nr / 2; i++)
		child_start(self, fault_one_mapping, fd, SZ_16M, SCHED_IDLE);
	sleep(3);
	slowest = slowest_memory_disable(self, 60);
	TH_LOG("%llu us without faults, %llu us with them",
	       (unsigned long long)alone, (unsigned long long)slowest);
	ASSERT_GT(max_t(u64, 3 * alone, 1000000), slowest);
}

/*
 * A system call that is held up where it copies to or from user memory, because the
 * page is missing and userfaultfd takes its time. Nobody else may have to wait for
 * that copy: it might be for the thread that is to provide the page.
 */
struct held_call {
	FIXTURE_DATA(dmabuf_race) *self;
	int (*fn)(FIXTURE_DATA(dmabuf_race) *self, void *page);
	/* The missing page, with a present one before it */
	void *page;
	int uffd;
	pthread_t thread;
	int ret;
};

static int held_export(FIXTURE_DATA(dmabuf_race) *self, void *page)
{
	struct vfio_device_feature_dma_buf *dma_buf;
	struct vfio_device_feature *feature;

	/* Only the ranges are missing. */
	dma_buf = page - sizeof(*dma_buf);
	feature = (void *)dma_buf - sizeof(*feature);
	feature->argsz = sizeof(*feature) + sizeof(*dma_buf) +
			 sizeof(dma_buf->dma_ranges[0]);
	feature->flags = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF;
	dma_buf->region_index = self->bar;
	dma_buf->open_flags = O_RDWR | O_CLOEXEC;
	dma_buf->flags = 0;
	dma_buf->nr_ranges = 1;

	return ioctl(self->device->fd, VFIO_DEVICE_FEATURE, feature);
}

static int held_revoke(FIXTURE_DATA(dmabuf_race) *self, void *page)
{
	return ioctl(self->device->fd, VFIO_DEVICE_PCI_DMABUF_REVOKE, page);
}

static int held_bar_read(FIXTURE_DATA(dmabuf_race) *self, void *page)
{
	return pread(self->device->fd, page, 4, self->bar_offset);
}

static int held_bar_write(FIXTURE_DATA(dmabuf_race) *self, void *page)
{
	return pwrite(self->device->fd, page, 4, self->bar_offset);
}

static int held_config_read(FIXTURE_DATA(dmabuf_race) *self, void *page)
{
	return pread(self->device->fd, page, 2,
		     self->device->config_space.offset + PCI_COMMAND);
}

static int held_config_write(FIXTURE_DATA(dmabuf_race) *self, void *page)
{
	return pwrite(self->device->fd, page, 2,
		      self->device->config_space.offset + PCI_COMMAND);
}

static void *held_call_main(void *arg)
{
	struct held_call *call = arg;

	call->ret = call->fn(call->self, call->page);
	return NULL;
}

/* Returns a userfaultfd of @page, or -1. */
static int userfaultfd_open(void *page)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = {
		.range.start = (u64)page,
		.range.len = page_size,
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC);

	if (uffd < 0)
		return -1;

	ioctl_assert(uffd, UFFDIO_API, &api);
	ioctl_assert(uffd, UFFDIO_REGISTER, &reg);
	return uffd;
}

static int read_bar(FIXTURE_DATA(dmabuf_race) *self, u64 offset)
{
	u32 val;

	return pread(self->device->fd, &val, sizeof(val),
		     self->bar_offset + offset);
}

/* All that would have to wait for a lock of the device */
static int use_device(void *arg, int unused)
{
	FIXTURE_DATA(dmabuf_race) *self = arg;
	int fd = export(self), wc = export_wc(self, SZ_8M, page_size);
	void *dmabuf = map_dmabuf(self, fd);
	void *bar;

	memory_off(self);
	touch_pages(self->state, dmabuf, self->size);
	bar = map_bar(self);
	touch_pages(self->state, bar, self->size);
	memory_on(self);
	touch_pages(self->state, dmabuf, self->size);
	touch_pages(self->state, bar, self->size);
	VFIO_ASSERT_EQ(read_bar(self, page_size), sizeof(u32));

	if (wc != -EOPNOTSUPP) {
		VFIO_ASSERT_GE(wc, 0);
		VFIO_ASSERT_EQ(read_bar(self, SZ_8M), sizeof(u32));
		vfio_pci_dmabuf_revoke(self->device, wc);
		close_assert(wc);
	}
	vfio_pci_dmabuf_revoke(self->device, fd);
	VFIO_ASSERT_EQ(try_touch_pages(dmabuf, self->size), SIGBUS);
	munmap_assert(dmabuf, self->size);
	munmap_assert(bar, self->size);
	close_assert(fd);
	return 0;
}

/* Returns when the call is held up. */
static void held_call_start(struct held_call *call)
{
	void *pages = mmap(NULL, 2 * page_size, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffd_msg msg;

	VFIO_ASSERT_NE(pages, MAP_FAILED);
	call->page = pages + page_size;
	call->uffd = userfaultfd_open(call->page);
	VFIO_ASSERT_GE(call->uffd, 0);

	thread_start(&call->thread, held_call_main, call);
	VFIO_ASSERT_EQ(read(call->uffd, &msg, sizeof(msg)), sizeof(msg));
	VFIO_ASSERT_EQ(msg.event, UFFD_EVENT_PAGEFAULT);
}

/* Returns what the call returned, given @data as the missing page. */
static int held_call_end(struct held_call *call, void *data)
{
	struct uffdio_copy copy = {
		.dst = (u64)call->page,
		.src = (u64)data,
		.len = page_size,
	};

	ioctl_assert(call->uffd, UFFDIO_COPY, &copy);
	thread_join(call->thread);
	close_assert(call->uffd);

	return call->ret;
}

static int hold_call(struct __test_metadata *_metadata,
		     FIXTURE_DATA(dmabuf_race) *self,
		     int (*fn)(FIXTURE_DATA(dmabuf_race) *self, void *page),
		     void *data)
{
	struct held_call call = { .self = self, .fn = fn };
	struct job job;
	int ret;

	held_call_start(&call);
	job_start(&job, use_device, self, -1);
	EXPECT_TRUE(job_ends(&job, JOB_ENDS_MS / 4));
	ret = held_call_end(&call, data);
	job_result(&job);

	return ret;
}

static void *mmap_anonymous(void)
{
	void *page = mmap(NULL, page_size, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	VFIO_ASSERT_NE(page, MAP_FAILED);
	return page;
}

TEST_RACE(user_copy_holds_up_nobody)
{
	void *data = mmap_anonymous();
	struct vfio_region_dma_range *range = data;
	struct vfio_pci_dmabuf_revoke *args = data;
	int i, fd;

	fd = userfaultfd_open(mmap_anonymous());
	if (fd < 0)
		SKIP(return, "No userfaultfd");

	/* First with the kernel's mapping of the BAR, which WC exports unmap */
	self->state->ones_allowed = true;
	*(u32 *)data = touch_pattern(0);
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(4, hold_call(_metadata, self, held_bar_read, data));
		ASSERT_EQ(4, hold_call(_metadata, self, held_bar_write, data));
	}

	range->offset = 0;
	range->length = self->size;
	fd = hold_call(_metadata, self, held_export, data);
	ASSERT_GE(fd, 0);

	args->argsz = sizeof(*args);
	args->dmabuf_fd = fd;
	ASSERT_EQ(0, hold_call(_metadata, self, held_revoke, data));
	ASSERT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(self->device, fd));

	*(u16 *)data = vfio_pci_config_readw(self->device, PCI_COMMAND);
	ASSERT_EQ(2, hold_call(_metadata, self, held_config_write, data));
	ASSERT_EQ(2, hold_call(_metadata, self, held_config_read, data));

	ASSERT_TRUE(touch_all_right(self->state));
}

int main(int argc, char *argv[])
{
	dmabuf_test_init(&argc, argv);
	return test_harness_run(argc, argv);
}
