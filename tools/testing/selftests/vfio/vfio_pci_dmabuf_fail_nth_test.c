// SPDX-License-Identifier: GPL-2.0-only
/*
 * The operations on DMABUFs with each of their memory allocations failing in turn:
 * the first, then the second, and so on until none is left to fail. See fail-nth in
 * Documentation/fault-injection/fault-injection.rst.
 *
 * Needs a kernel with CONFIG_FAULT_INJECTION_DEBUG_FS, CONFIG_FAILSLAB and
 * CONFIG_FAIL_PAGE_ALLOC, and finds most on a debug kernel.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <sys/mman.h>

#include <linux/bitops.h>
#include <linux/iommufd.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include "kselftest_harness.h"

#include <libvfio/dmabuf_test.h>

#define DEBUGFS		"/sys/kernel/debug/"

/* No operation has as many allocations: something repeats itself. */
#define MAX_NTH		1000

#define MANY_RANGES	64
#define NR_IMPORTERS	2

/* Have any allocation fail, without messages */
static const char * const settings[][2] = {
	{ DEBUGFS "failslab/ignore-gfp-wait", "N" },
	{ DEBUGFS "failslab/verbose", "0" },
	{ DEBUGFS "fail_page_alloc/ignore-gfp-wait", "N" },
	{ DEBUGFS "fail_page_alloc/ignore-gfp-highmem", "N" },
	{ DEBUGFS "fail_page_alloc/min-order", "0" },
	{ DEBUGFS "fail_page_alloc/verbose", "0" },
};

static char saved_settings[ARRAY_SIZE(settings)][16];

static void save_settings(void)
{
	FILE *file;
	int i;

	for (i = 0; i < ARRAY_SIZE(settings); i++) {
		file = fopen(settings[i][0], "r");
		if (!file)
			continue;
		VFIO_ASSERT_NOT_NULL(fgets(saved_settings[i], 16, file));
		fclose(file);
	}
}

static void restore_settings(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(settings); i++) {
		if (saved_settings[i][0])
			write_file(settings[i][0], 0, saved_settings[i]);
	}
}

/* The kernel driver of the device */
static char *driver;

FIXTURE(fail_nth) {
	DMABUF_FIXTURE;
	bool is_set_up;
	int fail_nth;
	int fd;
	/* Address space with nothing in it or near it, so without page tables */
	void *hole;
	struct vfio_pci_device *edu;
	int nr_fds;
	int nr_dmabufs;
	/* Of the last FAIL_EACH() */
	u32 nr_allocations;
	/* The state of an operation, kept for its end */
	struct operation {
		/* Not to fail; @fn returns -errno, and @after gets that */
		void (*before)(FIXTURE_DATA(fail_nth) *self);
		int (*fn)(FIXTURE_DATA(fail_nth) *self);
		void (*after)(FIXTURE_DATA(fail_nth) *self, int ret);
		int file;
		u64 offset;
		void *vaddr;
		u32 flags;
		u32 nr;
		/* Of many allocations have only the last ones fail, so many */
		u32 last;
		int importers[NR_IMPORTERS];
		struct job signal;
	} op;
};

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

static void count_all(FIXTURE_DATA(fail_nth) *self)
{
	self->nr_dmabufs = count_dmabufs();
	self->nr_fds = count_fds();
}

static int export(FIXTURE_DATA(fail_nth) *self)
{
	return vfio_pci_dmabuf_export_range(self->device, self->bar, 0, SZ_4M);
}

FIXTURE_SETUP(fail_nth)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(settings); i++) {
		if (write_file(settings[i][0], 0, settings[i][1]))
			SKIP(return, "No fault injection");
	}
	self->fail_nth = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
	ASSERT_GE(self->fail_nth, 0);

	DMABUF_SETUP(self, true, SZ_4M);
	self->is_set_up = true;
	touch_fill(self->device->bars[self->bar].vaddr, SZ_4M);
	self->fd = export(self);
	self->hole = mmap_reserve(3UL * SZ_1G, SZ_1G, 0);
	munmap_assert(self->hole, 3UL * SZ_1G);
	self->hole += SZ_1G;
	count_all(self);
}

/*
 * After all failures everything works, and nothing is left of them. A reference
 * to the device that got lost would make the unbind wait.
 */
