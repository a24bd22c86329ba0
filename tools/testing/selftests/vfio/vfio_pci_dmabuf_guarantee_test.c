// SPDX-License-Identifier: GPL-2.0-only
/*
 * VFIO_DEVICE_PCI_DMABUF_REVOKE guarantees: once it has returned 0, no process
 * and no device reaches the memory through that DMABUF, by any means. A client of
 * another uid, without capabilities, tries each of them before and after the revoke.
 */
#include <fcntl.h>
#include <grp.h>

#include <arpa/inet.h>
#include <netinet/in.h>

#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>

/* For io_uring.h, as linux/types.h of tools/include does not include it */
#include <linux/stddef.h>
#include <linux/io_uring.h>
#include <linux/mman.h>
#include <linux/sizes.h>

#include "kselftest_harness.h"

#include <libvfio/dmabuf_test.h>

#define BLOCK_DEVICE	"/dev/ram0"	/* Only read from */

/* The part of the BAR that is exported: one large page */
#define SLICE_SIZE	SZ_2M

/* Where the client maps the slice for DMA, and where it tries to do so again */
#define SLICE_IOVA	((iova_t)SZ_1G)
#define OTHER_IOVA	(SLICE_IOVA + SLICE_SIZE)

/* The mapping that is used: of the slice by small or large pages, or of memory */
enum target { SMALL, LARGE, RAM };

/* A third process gets the DMABUF from the client, a child inherits its mappings. */
enum actor { CLIENT, THIRD, CHILD, NEW_CHILD };

/*
 * A pin is a read that works for RAM. It is refused for device memory, except
 * by IOAS_MAP, which maps the DMABUF then.
 */
enum kind { READ, WRITE, PIN };

struct attempt {
	const char *name;
	/* Returns 0, -errno or the signal that was raised */
	int (*try)(struct attempt *a);
	enum actor actor;
	enum kind kind;
	int expected[2];	/* Before the revoke, and after it */
	enum target target;
	u32 pattern;		/* In the slice; its inverse is what is written */
	u32 seen;		/* What was read */
};

/* Of the client process, and in part of the other actors */
static struct {
	int fd, block_fd, kvm_fd;
	void *map[3];
	struct vfio_client *actor[4];
	struct vfio_vm *vm;
	struct iommu *iommu;
	struct vfio_pci_device *edu;
} client;

static int result(ssize_t ret)
{
	return ret < 0 ? -errno : 0;
}

static int cpu_access(struct attempt *a)
{
	void *vaddr = client.map[a->target];

	return a->kind == WRITE ? try_write32(vaddr, ~a->pattern) :
				  try_read32(vaddr, &a->seen);
}

static int new_mmap(struct attempt *a)
{
	void *vaddr;
	int ret = __mmap_shared(client.fd, 0, SLICE_SIZE, PROT_READ, &vaddr);

	return ret ?: try_read32(vaddr, &a->seen);
}

/* The client has no device, or one that is not that of the DMABUF. */
static int try_revoke(struct attempt *a)
{
	return __vfio_pci_dmabuf_revoke_fd(client.edu ? client.edu->fd :
					   client.fd, client.fd);
}

/* A pipe refers to the pages, or the kernel copies from or to the mapping. */
static int pipe_access(struct attempt *a)
{
	struct iovec iov = { client.map[a->target], sizeof(u32) };
	int ret, p[2];

	VFIO_ASSERT_EQ(pipe(p), 0);
	if (a->kind == WRITE) {
		a->seen = ~a->pattern;
		VFIO_ASSERT_EQ(write(p[1], &a->seen, sizeof(u32)), sizeof(u32));
		return result(readv(p[0], &iov, 1));
	}
	ret = result(a->kind == PIN ? vmsplice(p[1], &iov, 1, 0) :
				      writev(p[1], &iov, 1));
	if (!ret)
		VFIO_ASSERT_EQ(read(p[0], &a->seen, sizeof(u32)), sizeof(u32));
	return ret;
}

