// SPDX-License-Identifier: GPL-2.0
/*
 * nvgrace-gpu without a Grace: the driver is bound to a device of QEMU that the
 * firmware gives memory. Its two regions of memory, 4 (usemem, cached) and 2
 * (resmem, write-combining), are mapped, exported, and revoked. The device has
 * no registers of the GPU: those that indicate that memory is ready are plain
 * memory, and hold what the driver wants to read there.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <linux/kernel.h>
#include <linux/sizes.h>
#include <linux/userfaultfd.h>
#include <linux/vfio.h>

#include <libvfio/dmabuf_test.h>

#include "kselftest_harness.h"

/* As in ssdt.asl and overlay.dts */
#ifdef __aarch64__
#define MEM_BASE	0x160000000
#else
#define MEM_BASE	0x10000000
#endif

/* Registers in BAR 0 that indicate ready memory, all of them with this value */
#define C2C_LINK	0x1498
#define HBM_TRAINING	0x200bc
#define READY		0xff

FIXTURE(nvgrace) {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	/* A page of user memory that is missing, and where to read or write it */
	void *missing;
	u64 offset;
};

FIXTURE_VARIANT(nvgrace) {
	u32 index;
	u64 phys;
	u32 memtype;
};

FIXTURE_VARIANT_ADD(nvgrace, usemem) {
	.index = 4, .phys = MEM_BASE, .memtype = VFIO_PCI_DMABUF_TEST_WB
};
FIXTURE_VARIANT_ADD(nvgrace, resmem) {
	.index = 2, .phys = MEM_BASE + SZ_512M, .memtype = VFIO_PCI_DMABUF_TEST_WC
};

/* libvfio maps all of each region, which would get the signals of its failures, too */
static void unmap_regions(struct vfio_pci_device *device)
{
	vfio_pci_bar_unmap_all(device);
	vfio_pci_cmd_set(device, PCI_COMMAND_MEMORY);
}

static void set_ready(struct vfio_pci_device *device, bool ready)
{
	u32 *bar = vfio_pci_region_mmap(device, 0, 0, SZ_1M);

	bar[C2C_LINK / 4] = ready ? READY : 0;
	munmap_assert(bar, SZ_1M);
}

FIXTURE_SETUP(nvgrace)
{
	self->iommu = iommu_init("iommufd");
	self->device = vfio_pci_device_init(device_bdf, self->iommu);
	unmap_regions(self->device);
	set_ready(self->device, true);
}

FIXTURE_TEARDOWN(nvgrace)
{
}

static int write_and_read(u32 *vaddr, u32 val)
{
	u32 got = 0;

	return try_write32(vaddr, val) ?: try_read32(vaddr, &got) ?:
	       got == val ? 0 : -1;
}

TEST_F(nvgrace, mapping)
{
	u64 offset = vfio_pci_region_offset(self->device, variant->index);
	void *vaddr = mmap_shared(self->device->fd, offset + SZ_2M, SZ_8M);
	u32 got;

	ASSERT_EQ(0, write_and_read(vaddr, 0x11111111));
	ASSERT_EQ(4, pread(self->device->fd, &got, 4, offset + SZ_2M));
	ASSERT_EQ(0x11111111, got);

	munmap_assert(vaddr + SZ_2M, SZ_1M);
	ASSERT_EQ(0, write_and_read(vaddr + SZ_2M + SZ_1M, 1));

	ASSERT_EQ(MAP_FAILED, mmap(NULL, SZ_1M, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE, self->device->fd, offset));
	ASSERT_EQ(EINVAL, errno);
	/* Beyond the memory */
	ASSERT_EQ(MAP_FAILED, mmap(NULL, SZ_1M, PROT_READ, MAP_SHARED,
				   self->device->fd, offset + SZ_2G));
	ASSERT_EQ(EINVAL, errno);

	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(SIGBUS, try_touch(vaddr));
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, write_and_read(vaddr, 2));
	vfio_pci_device_reset(self->device);
	ASSERT_EQ(0, write_and_read(vaddr, 4));
}

