// SPDX-License-Identifier: GPL-2.0-only
/*
 * The owner: holds the VFIO devices, lends slices of their BARs over a Unix
 * socket and takes each back when its client disconnects, dies or overstays.
 * vfio-lend.c tells the idea.
 *
 * One thread, one poll loop, nothing that waits on a client: sockets are
 * non-blocking, and a client that is too slow for its own replies is dropped.
 * Who may connect is a matter of the socket's permissions (see umask(2)).
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <linux/iommufd.h>
#include <linux/vfio.h>

#include "vfio-lend.h"

#define MAX_DEVICES	8
#define MAX_POOLS	8
#define MAX_SLICES	64	/* of all pools */
#define MAX_CLIENTS	64
#define HELLO_MS	2000	/* from connect() to the request */

struct device {
	char bdf[16];
	int fd;
};

/* Slices of the same kind, side by side in a BAR */
struct pool {
	char name[LEND_NAME_LEN];
	struct device *dev;
	__u32 bar;
	__u64 offset;
	__u64 length;		/* of one slice */
	unsigned int count;
	enum lend_kind kind;
	char *memory;		/* LEND_MEMORY: the owner's own mapping */
};

struct slice {
	struct pool *pool;
	unsigned int index;	/* in its pool */
	int dmabuf;		/* -1: not lent */
	bool lost;		/* could not be revoked: never lend it again */
};

enum client_state {
	CLIENT_NONE,		/* this entry is free */
	CLIENT_NEW,		/* has not asked for anything yet */
	CLIENT_WAITING,		/* in the queue of its pool */
	CLIENT_HOLDING,		/* has a slice */
};

struct client {
	enum client_state state;
	int sock;
	pid_t pid;
	char name[LEND_NAME_LEN];
	struct pool *pool;
	struct slice *slice;
	__u64 ticket;		/* orders the queue */
	__u64 deadline;		/* CLIENT_NEW and CLIENT_HOLDING */
	__u32 time_ms;
};

static struct device devices[MAX_DEVICES];
static struct pool pools[MAX_POOLS];
static struct slice slices[MAX_SLICES];
static struct client clients[MAX_CLIENTS];
static unsigned int nr_devices, nr_pools, nr_slices;

static const char *socket_path;
static __u64 max_ms = 10000;
static __u64 max_queue = 8;
static int iommufd = -1;

/* Devices and what is lent of them */

static void cdev_path(const char *bdf, char *path, size_t size)
{
	char dir_path[PATH_MAX];
	struct dirent *entry;
	DIR *dir;

	snprintf(dir_path, sizeof(dir_path),
		 "/sys/bus/pci/devices/%s/vfio-dev", bdf);
	dir = opendir(dir_path);
	if (!dir)
		die("%s: %s (not bound to vfio-pci, or no VFIO_DEVICE_CDEV?)",
		    dir_path, strerror(errno));

	while ((entry = readdir(dir))) {
		if (strncmp(entry->d_name, "vfio", 4))
			continue;
		snprintf(path, size, "/dev/vfio/devices/%s", entry->d_name);
		closedir(dir);
		return;
	}
	die("%s: has no vfio entry", dir_path);
}

/*
 * Binding to an iommufd gives access to the device and claims its DMA.  An
 * owner that wants the device to do DMA would go on with IOMMU_IOAS_ALLOC, MAP
 * and VFIO_DEVICE_ATTACH_IOMMUFD_PT.  Without these all DMA is blocked, which
 * suits an owner that lends frames with DMA registers in them.
 */
