// SPDX-License-Identifier: GPL-2.0-only
/*
 * VFIO_DEVICE_FEATURE_DMA_BUF: what it takes, what it refuses, and with which
 * error. Nothing that is refused leaves a file descriptor behind.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <linux/kernel.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "kselftest_harness.h"

static const char *device_bdf;

static size_t page_size;

/* What the documentation of the interface gives as the limit */
#define MAX_RANGES 262144

FIXTURE(dmabuf_uapi) {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	int bar;
	u64 size;
	int nr_fds;
};

FIXTURE_SETUP(dmabuf_uapi)
{
	const char *reason;

	reason = dmabuf_test_open(device_bdf, false, 4 * page_size,
				  &self->iommu, &self->device, &self->bar);
	if (reason)
		SKIP(return, "%s", reason);

	self->size = self->device->bars[self->bar].info.size;
	self->nr_fds = count_fds();
}

FIXTURE_TEARDOWN(dmabuf_uapi)
{
	EXPECT_EQ(self->nr_fds, count_fds());
	vfio_pci_device_cleanup(self->device);
	iommu_cleanup(self->iommu);
}

static int export_range(FIXTURE_DATA(dmabuf_uapi) *self, u64 offset, u64 length)
{
	return __vfio_pci_dmabuf_export_range(self->device, self->bar,
					      O_RDWR | O_CLOEXEC, 0, offset,
					      length);
}

static int export_flags(FIXTURE_DATA(dmabuf_uapi) *self, u32 flags)
{
	return __vfio_pci_dmabuf_export_range(self->device, self->bar,
					      O_RDWR | O_CLOEXEC, flags, 0,
					      page_size);
}

TEST_F(dmabuf_uapi, layout)
{
	ASSERT_EQ(0xf0000000U, VFIO_DEVICE_FEATURE_DMA_BUF_ATTR_MASK);
	ASSERT_EQ(0U, VFIO_DEVICE_FEATURE_DMA_BUF_ATTR_UC);
	ASSERT_EQ(0x10000000U, VFIO_DEVICE_FEATURE_DMA_BUF_ATTR_WC);
	ASSERT_EQ(8, offsetof(struct vfio_device_feature_dma_buf, flags));
	ASSERT_EQ(16, sizeof(struct vfio_device_feature_dma_buf));
}

TEST_F(dmabuf_uapi, whole_bar)
{
	int fd = export_range(self, 0, self->size);

	ASSERT_GE(fd, 0);
	ASSERT_EQ(self->size, lseek(fd, 0, SEEK_END));
	close_assert(fd);
}

TEST_F(dmabuf_uapi, bad_ranges)
{
	const struct {
		u64 offset;
		u64 length;
		int error;
	} bad[] = {
		{ 0, 0, EINVAL },
		{ page_size, 0, EINVAL },
		{ 0, 1, EINVAL },
		{ 0, page_size - 1, EINVAL },
		{ 0, page_size + 1, EINVAL },
		{ 1, page_size, EINVAL },
		{ page_size / 2, page_size, EINVAL },
		{ 0, self->size + page_size, EINVAL },
		{ self->size, page_size, EINVAL },
		{ self->size - page_size, 2 * page_size, EINVAL },
		{ page_size, self->size, EINVAL },
		/* an end before the start of the BAR */
		{ page_size, -page_size, EINVAL },
		{ 0, -self->size, EINVAL },
		/* beyond all addresses, but without an overflow */
		{ 1ULL << 52, page_size, EINVAL },
		{ 0, 1ULL << 52, EINVAL },
		/* with one: of the first address, and of the last */
		{ -page_size, page_size, EOVERFLOW },
		{ 1ULL << 63, (1ULL << 63) - page_size, EOVERFLOW },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		int ret = export_range(self, bad[i].offset, bad[i].length);

		ASSERT_EQ(-bad[i].error, ret) {
			TH_LOG("offset 0x%llx length 0x%llx",
			       (unsigned long long)bad[i].offset,
			       (unsigned long long)bad[i].length);
		}
		ASSERT_EQ(self->nr_fds, count_fds());
	}
}

/* One bad range among good ones, first or last */
TEST_F(dmabuf_uapi, bad_range_among_good)
{
	struct vfio_region_dma_range ranges[3] = {};
	int i, j;

	for (i = 0; i < ARRAY_SIZE(ranges); i++) {
		for (j = 0; j < ARRAY_SIZE(ranges); j++)
			ranges[j].length = page_size;
		ranges[i].offset = self->size;

		ASSERT_EQ(-EINVAL, __vfio_pci_dmabuf_export(self->device,
							    self->bar, O_RDWR,
							    0, ranges, 3));
		ranges[i].offset = 0;
	}
}

