// SPDX-License-Identifier: GPL-2.0-only
/*
 * The operations on DMABUFs with each of their memory allocations failing in
 * turn: the first, then the second, and so on until none is left to fail. See
 * fail-nth in Documentation/fault-injection/fault-injection.rst.
 *
 * Needs a kernel with CONFIG_FAULT_INJECTION_DEBUG_FS, CONFIG_FAILSLAB and
 * CONFIG_FAIL_PAGE_ALLOC, and says most on one that also checks itself.
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

#include <sys/mman.h>

#include <linux/bitops.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "kselftest_harness.h"

static const char *device_bdf;

static size_t page_size;

#define DEBUGFS		"/sys/kernel/debug/"

/* No operation has as many allocations: something repeats itself. */
#define MAX_NTH		1000

#define MANY_RANGES	64

#define UC		VFIO_DEVICE_FEATURE_DMA_BUF_ATTR_UC
#define WC		VFIO_DEVICE_FEATURE_DMA_BUF_ATTR_WC

/* Until an operation has ended before so many allocations */
#define for_each_nth(_nth, _failed) \
	for ((_nth) = 1, (_failed) = true; (_failed); (_nth)++)

#define NR_IMPORTERS	2

FIXTURE(dmabuf_fail_nth) {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	int fail_nth;
	int bar;
	int fd;
	/* Address space with nobody in it or near it, so without page tables */
	void *hole;
	int nr_fds;
	int nr_dmabufs;
	int importers[NR_IMPORTERS];
	struct importer_guard *guards[NR_IMPORTERS];
};

/* Have any allocation fail, and not a word of it in the log */
static bool setup_fault_injection(void)
{
	return !write_file(DEBUGFS "failslab/ignore-gfp-wait", 0, "N") &&
	       !write_file(DEBUGFS "failslab/verbose", 0, "0") &&
	       !write_file(DEBUGFS "fail_page_alloc/ignore-gfp-wait", 0, "N") &&
	       !write_file(DEBUGFS "fail_page_alloc/ignore-gfp-highmem", 0, "N") &&
	       !write_file(DEBUGFS "fail_page_alloc/min-order", 0, "0") &&
	       !write_file(DEBUGFS "fail_page_alloc/verbose", 0, "0");
}

static void set_fail_nth(int fail_nth, unsigned int nth)
{
	char buf[16];
	int len = snprintf(buf, sizeof(buf), "%u", nth);

	VFIO_ASSERT_LT(nth, MAX_NTH);
	VFIO_ASSERT_EQ(pwrite(fail_nth, buf, len, 0), len);
}

/* Stop failing. Returns whether an allocation has failed. */
static bool end_fail_nth(int fail_nth)
{
	char buf[16] = {};

	VFIO_ASSERT_GT(pread(fail_nth, buf, sizeof(buf) - 1, 0), 0);
	set_fail_nth(fail_nth, 0);

	return !atoi(buf);
}

/* All DMABUFs that there are, those under BAR mappings too */
static int count_dmabufs(void)
{
	FILE *file = fopen(DEBUGFS "dma_buf/bufinfo", "r");
	char line[256];
	int nr = -1;

	if (!file)
		return -1;

	while (fgets(line, sizeof(line), file))
		sscanf(line, "Total %d objects", &nr);
	VFIO_ASSERT_EQ(fclose(file), 0);

	return nr;
}

static int export(FIXTURE_DATA(dmabuf_fail_nth) *self)
{
	return vfio_pci_dmabuf_export_range(self->device, self->bar, 0, SZ_4M);
}

FIXTURE_SETUP(dmabuf_fail_nth)
{
	const char *reason;
	int i;

	self->fd = -1;
	for (i = 0; i < NR_IMPORTERS; i++)
		self->importers[i] = -1;
	if (!setup_fault_injection())
		SKIP(return, "No fault injection");

	self->fail_nth = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
	ASSERT_GE(self->fail_nth, 0);

	reason = dmabuf_test_open(device_bdf, true, SZ_4M, &self->iommu,
				  &self->device, &self->bar);
	if (reason)
		SKIP(return, "%s", reason);
	touch_fill(self->device->bars[self->bar].vaddr, SZ_4M);

	self->fd = export(self);
	self->hole = mmap_reserve(3UL * SZ_1G, SZ_1G, 0);
	munmap_assert(self->hole, 3UL * SZ_1G);
	self->hole += SZ_1G;

	self->nr_dmabufs = count_dmabufs();
	ASSERT_GE(self->nr_dmabufs, 0);
	self->nr_fds = count_fds();
}

