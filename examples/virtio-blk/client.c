// SPDX-License-Identifier: GPL-2.0-only
/*
 * A client: a process of another uid that has a socket to the owner and nothing else. It
 * drives a queue of the device itself, through the one doorbell page that it gets as a
 * DMABUF, and must expect SIGBUS at each touch of that page.
 */
#include "vblk.h"

#include <grp.h>
#include <setjmp.h>
#include <signal.h>

static struct queue queue;
static struct msg sum;
static sigjmp_buf revoked;

static void on_sigbus(int sig, siginfo_t *info, void *context)
{
	(void)context;
	if (info->si_addr == (void *)queue.doorbell)
		siglongjmp(revoked, 1);
	signal(sig, SIG_DFL);	/* a bug: the same access again, without us */
}

static void *map_doorbell(int dmabuf)
{
	return mmap(NULL, getpagesize(), PROT_READ | PROT_WRITE, MAP_SHARED, dmabuf, 0);
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
	sum.errors = map_doorbell(dmabuf) != MAP_FAILED || errno != ENODEV;
	for (sigsetjmp(revoked, 1); recv_msg(sock, NULL, 0).what != STOP; sum.errors++) {
		sum.count++;
		*queue.doorbell = queue.index;
	}
}

int client_main(int sock, unsigned int uid)
{
	struct sigaction action = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO };
	struct msg msg = { .what = HELLO };
	int memfd, dmabuf = -1;

	must(setgroups(0, NULL));
	must(setresgid(uid, uid, uid));
	must(setresuid(uid, uid, uid));
	must(sigaction(SIGBUS, &action, NULL));

	memfd = must(memfd_create("queue", MFD_CLOEXEC));
	must(ftruncate(memfd, sizeof(*queue.mem)));
	queue.mem = must(mmap(NULL, sizeof(*queue.mem), PROT_READ | PROT_WRITE, MAP_SHARED,
			      memfd, 0));
	send_msg(sock, &msg, memfd);

	msg = recv_msg(sock, &dmabuf, -1);
	queue.iova = msg.iova;
	queue.index = msg.queue;
	queue.doorbell = must(map_doorbell(dmabuf));
	while ((msg = recv_msg(sock, NULL, -1)).what != SILENCE) {
		if (!sigsetjmp(revoked, 1))
			run(sock, &msg);
		else
			ring_on(sock, dmabuf);
		send_msg(sock, &sum, -1);
	}
	return EXIT_SUCCESS;
}
