// SPDX-License-Identifier: GPL-2.0-only
/*
 * Access to a device's memory is taken away while others use it: touch it, map
 * it, unmap it, export it, import it, or hold descriptors of it.
 *
 * What all of it is about: after the operation that takes access away has
 * returned, no access succeeds; as long as there is access, it finds what is
 * there. See <libvfio/toucher.h>.
 *
 * $VFIO_RACE_ROUNDS sets how many rounds a race goes, for those that have short
 * ones. The others, whose rounds have a reset in them, do a fraction of that.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <linux/compiler.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/userfaultfd.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "kselftest_harness.h"

static const char *device_bdf;

static size_t page_size;

#define NR_PAGES	32

/* How long a round may last until access is taken away */
#define MAX_DELAY_US	1500

FIXTURE(dmabuf_race) {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	struct touch_state *state;
	int bar;
	size_t size;
	u32 rounds;
	u32 seed;
	/* What a second thread works with */
	int fd;
	void *vaddr;
};

/* In a child process they would keep the device open. */
static void keep_bars_from_children(FIXTURE_DATA(dmabuf_race) *self)
{
	int i;

	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		if (self->device->bars[i].vaddr)
			madvise(self->device->bars[i].vaddr,
				self->device->bars[i].info.size,
				MADV_DONTFORK);
	}
}

static void device_open(FIXTURE_DATA(dmabuf_race) *self)
{
	self->device = vfio_pci_device_init(device_bdf, self->iommu);
	keep_bars_from_children(self);
}

static void device_close(FIXTURE_DATA(dmabuf_race) *self)
{
	vfio_pci_device_cleanup(self->device);
	self->device = NULL;
}

/*
 * What is exported is not what is mapped of the BAR, but comes after that, in
 * pages that each have a gap to the next. So every page of the DMABUF is a
 * range of its own: it is not mapped with its neighbours, but by its own fault.
 */
static u64 range_offset(u32 page)
{
	return (NR_PAGES + 2 * page) * page_size;
}

static void fill_ranges(FIXTURE_DATA(dmabuf_race) *self)
{
	void *bar = self->device->bars[self->bar].vaddr;
	u32 i;

	for (i = 0; i < NR_PAGES; i++)
		WRITE_ONCE(*(u32 *)(bar + range_offset(i)), touch_pattern(i));
}

FIXTURE_SETUP(dmabuf_race)
{
	const char *reason;

	reason = dmabuf_test_open(device_bdf, true, range_offset(NR_PAGES),
				  &self->iommu, &self->device, &self->bar);
	if (reason)
		SKIP(return, "%s", reason);
	keep_bars_from_children(self);

	self->size = NR_PAGES * page_size;
	self->rounds = getenv_u32("VFIO_RACE_ROUNDS", 100);
	self->seed = 1;
	self->state = touch_state_alloc();
	touch_fill(self->device->bars[self->bar].vaddr, self->size);
	fill_ranges(self);
}

FIXTURE_TEARDOWN(dmabuf_race)
{
	if (self->state)
		touch_state_free(self->state);
	vfio_pci_device_cleanup(self->device);
	iommu_cleanup(self->iommu);
}

/* A test takes its time on a kernel that checks itself. */
#define TEST_RACE(_name) TEST_F_TIMEOUT(dmabuf_race, _name, 600)

static u32 few_rounds(FIXTURE_DATA(dmabuf_race) *self)
{
	return self->rounds / 25 + 1;
}

