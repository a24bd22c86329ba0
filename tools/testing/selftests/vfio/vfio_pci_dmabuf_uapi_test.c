// SPDX-License-Identifier: GPL-2.0-only
/*
 * VFIO_DEVICE_FEATURE_DMA_BUF: what it accepts, what it refuses, and with
 * which error. Nothing that is refused leaves a file descriptor behind.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <linux/dma-buf.h>
#include <linux/kernel.h>
#include <linux/vfio.h>

#include "kselftest_harness.h"

#include <libvfio/dmabuf_test.h>

/* The limit in the documentation of the interface */
#define MAX_RANGES 262144

/* Enough to notice a leak */
#define NR_BUFFERS 1000

FIXTURE(dmabuf_uapi) {
	DMABUF_FIXTURE;
	int nr_fds;
};

FIXTURE_SETUP(dmabuf_uapi)
{
	DMABUF_SETUP(self, false, 4 * page_size);
	self->nr_fds = count_fds();
}

FIXTURE_TEARDOWN(dmabuf_uapi)
{
	EXPECT_EQ(self->nr_fds, count_fds());
}

static int export_range(FIXTURE_DATA(dmabuf_uapi) *self, u64 offset, u64 length)
{
	return __vfio_pci_dmabuf_export_range(self->device, self->bar,
					      O_RDWR | O_CLOEXEC, 0, offset,
					      length);
}

/* A holder of the fd cannot add a fence, for which a reset would wait. */
TEST_F(dmabuf_uapi, no_fences)
{
	int fd = export_range(self, 0, page_size);
	struct dma_buf_import_sync_file import = {
		.flags = DMA_BUF_SYNC_RW,
		.fd = -1,
	};
	int error;

	ASSERT_LE(0, fd);
	ASSERT_EQ(-1, ioctl(fd, DMA_BUF_IOCTL_IMPORT_SYNC_FILE, &import));
	error = errno;
	close_assert(fd);
	if (error == ENOTTY)
		SKIP(return, "No sync files");
	ASSERT_EQ(EOPNOTSUPP, error);
}

TEST_F(dmabuf_uapi, bad_ranges)
{
	const u64 page = page_size, bar = self->bar_size, top = 1ULL << 63;
	const struct {
		int error;
		int nr;
		struct vfio_region_dma_range ranges[3];
	} bad[] = {
		{ EINVAL, 1, { { 0, 0 } } },
		{ EINVAL, 1, { { 0, page - 1 } } },
		{ EINVAL, 1, { { 0, page + 1 } } },
		{ EINVAL, 1, { { page / 2, page } } },
		{ EINVAL, 1, { { 0, bar + page } } },
		{ EINVAL, 1, { { bar, page } } },
		{ EINVAL, 1, { { bar - page, 2 * page } } },
		/* an end before the start of the BAR */
		{ EINVAL, 1, { { page, -page } } },
		{ EINVAL, 1, { { 0, -bar } } },
		/* beyond all addresses, but without an overflow */
		{ EINVAL, 1, { { 1ULL << 52, page } } },
		{ EINVAL, 1, { { 0, 1ULL << 52 } } },
		/* with one: of the first address, and of the last */
		{ EOVERFLOW, 1, { { -page, page } } },
		{ EOVERFLOW, 1, { { top, top - page } } },
		/* one bad range among good ones */
		{ EINVAL, 3, { { bar, page }, { 0, page }, { 0, page } } },
		{ EINVAL, 3, { { 0, page }, { bar, page }, { 0, page } } },
		{ EINVAL, 3, { { 0, page }, { 0, page }, { bar, page } } },
		/* lengths whose sum does not fit */
		{ EINVAL, 2, { { 0, top }, { 0, top } } },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		ASSERT_EQ(-bad[i].error,
			  __vfio_pci_dmabuf_export(self->device, self->bar,
						   O_RDWR, 0, bad[i].ranges,
						   bad[i].nr)) {
			TH_LOG("ranges %d", i);
		}
	}
}

