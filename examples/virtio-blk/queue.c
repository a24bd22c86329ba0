// SPDX-License-Identifier: GPL-2.0-only
/* Work with a queue, by a client or the owner, and messages between these */
#include "vblk.h"

#include <poll.h>
#include <sched.h>
#include <time.h>
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
		{ q->iova + offsetof(struct queue_mem, header), sizeof(mem->header),
		  VRING_DESC_F_NEXT, 1 },
		{ q->iova + offsetof(struct queue_mem, data), BLOCK,
		  VRING_DESC_F_NEXT | dir, 2 },
		{ q->iova + offsetof(struct queue_mem, status), 1, VRING_DESC_F_WRITE, 0 },
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

union control {
	char buf[CMSG_SPACE(sizeof(int))];
	struct cmsghdr cmsg;
};

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
