// SPDX-License-Identifier: GPL-2.0-only
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

#include "../../../kselftest.h"
#include <libvfio.h>

static void *job_main(void *arg)
{
	struct job *job = arg;

	job->ret = job->fn(job->arg, job->fd);
	close_assert(job->done[1]);

	return NULL;
}

void job_start(struct job *job, int (*fn)(void *arg, int fd), void *arg, int fd)
{
	job->fn = fn;
	job->arg = arg;
	job->fd = fd;
	VFIO_ASSERT_EQ(pipe2(job->done, O_CLOEXEC), 0);
	VFIO_ASSERT_EQ(pthread_create(&job->thread, NULL, job_main, job), 0);
}

int job_revoke(void *arg, int fd)
{
	return __vfio_pci_dmabuf_revoke(arg, fd);
}

bool job_ends(struct job *job, int timeout_ms)
{
	struct pollfd pollfd = { .fd = job->done[0] };

	return poll(&pollfd, 1, timeout_ms) == 1;
}

bool job_waits(struct job *job)
{
	return !job_ends(job, JOB_WAITS_MS);
}

int job_result(struct job *job)
{
	VFIO_ASSERT_TRUE(job_ends(job, JOB_ENDS_MS), "Still waiting\n");
	VFIO_ASSERT_EQ(pthread_join(job->thread, NULL), 0);
	close_assert(job->done[0]);

	return job->ret;
}

u64 now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

bool count_grows(const u64 *count)
{
	u64 end = now_ns() + JOB_ENDS_MS * 1000000ULL;
	u64 old = READ_ONCE(*count);

	while (READ_ONCE(*count) == old) {
		if (now_ns() > end)
			return false;
		sched_yield();
	}
	return true;
}
