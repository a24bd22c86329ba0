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
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/random.h>
#include <sys/wait.h>

#include <linux/compiler.h>
#include <linux/kernel.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>

#include <libvfio/dmabuf_test.h>

#include "kselftest_harness.h"

#define NR_PROCESSES	4	/* with the owner, which is the first */
#define NR_WINDOWS	3	/* of each process */
#define WINDOW_PAGES	24
#define BAR_PAGES	64	/* that are used of the BAR */
#define MAX_RANGES	4
#define MAX_RANGE_PAGES	8
#define MAX_BUFFERS	8	/* with an open fd at the same time */
#define MAX_O_PATHS	4

/* What a process is told to do, and what came of it */
enum op {
	OP_MMAP,
	OP_MUNMAP,
	OP_MREMAP,
	OP_TOUCH,
	OP_FORK_TOUCH,
	OP_WRITE,
};

struct command {
	enum op op;
	u32 window;
	u32 page;
	u32 nr;
	u64 offset;
	u32 to_window;
	u32 to_page;
	u32 val;
};

struct answer {
	int ret;
	int sig[WINDOW_PAGES];
	u32 val[WINDOW_PAGES];
};

struct process {
	struct vfio_client *client;
	void *windows[NR_WINDOWS];
	struct answer *shared;
};

/* The model */

enum buffer_state {
	BUFFER_USABLE,
	BUFFER_DEAD,	/* permanently revoked */
	BUFFER_LEFT,	/* its device was closed */
};

struct buffer {
	int fd;		/* -1 when closed: what is mapped stays */
	enum buffer_state state;
	u32 nr;
	u32 bar_page[MAX_RANGES * MAX_RANGE_PAGES];
};

/* What is mapped at a page of a window: nothing, a BAR or a buffer */
struct slot {
	bool mapped;
	struct buffer *buffer;
	u32 bar_page;
	/* Those of one mapping, in its order, have the same one */
	u32 mapping;
	u32 index;
};

FIXTURE(dmabuf_stress) {
	DMABUF_FIXTURE;
	bool has_low_power;
	u32 seed;
	u32 step;

	struct process processes[NR_PROCESSES];
	struct slot slots[NR_PROCESSES][NR_WINDOWS][WINDOW_PAGES];
	u32 nr_mappings;
	bool memory_on;
	u32 vals[BAR_PAGES];
	struct buffer *buffers[MAX_BUFFERS];
	/* All there ever were: slots point to them */
	struct buffer **all;
	u32 nr_all;
	int o_paths[MAX_O_PATHS];
};

/* The side of a process */

static int fill_with_nothing(void *vaddr, u32 nr)
{
	void *ret = mmap(vaddr, nr * page_size, PROT_NONE, MAP_PRIVATE |
			 MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);

	VFIO_ASSERT_EQ(ret, vaddr);
	return 0;
}

/* A mapping that fails must not make a hole, so it is not made in place. */
static int do_mmap(void *vaddr, const struct command *cmd, int fd)
{
	size_t size = cmd->nr * page_size;
	void *new, *ret;

	new = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
		   cmd->offset);
	if (new == MAP_FAILED)
		return -errno;

	ret = mremap(new, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, vaddr);
	return ret == vaddr ? 0 : -errno;
}

