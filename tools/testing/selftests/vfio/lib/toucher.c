// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <linux/compiler.h>
#include <linux/types.h>

#include "../../../kselftest.h"
#include <libvfio.h>

struct touch_state *touch_state_alloc(void)
{
	void *state = mmap(NULL, getpagesize(), PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	VFIO_ASSERT_NE(state, MAP_FAILED);
	return state;
}

void touch_set_phase(struct touch_state *state, enum touch_phase phase)
{
	u32 seq = state->seq;

	do {
		seq++;
	} while (seq % TOUCH_NR_PHASES != phase);

	__atomic_store_n(&state->seq, seq, __ATOMIC_SEQ_CST);
}

static u32 touch_get_seq(struct touch_state *state)
{
	return __atomic_load_n(&state->seq, __ATOMIC_SEQ_CST);
}

enum touch_phase touch_get_phase(struct touch_state *state)
{
	return touch_get_seq(state) % TOUCH_NR_PHASES;
}

/* Neither zero nor all ones, nor alike for neighbours. */
u32 touch_pattern(u32 page)
{
	return (page + 1) * 0x9e3779b1u | 1u << 31 | 1u;
}

void touch_fill(void *bar, size_t size)
{
	size_t page_size = getpagesize();
	u32 page;

	for (page = 0; page < size / page_size; page++)
		WRITE_ONCE(*(u32 *)(bar + page * page_size),
			   touch_pattern(page));
}

static bool touch_is_right(struct touch_state *state, enum touch_phase phase,
			   int sig, u32 val, u32 page)
{
	if (sig && sig != SIGBUS && !(sig == SIGSEGV && state->segv_allowed))
		return false;
	if (sig && state->never_refused)
		return false;

	switch (phase) {
	case TOUCH_ON:
		if (sig)
			return sig == SIGSEGV;
		break;
	case TOUCH_OFF:
		return sig;
	default:
		if (sig || (val == UINT32_MAX && state->ones_allowed))
			return true;
		break;
	}

	return val == touch_pattern(page + state->first_page);
}

void touch_page(struct touch_state *state, const void *vaddr, u32 page)
{
	u32 seq = touch_get_seq(state);
	enum touch_phase phase = seq % TOUCH_NR_PHASES;
	u32 val = 0;
	int sig;

	sig = try_read32(vaddr + (size_t)page * getpagesize(), &val);
	__atomic_add_fetch(sig ? &state->nr_refused : &state->nr_done, 1,
			   __ATOMIC_RELAXED);

	/* Otherwise the CPU may read the phase before the access is done. */
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	if (touch_get_seq(state) != seq ||
	    touch_is_right(state, phase, sig, val, page))
		return;

	if (__atomic_fetch_add(&state->nr_wrong, 1, __ATOMIC_RELAXED))
		return;

	state->wrong_phase = phase;
	state->wrong_sig = sig;
	state->wrong_val = val;
	state->wrong_page = page;
}

void touch_pages(struct touch_state *state, const void *vaddr, size_t size)
{
	u32 page;

	for (page = 0; page < size / getpagesize(); page++)
		touch_page(state, vaddr, page);
}

static void toucher_round(struct toucher *toucher, bool last)
{
	u32 nr_pages = toucher->size / getpagesize();
	u32 i;

	for (i = 0; i < nr_pages; i++) {
		if (!last && READ_ONCE(toucher->state->stop))
			return;
		touch_page(toucher->state, toucher->vaddr,
			   toucher->backwards ? nr_pages - 1 - i : i);
	}
}

static void *toucher_main(void *arg)
{
	struct toucher *toucher = arg;

	while (!READ_ONCE(toucher->state->stop))
		toucher_round(toucher, false);
	toucher_round(toucher, true);

	return NULL;
}

/* The child must not hold anything that the parent may want to close. */
static void toucher_fork(struct toucher *toucher)
{
	u32 *nr_forked = &toucher->state->nr_forked;
	u32 nr = READ_ONCE(*nr_forked);

	toucher->pid = fork();
	VFIO_ASSERT_GE(toucher->pid, 0);

	if (!toucher->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		VFIO_ASSERT_EQ(close_range(STDERR_FILENO + 1, ~0U, 0), 0);
		WRITE_ONCE(*nr_forked, nr + 1);
		toucher_main(toucher);
		_exit(0);
	}

	while (READ_ONCE(*nr_forked) == nr)
		sched_yield();
}

void toucher_start(struct toucher *toucher, struct touch_state *state,
		   void *vaddr, size_t size, bool process)
{
	toucher->state = state;
	toucher->vaddr = vaddr;
	toucher->size = size;
	toucher->pid = 0;

	if (!process) {
		VFIO_ASSERT_EQ(pthread_create(&toucher->thread, NULL,
					      toucher_main, toucher), 0);
		return;
	}

	toucher_fork(toucher);
}

void toucher_join(struct toucher *toucher)
{
	int status;

	if (!toucher->pid) {
		VFIO_ASSERT_EQ(pthread_join(toucher->thread, NULL), 0);
		return;
	}

	VFIO_ASSERT_EQ(waitpid(toucher->pid, &status, 0), toucher->pid);
	VFIO_ASSERT_EQ(status, 0, "A touching process died\n");
}

bool touch_all_right(struct touch_state *state)
{
	static const char * const phases[] = {
		"there was access", "access went away", "access was gone",
		"access came back",
	};

	if (!state->nr_wrong)
		return true;

	fprintf(stderr, "%u wrong accesses; the first, while %s: page %u: ",
		state->nr_wrong, phases[state->wrong_phase], state->wrong_page);
	if (state->wrong_sig)
		fprintf(stderr, "signal %d\n", state->wrong_sig);
	else
		fprintf(stderr, "%#x, pattern %#x\n", state->wrong_val,
			touch_pattern(state->wrong_page + state->first_page));

	return false;
}

static u64 now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

void random_delay(u32 *seed, u32 max_us)
{
	u64 end = now_ns() + rand_r(seed) % (max_us * 1000ULL);

	while (now_ns() < end)
		;
}