static struct device *get_device(const char *bdf)
{
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind) };
	struct device *dev;
	char path[PATH_MAX];
	unsigned int i;

	for (i = 0; i < nr_devices; i++)
		if (!strcmp(devices[i].bdf, bdf))
			return &devices[i];

	if (nr_devices == MAX_DEVICES)
		die("no more than %d devices", MAX_DEVICES);
	dev = &devices[nr_devices++];
	snprintf(dev->bdf, sizeof(dev->bdf), "%s", bdf);

	if (iommufd < 0)
		iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	if (iommufd < 0)
		die("open /dev/iommu: %s", strerror(errno));

	cdev_path(bdf, path, sizeof(path));
	dev->fd = open(path, O_RDWR | O_CLOEXEC);
	if (dev->fd < 0)
		die("open %s: %s", path, strerror(errno));

	bind.iommufd = iommufd;
	if (ioctl(dev->fd, VFIO_DEVICE_BIND_IOMMUFD, &bind))
		die("%s: VFIO_DEVICE_BIND_IOMMUFD: %s", path, strerror(errno));
	say("opened %s as %s", bdf, path);
	return dev;
}

static void check_pool(struct pool *pool, struct vfio_region_info *info)
{
	__u64 page = sysconf(_SC_PAGESIZE);

	info->argsz = sizeof(*info);
	info->index = pool->bar;
	if (ioctl(pool->dev->fd, VFIO_DEVICE_GET_REGION_INFO, info))
		die("%s: VFIO_DEVICE_GET_REGION_INFO of BAR %u: %s",
		    pool->dev->bdf, pool->bar, strerror(errno));

	if (!pool->length || pool->length % page || pool->offset % page)
		die("%s: a slice is made of whole pages of %llu bytes",
		    pool->name, (unsigned long long)page);
	if (pool->offset > info->size ||
	    pool->count > (info->size - pool->offset) / pool->length)
		die("%s: reaches beyond BAR %u of %s, which has 0x%llx bytes",
		    pool->name, pool->bar, pool->dev->bdf,
		    (unsigned long long)info->size);
	if (pool->count > MAX_SLICES - nr_slices)
		die("no more than %d slices", MAX_SLICES);
}

static void map_pool(struct pool *pool, const struct vfio_region_info *info)
{
	pool->memory = mmap(NULL, pool->count * pool->length,
			    PROT_READ | PROT_WRITE, MAP_SHARED, pool->dev->fd,
			    info->offset + pool->offset);
	if (pool->memory == MAP_FAILED)
		die("%s: mmap BAR %u of %s: %s", pool->name, pool->bar,
		    pool->dev->bdf, strerror(errno));
}

static __u64 number(const char *text, __u64 max, const char *what)
{
	__u64 value;

	if (!parse_u64(text, max, &value))
		die("%s: '%s' is not a number from 0 to %llu", what, text,
		    (unsigned long long)max);
	return value;
}

/* NAME,BDF,BAR,OFFSET,LENGTH,COUNT,registers|memory|buffer */
static void add_pool(char *spec)
{
	struct vfio_region_info info = {};
	struct pool *pool;
	char *field[7];
	unsigned int i;

	for (i = 0; i < 7; i++) {
		field[i] = strsep(&spec, ",");
		if (!field[i])
			die("-l: %u of 7 fields, see -h", i);
	}
	if (spec)
		die("-l: more than 7 fields, see -h");
	if (nr_pools == MAX_POOLS)
		die("no more than %d pools", MAX_POOLS);
	if (strlen(field[1]) >= sizeof(devices[0].bdf) || strchr(field[1], '/'))
		die("-l: '%s' is no PCI address like 0000:01:00.0", field[1]);

	pool = &pools[nr_pools++];
	set_name(pool->name, field[0]);
	pool->bar = number(field[2], VFIO_PCI_BAR5_REGION_INDEX, "BAR");
	pool->offset = number(field[3], INT64_MAX, "OFFSET");
	pool->length = number(field[4], INT64_MAX, "LENGTH");
	pool->count = number(field[5], MAX_SLICES, "COUNT");
	if (!strcmp(field[6], "memory"))
		pool->kind = LEND_MEMORY;
	else if (!strcmp(field[6], "registers"))
		pool->kind = LEND_REGISTERS;
	else if (!strcmp(field[6], "buffer"))
		pool->kind = LEND_BUFFER;
	else
		die("-l: '%s' is not registers, memory or buffer", field[6]);
	if (!pool->count)
		die("-l: COUNT is 0");

	pool->dev = get_device(field[1]);
	check_pool(pool, &info);
	if (pool->kind != LEND_REGISTERS)
		map_pool(pool, &info);

	for (i = 0; i < pool->count; i++)
		slices[nr_slices++] = (struct slice){ pool, i, -1, false };
}

