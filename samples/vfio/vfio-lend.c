// SPDX-License-Identifier: GPL-2.0-only
/*
 * vfio-lend: lend slices of a PCI BAR to other processes, and take them back.
 *
 * One process, the owner, drives a PCI function through VFIO.  The function
 * has more than one MMIO frame (a doorbell page, a window of memory) and the
 * owner wants an unprivileged process, a client, to use one of them directly.
 * Handing over the VFIO device fd would hand over everything: all BARs, config
 * space, reset, DMA.  Instead:
 *
 *   owner                                    client
 *   -----                                    ------
 *   VFIO_DEVICE_FEATURE_DMA_BUF
 *     exports the slice as a DMABUF fd
 *   SCM_RIGHTS --------------------------->  gets the DMABUF fd, nothing else
 *                                            mmap()s it, works with the slice
 *   VFIO_DEVICE_PCI_DMABUF_REVOKE
 *     on the *device* fd
 *   returns 0                                from here on an access is SIGBUS
 *
 * What makes this safe to build on:
 *
 *  - The DMABUF names the slice and no byte more.  mmap() past its end is
 *    EINVAL, and no ioctl on it reaches the device: a client cannot export,
 *    revoke or reset.
 *  - A client that goes away need not take its access along.  The DMABUF fd may
 *    have been sent on, and a child inherits mappings.  So the owner revokes
 *    after each loan, also after one that ended well; it asks nobody.
 *  - Revoke is synchronous and for good.  Once it has returned 0, no mapping in
 *    any process reaches the slice and the buffer can never be used again.
 *    Then the slice can be lent anew, as a new DMABUF.
 *  - When the owner dies the kernel closes the device, and that ends all loans,
 *    as soon as importers let go.
 *
 * And what remains the owner's duty:
 *
 *  - Pages are the unit of lending.  Registers that share a page are lent
 *    together, and what they can do to the rest of the function only the device
 *    knows.  If a frame can start DMA, as that of QEMU's edu can, then the IOAS
 *    that the owner attached to the device is the limit of what the client
 *    reaches.  This owner attaches none, so DMA stays blocked.
 *  - Revoking does not clean.  The owner zeroes memory before it lends it.
 *  - Write-combining is for buffers.  What has side effects, or an order to keep,
 *    stays uncached.  The client needs a barrier before it tells the device.
 *  - A revoke waits for importers.  If clients may import the DMABUF elsewhere
 *    (iommufd, RDMA, a GPU) then it can take as long as that importer takes,
 *    and an owner should revoke in a thread.  CPU access has ended by then.  A
 *    signal ends the wait with EINTR: call again.
 *
 * Read vfio-lend-owner.c for the VFIO side, vfio-lend-client.c for the other,
 * which has no need to include linux/vfio.h but to show what it cannot do.
 * vfio-lend-demo.c plays a scenario with both.  See also "Sharing slices of a
 * BAR with other processes" in Documentation/driver-api/vfio.rst.
 *
 * To build it, with CONFIG_SAMPLES=y and CONFIG_SAMPLE_VFIO_LEND=y:
 *
 *   make samples/vfio/
 *
 * or by hand, here static for a guest that has no libraries:
 *
 *   make headers
 *   gcc -static -O2 -Iusr/include -o vfio-lend samples/vfio/vfio-lend*.c
 *
 * To try it, with both devices bound to vfio-pci (edu's registers in BAR 0 and
 * the memory of ivshmem-plain in BAR 2):
 *
 *   vfio-lend owner -s /tmp/lend -l regs,0000:01:00.0,0,0,0x1000,1,registers \
 *                                -l mem,0000:02:00.0,2,0,0x10000,4,memory \
 *                                -l buf,0000:02:00.0,2,0x40000,0x10000,1,buffer &
 *   vfio-lend client -s /tmp/lend -p mem -t 2000 use
 *
 * or everything at once:
 *
 *   VFIO_EDU_BDF=0000:01:00.0 VFIO_IVSHMEM_BDF=0000:02:00.0 vfio-lend demo
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "vfio-lend.h"

/* Who speaks, in front of each line */
const char *lend_who = "vfio-lend";

__u64 now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (__u64)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* As a poll() timeout: never negative, which would be for ever */
int ms_until(__u64 deadline)
{
	__u64 now = now_ms();

	if (deadline <= now)
		return 0;
	return deadline - now < INT_MAX ? (int)(deadline - now) : INT_MAX;
}

/* One write() per line: several processes share the output */
void vsay(const char *fmt, va_list args)
{
	char line[512];
	size_t len;

	snprintf(line, sizeof(line) - 1, "%s: ", lend_who);
	len = strlen(line);
	vsnprintf(line + len, sizeof(line) - 1 - len, fmt, args);
	len = strlen(line);
	line[len++] = '\n';
	if (write(STDOUT_FILENO, line, len) < 0)
		return;	/* nobody listens: no reason to stop working */
}

void say(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsay(fmt, args);
	va_end(args);
}

void die(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsay(fmt, args);
	va_end(args);
	exit(EXIT_FAILURE);
}

bool parse_u64(const char *text, __u64 max, __u64 *value)
{
	char *end;

	if (*text < '0' || *text > '9')
		return false;	/* strtoull() takes blanks and a minus */
	errno = 0;
	*value = strtoull(text, &end, 0);
	return !errno && !*end && *value <= max;
}

/* Names come from others, end on a terminal and may lack the final zero. */
void set_name(char *to, const char *from)
{
	int i;

	for (i = 0; i < LEND_NAME_LEN - 1 && from[i]; i++)
		to[i] = from[i] > ' ' && from[i] < 0x7f ? from[i] : '?';
	to[i] = '\0';
}

static const struct {
	const char *name;
	int (*run)(int argc, char **argv);
} commands[] = {
	{ "owner", lend_owner },
	{ "client", lend_client },
	{ "demo", lend_demo },
};

int main(int argc, char **argv)
{
	size_t i;

	for (i = 0; argc > 1 && i < sizeof(commands) / sizeof(*commands); i++) {
		if (!strcmp(argv[1], commands[i].name)) {
			lend_who = commands[i].name;
			return commands[i].run(argc - 1, argv + 1);
		}
	}

	fprintf(stderr,
		"Usage: vfio-lend owner | client | demo [OPTIONS]\n"
		"Lend slices of a PCI BAR to other processes; -h tells the options.\n");
	return EXIT_FAILURE;
}