static int export(FIXTURE_DATA(dmabuf_race) *self)
{
	struct vfio_region_dma_range ranges[NR_PAGES];
	u32 i;

	for (i = 0; i < NR_PAGES; i++) {
		ranges[i].offset = range_offset(i);
		ranges[i].length = page_size;
	}

	return vfio_pci_dmabuf_export(self->device, self->bar, ranges,
				      NR_PAGES);
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

static void take_dmabuf(FIXTURE_DATA(dmabuf_race) *self, int fd)
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

static void fault_against_revoke(struct __test_metadata *_metadata,
				 FIXTURE_DATA(dmabuf_race) *self, bool process)
{
	struct toucher touchers[2];
	u32 i;

	for (i = 0; i < self->rounds; i++) {
		int fd = export(self);
		void *vaddr = map_dmabuf(self, fd);

		touch_set_phase(self->state, TOUCH_ON);
		touchers_start(self, touchers, vaddr, process);
		delay(self);
		take_dmabuf(self, fd);
		touch_pages(self->state, vaddr, self->size);
		touchers_stop(self, touchers);

		ASSERT_TRUE(touch_all_right(self->state));
		munmap_assert(vaddr, self->size);
		close_assert(fd);
	}
	ASSERT_LT(0, self->state->nr_done);
	ASSERT_LT(0, self->state->nr_refused);
}

TEST_RACE(fault_against_revoke)
{
	fault_against_revoke(_metadata, self, false);
}

TEST_RACE(fault_in_process_against_revoke)
{
	fault_against_revoke(_metadata, self, true);
}

static void fault_against_memory(struct __test_metadata *_metadata,
				 FIXTURE_DATA(dmabuf_race) *self, void *vaddr)
{
	struct toucher touchers[2];
	u32 i;

	self->state->ones_allowed = true;
	touchers_start(self, touchers, vaddr, true);
	for (i = 0; i < self->rounds; i++) {
		delay(self);
		memory_off(self);
		touch_pages(self->state, vaddr, self->size);
		delay(self);
		memory_on(self);
		touch_pages(self->state, vaddr, self->size);
		if (self->state->nr_wrong)
			break;
	}
	touchers_stop(self, touchers);

	ASSERT_TRUE(touch_all_right(self->state));
	munmap_assert(vaddr, self->size);
}

TEST_RACE(dmabuf_fault_against_memory_disable)
{
	int fd = export(self);

	fault_against_memory(_metadata, self, map_dmabuf(self, fd));
	close_assert(fd);
}

TEST_RACE(bar_fault_against_memory_disable)
{
	fault_against_memory(_metadata, self, map_bar(self));
}

/* A DMABUF and a BAR mapping at the same time, and the device reset */
TEST_RACE(fault_against_reset)
{
	struct toucher dmabuf_touchers[2], bar_touchers[2];
	void *dmabuf, *bar;
	int fd;
	u32 i;

	if (!(self->device->info.flags & VFIO_DEVICE_FLAGS_RESET))
		SKIP(return, "The device has no reset");

	fd = export(self);
	dmabuf = map_dmabuf(self, fd);
	bar = map_bar(self);

	self->state->ones_allowed = true;
	touchers_start(self, dmabuf_touchers, dmabuf, false);
	touchers_start(self, bar_touchers, bar, false);
	for (i = 0; i < few_rounds(self); i++) {
		delay(self);
		touch_set_phase(self->state, TOUCH_GOING);
		vfio_pci_device_reset(self->device);
		touch_set_phase(self->state, TOUCH_ON);
		touch_pages(self->state, dmabuf, self->size);
		touch_pages(self->state, bar, self->size);
	}
	touchers_stop(self, dmabuf_touchers);
	touchers_stop(self, bar_touchers);

	ASSERT_TRUE(touch_all_right(self->state));
	munmap_assert(dmabuf, self->size);
	munmap_assert(bar, self->size);
	close_assert(fd);
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
		take_dmabuf(self, self->fd);
		touch_pages(self->state, self->vaddr, self->size);
		touchers_stop(self, touchers);
		thread_join(remapper);
		touch_pages(self->state, self->vaddr, self->size);

		ASSERT_TRUE(touch_all_right(self->state));
		munmap_assert(self->vaddr, self->size);
		close_assert(self->fd);
	}
}

