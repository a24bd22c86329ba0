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

#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#define ROUNDS	200		/* for the ratio, the best ones count, ... */
#define FEW	20		/* ... of so many blocks */
#define COUNT	500		/* blocks to write and read */
#define WAIT_MS	60000		/* on a slow machine, emulated */

struct client {
	int sock, memfd, dmabuf;
	struct queue queue;
};

static int passed, failed;

static void check(int good, const char *what)
{
	good ? passed++ : failed++;
	printf("%sok %d - %s\n", good ? "" : "not ", passed + failed, what);
	fflush(stdout);
}

static void start_client(struct client *client, const char *uid)
{
	int socks[2];

	must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, socks));
	if (!must(fork())) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
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
	struct msg msg = { .what = GRANT, .queue = index };

	client->queue.index = index;
	client->dmabuf = queue_share(&client->queue, client->memfd);
	msg.iova = client->queue.iova;
	send_msg(client->sock, &msg, client->dmabuf);
}

/* By pread(): a client may truncate its memfd, and a mapping then raises SIGBUS. */
static __u16 idx(struct client *client, size_t offset)
{
	__u16 value = 0;

	must(pread(client->memfd, &value, sizeof(value), offset));
	return value;
}

#define used_idx(client) idx(client, offsetof(struct queue_mem, used_idx))
#define avail_idx(client) idx(client, offsetof(struct queue_mem, avail_idx))

static int goes_on(struct client *client)
{
	__u16 before = used_idx(client);
	int ms;

	for (ms = 0; ms < WAIT_MS && used_idx(client) == before; ms++)
		usleep(1000);
	return ms < WAIT_MS;
}

/*
 * The client rings no more, but a request may be in flight. The reset of a queue should
 * see to that; QEMU 7.2's does not, so wait, and ring for what the client could not. One
 * that goes on changing its ring could prevent the end: then reset the whole device.
 */
static int take_back(struct client *client)
{
	int i;

	queue_revoke(client->dmabuf);
	for (i = 0; i < WAIT_MS * 10 && used_idx(client) != avail_idx(client); i++) {
		*client->queue.doorbell = client->queue.index;
		usleep(100);
	}
	queue_reset(&client->queue);
	close(client->dmabuf);
	return i < WAIT_MS * 10;
}

static void order(struct client *client, enum what what, __u64 count)
{
	struct msg msg = { .what = what, .count = count };

	send_msg(client->sock, &msg, -1);
}

static struct msg answer(struct client *client)
{
	return recv_msg(client->sock, NULL, WAIT_MS);
}

static int runs(struct client *client, __u64 count, __u64 *ns)
{
	struct msg msg;

	order(client, RUN, count);
	msg = answer(client);
	if (msg.ns < *ns)
		*ns = msg.ns;
	return msg.what == DONE && msg.count == count && !msg.errors;
}

/* The same queue and the same memory, in turns: only the mapping of the doorbell differs. */
static void measure(struct client *client)
{
	__u64 by_client = -1, by_owner = -1;
	struct queue *q = &client->queue;
	struct msg sum;
	int i, good = 1;

	q->mem = must(mmap(NULL, sizeof(*q->mem), PROT_READ | PROT_WRITE, MAP_SHARED,
			   client->memfd, 0));
	for (i = 0; i < ROUNDS; i++) {
		for (sum = (struct msg){}; sum.count < FEW; )
			work(q, 0, &sum);
		by_owner = sum.ns < by_owner ? sum.ns : by_owner;
		good &= !sum.errors && runs(client, FEW, &by_client);
	}
	munmap((void *)q->mem, sizeof(*q->mem));
	check(good, "the owner and a client use a queue in turns");
	printf("# requests per second: client %.0f, owner %.0f, ratio %.2f (best of %d)\n",
	       2e9 * FEW / by_client, 2e9 * FEW / by_owner,
	       (double)by_owner / by_client, ROUNDS);
}

int main(int argc, char **argv)
{
	__u64 start, reset, first, ns = 0;
	struct client a, b, c;
	struct msg msg;
	__u16 used;
	int good;

	if (argc == 2 && !strcmp(argv[0], "client"))
		return client_main(STDIN_FILENO, atoi(argv[1]));
	device_open(argc == 2 ? argv[1] : "BDF");
	must(device_start());
	check((char *)doorbell(1) - (char *)doorbell(0) == getpagesize(),
	      "each doorbell has a page of its own");

	start_client(&a, "1001");
	start_client(&b, "1002");
	start_client(&c, "1003");
	share(&a, 0);
	share(&b, 1);
	measure(&a);
	order(&b, RUN, 0);
	check(runs(&a, COUNT, &ns) && goes_on(&b), "two clients write and read at a time");
	order(&a, HANG, 0);
	check(goes_on(&a), "one of them hangs");

	start = now_ns();
	good = take_back(&a);
	reset = now_ns();
	used = used_idx(&a);
	share(&c, 0);
	good &= runs(&c, 1, &ns);
	first = now_ns();
	check(good, "its queue is taken from it, and a third client has it");
	printf("# us from revoke to the reset queue: %llu, the third client's first block: %llu\n",
	       (reset - start) / 1000, (first - start) / 1000);
	check(runs(&c, COUNT, &ns), "that writes and reads, while the first one rings on");
	order(&a, STOP, 0);
	msg = answer(&a);
	check(msg.what == REVOKED && msg.count && !msg.errors && used_idx(&a) == used,
	      "the first one gets nothing but SIGBUS, and cannot map its DMABUF");
	printf("# it rang %llu times\n", msg.count);
	good = goes_on(&b);
	order(&b, STOP, 0);
	msg = answer(&b);
	check(good && msg.what == DONE && !msg.errors, "the second one never has an error");
	printf("# it wrote and read %llu blocks\n", msg.count);

	device_close();
	order(&b, RUN, 1);
	order(&b, STOP, 0);
	check(answer(&b).what == REVOKED, "without the device the clients get SIGBUS");
	printf("%d passed, %d failed, 0 skipped\n", passed, failed);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