FIXTURE_TEARDOWN_PARENT(fail_nth)
{
	void *vaddr;
	int fd;

	if (!self->is_set_up)
		return;

	EXPECT_EQ(0, __sysfs_driver_unbind(driver, device_bdf));
	EXPECT_EQ(0, __sysfs_driver_bind(driver, device_bdf));
	DMABUF_SETUP(self, true, SZ_4M);
	fd = export(self);
	vaddr = mmap_shared(fd, 0, SZ_4M);
	EXPECT_EQ(0, try_touch_pages(vaddr, SZ_64K));
	vfio_pci_dmabuf_revoke(self->device, fd);
	EXPECT_EQ(SIGBUS, try_touch_pages(vaddr, SZ_64K));
}

#define TEST_FAIL_NTH(_name) TEST_F_TIMEOUT(fail_nth, _name, 600)

static void set_fail_nth(int fail_nth, u32 nth)
{
	char buf[16];
	int len = snprintf(buf, sizeof(buf), "%u", nth);

	VFIO_ASSERT_LT(nth, MAX_NTH);
	VFIO_ASSERT_EQ(pwrite(fail_nth, buf, len, 0), len);
}

/* Have allocation @nth fail. Returns how many would be left until then. */
static u32 try_nth(struct __test_metadata *_metadata,
		   FIXTURE_DATA(fail_nth) *self, u32 nth, int *ret)
{
	struct operation *op = &self->op;
	char buf[16] = {};
	u32 left;

	if (op->before)
		op->before(self);
	set_fail_nth(self->fail_nth, nth);
	*ret = op->fn(self);
	VFIO_ASSERT_GT(pread(self->fail_nth, buf, sizeof(buf) - 1, 0), 0);
	set_fail_nth(self->fail_nth, 0);
	left = atoi(buf);

	ASSERT_TRUE(*ret >= 0 || (!left && *ret == -ENOMEM)) {
		TH_LOG("allocation %u: %d", nth, *ret);
	}
	if (op->after)
		op->after(self, *ret);
	ASSERT_EQ(self->nr_fds, count_fds());
	ASSERT_EQ(self->nr_dmabufs, count_dmabufs());
	return left;
}

/*
 * Returns how often the operation failed. An operation may tolerate a failed
 * allocation, so the caller checks that some did make it fail.
 */
static u32 fail_each(struct __test_metadata *_metadata,
		     FIXTURE_DATA(fail_nth) *self, struct operation op)
{
	u32 nth = 1, nr_failures = 0;
	int ret;

	self->op = op;
	self->nr_allocations = 0;
	if (op.last) {
		nth = MAX_NTH - 1;
		nth -= try_nth(_metadata, self, nth, &ret);
		nth -= min(op.last, nth - 1);
	}
	while (!try_nth(_metadata, self, nth++, &ret)) {
		self->nr_allocations++;
		nr_failures += ret < 0;
	}

	TH_LOG("%u allocations, %u failures", self->nr_allocations,
	       nr_failures);
	return nr_failures;
}

#define FAIL_EACH(...) \
	fail_each(_metadata, self, (struct operation) { __VA_ARGS__ })

static int export_ranges(FIXTURE_DATA(fail_nth) *self)
{
	struct vfio_region_dma_range ranges[MANY_RANGES];
	u32 i;

	for (i = 0; i < self->op.nr; i++) {
		ranges[i].offset = 2 * i * page_size;
		ranges[i].length = page_size;
	}

	return __vfio_pci_dmabuf_export(self->device, self->bar,
					O_RDWR | O_CLOEXEC, self->op.flags,
					ranges, self->op.nr);
}

static void close_exported(FIXTURE_DATA(fail_nth) *self, int ret)
{
	if (ret >= 0)
		close_assert(ret);
}

#define FAIL_EXPORT(_flags, _nr)					\
	FAIL_EACH(.fn = export_ranges, .after = close_exported,		\
		  .flags = (_flags), .nr = (_nr))

/* Ranges, buffer, inode: so much there is at least. */
TEST_FAIL_NTH(export)
{
	ASSERT_LE(3, FAIL_EXPORT(0, 1));
	ASSERT_LE(3, FAIL_EXPORT(0, MANY_RANGES));
}

