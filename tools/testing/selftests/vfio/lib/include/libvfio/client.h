/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_CLIENT_H
#define SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_CLIENT_H

#include <stddef.h>
#include <sys/types.h>
#include <linux/types.h>

#include "kselftest.h"

/*
 * A process that stands for the unprivileged client of a driver: it holds what it
 * was passed, and nothing else.
 */
struct vfio_client {
	pid_t pid;
	int sock;
};

/*
 * Start a client. One that must not inherit anything from the caller, e.g. the
 * mapping of a BAR, has to be started before it is made.
 */
struct vfio_client *vfio_client_start(void);

/*
 * Run fn(data, fds) in the client, with a copy of @data and of @nr fds. What it
 * leaves in data comes back, the fds are closed. Returns its return value. The
 * client is a fork of the caller: pointers to what was there before are valid.
 */
int vfio_client_call(struct vfio_client *client,
		     int (*fn)(void *data, const int *fds), void *data,
		     size_t size, const int *fds, int nr);

/* Make the client exit, with all it holds, and wait for that. */
void vfio_client_stop(struct vfio_client *client);

/*
 * Pass @fd to the client and have it map [offset, offset + size) of it. The
 * mapping replaces the one it had. The client keeps no fd. Returns 0 or -errno.
 */
int __vfio_client_mmap(struct vfio_client *client, int fd, u64 offset,
		       size_t size);
void vfio_client_mmap(struct vfio_client *client, int fd, u64 offset,
		      size_t size);

/* The accesses of <libvfio/guarded.h>, at @offset in the client's mapping. */
int vfio_client_read32(struct vfio_client *client, u64 offset, u32 *val);
int vfio_client_write32(struct vfio_client *client, u64 offset, u32 val);

/* As VFIO_DEVICE_PCI_DMABUF_REVOKE on @fd of @dmabuf_fd, by the client. */
int vfio_client_revoke(struct vfio_client *client, int fd, int dmabuf_fd);

/*
 * Run fn(arg) in a child process. Returns its return value: 0 to 255, or -1 if
 * the child did not end by itself.
 */
int run_in_child(int (*fn)(void *arg), void *arg);

/* try_touch_pages() in a child process */
int touch_pages_in_child(const void *vaddr, size_t size);

#endif /* SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_CLIENT_H */
