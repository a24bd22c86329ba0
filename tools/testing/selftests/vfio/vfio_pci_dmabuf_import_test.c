// SPDX-License-Identifier: GPL-2.0-only
/*
 * DMABUFs of a device, mapped into the IOMMU for the DMA of another one, and revoked.
 * Done with two devices of QEMU: the DMA engine of edu accesses the memory of
 * ivshmem. They come from $VFIO_EDU_BDF and $VFIO_IVSHMEM_BDF.
 */
#include <errno.h>
#include <stdint.h>
#include <unistd.h>

#include <sys/mman.h>

#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio/dmabuf_test.h>

#include "kselftest_harness.h"

static const char *edu_bdf;
static const char *ivshmem_bdf;

/* Each DMA moves so much. It takes 200 ms, whatever the size. */
#define DMA_SIZE	256

/* Which part of the BAR is exported */
#define EXPORT_OFFSET	(4 * page_size)
#define EXPORT_SIZE	(4 * page_size)

FIXTURE(dmabuf_import) {
	struct iommu *iommu;
	struct iova_allocator *iova_allocator;
	struct vfio_pci_device *edu;
	struct vfio_pci_device *ivshmem;
	struct dma_region ram;
	int bar;
	void *mem;
	iova_t iova;
	int fd;
};

static void ram_map(struct iommu *iommu, struct iova_allocator *allocator,
		    struct dma_region *region, size_t size)
{
	region->vaddr = mmap(NULL, size, PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	VFIO_ASSERT_NE(region->vaddr, MAP_FAILED);
	region->iova = iova_allocator_alloc(allocator, size);
	region->size = size;
	iommu_map(iommu, region);
}

static struct vfio_pci_device *edu_start(struct iommu *iommu,
					 struct iova_allocator *allocator)
{
	struct vfio_pci_device *edu = vfio_pci_device_init(edu_bdf, iommu);

	ram_map(iommu, allocator, &edu->driver.region, page_size);
	vfio_pci_driver_init(edu);

