// SPDX-License-Identifier: GPL-2.0-only
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <linux/compiler.h>
#include <linux/types.h>

#include "../../../kselftest.h"
#include <libvfio.h>

static u32 touch_get_seq(struct touch_state *state)
{
	return __atomic_load_n(&state->seq, __ATOMIC_SEQ_CST);
}

enum touch_phase touch_get_phase(struct touch_state *state)
{
	return touch_get_seq(state) % TOUCH_NR_PHASES;
}

void touch_set_phase(struct touch_state *state, enum touch_phase phase)
{
	u32 seq = state->seq;

	do {
		seq++;
	} while (seq % TOUCH_NR_PHASES != phase);

	__atomic_store_n(&state->seq, seq, __ATOMIC_SEQ_CST);
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
	if (sig)
		return sig == SIGBUS && phase != TOUCH_ON;
	if (phase == TOUCH_OFF)
		return false;
	if (phase != TOUCH_ON && val == UINT32_MAX && state->ones_allowed)
		return true;

	return val == touch_pattern(page);
}

void touch_page(struct touch_state *state, const void *vaddr, u32 page)
{
	static const char * const phases[] = {
		"access was enabled", "access was being revoked",
		"access was revoked", "access was being restored",
	};
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

	if (!__atomic_fetch_add(&state->nr_wrong, 1, __ATOMIC_RELAXED))
		fprintf(stderr, "# While %s: page %u: signal %d, %#x, not %#x\n",
			phases[phase], page, sig, val, touch_pattern(page));
}

void touch_pages(struct touch_state *state, const void *vaddr, size_t size)
{
	u32 page;

	for (page = 0; page < size / getpagesize(); page++)
		touch_page(state, vaddr, page);
}

static int toucher_main(void *arg, int fd)
{
	struct toucher *toucher = arg;
	u32 nr = toucher->size / getpagesize();
	u32 page = 0;

	while (!READ_ONCE(toucher->state->stop)) {
		touch_page(toucher->state, toucher->vaddr,
			   toucher->backwards ? nr - 1 - page : page);
		page = (page + 1) % nr;
	}
	touch_pages(toucher->state, toucher->vaddr, toucher->size);

	return 0;
}

void touchers_start(struct toucher touchers[2], struct touch_state *state,
		    void *vaddr, size_t size, bool process)
{
	int i;

	WRITE_ONCE(state->stop, false);
	for (i = 0; i < 2; i++) {
		touchers[i] = (struct toucher) {
			.state = state,
			.vaddr = vaddr,
			.size = size,
			.backwards = !i,
		};
		if (!process || i) {
			job_start(&touchers[i].job, toucher_main, &touchers[i],
				  -1);
			continue;
		}
		touchers[i].pid = fork_child(-1);
		if (!touchers[i].pid)
			_exit(toucher_main(&touchers[i], -1));
	}
}

void touchers_stop(struct toucher touchers[2])
{
	int i;

	WRITE_ONCE(touchers[0].state->stop, true);
	for (i = 0; i < 2; i++) {
		if (touchers[i].pid)
			VFIO_ASSERT_EQ(wait_child(touchers[i].pid), 0,
				       "A touching process died\n");
		else
			job_result(&touchers[i].job);
	}
}

void random_delay(u32 *seed, u32 max_us)
{
	u64 end = now_ns() + rand_r(seed) % (max_us * 1000ULL);

	while (now_ns() < end)
		;
}