/* If the type of one page cannot be reserved, no page stays reserved. */
TEST_FAIL_NTH(export_write_combining)
{
	u32 wc = VFIO_DEVICE_FEATURE_DMA_BUF_ATTR_WC;
	u64 start, end, flags;

	if (nr_wc_memtypes(0, UINT64_MAX) < 0)
		SKIP(return, "No write-combining on this machine");

	ASSERT_LE(3, FAIL_EXPORT(wc, 1));
	/* One per range, but a debug kernel allocates as much for itself. */
	ASSERT_LE(MANY_RANGES / 4, FAIL_EXPORT(wc, MANY_RANGES));

	/* Closed buffers end when memory is disabled. */
	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	sysfs_resource_get(device_bdf, self->bar, &start, &end, &flags);
	ASSERT_EQ(0, nr_wc_memtypes(start, end));
}

static int write_and_read(FIXTURE_DATA(fail_nth) *self)
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
	int wc = vfio_pci_dmabuf_export_wc(self->device, self->bar, 0,
					   page_size);

	if (wc == -EOPNOTSUPP)
		SKIP(return, "No write-combining on this machine");
	ASSERT_GE(wc, 0);
	count_all(self);
	ASSERT_LE(2, FAIL_EACH(.fn = write_and_read));
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
	count_all(self);

	ASSERT_LE(4, FAIL_EXPORT(0, 1));
}

static int map(FIXTURE_DATA(fail_nth) *self)
{
	void *ret = mmap(self->op.vaddr, SZ_4M, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED_NOREPLACE, self->op.file,
			 self->op.offset);

	return ret == self->op.vaddr ? 0 : -errno;
}

static void check_mapping(FIXTURE_DATA(fail_nth) *self, int ret)
{
	VFIO_ASSERT_EQ(try_touch(self->op.vaddr), ret ? SIGSEGV : 0);
	if (!ret)
		munmap_assert(self->op.vaddr, SZ_4M);
}

/*
 * The BAR has its DMABUF already: mmap() of either allocates a VMA and no more. A
 * cache may need a new slab now and then, but a DMABUF would need six objects.
 */
TEST_FAIL_NTH(mmap)
{
	u32 nr_of_dmabuf;

	ASSERT_LE(1, FAIL_EACH(.fn = map, .after = check_mapping,
			       .vaddr = self->hole, .file = self->fd));
	nr_of_dmabuf = self->nr_allocations;
	ASSERT_LE(1, FAIL_EACH(.fn = map, .after = check_mapping,
			       .vaddr = self->hole, .file = self->device->fd,
			       .offset = self->bar_offset));
	ASSERT_GT(nr_of_dmabuf + 4, self->nr_allocations);
}

static void map_for_fault(FIXTURE_DATA(fail_nth) *self)
{
	VFIO_ASSERT_EQ(map(self), 0);
	madvise(self->op.vaddr, SZ_4M, MADV_HUGEPAGE);
}

static int fault(FIXTURE_DATA(fail_nth) *self)
{
	int sig = try_touch(self->op.vaddr);

	VFIO_ASSERT_TRUE(!sig || sig == SIGBUS);
	return sig ? -ENOMEM : 0;
}

static void unmap_faulted(FIXTURE_DATA(fail_nth) *self, int ret)
{
	u32 val;

	VFIO_ASSERT_EQ(try_read32(self->op.vaddr, &val), 0);
	VFIO_ASSERT_EQ(val, touch_pattern(0));
	VFIO_ASSERT_EQ(try_touch_pages(self->op.vaddr, SZ_64K), 0);
	munmap_assert(self->op.vaddr, SZ_4M);
}

/*
 * Page tables are what a fault allocates. Without, the fault is repeated, so the
 * access is only late. The mapping is new for each, and page tables with it.
 */
TEST_FAIL_NTH(fault)
{
	void *misaligned = self->hole + page_size;
	struct {
		void *vaddr;
		int file;
		u64 offset;
		u32 nr_tables;
	} maps[] = {
		/* A table for a large page; one more for a small page */
		{ self->hole, self->fd, 0, 1 },
		{ misaligned, self->fd, 0, 2 },
		{ misaligned, self->device->fd, self->bar_offset, 2 },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(maps); i++) {
		FAIL_EACH(.before = map_for_fault, .fn = fault,
			  .after = unmap_faulted, .vaddr = maps[i].vaddr,
			  .file = maps[i].file, .offset = maps[i].offset);
		ASSERT_LE(maps[i].nr_tables, self->nr_allocations);
	}
}