	return edu;
}

FIXTURE_SETUP(dmabuf_import)
{
	if (!edu_bdf || !ivshmem_bdf)
		SKIP(return, "No edu and ivshmem devices");

	/* Only iommufd itself can map a DMABUF. */
	self->iommu = iommu_init(MODE_IOMMUFD);
	self->ivshmem = vfio_pci_device_init(ivshmem_bdf, self->iommu);
	if (!vfio_pci_dmabuf_supported(self->ivshmem))
		SKIP(return, "No DMABUF export");

	self->iova_allocator = iova_allocator_init(self->iommu);
	self->edu = edu_start(self->iommu, self->iova_allocator);
	ram_map(self->iommu, self->iova_allocator, &self->ram, 2 * page_size);

	self->bar = vfio_pci_memory_bar(self->ivshmem,
					16 * page_size);
	ASSERT_GE(self->bar, 0);
	self->mem = self->ivshmem->bars[self->bar].vaddr + EXPORT_OFFSET;
	self->fd = vfio_pci_dmabuf_export_range(self->ivshmem, self->bar,
						EXPORT_OFFSET, EXPORT_SIZE);
	self->iova = iova_allocator_alloc(self->iova_allocator, EXPORT_SIZE);
}

FIXTURE_TEARDOWN(dmabuf_import)
{
}

static bool filled_with(const void *mem, u8 byte)
{
	u8 expected[DMA_SIZE];

	memset(expected, byte, sizeof(expected));
	return !memcmp(mem, expected, sizeof(expected));
}

/* Copy RAM that holds @byte to @iova. Nobody reports if it gets there. */
static void dma_fill(FIXTURE_DATA(dmabuf_import) *self, iova_t iova, u8 byte)
{
	memset(self->ram.vaddr, byte, DMA_SIZE);
	VFIO_ASSERT_EQ(vfio_pci_driver_memcpy(self->edu, self->ram.iova, iova,
					      DMA_SIZE), 0);
}

/* Copy from @iova to the second page of RAM. */
static void dma_fetch(FIXTURE_DATA(dmabuf_import) *self, iova_t iova)
{
	VFIO_ASSERT_EQ(vfio_pci_driver_memcpy(self->edu, iova,
					      self->ram.iova + page_size,
					      DMA_SIZE), 0);
}

/* Does a DMA write to the buffer at self->iova arrive? */
static bool dma_arrives(FIXTURE_DATA(dmabuf_import) *self, u64 offset)
{
	static u8 byte = 0x10;

	byte++;
	memset(self->mem + offset, 0xee, DMA_SIZE);
	dma_fill(self, self->iova + offset, byte);

	if (filled_with(self->mem + offset, byte))
		return true;

	/* All or nothing. */
	VFIO_ASSERT_TRUE(filled_with(self->mem + offset, 0xee));
	return false;
}

static void map_fd(FIXTURE_DATA(dmabuf_import) *self, int fd)
{
	iommu_map_file(self->iommu, fd, 0, EXPORT_SIZE, self->iova);
}

static void unmap(FIXTURE_DATA(dmabuf_import) *self)
{
	iommu_unmap_iova(self->iommu, self->iova, EXPORT_SIZE);
}

static int map_again(FIXTURE_DATA(dmabuf_import) *self)
{
	return __iommu_map_file(self->iommu, self->fd, 0, page_size,
				self->iova + SZ_1M);
}

TEST_F(dmabuf_import, dma)
{
	map_fd(self, self->fd);
	ASSERT_TRUE(dma_arrives(self, 0));
	ASSERT_TRUE(dma_arrives(self, EXPORT_SIZE - DMA_SIZE));
	memset(self->mem + page_size, 0x42, DMA_SIZE);
	dma_fetch(self, self->iova + page_size);
	ASSERT_TRUE(filled_with(self->ram.vaddr + page_size, 0x42));

	unmap(self);
	ASSERT_FALSE(dma_arrives(self, 0));
}

/* The memory type is for CPUs. */
TEST_F(dmabuf_import, write_combining)
{
	int fd = __vfio_pci_dmabuf_export_range(self->ivshmem, self->bar,
						O_RDWR | O_CLOEXEC,
						VFIO_DEVICE_FEATURE_DMA_BUF_ATTR_WC,
						EXPORT_OFFSET, EXPORT_SIZE);

	if (fd == -EOPNOTSUPP)
		SKIP(return, "No write-combining on this machine");
	ASSERT_LE(0, fd);
	map_fd(self, fd);
	ASSERT_TRUE(dma_arrives(self, 0));
	vfio_pci_dmabuf_revoke(self->ivshmem, fd);
	ASSERT_FALSE(dma_arrives(self, 0));
}

/* A part of the buffer, and nothing of what is around it */
TEST_F(dmabuf_import, part_of_buffer)
{
	iommu_map_file(self->iommu, self->fd, page_size, page_size,
		       self->iova + page_size);
	ASSERT_TRUE(dma_arrives(self, page_size));
	ASSERT_FALSE(dma_arrives(self, 0));
	ASSERT_FALSE(dma_arrives(self, 2 * page_size));
}

TEST_F(dmabuf_import, beyond_buffer)
{
	struct iommu *iommu = self->iommu;

	ASSERT_EQ(-EINVAL, __iommu_map_file(iommu, self->fd, 0,
					    EXPORT_SIZE + page_size,
					    self->iova));
	ASSERT_EQ(-EINVAL, __iommu_map_file(iommu, self->fd, EXPORT_SIZE,
					    page_size, self->iova));
	ASSERT_EQ(-EOVERFLOW, __iommu_map_file(iommu, self->fd, -page_size,
					       2 * page_size, self->iova));
}

/* iommufd takes a buffer of one range only; ranges that follow each other are one. */
TEST_F(dmabuf_import, two_ranges)
{
	struct vfio_region_dma_range ranges[] = {
		{ 8 * page_size, page_size },
		{ 4 * page_size, page_size },
		{ 5 * page_size, 3 * page_size },
	};
	int two = vfio_pci_dmabuf_export(self->ivshmem, self->bar, ranges, 2);
	int one = vfio_pci_dmabuf_export(self->ivshmem, self->bar, ranges + 1,
					 2);

	ASSERT_EQ(-EOPNOTSUPP, __iommu_map_file(self->iommu, two, 0,
						2 * page_size, self->iova));
	map_fd(self, one);
	ASSERT_TRUE(dma_arrives(self, page_size - DMA_SIZE / 2));
}

/* For writes and reads of DMA, and of CPUs */
TEST_F(dmabuf_import, revoke)
{
	void *vaddr = mmap_shared(self->fd, 0, EXPORT_SIZE);
	void *fetched = self->ram.vaddr + page_size;

	map_fd(self, self->fd);
	dma_fill(self, self->iova, 0x77);
	ASSERT_TRUE(filled_with(vaddr, 0x77));
	dma_fetch(self, self->iova);
	ASSERT_TRUE(filled_with(fetched, 0x77));

	ASSERT_EQ(0, __vfio_pci_dmabuf_revoke(self->ivshmem, self->fd));
	ASSERT_EQ(SIGBUS, try_touch_pages(vaddr, EXPORT_SIZE));
	ASSERT_FALSE(dma_arrives(self, 0));
	ASSERT_FALSE(dma_arrives(self, EXPORT_SIZE - DMA_SIZE));
	memset(self->mem, 0x42, DMA_SIZE);
	dma_fetch(self, self->iova);
	ASSERT_EQ(NULL, memchr(fetched, 0x42, DMA_SIZE));

	ASSERT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(self->ivshmem, self->fd));
	ASSERT_EQ(-ENODEV, map_again(self));
	ASSERT_EQ(0, __iommu_unmap_iova(self->iommu, self->iova, EXPORT_SIZE));
}

