// SPDX-License-Identifier: GPL-2.0-only
/*
 * Random steps by the owner of a device and its clients, against a model of who
 * may access what.
 *
 * The owner takes all decisions, and has each process do one thing at a time, so a
 * failure can be repeated with its seed. What several processes do at the same time
 * is tested by vfio_pci_dmabuf_race_test.
 *
 * Each process has some windows, which are ranges of its address space. The model
 * knows for every page of them what is mapped there; what a touch of the page
 * answers must follow from that, from the state of the buffer and of the device.
 *
 * $VFIO_STRESS_SEED repeats a run; $VFIO_STRESS_STEPS says how long it is.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/random.h>

#include <linux/kernel.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>

#include "kselftest_harness.h"

#include <libvfio/dmabuf_test.h>

#define NR_PROCESSES	4	/* with the owner, which is the first */
#define NR_WINDOWS	3	/* of each process */
#define WINDOW_PAGES	24
#define BAR_PAGES	64	/* that are used of the BAR */
#define MAX_RANGES	4
#define MAX_RANGE_PAGES	8
#define MAX_BUFFERS	8	/* with an open fd at the same time */
#define MAX_O_PATHS	4

enum op {
	OP_MMAP,
	OP_MUNMAP,
	OP_MREMAP,
	OP_TOUCH,
	OP_FORK_TOUCH,
	OP_WRITE,
};

/* What a process is told to do, and what came of it */
struct work {
	enum op op;
	u32 window;
	u32 page;
	u32 nr;
	u64 offset;
	u32 to_window;
	u32 to_page;
	u32 val;
	int ret;
	int sigs[WINDOW_PAGES];
	u32 vals[WINDOW_PAGES];
};

struct buffer {
	int fd;
	bool revoked;
	/* Which opening of the device it is of */
	u32 opening;
	u32 nr;
	u32 bar_page[MAX_RANGES * MAX_RANGE_PAGES];
};

/* What is mapped at a page of a window: nothing, a BAR or a buffer */
struct slot {
	/* 0 for nothing. The pages of one mapping have consecutive numbers. */
	u64 number;
	struct buffer *buffer;
	u32 bar_page;
};

FIXTURE(stress) {
	DMABUF_FIXTURE;
	bool has_low_power;
	u32 seed;
	u32 step;
	struct vfio_client *clients[NR_PROCESSES];
	/* The model */
	struct slot slots[NR_PROCESSES][NR_WINDOWS][WINDOW_PAGES];
	u64 next_number;
	bool memory_on;
	u32 opening;
	u32 vals[BAR_PAGES];
	/* Slots point to those that were closed, too: none is ever freed. */
	struct buffer *buffers[MAX_BUFFERS];
	int o_paths[MAX_O_PATHS];
};

/* The side of a process */

/* At the same addresses in each process */
static void *windows[NR_WINDOWS];
/* Shared with the children of the process */
static struct work *forked_work;

static int fill_with_nothing(void *vaddr, size_t size)
{
	void *ret = mmap(vaddr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS |
			 MAP_NORESERVE | MAP_FIXED, -1, 0);

	VFIO_ASSERT_EQ(ret, vaddr);
	return 0;
}