/* Calls of a process on its mapping. Device memory cannot be populated. */
static int changed_read(struct attempt *a)
{
	void *to = mmap_reserve(SLICE_SIZE, SZ_2M,
				a->target == SMALL ? page_size : 0);
	void *map = client.map[a->target];

	VFIO_ASSERT_EQ(mprotect(map, SLICE_SIZE, PROT_NONE), 0);
	VFIO_ASSERT_EQ(mprotect(map, SLICE_SIZE, PROT_READ | PROT_WRITE), 0);
	VFIO_ASSERT_EQ(mlock(map, SLICE_SIZE), 0);
	VFIO_ASSERT_EQ(madvise(map, SLICE_SIZE, MADV_DONTFORK), 0);
	VFIO_ASSERT_EQ(madvise(map, SLICE_SIZE, MADV_POPULATE_WRITE), -1);
	VFIO_ASSERT_EQ(mremap(map, SLICE_SIZE, SLICE_SIZE,
			      MREMAP_MAYMOVE | MREMAP_FIXED, to), to);
	client.map[a->target] = to;
	return cpu_access(a);
}

static int dma(struct attempt *a, iova_t iova)
{
	struct dma_region *region = &client.edu->driver.region;
	/* The driver uses the lower half. */
	u32 *val = region->vaddr + region->size / 2;
	iova_t ram = region->iova + region->size / 2;

	*val = ~a->pattern;
	VFIO_ASSERT_EQ(vfio_pci_driver_memcpy(client.edu,
					      a->kind == WRITE ? ram : iova,
					      a->kind == WRITE ? iova : ram,
					      sizeof(*val)), 0);
	a->seen = *val;
	return 0;
}

static int dma_access(struct attempt *a)
{
	return dma(a, SLICE_IOVA);
}

static int map_again(struct attempt *a)
{
	struct dma_region region = {
		.vaddr = client.map[a->target],
		.size = SLICE_SIZE,
		.iova = OTHER_IOVA,
	};
	int ret = a->kind == PIN ? __iommu_map(client.iommu, &region) :
		  __iommu_map_file(client.iommu, client.fd, 0, SLICE_SIZE,
				   OTHER_IOVA);

	if (ret)
		return ret;
	dma(a, OTHER_IOVA);
	if (a->kind == PIN)
		list_del(&region.link);
	iommu_unmap_iova(client.iommu, OTHER_IOVA, SLICE_SIZE);
	return 0;
}

static const struct attempt dma_attempts[] = {
	{ "REVOKE by edu", try_revoke, CLIENT, READ, { -ENODEV, -ENODEV } },
	{ "DMA read", dma_access, CLIENT, READ, { 0, -EIO } },
	{ "DMA write", dma_access, CLIENT, WRITE, { 0, -EIO } },
	{ "IOAS_MAP_FILE", map_again, CLIENT, READ, { 0, -ENODEV } },
	{ "IOAS_MAP", map_again, CLIENT, PIN, { 0, -ENODEV } },
};

static int process_vm_read(struct attempt *a)
{
	struct iovec remote = { client.map[a->target], sizeof(u32) };
	struct iovec local = { &a->seen, sizeof(u32) };

	return result(process_vm_readv(client.actor[CHILD]->pid, &local, 1,
				       &remote, 1, 0));
}

static int ptrace_peek(struct attempt *a)
{
	pid_t pid = client.actor[CHILD]->pid;
	int ret;

	VFIO_ASSERT_EQ(ptrace(PTRACE_ATTACH, pid, NULL, NULL), 0);
	VFIO_ASSERT_EQ(waitpid(pid, NULL, 0), pid);
	errno = 0;
	a->seen = ptrace(PTRACE_PEEKDATA, pid, client.map[a->target], NULL);
	ret = -errno;
	VFIO_ASSERT_EQ(ptrace(PTRACE_DETACH, pid, NULL, NULL), 0);
	return ret;
}