static bool has_importer(void)
{
	int importer = importer_open();

	return importer >= 0 && !close(importer);
}

static int signal_fences(void *arg, int fd)
{
	FIXTURE_DATA(fail_nth) *self = arg;
	int i;

	usleep(20000);
	for (i = 0; i < NR_IMPORTERS; i++)
		importer_do(self->op.importers[i], VFIO_PCI_DMABUF_TEST_SIGNAL);

	return 0;
}

/* Two fences, which are signalled a moment later */
static void export_with_fences(FIXTURE_DATA(fail_nth) *self)
{
	int i, *importers = self->op.importers;

	self->op.file = export(self);
	self->op.vaddr = mmap_shared(self->op.file, 0, SZ_4M);
	VFIO_ASSERT_EQ(try_touch_pages(self->op.vaddr, SZ_64K), 0);
	for (i = 0; i < NR_IMPORTERS; i++) {
		importers[i] = importer_open();
		importer_attach(importers[i], self->device, self->op.file, 0);
		VFIO_ASSERT_EQ(importer_do(importers[i],
					   VFIO_PCI_DMABUF_TEST_FENCE), 0);
	}
	job_start(&self->op.signal, signal_fences, self, -1);
}

static int revoke_exported(FIXTURE_DATA(fail_nth) *self)
{
	return __vfio_pci_dmabuf_revoke(self->device, self->op.file);
}

static void check_revoked(FIXTURE_DATA(fail_nth) *self, int ret)
{
	int i;

	job_result(&self->op.signal);
	VFIO_ASSERT_EQ(try_touch_pages(self->op.vaddr, SZ_64K), SIGBUS);
	VFIO_ASSERT_EQ(revoke_exported(self), -EBADFD);
	munmap_assert(self->op.vaddr, SZ_4M);
	close_assert(self->op.file);
	for (i = 0; i < NR_IMPORTERS; i++)
		close_assert(self->op.importers[i]);
}

/*
 * A revoke may not fail for want of memory, not even of that in which more than
 * one fence is gathered to be waited for.
 */
TEST_FAIL_NTH(revoke)
{
	if (!has_importer())
		SKIP(return, "No test importer");
	ASSERT_EQ(0, FAIL_EACH(.before = export_with_fences,
			       .fn = revoke_exported, .after = check_revoked));
}

#define IOVA SZ_1G

static int import_by_iommufd(FIXTURE_DATA(fail_nth) *self)
{
	return __iommu_map_file(self->iommu, self->fd, 0, SZ_4M, IOVA);
}

static void unmap_iova(FIXTURE_DATA(fail_nth) *self, int ret)
{
	if (!ret)
		iommu_unmap_iova(self->iommu, IOVA, SZ_4M);
}

static void open_importer(FIXTURE_DATA(fail_nth) *self)
{
	self->op.file = importer_open();
}

static int import_by_test_importer(FIXTURE_DATA(fail_nth) *self)
{
	int ret = __importer_attach(self->op.file, self->device, self->fd,
				    VFIO_PCI_DMABUF_TEST_PROMPT);

	return ret ?: importer_do(self->op.file, VFIO_PCI_DMABUF_TEST_MAP);
}

static void close_file(FIXTURE_DATA(fail_nth) *self, int ret)
{
	close_assert(self->op.file);
}

/* The attachment and the table of addresses, at least */
TEST_FAIL_NTH(import)
{
	ASSERT_LE(2, FAIL_EACH(.fn = import_by_iommufd,
			       .after = unmap_iova));
	if (!has_importer())
		SKIP(return, "No test importer");
	ASSERT_LE(2, FAIL_EACH(.before = open_importer,
			       .fn = import_by_test_importer,
			       .after = close_file));
}

static void lose_access(FIXTURE_DATA(fail_nth) *self)
{
	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
}

static int restore_access(FIXTURE_DATA(fail_nth) *self)
{
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	return 0;
}

/* Does DMA of the edu device, to the IOVA @op.offset, arrive? */
static bool dma_arrives(FIXTURE_DATA(fail_nth) *self)
{
	u32 *mem = self->device->bars[self->bar].vaddr;
	struct dma_region *ram = &self->edu->driver.region;

	*mem = 0x11111111;
	*(u32 *)(ram->vaddr + ram->size) = 0x22222222;
	VFIO_ASSERT_EQ(vfio_pci_driver_memcpy(self->edu, ram->iova + ram->size,
					      self->op.offset, 4), 0);
	return *mem == 0x22222222;
}

