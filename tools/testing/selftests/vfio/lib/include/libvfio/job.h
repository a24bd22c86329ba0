/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_JOB_H
#define SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_JOB_H

#include <pthread.h>
#include <stdbool.h>

#include "kselftest.h"

/* Long enough to say that something waits */
#define JOB_WAITS_MS	200

/* On a slow machine, until something that does not wait has come to its end */
#define JOB_ENDS_MS	60000

/*
 * Something to do that may have to wait, in a thread. Its end is seen at a pipe:
 * the thread may not return for a long time.
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

#endif /* SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_JOB_H */