/* No memset(): what the compiler makes of it is not for device memory. */
static void zero_slice(const struct slice *slice)
{
	const struct pool *pool = slice->pool;
	volatile __u64 *word;
	__u64 i;

	word = (volatile __u64 *)(pool->memory + slice->index * pool->length);
	for (i = 0; i < pool->length / sizeof(*word); i++)
		word[i] = 0;
}

static int export_as(const struct slice *slice, __u32 memory_type)
{
	struct {
		struct vfio_device_feature head;
		struct vfio_device_feature_dma_buf dma_buf;
		struct vfio_region_dma_range range;
	} arg = {
		.head.argsz = sizeof(arg),
		.head.flags = VFIO_DEVICE_FEATURE_GET |
			      VFIO_DEVICE_FEATURE_DMA_BUF,
		.dma_buf.region_index = slice->pool->bar,
		.dma_buf.open_flags = O_RDWR | O_CLOEXEC,
		.dma_buf.flags = memory_type,
		.dma_buf.nr_ranges = 1,
		.range.offset = slice->pool->offset +
				slice->index * slice->pool->length,
		.range.length = slice->pool->length,
	};

	return ioctl(slice->pool->dev->fd, VFIO_DEVICE_FEATURE, &arg);
}

/*
 * Write-combining may be impossible on this machine or for this BAR (EOPNOTSUPP),
 * for these pages as they are in use (EBUSY), or unknown to an older kernel
 * (EINVAL).  Then uncached does as well, only slower.
 */
static int export_slice(const struct slice *slice, __u32 *combining)
{
	int fd;

	*combining = slice->pool->kind == LEND_BUFFER;
	if (*combining) {
		fd = export_as(slice, VFIO_DEVICE_FEATURE_DMA_BUF_ATTR_WC);
		if (fd >= 0)
			return fd;
		say("%s/%u cannot be write-combining: %s", slice->pool->name,
		    slice->index, strerror(errno));
		*combining = 0;
	}
	return export_as(slice, VFIO_DEVICE_FEATURE_DMA_BUF_ATTR_UC);
}

/*
 * Nobody has access to the slice when this returns, whatever its client did and
 * whoever else got hold of the DMABUF; or the slice is marked as lost.
 */
static void revoke_slice(struct slice *slice)
{
	struct vfio_pci_dmabuf_revoke revoke = {
		.argsz = sizeof(revoke),
		.dmabuf_fd = slice->dmabuf,
	};
	int ret;

	do {
		ret = ioctl(slice->pool->dev->fd, VFIO_DEVICE_PCI_DMABUF_REVOKE,
			    &revoke);
	} while (ret && errno == EINTR);

	/* EBADFD: was revoked before, nothing is left to do */
	if (ret && errno != EBADFD) {
		slice->lost = true;
		say("LOST %s/%u: VFIO_DEVICE_PCI_DMABUF_REVOKE: %s",
		    slice->pool->name, slice->index, strerror(errno));
	} else {
		say("revoked %s/%u", slice->pool->name, slice->index);
	}
	close(slice->dmabuf);
	slice->dmabuf = -1;
}

/* Clients */

static int send_reply(int sock, struct lend_reply *reply, int fd)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {};
	struct iovec iov = { .iov_base = reply, .iov_len = sizeof(*reply) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	struct cmsghdr *cmsg;

	reply->magic = LEND_MAGIC;
	if (fd >= 0) {
		msg.msg_control = control.buf;
		msg.msg_controllen = sizeof(control.buf);
		cmsg = CMSG_FIRSTHDR(&msg);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(cmsg), &fd, sizeof(fd));
	}
	return sendmsg(sock, &msg, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -1 : 0;
}