/* All mappings came back, or none, and then they do the next time. */
static void check_restored(FIXTURE_DATA(fail_nth) *self, int ret)
{
	if (!dma_arrives(self))
		self->op.nr++;
	lose_access(self);
	restore_access(self);
	VFIO_ASSERT_TRUE(dma_arrives(self));
}

/*
 * iommufd maps a DMABUF again when access is restored, here in two domains: that
 * of the device, and that of another IOAS, which edu is attached to.
 */
TEST_FAIL_NTH(restore)
{
	const char *edu_bdf = vfio_selftests_get_named_bdf("VFIO_EDU_BDF");
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
	struct iommu other = *self->iommu;
	/* Not for large pages: a page table is needed, and not kept */
	iova_t iova = SZ_1G + page_size;
	struct iommu_ioas_copy copy = {
		.size = sizeof(copy),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE |
			 IOMMU_IOAS_MAP_WRITEABLE,
		.src_ioas_id = self->iommu->ioas_id,
		.src_iova = iova, .dst_iova = iova, .length = SZ_4M,
	};
	struct dma_region ram = { .size = 2 * page_size, .iova = 2UL * SZ_1G };

	if (!edu_bdf)
		SKIP(return, "No edu device");

	iommu_map_file(self->iommu, self->fd, 0, SZ_4M, iova);
	ioctl_assert(other.iommufd, IOMMU_IOAS_ALLOC, &alloc);
	other.ioas_id = alloc.out_ioas_id;
	copy.dst_ioas_id = alloc.out_ioas_id;
	INIT_LIST_HEAD(&other.dma_regions);
	ioctl_assert(other.iommufd, IOMMU_IOAS_COPY, &copy);

	self->edu = vfio_pci_device_init(edu_bdf, &other);
	ram.vaddr = mmap(NULL, ram.size, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, ram.vaddr);
	iommu_map(&other, &ram);
	self->edu->driver.region = ram;
	self->edu->driver.region.size = page_size;
	vfio_pci_driver_init(self->edu);
	count_all(self);

	FAIL_EACH(.before = lose_access, .fn = restore_access,
		  .after = check_restored, .offset = iova);
	TH_LOG("%u of these left the mappings empty", self->op.nr);
	/* One in each domain, at least */
	ASSERT_LE(2, self->op.nr);
}

static void open_device_node(FIXTURE_DATA(fail_nth) *self)
{
	const char *node = vfio_pci_get_cdev_path(device_bdf);

	self->op.file = open(node, O_RDWR | O_CLOEXEC);
	VFIO_ASSERT_GE(self->op.file, 0);
	free((void *)node);
}

/* Its error may be that of anything that has failed. */
static int bind_iommufd(FIXTURE_DATA(fail_nth) *self)
{
	return __vfio_device_bind_iommufd(self->op.file, self->iommu->iommufd,
					  NULL) ? -ENOMEM : 0;
}

/*
 * The open may succeed without the DMABUF of a region, or with a BAR that could not
 * be claimed; then mmap() of that fails.
 */
static void map_bar_of_node(FIXTURE_DATA(fail_nth) *self, int ret)
{
	void *vaddr;

	if (!ret) {
		ret = __mmap_shared(self->op.file, self->bar_offset, page_size,
				    PROT_READ, &vaddr);
		VFIO_ASSERT_TRUE(!ret || ret == -ENOMEM || ret == -EBUSY);
		self->op.nr += ret == -ENOMEM;
		if (!ret)
			munmap_assert(vaddr, page_size);
	}
	close_assert(self->op.file);
}

/* The regions come last. */
TEST_FAIL_NTH(open_of_device)
{
	close_assert(self->fd);
	dmabuf_test_close(&self->device);
	count_all(self);
	FAIL_EACH(.before = open_device_node, .fn = bind_iommufd,
		  .after = map_bar_of_node, .last = 40);
	TH_LOG("%u of these left the BAR without DMABUF", self->op.nr);
	ASSERT_LE(1, self->op.nr);
}

int main(int argc, char *argv[])
{
	int ret;

	dmabuf_test_init(&argc, argv);
	driver = sysfs_driver_get(device_bdf);
	save_settings();
	ret = test_harness_run(argc, argv);
	restore_settings();
	return ret;
}