/*
 * As the page table has it: on arm64 WC is Normal Non-cacheable. On x86 PAT gives each
 * mapping the type of the kernel's mapping, which the read makes, and UC- without it.
 */
TEST_F(nvgrace, memory_type)
{
	u64 offset = vfio_pci_region_offset(self->device, variant->index);
	struct vfio_pci_dmabuf_test_entry entry = {};
	void *vaddr = mmap_shared(self->device->fd, offset, SZ_1M);
	int fd = open("/dev/" VFIO_PCI_DMABUF_TEST_NAME, O_RDWR | O_CLOEXEC);
	u32 got;

	ASSERT_GE(fd, 0);
	ASSERT_EQ(4, pread(self->device->fd, &got, 4, offset));
	ASSERT_EQ(0, try_touch(vaddr));
	entry.addr = (u64)vaddr;
	ioctl_assert(fd, VFIO_PCI_DMABUF_TEST_ENTRY, &entry);
	ASSERT_EQ(variant->memtype, entry.memtype);
	close_assert(fd);
}

/* How often a child has touched the mapping, and its longest touch */
struct touches {
	volatile u64 count, longest;
};

/* Until it is killed, or dies by SIGBUS */
static void touch_forever(volatile u32 *vaddr, struct touches *touches)
{
	u64 start, time;

	for (;;) {
		start = now_ns();
		*vaddr = touches->count;
		time = now_ns() - start;
		if (time > touches->longest)
			touches->longest = time;
		touches->count++;
	}
}

/* False if no touch completes within 10 s */
static bool wait_touch(const struct touches *touches)
{
	u64 count = touches->count;
	int i;

	for (i = 0; i < 1000 && touches->count <= count + 1; i++)
		usleep(10000);
	return i < 1000;
}

/* It waits, sees no SIGBUS, and succeeds afterwards */
TEST_F(nvgrace, touch_in_reset)
{
	void *vaddr = vfio_pci_region_mmap(self->device, variant->index, SZ_1M,
					   SZ_1M);
	struct touches *touches = mmap(NULL, sizeof(*touches),
				       PROT_READ | PROT_WRITE,
				       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	u64 start, shortest = -1ULL;
	int i, status;
	pid_t pid;

	ASSERT_NE(MAP_FAILED, touches);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid)
		touch_forever(vaddr, touches);

	EXPECT_TRUE(wait_touch(touches));
	for (i = 0; i < 5; i++) {
		start = now_ns();
		EXPECT_EQ(0, __vfio_pci_device_reset(self->device));
		shortest = min(shortest, now_ns() - start);
		EXPECT_TRUE(wait_touch(touches));
	}
	kill(pid, SIGKILL);
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	TH_LOG("shortest reset %lu us, longest touch %lu us", shortest / 1000,
	       touches->longest / 1000);
	ASSERT_GT(touches->longest, shortest / 2);
}

static int do_touch(void *vaddr, int fd)
{
	return try_touch(vaddr);
}

static int do_reap(void *arg, int pid)
{
	int status;

	VFIO_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	return status;
}

/* Half of the mapping at @vaddr, of the size that the other tests use */
static int do_unmap(void *vaddr, int fd)
{
	munmap_assert(vaddr + SZ_512K, SZ_512K);
	return 0;
}

static int do_reset(void *device, int fd)
{
	return __vfio_pci_device_reset(device);
}

static int do_switch_and_reset(void *device, int fd)
{
	vfio_pci_cmd_clear(device, PCI_COMMAND_MEMORY);
	vfio_pci_cmd_set(device, PCI_COMMAND_MEMORY);
	return do_reset(device, fd);
}

/*
 * After a reset an access waits until the memory is ready, without a lock that other
 * threads or the owner of the device need. The limit is that of the driver, 30 s.
 */
