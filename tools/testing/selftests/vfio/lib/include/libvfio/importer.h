/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_IMPORTER_H
#define SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_IMPORTER_H

#include <pthread.h>
#include <stdbool.h>
#include <sys/types.h>

#include <libvfio/vfio_pci_device.h>

#include "../../../../../../../drivers/vfio/pci/vfio_pci_dmabuf_test.h"

/*
 * The test importer of CONFIG_VFIO_PCI_DMABUF_TEST, which keeps a DMABUF until
 * a command releases it. Each fd can attach to one DMABUF, and releases it
 * when it is closed. Returns the fd, or -1 if the kernel has no test importer.
 */
int importer_open(void);

/*
 * Attach to a DMABUF of @device, with VFIO_PCI_DMABUF_TEST_* for @flags. The
 * importing device is @device itself: that works on any machine. Return 0 or
 * -errno, or assert success.
 */
int __importer_attach(int importer, struct vfio_pci_device *device,
		      int dmabuf_fd, u32 flags);
void importer_attach(int importer, struct vfio_pci_device *device,
		     int dmabuf_fd, u32 flags);

/* Issue a VFIO_PCI_DMABUF_TEST_* command. Returns its result or -errno. */
int importer_do(int importer, unsigned long command);

/* End both, as far as there are any. */
void importer_release(int importer);

/*
 * A process that has @importer release its DMABUF when the calling thread
 * exits, or hangs for longer than any test takes. A thread that waits for the
 * importer and that no signal ends would otherwise keep it open: a failed test
 * would not exit. Until the guard is stopped, a close() does not close @importer.
 * The stop asserts that the guard was not needed.
 */
struct importer_guard {
	pthread_mutex_t mutex;
	pid_t pid;
	bool released;
};

struct importer_guard *importer_guard_start(int importer);
void importer_guard_stop(struct importer_guard *guard);

#endif /* SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_IMPORTER_H */