/* The sum of the lengths does not fit, each of them does. */
TEST_F(dmabuf_uapi, lengths_wrap)
{
	struct vfio_region_dma_range ranges[] = {
		{ .length = 1ULL << 63 },
		{ .length = 1ULL << 63 },
	};

	ASSERT_EQ(-EINVAL, __vfio_pci_dmabuf_export(self->device, self->bar,
						    O_RDWR, 0, ranges, 2));
}

TEST_F(dmabuf_uapi, good_ranges)
{
	struct vfio_region_dma_range ranges[] = {
		{ 3 * page_size, page_size },
		{ 0, 2 * page_size },
		{ page_size, 3 * page_size },
		{ self->size - page_size, page_size },
	};
	int fd = __vfio_pci_dmabuf_export(self->device, self->bar, O_RDWR, 0,
					  ranges, ARRAY_SIZE(ranges));

	ASSERT_GE(fd, 0);
	ASSERT_EQ(7 * page_size, lseek(fd, 0, SEEK_END));
	close_assert(fd);
}

TEST_F(dmabuf_uapi, number_of_ranges)
{
	size_t size = (MAX_RANGES + 1) * sizeof(struct vfio_region_dma_range);
	struct vfio_region_dma_range *ranges = malloc_assert(size);
	int fd, i;

	for (i = 0; i < MAX_RANGES + 1; i++) {
		ranges[i].offset = (i % 2) * page_size;
		ranges[i].length = page_size;
	}

	ASSERT_EQ(-EINVAL, __vfio_pci_dmabuf_export(self->device, self->bar,
						    O_RDWR, 0, ranges, 0));

	fd = __vfio_pci_dmabuf_export(self->device, self->bar, O_RDWR, 0,
				      ranges, MAX_RANGES);
	ASSERT_GE(fd, 0) TH_LOG("%s", strerror(-fd));
	close_assert(fd);

	ASSERT_EQ(-E2BIG, __vfio_pci_dmabuf_export(self->device, self->bar,
						   O_RDWR, 0, ranges,
						   MAX_RANGES + 1));
	free(ranges);
}

/* A number of ranges without the ranges */
static int export_raw(FIXTURE_DATA(dmabuf_uapi) *self, u32 argsz, u32 op,
		      u32 nr_ranges)
{
	struct {
		struct vfio_device_feature feature;
		struct vfio_device_feature_dma_buf dma_buf;
		struct vfio_region_dma_range range;
	} args = {
		.feature.argsz = argsz,
		.feature.flags = op | VFIO_DEVICE_FEATURE_DMA_BUF,
		.dma_buf.region_index = self->bar,
		.dma_buf.open_flags = O_RDWR | O_CLOEXEC,
		.dma_buf.nr_ranges = nr_ranges,
		.range.length = page_size,
	};
	int ret = ioctl(self->device->fd, VFIO_DEVICE_FEATURE, &args);

	return ret < 0 ? -errno : ret;
}

TEST_F(dmabuf_uapi, huge_number_of_ranges)
{
	ASSERT_EQ(-E2BIG, export_raw(self, 40, VFIO_DEVICE_FEATURE_GET,
				     INT32_MAX));
	ASSERT_EQ(-E2BIG, export_raw(self, 40, VFIO_DEVICE_FEATURE_GET,
				     UINT32_MAX));
}

TEST_F(dmabuf_uapi, argsz)
{
	const u32 get = VFIO_DEVICE_FEATURE_GET;
	int fd;

	ASSERT_EQ(-EINVAL, export_raw(self, 0, get, 1));
	ASSERT_EQ(-EINVAL, export_raw(self, 7, get, 1));
	ASSERT_EQ(-EINVAL, export_raw(self, 8, get, 1));
	ASSERT_EQ(-EINVAL, export_raw(self, 23, get, 1));

	fd = export_raw(self, 40, get, 1);
	ASSERT_GE(fd, 0);
	close_assert(fd);

	fd = export_raw(self, 4096, get, 1);
	ASSERT_GE(fd, 0);
	close_assert(fd);
}

