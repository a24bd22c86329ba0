// SPDX-License-Identifier: GPL-2.0-only
/*
 * The operations on DMABUFs with each of their memory allocations failing in turn:
 * the first, then the second, and so on until none is left to fail. See fail-nth in
 * Documentation/fault-injection/fault-injection.rst.
 *
 * Needs a kernel with CONFIG_FAULT_INJECTION_DEBUG_FS, CONFIG_FAILSLAB and
 * CONFIG_FAIL_PAGE_ALLOC, and finds most on one that also checks itself.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/bitops.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio/dmabuf_test.h>

#include "kselftest_harness.h"

#define DEBUGFS		"/sys/kernel/debug/"

/* No operation has as many allocations: something repeats itself. */
#define MAX_NTH		1000

#define MANY_RANGES	64
#define NR_IMPORTERS	2

#define WC		VFIO_DEVICE_FEATURE_DMA_BUF_ATTR_WC

/* Have any allocation fail, without messages */
static const struct {
	const char *file;
	const char *val;
} settings[] = {
	{ DEBUGFS "failslab/ignore-gfp-wait", "N" },
	{ DEBUGFS "failslab/verbose", "0" },
	{ DEBUGFS "fail_page_alloc/ignore-gfp-wait", "N" },
	{ DEBUGFS "fail_page_alloc/ignore-gfp-highmem", "N" },
	{ DEBUGFS "fail_page_alloc/min-order", "0" },
	{ DEBUGFS "fail_page_alloc/verbose", "0" },
};

#define NR_SETTINGS ARRAY_SIZE(settings)

FIXTURE(dmabuf_fail_nth) {
	DMABUF_FIXTURE;
	/* What to restore */
	char saved[NR_SETTINGS][32];
	char driver[64];
	int fail_nth;
	int fd;
	/* Address space with nothing in it or near it, so without page tables */
	void *hole;
	int nr_fds;
	int nr_dmabufs;
	int importers[NR_IMPORTERS];
	struct importer_guard *guards[NR_IMPORTERS];
	/* What an operation works with */
	struct operation {
		/* Not to fail; @fn returns -errno, and @after gets that */
		void (*before)(FIXTURE_DATA(dmabuf_fail_nth) *self);
		int (*fn)(FIXTURE_DATA(dmabuf_fail_nth) *self);
		void (*after)(FIXTURE_DATA(dmabuf_fail_nth) *self, int ret);
		int file;
		u64 offset;
		size_t misalign;
		u32 type;
		u32 nr;
		/* Of many allocations have only the last ones fail, so many */
		u32 last;
	} op;
};

static void set_fail_nth(int fail_nth, unsigned int nth)
{
	char buf[16];
	int len = snprintf(buf, sizeof(buf), "%u", nth);

	VFIO_ASSERT_LT(nth, MAX_NTH);
	VFIO_ASSERT_EQ(pwrite(fail_nth, buf, len, 0), len);
}

/* Stop failing. Returns how many allocations are left until one fails. */
static int end_fail_nth(int fail_nth)
{
	char buf[16] = {};

	VFIO_ASSERT_GT(pread(fail_nth, buf, sizeof(buf) - 1, 0), 0);
	set_fail_nth(fail_nth, 0);

	return atoi(buf);
}

/* All DMABUFs in the system, those of BARs too */
static int count_dmabufs(void)
{
	FILE *file = fopen(DEBUGFS "dma_buf/bufinfo", "r");
	char line[256];
	int nr = -1;

	VFIO_ASSERT_NOT_NULL(file);
	while (fgets(line, sizeof(line), file))
		sscanf(line, "Total %d objects", &nr);
	VFIO_ASSERT_EQ(fclose(file), 0);
	VFIO_ASSERT_GE(nr, 0);

	return nr;
}