/* The revoked buffer still has its place until it is unmapped. */
TEST_F(dmabuf_import, ioas_is_usable_after_revoke)
{
	int fd = vfio_pci_dmabuf_export_range(self->ivshmem, self->bar,
					      EXPORT_OFFSET, EXPORT_SIZE);

	map_fd(self, self->fd);
	vfio_pci_dmabuf_revoke(self->ivshmem, self->fd);
	ASSERT_EQ(-EEXIST, __iommu_map_file(self->iommu, fd, 0, EXPORT_SIZE,
					    self->iova));
	unmap(self);
	map_fd(self, fd);
	ASSERT_TRUE(dma_arrives(self, 0));
}

/*
 * Two buffers over the same memory: the revoke of one leaves the other, and ends
 * both mappings of that one.
 */
TEST_F(dmabuf_import, other_buffer_goes_on)
{
	iova_t iova = iova_allocator_alloc(self->iova_allocator,
					   2 * EXPORT_SIZE);
	int fd = vfio_pci_dmabuf_export_range(self->ivshmem, self->bar,
					      EXPORT_OFFSET, EXPORT_SIZE);
	int i;

	map_fd(self, self->fd);
	for (i = 0; i < 2; i++) {
		iommu_map_file(self->iommu, fd, 0, EXPORT_SIZE,
			       iova + i * EXPORT_SIZE);
		dma_fill(self, iova + i * EXPORT_SIZE, 0x55 + i);
		ASSERT_TRUE(filled_with(self->mem, 0x55 + i));
	}

	vfio_pci_dmabuf_revoke(self->ivshmem, fd);
	ASSERT_TRUE(dma_arrives(self, 0));
	memset(self->mem, 0xee, DMA_SIZE);
	for (i = 0; i < 2; i++) {
		dma_fill(self, iova + i * EXPORT_SIZE, 0x57);
		ASSERT_TRUE(filled_with(self->mem, 0xee));
	}
}

