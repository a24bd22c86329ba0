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
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <linux/iommufd.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>

#define MB		(1UL << 20)
#define USEMEM		4
#define RESMEM		2
#define USEMEM_PHYS	0x10000000UL
#define RESMEM_PHYS	0x30000000UL

static int device, failed;

#define CHECK(what, condition) do {					\
	int ok_ = !!(condition);					\
	printf("%s - %s\n", ok_ ? "ok" : "not ok", what);		\
	failed += !ok_;							\
} while (0)

static void must(const char *what, int ok)
{
	if (!ok) {
		printf("not ok - %s: %s\n", what, strerror(errno));
		exit(1);
	}
}

static sigjmp_buf env;
static volatile int bus_code;

static void on_bus(int sig, siginfo_t *info, void *context)
{
	(void)sig;
	(void)context;
	bus_code = info->si_code;
	siglongjmp(env, 1);
}

static int access_ok(volatile unsigned int *word, unsigned int val)
{
	unsigned int got;

	if (sigsetjmp(env, 1))
		return 0;
	*word = val;
	got = *word;
	return got == val;
}

/* The kernel's offset of a region: its index in the upper bits */
static off_t region(unsigned int index)
{
	struct vfio_region_info info = { .argsz = sizeof(info), .index = index };

	must("region info", !ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info));
	return info.offset;
}

static void *map(int fd, off_t offset, size_t size)
{
	void *vaddr = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
			   offset);

	must("mmap", vaddr != MAP_FAILED);
	return vaddr;
}

static int export(unsigned int index, unsigned long long offset,
		  unsigned int flags)
{
	struct {
		struct vfio_device_feature head;
		struct vfio_device_feature_dma_buf dma_buf;
		struct vfio_region_dma_range range[2];
	} arg = {
		.head.argsz = sizeof(arg),
		.head.flags = VFIO_DEVICE_FEATURE_GET |
			      VFIO_DEVICE_FEATURE_DMA_BUF,
		.dma_buf = { .region_index = index, .flags = flags,
			     .open_flags = O_RDWR | O_CLOEXEC, .nr_ranges = 2 },
		.range = { { offset + 4 * MB, MB }, { offset, MB } },
	};

	return ioctl(device, VFIO_DEVICE_FEATURE, &arg);
}

static void set_command(unsigned short bits)
{
	off_t offset = region(VFIO_PCI_CONFIG_REGION_INDEX) + PCI_COMMAND;
	unsigned short command;

	must("read config", pread(device, &command, 2, offset) == 2);
	command = (command & ~PCI_COMMAND_MEMORY) | bits;
	must("write config", pwrite(device, &command, 2, offset) == 2);
}

static int revoke_dmabuf(int fd)
{
	struct vfio_pci_dmabuf_revoke arg = { sizeof(arg), fd };

	return ioctl(device, VFIO_DEVICE_PCI_DMABUF_REVOKE, &arg);
}

/* The page with physical address @phys has failed, says the administrator */
static int fail_page(unsigned long phys)
{
	int fd = open("/sys/devices/system/memory/hard_offline_page", O_WRONLY);
	char text[32];
	int ret;

	if (fd < 0)
		return -1;
	ret = write(fd, text, snprintf(text, sizeof(text), "%#lx", phys));
	close(fd);
	return ret;
}

static void test_mapping(unsigned int index)
{
	unsigned int *vaddr, got = 0;
	off_t offset = region(index);
	void *other;

	vaddr = map(device, offset + 2 * MB, 8 * MB);
	CHECK("access", access_ok(vaddr, 0x11111111 * index));
	CHECK("read() sees it",
	      pread(device, &got, 4, offset + 2 * MB) == 4 &&
	      got == 0x11111111 * index);
	CHECK("a hole in the mapping",
	      !munmap((char *)vaddr + 2 * MB, MB) &&
	      access_ok(vaddr + 3 * MB / 4, index));
	other = mmap(NULL, MB, PROT_READ | PROT_WRITE, MAP_PRIVATE, device,
		     offset);
	CHECK("no private mapping", other == MAP_FAILED && errno == EINVAL);
	other = mmap(NULL, MB, PROT_READ, MAP_SHARED, device,
		     offset + (2UL << 30));
	CHECK("no mapping beyond the memory",
	      other == MAP_FAILED && errno == EINVAL);

	set_command(0);
	CHECK("SIGBUS without memory enabled", !access_ok(vaddr, 1));
	set_command(PCI_COMMAND_MEMORY);
	CHECK("back again", access_ok(vaddr, 2));
	CHECK("reset", !ioctl(device, VFIO_DEVICE_RESET));
	CHECK("back after it", access_ok(vaddr, 4));
	munmap(vaddr, 2 * MB);
	munmap((char *)vaddr + 3 * MB, 5 * MB);
}

static unsigned long long now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ULL + now.tv_nsec;
}

/* How often a child has touched the mapping, and its longest touch */
struct touches {
	volatile unsigned long long count, longest;
};