static bool read_setting(int i, char *val, size_t size)
{
	int fd = open(settings[i].file, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return false;
	VFIO_ASSERT_GT(read(fd, val, size - 1), 0);
	close_assert(fd);
	return true;
}

FIXTURE_SETUP(dmabuf_fail_nth)
{
	char *driver;
	int i;

	for (i = 0; i < NR_IMPORTERS; i++)
		self->importers[i] = -1;
	for (i = 0; i < NR_SETTINGS; i++) {
		if (!read_setting(i, self->saved[i], sizeof(self->saved[i])))
			SKIP(return, "No fault injection");
	}
	for (i = 0; i < NR_SETTINGS; i++)
		ASSERT_EQ(0, write_file(settings[i].file, 0, settings[i].val));

	self->fail_nth = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
	ASSERT_GE(self->fail_nth, 0);

	DMABUF_SETUP(self, true, SZ_4M);
	touch_fill(self->device->bars[self->bar].vaddr, SZ_4M);
	driver = sysfs_driver_get(device_bdf);
	snprintf_assert(self->driver, (int)sizeof(self->driver), "%s", driver);

	self->fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						SZ_4M);
	self->hole = mmap_reserve(3UL * SZ_1G, SZ_1G, 0);
	munmap_assert(self->hole, 3UL * SZ_1G);
	self->hole += SZ_1G;

	self->nr_dmabufs = count_dmabufs();
	self->nr_fds = count_fds();
}

/*
 * Whatever has failed before: all works now, and nothing is left of it. A reference
 * to the device that got lost would make the unbind wait.
 */
FIXTURE_TEARDOWN_PARENT(dmabuf_fail_nth)
{
	void *vaddr;
	int i, fd;

	for (i = 0; i < NR_SETTINGS && *self->saved[i]; i++)
		EXPECT_EQ(0, write_file(settings[i].file, 0, self->saved[i]));
	if (!*self->driver)
		return;

	EXPECT_EQ(0, __sysfs_driver_unbind(self->driver, device_bdf));
	EXPECT_EQ(0, __sysfs_driver_bind(self->driver, device_bdf));
	DMABUF_SETUP(self, true, SZ_4M);
	fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0, SZ_4M);
	vaddr = mmap_shared(fd, 0, SZ_4M);
	EXPECT_EQ(0, try_touch_pages(vaddr, SZ_64K));
	vfio_pci_dmabuf_revoke(self->device, fd);
	EXPECT_EQ(SIGBUS, try_touch_pages(vaddr, SZ_64K));
}

#define TEST_FAIL_NTH(_name) TEST_F_TIMEOUT(dmabuf_fail_nth, _name, 300)

struct result {
	u32 nr_allocations;
	u32 nr_failures;
};

/* Some allocations may fail without harm, but if none does nothing fails. */
static struct result fail_each(struct __test_metadata *_metadata,
			       FIXTURE_DATA(dmabuf_fail_nth) *self,
			       struct operation op)
{
	struct result result = {};
	unsigned int nth = op.last ? MAX_NTH - 1 : 1;
	bool failed = true;
	int ret, left;

	self->op = op;
	for (; failed || op.last; nth++) {
		if (op.before)
			op.before(self);
		set_fail_nth(self->fail_nth, nth);
		ret = op.fn(self);
		left = end_fail_nth(self->fail_nth);
		failed = !left;

		ASSERT_TRUE(ret >= 0 || (failed && ret == -ENOMEM)) {
			TH_LOG("allocation %u: %d", nth, ret);
		}
		result.nr_allocations += failed;
		result.nr_failures += ret < 0;
		if (op.after)
			op.after(self, ret);
		ASSERT_EQ(self->nr_fds, count_fds());
		ASSERT_EQ(self->nr_dmabufs, count_dmabufs());

		/* The first time nothing fails, to count the allocations */
		if (op.last) {
			nth -= min_t(u32, left + op.last, nth);
			op.last = 0;
			failed = true;
		}
	}

	TH_LOG("%u allocations, %u failures", result.nr_allocations,
	       result.nr_failures);
	return result;
}

static int export_ranges(FIXTURE_DATA(dmabuf_fail_nth) *self)
{
	struct vfio_region_dma_range ranges[MANY_RANGES];
	u32 i;

	for (i = 0; i < self->op.nr; i++) {
		ranges[i].offset = 2 * i * page_size;
		ranges[i].length = page_size;
	}

	return __vfio_pci_dmabuf_export(self->device, self->bar,
					O_RDWR | O_CLOEXEC, self->op.type,
					ranges, self->op.nr);
}

static void close_exported(FIXTURE_DATA(dmabuf_fail_nth) *self, int ret)
{
	if (ret >= 0)
		close_assert(ret);
}

static struct operation export_op(u32 type, u32 nr)
{
	return (struct operation) {
		.fn = export_ranges,
		.after = close_exported,
		.type = type,
		.nr = nr,
	};
}

