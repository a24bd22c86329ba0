// SPDX-License-Identifier: GPL-2.0
/*
 * usage: leftover BDF
 * Export a page of the device's memory BAR, leave a client with the DMABUF and a
 * mapping of it, print the client's PID and end, which closes the device. On SIGUSR1
 * the client accesses its mapping and writes what happened to /run/leftover.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <sys/mman.h>

#include <libvfio.h>
#include <libvfio/dmabuf.h>
#include <libvfio/guarded.h>

static void client(const void *page, const sigset_t *set)
{
	FILE *file;
	int sig;

	VFIO_ASSERT_EQ(sigwait(set, &sig), 0);
	file = fopen("/run/leftover", "w");
	VFIO_ASSERT_NOT_NULL(file);
	fprintf(file, "%s\n", try_touch(page) == SIGBUS ? "SIGBUS" : "no signal");
	fclose(file);
	exit(0);
}

int main(int argc, char *argv[])
{
	const char *bdf = vfio_selftests_get_bdf(&argc, argv);
	struct vfio_pci_device *device;
	sigset_t set;
	void *page;
	pid_t pid;
	int bar, fd;

	device = vfio_pci_device_init(bdf, iommu_init(default_iommu_mode));
	bar = vfio_pci_memory_bar(device, getpagesize());
	VFIO_ASSERT_GE(bar, 0);
	fd = vfio_pci_dmabuf_export_range(device, bar, 0, getpagesize());
	page = mmap_shared(fd, 0, getpagesize());
	VFIO_ASSERT_EQ(try_touch(page), 0);

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	VFIO_ASSERT_EQ(sigprocmask(SIG_BLOCK, &set, NULL), 0);
	pid = fork();
	VFIO_ASSERT_GE(pid, 0);
	if (!pid) {
		/* Nothing is left but the DMABUF, and no pipe of the shell */
		VFIO_ASSERT_EQ(dup2(fd, STDIN_FILENO), STDIN_FILENO);
		VFIO_ASSERT_EQ(close_range(STDIN_FILENO + 1, ~0U, 0), 0);
		vfio_pci_bar_unmap_all(device);
		client(page, &set);
	}
	printf("%d\n", pid);
	return 0;
}