/* Until it is killed, or dies by SIGBUS */
static void touch_forever(volatile unsigned int *vaddr, struct touches *touches)
{
	unsigned long long start, time;

	signal(SIGBUS, SIG_DFL);
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
static int wait_touch(const struct touches *touches)
{
	unsigned long long count = touches->count;
	int i;

	for (i = 0; i < 1000 && touches->count <= count + 1; i++)
		usleep(10000);
	return i < 1000;
}

static void test_touch_in_reset(unsigned int index)
{
	volatile unsigned int *vaddr = map(device, region(index) + MB, MB);
	unsigned long long start, time, shortest = -1ULL;
	int i, ok, touched = 1, status = 0;
	struct touches *touches;
	pid_t pid;

	touches = mmap(NULL, sizeof(*touches), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	must("mmap", touches != MAP_FAILED);
	pid = fork();
	must("fork", pid >= 0);
	if (!pid)
		touch_forever(vaddr, touches);

	ok = wait_touch(touches);
	for (i = 0; i < 5 && ok; i++) {
		start = now_ns();
		ok = !ioctl(device, VFIO_DEVICE_RESET);
		time = now_ns() - start;
		if (time < shortest)
			shortest = time;
		touched = touched && wait_touch(touches);
	}
	kill(pid, SIGKILL);
	must("waitpid", waitpid(pid, &status, 0) == pid);
	printf("# shortest reset %llu us, longest touch %llu us\n",
	       shortest / 1000, touches->longest / 1000);
	CHECK("resets while a child touches the memory", ok);
	CHECK("a touch during a reset is no SIGBUS",
	      WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	CHECK("it waits", touches->longest > shortest / 2);
	CHECK("and succeeds afterwards", touched);
	munmap(touches, sizeof(*touches));
	munmap((void *)vaddr, MB);
}

static int map_fails(int fd, size_t size, int flags, int error)
{
	void *vaddr = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);

	if (vaddr == MAP_FAILED)
		return errno == error;
	munmap(vaddr, size);
	return 0;
}

/* Only of a region whose number a BAR of this device has, too */
static void test_dmabuf(unsigned int index)
{
	unsigned int *vaddr = map(device, region(index) + 2 * MB, MB);
	int fd;

	CHECK("no write-combining by flag",
	      export(index, 2 * MB, VFIO_DEVICE_FEATURE_DMA_BUF_ATTR_WC) < 0 &&
	      errno == EOPNOTSUPP);
	fd = export(index, 2 * MB, 0);
	must("export", fd >= 0);
	CHECK("no mapping of a DMABUF of the memory",
	      map_fails(fd, 2 * MB, MAP_SHARED, EOPNOTSUPP));
	CHECK("no private one", map_fails(fd, 2 * MB, MAP_PRIVATE, EINVAL));
	CHECK("none beyond its end", map_fails(fd, 3 * MB, MAP_SHARED, EINVAL));
	CHECK("the region can be mapped", access_ok(vaddr, 5));
	CHECK("reset", !ioctl(device, VFIO_DEVICE_RESET));
	CHECK("revoke", !revoke_dmabuf(fd));
	CHECK("again", revoke_dmabuf(fd) && errno == EBADFD);
	CHECK("not of the region", access_ok(vaddr, 7));
	munmap(vaddr, MB);
	close(fd);
}

/* Does a process that maps the memory get a signal when a page of it fails? */
static int failure_is_signaled(unsigned long phys)
{
	bus_code = 0;
	if (!sigsetjmp(env, 1)) {
		must("hard_offline_page", fail_page(phys) > 0 ||
		     errno == EBUSY);	/* without a mapping of it */
		usleep(100000);
	}
	return bus_code == BUS_MCEERR_AR || bus_code == BUS_MCEERR_AO;
}

/* A region is registered for this once, for all of its mappings */
static void test_memory_failure(unsigned int index, unsigned long phys)
{
	unsigned int *vaddr = map(device, region(index), 8 * MB);
	unsigned int *second = map(device, region(index) + 16 * MB, MB);

	CHECK("a failure in a mapping is signaled", access_ok(vaddr, 1) &&
	      failure_is_signaled(phys + 4 * MB));
	CHECK("and in a second one", access_ok(second, 1) &&
	      failure_is_signaled(phys + 16 * MB + MB / 2));
	CHECK("not between them", !failure_is_signaled(phys + 12 * MB));
	munmap(vaddr, 8 * MB);
	CHECK("nor after munmap()", !failure_is_signaled(phys + 5 * MB));
	munmap(second, MB);
}

static void open_device(const char *cdev)
{
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind) };
	int iommufd = open("/dev/iommu", O_RDWR);

	must("/dev/iommu", iommufd >= 0);
	device = open(cdev, O_RDWR);
	must(cdev, device >= 0);
	bind.iommufd = iommufd;
	must("bind", !ioctl(device, VFIO_DEVICE_BIND_IOMMUFD, &bind));
	set_command(PCI_COMMAND_MEMORY);
}

/* "prepare RESOURCE0": what the driver reads to find that memory is ready */
static void prepare(const char *path)
{
	int fd = open(path, O_RDWR);
	volatile unsigned int *bar = mmap(NULL, 4 * MB, PROT_READ | PROT_WRITE,
					  MAP_SHARED, fd, 0);

	must(path, bar != MAP_FAILED);
	bar[0x1498 / 4] = 0xff;
	bar[0x200bc / 4] = 0xff;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = on_bus, .sa_flags = SA_SIGINFO };

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc == 3) {
		prepare(argv[2]);
		return 0;
	}
	sigaction(SIGBUS, &action, NULL);
	open_device(argv[1]);
	printf("# usemem\n");
	test_mapping(USEMEM);
	test_touch_in_reset(USEMEM);
	printf("# resmem\n");
	test_mapping(RESMEM);
	test_touch_in_reset(RESMEM);
	test_dmabuf(RESMEM);
	printf("# memory failure\n");
	test_memory_failure(USEMEM, USEMEM_PHYS);
	test_memory_failure(RESMEM, RESMEM_PHYS);
	printf("# the same after the device was opened again\n");
	close(device);
	open_device(argv[1]);
	test_memory_failure(USEMEM, USEMEM_PHYS);
	test_memory_failure(RESMEM, RESMEM_PHYS);
	printf("%s\n", failed ? "FAIL" : "PASS");
	return !!failed;
}
