// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/wait.h>

#include "../../../kselftest.h"
#include <libvfio.h>

/* More than a test takes, less than the kernel's limit for hung tasks */
#define GUARD_LIMIT_S 90

int importer_open(void)
{
	return open("/dev/" VFIO_PCI_DMABUF_TEST_NAME, O_RDWR | O_CLOEXEC);
}

int __importer_attach(int importer, struct vfio_pci_device *device,
		      int dmabuf_fd, u32 flags)
{
	struct vfio_pci_dmabuf_test_attach args = {
		.dmabuf_fd = dmabuf_fd,
		.flags = flags,
	};
	unsigned int domain, bus, dev, fn;
	int nr;

	nr = sscanf(device->bdf, "%x:%x:%x.%x", &domain, &bus, &dev, &fn);
	VFIO_ASSERT_EQ(nr, 4);
	args.domain = domain;
	args.bus = bus;
	args.devfn = dev << 3 | fn;
	return ioctl(importer, VFIO_PCI_DMABUF_TEST_ATTACH, &args) ? -errno : 0;
}

void importer_attach(int importer, struct vfio_pci_device *device,
		     int dmabuf_fd, u32 flags)
{
	int ret = __importer_attach(importer, device, dmabuf_fd, flags);

	VFIO_ASSERT_EQ(ret, 0, "Attach failed: %s\n", strerror(-ret));
}

int importer_do(int importer, unsigned long command)
{
	int ret = ioctl(importer, command);

	return ret < 0 ? -errno : ret;
}

void importer_release(int importer)
{
	importer_do(importer, VFIO_PCI_DMABUF_TEST_UNMAP);
	importer_do(importer, VFIO_PCI_DMABUF_TEST_SIGNAL);
}

/* In a group of its own: that of a test that takes too long is killed */
static void guard_main(struct importer_guard *guard, int importer)
{
	struct timespec limit;

	VFIO_ASSERT_EQ(setpgid(0, 0), 0);
	VFIO_ASSERT_EQ(dup2(importer, STDIN_FILENO), STDIN_FILENO);
	VFIO_ASSERT_EQ(close_range(STDIN_FILENO + 1, ~0U, 0), 0);

	clock_gettime(CLOCK_REALTIME, &limit);
	limit.tv_sec += GUARD_LIMIT_S;
	pthread_mutex_timedlock(&guard->mutex, &limit);
	guard->released = true;
	importer_release(STDIN_FILENO);
	_exit(0);
}

/*
 * The mutex is held by the calling thread. As it is robust, the kernel passes
 * it on when that thread exits, before it closes the files of the thread.
 */
struct importer_guard *importer_guard_start(int importer)
{
	struct importer_guard *guard;
	pthread_mutexattr_t attr;
	pid_t pid;

	guard = mmap(NULL, sizeof(*guard), PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	VFIO_ASSERT_NE(guard, MAP_FAILED);
	pthread_mutexattr_init(&attr);
	pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
	pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
	VFIO_ASSERT_EQ(pthread_mutex_init(&guard->mutex, &attr), 0);
	VFIO_ASSERT_EQ(pthread_mutex_lock(&guard->mutex), 0);

	pid = fork();
	VFIO_ASSERT_GE(pid, 0);
	if (!pid)
		guard_main(guard, importer);

	guard->pid = pid;
	return guard;
}

void importer_guard_stop(struct importer_guard *guard)
{
	VFIO_ASSERT_EQ(kill(guard->pid, SIGKILL), 0);
	VFIO_ASSERT_EQ(waitpid(guard->pid, NULL, 0), guard->pid);
	VFIO_ASSERT_FALSE(guard->released, "Hung for %d s\n", GUARD_LIMIT_S);
	VFIO_ASSERT_EQ(pthread_mutex_unlock(&guard->mutex), 0);
	munmap_assert(guard, sizeof(*guard));
}