/* Ranges, buffer, inode: so much there is at least. */
TEST_FAIL_NTH(export)
{
	ASSERT_LE(3, fail_each(_metadata, self, export_op(0, 1)).nr_failures);
	ASSERT_LE(3, fail_each(_metadata, self,
			       export_op(0, MANY_RANGES)).nr_failures);
}

/* Of pages that had been reserved before one could not be, none stays reserved. */
TEST_FAIL_NTH(export_write_combining)
{
	u64 start, end, flags;

	if (nr_wc_memtypes(0, UINT64_MAX) < 0)
		SKIP(return, "No write-combining on this machine");

	ASSERT_LE(3, fail_each(_metadata, self, export_op(WC, 1)).nr_failures);
	/* One per range, but a debug kernel allocates as much for itself. */
	ASSERT_LE(MANY_RANGES / 4,
		  fail_each(_metadata, self,
			    export_op(WC, MANY_RANGES)).nr_failures);

	/* What was closed ends when memory is disabled. */
	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	sysfs_resource_get(device_bdf, self->bar, &start, &end, &flags);
	ASSERT_EQ(0, nr_wc_memtypes(start, end));
}

static int write_and_read(FIXTURE_DATA(dmabuf_fail_nth) *self)
{
	u64 pos = self->bar_offset + SZ_64K;
	u32 val = ++self->op.nr;

	if (pwrite(self->device->fd, &val, sizeof(val), pos) != sizeof(val) ||
	    pread(self->device->fd, &val, sizeof(val), pos) != sizeof(val))
		return -errno;

	return val == self->op.nr ? 0 : -EIO;
}

/* Without the kernel's mapping of the BAR, a page is mapped for each access. */
TEST_FAIL_NTH(read_and_write)
{
	struct result result;

	self->op = export_op(WC, 1);
	if (export_ranges(self) == -EOPNOTSUPP)
		SKIP(return, "No write-combining on this machine");
	self->nr_fds = count_fds();
	self->nr_dmabufs = count_dmabufs();

	result = fail_each(_metadata, self,
			   (struct operation){ .fn = write_and_read });
	ASSERT_LE(2, result.nr_failures);
}

/*
 * The last thing that an export needs is an fd. There is nothing to allocate for
 * that as long as the first ones, for which there always is room, are not used.
 */
TEST_FAIL_NTH(export_with_full_fd_table)
{
	int fd;

	do {
		fd = dup(self->fd);
		ASSERT_GE(fd, 0);
	} while (fd < BITS_PER_LONG - 1);
	self->nr_fds = count_fds();

	ASSERT_LE(4, fail_each(_metadata, self, export_op(0, 1)).nr_failures);
}

static int map(FIXTURE_DATA(dmabuf_fail_nth) *self)
{
	void *vaddr = self->hole + self->op.misalign;
	void *ret = mmap(vaddr, SZ_4M, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED_NOREPLACE, self->op.file,
			 self->op.offset);

	return ret == vaddr ? 0 : -errno;
}

static void check_mapping(FIXTURE_DATA(dmabuf_fail_nth) *self, int ret)
{
	VFIO_ASSERT_EQ(try_touch(self->hole), ret ? SIGSEGV : 0);
	if (!ret)
		munmap_assert(self->hole, SZ_4M);
}

/*
 * The BAR has its DMABUF already: mmap() of either allocates a VMA and no more. A
 * cache may need a new slab now and then, but a DMABUF would need six objects.
 */
TEST_FAIL_NTH(mmap)
{
	struct operation op = {
		.fn = map, .after = check_mapping, .file = self->fd,
	};
	struct result dmabuf, bar;

	dmabuf = fail_each(_metadata, self, op);
	op.file = self->device->fd;
	op.offset = self->bar_offset;
	bar = fail_each(_metadata, self, op);

	ASSERT_LE(1, dmabuf.nr_failures);
	ASSERT_LE(1, bar.nr_failures);
	ASSERT_GT(dmabuf.nr_allocations + 4, bar.nr_allocations);
}

static void map_for_fault(FIXTURE_DATA(dmabuf_fail_nth) *self)
{
	VFIO_ASSERT_EQ(map(self), 0);
	madvise(self->hole + self->op.misalign, SZ_4M, MADV_HUGEPAGE);
}

