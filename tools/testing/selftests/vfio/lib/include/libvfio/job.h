/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_JOB_H
#define SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_JOB_H

#include <pthread.h>
#include <stdbool.h>

#include <linux/types.h>

#include "kselftest.h"

/* A job that has not ended after this time is taken to wait. */
#define JOB_WAITS_MS	200

/* Time limit for a job that does not wait, on a slow machine */
#define JOB_ENDS_MS	60000

/*
 * A function that runs in a thread and may block. A pipe reports its end, so
 * that a test can poll with a timeout.
 */
struct job {
	int (*fn)(void *arg, int fd);
	void *arg;
	int fd;
	pthread_t thread;
	int done[2];
	int ret;
};

void job_start(struct job *job, int (*fn)(void *arg, int fd), void *arg, int fd);

/* VFIO_DEVICE_PCI_DMABUF_REVOKE as a job: @arg is the struct vfio_pci_device */
int job_revoke(void *arg, int fd);

/* Does it end within that time, or does it wait? */
bool job_ends(struct job *job, int timeout_ms);
bool job_waits(struct job *job);

/* The return value of fn(), which has to end */
int job_result(struct job *job);

/* CLOCK_MONOTONIC */
u64 now_ns(void);

/*
 * Wait for other threads to increase @count. False if they do not, for much
 * longer than a slow machine needs.
 */
bool count_grows(const u64 *count);

#endif /* SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_JOB_H */