/* Ends the connection and with it the loan: revoke first, talk later. */
static void drop_client(struct client *client, enum lend_status status,
			int error)
{
	struct lend_reply reply = { .status = status, .error = error };

	if (client->state == CLIENT_HOLDING)
		revoke_slice(client->slice);
	/* It may be gone, or not read its messages: that is its own affair. */
	(void)send_reply(client->sock, &reply, -1);
	close(client->sock);
	*client = (struct client){ .state = CLIENT_NONE };
}

static void refuse(struct client *client, int error, const char *why)
{
	say("refuse %s (pid %d): %s", client->name, client->pid, why);
	drop_client(client, LEND_REFUSED, error);
}

static void lend(struct client *client, struct slice *slice)
{
	struct lend_reply reply = {
		.status = LEND_LENT,
		.kind = slice->pool->kind,
		.time_ms = client->time_ms,
		.length = slice->pool->length,
	};

	if (slice->pool->kind != LEND_REGISTERS)
		zero_slice(slice);

	slice->dmabuf = export_slice(slice, &reply.combining);
	if (slice->dmabuf < 0) {
		int error = errno;

		say("export %s/%u: %s", slice->pool->name, slice->index,
		    strerror(error));
		refuse(client, error, "the slice cannot be exported");
		return;
	}

	client->state = CLIENT_HOLDING;
	client->slice = slice;
	client->deadline = now_ms() + client->time_ms;
	say("lend %s/%u%s to %s (pid %d) for %u ms", slice->pool->name,
	    slice->index, reply.combining ? ", write-combining," : "",
	    client->name, client->pid, client->time_ms);
	if (send_reply(client->sock, &reply, slice->dmabuf)) {
		say("cannot send to %s: %s", client->name, strerror(errno));
		drop_client(client, LEND_REVOKED, 0);
	}
}

static struct slice *free_slice(const struct pool *pool, bool *any_usable)
{
	struct slice *found = NULL;
	unsigned int i;

	*any_usable = false;
	for (i = 0; i < nr_slices; i++) {
		if (slices[i].pool != pool || slices[i].lost)
			continue;
		*any_usable = true;
		if (!found && slices[i].dmabuf < 0)
			found = &slices[i];
	}
	return found;
}

static struct client *first_in_queue(const struct pool *pool, __u64 *length)
{
	struct client *first = NULL;
	unsigned int i;

	*length = 0;
	for (i = 0; i < MAX_CLIENTS; i++) {
		struct client *client = &clients[i];

		if (client->state != CLIENT_WAITING || client->pool != pool)
			continue;
		++*length;
		if (!first || client->ticket < first->ticket)
			first = client;
	}
	return first;
}

/* Each turn takes one client out of the queue, one way or the other. */
static void serve_queue(const struct pool *pool)
{
	struct client *client;
	struct slice *slice;
	bool any_usable;
	__u64 length;

	while ((client = first_in_queue(pool, &length))) {
		slice = free_slice(pool, &any_usable);
		if (slice)
			lend(client, slice);
		else if (!any_usable)
			refuse(client, ENODEV, "all slices are lost");
		else
			return;
	}
}

static struct pool *find_pool(const char *name)
{
	unsigned int i;

	for (i = 0; i < nr_pools; i++)
		if (!strcmp(pools[i].name, name))
			return &pools[i];
	return NULL;
}