/*
 * New buffers and mappings, made while access goes away and comes back: each
 * has to start out as the device is, and to follow it.
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

	ASSERT_TRUE(touch_all_right(self->state));
	ASSERT_LT(0, self->state->nr_done);
	ASSERT_LT(0, self->state->nr_refused);
}

TEST_RACE(export_and_mmap_against_reset)
{
	pthread_t newcomer;
	u32 i;

	if (!(self->device->info.flags & VFIO_DEVICE_FLAGS_RESET))
		SKIP(return, "The device has no reset");

	self->state->ones_allowed = true;
	thread_start(&newcomer, newcomer_main, self);
	for (i = 0; i < few_rounds(self); i++) {
		delay(self);
		touch_set_phase(self->state, TOUCH_GOING);
		vfio_pci_device_reset(self->device);
		touch_set_phase(self->state, TOUCH_ON);
	}
	WRITE_ONCE(self->state->stop, true);
	thread_join(newcomer);

	ASSERT_TRUE(touch_all_right(self->state));
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

static void revoke_and_touch(FIXTURE_DATA(dmabuf_race) *self,
			     struct revoker *revoker)
{
	revoker->ret = __vfio_pci_dmabuf_revoke(self->device, self->fd);
	revoker->sig = try_touch_pages(self->vaddr, self->size);
}

static void *revoker_main(void *arg)
{
	struct revoker *revoker = arg;

	pthread_barrier_wait(revoker->barrier);
	random_delay(&revoker->seed, 20);
	revoke_and_touch(revoker->self, revoker);

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
	pthread_barrier_destroy(&barrier);
}

/* Dead is dead, whatever the device does at the same time. */
static void *memory_toggler_main(void *arg)
{
	FIXTURE_DATA(dmabuf_race) *self = arg;

	while (!READ_ONCE(self->state->stop)) {
		vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
		vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	}

	return NULL;
}