static void importers_close(FIXTURE_DATA(dmabuf_fail_nth) *self)
{
	int i;

	for (i = 0; i < NR_IMPORTERS && self->importers[i] >= 0; i++) {
		importer_guard_stop(self->guards[i]);
		close_assert(self->importers[i]);
		self->importers[i] = -1;
	}
}

/* Whatever has failed before: all works now, nothing is left of it. */
FIXTURE_TEARDOWN(dmabuf_fail_nth)
{
	char *driver;
	void *vaddr;

	if (self->fd < 0)
		return;

	importers_close(self);
	EXPECT_EQ(self->nr_fds, count_fds());
	EXPECT_EQ(self->nr_dmabufs, count_dmabufs());

	vaddr = mmap_shared(self->fd, 0, SZ_4M);
	EXPECT_EQ(0, try_touch_pages(vaddr, SZ_64K));
	vfio_pci_dmabuf_revoke(self->device, self->fd);
	EXPECT_EQ(SIGBUS, try_touch_pages(vaddr, SZ_64K));
	munmap_assert(vaddr, SZ_4M);
	close_assert(self->fd);

	/* A reference to the device that got lost would make the unbind wait. */
	vfio_pci_device_cleanup(self->device);
	driver = sysfs_driver_get(device_bdf);
	EXPECT_EQ(0, __sysfs_driver_unbind(driver, device_bdf));
	EXPECT_EQ(0, __sysfs_driver_bind(driver, device_bdf));
	free(driver);

	self->device = vfio_pci_device_init(device_bdf, self->iommu);
	close_assert(export(self));
	vfio_pci_device_cleanup(self->device);
	iommu_cleanup(self->iommu);
	close_assert(self->fail_nth);
}

#define TEST_FAIL_NTH(_name) TEST_F_TIMEOUT(dmabuf_fail_nth, _name, 300)

/* Some allocations may fail without harm, but if none does nothing fails. */
static bool result_is_right(int ret, bool failed)
{
	return ret >= 0 || (failed && ret == -ENOMEM);
}

static int export_ranges(FIXTURE_DATA(dmabuf_fail_nth) *self, u32 type, u32 nr)
{
	struct vfio_region_dma_range ranges[MANY_RANGES];
	u32 i;

	for (i = 0; i < nr; i++) {
		ranges[i].offset = 2 * i * page_size;
		ranges[i].length = page_size;
	}

	return __vfio_pci_dmabuf_export(self->device, self->bar,
					O_RDWR | O_CLOEXEC, type, ranges, nr);
}

static void fail_export(struct __test_metadata *_metadata,
			FIXTURE_DATA(dmabuf_fail_nth) *self, u32 type, u32 nr)
{
	unsigned int nth, nr_failed = 0;
	bool failed;

	for_each_nth(nth, failed) {
		int fd;

		set_fail_nth(self->fail_nth, nth);
		fd = export_ranges(self, type, nr);
		failed = end_fail_nth(self->fail_nth);

		ASSERT_TRUE(result_is_right(fd, failed));
		if (fd >= 0)
			close_assert(fd);
		else
			nr_failed++;
		ASSERT_EQ(self->nr_fds, count_fds());
		ASSERT_EQ(self->nr_dmabufs, count_dmabufs());
	}

	/* Ranges, buffer, inode: so much there is at least. */
	ASSERT_LE(3, nr_failed);
	TH_LOG("%u allocations, %u failures", nth - 2, nr_failed);
}

TEST_FAIL_NTH(export)
{
	fail_export(_metadata, self, UC, 1);
}

TEST_FAIL_NTH(export_of_many_ranges)
{
	fail_export(_metadata, self, UC, MANY_RANGES);
}

/* Of pages that had been reserved before one could not be, none stays so. */
TEST_FAIL_NTH(export_write_combining)
{
	u64 start, end, flags;

	if (nr_wc_memtypes(0, UINT64_MAX) < 0)
		SKIP(return, "No write-combining on this machine");

	fail_export(_metadata, self, WC, 1);
	fail_export(_metadata, self, WC, MANY_RANGES);

	sysfs_resource_get(device_bdf, self->bar, &start, &end, &flags);
	ASSERT_TRUE(wait_for_wc_memtypes(start, end, 0));
}

