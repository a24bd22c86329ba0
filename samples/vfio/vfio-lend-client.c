// SPDX-License-Identifier: GPL-2.0-only
/*
 * A client: borrows a slice from the owner and works with it.  It needs no
 * privilege and no VFIO: the DMABUF fd that it is sent is all it has.
 *
 * A client must expect SIGBUS at each access: the loan may end at any time.
 * The pattern is in touch(): sigsetjmp() before the accesses, siglongjmp() out
 * of the handler.
 *
 * Besides "use" there are ways of misbehaving, which vfio-lend-demo.c uses to
 * show that none of them gets a client anything.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <linux/vfio.h>	/* only for what cannot be done: try_revoke() */

#include "vfio-lend.h"

#define EXIT_LOST	2	/* the slice was revoked during "use" */
#define EXIT_REFUSED	3	/* the owner did not lend one */

#define EDU_LIVENESS	(0x04 / 4)	/* reads as ~ of what was written */
#define GONE_MS		10000		/* longest wait for a promised SIGBUS */

struct loan {
	int sock;
	int dmabuf;
	enum lend_kind kind;
	bool combining;
	__u32 time_ms;
	size_t length;
	volatile __u32 *slice;
};

static const char *socket_path;
static char client_name[LEND_NAME_LEN] = "client";
static char pool_name[LEND_NAME_LEN];
static __u64 want_ms;
static __u64 patience_ms = 30000;

static volatile sig_atomic_t stop;

static void on_term(int sig)
{
	(void)sig;
	stop = 1;
}

/* Access */

static sigjmp_buf revoked;
static volatile const char *touch_start, *touch_end;

static void on_sigbus(int sig, siginfo_t *info, void *context)
{
	volatile const char *addr = info->si_addr;

	(void)context;
	if (addr >= touch_start && addr < touch_end)
		siglongjmp(revoked, 1);
	/* Not the slice, so a bug: the same access again, without us. */
	signal(sig, SIG_DFL);
}

static void catch_signals(void)
{
	struct sigaction bus = {
		.sa_sigaction = on_sigbus,
		.sa_flags = SA_SIGINFO,
	};
	struct sigaction term = { .sa_handler = on_term };

	sigaction(SIGBUS, &bus, NULL);
	sigaction(SIGTERM, &term, NULL);
	sigaction(SIGINT, &term, NULL);
}

/* What follows is done with the slice: each dies when it finds it spoilt */

static __u32 next_value(void)
{
	static __u32 value;

	value += (__u32)getpid() * 0x9e3779b1U + 1;	/* unlike the others' */
	return value;
}

static void use_registers(const struct loan *loan)
{
	__u32 value = next_value(), got;

	loan->slice[EDU_LIVENESS] = value;
	got = loan->slice[EDU_LIVENESS];
	if (got != ~value)
		die("FAIL: wrote 0x%x to the liveness register, read 0x%x",
		    value, got);
}

/*
 * Until here the CPU may keep, merge and reorder writes to write-combining
 * memory.  Before the device is told about them, by a write to a register in an
 * uncached slice, they have to be on their way.
 */
static void write_barrier(void)
{
#if defined(__x86_64__) || defined(__i386__)
	asm volatile("sfence" : : : "memory");
#elif defined(__aarch64__)
	asm volatile("dmb oshst" : : : "memory");
#else
	__sync_synchronize();
#endif
}

static void use_memory(const struct loan *loan)
{
	size_t i, words = loan->length / sizeof(__u32);
	__u32 value = next_value();

	for (i = 0; i < words; i++)
		loan->slice[i] = value + i;
	if (loan->combining)
		write_barrier();
	for (i = 0; i < words; i++)
		if (loan->slice[i] != (__u32)(value + i))
			die("FAIL: word %zu of my slice was changed by another",
			    i);
}

static void use_slice(const struct loan *loan)
{
	if (loan->kind == LEND_REGISTERS)
		use_registers(loan);
	else
		use_memory(loan);
}

/* What the last borrower left behind is nobody's business. */
static void check_clean(const struct loan *loan)
{
	size_t i;

	for (i = 0; i < loan->length / sizeof(__u32); i++)
		if (loan->slice[i])
			die("FAIL: the slice was lent with something in word %zu",
			    i);
	say("the slice came clean");
}