TEST_F(dmabuf_uapi, good_ranges)
{
	struct vfio_region_dma_range ranges[] = {
		{ 3 * page_size, page_size },
		{ 0, 2 * page_size },
		{ page_size, 3 * page_size },
		{ self->bar_size - page_size, page_size },
	};
	int fd = __vfio_pci_dmabuf_export(self->device, self->bar, O_RDWR, 0,
					  ranges, ARRAY_SIZE(ranges));

	ASSERT_GE(fd, 0);
	ASSERT_EQ(7 * page_size, lseek(fd, 0, SEEK_END));
	close_assert(fd);

	fd = export_range(self, 0, self->bar_size);
	ASSERT_GE(fd, 0);
	ASSERT_EQ(self->bar_size, lseek(fd, 0, SEEK_END));
	close_assert(fd);
}

TEST_F(dmabuf_uapi, number_of_ranges)
{
	size_t size = (MAX_RANGES + 1) * sizeof(struct vfio_region_dma_range);
	struct vfio_region_dma_range *ranges = malloc_assert(size);
	void *last;
	int fd, i;

	for (i = 0; i < MAX_RANGES + 1; i++) {
		ranges[i].offset = (i % 2) * page_size;
		ranges[i].length = page_size;
	}

	fd = __vfio_pci_dmabuf_export(self->device, self->bar, O_RDWR, 0,
				      ranges, MAX_RANGES);
	ASSERT_GE(fd, 0) TH_LOG("%s", strerror(-fd));
	last = mmap_shared(fd, (MAX_RANGES - 1) * page_size, page_size);
	ASSERT_EQ(0, try_touch(last));
	munmap_assert(last, page_size);
	close_assert(fd);

	ASSERT_EQ(-E2BIG, __vfio_pci_dmabuf_export(self->device, self->bar,
						   O_RDWR, 0, ranges,
						   MAX_RANGES + 1));
	free(ranges);
}

struct export_args {
	struct vfio_device_feature feature;
	struct vfio_device_feature_dma_buf dma_buf;
	struct vfio_region_dma_range range;
};

/* @args->range may be in memory that cannot be written. */
static int export_raw(FIXTURE_DATA(dmabuf_uapi) *self, struct export_args *args,
		      u32 argsz, u32 op, u32 nr_ranges)
{
	int ret;

	args->feature.argsz = argsz;
	args->feature.flags = op | VFIO_DEVICE_FEATURE_DMA_BUF;
	args->dma_buf.region_index = self->bar;
	args->dma_buf.open_flags = O_RDWR | O_CLOEXEC;
	args->dma_buf.nr_ranges = nr_ranges;
	ret = ioctl(self->device->fd, VFIO_DEVICE_FEATURE, args);

	return ret < 0 ? -errno : ret;
}