TEST_F(nvgrace, touch_before_ready)
{
	void *vaddr = vfio_pci_region_mmap(self->device, variant->index, SZ_1M,
					   SZ_1M);
	struct job touch, reap, unmap, reset;
	pid_t pid;

	set_ready(self->device, false);
	vfio_pci_device_reset(self->device);
	job_start(&touch, do_touch, vaddr, -1);
	ASSERT_TRUE(job_waits(&touch));
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid)
		_exit(try_touch(vaddr));
	job_start(&reap, do_reap, NULL, pid);
	ASSERT_TRUE(job_waits(&reap));

	job_start(&unmap, do_unmap, vaddr, -1);
	ASSERT_TRUE(job_ends(&unmap, 5000));
	job_start(&reset, do_reset, self->device, -1);
	ASSERT_TRUE(job_ends(&reset, 5000));
	ASSERT_EQ(0, job_result(&reset));
	ASSERT_EQ(0, kill(pid, SIGKILL));
	ASSERT_TRUE(job_ends(&reap, 5000));
	ASSERT_EQ(SIGKILL, job_result(&reap));

	ASSERT_TRUE(job_waits(&touch));
	set_ready(self->device, true);
	ASSERT_TRUE(job_ends(&touch, 5000));
	ASSERT_EQ(0, job_result(&touch));
	ASSERT_EQ(0, try_touch(vaddr));
}

/*
 * The limit is over: one that has waited gets SIGBUS, after twice the limit if its fault
 * was repeated to get another lock. The next access waits anew.
 */
TEST_F_TIMEOUT(nvgrace, never_ready, 300)
{
	void *vaddr = vfio_pci_region_mmap(self->device, variant->index, SZ_1M,
					   SZ_1M);
	struct job touch;

	set_ready(self->device, false);
	vfio_pci_device_reset(self->device);
	job_start(&touch, do_touch, vaddr, -1);
	ASSERT_TRUE(job_ends(&touch, 120000));
	ASSERT_EQ(SIGBUS, job_result(&touch));

	job_start(&touch, do_touch, vaddr, -1);
	ASSERT_TRUE(job_waits(&touch));
	set_ready(self->device, true);
	ASSERT_TRUE(job_ends(&touch, 5000));
	ASSERT_EQ(0, job_result(&touch));
}

static int do_rw(void *arg, int write)
{
	FIXTURE_DATA(nvgrace) *self = arg;
	int fd = self->device->fd;

	return write ? pwrite(fd, self->missing, SZ_4K, self->offset) :
		       pread(fd, self->missing, SZ_4K, self->offset);
}