static int move(void *from, void *to, size_t size)
{
	if (mremap(from, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to)
		return -errno;
	return 0;
}

static int do_touch(void *arg)
{
	struct work *work = arg;
	int i;

	for (i = 0; i < WINDOW_PAGES; i++)
		work->sigs[i] = try_read32(windows[work->window] + i * page_size,
					   &work->vals[i]);
	return 0;
}

static int do_work(void *data, const int *fds)
{
	struct work *work = data;
	void *vaddr = windows[work->window] + work->page * page_size;
	size_t size = work->nr * page_size;
	void *new;

	switch (work->op) {
	case OP_MMAP:
		/* Not in place: if it fails, it must not make a hole. */
		work->ret = __mmap_shared(fds[0], work->offset, size,
					  PROT_READ | PROT_WRITE, &new);
		if (!work->ret)
			work->ret = move(new, vaddr, size);
		break;
	case OP_MUNMAP:
		work->ret = fill_with_nothing(vaddr, size);
		break;
	case OP_MREMAP:
		work->ret = move(vaddr, windows[work->to_window] +
				 work->to_page * page_size, size);
		if (!work->ret)
			fill_with_nothing(vaddr, size);
		break;
	case OP_TOUCH:
		work->ret = do_touch(work);
		break;
	case OP_FORK_TOUCH:
		*forked_work = *work;
		work->ret = run_in_child(do_touch, forked_work);
		memcpy(work->sigs, forked_work->sigs, sizeof(work->sigs));
		memcpy(work->vals, forked_work->vals, sizeof(work->vals));
		break;
	case OP_WRITE:
		work->ret = try_write32(vaddr, work->val);
		break;
	}
	return 0;
}

/* The side of the owner */

static int tell(FIXTURE_DATA(stress) *self, u32 process,
		struct work *work, int fd)
{
	if (process)
		vfio_client_call(self->clients[process], do_work, work,
				 sizeof(*work), &fd, fd >= 0);
	else
		do_work(work, &fd);

	return work->ret;
}

static u32 rnd(FIXTURE_DATA(stress) *self, u32 limit)
{
	/* xorshift: the same on any machine and with any libc */
	self->seed ^= self->seed << 13;
	self->seed ^= self->seed >> 17;
	self->seed ^= self->seed << 5;

	return self->seed % limit;
}

/* Not two rnd() in one call: their order would be the compiler's choice. */
static struct slot *rnd_slot(FIXTURE_DATA(stress) *self,
			     struct work *work, u32 *process)
{
	*process = rnd(self, NR_PROCESSES);
	work->window = rnd(self, NR_WINDOWS);
	work->page = rnd(self, WINDOW_PAGES);
	work->nr = rnd(self, WINDOW_PAGES - work->page) + 1;

	return &self->slots[*process][work->window][work->page];
}

static struct buffer **rnd_buffer(FIXTURE_DATA(stress) *self)
{
	struct buffer **buffer = &self->buffers[rnd(self, MAX_BUFFERS)];

	return *buffer ? buffer : NULL;
}

static bool is_usable(FIXTURE_DATA(stress) *self, struct buffer *buffer)
{
	return !buffer->revoked && buffer->opening == self->opening;
}

/* Print what is wrong. Always false */
#define WRONG(_fmt, ...) ({							\
	fprintf(stderr, "# step %u: " _fmt "\n", self->step, ##__VA_ARGS__);	\
	false;									\
})

static bool check_slot(FIXTURE_DATA(stress) *self, u32 process,
		       u32 window, u32 page, int sig, u32 val)
{
	struct slot *slot = &self->slots[process][window][page];
	const char *what = slot->buffer ? "buffer" : "BAR";
	int expected = 0;

	if (!slot->number) {
		what = "nothing";
		expected = SIGSEGV;
	} else if (!self->memory_on ||
		   (slot->buffer && !is_usable(self, slot->buffer))) {
		expected = SIGBUS;
	}

	if (sig != expected)
		return WRONG("process %u window %u page %u (%s): signal %d, not %d",
			     process, window, page, what, sig, expected);
	if (!sig && val != self->vals[slot->bar_page])
		return WRONG("process %u window %u page %u (%s): %#x, BAR page %u holds %#x",
			     process, window, page, what, val, slot->bar_page,
			     self->vals[slot->bar_page]);
	return true;
}

static bool check_window(FIXTURE_DATA(stress) *self, u32 process,
			 u32 window, enum op op)
{
	struct work work = { .op = op, .window = window };
	u32 i;

	if (tell(self, process, &work, -1))
		return WRONG("process %u: touch failed: %d", process, work.ret);

	for (i = 0; i < WINDOW_PAGES; i++) {
		if (!check_slot(self, process, window, i, work.sigs[i],
				work.vals[i]))
			return false;
	}
	return true;
}