static const struct attempt cpu_attempts[] = {
	{ "REVOKE", try_revoke, CLIENT, READ, { -ENOTTY, -ENOTTY } },
	{ "read", cpu_access, CLIENT, READ, { 0, SIGBUS } },
	{ "write", cpu_access, CLIENT, WRITE, { 0, SIGBUS } },
	{ "new mmap()", new_mmap, CLIENT, READ, { 0, -ENODEV } },
	{ "write() from it", pipe_access, CLIENT, READ, { 0, -EFAULT } },
	{ "read() into it", pipe_access, CLIENT, WRITE, { 0, -EFAULT } },
	{ "third, read", cpu_access, THIRD, READ, { 0, SIGBUS } },
	{ "third, write", cpu_access, THIRD, WRITE, { 0, SIGBUS } },
	{ "third, new mmap()", new_mmap, THIRD, READ, { 0, -ENODEV } },
	{ "child, read", cpu_access, CHILD, READ, { 0, SIGBUS } },
	{ "child, write", cpu_access, CHILD, WRITE, { 0, SIGBUS } },
	{ "new child, read", cpu_access, NEW_CHILD, READ, { 0, SIGBUS } },
	{ "vmsplice()", pipe_access, CLIENT, PIN, { -EFAULT, -EFAULT } },
	{ "process_vm", process_vm_read, CLIENT, PIN, { -EFAULT, -EFAULT } },
	{ "PTRACE_PEEKDATA", ptrace_peek, CLIENT, PIN, { -EIO, -EIO } },
	{ "third, changed", changed_read, THIRD, READ, { 0, SIGBUS } },
};

/* DMA into the mapping, for most block devices */
static int direct_read(struct attempt *a)
{
	return result(pread(client.block_fd, client.map[a->target], SZ_4K, 0));
}

static int register_buffer(struct attempt *a)
{
	struct iovec iov = { client.map[a->target], page_size };
	struct io_uring_params params = {};
	int ring = syscall(__NR_io_uring_setup, 1, &params);

	return result(syscall(__NR_io_uring_register, ring,
			      IORING_REGISTER_BUFFERS, &iov, 1));
}