TEST_F(dmabuf_uapi, operations)
{
	const u32 get = VFIO_DEVICE_FEATURE_GET;
	const u32 set = VFIO_DEVICE_FEATURE_SET;
	const u32 probe = VFIO_DEVICE_FEATURE_PROBE;

	/* A probe makes nothing: the number of fds is checked at the end. */
	ASSERT_EQ(0, export_raw(self, 40, probe | get, 1));
	ASSERT_EQ(0, export_raw(self, 40, probe, 1));
	ASSERT_EQ(-EINVAL, export_raw(self, 40, probe | set, 1));
	ASSERT_EQ(-EINVAL, export_raw(self, 40, set, 1));
	ASSERT_EQ(-EINVAL, export_raw(self, 40, get | set, 1));
	ASSERT_EQ(-EINVAL, export_raw(self, 40, 0, 1));
}

TEST_F(dmabuf_uapi, ranges_unreadable)
{
	size_t size = 24 + sizeof(struct vfio_region_dma_range);
	struct vfio_device_feature_dma_buf *dma_buf;
	struct vfio_device_feature *feature;
	void *pages;

	pages = mmap(NULL, 2 * page_size, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, pages);

	/* The header ends at the end of the first page. */
	feature = pages + page_size - 24;
	feature->argsz = size;
	feature->flags = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF;
	dma_buf = (void *)feature->data;
	dma_buf->region_index = self->bar;
	dma_buf->open_flags = O_RDWR | O_CLOEXEC;
	dma_buf->nr_ranges = 1;

	munmap_assert(pages + page_size, page_size);
	ASSERT_EQ(-1, ioctl(self->device->fd, VFIO_DEVICE_FEATURE, feature));
	ASSERT_EQ(EFAULT, errno);

	munmap_assert(pages, page_size);
}

TEST_F(dmabuf_uapi, flags)
{
	int fd, bit;

	fd = export_flags(self, VFIO_DEVICE_FEATURE_DMA_BUF_ATTR_UC);
	ASSERT_GE(fd, 0);
	close_assert(fd);

	for (bit = 0; bit < 28; bit++)
		ASSERT_EQ(-EINVAL, export_flags(self, 1U << bit));
}

/* The memory type is a number: no two of them can be had together. */
TEST_F(dmabuf_uapi, memory_types)
{
	u32 type;
	int ret;

	for (type = 2; type < 16; type++)
		ASSERT_EQ(-EINVAL, export_flags(self, type << 28));

	/* Given or refused, but known. */
	ret = export_flags(self, VFIO_DEVICE_FEATURE_DMA_BUF_ATTR_WC);
	if (ret >= 0)
		close_assert(ret);
	else
		ASSERT_TRUE(ret == -EOPNOTSUPP || ret == -EBUSY);

	ASSERT_EQ(-EINVAL,
		  export_flags(self, VFIO_DEVICE_FEATURE_DMA_BUF_ATTR_WC | 1));
}

TEST_F(dmabuf_uapi, open_flags)
{
	static const u32 good[] = {
		O_RDONLY, O_RDWR, O_WRONLY, O_RDWR | O_CLOEXEC,
	};
	int fd, i;

	for (i = 0; i < ARRAY_SIZE(good); i++) {
		fd = __vfio_pci_dmabuf_export_range(self->device, self->bar,
						    good[i], 0, 0, page_size);
		ASSERT_GE(fd, 0);
		ASSERT_EQ(good[i] & O_ACCMODE, fcntl(fd, F_GETFL) & O_ACCMODE);
		ASSERT_EQ(good[i] & O_CLOEXEC ? FD_CLOEXEC : 0,
			  fcntl(fd, F_GETFD));
		close_assert(fd);
	}
}

/* What the export of the first page of a region has to answer: 0 is an fd. */
static int region_error(struct vfio_pci_device *device, u32 index)
{
	struct vfio_region_info *info;

	if (index >= PCI_STD_NUM_BARS)
		return -ENODEV;
	info = &device->bars[index].info;
	if (!info->size)
		return -ENODEV;
	if (info->flags & VFIO_REGION_INFO_FLAG_MMAP && info->size >= page_size)
		return 0;

	return -EINVAL;
}

TEST_F(dmabuf_uapi, region_index)
{
	u32 i;

	for (i = 0; i < 16; i++) {
		int fd = __vfio_pci_dmabuf_export_range(self->device, i, O_RDWR,
							0, 0, page_size);

		ASSERT_EQ(region_error(self->device, i), fd < 0 ? fd : 0) {
			TH_LOG("region %u", i);
		}
		if (fd >= 0)
			close_assert(fd);
	}

	ASSERT_EQ(-ENODEV, __vfio_pci_dmabuf_export_range(self->device,
							  UINT32_MAX, O_RDWR,
							  0, 0, page_size));
}