static int fault(FIXTURE_DATA(dmabuf_fail_nth) *self)
{
	void *vaddr = self->hole + self->op.misalign;
	int sig = try_touch(vaddr);

	VFIO_ASSERT_TRUE(!sig || sig == SIGBUS);
	return sig ? -ENOMEM : 0;
}

static void unmap_faulted(FIXTURE_DATA(dmabuf_fail_nth) *self, int ret)
{
	void *vaddr = self->hole + self->op.misalign;
	u32 val;

	VFIO_ASSERT_EQ(try_read32(vaddr, &val), 0);
	VFIO_ASSERT_EQ(val, touch_pattern(0));
	VFIO_ASSERT_EQ(try_touch_pages(vaddr, SZ_64K), 0);
	munmap_assert(vaddr, SZ_4M);
}

/*
 * Page tables are what a fault allocates. Without, the fault is repeated, so the
 * access is only late. The mapping is new for each, and page tables with it.
 */
TEST_FAIL_NTH(fault)
{
	struct operation op = {
		.before = map_for_fault, .fn = fault, .after = unmap_faulted,
		.file = self->fd,
	};

	/* A table for a large page; one more for a small page */
	ASSERT_LE(1, fail_each(_metadata, self, op).nr_allocations);
	op.misalign = page_size;
	ASSERT_LE(2, fail_each(_metadata, self, op).nr_allocations);
	op.file = self->device->fd;
	op.offset = self->bar_offset;
	ASSERT_LE(2, fail_each(_metadata, self, op).nr_allocations);
}

static void *revoked_map;

static void export_and_map(FIXTURE_DATA(dmabuf_fail_nth) *self)
{
	self->op.file = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						     SZ_4M);
	revoked_map = mmap_shared(self->op.file, 0, SZ_4M);
	VFIO_ASSERT_EQ(try_touch_pages(revoked_map, SZ_64K), 0);
}

static int revoke_exported(FIXTURE_DATA(dmabuf_fail_nth) *self)
{
	return __vfio_pci_dmabuf_revoke(self->device, self->op.file);
}

static void check_revoked(FIXTURE_DATA(dmabuf_fail_nth) *self, int ret)
{
	int i;

	VFIO_ASSERT_EQ(try_touch_pages(revoked_map, SZ_64K), SIGBUS);
	VFIO_ASSERT_EQ(revoke_exported(self), -EBADFD);
	munmap_assert(revoked_map, SZ_4M);
	close_assert(self->op.file);
	for (i = 0; i < NR_IMPORTERS && self->importers[i] >= 0; i++) {
		importer_guard_stop(self->guards[i]);
		close_assert(self->importers[i]);
		self->importers[i] = -1;
	}
}

/* A revoke may not fail for want of memory. */
TEST_FAIL_NTH(revoke)
{
	struct operation op = {
		.before = export_and_map, .fn = revoke_exported, .after = check_revoked,
	};

	ASSERT_EQ(0, fail_each(_metadata, self, op).nr_failures);
}

static void *signal_main(void *arg)
{
	FIXTURE_DATA(dmabuf_fail_nth) *self = arg;
	int i;

	usleep(20000);
	for (i = 0; i < NR_IMPORTERS; i++)
		importer_do(self->importers[i], VFIO_PCI_DMABUF_TEST_SIGNAL);

	return NULL;
}

static pthread_t signal_thread;

/* Two fences, which are signalled a moment later */
static void export_with_fences(FIXTURE_DATA(dmabuf_fail_nth) *self)
{
	int i;

	export_and_map(self);
	for (i = 0; i < NR_IMPORTERS; i++) {
		self->importers[i] = importer_open();
		self->guards[i] = importer_guard_start(self->importers[i]);
		importer_attach(self->importers[i], self->device, self->op.file,
				0);
		VFIO_ASSERT_EQ(importer_do(self->importers[i],
					   VFIO_PCI_DMABUF_TEST_FENCE), 0);
	}
	VFIO_ASSERT_EQ(pthread_create(&signal_thread, NULL, signal_main, self),
		       0);
}

static void check_revoked_with_fences(FIXTURE_DATA(dmabuf_fail_nth) *self,
				      int ret)
{
	VFIO_ASSERT_EQ(pthread_join(signal_thread, NULL), 0);
	check_revoked(self, ret);
}

