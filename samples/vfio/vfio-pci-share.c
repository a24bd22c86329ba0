// SPDX-License-Identifier: GPL-2.0-only
/*
 * vfio-pci-share: share slices of a PCI BAR with other processes
 *
 *   owner                                    client
 *   VFIO_DEVICE_FEATURE_DMA_BUF
 *     exports a slice as a DMABUF
 *   SCM_RIGHTS --------------------------->  mmap()s it, works with the device
 *   VFIO_DEVICE_PCI_DMABUF_REVOKE            then an access raises SIGBUS
 *
 * A DMABUF gives access to its slice only. A client may pass it on, so the
 * owner revokes it after each use, also when the client has left. Then the
 * owner can clear the slice and export it again, as a new DMABUF.
 *
 * A client brings a page of its own memory for DMA, as a memfd that the owner
 * maps in the IOAS of the device. All clients share that IOAS: registers that
 * start DMA let their client reach the pages of the others. Where that matters,
 * give each client its own function (SR-IOV), or do the DMA in the owner.
 *
 * To try it with QEMU's edu, bound to vfio-pci ("memory" is for ivshmem-plain):
 *   vfio-pci-share owner /tmp/edu 0000:01:00.0 0 0 0x1000 1 5000 &
 *   vfio-pci-share registers /tmp/edu 20
 * Clients of other users need the right to write to the socket.
 * Documentation/driver-api/vfio.rst describes the interface.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <linux/iommufd.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>

/* Comes with the DMABUF. The request has a memfd and one byte. */
struct reply {
	__u64 length;
	__u64 iova;
};

static int check(int ret, const char *what)
{
	if (ret < 0)
		err(1, "%s", what);
	return ret;
}

static int unix_socket(const char *path, struct sockaddr_un *addr)
{
	*addr = (struct sockaddr_un) { .sun_family = AF_UNIX };
	snprintf(addr->sun_path, sizeof(addr->sun_path), "%s", path);
	return check(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), path);
}

/* Send a message and an fd, or receive both: one fd only. Returns it or -1. */
static int transfer(int sock, void *data, size_t len, int fd)
{
	char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8))) = {};
	struct iovec iov = { data, len };
	struct msghdr msg = { NULL, 0, &iov, 1, control, CMSG_LEN(sizeof(fd)),
			      0 };
	struct cmsghdr *cmsg = (struct cmsghdr *)control;

	if (fd >= 0) {
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(cmsg), &fd, sizeof(int));
		return sendmsg(sock, &msg, MSG_NOSIGNAL) < 0 ? -1 : fd;
	}
	if (recvmsg(sock, &msg, MSG_CMSG_CLOEXEC) > 0 && msg.msg_controllen)
		memcpy(&fd, CMSG_DATA(cmsg), sizeof(int));
	return fd;
}

static int device_fd, iommufd;	/* of the owner */
static __u32 ioas_id, bar;
static __u64 slice_length;

static void open_device(const char *bdf)
{
	struct vfio_device_attach_iommufd_pt pt = { .argsz = sizeof(pt) };
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind) };
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
	struct vfio_region_info config = {
		.argsz = sizeof(config), .index = VFIO_PCI_CONFIG_REGION_INDEX,
	};
	__u16 command = PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
	char path[128];
	glob_t found;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/vfio-dev/vfio*",
		 bdf);
	if (glob(path, 0, NULL, &found))
		errx(1, "%s is not bound to vfio-pci", bdf);
	snprintf(path, sizeof(path), "/dev/vfio/devices/%s",
		 strrchr(found.gl_pathv[0], '/') + 1);
	device_fd = check(open(path, O_RDWR | O_CLOEXEC), path);
	iommufd = check(open("/dev/iommu", O_RDWR | O_CLOEXEC), "/dev/iommu");
	bind.iommufd = iommufd;
	check(ioctl(device_fd, VFIO_DEVICE_BIND_IOMMUFD, &bind), "bind");
	check(ioctl(iommufd, IOMMU_IOAS_ALLOC, &alloc), "IOMMU_IOAS_ALLOC");
	ioas_id = alloc.out_ioas_id;
	pt.pt_id = ioas_id;
	check(ioctl(device_fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &pt), "attach");
	check(ioctl(device_fd, VFIO_DEVICE_GET_REGION_INFO, &config), "config");
	check(pwrite(device_fd, &command, sizeof(command),
		     config.offset + PCI_COMMAND), "PCI_COMMAND");
}

static int export_slice(__u64 offset)
{
	struct {
		struct vfio_device_feature head;
		struct vfio_device_feature_dma_buf dma_buf;
		struct vfio_region_dma_range range;
	} arg = {
		.head.argsz = sizeof(arg),
		.head.flags = VFIO_DEVICE_FEATURE_GET |
			      VFIO_DEVICE_FEATURE_DMA_BUF,
		.dma_buf.region_index = bar,
		.dma_buf.open_flags = O_RDWR | O_CLOEXEC,
		.dma_buf.nr_ranges = 1,
		.range = { offset, slice_length },
	};

	return check(ioctl(device_fd, VFIO_DEVICE_FEATURE, &arg), "export");
}