/* To itself; what is sent is not copied before it is received. */
static int zerocopy_send(struct attempt *a)
{
	struct sockaddr_in addr = {
		.sin_family = AF_INET,
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	socklen_t len = sizeof(addr);
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	int ret, one = 1;

	VFIO_ASSERT_EQ(setsockopt(fd, SOL_SOCKET, SO_ZEROCOPY, &one,
				  sizeof(one)), 0);
	VFIO_ASSERT_EQ(bind(fd, (struct sockaddr *)&addr, len), 0);
	VFIO_ASSERT_EQ(getsockname(fd, (struct sockaddr *)&addr, &len), 0);
	VFIO_ASSERT_EQ(connect(fd, (struct sockaddr *)&addr, len), 0);
	ret = result(send(fd, client.map[a->target], SZ_4K, MSG_ZEROCOPY));
	close_assert(fd);
	return ret;
}

static const struct attempt io_attempts[] = {
	{ "O_DIRECT", direct_read, CLIENT, PIN, { -EFAULT, -EFAULT } },
	{ "io_uring", register_buffer, CLIENT, PIN, { -EFAULT, -EFAULT } },
	{ "MSG_ZEROCOPY", zerocopy_send, CLIENT, PIN, { -EFAULT, -EFAULT } },
};

/* The mappings are memory of a virtual machine; slot 0 is its own. */
static int vm_access(struct attempt *a)
{
	u32 slot = a->target + 1;

	if (!client.vm) {
		client.vm = vfio_vm_init(client.kvm_fd);
		vfio_vm_set_slot(client.vm, SMALL + 1, 0, client.map[SMALL],
				 SLICE_SIZE);
		vfio_vm_set_slot(client.vm, LARGE + 1, 0, client.map[LARGE],
				 SLICE_SIZE);
	}
	return a->kind == WRITE ?
	       vfio_vm_write32(client.vm, slot, ~a->pattern) :
	       vfio_vm_read32(client.vm, slot, &a->seen);
}

static const struct attempt vm_attempts[] = {
	{ "VM, read", vm_access, CLIENT, READ, { 0, -EFAULT } },
	{ "VM, write", vm_access, CLIENT, WRITE, { 0, -EFAULT } },
};

/* As root: the client gets a device of its own, for DMA. */
static void edu_start(void)
{
	struct dma_region *region;

	client.iommu = iommu_init(MODE_IOMMUFD);
	client.edu = vfio_pci_device_init(getenv("VFIO_EDU_BDF"), client.iommu);
	region = &client.edu->driver.region;
	region->vaddr = client.map[RAM] + page_size;
	region->size = page_size;
	region->iova = SLICE_IOVA - page_size;
	iommu_map(client.iommu, region);
	vfio_pci_driver_init(client.edu);
	/* No child is to keep edu open. */
	VFIO_ASSERT_EQ(madvise(client.edu->bars[0].vaddr, SZ_1M, MADV_DONTFORK),
		       0);
}

static int map_slice(void *data, const int *fds)
{
	/* Large pages of 512 MiB do not fit */
	bool large = pmd_size_get() <= SLICE_SIZE;
	int fd = dup(fds[0]);

	client.fd = fd;
	client.map[SMALL] = mmap_shared_aligned(fd, 0, SLICE_SIZE, SZ_2M,
						page_size);
	client.map[LARGE] = mmap_shared_aligned(fd, 0, SLICE_SIZE, SZ_2M, 0);
	VFIO_ASSERT_EQ(try_touch(client.map[SMALL]), 0);
	VFIO_ASSERT_EQ(faults_to_touch(client.map[LARGE], SLICE_SIZE,
				       page_size),
		       large ? 1 : SLICE_SIZE / page_size);
	return 0;
}

/* Become the client, of the DMABUF in fds[0], with a device of its own or without */
static int client_begin(void *data, const int *fds)
{
	client.map[RAM] = mmap(NULL, SLICE_SIZE, PROT_READ | PROT_WRITE,
			       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (*(bool *)data)
		edu_start();
	client.block_fd = open(BLOCK_DEVICE, O_RDONLY | O_DIRECT);
	client.kvm_fd = vfio_vm_open_kvm();
	VFIO_ASSERT_EQ(setgroups(0, NULL), 0);
	VFIO_ASSERT_EQ(setresgid(65534, 65534, 65534), 0);
	VFIO_ASSERT_EQ(setresuid(65534, 65534, 65534), 0);
	VFIO_ASSERT_EQ(open("/dev/iommu", O_RDWR), -1);
	/* The change of uid has cleared it, and the client traces its child. */
	VFIO_ASSERT_EQ(prctl(PR_SET_DUMPABLE, 1), 0);

	client.actor[THIRD] = vfio_client_start();
	vfio_client_call(client.actor[THIRD], map_slice, data, 0, fds, 1);
	map_slice(data, fds);
	client.actor[CHILD] = vfio_client_start();
	if (*(bool *)data)
		iommu_map_file(client.iommu, client.fd, 0, SLICE_SIZE,
			       SLICE_IOVA);
	return 0;
}

static int client_try(void *data, const int *fds)
{
	struct attempt *a = data;
	enum actor actor = a->actor;

	/* Passed on with each attempt, by SCM_RIGHTS */
	if (fds[0] >= 0)
		client.fd = fds[0];
	if (a->target == RAM)
		*(u32 *)client.map[RAM] = a->pattern;
	if (actor == CLIENT)
		return a->try(a);

	if (actor == NEW_CHILD)
		client.actor[NEW_CHILD] = vfio_client_start();
	a->actor = CLIENT;
	return vfio_client_call(client.actor[actor], client_try, a, sizeof(*a),
				&client.fd, 1);
}

FIXTURE(guarantee) {
	DMABUF_FIXTURE;
	struct vfio_client *client;
	u32 *slice;
	int fd;
};

FIXTURE_VARIANT(guarantee) {
	const char *iommu_mode;
	const char *bdf_env;	/* Of another device than the usual one */
};

#define FIXTURE_VARIANT_ADD_IOMMU_MODE(_mode)					\
FIXTURE_VARIANT_ADD(guarantee, _mode) { .iommu_mode = #_mode }

FIXTURE_VARIANT_ADD_ALL_IOMMU_MODES();

FIXTURE_VARIANT_ADD(guarantee, vfio_noiommu) {
	.iommu_mode = MODE_VFIO_NOIOMMU,
	.bdf_env = "VFIO_NOIOMMU_BDF",
};

FIXTURE_SETUP(guarantee)
{
	/* Started here, the client has nothing of the device. */
	self->client = vfio_client_start();
	default_iommu_mode = variant->iommu_mode;
	if (variant->bdf_env)
		device_bdf = vfio_selftests_get_named_bdf(variant->bdf_env);
	if (!device_bdf)
		SKIP(return, "No device without an IOMMU");
	DMABUF_SETUP(self, true, 2 * SLICE_SIZE);
	self->slice = self->device->bars[self->bar].vaddr + SLICE_SIZE;
	self->fd = vfio_pci_dmabuf_export_range(self->device, self->bar,
						SLICE_SIZE, SLICE_SIZE);
}

FIXTURE_TEARDOWN(guarantee)
{
	vfio_client_stop(self->client);
}

/* The value in the slice decides, not only what the client reports. */
static void try_one(struct __test_metadata *_metadata,
		    FIXTURE_DATA(guarantee) *self, struct attempt a,
		    enum target target, bool revoked)
{
	static u32 pattern;
	int expected = target == RAM ? 0 : a.expected[revoked];
	bool found;
	int ret;

	a.target = target;
	a.pattern = ++pattern;
	*self->slice = pattern;
	ret = vfio_client_call(self->client, client_try, &a, sizeof(a), NULL,
			       0);
	found = a.kind == WRITE ? *self->slice == ~pattern :
		a.seen == pattern || (a.kind == PIN && !ret);
	/* DMA does not report that it was refused. */
	if (!ret && !found)
		ret = -EIO;
	EXPECT_TRUE(ret == expected && found == !expected && *self->slice ==
		    (found && a.kind == WRITE ? ~pattern : pattern)) {
		TH_LOG("%s %d, revoked %d: %d, not %d; read %x, slice %x, was %x",
		       a.name, target, revoked, ret, expected, a.seen,
		       *self->slice, pattern);
	}
}

static void try_all(struct __test_metadata *_metadata,
		    FIXTURE_DATA(guarantee) *self, bool edu,
		    const struct attempt *attempts, int nr)
{
	int i, target;

	VFIO_ASSERT_EQ(vfio_client_call(self->client, client_begin, &edu,
					sizeof(edu), &self->fd, 1), 0);
	for (i = 0; i < 2 * nr; i++) {
		if (i == nr)
			ASSERT_EQ(0, __vfio_pci_dmabuf_revoke(self->device,
							      self->fd));
		target = attempts[i % nr].kind == PIN ? RAM : LARGE;
		for (; target >= SMALL; target--)
			try_one(_metadata, self, attempts[i % nr], target,
				i >= nr);
	}
}

TEST_F(guarantee, cpu)
{
	try_all(_metadata, self, false, cpu_attempts, ARRAY_SIZE(cpu_attempts));
}

TEST_F(guarantee, io)
{
	if (access("/proc/sys/kernel/io_uring_disabled", F_OK) ||
	    access(BLOCK_DEVICE, F_OK) || access("/proc/net/udp", F_OK))
		SKIP(return, "No io_uring, no " BLOCK_DEVICE " or no UDP");
	try_all(_metadata, self, false, io_attempts, ARRAY_SIZE(io_attempts));
}

TEST_F(guarantee, vm)
{
	int kvm_fd = vfio_vm_open_kvm();

	if (kvm_fd < 0)
		SKIP(return, "No KVM");
	close_assert(kvm_fd);
	try_all(_metadata, self, false, vm_attempts, ARRAY_SIZE(vm_attempts));
}

TEST_F(guarantee, dma)
{
	if (!vfio_selftests_get_named_bdf("VFIO_EDU_BDF"))
		SKIP(return, "No edu device");
	try_all(_metadata, self, true, dma_attempts, ARRAY_SIZE(dma_attempts));
}

int main(int argc, char *argv[])
{
	dmabuf_test_init(&argc, argv);
	return test_harness_run(argc, argv);
}