static void handle_request(struct client *client,
			   const struct lend_request *request)
{
	struct lend_reply reply = { .status = LEND_QUEUED };
	static __u64 next_ticket;
	char pool[LEND_NAME_LEN];
	bool any_usable;
	__u64 waiting;

	set_name(client->name, request->name);
	set_name(pool, request->pool);
	client->pool = find_pool(pool);
	if (!client->pool) {
		refuse(client, ENOENT, "asks for an unknown pool");
		return;
	}

	client->time_ms = max_ms;
	if (request->time_ms && request->time_ms < max_ms)
		client->time_ms = request->time_ms;

	first_in_queue(client->pool, &waiting);
	client->ticket = next_ticket++;
	if (!waiting && free_slice(client->pool, &any_usable)) {
		client->state = CLIENT_WAITING;	/* serve_queue() is next */
		return;
	}
	if (waiting >= max_queue) {
		refuse(client, EBUSY, "the queue is full");
		return;
	}

	client->state = CLIENT_WAITING;
	reply.place = waiting + 1;
	say("%s (pid %d) waits for %s at place %u", client->name, client->pid,
	    pool, reply.place);
	if (send_reply(client->sock, &reply, -1)) {
		say("cannot send to %s: %s", client->name, strerror(errno));
		drop_client(client, LEND_REFUSED, EIO);
	}
}

/* Any fds a client sends along are closed by the kernel: no control buffer. */
static void handle_client(struct client *client)
{
	struct lend_request request;
	ssize_t len;

	/* MSG_TRUNC: the true length, also of a message that is too long */
	len = recv(client->sock, &request, sizeof(request),
		   MSG_DONTWAIT | MSG_TRUNC);
	if (len < 0 && (errno == EAGAIN || errno == EINTR))
		return;

	if (len <= 0) {
		say("%s (pid %d) is gone", client->name, client->pid);
		drop_client(client, LEND_REVOKED, 0);
	} else if (client->state != CLIENT_NEW || len != sizeof(request) ||
		   request.magic != LEND_MAGIC) {
		say("%s (pid %d) sent garbage", client->name, client->pid);
		drop_client(client, LEND_REFUSED, EPROTO);
	} else {
		handle_request(client, &request);
	}
}

static void handle_deadline(struct client *client)
{
	if (client->state == CLIENT_NEW) {
		refuse(client, ETIMEDOUT, "connected, but asked for nothing");
		return;
	}
	say("%s (pid %d) overstays its %u ms", client->name, client->pid,
	    client->time_ms);
	drop_client(client, LEND_REVOKED, 0);
}

static void accept_client(int listener)
{
	struct lend_reply busy = { .status = LEND_REFUSED, .error = EBUSY };
	struct client *client = NULL;
	struct ucred peer = {};
	socklen_t len = sizeof(peer);
	unsigned int i;
	int sock;

	sock = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (sock < 0) {
		if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
			say("accept: %s", strerror(errno));
		return;
	}

	for (i = 0; i < MAX_CLIENTS && !client; i++)
		if (clients[i].state == CLIENT_NONE)
			client = &clients[i];
	if (!client) {
		say("refuse a connection: there are %d already", MAX_CLIENTS);
		(void)send_reply(sock, &busy, -1);
		close(sock);
		return;
	}

	getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &peer, &len);
	*client = (struct client){
		.state = CLIENT_NEW,
		.sock = sock,
		.pid = peer.pid,
		.name = "(new)",
		.deadline = now_ms() + HELLO_MS,
	};
}

/* The loop */

static bool has_deadline(const struct client *client)
{
	return client->state == CLIENT_NEW || client->state == CLIENT_HOLDING;
}

static int next_timeout(void)
{
	int timeout = INT_MAX;
	unsigned int i;

	for (i = 0; i < MAX_CLIENTS; i++) {
		int ms;

		if (!has_deadline(&clients[i]))
			continue;
		ms = ms_until(clients[i].deadline);
		if (ms < timeout)
			timeout = ms;
	}
	return timeout;
}