static void serve(int sock, __u64 offset, int ms)
{
	struct vfio_pci_dmabuf_revoke arg = { .argsz = sizeof(arg) };
	struct reply reply = {};
	struct iommu_ioas_map_file map = {
		.size = sizeof(map),
		.flags = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
		.ioas_id = ioas_id,
		.length = sysconf(_SC_PAGESIZE),
	};
	struct iommu_ioas_unmap unmap = {
		.size = sizeof(unmap), .ioas_id = ioas_id, .length = map.length,
	};
	struct pollfd pollfd = { .fd = sock, .events = POLLIN };
	int ret;

	map.fd = poll(&pollfd, 1, ms) == 1 ? transfer(sock, &reply, 1, -1) : -1;
	if (map.fd < 0 || ioctl(iommufd, IOMMU_IOAS_MAP_FILE, &map))
		goto out;
	unmap.iova = map.iova;
	arg.dmabuf_fd = export_slice(offset);
	reply = (struct reply) { slice_length, map.iova };
	if (transfer(sock, &reply, sizeof(reply), arg.dmabuf_fd) >= 0)
		printf("0x%llx: client %s\n", offset, poll(&pollfd, 1, ms) ?
		       "has left" : "timed out");

	do {
		ret = ioctl(device_fd, VFIO_DEVICE_PCI_DMABUF_REVOKE, &arg);
	} while (ret && errno == EINTR);
	if (ret && errno != EBADFD)	/* EBADFD: a reset has completed it */
		err(1, "revoke");
	/* Where DMA can outlive the client, end that here. */
	check(ioctl(iommufd, IOMMU_IOAS_UNMAP, &unmap), "IOMMU_IOAS_UNMAP");
	printf("0x%llx revoked\n", offset);
	close(arg.dmabuf_fd);
out:
	close(map.fd);
	close(sock);
}

/*
 * One process per slice, which serves one client at a time. If a client has the
 * DMABUF imported by a slow driver, only this process waits in the revoke.
 */
static void owner(const char *path, __u64 offset, int nr, int ms)
{
	struct sockaddr_un addr;
	int listener = unix_socket(path, &addr);

	unlink(path);
	check(bind(listener, (void *)&addr, sizeof(addr)), path);
	check(listen(listener, 16), "listen");
	printf("ready\n");
	for (; nr > 1; nr--, offset += slice_length) {
		if (!check(fork(), "fork")) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			break;
		}
	}
	/* Until it is killed. The close of the device revokes all slices. */
	for (;;)
		serve(accept(listener, NULL, NULL), offset, ms);
}

static sigjmp_buf revoked;	/* of the client */

static void on_sigbus(int sig)
{
	(void)sig;
	siglongjmp(revoked, 1);
}

static void edu_wait(volatile __u64 *regs)
{
	while (regs[0x98 / 8] & 1)
		usleep(1000);
	__sync_synchronize();	/* between DMA and memory; arm64: "dmb osh" */
}

/* Copy 1024 bytes of memory to a buffer in the edu device, or back. */
static void edu_dma(volatile __u64 *regs, __u64 src, __u64 dst, int command)
{
	edu_wait(regs);		/* the last client may have left a transfer */
	regs[0x80 / 8] = src;
	regs[0x88 / 8] = dst;
	regs[0x90 / 8] = 1024;
	regs[0x98 / 8] = command | 1;
}

static void use_registers(volatile void *slice, __u32 *memory, __u64 iova)
{
	memory[0]++;
	edu_dma(slice, iova, 0x40000, 0);
	edu_dma(slice, 0x40000, iova + 1024, 2);
	edu_wait(slice);
	if (memory[0] != memory[1024 / 4])
		errx(1, "DMA did not arrive");
}

static void use_memory(volatile __u32 *slice, __u64 length, __u32 value)
{
	__u64 i;

	for (i = 0; i < length / 4; i++)
		slice[i] = value + i;
	while (i--)
		if (slice[i] != (__u32)(value + i))
			errx(1, "the slice is not exclusive");
}

/* Works until it is killed, the slice is revoked or @nr_rounds are done */
static void client(const char *path, int is_memory, int nr_rounds)
{
	int i, size = sysconf(_SC_PAGESIZE);
	int memfd = check(memfd_create("dma", MFD_CLOEXEC), "memfd_create");
	struct sockaddr_un addr;
	int dmabuf, sock = unix_socket(path, &addr);
	void *slice, *memory;
	struct reply reply;

	check(ftruncate(memfd, size), "ftruncate");
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	check(connect(sock, (void *)&addr, sizeof(addr)), path);
	check(transfer(sock, "", 1, memfd), "send");
	dmabuf = transfer(sock, &reply, sizeof(reply), -1);
	slice = mmap(NULL, reply.length, PROT_READ | PROT_WRITE, MAP_SHARED,
		     dmabuf, 0);
	if (slice == MAP_FAILED || memory == MAP_FAILED)
		err(1, "no slice");
	printf("works with 0x%llx bytes\n", reply.length);
	signal(SIGBUS, on_sigbus);
	if (sigsetjmp(revoked, 1))
		errx(2, "SIGBUS: the slice is revoked");
	for (i = 0; i != nr_rounds; i++) {
		if (is_memory)
			use_memory(slice, reply.length, getpid() + i);
		else
			use_registers(slice, memory, reply.iova);
	}
	printf("leaves\n");
}

int main(int argc, char **argv)
{
	setlinebuf(stdout);
	if (argc == 9 && !strcmp(argv[1], "owner")) {
		bar = strtoul(argv[4], NULL, 0);
		slice_length = strtoull(argv[6], NULL, 0);
		open_device(argv[3]);
		owner(argv[2], strtoull(argv[5], NULL, 0), atoi(argv[7]),
		      atoi(argv[8]));
	} else if (argc == 4) {
		client(argv[2], !strcmp(argv[1], "memory"), atoi(argv[3]));
		return 0;
	}
	errx(1, "usage: owner SOCKET BDF BAR OFFSET LENGTH COUNT MILLISECONDS\n"
	     "memory|registers SOCKET ROUNDS");
}
