/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_CLIENT_H
#define SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_CLIENT_H

#include <stddef.h>
#include <sys/types.h>
#include <linux/types.h>

/*
 * A process in the role of the unprivileged client of a driver. It inherits the
 * mappings of the caller, but no fd.
 */
struct vfio_client {
	pid_t pid;
	int sock;
};

struct vfio_client *vfio_client_start(void);

/* Make the client exit, and wait for that. */
void vfio_client_stop(struct vfio_client *client);

/*
 * Run fn(data, fds) in the client, with a copy of @data, which is copied back,
 * and of @nr fds, which are closed. Returns what @fn returned. The client is a
 * fork of the caller: pointers to what existed before are valid.
 */
int vfio_client_call(struct vfio_client *client,
		     int (*fn)(void *data, const int *fds), void *data,
		     size_t size, const int *fds, int nr);

/*
 * Pass @fd to the client and have it map [offset, offset + size) of it, in place
 * of its previous mapping. Return 0 or -errno, or assert success.
 */
int __vfio_client_mmap(struct vfio_client *client, int fd, u64 offset,
		       size_t size);
void vfio_client_mmap(struct vfio_client *client, int fd, u64 offset,
		      size_t size);

/* try_read32() and try_write32() at @offset in the client's mapping */
int vfio_client_read32(struct vfio_client *client, u64 offset, u32 *val);
int vfio_client_write32(struct vfio_client *client, u64 offset, u32 val);

/* __vfio_pci_dmabuf_revoke_fd() by the client */
int vfio_client_revoke(struct vfio_client *client, int fd, int dmabuf_fd);

/*
 * fork() a child that is killed when the caller exits. It keeps only the
 * standard fds; standard input is @fd, unless @fd is -1.
 */
pid_t fork_child(int fd);

/* Returns the status that waitpid() reports. */
int wait_child(pid_t pid);

/*
 * Run fn(arg) in a child process. Returns its return value: 0 to 255, or -1 if
 * the child was killed.
 */
int run_in_child(int (*fn)(void *arg), void *arg);
int touch_pages_in_child(const void *vaddr, size_t size);

#endif /* SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_CLIENT_H */