static bool check_all(FIXTURE_DATA(stress) *self)
{
	u32 i;

	for (i = 0; i < NR_PROCESSES * NR_WINDOWS; i++) {
		if (!check_window(self, i / NR_WINDOWS, i % NR_WINDOWS,
				  OP_TOUCH))
			return false;
	}
	return true;
}

static bool step_touch(FIXTURE_DATA(stress) *self)
{
	enum op op = rnd(self, 9) ? OP_TOUCH : OP_FORK_TOUCH;
	struct work work;
	u32 process;

	rnd_slot(self, &work, &process);
	return check_window(self, process, work.window, op);
}

static bool step_write(FIXTURE_DATA(stress) *self)
{
	struct work work = { .op = OP_WRITE };
	struct slot *slot;
	u32 process;

	slot = rnd_slot(self, &work, &process);
	work.val = rnd(self, UINT32_MAX);
	if (!tell(self, process, &work, -1) && slot->number)
		self->vals[slot->bar_page] = work.val;

	return check_slot(self, process, work.window, work.page, work.ret,
			  work.val);
}

/* To the model the memory type is all the same. */
static bool step_export(FIXTURE_DATA(stress) *self)
{
	struct vfio_region_dma_range ranges[MAX_RANGES];
	u32 slot = rnd(self, MAX_BUFFERS);
	u32 nr = rnd(self, MAX_RANGES) + 1;
	int fd = -EOPNOTSUPP;
	struct buffer *buffer;
	u32 i, j;

	if (self->buffers[slot])
		return true;

	buffer = calloc_assert(1, sizeof(*buffer));
	for (i = 0; i < nr; i++) {
		u32 pages = rnd(self, MAX_RANGE_PAGES) + 1;
		u32 first = rnd(self, BAR_PAGES - pages);

		ranges[i].offset = first * page_size;
		ranges[i].length = pages * page_size;
		for (j = 0; j < pages; j++)
			buffer->bar_page[buffer->nr++] = first + j;
	}
	if (!rnd(self, 3))
		fd = __vfio_pci_dmabuf_export(self->device, self->bar,
					      O_RDWR | O_CLOEXEC,
					      VFIO_DEVICE_FEATURE_DMA_BUF_ATTR_WC,
					      ranges, nr);
	if (fd == -EOPNOTSUPP)
		fd = vfio_pci_dmabuf_export(self->device, self->bar, ranges, nr);
	VFIO_ASSERT_GE(fd, 0);

	buffer->fd = fd;
	buffer->opening = self->opening;
	self->buffers[slot] = buffer;
	return true;
}

static bool step_close(FIXTURE_DATA(stress) *self)
{
	struct buffer **buffer = rnd_buffer(self);

	if (buffer) {
		close_assert((*buffer)->fd);
		*buffer = NULL;
	}
	return true;
}

static bool step_revoke(FIXTURE_DATA(stress) *self)
{
	struct buffer **buffer = rnd_buffer(self);
	int ret, expected = 0;

	if (!buffer)
		return true;

	if ((*buffer)->opening != self->opening)
		expected = -ENODEV;
	else if ((*buffer)->revoked)
		expected = -EBADFD;

	ret = __vfio_pci_dmabuf_revoke(self->device, (*buffer)->fd);
	if (ret != expected)
		return WRONG("revoke: %d, not %d", ret, expected);
	if (!ret)
		(*buffer)->revoked = true;
	return check_all(self);
}