/* More than one fence is waited for, and may be gathered in new memory. */
TEST_FAIL_NTH(revoke_with_fences)
{
	struct operation op = {
		.before = export_with_fences, .fn = revoke_exported,
		.after = check_revoked_with_fences,
	};
	int importer = importer_open();

	if (importer < 0)
		SKIP(return, "No test importer");
	close_assert(importer);
	ASSERT_EQ(0, fail_each(_metadata, self, op).nr_failures);
}

#define IOVA SZ_1G

static int import_by_iommufd(FIXTURE_DATA(dmabuf_fail_nth) *self)
{
	return __iommu_map_file(self->iommu, self->fd, 0, SZ_4M, IOVA);
}

static void unmap_iova(FIXTURE_DATA(dmabuf_fail_nth) *self, int ret)
{
	if (!ret)
		iommu_unmap_iova(self->iommu, IOVA, SZ_4M);
}

static void open_importer(FIXTURE_DATA(dmabuf_fail_nth) *self)
{
	self->op.file = importer_open();
}

static int import_by_test_importer(FIXTURE_DATA(dmabuf_fail_nth) *self)
{
	int ret = __importer_attach(self->op.file, self->device, self->fd,
				    VFIO_PCI_DMABUF_TEST_PROMPT);

	return ret ?: importer_do(self->op.file, VFIO_PCI_DMABUF_TEST_MAP);
}

static void close_importer(FIXTURE_DATA(dmabuf_fail_nth) *self, int ret)
{
	close_assert(self->op.file);
}

/* The attachment and the table of addresses, at least */
TEST_FAIL_NTH(import)
{
	struct operation iommufd = {
		.fn = import_by_iommufd, .after = unmap_iova,
	};
	struct operation test_importer = {
		.before = open_importer, .fn = import_by_test_importer,
		.after = close_importer,
	};
	int importer;

	ASSERT_LE(2, fail_each(_metadata, self, iommufd).nr_failures);
	importer = importer_open();
	if (importer < 0)
		SKIP(return, "No test importer");
	close_assert(importer);
	ASSERT_LE(2, fail_each(_metadata, self, test_importer).nr_failures);
}

static void open_device_node(FIXTURE_DATA(dmabuf_fail_nth) *self)
{
	const char *node = vfio_pci_get_cdev_path(device_bdf);

	self->op.file = open(node, O_RDWR | O_CLOEXEC);
	VFIO_ASSERT_GE(self->op.file, 0);
	free((void *)node);
}

/* Its error may be that of anything that has failed. */
static int bind_iommufd(FIXTURE_DATA(dmabuf_fail_nth) *self)
{
	struct vfio_device_bind_iommufd args = {
		.argsz = sizeof(args),
		.iommufd = self->iommu->iommufd,
	};

	return ioctl(self->op.file, VFIO_DEVICE_BIND_IOMMUFD, &args) ? -ENOMEM :
								       0;
}

/*
 * The open may succeed without the DMABUF of a region, or with a BAR that could not
 * be claimed; then mmap() of that fails.
 */
static void map_bar_of_node(FIXTURE_DATA(dmabuf_fail_nth) *self, int ret)
{
	void *vaddr;

	if (!ret) {
		ret = __mmap_shared(self->op.file, self->bar_offset, page_size,
				    PROT_READ, &vaddr);
		VFIO_ASSERT_TRUE(!ret || ret == -ENOMEM || ret == -EBUSY);
		if (ret == -ENOMEM)
			self->op.nr++;
		if (!ret)
			munmap_assert(vaddr, page_size);
	}
	close_assert(self->op.file);
}

/* The regions come last. */
TEST_FAIL_NTH(open_of_device)
{
	struct operation op = {
		.before = open_device_node, .fn = bind_iommufd,
		.after = map_bar_of_node, .last = 40,
	};

	close_assert(self->fd);
	dmabuf_test_close(&self->device);
	self->nr_fds = count_fds();
	self->nr_dmabufs = count_dmabufs();
	fail_each(_metadata, self, op);
	ASSERT_LE(1, self->op.nr);
	TH_LOG("%u of these left the BAR without DMABUF", self->op.nr);
}

int main(int argc, char *argv[])
{
	dmabuf_test_init(&argc, argv);
	return test_harness_run(argc, argv);
}
