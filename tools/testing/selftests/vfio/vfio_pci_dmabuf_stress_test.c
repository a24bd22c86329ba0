// SPDX-License-Identifier: GPL-2.0-only
/*
 * Random steps by the owner and user of DMABUFs, against a model of what may
 * be accessed. It does one thing at a time, so a failure can be repeated with
 * its seed. vfio_pci_dmabuf_race_test has threads and processes that race.
 *
 * The mappings are in a window, a range of the address space. The model knows
 * for every page of it what is mapped there; what a touch of the page returns
 * must follow from that, from the state of the buffer and of the device.
 *
 * $VFIO_STRESS_SEED repeats a run; $VFIO_STRESS_STEPS says how long it is.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/random.h>

#include <linux/kernel.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>

#include "kselftest_harness.h"

#include <libvfio/dmabuf_test.h>

#define WINDOW_PAGES	256
#define MAX_PAGES	24	/* that are mapped or moved at once */
#define BAR_PAGES	64	/* that are used of the BAR */
#define MAX_RANGES	4
#define MAX_RANGE_PAGES	8
#define MAX_BUFFERS	8	/* with an open fd at the same time */

struct buffer {
	int fd;
	bool revoked;
	/* Which opening of the device it is of */
	u32 opening;
	u32 nr;
	u32 bar_page[MAX_RANGES * MAX_RANGE_PAGES];
};

/* A page of the window: nothing, a BAR or a buffer is mapped there */
struct slot {
	/* 0 for nothing. The pages of one mapping have consecutive numbers. */
	u64 number;
	struct buffer *buffer;
	u32 bar_page;
};

FIXTURE(stress) {
	DMABUF_FIXTURE;
	u32 seed;
	u32 step;
	void *window;
	/* The model */
	struct slot slots[WINDOW_PAGES];
	u64 next_number;
	bool memory_on;
	u32 opening;
	u32 vals[BAR_PAGES];
	/* Slots point to those that were closed, too: none is ever freed. */
	struct buffer *buffers[MAX_BUFFERS];
	int o_path;
};

static void move(void *from, void *to, size_t size)
{
	VFIO_ASSERT_EQ(mremap(from, size, size, MREMAP_MAYMOVE | MREMAP_FIXED,
			      to), to);
}

static void *page_addr(FIXTURE_DATA(stress) *self, struct slot *slot)
{
	return self->window + (slot - self->slots) * page_size;
}

static void unmap(FIXTURE_DATA(stress) *self, struct slot *slots, u32 nr)
{
	void *vaddr = page_addr(self, slots);

	VFIO_ASSERT_EQ(mmap(vaddr, nr * page_size, PROT_NONE, MAP_PRIVATE |
			    MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0),
		       vaddr);
	memset(slots, 0, nr * sizeof(*slots));
}

static u32 rnd(FIXTURE_DATA(stress) *self, u32 limit)
{
	/* xorshift: the same on any machine and with any libc */
	self->seed ^= self->seed << 13;
	self->seed ^= self->seed >> 17;
	self->seed ^= self->seed << 5;

	return self->seed % limit;
}

/* The first of @nr pages */
static struct slot *rnd_slots(FIXTURE_DATA(stress) *self, u32 *nr)
{
	*nr = rnd(self, MAX_PAGES) + 1;

