/* SPDX-License-Identifier: GPL-2.0-only */
/* What the owner of a virtio-blk device and its clients have in common */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/mman.h>
#include <linux/types.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_ring.h>

#define QUEUE_SIZE	16	/* entries; a power of 2 */
#define BLOCK		4096
#define BLOCKS		1024	/* per queue: agreed on, nothing enforces that */

#define map_shared(fd, size, offset) \
	mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset)

/* For what returns a number or an address */
#define must(call) ({					\
	typeof(call) __ret = (call);			\
	if ((long)__ret < 0)				\
		err(EXIT_FAILURE, #call);		\
	__ret;						\
})

/* All of a queue's DMA: a memfd of its client. No other client can map it. */
struct queue_mem {
	struct vring_desc desc[QUEUE_SIZE];
	__u16 avail_flags, avail_idx, avail_ring[QUEUE_SIZE];
	__u16 used_flags __attribute__((aligned(4))), used_idx;
	struct vring_used_elem used_ring[QUEUE_SIZE];
	struct virtio_blk_outhdr header;
	__u8 status;
	__u64 data[BLOCK / 8] __attribute__((aligned(BLOCK)));
};

#define offset(member)	offsetof(struct queue_mem, member)

struct queue {
	volatile struct queue_mem *mem;
	__u64 iova;			/* where the device finds mem */
	volatile __u16 *doorbell;
	__u16 index;
};

/* Over a SOCK_SEQPACKET socket: a message, or what made recv_msg() give up */
enum what {
	SILENCE,
	HELLO,		/* client: with its memfd */
	GRANT,		/* owner: with a DMABUF */
	RUN,		/* owner: write and read @count blocks, 0: until STOP */
	HANG,		/* owner: the same for ever, and do not listen */
	STOP,		/* owner: end RUN, or the attempts after a revoke */
	DONE,		/* client: wrote and read @count blocks in @ns */
	REVOKED,	/* client: got @count SIGBUS, and @errors times none */
};

struct msg {
	enum what what;
	__u16 queue;
	__u64 iova, count, ns, errors;
};

/* In client.c */
__u64 now_ns(void);
void work(struct queue *q, __u32 seed, struct msg *sum);
void send_msg(int sock, const struct msg *msg, int fd);
struct msg recv_msg(int sock, int *fd, int timeout_ms);
int client_main(int sock, unsigned int uid);

/* In device.c; there is one device */
void device_open(const char *path);
void device_close(void);
volatile __u16 *doorbell(int queue);
int queue_share(struct queue *q, int memfd);
void queue_revoke(int dmabuf);
void queue_reset(struct queue *q);