/* Without the kernel's mapping of the BAR, which is gone by then */
TEST_FAIL_NTH(read_and_write)
{
	u64 pos = vfio_pci_region_offset(self->device, self->bar) + SZ_64K;
	int fd = export_ranges(self, WC, 1);
	unsigned int nth;
	bool failed;
	u32 val;

	if (fd == -EOPNOTSUPP)
		SKIP(return, "No write-combining on this machine");
	ASSERT_LE(0, fd);

	for_each_nth(nth, failed) {
		ssize_t ret;

		val = nth;
		set_fail_nth(self->fail_nth, nth);
		ret = pwrite(self->device->fd, &val, sizeof(val), pos);
		if (ret == sizeof(val))
			ret = pread(self->device->fd, &val, sizeof(val), pos);
		ret = ret < 0 ? -errno : ret;
		failed = end_fail_nth(self->fail_nth);

		ASSERT_TRUE(result_is_right(ret, failed));
		if (ret >= 0) {
			ASSERT_EQ(sizeof(val), ret);
			ASSERT_EQ(nth, val);
		}
	}

	/* The mapping of a page, for each of the two */
	ASSERT_LT(3, nth);
	close_assert(fd);
}

/*
 * The last thing that an export needs is an fd. There is nothing to allocate for
 * that as long as the first ones, for which there always is room, are not used.
 */
TEST_FAIL_NTH(export_with_full_fd_table)
{
	int fds[BITS_PER_LONG];
	unsigned int nth;
	bool failed;
	int nr = 0;

	do {
		fds[nr] = dup(self->fd);
		ASSERT_GE(fds[nr], 0);
	} while (fds[nr++] < BITS_PER_LONG - 1);

	for_each_nth(nth, failed) {
		int fd;

		set_fail_nth(self->fail_nth, nth);
		fd = export_ranges(self, UC, 1);
		failed = end_fail_nth(self->fail_nth);

		ASSERT_TRUE(result_is_right(fd, failed));
		if (fd >= 0)
			close_assert(fd);
	}

	while (nr)
		close_assert(fds[--nr]);
}

static int map(FIXTURE_DATA(dmabuf_fail_nth) *self, int fd, u64 offset)
{
	void *vaddr = mmap(self->hole, SZ_4M, PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_FIXED_NOREPLACE, fd, offset);

	return vaddr == self->hole ? 0 : -errno;
}

static void fail_mmap(struct __test_metadata *_metadata,
		      FIXTURE_DATA(dmabuf_fail_nth) *self, int fd, u64 offset)
{
	unsigned int nth, nr_failed = 0;
	bool failed;

	for_each_nth(nth, failed) {
		int ret;

		set_fail_nth(self->fail_nth, nth);
		ret = map(self, fd, offset);
		failed = end_fail_nth(self->fail_nth);

		ASSERT_TRUE(result_is_right(ret, failed));
		if (!ret) {
			ASSERT_EQ(0, try_touch(self->hole));
			munmap_assert(self->hole, SZ_4M);
		} else {
			ASSERT_EQ(SIGSEGV, try_touch(self->hole));
			nr_failed++;
		}
		ASSERT_EQ(self->nr_dmabufs, count_dmabufs());
	}

	/* The VMA, at least */
	ASSERT_LE(1, nr_failed);
	TH_LOG("%u allocations, %u failures", nth - 2, nr_failed);
}

TEST_FAIL_NTH(mmap_of_dmabuf)
{
	fail_mmap(_metadata, self, self->fd, 0);
}

TEST_FAIL_NTH(mmap_of_bar)
{
	fail_mmap(_metadata, self, self->device->fd,
		  vfio_pci_region_offset(self->device, self->bar));
}

/*
 * Page tables are what a fault allocates. Without, the fault is repeated, so the
 * access is only late. The mapping is new for each, and page tables with it.
 */
static void fail_fault(struct __test_metadata *_metadata,
		       FIXTURE_DATA(dmabuf_fail_nth) *self, int fd, u64 offset,
		       size_t misalign)
{
	void *vaddr = self->hole + misalign;
	unsigned int nth;
	bool failed;

	for_each_nth(nth, failed) {
		u32 val = 0;
		void *ret;
		int sig;

		ret = mmap(vaddr, SZ_4M, PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_FIXED_NOREPLACE, fd, offset);
		ASSERT_EQ(vaddr, ret);
		madvise(vaddr, SZ_4M, MADV_HUGEPAGE);

		set_fail_nth(self->fail_nth, nth);
		sig = try_read32(vaddr, &val);
		failed = end_fail_nth(self->fail_nth);
		if (sig) {
			ASSERT_TRUE(failed);
			ASSERT_EQ(SIGBUS, sig);
			ASSERT_EQ(0, try_read32(vaddr, &val));
		}
		ASSERT_EQ(touch_pattern(0), val);
		ASSERT_EQ(0, try_touch_pages(vaddr, SZ_64K));
		munmap_assert(vaddr, SZ_4M);
	}

	/* A table, and if it is no huge page some more */
	ASSERT_LT(2, nth);
	TH_LOG("%u allocations", nth - 2);
}

TEST_FAIL_NTH(fault_of_dmabuf)
{
	fail_fault(_metadata, self, self->fd, 0, page_size);
}