TEST_F(dmabuf_uapi, header)
{
	const u32 get = VFIO_DEVICE_FEATURE_GET;
	const u32 set = VFIO_DEVICE_FEATURE_SET;
	const u32 probe = VFIO_DEVICE_FEATURE_PROBE;
	const struct {
		u32 argsz;
		u32 op;
		u32 nr_ranges;
		int ret;
		bool fd;
	} headers[] = {
		{ 0, get, 1, -EINVAL },
		{ 7, get, 1, -EINVAL },
		{ 8, get, 1, -EINVAL },
		{ 23, get, 1, -EINVAL },
		{ 40, get, 1, .fd = true },
		{ 4096, get, 1, .fd = true },
		{ 40, get, 0, -EINVAL },
		{ 40, get, INT32_MAX, -E2BIG },
		{ 40, get, UINT32_MAX, -E2BIG },
		/* A probe exports nothing: the number of fds is checked. */
		{ 40, probe | get, 1, 0 },
		{ 40, probe, 1, 0 },
		{ 40, probe | set, 1, -EINVAL },
		{ 40, set, 1, -EINVAL },
		{ 40, get | set, 1, -EINVAL },
		{ 40, 0, 1, -EINVAL },
	};
	struct export_args args = { .range.length = page_size };
	void *pages;
	int i, ret;

	for (i = 0; i < ARRAY_SIZE(headers); i++) {
		ret = export_raw(self, &args, headers[i].argsz, headers[i].op,
				 headers[i].nr_ranges);
		if (headers[i].fd) {
			ASSERT_LT(0, ret) TH_LOG("header %d", i);
			close_assert(ret);
		} else {
			ASSERT_EQ(headers[i].ret, ret) TH_LOG("header %d", i);
		}
	}

	/* Ranges that cannot be read, as they begin behind the page */
	pages = mmap(NULL, 2 * page_size, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, pages);
	munmap_assert(pages + page_size, page_size);
	ASSERT_EQ(-EFAULT, export_raw(self, pages + page_size -
				      offsetof(struct export_args, range),
				      40, get, 1));
}

static int export_flags(FIXTURE_DATA(dmabuf_uapi) *self, u32 flags)
{
	return __vfio_pci_dmabuf_export_range(self->device, self->bar, O_RDWR,
					      flags, 0, page_size);
}

/* Bits 0 to 27 are unknown, 28 to 31 are a memory type: 0 and 1 are known. */
TEST_F(dmabuf_uapi, unknown_flags)
{
	u32 type, bit;

	ASSERT_EQ(0xf0000000U, VFIO_DEVICE_FEATURE_DMA_BUF_ATTR_MASK);
	ASSERT_EQ(0U, VFIO_DEVICE_FEATURE_DMA_BUF_ATTR_UC);
	ASSERT_EQ(0x10000000U, VFIO_DEVICE_FEATURE_DMA_BUF_ATTR_WC);
	ASSERT_EQ(8, offsetof(struct vfio_device_feature_dma_buf, flags));
	ASSERT_EQ(16, sizeof(struct vfio_device_feature_dma_buf));

	for (type = 0; type < 16; type++) {
		if (type > 1)
			ASSERT_EQ(-EINVAL, export_flags(self, type << 28));
		for (bit = 0; bit < 28; bit++)
			ASSERT_EQ(-EINVAL, export_flags(self, type << 28 |
							      1U << bit));
	}
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

/* The expected result of an export of the first page: 0 is an fd. */
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
	u32 i, index;
	int fd;

	for (i = 0; i <= 16; i++) {
		index = i < 16 ? i : UINT32_MAX;
		fd = __vfio_pci_dmabuf_export_range(self->device, index, O_RDWR,
						    0, 0, page_size);
		ASSERT_EQ(region_error(self->device, index), min(fd, 0)) {
			TH_LOG("region %u", index);
		}
		if (fd >= 0)
			close_assert(fd);
	}
}

/*
 * Neither a closed buffer nor an export that fails for lack of a descriptor
 * leaves a buffer behind. Each buffer has an inode, so inodes are counted.
 */
TEST_F(dmabuf_uapi, no_buffer_left)
{
	u64 inodes = count_inodes();
	struct rlimit limit, none;
	int i;

	for (i = 0; i < NR_BUFFERS; i++)
		close_assert(export_range(self, 0, page_size));
	ASSERT_EQ(0, getrlimit(RLIMIT_NOFILE, &limit));
	none = limit;
	none.rlim_cur = 0;
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &none));
	for (i = 0; i < NR_BUFFERS; i++)
		ASSERT_EQ(-EMFILE, export_range(self, 0, page_size));
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &limit));
	ASSERT_LT(count_inodes(), inodes + NR_BUFFERS / 2);
}

int main(int argc, char *argv[])
{
	dmabuf_test_init(&argc, argv);
	return test_harness_run(argc, argv);
}