/* Of a buffer, or of the BAR */
static bool step_mmap(FIXTURE_DATA(stress) *self)
{
	struct buffer *buffer = self->buffers[rnd(self, MAX_BUFFERS)];
	struct work work = { .op = OP_MMAP };
	bool bar = !rnd(self, 9);
	int fd, expected = 0;
	u32 process, first, i;
	struct slot *slots;

	slots = rnd_slot(self, &work, &process);
	if (bar) {
		buffer = NULL;
		fd = self->device->fd;
		first = rnd(self, BAR_PAGES - work.nr);
		work.offset = self->bar_offset;
	} else if (buffer) {
		fd = buffer->fd;
		first = rnd(self, buffer->nr);
		if (first + work.nr > buffer->nr && rnd(self, 4))
			work.nr = buffer->nr - first;
		if (first + work.nr > buffer->nr)
			expected = -EINVAL;
		else if (!is_usable(self, buffer))
			expected = -ENODEV;
	} else {
		return true;
	}
	work.offset += first * page_size;

	if (tell(self, process, &work, fd) != expected)
		return WRONG("mmap: %d, not %d", work.ret, expected);
	for (i = 0; i < work.nr && !expected; i++) {
		slots[i].number = self->next_number++;
		slots[i].buffer = buffer;
		slots[i].bar_page = buffer ? buffer->bar_page[first + i] :
					     first + i;
	}
	/* Not consecutive to the next mapping */
	self->next_number++;
	return true;
}

static void unmap(FIXTURE_DATA(stress) *self, u32 process,
		  struct work *work)
{
	work->op = OP_MUNMAP;
	tell(self, process, work, -1);
	memset(&self->slots[process][work->window][work->page], 0,
	       work->nr * sizeof(struct slot));
}

static bool step_munmap(FIXTURE_DATA(stress) *self)
{
	struct work work = {};
	u32 process;

	rnd_slot(self, &work, &process);
	unmap(self, process, &work);
	return true;
}

/* Only what is one mapping can be moved at once, and not onto itself. */
static bool step_mremap(FIXTURE_DATA(stress) *self)
{
	struct work work = { .op = OP_MREMAP };
	struct slot *slots, *to;
	u32 process, i;

	slots = rnd_slot(self, &work, &process);
	for (i = 0; i < work.nr; i++) {
		if (!slots[i].number || slots[i].number != slots[0].number + i)
			break;
	}
	work.nr = i;
	work.to_window = (work.window + 1) % NR_WINDOWS;
	work.to_page = rnd(self, WINDOW_PAGES);
	if (!work.nr || work.to_page + work.nr > WINDOW_PAGES)
		return true;

	if (tell(self, process, &work, -1))
		return WRONG("mremap: %d", work.ret);
	to = &self->slots[process][work.to_window][work.to_page];
	memcpy(to, slots, work.nr * sizeof(*slots));
	memset(slots, 0, work.nr * sizeof(*slots));
	return true;
}

static bool step_memory(FIXTURE_DATA(stress) *self)
{
	self->memory_on = !self->memory_on;
	if (self->memory_on)
		vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	else
		vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	return check_all(self);
}

static bool step_low_power(FIXTURE_DATA(stress) *self)
{
	bool memory_on = self->memory_on;
	bool right;

	if (!self->has_low_power)
		return true;

	if (__vfio_pci_low_power_entry(self->device))
		return WRONG("low power entry");
	self->memory_on = false;
	right = check_all(self);
	if (__vfio_pci_low_power_exit(self->device))
		return WRONG("low power exit");
	self->memory_on = memory_on;
	return right && check_all(self);
}

static bool step_reset(FIXTURE_DATA(stress) *self)
{
	if (self->device->info.flags & VFIO_DEVICE_FLAGS_RESET)
		vfio_pci_device_reset(self->device);
	return check_all(self);
}

static bool step_o_path(FIXTURE_DATA(stress) *self)
{
	int *o_path = &self->o_paths[rnd(self, MAX_O_PATHS)];
	struct buffer **buffer = rnd_buffer(self);

	if (*o_path >= 0) {
		close_assert(*o_path);
		*o_path = -1;
	} else if (buffer) {
		*o_path = open_o_path((*buffer)->fd);
	}
	return true;
}