/* False when it is no longer ours */
static bool touch(const struct loan *loan,
		  void (*work)(const struct loan *loan))
{
	touch_start = (volatile const char *)loan->slice;
	touch_end = touch_start + loan->length;
	if (sigsetjmp(revoked, 1)) {
		touch_end = touch_start;
		return false;
	}
	work(loan);
	touch_end = touch_start;
	return true;
}

static void map_loan(struct loan *loan)
{
	loan->slice = mmap(NULL, loan->length, PROT_READ | PROT_WRITE,
			   MAP_SHARED, loan->dmabuf, 0);
	if (loan->slice == MAP_FAILED)
		die("FAIL: mmap the DMABUF: %s", strerror(errno));
}

/* Talking to the owner */

static int connect_owner(void)
{
	struct timeval limit = { .tv_sec = 5 };
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int sock;

	if (strlen(socket_path) >= sizeof(addr.sun_path))
		die("%s: path too long for a socket", socket_path);
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", socket_path);

	sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (sock < 0)
		die("socket: %s", strerror(errno));
	/* connect() and send() give up, too */
	setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	if (connect(sock, (struct sockaddr *)&addr, sizeof(addr)))
		die("connect to %s: %s", socket_path, strerror(errno));
	return sock;
}

/* The next reply, and the fd that came with it or -1; false at the end */
static bool recv_reply(int sock, struct lend_reply *reply, int *fd)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov = { .iov_base = reply, .iov_len = sizeof(*reply) };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.buf,
		.msg_controllen = sizeof(control.buf),
	};
	struct cmsghdr *cmsg;
	ssize_t len;

	*fd = -1;
	len = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	if (len <= 0)
		return false;
	if (len != sizeof(*reply) || reply->magic != LEND_MAGIC)
		die("FAIL: this is not the owner's language");

	cmsg = CMSG_FIRSTHDR(&msg);
	if (cmsg && cmsg->cmsg_level == SOL_SOCKET &&
	    cmsg->cmsg_type == SCM_RIGHTS &&
	    cmsg->cmsg_len == CMSG_LEN(sizeof(int)))
		memcpy(fd, CMSG_DATA(cmsg), sizeof(*fd));
	return true;
}

static bool readable(int sock, int timeout)
{
	struct pollfd pfd = { .fd = sock, .events = POLLIN };

	return poll(&pfd, 1, timeout) > 0;
}

static void got_loan(struct loan *loan, const struct lend_reply *reply)
{
	if (loan->dmabuf < 0)
		die("FAIL: the owner lent a slice but sent no DMABUF");
	loan->kind = reply->kind;
	loan->combining = reply->combining;
	loan->time_ms = reply->time_ms;
	loan->length = reply->length;
	say("was lent %zu bytes of %s for %u ms%s", loan->length, pool_name,
	    loan->time_ms, loan->combining ? ", write-combining" : "");
}

/* Ask, wait in the queue if need be, return with a slice or not at all. */
static void borrow(struct loan *loan)
{
	struct lend_request request = {
		.magic = LEND_MAGIC,
		.time_ms = want_ms,
	};
	__u64 deadline = now_ms() + patience_ms;
	struct lend_reply reply;

	set_name(request.name, client_name);
	set_name(request.pool, pool_name);
	loan->sock = connect_owner();
	if (send(loan->sock, &request, sizeof(request), MSG_NOSIGNAL) < 0)
		die("send the request: %s", strerror(errno));

	while (!stop && ms_until(deadline)) {
		/* Short naps, so that a signal just before is not missed */
		if (!readable(loan->sock, 100))
			continue;
		if (!recv_reply(loan->sock, &reply, &loan->dmabuf))
			die("the owner hung up");

		switch (reply.status) {
		case LEND_LENT:
			got_loan(loan, &reply);
			return;
		case LEND_QUEUED:
			say("waits in the queue at place %u", reply.place);
			break;
		default:
			say("is refused: %s", strerror(reply.error));
			exit(EXIT_REFUSED);
		}
	}
	say("gives up waiting");
	exit(EXIT_REFUSED);
}

/* What a client can do with a slice */

