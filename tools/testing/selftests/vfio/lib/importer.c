// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <linux/types.h>

#include "../../../kselftest.h"
#include <libvfio.h>

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

	if (ioctl(importer, VFIO_PCI_DMABUF_TEST_ATTACH, &args))
		return -errno;

	return 0;
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

/*
 * Held by the thread that starts the guard. As it is robust, the kernel passes it
 * on when that thread exits, which is before it closes the files of the thread.
 */
static void guard_mutex_init(pthread_mutex_t *mutex)
{
	pthread_mutexattr_t attr;

	VFIO_ASSERT_EQ(pthread_mutexattr_init(&attr), 0);
	VFIO_ASSERT_EQ(pthread_mutexattr_setpshared(&attr,
						    PTHREAD_PROCESS_SHARED), 0);
	VFIO_ASSERT_EQ(pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST),
		       0);
	VFIO_ASSERT_EQ(pthread_mutex_init(mutex, &attr), 0);
	VFIO_ASSERT_EQ(pthread_mutex_lock(mutex), 0);
}

/* In a group of its own: the harness kills that of a test which takes too long. */
static void guard_main(struct importer_guard *guard, int importer)
{
	VFIO_ASSERT_EQ(setpgid(0, 0), 0);
	VFIO_ASSERT_EQ(dup2(importer, STDIN_FILENO), STDIN_FILENO);
	VFIO_ASSERT_EQ(close_range(STDIN_FILENO + 1, ~0U, 0), 0);

	pthread_mutex_lock(&guard->mutex);
	importer_do(STDIN_FILENO, VFIO_PCI_DMABUF_TEST_UNMAP);
	importer_do(STDIN_FILENO, VFIO_PCI_DMABUF_TEST_SIGNAL);
	_exit(0);
}

struct importer_guard *importer_guard_start(int importer)
{
	struct importer_guard *guard;
	pid_t pid;

	guard = mmap(NULL, sizeof(*guard), PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	VFIO_ASSERT_NE(guard, MAP_FAILED);
	guard_mutex_init(&guard->mutex);

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
	VFIO_ASSERT_EQ(pthread_mutex_unlock(&guard->mutex), 0);
	VFIO_ASSERT_EQ(munmap(guard, sizeof(*guard)), 0);
}
