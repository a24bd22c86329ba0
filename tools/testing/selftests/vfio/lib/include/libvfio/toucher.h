/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_TOUCHER_H
#define SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_TOUCHER_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>
#include <linux/types.h>

#include <libvfio/job.h>

#include "kselftest.h"

/*
 * Threads and processes that touch device memory while access to it is revoked and
 * restored, and check the result of each access.
 *
 * The phase says which results are right. It is changed around the operation: to
 * "going" before it starts, and to "off" once it has returned. An access is checked
 * if it began and ended in the same phase.
 */
enum touch_phase {
	TOUCH_ON,	/* has to be done, and finds the right data */
	TOUCH_GOING,	/* done, finding the right data, or SIGBUS */
	TOUCH_OFF,	/* has to be SIGBUS */
	TOUCH_COMING,	/* done or SIGBUS */
	TOUCH_NR_PHASES,
};

/* To be in memory that is shared with child processes, as a fixture is */
struct touch_state {
	/* Number of the changes of phase: the phase itself is the remainder */
	u32 seq;
	bool stop;
	/* While access goes away, reads of a device under reset are all ones */
	bool ones_allowed;
	/* Accesses that were done, and that were answered with SIGBUS */
	u64 nr_done;
	u64 nr_refused;
	u32 nr_wrong;
};

/* Go to the next phase, which is to be @phase */
void touch_set_phase(struct touch_state *state, enum touch_phase phase);
enum touch_phase touch_get_phase(struct touch_state *state);

/* The first word of page @page of a BAR */
u32 touch_pattern(u32 page);
void touch_fill(void *bar, size_t size);

/*
 * Read the first word of page @page of a mapping, or of each page of
 * [vaddr, vaddr + size), and judge the answer. Prints the first wrong one.
 */
void touch_page(struct touch_state *state, const void *vaddr, u32 page);
void touch_pages(struct touch_state *state, const void *vaddr, size_t size);

struct toucher {
	struct touch_state *state;
	void *vaddr;
	size_t size;
	bool backwards;
	struct job job;
	pid_t pid;
};

/*
 * Have [vaddr, vaddr + size) touched over and over from both ends, by two threads
 * or by one and a child process that has inherited the mappings of the caller but
 * no fd. Ends with a last round over all of the pages.
 */
void touchers_start(struct toucher touchers[2], struct touch_state *state,
		    void *vaddr, size_t size, bool process);
void touchers_stop(struct toucher touchers[2]);

/* Busy-wait for a random time of up to @max_us, too short for a sleep. */
void random_delay(u32 *seed, u32 max_us);

#endif /* SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_TOUCHER_H */