/* A read() or write() whose buffer is missing does not hold up the owner. */
TEST_F(nvgrace, missing_buffer)
{
	struct uffdio_register reg = { .range.len = SZ_4K,
				       .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffdio_api api = { .api = UFFD_API };
	int write, uffd = syscall(__NR_userfaultfd, O_CLOEXEC);
	struct job rw, reset;
	struct uffd_msg msg;
	bool free;

	ASSERT_GE(uffd, 0);
	ioctl_assert(uffd, UFFDIO_API, &api);
	self->offset = vfio_pci_region_offset(self->device, variant->index) +
		       SZ_2M;
	for (write = 0; write < 2; write++) {
		self->missing = mmap(NULL, SZ_4K, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		ASSERT_NE(MAP_FAILED, self->missing);
		reg.range.start = (u64)self->missing;
		ioctl_assert(uffd, UFFDIO_REGISTER, &reg);
		job_start(&rw, do_rw, self, write);
		ASSERT_EQ(sizeof(msg), read(uffd, &msg, sizeof(msg)));

		job_start(&reset, do_switch_and_reset, self->device, -1);
		free = job_ends(&reset, 5000);
		ioctl_assert(uffd, UFFDIO_ZEROPAGE,
			     &((struct uffdio_zeropage){ .range = reg.range }));
		ASSERT_EQ(SZ_4K, job_result(&rw));
		ASSERT_TRUE(free);
		ASSERT_EQ(0, job_result(&reset));
	}
}

/* Only of a region whose number a BAR of this device has, too */
TEST_F(nvgrace, dmabuf)
{
	const struct vfio_region_dma_range ranges[] = {
		{ SZ_2M + SZ_4M, SZ_1M }, { SZ_2M, SZ_1M },
	};
	void *region, *vaddr;
	int fd;

	if (variant->index != 2)
		SKIP(return, "No BAR of that number");

	region = vfio_pci_region_mmap(self->device, 2, SZ_2M, SZ_1M);
	ASSERT_EQ(-EOPNOTSUPP,
		  __vfio_pci_dmabuf_export(self->device, 2, O_RDWR | O_CLOEXEC,
					   VFIO_DEVICE_FEATURE_DMA_BUF_ATTR_WC,
					   ranges, 2));
	fd = vfio_pci_dmabuf_export(self->device, 2, ranges, 2);
	ASSERT_EQ(-EOPNOTSUPP, __mmap_shared(fd, 0, SZ_2M, PROT_READ, &vaddr));
	ASSERT_EQ(MAP_FAILED, mmap(NULL, SZ_2M, PROT_READ, MAP_PRIVATE, fd, 0));
	ASSERT_EQ(EINVAL, errno);
	ASSERT_EQ(-EINVAL, __mmap_shared(fd, 0, SZ_2M + SZ_1M, PROT_READ, &vaddr));

	ASSERT_EQ(0, write_and_read(region, 5));
	vfio_pci_device_reset(self->device);
	vfio_pci_dmabuf_revoke(self->device, fd);
	ASSERT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(self->device, fd));
	ASSERT_EQ(0, write_and_read(region, 7));
}

static volatile int bus_code;

static void on_bus(int sig, siginfo_t *info, void *context)
{
	bus_code = info->si_code;
}

/* Does a process that maps the memory get a signal when a page of it fails? */
static bool failure_is_signaled(u64 phys)
{
	struct sigaction old, action = { .sa_sigaction = on_bus,
					 .sa_flags = SA_SIGINFO };
	char text[32];
	int ret;

	bus_code = 0;
	VFIO_ASSERT_EQ(sigaction(SIGBUS, &action, &old), 0);
	snprintf_assert(text, (int)sizeof(text), "%#lx", phys);
	ret = write_file("/sys/devices/system/memory/hard_offline_page", 0, text);
	/* Busy is one that nobody maps */
	VFIO_ASSERT_TRUE(!ret || ret == -EBUSY);
	usleep(100000);
	VFIO_ASSERT_EQ(sigaction(SIGBUS, &old, NULL), 0);
	return bus_code == BUS_MCEERR_AR || bus_code == BUS_MCEERR_AO;
}

/*
 * A region is registered for this once, for all of its mappings, and again when the
 * device is opened again
 */
TEST_F(nvgrace, memory_failure)
{
	void *vaddr, *second;
	int i;

	for (i = 0; i < 2; i++) {
		vaddr = vfio_pci_region_mmap(self->device, variant->index, 0, SZ_8M);
		second = vfio_pci_region_mmap(self->device, variant->index, SZ_16M,
					      SZ_1M);
		ASSERT_EQ(0, write_and_read(vaddr, 1));
		ASSERT_EQ(0, write_and_read(second, 1));
		ASSERT_TRUE(failure_is_signaled(variant->phys + SZ_4M));
		ASSERT_TRUE(failure_is_signaled(variant->phys + SZ_16M + SZ_512K));
		/* Between them */
		ASSERT_FALSE(failure_is_signaled(variant->phys + SZ_8M + SZ_4M));
		munmap_assert(vaddr, SZ_8M);
		ASSERT_FALSE(failure_is_signaled(variant->phys + SZ_4M + SZ_1M));
		munmap_assert(second, SZ_1M);

		dmabuf_test_reopen(self->iommu, &self->device);
		unmap_regions(self->device);
	}
}

/* "prepare RESOURCE0": what the driver reads to find that memory is ready */
static void prepare(const char *path)
{
	u32 *bar = mmap_shared(open(path, O_RDWR), 0, SZ_4M);

	bar[C2C_LINK / 4] = READY;
	bar[HBM_TRAINING / 4] = READY;
}

int main(int argc, char *argv[])
{
	if (argc == 3) {
		prepare(argv[2]);
		return 0;
	}
	dmabuf_test_init(&argc, argv);
	return test_harness_run(argc, argv);
}