TEST_FAIL_NTH(huge_fault_of_dmabuf)
{
	fail_fault(_metadata, self, self->fd, 0, 0);
}

TEST_FAIL_NTH(fault_of_bar)
{
	fail_fault(_metadata, self, self->device->fd,
		   vfio_pci_region_offset(self->device, self->bar), page_size);
}

/* A revoke may not fail for want of memory. */
TEST_FAIL_NTH(revoke)
{
	unsigned int nth;
	bool failed;

	for_each_nth(nth, failed) {
		int fd = export(self);
		void *vaddr = mmap_shared(fd, 0, SZ_4M);
		int ret;

		ASSERT_EQ(0, try_touch_pages(vaddr, SZ_64K));
		set_fail_nth(self->fail_nth, nth);
		ret = __vfio_pci_dmabuf_revoke(self->device, fd);
		failed = end_fail_nth(self->fail_nth);
		ASSERT_EQ(0, ret);
		ASSERT_EQ(SIGBUS, try_touch_pages(vaddr, SZ_64K));
		ASSERT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(self->device, fd));

		munmap_assert(vaddr, SZ_4M);
		close_assert(fd);
	}
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

/* Each with a fence of its own on the DMABUF */
static bool importers_open(FIXTURE_DATA(dmabuf_fail_nth) *self, int fd)
{
	int i;

	for (i = 0; i < NR_IMPORTERS; i++) {
		int importer = importer_open();

		if (importer < 0)
			return false;

		self->guards[i] = importer_guard_start(importer);
		self->importers[i] = importer;
		importer_attach(importer, self->device, fd, 0);
		VFIO_ASSERT_EQ(importer_do(importer,
					   VFIO_PCI_DMABUF_TEST_FENCE), 0);
	}

	return true;
}

/* More than one fence is waited for, and may be gathered in new memory. */
TEST_FAIL_NTH(revoke_with_fences)
{
	unsigned int nth;
	bool failed;

	for_each_nth(nth, failed) {
		int fd = export(self);
		pthread_t thread;
		int ret;

		if (!importers_open(self, fd)) {
			close_assert(fd);
			SKIP(return, "No test importer");
		}
		ASSERT_EQ(0, pthread_create(&thread, NULL, signal_main, self));

		set_fail_nth(self->fail_nth, nth);
		ret = __vfio_pci_dmabuf_revoke(self->device, fd);
		failed = end_fail_nth(self->fail_nth);
		ASSERT_EQ(0, ret);
		ASSERT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(self->device, fd));

		ASSERT_EQ(0, pthread_join(thread, NULL));
		importers_close(self);
		close_assert(fd);
	}
	TH_LOG("%u allocations", nth - 2);
}

TEST_FAIL_NTH(import_by_iommufd)
{
	unsigned int nth, nr_failed = 0;
	iova_t iova = SZ_1G;
	bool failed;

	for_each_nth(nth, failed) {
		int ret;

		set_fail_nth(self->fail_nth, nth);
		ret = __iommu_map_file(self->iommu, self->fd, 0, SZ_4M, iova);
		failed = end_fail_nth(self->fail_nth);

		ASSERT_TRUE(result_is_right(ret, failed));
		if (!ret)
			iommu_unmap_iova(self->iommu, iova, SZ_4M);
		else
			nr_failed++;
	}

	ASSERT_LE(1, nr_failed);
	TH_LOG("%u allocations, %u failures", nth - 2, nr_failed);
}

static int attach_and_map(FIXTURE_DATA(dmabuf_fail_nth) *self, int importer)
{
	int ret = __importer_attach(importer, self->device, self->fd,
				    VFIO_PCI_DMABUF_TEST_PROMPT);

	return ret ?: importer_do(importer, VFIO_PCI_DMABUF_TEST_MAP);
}

TEST_FAIL_NTH(import_by_test_importer)
{
	unsigned int nth, nr_failed = 0;
	bool failed;

	for_each_nth(nth, failed) {
		int importer = importer_open();
		int ret;

		if (importer < 0)
			SKIP(return, "No test importer");

		set_fail_nth(self->fail_nth, nth);
		ret = attach_and_map(self, importer);
		failed = end_fail_nth(self->fail_nth);

		ASSERT_TRUE(result_is_right(ret, failed));
		if (ret)
			nr_failed++;
		close_assert(importer);
	}

	/* The attachment and the table of addresses */
	ASSERT_LE(2, nr_failed);
	TH_LOG("%u allocations, %u failures", nth - 2, nr_failed);
}

int main(int argc, char *argv[])
{
	page_size = getpagesize();
	device_bdf = vfio_selftests_get_bdf(&argc, argv);
	return test_harness_run(argc, argv);
}