/* It is revoked: an access now, or one much later, must fail and mmap() too. */
static void check_gone(const struct loan *loan)
{
	void *again;
	int i;

	say("SIGBUS: the slice is no longer mine");
	for (i = 0; i < 5; i++) {
		usleep(200000);
		if (touch(loan, use_slice))
			die("FAIL: the revoked slice can be accessed again");
	}
	say("tried 5 more times within a second: SIGBUS each time");

	again = mmap(NULL, loan->length, PROT_READ, MAP_SHARED, loan->dmabuf, 0);
	if (again != MAP_FAILED || errno != ENODEV)
		die("FAIL: mmap of the revoked DMABUF: %s",
		    again == MAP_FAILED ? strerror(errno) : "succeeds");
	say("mmap of the revoked DMABUF: %s", strerror(ENODEV));
}

static int lost_it(const struct loan *loan)
{
	check_gone(loan);
	return EXIT_LOST;
}

/* As it should be: work, and give back in time or when asked to stop */
static int do_use(struct loan *loan)
{
	__u64 leave = now_ms() + loan->time_ms - loan->time_ms / 4;
	unsigned long rounds;
	bool told = false;

	map_loan(loan);
	if (loan->kind != LEND_REGISTERS && !touch(loan, check_clean))
		return lost_it(loan);

	for (rounds = 0; !stop && ms_until(leave); rounds++) {
		if (!touch(loan, use_slice))
			return lost_it(loan);
		if (!rounds)
			say("works with the slice");
		/* Revoked, or the owner is dead: then leave at SIGBUS */
		if (!told && readable(loan->sock, 10)) {
			say("hears that the loan has ended");
			told = true;
			leave = now_ms() + GONE_MS;
		}
	}
	if (told && !stop)
		die("FAIL: still has access");
	say("gives the slice back after %lu rounds", rounds);
	return EXIT_SUCCESS;
}

/* Keeps hammering, deaf to the owner, until the kernel stops it */
static int do_hang(struct loan *loan)
{
	__u64 deadline = now_ms() + loan->time_ms + GONE_MS;

	map_loan(loan);
	say("hangs: works on, and neither listens nor gives back");
	while (ms_until(deadline)) {
		if (!touch(loan, use_slice)) {
			check_gone(loan);
			return EXIT_SUCCESS;
		}
	}
	die("FAIL: still has access, %d ms after the end of the loan", GONE_MS);
}

/*
 * Leaves a child behind that has the mapping but not the connection: to the
 * owner the client is gone when its parent is, yet somebody still has access.
 */
static int do_orphan(struct loan *loan)
{
	static char name[LEND_NAME_LEN + 8];
	pid_t pid;

	map_loan(loan);
	pid = fork();
	if (pid < 0)
		die("fork: %s", strerror(errno));
	if (!pid) {
		snprintf(name, sizeof(name), "%s's child", client_name);
		lend_who = name;
		close(loan->sock);
		return do_hang(loan);
	}
	waitpid(pid, NULL, 0);
	die("FAIL: my child ended before I was killed");
}

static void expect_error(bool failed, int expected, const char *what)
{
	if (!failed)
		die("FAIL: %s succeeds", what);
	if (errno != expected)
		die("FAIL: %s: %s instead of %s", what, strerror(errno),
		    strerror(expected));
	say("%s: %s", what, strerror(errno));
}

static bool map_fails(const struct loan *loan, size_t length, off_t offset)
{
	return mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED,
		    loan->dmabuf, offset) == MAP_FAILED;
}

static int do_beyond(struct loan *loan)
{
	size_t page = sysconf(_SC_PAGESIZE);

	expect_error(map_fails(loan, loan->length + page, 0), EINVAL,
		     "mmap of the slice and one page more");
	expect_error(map_fails(loan, page, loan->length), EINVAL,
		     "mmap of the page behind the slice");
#if LONG_MAX > INT_MAX
	/* On the device fd this offset would be BAR 1 */
	expect_error(map_fails(loan, page, 1L << 40), EINVAL,
		     "mmap at the offset of another BAR");
#endif
	map_loan(loan);
	if (!touch(loan, use_slice))
		die("FAIL: SIGBUS in my own slice");
	say("what it was lent still works");
	return EXIT_SUCCESS;
}

static int do_revoke(struct loan *loan)
{
	struct vfio_pci_dmabuf_revoke revoke = {
		.argsz = sizeof(revoke),
		.dmabuf_fd = loan->dmabuf,
	};

	map_loan(loan);
	expect_error(ioctl(loan->dmabuf, VFIO_DEVICE_PCI_DMABUF_REVOKE, &revoke),
		     ENOTTY, "revoke through the DMABUF fd");
	expect_error(ioctl(loan->dmabuf, VFIO_DEVICE_RESET), ENOTTY,
		     "device reset through the DMABUF fd");
	expect_error(ioctl(loan->sock, VFIO_DEVICE_PCI_DMABUF_REVOKE, &revoke),
		     ENOTTY, "revoke through the socket, the only other fd");
	if (!touch(loan, use_slice))
		die("FAIL: SIGBUS in my own slice");
	say("what it was lent still works");
	return EXIT_SUCCESS;
}