/* The import holds the buffer, not the fd. */
TEST_F(dmabuf_import, fd_closed)
{
	map_fd(self, self->fd);
	close_assert(self->fd);
	ASSERT_TRUE(dma_arrives(self, 0));
}

static void memory_off_and_on(struct vfio_pci_device *device)
{
	vfio_pci_cmd_clear(device, PCI_COMMAND_MEMORY);
	vfio_pci_cmd_set(device, PCI_COMMAND_MEMORY);
}

static void reset(struct vfio_pci_device *device)
{
	if (device->info.flags & VFIO_DEVICE_FLAGS_RESET)
		vfio_pci_device_reset(device);
	else
		memory_off_and_on(device);
}

static void hot_reset(struct vfio_pci_device *device)
{
	if (vfio_pci_hot_reset_is_ours(device))
		VFIO_ASSERT_EQ(__vfio_pci_hot_reset(device), 0);
	else
		memory_off_and_on(device);
}

static void low_power(struct vfio_pci_device *device)
{
	VFIO_ASSERT_EQ(__vfio_pci_low_power_entry(device), 0);
	VFIO_ASSERT_EQ(__vfio_pci_low_power_exit(device), 0);
}

/*
 * Importers lose a buffer when its device loses memory access, and are not told
 * when it comes back: they have to map it anew.
 */
TEST_F(dmabuf_import, access_goes_and_comes)
{
	static void (* const fns[])(struct vfio_pci_device *device) = {
		memory_off_and_on, reset, hot_reset, low_power,
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(fns); i++) {
		map_fd(self, self->fd);
		ASSERT_TRUE(dma_arrives(self, 0));
		fns[i](self->ivshmem);
		ASSERT_FALSE(dma_arrives(self, 0)) TH_LOG("operation %d", i);
		unmap(self);
	}
	map_fd(self, self->fd);
	ASSERT_TRUE(dma_arrives(self, 0));
}

/* What gives access back, but for low power, does not give it to importers. */
TEST_F(dmabuf_import, low_power_stays)
{
	ASSERT_EQ(0, __vfio_pci_low_power_entry(self->ivshmem));
	ASSERT_EQ(-ENODEV, map_again(self));
	vfio_pci_cmd_set(self->ivshmem, PCI_COMMAND_MEMORY);
	ASSERT_EQ(-ENODEV, map_again(self));
	hot_reset(self->ivshmem);
	ASSERT_EQ(-ENODEV, map_again(self));

	ASSERT_EQ(0, __vfio_pci_low_power_exit(self->ivshmem));
	map_fd(self, self->fd);
	ASSERT_TRUE(dma_arrives(self, 0));
}

/* Revoked while the import has lost it already, and permanently then */
TEST_F(dmabuf_import, revoke_while_memory_disabled)
{
	map_fd(self, self->fd);
	vfio_pci_cmd_clear(self->ivshmem, PCI_COMMAND_MEMORY);
	ASSERT_EQ(-ENODEV, map_again(self));
	ASSERT_EQ(0, __vfio_pci_dmabuf_revoke(self->ivshmem, self->fd));
	vfio_pci_cmd_set(self->ivshmem, PCI_COMMAND_MEMORY);
	ASSERT_FALSE(dma_arrives(self, 0));
	ASSERT_EQ(-ENODEV, map_again(self));
}

/* An import does not keep the exporting device open, and loses it. */
TEST_F(dmabuf_import, device_closed)
{
	map_fd(self, self->fd);
	vfio_pci_device_cleanup(self->ivshmem);
	self->ivshmem = vfio_pci_device_init(ivshmem_bdf, self->iommu);
	self->mem = self->ivshmem->bars[self->bar].vaddr + EXPORT_OFFSET;
	ASSERT_FALSE(dma_arrives(self, 0));
	ASSERT_EQ(-ENODEV, map_again(self));
}