static int do_mremap(struct process *process, const struct command *cmd)
{
	void *from = process->windows[cmd->window] + cmd->page * page_size;
	void *to = process->windows[cmd->to_window] + cmd->to_page * page_size;
	size_t size = cmd->nr * page_size;

	if (mremap(from, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to)
		return -errno;

	return fill_with_nothing(from, cmd->nr);
}

static int do_touch(void *window, struct answer *answer)
{
	int i;

	for (i = 0; i < WINDOW_PAGES; i++)
		answer->sig[i] = try_read32(window + i * page_size,
					    &answer->val[i]);
	return 0;
}

static int do_fork_touch(struct process *process, void *window,
			 struct answer *answer)
{
	pid_t pid = fork();
	int status;

	VFIO_ASSERT_GE(pid, 0);
	if (!pid)
		_exit(do_touch(window, process->shared));

	VFIO_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	memcpy(answer, process->shared, sizeof(*answer));
	return status;
}

static void process_do(struct process *process, const struct command *cmd,
		       int fd, struct answer *answer)
{
	void *window = process->windows[cmd->window];
	void *vaddr = window + cmd->page * page_size;

	memset(answer, 0, sizeof(*answer));
	switch (cmd->op) {
	case OP_MMAP:
		answer->ret = do_mmap(vaddr, cmd, fd);
		break;
	case OP_MUNMAP:
		answer->ret = fill_with_nothing(vaddr, cmd->nr);
		break;
	case OP_MREMAP:
		answer->ret = do_mremap(process, cmd);
		break;
	case OP_TOUCH:
		answer->ret = do_touch(window, answer);
		break;
	case OP_FORK_TOUCH:
		answer->ret = do_fork_touch(process, window, answer);
		break;
	case OP_WRITE:
		answer->ret = try_write32(vaddr, cmd->val);
		break;
	}
}

/* One call of a process */
struct work {
	struct process *process;
	struct command cmd;
	struct answer answer;
};

static int process_work(void *data, const int *fds)
{
	struct work *work = data;

	process_do(work->process, &work->cmd, fds[0], &work->answer);
	return 0;
}

/* A child process, except for the first one, which is the caller */
static void process_start(struct process *process, bool child)
{
	int i;

	for (i = 0; i < NR_WINDOWS; i++) {
		process->windows[i] = mmap_reserve(WINDOW_PAGES * page_size,
						   page_size, 0);
		fill_with_nothing(process->windows[i], WINDOW_PAGES);
	}
	process->shared = mmap(NULL, sizeof(*process->shared),
			       PROT_READ | PROT_WRITE,
			       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	VFIO_ASSERT_NE(process->shared, MAP_FAILED);
	if (child)
		process->client = vfio_client_start();
}

static int tell(struct process *process, const struct command *cmd, int fd,
		struct answer *answer)
{
	struct work work = { .process = process, .cmd = *cmd };

	if (process->client)
		vfio_client_call(process->client, process_work, &work,
				 sizeof(work), &fd, fd >= 0);
	else
		process_work(&work, &fd);

	*answer = work.answer;
	return answer->ret;
}

/* The side of the owner */

static u32 rnd(FIXTURE_DATA(dmabuf_stress) *self, u32 limit)
{
	/* xorshift: the same on any machine and with any libc */
	self->seed ^= self->seed << 13;
	self->seed ^= self->seed >> 17;
	self->seed ^= self->seed << 5;

	return self->seed % limit;
}

static struct slot *rnd_slot(FIXTURE_DATA(dmabuf_stress) *self,
			     struct command *cmd, u32 *process)
{
	*process = rnd(self, NR_PROCESSES);
	cmd->window = rnd(self, NR_WINDOWS);
	cmd->page = rnd(self, WINDOW_PAGES);
	cmd->nr = rnd(self, WINDOW_PAGES - cmd->page) + 1;

	return &self->slots[*process][cmd->window][cmd->page];
}

static struct buffer **rnd_buffer(FIXTURE_DATA(dmabuf_stress) *self)
{
	struct buffer **buffer = &self->buffers[rnd(self, MAX_BUFFERS)];

	return *buffer ? buffer : NULL;
}

static bool slot_accessible(FIXTURE_DATA(dmabuf_stress) *self,
			    const struct slot *slot)
{
	if (!slot->mapped || !self->memory_on)
		return false;

	return !slot->buffer || slot->buffer->state == BUFFER_USABLE;
}

/* Print what is wrong. Always false */
static bool __printf(2, 3)
wrong(FIXTURE_DATA(dmabuf_stress) *self, const char *fmt, ...)
{
	va_list args;

	fprintf(stderr, "step %u: ", self->step);
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fputc('\n', stderr);

	return false;
}

static bool check_slot(FIXTURE_DATA(dmabuf_stress) *self, u32 process,
		       u32 window, u32 page, int sig, u32 val)
{
	struct slot *slot = &self->slots[process][window][page];
	int expected = 0;

	if (!slot->mapped)
		expected = SIGSEGV;
	else if (!slot_accessible(self, slot))
		expected = SIGBUS;

	if (sig != expected)
		return wrong(self, "process %u window %u page %u (%s): signal %d, not %d",
			     process, window, page, !slot->mapped ? "nothing" :
			     slot->buffer ? "buffer" : "BAR", sig, expected);
	if (!sig && val != self->vals[slot->bar_page])
		return wrong(self, "process %u window %u page %u: %#x, BAR page %u holds %#x",
			     process, window, page, val, slot->bar_page,
			     self->vals[slot->bar_page]);
	return true;
}

static bool check_window(FIXTURE_DATA(dmabuf_stress) *self, u32 process,
			 u32 window, enum op op)
{
	struct command cmd = { .op = op, .window = window };
	struct answer answer;
	u32 i;

	if (tell(&self->processes[process], &cmd, -1, &answer))
		return wrong(self, "process %u: touch failed: %d", process,
			     answer.ret);

	for (i = 0; i < WINDOW_PAGES; i++) {
		if (!check_slot(self, process, window, i, answer.sig[i],
				answer.val[i]))
			return false;
	}
	return true;
}

static bool check_all(FIXTURE_DATA(dmabuf_stress) *self)
{
	u32 process, window;

	for (process = 0; process < NR_PROCESSES; process++) {
		for (window = 0; window < NR_WINDOWS; window++) {
			if (!check_window(self, process, window, OP_TOUCH))
				return false;
		}
	}
	return true;
}

/* Not two rnd() in one call: their order would be the compiler's choice. */
static bool check_rnd_window(FIXTURE_DATA(dmabuf_stress) *self, enum op op)
{
	u32 process = rnd(self, NR_PROCESSES);
	u32 window = rnd(self, NR_WINDOWS);

	return check_window(self, process, window, op);
}

static bool step_touch(FIXTURE_DATA(dmabuf_stress) *self)
{
	return check_rnd_window(self, OP_TOUCH);
}

static bool step_fork_touch(FIXTURE_DATA(dmabuf_stress) *self)
{
	return check_rnd_window(self, OP_FORK_TOUCH);
}

static bool step_write(FIXTURE_DATA(dmabuf_stress) *self)
{
	struct command cmd = { .op = OP_WRITE };
	struct answer answer;
	struct slot *slot;
	u32 process;
	int sig;

	slot = rnd_slot(self, &cmd, &process);
	cmd.val = rnd(self, UINT32_MAX);
	sig = tell(&self->processes[process], &cmd, -1, &answer);
	if (!sig && slot->mapped)
		self->vals[slot->bar_page] = cmd.val;

	return check_slot(self, process, cmd.window, cmd.page, sig, cmd.val);
}

/* To the model the type is all the same. */
static int export_some_type(FIXTURE_DATA(dmabuf_stress) *self,
			    const struct vfio_region_dma_range *ranges, u32 nr)
{
	int fd = -EOPNOTSUPP;

	if (rnd(self, 3) == 0)
		fd = __vfio_pci_dmabuf_export(self->device, self->bar,
					      O_RDWR | O_CLOEXEC,
					      VFIO_DEVICE_FEATURE_DMA_BUF_ATTR_WC,
					      ranges, nr);
	if (fd == -EOPNOTSUPP)
		fd = vfio_pci_dmabuf_export(self->device, self->bar, ranges,
					    nr);
	VFIO_ASSERT_GE(fd, 0);

	return fd;
}

static bool step_export(FIXTURE_DATA(dmabuf_stress) *self)
{
	struct vfio_region_dma_range ranges[MAX_RANGES];
	u32 slot = rnd(self, MAX_BUFFERS);
	u32 nr = rnd(self, MAX_RANGES) + 1;
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
	buffer->fd = export_some_type(self, ranges, nr);

	self->buffers[slot] = buffer;
	self->all = realloc(self->all, (self->nr_all + 1) * sizeof(buffer));
	VFIO_ASSERT_NOT_NULL(self->all);
	self->all[self->nr_all++] = buffer;
	return true;
}

static bool step_close(FIXTURE_DATA(dmabuf_stress) *self)
{
	struct buffer **buffer = rnd_buffer(self);

	if (buffer) {
		close_assert((*buffer)->fd);
		(*buffer)->fd = -1;
		*buffer = NULL;
	}
	return true;
}

static bool step_revoke(FIXTURE_DATA(dmabuf_stress) *self)
{
	static const int expected[] = {
		[BUFFER_USABLE] = 0,
		[BUFFER_DEAD] = -EBADFD,
		[BUFFER_LEFT] = -ENODEV,
	};
	struct buffer **buffer = rnd_buffer(self);
	int ret;

	if (!buffer)
		return true;

	ret = __vfio_pci_dmabuf_revoke(self->device, (*buffer)->fd);
	if (ret != expected[(*buffer)->state])
		return wrong(self, "revoke: %d, not %d", ret,
			     expected[(*buffer)->state]);
	if (!ret)
		(*buffer)->state = BUFFER_DEAD;
	return check_all(self);
}

static void set_slots(FIXTURE_DATA(dmabuf_stress) *self, struct slot *slots,
		      u32 nr, struct buffer *buffer, u32 first)
{
	u32 mapping = ++self->nr_mappings;
	u32 i;

	for (i = 0; i < nr; i++) {
		slots[i].mapped = true;
		slots[i].buffer = buffer;
		slots[i].bar_page = buffer ? buffer->bar_page[first + i] :
					     first + i;
		slots[i].mapping = mapping;
		slots[i].index = i;
	}
}

static bool step_mmap(FIXTURE_DATA(dmabuf_stress) *self)
{
	struct command cmd = { .op = OP_MMAP };
	struct buffer **buffer = rnd_buffer(self);
	struct answer answer;
	struct slot *slots;
	u32 process, first;
	int expected = 0;

	slots = rnd_slot(self, &cmd, &process);
	if (!buffer)
		return true;

	first = rnd(self, (*buffer)->nr);
	cmd.offset = first * page_size;
	if (first + cmd.nr > (*buffer)->nr && rnd(self, 4))
		cmd.nr = (*buffer)->nr - first;

	if (first + cmd.nr > (*buffer)->nr)
		expected = -EINVAL;
	else if ((*buffer)->state != BUFFER_USABLE)
		expected = -ENODEV;

	tell(&self->processes[process], &cmd, (*buffer)->fd, &answer);
	if (answer.ret != expected)
		return wrong(self, "mmap: %d, not %d", answer.ret, expected);
	if (!expected)
		set_slots(self, slots, cmd.nr, *buffer, first);
	return true;
}

static bool step_mmap_bar(FIXTURE_DATA(dmabuf_stress) *self)
{
	struct command cmd = { .op = OP_MMAP };
	struct answer answer;
	struct slot *slots;
	u32 process, first;

	slots = rnd_slot(self, &cmd, &process);
	first = rnd(self, BAR_PAGES - cmd.nr);
	cmd.offset = vfio_pci_region_offset(self->device, self->bar) +
		     first * page_size;
	tell(&self->processes[process], &cmd, self->device->fd, &answer);
	if (answer.ret)
		return wrong(self, "mmap of the BAR: %d", answer.ret);
	set_slots(self, slots, cmd.nr, NULL, first);
	return true;
}

static void unmap(FIXTURE_DATA(dmabuf_stress) *self, u32 process,
		  const struct command *cmd)
{
	struct answer answer;

	tell(&self->processes[process], cmd, -1, &answer);
	memset(&self->slots[process][cmd->window][cmd->page], 0,
	       cmd->nr * sizeof(struct slot));
}

static bool step_munmap(FIXTURE_DATA(dmabuf_stress) *self)
{
	struct command cmd = { .op = OP_MUNMAP };
	u32 process;

	rnd_slot(self, &cmd, &process);
	unmap(self, process, &cmd);
	return true;
}

/* Only what is one mapping can be moved at once, and not onto itself. */
static bool step_mremap(FIXTURE_DATA(dmabuf_stress) *self)
{
	struct command cmd = { .op = OP_MREMAP };
	struct slot *slots, *to;
	struct answer answer;
	u32 process, i;

	slots = rnd_slot(self, &cmd, &process);
	for (i = 0; i < cmd.nr; i++) {
		if (!slots[i].mapped || slots[i].mapping != slots[0].mapping ||
		    slots[i].index != slots[0].index + i)
			break;
	}
	cmd.nr = i;
	cmd.to_window = (cmd.window + 1) % NR_WINDOWS;
	cmd.to_page = rnd(self, WINDOW_PAGES);
	if (!cmd.nr || cmd.to_page + cmd.nr > WINDOW_PAGES)
		return true;

	tell(&self->processes[process], &cmd, -1, &answer);
	if (answer.ret)
		return wrong(self, "mremap: %d", answer.ret);
	to = &self->slots[process][cmd.to_window][cmd.to_page];
	memcpy(to, slots, cmd.nr * sizeof(*slots));
	memset(slots, 0, cmd.nr * sizeof(*slots));
	return true;
}

static bool step_memory(FIXTURE_DATA(dmabuf_stress) *self)
{
	self->memory_on = !self->memory_on;
	if (self->memory_on)
		vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	else
		vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	return check_all(self);
}

static bool step_low_power(FIXTURE_DATA(dmabuf_stress) *self)
{
	bool memory_on = self->memory_on;
	bool right;

	if (!self->has_low_power)
		return true;

	if (__vfio_pci_low_power_entry(self->device))
		return wrong(self, "low power entry");
	self->memory_on = false;
	right = check_all(self);
	if (__vfio_pci_low_power_exit(self->device))
		return wrong(self, "low power exit");
	self->memory_on = memory_on;
	return right && check_all(self);
}

static bool step_reset(FIXTURE_DATA(dmabuf_stress) *self)
{
	if (self->device->info.flags & VFIO_DEVICE_FLAGS_RESET)
		vfio_pci_device_reset(self->device);
	return check_all(self);
}

static bool step_o_path(FIXTURE_DATA(dmabuf_stress) *self)
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

static bool has_bar_mapping(const struct slot *slots)
{
	u32 i;

	for (i = 0; i < WINDOW_PAGES; i++) {
		if (slots[i].mapped && !slots[i].buffer)
			return true;
	}
	return false;
}

/* A mapping of the BAR would keep the device open. */
static void unmap_bars(FIXTURE_DATA(dmabuf_stress) *self)
{
	struct command cmd = { .op = OP_MUNMAP, .nr = WINDOW_PAGES };
	u32 process;

	for (process = 0; process < NR_PROCESSES; process++) {
		for (cmd.window = 0; cmd.window < NR_WINDOWS; cmd.window++) {
			if (has_bar_mapping(self->slots[process][cmd.window]))
				unmap(self, process, &cmd);
		}
	}
}

static bool step_reopen(FIXTURE_DATA(dmabuf_stress) *self)
{
	u32 i;

	unmap_bars(self);
	dmabuf_test_close(&self->device);
	for (i = 0; i < self->nr_all; i++)
		self->all[i]->state = BUFFER_LEFT;
	if (!check_all(self))
		return false;

	dmabuf_test_reopen(self->iommu, &self->device);
	self->memory_on = true;
	return check_all(self);
}

/* Some steps take a thousand times as long as others. */
static const struct {
	bool (*step)(FIXTURE_DATA(dmabuf_stress) *self);
	u32 weight;
} steps[] = {
	{ step_touch, 400 },
	{ step_fork_touch, 50 },
	{ step_write, 200 },
	{ step_export, 200 },
	{ step_close, 60 },
	{ step_revoke, 60 },
	{ step_mmap, 500 },
	{ step_mmap_bar, 60 },
	{ step_munmap, 200 },
	{ step_mremap, 150 },
	{ step_memory, 80 },
	{ step_o_path, 80 },
	{ step_low_power, 4 },
	{ step_reset, 2 },
	{ step_reopen, 2 },
};

static bool step(FIXTURE_DATA(dmabuf_stress) *self)
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

FIXTURE_SETUP(dmabuf_stress)
{
	u32 i;

	/* Before there is anything that must not be inherited */
	for (i = 0; i < NR_PROCESSES; i++)
		process_start(&self->processes[i], i);
	for (i = 0; i < MAX_O_PATHS; i++)
		self->o_paths[i] = -1;

	DMABUF_SETUP(self, true, BAR_PAGES * page_size);

	if (!__vfio_pci_low_power_entry(self->device)) {
		self->has_low_power = true;
		ASSERT_EQ(0, __vfio_pci_low_power_exit(self->device));
	}

	self->memory_on = true;
	touch_fill(self->device->bars[self->bar].vaddr, BAR_PAGES * page_size);
	for (i = 0; i < BAR_PAGES; i++)
		self->vals[i] = touch_pattern(i);
}

FIXTURE_TEARDOWN(dmabuf_stress)
{
	u32 i;

	for (i = 1; i < NR_PROCESSES; i++)
		vfio_client_stop(self->processes[i].client);
}

/*
 * No limit: $VFIO_STRESS_STEPS may ask for days. The limit of the program is that in
 * "settings", "vmtest.sh -t SECS" or "run_kselftest.sh --override-timeout SECS".
 */
TEST_F_TIMEOUT(dmabuf_stress, random_steps, INT32_MAX)
{
	u32 nr_steps = getenv_u32("VFIO_STRESS_STEPS", 3000);
	u32 seed = 0;

	ASSERT_EQ(sizeof(seed), getrandom(&seed, sizeof(seed), 0));
	seed = getenv_u32("VFIO_STRESS_SEED", seed) ?: 1;
	TH_LOG("%u steps, VFIO_STRESS_SEED=%u", nr_steps, seed);

	self->seed = seed;
	for (self->step = 0; self->step < nr_steps; self->step++) {
		ASSERT_TRUE(step(self))
			TH_LOG("Failed with VFIO_STRESS_SEED=%u", seed);
	}

	ASSERT_TRUE(check_all(self));
}

int main(int argc, char *argv[])
{
	dmabuf_test_init(&argc, argv);
	return test_harness_run(argc, argv);
}