/* No request at all; good when the owner hangs up */
static int do_garbage(void)
{
	static const char garbage[] = "give me all you have";
	struct lend_reply reply;
	int sock = connect_owner();
	int fd;

	if (send(sock, garbage, sizeof(garbage), MSG_NOSIGNAL) < 0)
		die("send: %s", strerror(errno));
	if (!readable(sock, GONE_MS))
		die("FAIL: no answer to garbage");
	if (recv_reply(sock, &reply, &fd)) {
		if (reply.status != LEND_REFUSED || fd >= 0)
			die("FAIL: got something for garbage");
		say("is refused: %s", strerror(reply.error));
	}
	if (!readable(sock, GONE_MS) || recv_reply(sock, &reply, &fd))
		die("FAIL: the connection goes on");
	return EXIT_SUCCESS;
}

static const struct {
	const char *name;
	int (*run)(struct loan *loan);
} actions[] = {
	{ "use", do_use },
	{ "hang", do_hang },
	{ "orphan", do_orphan },
	{ "beyond", do_beyond },
	{ "revoke", do_revoke },
};

static const char usage[] =
"Usage: vfio-lend client -s SOCKET -p POOL [OPTIONS] WHAT\n"
"Borrow a slice of a BAR. Exit status 0: went as it should, 1: it did not,\n"
"2: the slice was revoked during use, 3: was not lent one.\n"
"  -s SOCKET  where the owner listens\n"
"  -p POOL    the kind of slice\n"
"  -n NAME    for the log\n"
"  -t MS      time to ask for (0: what the owner gives)\n"
"  -w MS      longest wait in the queue (30000)\n"
"  -u UID     give up root for this user and group id first\n"
"WHAT is\n"
"  use        work with the slice, give it back in time or at SIGTERM\n"
"  hang       never give it back\n"
"  orphan     leave a child with the mapping behind\n"
"  beyond     try to map more than the slice\n"
"  revoke     try to revoke it\n"
"  garbage    send nonsense instead of a request\n";

static void become(const char *text)
{
	__u64 id;

	if (!parse_u64(text, INT_MAX, &id))
		die("-u: '%s' is no user id", text);
	if (setgroups(0, NULL) || setresgid(id, id, id) ||
	    setresuid(id, id, id))
		die("become user %s: %s", text, strerror(errno));
}

static void parse_options(int argc, char **argv)
{
	int opt;

	while ((opt = getopt(argc, argv, "hs:p:n:t:w:u:")) != -1) {
		switch (opt) {
		case 's':
			socket_path = optarg;
			break;
		case 'p':
			set_name(pool_name, optarg);
			break;
		case 'n':
			set_name(client_name, optarg);
			break;
		case 't':
			if (!parse_u64(optarg, INT_MAX, &want_ms))
				die("-t: '%s' is no time in ms", optarg);
			break;
		case 'w':
			if (!parse_u64(optarg, INT_MAX, &patience_ms))
				die("-w: '%s' is no time in ms", optarg);
			break;
		case 'u':
			become(optarg);
			break;
		case 'h':
			fputs(usage, stdout);
			exit(EXIT_SUCCESS);
		default:
			fputs(usage, stderr);
			exit(EXIT_FAILURE);
		}
	}
	if (optind != argc - 1 || !socket_path || !*pool_name)
		die("needs -s, -p and one word what to do; see -h");
}

int lend_client(int argc, char **argv)
{
	struct loan loan = {};
	const char *what;
	size_t i;

	parse_options(argc, argv);
	what = argv[optind];
	lend_who = client_name;
	catch_signals();

	if (!strcmp(what, "garbage"))
		return do_garbage();
	for (i = 0; i < sizeof(actions) / sizeof(*actions); i++) {
		if (!strcmp(what, actions[i].name)) {
			borrow(&loan);
			return actions[i].run(&loan);
		}
	}
	die("'%s' is nothing a client does; see -h", what);
}