/* The DMABUFs under BAR mappings are for CPUs. */
TEST_F(dmabuf_import, bar_mapping_is_not_importable)
{
	struct dma_region region = {
		.vaddr = self->mem,
		.size = EXPORT_SIZE,
		.iova = self->iova,
	};

	ASSERT_EQ(-EFAULT, __iommu_map(self->iommu, &region));
}

/* VFIO's own IOMMU interface takes a BAR by its mapping, without a DMABUF. */
FIXTURE(bar_dma) {
	struct iommu *iommu;
	struct iova_allocator *iova_allocator;
	struct vfio_pci_device *edu;
	struct vfio_pci_device *ivshmem;
	struct dma_region ram;
	struct dma_region bar;
	int index;
};

FIXTURE_VARIANT(bar_dma) {
	const char *iommu_mode;
};

FIXTURE_VARIANT_ADD(bar_dma, type1) {
	.iommu_mode = MODE_VFIO_TYPE1_IOMMU,
};

FIXTURE_VARIANT_ADD(bar_dma, type1v2) {
	.iommu_mode = MODE_VFIO_TYPE1V2_IOMMU,
};

FIXTURE_SETUP(bar_dma)
{
	if (!edu_bdf || !ivshmem_bdf)
		SKIP(return, "No edu and ivshmem devices");

	self->iommu = iommu_init(variant->iommu_mode);
	self->ivshmem = vfio_pci_device_init(ivshmem_bdf, self->iommu);
	self->iova_allocator = iova_allocator_init(self->iommu);
	self->edu = edu_start(self->iommu, self->iova_allocator);
	ram_map(self->iommu, self->iova_allocator, &self->ram, page_size);

	self->index = vfio_pci_memory_bar(self->ivshmem, SZ_1M + SZ_4M);
	ASSERT_GE(self->index, 0);
	self->bar.vaddr = self->ivshmem->bars[self->index].vaddr + SZ_1M;
	self->bar.size = SZ_4M;
	self->bar.iova = iova_allocator_alloc(self->iova_allocator, SZ_4M);
	iommu_map(self->iommu, &self->bar);
}

FIXTURE_TEARDOWN(bar_dma)
{
}

/* A revoke could not end such a mapping: iommufd maps the DMABUF instead. */
TEST_F(bar_dma, mapping_of_dmabuf_is_refused)
{
	int fd = vfio_pci_dmabuf_export_range(self->ivshmem, self->index, SZ_1M,
					      SZ_4M);
	struct dma_region region = {
		.vaddr = mmap_shared(fd, 0, SZ_4M),
		.size = SZ_4M,
		.iova = iova_allocator_alloc(self->iova_allocator, SZ_4M),
	};

	ASSERT_EQ(-EFAULT, __iommu_map(self->iommu, &region));
	ASSERT_EQ(0, try_touch(region.vaddr));
	ASSERT_EQ(-EFAULT, __iommu_map(self->iommu, &region));
}

TEST_F(bar_dma, dma_writes)
{
	u64 offset = self->bar.size - page_size;

	memset(self->ram.vaddr, 0x66, DMA_SIZE);
	memset(self->bar.vaddr + offset, 0xee, DMA_SIZE);
	ASSERT_EQ(0, vfio_pci_driver_memcpy(self->edu, self->ram.iova,
					    self->bar.iova + offset, DMA_SIZE));
	ASSERT_TRUE(filled_with(self->bar.vaddr + offset, 0x66));
}

int main(int argc, char *argv[])
{
	dmabuf_test_init(&argc, argv);
	edu_bdf = vfio_selftests_get_named_bdf("VFIO_EDU_BDF");
	ivshmem_bdf = vfio_selftests_get_named_bdf("VFIO_IVSHMEM_BDF");
	return test_harness_run(argc, argv);
}
