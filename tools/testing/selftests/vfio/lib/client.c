// SPDX-License-Identifier: GPL-2.0-only
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include <linux/kernel.h>
#include <linux/types.h>

#include "../../../kselftest.h"
#include <libvfio.h>

#define CLIENT_MAX_FDS	2
#define CLIENT_MAX_DATA	1024

/* A call. The reply is the same struct with @ret and @data updated. */
struct client_call {
	int (*fn)(void *data, const int *fds);
	int ret;
	int nr_fds;
	char data[CLIENT_MAX_DATA];
};

/* A call on its way to the client, with descriptors */
struct client_msg {
	struct msghdr hdr;
	struct iovec iov;
	char control[CMSG_SPACE(sizeof(int) * CLIENT_MAX_FDS)];
};

static struct cmsghdr *client_msg_init(struct client_msg *msg,
				       struct client_call *call)
{
	memset(msg, 0, sizeof(*msg));
	msg->iov = (struct iovec){ call, sizeof(*call) };
	msg->hdr.msg_iov = &msg->iov;
	msg->hdr.msg_iovlen = 1;
	msg->hdr.msg_control = msg->control;
	msg->hdr.msg_controllen = sizeof(msg->control);
	return CMSG_FIRSTHDR(&msg->hdr);
}

static void client_main(int sock)
{
	struct client_call call;
	struct client_msg msg;
	struct cmsghdr *cmsg = client_msg_init(&msg, &call);
	int fds[CLIENT_MAX_FDS];

	while (recvmsg(sock, &msg.hdr, MSG_CMSG_CLOEXEC) == sizeof(call)) {
		VFIO_ASSERT_FALSE(msg.hdr.msg_flags & (MSG_CTRUNC | MSG_TRUNC));
		memset(fds, -1, sizeof(fds));
		memcpy(fds, CMSG_DATA(cmsg), sizeof(*fds) * call.nr_fds);
		call.ret = call.fn(call.data, fds);
		while (call.nr_fds)
			close_assert(fds[--call.nr_fds]);
		VFIO_ASSERT_EQ(send(sock, &call, sizeof(call), MSG_NOSIGNAL),
			       sizeof(call));
		client_msg_init(&msg, &call);
	}
}

pid_t fork_child(int fd)
{
	int ends[2];
	pid_t pid;
	char none;

	VFIO_ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
	pid = fork();
	VFIO_ASSERT_GE(pid, 0);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		VFIO_ASSERT_TRUE(fd < 0 || !dup2(fd, STDIN_FILENO));
		VFIO_ASSERT_EQ(close_range(STDERR_FILENO + 1, ~0U, 0), 0);
		return 0;
	}

	/* Return when the child has closed its fds, those of the pipe too. */
	close_assert(ends[1]);
	VFIO_ASSERT_EQ(read(ends[0], &none, sizeof(none)), 0);
	close_assert(ends[0]);
	return pid;
}

int wait_child(pid_t pid)
{
	int status;

	VFIO_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	return status;
}

struct vfio_client *vfio_client_start(void)
{
	struct vfio_client *client = calloc_assert(1, sizeof(*client));
	int socks[2];

	VFIO_ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0,
				  socks), 0);

	client->pid = fork_child(socks[1]);
	if (!client->pid) {
		client_main(STDIN_FILENO);
		_exit(0);
	}

	close_assert(socks[1]);
	client->sock = socks[0];
	return client;
}

void vfio_client_stop(struct vfio_client *client)
{
	close_assert(client->sock);
	VFIO_ASSERT_EQ(wait_child(client->pid), 0, "The client failed\n");
	free(client);
}

int vfio_client_call(struct vfio_client *client,
		     int (*fn)(void *data, const int *fds), void *data,
		     size_t size, const int *fds, int nr)
{
	struct client_call call = { .fn = fn, .nr_fds = nr };
	struct client_msg msg;
	struct cmsghdr *cmsg = client_msg_init(&msg, &call);

	VFIO_ASSERT_LE(size, sizeof(call.data));
	VFIO_ASSERT_LE(nr, CLIENT_MAX_FDS);
	memcpy(call.data, data, size);
	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(*fds) * nr);
	msg.hdr.msg_controllen = nr ? CMSG_SPACE(sizeof(*fds) * nr) : 0;
	if (nr)
		memcpy(CMSG_DATA(cmsg), fds, sizeof(*fds) * nr);

	VFIO_ASSERT_EQ(sendmsg(client->sock, &msg.hdr, MSG_NOSIGNAL),
		       sizeof(call));
	VFIO_ASSERT_EQ(recv(client->sock, &call, sizeof(call), 0), sizeof(call),
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
	bool write;
};

static int client_mmap(void *data, const int *fds)
{
	struct client_access *access = data;

	if (client_vaddr)
		munmap_assert(client_vaddr, client_size);

	client_size = access->size;
	return __mmap_shared(fds[0], access->offset, access->size,
			     PROT_READ | PROT_WRITE, &client_vaddr);
}

/* A failed mmap() leaves no mapping, and an access returns SIGSEGV. */
static int client_access(void *data, const int *fds)
{
	struct client_access *access = data;
	void *addr = client_vaddr ? client_vaddr + access->offset : NULL;

	return access->write ? try_write32(addr, access->val) :
			       try_read32(addr, &access->val);
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
	int ret = vfio_client_call(client, client_access, &access,
				   sizeof(access), NULL, 0);

	if (val)
		*val = access.val;
	return ret;
}

int vfio_client_write32(struct vfio_client *client, u64 offset, u32 val)
{
	struct client_access access = {
		.offset = offset,
		.val = val,
		.write = true,
	};

	return vfio_client_call(client, client_access, &access, sizeof(access),
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
	pid_t pid = fork();
	int status;

	VFIO_ASSERT_GE(pid, 0);
	if (!pid)
		_exit(fn(arg));

	status = wait_child(pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int touch_span(void *arg)
{
	struct iovec *span = arg;

	return try_touch_pages(span->iov_base, span->iov_len);
}

int touch_pages_in_child(const void *vaddr, size_t size)
{
	struct iovec span = { (void *)vaddr, size };

	return run_in_child(touch_span, &span);
}
