// SPDX-License-Identifier: GPL-2.0-only
/*
 * A client: a process of another uid with a socket to the owner. It drives a queue itself,
 * by the doorbell page that it gets as a DMABUF. Each touch of that may raise SIGBUS. The
 * work with a queue and the messages are the owner's, too.
 */
#include "vblk.h"

#include <grp.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <time.h>
#include <sys/prctl.h>
#include <sys/socket.h>

/* The device must see the ring before its index, and that before the doorbell. */
#ifdef __aarch64__
#define dma_barrier()	asm volatile("dmb osh" : : : "memory")
#else
#define dma_barrier()	__sync_synchronize()
#endif

__u64 now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ULL + now.tv_nsec;
}

/* One request at a time, polled. All its state is in the memory of the queue. */
static int request(struct queue *q, __u32 type, __u64 block)
{
	int dir = type == VIRTIO_BLK_T_IN ? VRING_DESC_F_WRITE : 0;
	volatile struct queue_mem *mem = q->mem;
	const struct vring_desc desc[] = {
		{ q->iova + offset(header), sizeof(mem->header), VRING_DESC_F_NEXT, 1 },
		{ q->iova + offset(data), BLOCK, VRING_DESC_F_NEXT | dir, 2 },
		{ q->iova + offset(status), 1, VRING_DESC_F_WRITE, 0 },
	};

	memcpy((void *)mem->desc, desc, sizeof(desc));
	mem->header.type = type;
	mem->header.sector = block * BLOCK / 512;
	mem->status = 0xff;
	mem->avail_ring[mem->avail_idx % QUEUE_SIZE] = 0;
	dma_barrier();
	mem->avail_idx++;
	dma_barrier();
	*q->doorbell = q->index;	/* SIGBUS once it is revoked */
	while (mem->used_idx != mem->avail_idx)
		sched_yield();
	dma_barrier();
	return mem->status != VIRTIO_BLK_S_OK;
}

static __u64 checksum(const volatile __u64 *words)
{
	__u64 i, sum = 0xcbf29ce484222325ULL;

	for (i = 1; i < BLOCK / 8; i++)
		sum = (sum ^ words[i]) * 0x100000001b3ULL;
	return sum;
}

/* Write the next block, with a checksum, read and verify it. */
void work(struct queue *q, __u32 seed, struct msg *sum)
{
	__u64 block = q->index * BLOCKS + sum->count % BLOCKS, i, written, start;
	volatile __u64 *words = q->mem->data;
	int bad;

	for (i = 1; i < BLOCK / 8; i++)
		words[i] = (((__u64)seed << 32 | sum->count) + i) * 0x9e3779b97f4a7c15ULL;
	words[0] = written = checksum(words);
	start = now_ns();
	bad = request(q, VIRTIO_BLK_T_OUT, block);
	memset((void *)words, 0, BLOCK);
	bad |= request(q, VIRTIO_BLK_T_IN, block);
	sum->ns += now_ns() - start;
	sum->errors += bad || words[0] != written || checksum(words) != written;
	sum->count++;
}

union control { struct cmsghdr cmsg; char buf[CMSG_SPACE(sizeof(int))]; };

/* @fd goes with it, unless it is -1. */
void send_msg(int sock, const struct msg *msg, int fd)
{
	union control control = { .cmsg = { CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS } };
	struct iovec iov = { (void *)msg, sizeof(*msg) };
	struct msghdr hdr = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
			      .msg_controllen = fd >= 0 ? sizeof(control) : 0 };

	memcpy(CMSG_DATA(&control.cmsg), &fd, sizeof(fd));
	must(sendmsg(sock, &hdr, MSG_NOSIGNAL));
}

struct msg recv_msg(int sock, int *fd, int timeout_ms)
{
	struct msg msg;
	union control control = {};
	struct iovec iov = { &msg, sizeof(msg) };
	struct msghdr hdr = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
			      .msg_controllen = fd ? CMSG_LEN(sizeof(*fd)) : 0 };
	struct pollfd pfd = { .fd = sock, .events = POLLIN };

	if (poll(&pfd, 1, timeout_ms) <= 0 ||
	    recvmsg(sock, &hdr, MSG_CMSG_CLOEXEC | MSG_DONTWAIT) != sizeof(msg))
		return (struct msg){ .what = SILENCE };
	if (fd && control.cmsg.cmsg_type == SCM_RIGHTS)
		memcpy(fd, CMSG_DATA(&control.cmsg), sizeof(*fd));
	return msg;
}

static struct queue queue;
static struct msg sum;
static sigjmp_buf revoked;

static void on_sigbus(int sig, siginfo_t *info, void *context __attribute__((unused)))
{
	if (info->si_addr == (void *)queue.doorbell)
		siglongjmp(revoked, 1);
	signal(sig, SIG_DFL);	/* a bug: the same access again, without us */
}

static void run(int sock, const struct msg *order)
{
	sum = (struct msg){ .what = DONE };
	while (!order->count || sum.count < order->count) {
		work(&queue, getuid(), &sum);
		if (order->what == RUN && recv_msg(sock, NULL, 0).what == STOP)
			break;
	}
}

/* Each attempt ends in SIGBUS, which starts the next one. */
static void ring_on(int sock, int dmabuf)
{
	sum = (struct msg){ .what = REVOKED };
	sum.errors = map_shared(dmabuf, getpagesize(), 0) != MAP_FAILED || errno != ENODEV;
	for (sigsetjmp(revoked, 1); recv_msg(sock, NULL, 0).what != STOP; sum.errors++) {
		sum.count++;
		*queue.doorbell = queue.index;
	}
}

int client_main(int sock, unsigned int uid)
{
	struct sigaction action = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO };
	int memfd, dmabuf = -1;
	struct msg msg;

	must(setgroups(0, NULL));
	must(setresgid(uid, uid, uid));
	must(setresuid(uid, uid, uid));
	must(prctl(PR_SET_PDEATHSIG, SIGKILL));
	must(sigaction(SIGBUS, &action, NULL));

	memfd = must(memfd_create("queue", MFD_CLOEXEC));
	must(ftruncate(memfd, sizeof(*queue.mem)));
	queue.mem = must(map_shared(memfd, sizeof(*queue.mem), 0));
	send_msg(sock, &(struct msg){ .what = HELLO }, memfd);

	msg = recv_msg(sock, &dmabuf, -1);
	queue.iova = msg.iova;
	queue.index = msg.queue;
	queue.doorbell = must(map_shared(dmabuf, getpagesize(), 0));
	while ((msg = recv_msg(sock, NULL, -1)).what != SILENCE) {
		if (!sigsetjmp(revoked, 1))
			run(sock, &msg);
		else
			ring_on(sock, dmabuf);
		send_msg(sock, &sum, -1);
	}
	return EXIT_SUCCESS;
}