	return &self->slots[rnd(self, WINDOW_PAGES - *nr)];
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

static bool check_access(FIXTURE_DATA(stress) *self, struct slot *slot, int sig,
			 u32 val)
{
	u32 page = slot - self->slots;
	int expected = 0;

	if (!slot->number)
		expected = SIGSEGV;
	else if (!self->memory_on ||
		 (slot->buffer && !is_usable(self, slot->buffer)))
		expected = SIGBUS;

	if (sig != expected)
		return WRONG("page %u: signal %d, not %d", page, sig, expected);
	if (!sig && val != self->vals[slot->bar_page])
		return WRONG("page %u: %#x, page %u of the BAR holds %#x", page,
			     val, slot->bar_page, self->vals[slot->bar_page]);
	return true;
}

static bool check_all(FIXTURE_DATA(stress) *self)
{
	u32 i, val = 0;
	int sig;

	for (i = 0; i < WINDOW_PAGES; i++) {
		sig = try_read32(self->window + i * page_size, &val);
		if (!check_access(self, &self->slots[i], sig, val))
			return false;
	}
	return true;
}

static bool step_write(FIXTURE_DATA(stress) *self)
{
	u32 nr, val = rnd(self, UINT32_MAX);
	struct slot *slot = rnd_slots(self, &nr);
	int sig = try_write32(page_addr(self, slot), val);

	if (!sig && slot->number)
		self->vals[slot->bar_page] = val;
	return check_access(self, slot, sig, val);
}

/* The model ignores the memory type. */
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

/* An O_PATH descriptor keeps the last buffer that was closed. */
static bool step_close(FIXTURE_DATA(stress) *self)
{
	struct buffer **buffer = rnd_buffer(self);

	if (buffer) {
		close(self->o_path);
		self->o_path = open_o_path((*buffer)->fd);
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

/* Of a buffer, or of the BAR; not in place, as a failure would leave a hole. */
static bool step_mmap(FIXTURE_DATA(stress) *self)
{
	struct buffer *buffer = self->buffers[rnd(self, MAX_BUFFERS)];
	bool bar = !rnd(self, 9);
	int fd, ret, expected = 0;
	struct slot *slots;
	u32 nr, first, i;
	u64 offset = 0;
	void *vaddr;

	slots = rnd_slots(self, &nr);
	if (bar) {
		buffer = NULL;
		fd = self->device->fd;
		first = rnd(self, BAR_PAGES - nr);
		offset = self->bar_offset;
	} else if (buffer) {
		fd = buffer->fd;
		first = rnd(self, buffer->nr);
		if (first + nr > buffer->nr && rnd(self, 4))
			nr = buffer->nr - first;
		if (first + nr > buffer->nr)
			expected = -EINVAL;
		else if (!is_usable(self, buffer))
			expected = -ENODEV;
	} else {
		return true;
	}

	ret = __mmap_shared(fd, offset + first * page_size, nr * page_size,
			    PROT_READ | PROT_WRITE, &vaddr);
	if (ret != expected)
		return WRONG("mmap: %d, not %d", ret, expected);
	if (ret)
		return true;

	move(vaddr, page_addr(self, slots), nr * page_size);
	for (i = 0; i < nr; i++) {
		slots[i].number = self->next_number++;
		slots[i].buffer = buffer;
		slots[i].bar_page = buffer ? buffer->bar_page[first + i] :
					     first + i;
	}
	/* Not consecutive to the next mapping */
	self->next_number++;
	return true;
}

static bool step_munmap(FIXTURE_DATA(stress) *self)
{
	struct slot *slots;
	u32 nr;

	slots = rnd_slots(self, &nr);
	unmap(self, slots, nr);
	return true;
}

/* Only pages of one mapping can be moved at once, and not onto themselves. */
static bool step_mremap(FIXTURE_DATA(stress) *self)
{
	struct slot *slots, *to;
	u32 nr, i;

	slots = rnd_slots(self, &nr);
	to = &self->slots[rnd(self, WINDOW_PAGES - nr)];
	for (i = 0; i < nr; i++) {
		if (!slots[i].number || slots[i].number != slots[0].number + i)
			break;
	}
	if (!i || (slots < to + i && to < slots + i))
		return true;

	move(page_addr(self, slots), page_addr(self, to), i * page_size);
	memcpy(to, slots, i * sizeof(*slots));
	unmap(self, slots, i);
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

static bool step_reset(FIXTURE_DATA(stress) *self)
{
	if (self->device->info.flags & VFIO_DEVICE_FLAGS_RESET)
		vfio_pci_device_reset(self->device);
	return check_all(self);
}

/* A mapping of the BAR would keep the device open. */
static bool step_reopen(FIXTURE_DATA(stress) *self)
{
	u32 i;

	for (i = 0; i < WINDOW_PAGES; i++) {
		if (self->slots[i].number && !self->slots[i].buffer)
			unmap(self, &self->slots[i], 1);
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
	{ check_all, 250 },
	{ step_write, 200 },
	{ step_export, 200 },
	{ step_close, 60 },
	{ step_revoke, 60 },
	{ step_mmap, 560 },
	{ step_munmap, 200 },
	{ step_mremap, 150 },
	{ step_memory, 80 },
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

	DMABUF_SETUP(self, true, BAR_PAGES * page_size);

	self->window = mmap_reserve(WINDOW_PAGES * page_size, page_size, 0);
	self->o_path = -1;
	self->memory_on = true;
	self->next_number = 1;
	touch_fill(self->device->bars[self->bar].vaddr, BAR_PAGES * page_size);
	for (i = 0; i < BAR_PAGES; i++)
		self->vals[i] = touch_pattern(i);
}

FIXTURE_TEARDOWN(stress)
{
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