/* Until SIGTERM or SIGINT */
static void run(int listener, int signals)
{
	/* A negative fd is skipped by poll(): clients[i] has fds[i] */
	struct pollfd fds[MAX_CLIENTS + 2];
	unsigned int i;

	for (;;) {
		for (i = 0; i < MAX_CLIENTS; i++) {
			fds[i].fd = clients[i].state ? clients[i].sock : -1;
			fds[i].events = POLLIN;
		}
		fds[i++] = (struct pollfd){ .fd = listener, .events = POLLIN };
		fds[i++] = (struct pollfd){ .fd = signals, .events = POLLIN };

		if (poll(fds, i, next_timeout()) < 0 && errno != EINTR)
			die("poll: %s", strerror(errno));
		if (fds[MAX_CLIENTS + 1].revents)
			return;

		/* Before accept: it may reuse an entry that is freed here. */
		for (i = 0; i < MAX_CLIENTS; i++) {
			if (clients[i].state && fds[i].revents)
				handle_client(&clients[i]);
			if (has_deadline(&clients[i]) &&
			    !ms_until(clients[i].deadline))
				handle_deadline(&clients[i]);
		}
		if (fds[MAX_CLIENTS].revents)
			accept_client(listener);
		for (i = 0; i < nr_pools; i++)
			serve_queue(&pools[i]);
	}
}

static int listen_on(const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int sock;

	if (strlen(path) >= sizeof(addr.sun_path))
		die("%s: a socket's path has less than %zu characters", path,
		    sizeof(addr.sun_path));
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);

	sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (sock < 0)
		die("socket: %s", strerror(errno));
	if (bind(sock, (struct sockaddr *)&addr, sizeof(addr)))
		die("bind %s: %s%s", path, strerror(errno), errno == EADDRINUSE ?
		    " (remove it if no other owner runs)" : "");
	if (listen(sock, MAX_CLIENTS)) {
		unlink(path);
		die("listen on %s: %s", path, strerror(errno));
	}
	return sock;
}

static int catch_signals(void)
{
	sigset_t set;
	int fd;

	/* Blocked, they interrupt nothing, a running revoke included. */
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	fd = signalfd(-1, &set, SFD_CLOEXEC);
	if (fd < 0)
		die("signalfd: %s", strerror(errno));
	return fd;
}

static const char usage[] =
"Usage: vfio-lend owner -s SOCKET -l SLICES [-l SLICES]... [-t MS] [-q N]\n"
"Own VFIO PCI devices and lend slices of their BARs until SIGTERM.\n"
"  -s SOCKET  Unix socket to listen on\n"
"  -l NAME,BDF,BAR,OFFSET,LENGTH,COUNT,registers|memory|buffer\n"
"             lend COUNT slices of LENGTH bytes, side by side from OFFSET;\n"
"             a buffer is memory that is write-combining where possible\n"
"  -t MS      the longest loan (10000)\n"
"  -q N       how many may wait for slices of one NAME (8)\n";

static void parse_options(int argc, char **argv)
{
	int opt;

	while ((opt = getopt(argc, argv, "hs:l:t:q:")) != -1) {
		switch (opt) {
		case 's':
			socket_path = optarg;
			break;
		case 'l':
			add_pool(optarg);
			break;
		case 't':
			max_ms = number(optarg, INT_MAX, "-t");
			break;
		case 'q':
			max_queue = number(optarg, MAX_CLIENTS, "-q");
			break;
		case 'h':
			fputs(usage, stdout);
			exit(EXIT_SUCCESS);
		default:
			fputs(usage, stderr);
			exit(EXIT_FAILURE);
		}
	}
	if (optind != argc || !socket_path || !nr_pools || !max_ms)
		die("needs -s and -l, -t above 0, nothing else; see -h");
}

int lend_owner(int argc, char **argv)
{
	int signals, listener;
	bool lost = false;
	unsigned int i;

	parse_options(argc, argv);
	signals = catch_signals();
	listener = listen_on(socket_path);
	say("ready: %u slices on %s", nr_slices, socket_path);

	run(listener, signals);

	close(listener);
	unlink(socket_path);
	for (i = 0; i < MAX_CLIENTS; i++)
		if (clients[i].state)
			drop_client(&clients[i], LEND_REVOKED, 0);
	for (i = 0; i < nr_slices; i++)
		lost |= slices[i].lost;
	say("ends: %s", lost ? "slices were lost" : "all slices are back");
	return lost ? EXIT_FAILURE : EXIT_SUCCESS;
}
