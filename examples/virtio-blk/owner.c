// SPDX-License-Identifier: GPL-2.0-only
/*
 * The owner of a virtio-blk device shares its queues with clients. What is isolated: a
 * client rings the doorbell of its own queue only, until that is revoked, and its CPU has
 * no access to configuration, other doorbells, or the memory of other processes.
 *
 * What is not: a client writes the addresses in its ring itself, and one address space
 * (IOAS) serves all queues, so by DMA it reaches the memory of each other queue. A ring
 * that makes no sense stops the whole device, and a client reaches each block of the disk.
 * Ways out: an address space per queue (PASID) or per function (SR-IOV), or a device per
 * client. Revoke ends access to the doorbell; what was rung for ends by queue_reset().
 */
#include "vblk.h"

#include <sys/socket.h>

#define ROUNDS	200		/* for the ratio, the best ones count, ... */
#define FEW	20		/* ... of so many blocks */
#define COUNT	500		/* blocks to write and read */
#define WAIT_MS	60000		/* on a slow machine, emulated */

struct client {
	int sock, memfd, dmabuf;
	struct queue queue;
};

static int checks, failed;

static void check(__u64 good, const char *what)
{
	failed += !good;
	printf("%sok %d - %s\n", good ? "" : "not ", ++checks, what);
	fflush(stdout);
}

static void start_client(struct client *client, const char *uid)
{
	int socks[2];

	must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, socks));
	if (!must(fork())) {
		dup2(socks[1], STDIN_FILENO);	/* all other fds of ours are closed */
		must(execl("/proc/self/exe", "client", uid, NULL));
	}
	close(socks[1]);
	client->sock = socks[0];
	client->memfd = -1;
	recv_msg(client->sock, &client->memfd, WAIT_MS);
}

static void share(struct client *client, int index)
{
	client->queue.index = index;
	client->dmabuf = queue_share(&client->queue, client->memfd);
	send_msg(client->sock, &(struct msg){ .what = GRANT, .queue = index,
		 .iova = client->queue.iova }, client->dmabuf);
}

/* By pread(): a client may truncate its memfd, and a mapping then raises SIGBUS. */
static __u16 idx(struct client *client, size_t where)
{
	__u16 value = 0;

	must(pread(client->memfd, &value, sizeof(value), where));
	return value;
}

static int goes_on(struct client *client)
{
	__u16 before = idx(client, offset(used_idx));
	int ms;

	for (ms = 0; ms < WAIT_MS && idx(client, offset(used_idx)) == before; ms++)
		usleep(1000);
	return ms < WAIT_MS;
}

/* A reset of a queue in QEMU 7.2 does not end requests: ring for the client, and wait. */
static int take_back(struct client *client)
{
	int left = WAIT_MS * 10;

	queue_revoke(client->dmabuf);
	while (idx(client, offset(used_idx)) != idx(client, offset(avail_idx)) && --left) {
		*client->queue.doorbell = client->queue.index;
		usleep(100);
	}
	queue_reset(&client->queue);
	close(client->dmabuf);
	return left;
}

static void order(struct client *client, enum what what, __u64 count)
{
	send_msg(client->sock, &(struct msg){ what, .count = count }, -1);
}

/* Returns the nanoseconds, or 0 after an error. */
static __u64 runs(struct client *client, __u64 count)
{
	struct msg msg;

	order(client, RUN, count);
	msg = recv_msg(client->sock, NULL, WAIT_MS);
	return msg.what == DONE && msg.count == count && !msg.errors ? msg.ns : 0;
}

/* The same queue and the same memory, in turns: only the mapping of the doorbell differs. */
static void measure(struct client *client)
{
	__u64 ns, by_client = -1, by_owner = -1;
	struct queue *q = &client->queue;
	struct msg sum;
	int i, good = 1;

	q->mem = must(map_shared(client->memfd, sizeof(*q->mem), 0));
	for (i = 0; i < ROUNDS; i++) {
		for (sum = (struct msg){}; sum.count < FEW; )
			work(q, 0, &sum);
		by_owner = sum.ns < by_owner ? sum.ns : by_owner;
		ns = runs(client, FEW);
		by_client = ns < by_client ? ns : by_client;
		good &= !sum.errors && ns;
	}
	check(good, "the owner and a client use a queue in turns");
	printf("# requests per second: client %.0f, owner %.0f, ratio %.2f (best of %d)\n",
	       2e9 * FEW / by_client, 2e9 * FEW / by_owner, 1.0 * by_owner / by_client, ROUNDS);
}

int main(int argc, char **argv)
{
	__u64 start, reset, first;
	struct client a, b, c;
	struct msg msg;
	__u16 used;
	int good;

	if (argc == 2 && !strcmp(argv[0], "client"))
		return client_main(STDIN_FILENO, atoi(argv[1]));
	if (argc != 2)
		errx(EXIT_FAILURE, "usage: virtio-blk /dev/vfio/devices/vfioN");
	device_open(argv[1]);
	check((char *)doorbell(1) - (char *)doorbell(0) == getpagesize(),
	      "each doorbell has a page of its own");

	start_client(&a, "1001");
	start_client(&b, "1002");
	start_client(&c, "1003");
	share(&a, 0);
	share(&b, 1);
	measure(&a);
	order(&b, RUN, 0);
	check(runs(&a, COUNT) && goes_on(&b), "two clients write and read at a time");
	order(&a, HANG, 0);
	check(goes_on(&a), "one of them hangs");
	start = now_ns();
	good = take_back(&a);
	reset = now_ns();
	used = idx(&a, offset(used_idx));
	share(&c, 0);
	good &= !!runs(&c, 1);
	first = now_ns();
	check(good, "its queue is taken from it, and a third client has it");
	printf("# us from revoke to the reset queue: %llu, the third client's first block: %llu\n",
	       (reset - start) / 1000, (first - start) / 1000);
	check(runs(&c, COUNT), "that writes and reads, while the first one rings on");
	order(&a, STOP, 0);
	msg = recv_msg(a.sock, NULL, WAIT_MS);
	good = msg.what == REVOKED && msg.count && !msg.errors;
	check(good && idx(&a, offset(used_idx)) == used,
	      "the first one gets nothing but SIGBUS, and cannot map its DMABUF");
	printf("# it rang %llu times\n", msg.count);
	good = goes_on(&b);
	order(&b, STOP, 0);
	msg = recv_msg(b.sock, NULL, WAIT_MS);
	check(good && msg.what == DONE && !msg.errors, "the second one never has an error");
	printf("# it wrote and read %llu blocks\n", msg.count);
	device_close();
	order(&b, RUN, 1);
	order(&b, STOP, 0);
	msg = recv_msg(b.sock, NULL, WAIT_MS);
	check(msg.what == REVOKED, "without the device the clients get SIGBUS");
	printf("%d passed, %d failed, 0 skipped\n", checks - failed, failed);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
