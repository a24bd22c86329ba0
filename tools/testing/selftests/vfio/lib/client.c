// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
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

#define CLIENT_MAX_FDS 2

enum client_op {
	CLIENT_MMAP,
	CLIENT_READ,
	CLIENT_WRITE,
	CLIENT_REVOKE,
};

struct client_request {
	enum client_op op;
	u32 val;
	u64 offset;
	u64 size;
};

struct client_reply {
	int ret;
	u32 val;
};

/* The one mapping that a client has. */
struct client_state {
	void *vaddr;
	size_t size;
};

void send_fds(int sock, const void *data, size_t size, const int *fds, int nr)
{
	char control[CMSG_SPACE(sizeof(int) * CLIENT_MAX_FDS)] = {};
	struct iovec iov = {
		.iov_base = (void *)data,
		.iov_len = size,
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

	VFIO_ASSERT_EQ(sendmsg(sock, &msg, MSG_NOSIGNAL), size);
}

/* Returns the number of bytes received, 0 when the other end is closed. */
size_t recv_fds(int sock, void *data, size_t size, int *fds, int nr)
{
	char control[CMSG_SPACE(sizeof(int) * CLIENT_MAX_FDS)];
	struct iovec iov = {
		.iov_base = data,
		.iov_len = size,
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

	VFIO_ASSERT_LE(nr, CLIENT_MAX_FDS);

	for (i = 0; i < nr; i++)
		fds[i] = -1;

	ret = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
	VFIO_ASSERT_GE(ret, 0);
	VFIO_ASSERT_FALSE(msg.msg_flags & (MSG_CTRUNC | MSG_TRUNC));

	cmsg = CMSG_FIRSTHDR(&msg);
	if (cmsg) {
		VFIO_ASSERT_LE(cmsg->cmsg_len, CMSG_LEN(sizeof(int) * nr));
		memcpy(fds, CMSG_DATA(cmsg), cmsg->cmsg_len - CMSG_LEN(0));
	}

	return ret;
}

static int client_mmap(struct client_state *state, int fd,
		       const struct client_request *req)
{
	if (state->vaddr)
		VFIO_ASSERT_EQ(munmap(state->vaddr, state->size), 0);

	state->size = req->size;

	return __mmap_shared(fd, req->offset, req->size, PROT_READ | PROT_WRITE,
			     &state->vaddr);
}

static void client_handle(struct client_state *state,
			  const struct client_request *req, int *fds,
			  struct client_reply *reply)
{
	/* A failed mmap leaves no mapping, and an access answers SIGSEGV. */
	void *addr = state->vaddr ? state->vaddr + req->offset : NULL;

	switch (req->op) {
	case CLIENT_MMAP:
		reply->ret = client_mmap(state, fds[0], req);
		break;
	case CLIENT_READ:
		reply->ret = try_read32(addr, &reply->val);
		break;
	case CLIENT_WRITE:
		reply->ret = try_write32(addr, req->val);
		break;
	case CLIENT_REVOKE:
		reply->ret = __vfio_pci_dmabuf_revoke_fd(fds[0], fds[1]);
		break;
	}
}

static void client_main(int sock, void *arg)
{
	struct client_state state = {};
	struct client_request req;
	int i;

	while (1) {
		int fds[CLIENT_MAX_FDS];
		struct client_reply reply = {};

		if (!recv_fds(sock, &req, sizeof(req), fds, CLIENT_MAX_FDS))
			return;

		client_handle(&state, &req, fds, &reply);

		for (i = 0; i < CLIENT_MAX_FDS; i++) {
			if (fds[i] >= 0)
				close(fds[i]);
		}

		send_fds(sock, &reply, sizeof(reply), NULL, 0);
	}
}

struct vfio_client *vfio_client_start_fn(void (*main)(int sock, void *arg),
					 void *arg)
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
		main(STDERR_FILENO + 1, arg);
		_exit(0);
	}

	VFIO_ASSERT_EQ(close(socks[1]), 0);
	client->sock = socks[0];

	return client;
}

struct vfio_client *vfio_client_start(void)
{
	return vfio_client_start_fn(client_main, NULL);
}

void vfio_client_stop(struct vfio_client *client)
{
	int status;

	VFIO_ASSERT_EQ(close(client->sock), 0);
	VFIO_ASSERT_EQ(waitpid(client->pid, &status, 0), client->pid);
	VFIO_ASSERT_EQ(status, 0, "The client failed\n");

	free(client);
}

static struct client_reply client_call(struct vfio_client *client,
				       const struct client_request *req,
				       const int *fds, int nr)
{
	struct client_reply reply;

	send_fds(client->sock, req, sizeof(*req), fds, nr);
	VFIO_ASSERT_EQ(recv_fds(client->sock, &reply, sizeof(reply), NULL, 0),
		       sizeof(reply), "The client is gone\n");

	return reply;
}

int __vfio_client_mmap(struct vfio_client *client, int fd, u64 offset,
		       size_t size)
{
	struct client_request req = {
		.op = CLIENT_MMAP,
		.offset = offset,
		.size = size,
	};

	return client_call(client, &req, &fd, 1).ret;
}

void vfio_client_mmap(struct vfio_client *client, int fd, u64 offset,
		      size_t size)
{
	VFIO_ASSERT_EQ(__vfio_client_mmap(client, fd, offset, size), 0);
}

int vfio_client_read32(struct vfio_client *client, u64 offset, u32 *val)
{
	struct client_request req = {
		.op = CLIENT_READ,
		.offset = offset,
	};
	struct client_reply reply;

	reply = client_call(client, &req, NULL, 0);
	if (val)
		*val = reply.val;

	return reply.ret;
}

int vfio_client_write32(struct vfio_client *client, u64 offset, u32 val)
{
	struct client_request req = {
		.op = CLIENT_WRITE,
		.offset = offset,
		.val = val,
	};

	return client_call(client, &req, NULL, 0).ret;
}

int vfio_client_revoke(struct vfio_client *client, int fd, int dmabuf_fd)
{
	struct client_request req = {
		.op = CLIENT_REVOKE,
	};
	int fds[] = { fd, dmabuf_fd };

	return client_call(client, &req, fds, ARRAY_SIZE(fds)).ret;
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
