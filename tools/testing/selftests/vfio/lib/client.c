// SPDX-License-Identifier: GPL-2.0-only
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <linux/kernel.h>
#include <linux/types.h>
#include <linux/vfio.h>

#include "../../../kselftest.h"
#include <libvfio.h>

#define CLIENT_MAX_FDS	2
#define CLIENT_MAX_DATA	1024

/* A call, and as the answer to it the same with what the function returned */
struct client_call {
	int (*fn)(void *data, const int *fds);
	int ret;
	char data[CLIENT_MAX_DATA];
};

static void send_call(int sock, struct client_call *call, const int *fds, int nr)
{
	char control[CMSG_SPACE(sizeof(int) * CLIENT_MAX_FDS)] = {};
	struct iovec iov = {
		.iov_base = call,
		.iov_len = sizeof(*call),
	};
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
	};
	struct cmsghdr *cmsg;

	VFIO_ASSERT_LE(nr, CLIENT_MAX_FDS);
	if (nr) {
		msg.msg_control = control;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * nr);

		cmsg = CMSG_FIRSTHDR(&msg);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(sizeof(int) * nr);
		memcpy(CMSG_DATA(cmsg), fds, sizeof(int) * nr);
	}

	VFIO_ASSERT_EQ(sendmsg(sock, &msg, MSG_NOSIGNAL), sizeof(*call));
}

/* Returns false when the other end is closed. */
static bool recv_call(int sock, struct client_call *call, int *fds)
{
	char control[CMSG_SPACE(sizeof(int) * CLIENT_MAX_FDS)];
	struct iovec iov = {
		.iov_base = call,
		.iov_len = sizeof(*call),
	};
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg;
	ssize_t ret;
	int i;

	for (i = 0; i < CLIENT_MAX_FDS; i++)
		fds[i] = -1;

	ret = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
	VFIO_ASSERT_TRUE(!ret || ret == sizeof(*call));
	VFIO_ASSERT_FALSE(msg.msg_flags & (MSG_CTRUNC | MSG_TRUNC));

	cmsg = CMSG_FIRSTHDR(&msg);
	if (cmsg)
		memcpy(fds, CMSG_DATA(cmsg), cmsg->cmsg_len - CMSG_LEN(0));

	return ret;
}

static void client_main(int sock)
{
	struct client_call call;
	int fds[CLIENT_MAX_FDS];
	int i;

	while (recv_call(sock, &call, fds)) {
		call.ret = call.fn(call.data, fds);
		for (i = 0; i < CLIENT_MAX_FDS; i++) {
			if (fds[i] >= 0)
				close(fds[i]);
		}
		send_call(sock, &call, NULL, 0);
	}
}

struct vfio_client *vfio_client_start(void)
{
	struct vfio_client *client = calloc_assert(1, sizeof(*client));
	int socks[2];

	VFIO_ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0,
				  socks), 0);

	client->pid = fork();
	VFIO_ASSERT_GE(client->pid, 0);
	if (!client->pid) {
		/* Never outlive the test, whatever happens to it. */
		prctl(PR_SET_PDEATHSIG, SIGKILL);

		VFIO_ASSERT_EQ(dup2(socks[1], STDERR_FILENO + 1),
			       STDERR_FILENO + 1);
		VFIO_ASSERT_EQ(close_range(STDERR_FILENO + 2, ~0U, 0), 0);
		client_main(STDERR_FILENO + 1);
		_exit(0);
	}

	VFIO_ASSERT_EQ(close(socks[1]), 0);
	client->sock = socks[0];

	return client;
}

void vfio_client_stop(struct vfio_client *client)
{
	int status;

	VFIO_ASSERT_EQ(close(client->sock), 0);
	VFIO_ASSERT_EQ(waitpid(client->pid, &status, 0), client->pid);
	VFIO_ASSERT_EQ(status, 0, "The client failed\n");

	free(client);
}

int vfio_client_call(struct vfio_client *client,
		     int (*fn)(void *data, const int *fds), void *data,
		     size_t size, const int *fds, int nr)
{
	struct client_call call = { .fn = fn };
	int none[CLIENT_MAX_FDS];

	VFIO_ASSERT_LE(size, sizeof(call.data));
	memcpy(call.data, data, size);
	send_call(client->sock, &call, fds, nr);
	VFIO_ASSERT_TRUE(recv_call(client->sock, &call, none),
			 "The client is gone\n");
	memcpy(data, call.data, size);

	return call.ret;
}

/* The one mapping that a client has, and what is to be done to it */
static void *client_vaddr;
static size_t client_size;

struct client_access {
	u64 offset;
	size_t size;
	u32 val;
};

static int client_mmap(void *data, const int *fds)
{
	struct client_access *access = data;

	if (client_vaddr)
		VFIO_ASSERT_EQ(munmap(client_vaddr, client_size), 0);

	client_size = access->size;
	return __mmap_shared(fds[0], access->offset, access->size,
			     PROT_READ | PROT_WRITE, &client_vaddr);
}

/* A failed mmap() leaves no mapping, and an access answers SIGSEGV. */
static void *client_addr(const struct client_access *access)
{
	return client_vaddr ? client_vaddr + access->offset : NULL;
}

static int client_read(void *data, const int *fds)
{
	struct client_access *access = data;

	return try_read32(client_addr(access), &access->val);
}

static int client_write(void *data, const int *fds)
{
	struct client_access *access = data;

	return try_write32(client_addr(access), access->val);
}

static int client_revoke(void *data, const int *fds)
{
	return __vfio_pci_dmabuf_revoke_fd(fds[0], fds[1]);
}

int __vfio_client_mmap(struct vfio_client *client, int fd, u64 offset,
		       size_t size)
{
	struct client_access access = { .offset = offset, .size = size };

	return vfio_client_call(client, client_mmap, &access, sizeof(access),
				&fd, 1);
}

void vfio_client_mmap(struct vfio_client *client, int fd, u64 offset,
		      size_t size)
{
	VFIO_ASSERT_EQ(__vfio_client_mmap(client, fd, offset, size), 0);
}

int vfio_client_read32(struct vfio_client *client, u64 offset, u32 *val)
{
	struct client_access access = { .offset = offset };
	int ret;

	ret = vfio_client_call(client, client_read, &access, sizeof(access),
			       NULL, 0);
	if (val)
		*val = access.val;

	return ret;
}

int vfio_client_write32(struct vfio_client *client, u64 offset, u32 val)
{
	struct client_access access = { .offset = offset, .val = val };

	return vfio_client_call(client, client_write, &access, sizeof(access),
				NULL, 0);
}

int vfio_client_revoke(struct vfio_client *client, int fd, int dmabuf_fd)
{
	int fds[] = { fd, dmabuf_fd };
	char none;

	return vfio_client_call(client, client_revoke, &none, 0, fds,
				ARRAY_SIZE(fds));
}

int run_in_child(int (*fn)(void *arg), void *arg)
{
	int status;
	pid_t pid;

	pid = fork();
	VFIO_ASSERT_GE(pid, 0);

	if (!pid)
		_exit(fn(arg));

	VFIO_ASSERT_EQ(waitpid(pid, &status, 0), pid);

	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

struct span {
	const void *vaddr;
	size_t size;
};

static int touch_span(void *arg)
{
	struct span *span = arg;

	return try_touch_pages(span->vaddr, span->size);
}

int touch_pages_in_child(const void *vaddr, size_t size)
{
	struct span span = { vaddr, size };

	return run_in_child(touch_span, &span);
}