TEST_RACE(revoke_against_memory_disable)
{
	pthread_t toggler;
	u32 i;

	thread_start(&toggler, memory_toggler_main, self);
	for (i = 0; i < self->rounds; i++) {
		int fd = export(self);
		void *vaddr = map_dmabuf(self, fd);
		u32 j;

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
		/* iommufd takes only one range. */
		self->fd = vfio_pci_dmabuf_export_range(self->device, self->bar,
							0, self->size);
		self->vaddr = map_dmabuf(self, self->fd);

		touch_set_phase(self->state, TOUCH_ON);
		WRITE_ONCE(self->state->stop, false);
		thread_start(&importer, importer_main, self);
		delay(self);
		take_dmabuf(self, self->fd);
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
	pthread_t thread;
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

static void closer_start(FIXTURE_DATA(dmabuf_race) *self,
			 struct closer *closer, int fd, u32 max_delay_us)
{
	closer->fd = fd;
	closer->seed = rand_r(&self->seed);
	closer->max_delay_us = max_delay_us;
	thread_start(&closer->thread, closer_main, closer);
}

/* The last fd goes, and with a mapping or without one the buffer. */
TEST_RACE(close_of_fd_against_revoke)
{
	struct closer closer;
	u32 i;

	for (i = 0; i < 4 * self->rounds; i++) {
		void *vaddr = NULL;
		int fd, ret;

		fd = export(self);
		if (i % 2)
			vaddr = map_dmabuf(self, fd);

		closer_start(self, &closer, fd, 20);
		random_delay(&self->seed, 20);
		ret = __vfio_pci_dmabuf_revoke(self->device, fd);
		if (vaddr)
			ASSERT_EQ(ret ? 0 : SIGBUS,
				  try_touch_pages(vaddr, self->size));
		ASSERT_TRUE(!ret || ret == -EBADF);
		thread_join(closer.thread);

		if (vaddr)
			munmap_assert(vaddr, self->size);
	}
}

/*
 * An O_PATH descriptor keeps a DMABUF that has no open file any more, so that it
 * is still on the list of its device when the device walks that.
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

TEST_RACE(o_path_against_memory_disable)
{
	pthread_t holder;
	int o_path;
	u32 i;

	thread_start(&holder, o_path_main, self);
	for (i = 0; i < self->rounds; i++) {
		o_path = export_o_path(self);
		memory_off(self);
		memory_on(self);
		close_assert(o_path);
	}
	WRITE_ONCE(self->state->stop, true);
	thread_join(holder);
}

TEST_RACE(o_path_against_reset)
{
	pthread_t holder;
	u32 i;

	if (!(self->device->info.flags & VFIO_DEVICE_FLAGS_RESET))
		SKIP(return, "The device has no reset");

	thread_start(&holder, o_path_main, self);
	for (i = 0; i < few_rounds(self); i++) {
		int o_path = export_o_path(self);

		vfio_pci_device_reset(self->device);
		close_assert(o_path);
	}
	WRITE_ONCE(self->state->stop, true);
	thread_join(holder);
}

TEST_RACE(o_path_against_close)
{
	struct closer closer;
	u32 i;

	for (i = 0; i < few_rounds(self); i++) {
		int o_path = export_o_path(self);

		closer_start(self, &closer, export_o_path(self), 2000);
		device_close(self);
		thread_join(closer.thread);
		close_assert(o_path);
		device_open(self);
	}
}

static void *unbind_main(void *driver)
{
	return (void *)(long)__sysfs_driver_unbind(driver, device_bdf);
}

static void driver_bind(struct __test_metadata *_metadata,
			FIXTURE_DATA(dmabuf_race) *self, const char *driver)
{
	ASSERT_EQ(0, __sysfs_driver_bind(driver, device_bdf));
	device_open(self);
}

/* Whoever holds the DMABUF does not hold up the driver. */
TEST_RACE(o_path_against_unbind)
{
	char *driver = sysfs_driver_get(device_bdf);
	int o_path = export_o_path(self);
	pthread_t unbind;

	device_close(self);
	thread_start(&unbind, unbind_main, driver);
	ASSERT_EQ(NULL, thread_join(unbind));
	driver_bind(_metadata, self, driver);

	close_assert(o_path);
	free(driver);
}

/* The unbind waits for the close, and takes what was left mapped. */
TEST_RACE(fault_against_unbind)
{
	char *driver = sysfs_driver_get(device_bdf);
	int fd = export(self);
	void *vaddr = map_dmabuf(self, fd);
	struct toucher touchers[2];
	pthread_t unbind;

	self->state->ones_allowed = true;
	touchers_start(self, touchers, vaddr, true);
	thread_start(&unbind, unbind_main, driver);
	usleep(50000);

	touch_set_phase(self->state, TOUCH_GOING);
	device_close(self);
	touch_set_phase(self->state, TOUCH_OFF);
	touch_pages(self->state, vaddr, self->size);
	ASSERT_EQ(NULL, thread_join(unbind));
	touch_pages(self->state, vaddr, self->size);
	driver_bind(_metadata, self, driver);
	touch_pages(self->state, vaddr, self->size);
	touchers_stop(self, touchers);

	ASSERT_TRUE(touch_all_right(self->state));
	ASSERT_EQ(-ENODEV, __vfio_pci_dmabuf_revoke(self->device, fd));
	munmap_assert(vaddr, self->size);
	close_assert(fd);
	free(driver);
}

/*
 * A system call that is held up where it copies to or from user memory, because
 * the page is missing and userfaultfd takes its time, and meanwhile a writer of
 * the device's memory_lock, mmap() and faults. Were memory_lock held across the
 * copy, the writer would wait for the copy, faults for the writer, mmap() for the
 * faults, and the thread that is to provide the page maybe for mmap().
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
	return pread(self->device->fd, page, sizeof(u32),
		     vfio_pci_region_offset(self->device, self->bar));
}

static int held_bar_write(FIXTURE_DATA(dmabuf_race) *self, void *page)
{
	return pwrite(self->device->fd, page, sizeof(u32),
		      vfio_pci_region_offset(self->device, self->bar));
}

static int held_config_read(FIXTURE_DATA(dmabuf_race) *self, void *page)
{
	return pread(self->device->fd, page, sizeof(u16),
		     self->device->config_space.offset + PCI_COMMAND);
}

static int held_config_write(FIXTURE_DATA(dmabuf_race) *self, void *page)
{
	return pwrite(self->device->fd, page, sizeof(u16),
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

/* All that would have to wait for memory_lock, or for who waits for it */
static void use_and_revoke(struct __test_metadata *_metadata,
			   FIXTURE_DATA(dmabuf_race) *self)
{
	int fd = export(self);
	void *dmabuf = map_dmabuf(self, fd);
	void *bar;

	memory_off(self);
	touch_pages(self->state, dmabuf, self->size);
	bar = map_bar(self);
	touch_pages(self->state, bar, self->size);
	memory_on(self);
	touch_pages(self->state, dmabuf, self->size);
	touch_pages(self->state, bar, self->size);

	vfio_pci_dmabuf_revoke(self->device, fd);
	ASSERT_EQ(SIGBUS, try_touch_pages(dmabuf, self->size));
	munmap_assert(dmabuf, self->size);
	munmap_assert(bar, self->size);
	close_assert(fd);
}

/* Returns when the call is held up. */
static void held_call_start(struct held_call *call,
			    FIXTURE_DATA(dmabuf_race) *self,
			    int (*fn)(FIXTURE_DATA(dmabuf_race) *self,
				      void *page))
{
	void *pages = mmap(NULL, 2 * page_size, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffd_msg msg;

	VFIO_ASSERT_NE(pages, MAP_FAILED);
	call->self = self;
	call->fn = fn;
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
	munmap_assert(call->page - page_size, 2 * page_size);

	return call->ret;
}

static int hold_call(struct __test_metadata *_metadata,
		     FIXTURE_DATA(dmabuf_race) *self,
		     int (*fn)(FIXTURE_DATA(dmabuf_race) *self, void *page),
		     void *data)
{
	struct held_call call;

	held_call_start(&call, self, fn);
	use_and_revoke(_metadata, self);

	return held_call_end(&call, data);
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
	void *probe = mmap_anonymous();
	int uffd, fd;

	uffd = userfaultfd_open(probe);
	if (uffd < 0)
		SKIP(return, "No userfaultfd");
	close_assert(uffd);

	range->length = self->size;
	fd = hold_call(_metadata, self, held_export, data);
	ASSERT_GE(fd, 0);

	args->argsz = sizeof(*args);
	args->dmabuf_fd = fd;
	ASSERT_EQ(0, hold_call(_metadata, self, held_revoke, data));
	ASSERT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(self->device, fd));
	close_assert(fd);

	*(u32 *)data = touch_pattern(0);
	ASSERT_EQ(4, hold_call(_metadata, self, held_bar_write, data));
	ASSERT_EQ(4, hold_call(_metadata, self, held_bar_read, data));

	*(u16 *)data = vfio_pci_config_readw(self->device, PCI_COMMAND);
	ASSERT_EQ(2, hold_call(_metadata, self, held_config_write, data));
	ASSERT_EQ(2, hold_call(_metadata, self, held_config_read, data));

	ASSERT_TRUE(touch_all_right(self->state));
	munmap_assert(probe, page_size);
	munmap_assert(data, page_size);
}

/* Exports the page behind the last one of export() as write-combining. */
struct wc_exporter {
	FIXTURE_DATA(dmabuf_race) *self;
	pthread_t thread;
	pid_t tid;
	bool done;
	int fd;
};

static void *wc_exporter_main(void *arg)
{
	struct wc_exporter *exporter = arg;
	FIXTURE_DATA(dmabuf_race) *self = exporter->self;
	u64 offset = range_offset(NR_PAGES) - page_size;

	WRITE_ONCE(exporter->tid, syscall(__NR_gettid));
	exporter->fd =
		__vfio_pci_dmabuf_export_range(self->device, self->bar,
					       O_RDWR | O_CLOEXEC,
					       VFIO_DEVICE_FEATURE_DMA_BUF_ATTR_WC,
					       offset, page_size);
	WRITE_ONCE(exporter->done, true);

	return NULL;
}

static bool thread_sleeps_for_lock(pid_t tid)
{
	char path[64], state;
	FILE *file;
	int nr;

	snprintf_assert(path, (int)sizeof(path), "/proc/self/task/%d/stat", tid);
	file = fopen(path, "r");
	if (!file)
		return false;

	nr = fscanf(file, "%*d (%*[^)]) %c", &state);
	VFIO_ASSERT_EQ(nr, 1);
	VFIO_ASSERT_EQ(fclose(file), 0);

	return state == 'D';
}

/* Returns whether the export has to wait, once that is known. */
static bool wc_export_waits(FIXTURE_DATA(dmabuf_race) *self,
			    struct wc_exporter *exporter)
{
	int ms;

	*exporter = (struct wc_exporter){ .self = self };
	thread_start(&exporter->thread, wc_exporter_main, exporter);
	for (ms = 0; ms < 10000 && !READ_ONCE(exporter->done); ms++) {
		pid_t tid = READ_ONCE(exporter->tid);

		if (tid && thread_sleeps_for_lock(tid))
			return true;
		usleep(1000);
	}

	return false;
}

static void hold_call_and_wc_export(struct __test_metadata *_metadata,
				    FIXTURE_DATA(dmabuf_race) *self,
				    int (*fn)(FIXTURE_DATA(dmabuf_race) *self,
					      void *page), void *data)
{
	struct wc_exporter exporter;
	struct held_call call;

	held_call_start(&call, self, fn);
	EXPECT_TRUE(wc_export_waits(self, &exporter));
	use_and_revoke(_metadata, self);
	EXPECT_FALSE(READ_ONCE(exporter.done));
	EXPECT_EQ(4, held_call_end(&call, data));

	thread_join(exporter.thread);
	ASSERT_LE(0, exporter.fd);
	close_assert(exporter.fd);
}

/*
 * A read or write of a BAR may use the kernel's mapping of it once its copy is
 * done. So an export that wants the mapping to give way waits for the copy; all
 * else goes on, with this waiter too.
 */
TEST_RACE(user_copy_holds_up_wc_export_only)
{
	void *data = mmap_anonymous();
	struct wc_exporter exporter;
	int i;

	i = userfaultfd_open(data);
	if (i < 0)
		SKIP(return, "No userfaultfd");
	close_assert(i);

	wc_export_waits(self, &exporter);
	thread_join(exporter.thread);
	if (exporter.fd == -EOPNOTSUPP)
		SKIP(return, "No write-combining");
	ASSERT_LE(0, exporter.fd);
	close_assert(exporter.fd);

	/* Once with the mapping, which is there after an open, once without */
	device_close(self);
	device_open(self);
	*(u32 *)data = touch_pattern(0);
	for (i = 0; i < 2; i++) {
		hold_call_and_wc_export(_metadata, self, held_bar_write, data);
		hold_call_and_wc_export(_metadata, self, held_bar_read, data);
	}

	ASSERT_TRUE(touch_all_right(self->state));
	munmap_assert(data, page_size);
}

int main(int argc, char *argv[])
{
	page_size = getpagesize();
	device_bdf = vfio_selftests_get_bdf(&argc, argv);
	return test_harness_run(argc, argv);
}