/* With the descriptors used up there is an error, and no buffer left behind. */
TEST_F(dmabuf_uapi, no_file_descriptor)
{
	struct rlimit limit;
	int fds[256];
	int nr = 0;

	/* Whatever it is, it must not be more than fits in @fds. */
	ASSERT_EQ(0, getrlimit(RLIMIT_NOFILE, &limit));
	limit.rlim_cur = min_t(u64, limit.rlim_cur, ARRAY_SIZE(fds));
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &limit));

	while (nr < ARRAY_SIZE(fds)) {
		fds[nr] = dup(self->device->fd);
		if (fds[nr] < 0)
			break;
		nr++;
	}
	ASSERT_GT(ARRAY_SIZE(fds), nr);
	ASSERT_EQ(EMFILE, errno);

	ASSERT_EQ(-EMFILE, export_range(self, 0, page_size));
	while (nr)
		close_assert(fds[--nr]);
}

/* The number of inodes there are, of all file systems */
static u64 nr_inodes(void)
{
	FILE *file = fopen("/proc/sys/fs/inode-nr", "r");
	unsigned long nr;
	int ret;

	VFIO_ASSERT_NOT_NULL(file);
	ret = fscanf(file, "%lu", &nr);
	VFIO_ASSERT_EQ(ret, 1);
	VFIO_ASSERT_EQ(fclose(file), 0);

	return nr;
}

/* A buffer holds its own inode, which must go with it. */
TEST_F(dmabuf_uapi, leaves_no_inode)
{
	const int nr = 1000;
	u64 before = nr_inodes();
	int i;

	for (i = 0; i < nr; i++) {
		int fd = export_range(self, 0, page_size);

		ASSERT_GE(fd, 0);
		close_assert(fd);
	}
	ASSERT_LT(nr_inodes(), before + nr / 2);
}

TEST_F(dmabuf_uapi, thousand_buffers)
{
	const int nr = 1000;
	void **vaddrs = calloc_assert(nr, sizeof(*vaddrs));
	int i;

	for (i = 0; i < nr; i++) {
		int fd = export_range(self, (i % 4) * page_size,
				      page_size);

		ASSERT_GE(fd, 0);
		vaddrs[i] = mmap_shared(fd, 0, page_size);
		close_assert(fd);
	}

	for (i = 0; i < nr; i++)
		ASSERT_EQ(0, try_touch(vaddrs[i]));
	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	for (i = 0; i < nr; i++)
		ASSERT_EQ(SIGBUS, try_touch(vaddrs[i]));
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);

	for (i = 0; i < nr; i++) {
		ASSERT_EQ(0, try_touch(vaddrs[i]));
		munmap_assert(vaddrs[i], page_size);
	}
	free(vaddrs);
}

TEST_F(dmabuf_uapi, fdinfo)
{
	struct vfio_region_dma_range ranges[] = {
		{ .offset = page_size, .length = page_size },
		{ .offset = 2 * page_size, .length = page_size },
		{ .offset = 0, .length = page_size },
	};
	char expected[512];
	int fd;

	fd = vfio_pci_dmabuf_export(self->device, self->bar, ranges, 3);
	snprintf(expected, sizeof(expected),
		 "device:\t%s\nstate:\tusable\nimporters:\t0\n"
		 "memory-type:\tuncached\nregion:\t%d\nranges:\t2\n"
		 "range:\t0x%zx+0x%zx\nrange:\t0x0+0x%zx\n", device_bdf,
		 self->bar, page_size, 2 * page_size, page_size);
	ASSERT_STREQ(expected, vfio_pci_dmabuf_fdinfo(fd));

	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	ASSERT_TRUE(vfio_pci_dmabuf_fdinfo_has(fd, "state", "temporarily revoked"));
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	ASSERT_TRUE(vfio_pci_dmabuf_fdinfo_has(fd, "state", "usable"));
	vfio_pci_dmabuf_revoke(self->device, fd);
	ASSERT_TRUE(vfio_pci_dmabuf_fdinfo_has(fd, "state", "revoked"));
	close_assert(fd);

	fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
					  page_size);
	vfio_pci_device_cleanup(self->device);
	ASSERT_TRUE(vfio_pci_dmabuf_fdinfo_has(fd, "state", "device closed"));
	ASSERT_FALSE(vfio_pci_dmabuf_fdinfo_has(fd, "device", device_bdf));
	close_assert(fd);
	self->device = vfio_pci_device_init(device_bdf, self->iommu);
}

int main(int argc, char *argv[])
{
	page_size = getpagesize();
	device_bdf = vfio_selftests_get_bdf(&argc, argv);
	return test_harness_run(argc, argv);
}
