// SPDX-License-Identifier: GPL-2.0-only
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/types.h>
#include <linux/vfio.h>

#include "../../../kselftest.h"
#include <libvfio/dmabuf_test.h>

bool vfio_pci_dmabuf_supported(struct vfio_pci_device *device)
{
	struct vfio_device_feature feature = {
		.argsz = sizeof(feature),
		.flags = VFIO_DEVICE_FEATURE_PROBE | VFIO_DEVICE_FEATURE_GET |
			 VFIO_DEVICE_FEATURE_DMA_BUF,
	};

	return !ioctl(device->fd, VFIO_DEVICE_FEATURE, &feature);
}

int __vfio_pci_dmabuf_export(struct vfio_pci_device *device, u32 index,
			     u32 open_flags, u32 flags,
			     const struct vfio_region_dma_range *ranges,
			     u32 nr_ranges)
{
	size_t ranges_size = sizeof(*ranges) * nr_ranges;
	struct vfio_device_feature_dma_buf *dma_buf;
	struct vfio_device_feature *feature;
	size_t argsz;
	int ret;

	argsz = sizeof(*feature) + sizeof(*dma_buf) + ranges_size;
	feature = calloc_assert(1, argsz);
	feature->argsz = argsz;
	feature->flags = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF;
	dma_buf = (void *)feature->data;
	dma_buf->region_index = index;
	dma_buf->open_flags = open_flags;
	dma_buf->flags = flags;
	dma_buf->nr_ranges = nr_ranges;
	memcpy(dma_buf->dma_ranges, ranges, ranges_size);

	ret = ioctl(device->fd, VFIO_DEVICE_FEATURE, feature);
	if (ret < 0)
		ret = -errno;

	free(feature);
	return ret;
}

int vfio_pci_dmabuf_export(struct vfio_pci_device *device, u32 index,
			   const struct vfio_region_dma_range *ranges,
			   u32 nr_ranges)
{
	int fd = __vfio_pci_dmabuf_export(device, index, O_RDWR | O_CLOEXEC, 0,
					  ranges, nr_ranges);

	VFIO_ASSERT_GE(fd, 0, "Export of %u ranges of BAR %u failed: %s\n",
		       nr_ranges, index, strerror(-fd));

	return fd;
}

int __vfio_pci_dmabuf_export_range(struct vfio_pci_device *device, u32 index,
				   u32 open_flags, u32 flags, u64 offset,
				   u64 size)
{
	struct vfio_region_dma_range range = { offset, size };

	return __vfio_pci_dmabuf_export(device, index, open_flags, flags,
					&range, 1);
}

int vfio_pci_dmabuf_export_range(struct vfio_pci_device *device, u32 index,
				 u64 offset, u64 size)
{
	struct vfio_region_dma_range range = { offset, size };

	return vfio_pci_dmabuf_export(device, index, &range, 1);
}

int vfio_pci_dmabuf_export_wc(struct vfio_pci_device *device, u32 index,
			      u64 offset, u64 size)
{
	return __vfio_pci_dmabuf_export_range(device, index,
					      O_RDWR | O_CLOEXEC,
					      VFIO_DEVICE_FEATURE_DMA_BUF_ATTR_WC,
					      offset, size);
}

int __vfio_pci_dmabuf_revoke_fd(int device_fd, int dmabuf_fd)
{
	struct vfio_pci_dmabuf_revoke args = {
		.argsz = sizeof(args),
		.dmabuf_fd = dmabuf_fd,
	};

	return ioctl(device_fd, VFIO_DEVICE_PCI_DMABUF_REVOKE, &args) ?
	       -errno : 0;
}

int __vfio_pci_dmabuf_revoke(struct vfio_pci_device *device, int dmabuf_fd)
{
	return __vfio_pci_dmabuf_revoke_fd(device->fd, dmabuf_fd);
}

void vfio_pci_dmabuf_revoke(struct vfio_pci_device *device, int dmabuf_fd)
{
	VFIO_ASSERT_EQ(__vfio_pci_dmabuf_revoke(device, dmabuf_fd), 0);
}

int __mmap_shared(int fd, u64 offset, size_t size, int prot, void **vaddr)
{
	*vaddr = mmap(NULL, size, prot, MAP_SHARED, fd, offset);
	if (*vaddr != MAP_FAILED)
		return 0;

	*vaddr = NULL;
	return -errno;
}

void *mmap_shared(int fd, u64 offset, size_t size)
{
	void *vaddr;

	VFIO_ASSERT_EQ(__mmap_shared(fd, offset, size, PROT_READ | PROT_WRITE,
				     &vaddr), 0);
	return vaddr;
}

void *mmap_shared_aligned(int fd, u64 offset, size_t size, size_t align,
			  size_t misalign)
{
	void *vaddr = mmap_reserve(size, align, misalign);

	VFIO_ASSERT_EQ(mmap(vaddr, size, PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_FIXED, fd, offset), vaddr);

	/* Fails without THP; then there are no huge pages to ask for. */
	madvise(vaddr, size, MADV_HUGEPAGE);

	return vaddr;
}

void *vfio_pci_region_mmap(struct vfio_pci_device *device, u32 index,
			   u64 offset, size_t size)
{
	return mmap_shared(device->fd,
			   vfio_pci_region_offset(device, index) + offset,
			   size);
}

void *vfio_pci_region_mmap_aligned(struct vfio_pci_device *device, u32 index,
				   u64 offset, size_t size, size_t align,
				   size_t misalign)
{
	return mmap_shared_aligned(device->fd,
				   vfio_pci_region_offset(device, index) +
				   offset, size, align, misalign);
}