/* A mapping of the BAR would keep the device open. */
static bool step_reopen(FIXTURE_DATA(stress) *self)
{
	struct work work = { .nr = 1 };
	struct slot *slot;
	u32 process, i;

	for (process = 0; process < NR_PROCESSES; process++) {
		for (i = 0; i < NR_WINDOWS * WINDOW_PAGES; i++) {
			work.window = i / WINDOW_PAGES;
			work.page = i % WINDOW_PAGES;
			slot = &self->slots[process][work.window][work.page];
			if (slot->number && !slot->buffer)
				unmap(self, process, &work);
		}
	}

	dmabuf_test_close(&self->device);
	self->opening++;
	if (!check_all(self))
		return false;

	dmabuf_test_reopen(self->iommu, &self->device);
	self->memory_on = true;
	return check_all(self);
}

/* Some steps take a thousand times as long as others. */
static const struct {
	bool (*step)(FIXTURE_DATA(stress) *self);
	u32 weight;
} steps[] = {
	{ step_touch, 450 },
	{ step_write, 200 },
	{ step_export, 200 },
	{ step_close, 60 },
	{ step_revoke, 60 },
	{ step_mmap, 560 },
	{ step_munmap, 200 },
	{ step_mremap, 150 },
	{ step_memory, 80 },
	{ step_o_path, 80 },
	{ step_low_power, 4 },
	{ step_reset, 2 },
	{ step_reopen, 2 },
};

static bool step(FIXTURE_DATA(stress) *self)
{
	u32 total = 0;
	u32 i, n;

	for (i = 0; i < ARRAY_SIZE(steps); i++)
		total += steps[i].weight;
	n = rnd(self, total);
	for (i = 0; n >= steps[i].weight; i++)
		n -= steps[i].weight;

	return steps[i].step(self);
}

FIXTURE_SETUP(stress)
{
	u32 i;

	for (i = 0; i < NR_WINDOWS; i++) {
		windows[i] = mmap_reserve(WINDOW_PAGES * page_size, page_size, 0);
		fill_with_nothing(windows[i], WINDOW_PAGES * page_size);
	}
	forked_work = mmap(NULL, sizeof(*forked_work), PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, forked_work);

	/* Before there is anything that must not be inherited */
	for (i = 1; i < NR_PROCESSES; i++)
		self->clients[i] = vfio_client_start();
	for (i = 0; i < MAX_O_PATHS; i++)
		self->o_paths[i] = -1;

	DMABUF_SETUP(self, true, BAR_PAGES * page_size);

	if (!__vfio_pci_low_power_entry(self->device)) {
		self->has_low_power = true;
		ASSERT_EQ(0, __vfio_pci_low_power_exit(self->device));
	}

	self->memory_on = true;
	self->next_number = 1;
	touch_fill(self->device->bars[self->bar].vaddr, BAR_PAGES * page_size);
	for (i = 0; i < BAR_PAGES; i++)
		self->vals[i] = touch_pattern(i);
}

FIXTURE_TEARDOWN(stress)
{
	u32 i;

	for (i = 1; i < NR_PROCESSES; i++)
		vfio_client_stop(self->clients[i]);
}

/*
 * No limit: $VFIO_STRESS_STEPS may ask for days. The limit of the program is that in
 * "settings", "vmtest.sh -t SECS" or "run_kselftest.sh --override-timeout SECS".
 */
TEST_F_TIMEOUT(stress, random_steps, INT32_MAX)
{
	u32 nr_steps = getenv_u32("VFIO_STRESS_STEPS", 3000);
	u32 seed = 0;

	ASSERT_EQ(sizeof(seed), getrandom(&seed, sizeof(seed), 0));
	seed = getenv_u32("VFIO_STRESS_SEED", seed) ?: 1;
	TH_LOG("%u steps, VFIO_STRESS_SEED=%u", nr_steps, seed);

	self->seed = seed;
	for (self->step = 0; self->step < nr_steps; self->step++) {
		ASSERT_TRUE(step(self)) {
			TH_LOG("Failed with VFIO_STRESS_SEED=%u", seed);
		}
	}

	ASSERT_TRUE(check_all(self));
}

int main(int argc, char *argv[])
{
	dmabuf_test_init(&argc, argv);
	return test_harness_run(argc, argv);
}