static bool bar_is_usable(struct vfio_pci_device *device, int index,
			  u64 min_size)
{
	struct vfio_region_info *info = &device->bars[index].info;
	u32 flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE |
		    VFIO_REGION_INFO_FLAG_MMAP;

	return (info->flags & flags) == flags && info->size >= min_size;
}

static int vfio_pci_largest_bar(struct vfio_pci_device *device, u64 min_size)
{
	int i, largest = -1;

	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		if (bar_is_usable(device, i, min_size)) {
			largest = i;
			min_size = device->bars[i].info.size + 1;
		}
	}

	return largest;
}

int vfio_pci_last_bar(struct vfio_pci_device *device, u64 min_size)
{
	int i = PCI_STD_NUM_BARS - 1;

	while (i >= 0 && !bar_is_usable(device, i, min_size))
		i--;

	return i;
}

int vfio_pci_memory_bar(struct vfio_pci_device *device, u64 min_size)
{
	const char *bars = getenv("VFIO_SELFTESTS_MEMORY_BAR") ?: "";
	char name[32];
	int i;

	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		snprintf_assert(name, (int)sizeof(name), "%s:%d", device->bdf,
				i);
		if (strstr(bars, name) && bar_is_usable(device, i, min_size))
			return i;
	}

	return -1;
}

const char *device_bdf;
size_t page_size;

void dmabuf_test_init(int *argc, char *argv[])
{
	const char *mode = getenv("VFIO_SELFTESTS_IOMMU_MODE");

	if (mode && *mode)
		default_iommu_mode = mode;
	page_size = getpagesize();
	device_bdf = vfio_selftests_get_bdf(argc, argv);
}

const char *dmabuf_test_open(bool memory, u64 min_size, struct iommu **iommu,
			     struct vfio_pci_device **device, int *bar)
{
	*iommu = iommu_init(default_iommu_mode);
	*device = vfio_pci_device_init(device_bdf, *iommu);
	if (!vfio_pci_dmabuf_supported(*device))
		return "No DMABUF export";

	if (!memory && getenv_u32("VFIO_SELFTESTS_READ_BARS", 0)) {
		*bar = vfio_pci_largest_bar(*device, min_size);
		return *bar < 0 ? "No BAR of that size that can be mapped" : NULL;
	}

	*bar = vfio_pci_memory_bar(*device, min_size);
	return *bar < 0 ? "No BAR known to be plain memory" : NULL;
}

void dmabuf_test_close(struct vfio_pci_device **device)
{
	vfio_pci_device_cleanup(*device);
	*device = NULL;
}

void dmabuf_test_reopen(struct iommu *iommu, struct vfio_pci_device **device)
{
	if (*device)
		vfio_pci_device_cleanup(*device);
	*device = vfio_pci_device_init(device_bdf, iommu);
}

const char *vfio_pci_dmabuf_fdinfo(int dmabuf_fd, const char *prefix)
{
	/* Room for the ranges, of which the kernel shows no more than 256 */
	static char info[16384];
	char path[64], line[256];
	FILE *file;

	snprintf_assert(path, (int)sizeof(path), "/proc/self/fdinfo/%d",
			dmabuf_fd);
	file = fopen(path, "r");
	VFIO_ASSERT_NOT_NULL(file);

	info[0] = '\0';
	while (fgets(line, sizeof(line), file)) {
		VFIO_ASSERT_LT(strlen(info) + strlen(line), sizeof(info));
		if (!strncmp(line, prefix, strlen(prefix)))
			strcat(info, line + strlen(prefix));
	}
	VFIO_ASSERT_EQ(fclose(file), 0);

	return info;
}

bool vfio_pci_dmabuf_fdinfo_has(int dmabuf_fd, const char *key, const char *val)
{
	char line[256];

	snprintf_assert(line, (int)sizeof(line), "%s:\t%s\n", key, val);
	return strstr(vfio_pci_dmabuf_fdinfo(dmabuf_fd, "vfio-pci-"), line);
}

bool vfio_pci_dmabuf_reaches_state(int dmabuf_fd, const char *state,
				   int timeout_ms)
{
	while (!vfio_pci_dmabuf_fdinfo_has(dmabuf_fd, "state", state)) {
		if (!timeout_ms--)
			return false;
		usleep(1000);
	}

	return true;
}

int count_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int nr = 0;

	VFIO_ASSERT_NOT_NULL(dir);
	while (readdir(dir))
		nr++;
	VFIO_ASSERT_EQ(closedir(dir), 0);

	return nr;
}

u64 read_number(const char *path)
{
	FILE *file = fopen(path, "r");
	u64 nr;
	int ret;

	VFIO_ASSERT_NOT_NULL(file);
	ret = fscanf(file, "%lu", &nr);
	VFIO_ASSERT_EQ(ret, 1);
	VFIO_ASSERT_EQ(fclose(file), 0);

	return nr;
}

u64 read_key(const char *path, const char *key)
{
	FILE *file = fopen(path, "r");
	char line[128], name[64];
	u64 val, ret = 0;

	VFIO_ASSERT_NOT_NULL(file);
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%63s %lu", name, &val) == 2 &&
		    !strcmp(name, key))
			ret = val;
	}
	VFIO_ASSERT_EQ(fclose(file), 0);

	return ret;
}

u64 count_inodes(void)
{
	return read_number("/proc/sys/fs/inode-nr");
}

int open_o_path(int fd)
{
	char path[64];
	int ret;

	snprintf_assert(path, (int)sizeof(path), "/proc/self/fd/%d", fd);
	ret = open(path, O_PATH | O_CLOEXEC);
	VFIO_ASSERT_GE(ret, 0);

	return ret;
}
