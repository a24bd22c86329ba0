// SPDX-License-Identifier: GPL-2.0-only
/*
 * DMABUFs of a device, mapped into the IOMMU for the DMA of another one, and
 * revoked. Done with two devices of QEMU, $VFIO_EDU_BDF and $VFIO_IVSHMEM_BDF:
 * the DMA engine of edu accesses the memory of ivshmem.
 */
#include <errno.h>
#include <unistd.h>

#include <sys/mman.h>

#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include "kselftest_harness.h"

#include <libvfio/dmabuf_test.h>

static const char *edu_bdf;
static const char *ivshmem_bdf;

/* Bytes per DMA, which takes 200 ms whatever its size */
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

static void ram_map(FIXTURE_DATA(dmabuf_import) *self,
		    struct dma_region *region, size_t size)
{
	region->vaddr = mmap(NULL, size, PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	VFIO_ASSERT_NE(region->vaddr, MAP_FAILED);
	region->iova = iova_allocator_alloc(self->iova_allocator, size);
	region->size = size;
	iommu_map(self->iommu, region);
}

static int export(FIXTURE_DATA(dmabuf_import) *self)
{
	return vfio_pci_dmabuf_export_range(self->ivshmem, self->bar,
					    EXPORT_OFFSET, EXPORT_SIZE);
}

static void edu_start(FIXTURE_DATA(dmabuf_import) *self, const char *bdf)
{
	self->iova_allocator = iova_allocator_init(self->iommu);
	self->edu = vfio_pci_device_init(bdf, self->iommu);
	ram_map(self, &self->edu->driver.region, page_size);
	vfio_pci_driver_init(self->edu);
	ram_map(self, &self->ram, 2 * page_size);
	self->iova = iova_allocator_alloc(self->iova_allocator, EXPORT_SIZE);
}

/* Returns a reason to skip, or NULL. */
static const char *dma_setup(FIXTURE_DATA(dmabuf_import) *self,
			     const char *iommu_mode)
{
	if (!edu_bdf || !ivshmem_bdf)
		return "No edu and ivshmem devices";

	self->iommu = iommu_init(iommu_mode);
	self->ivshmem = vfio_pci_device_init(ivshmem_bdf, self->iommu);
	if (!vfio_pci_dmabuf_supported(self->ivshmem))
		return "No DMABUF export";

	edu_start(self, edu_bdf);
	self->bar = vfio_pci_memory_bar(self->ivshmem, 2 * SZ_4M);
	if (self->bar < 0)
		return "No BAR known to be plain memory";
	self->mem = self->ivshmem->bars[self->bar].vaddr + EXPORT_OFFSET;
	self->fd = export(self);
	return NULL;
}

/* Only iommufd itself can map a DMABUF. */
FIXTURE_SETUP(dmabuf_import)
{
	const char *reason = dma_setup(self, MODE_IOMMUFD);

	if (reason)
		SKIP(return, "%s", reason);
}

FIXTURE_TEARDOWN(dmabuf_import)
{
}

static bool filled_with(const void *mem, u8 byte)
{
	u8 expected[DMA_SIZE];

	memset(expected, byte, sizeof(expected));
	return mmio_equals(mem, expected, sizeof(expected));
}

/* Copy RAM that holds @byte to @iova. Nothing reports whether it arrives. */
static void dma_fill(FIXTURE_DATA(dmabuf_import) *self, iova_t iova, u8 byte)
{
	memset(self->ram.vaddr, byte, DMA_SIZE);
	VFIO_ASSERT_EQ(vfio_pci_driver_memcpy(self->edu, self->ram.iova, iova,
					      DMA_SIZE), 0);
}

/* Copy from @iova to the second page of RAM. */
static void *dma_fetch(FIXTURE_DATA(dmabuf_import) *self, iova_t iova)
{
	VFIO_ASSERT_EQ(vfio_pci_driver_memcpy(self->edu, iova,
					      self->ram.iova + page_size,
					      DMA_SIZE), 0);
	return self->ram.vaddr + page_size;
}

/* Does a DMA write to the buffer at self->iova arrive? */
static bool dma_arrives(FIXTURE_DATA(dmabuf_import) *self, u64 offset)
{
	static u8 byte = 0x10;

	byte++;
	mmio_fill(self->mem + offset, 0xee, DMA_SIZE);
	dma_fill(self, self->iova + offset, byte);
	if (filled_with(self->mem + offset, byte))
		return true;

	/* All or nothing. */
	VFIO_ASSERT_TRUE(filled_with(self->mem + offset, 0xee));
	return false;
}

static int __map_fd(FIXTURE_DATA(dmabuf_import) *self, int fd)
{
	return __iommu_map_file(self->iommu, fd, 0, EXPORT_SIZE, self->iova);
}

static int map_elsewhere(FIXTURE_DATA(dmabuf_import) *self)
{
	return __iommu_map_file(self->iommu, self->fd, 0, page_size,
				self->iova + SZ_1M);
}

#define ASSERT_MAP(_fd) ASSERT_EQ(0, __map_fd(self, (_fd)))
#define ASSERT_UNMAP() \
	ASSERT_EQ(0, __iommu_unmap_iova(self->iommu, self->iova, EXPORT_SIZE))

/* iommufd accepts only a buffer of one range; adjacent ranges are merged. */
TEST_F(dmabuf_import, ranges)
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
	ASSERT_MAP(one);

	/* The import holds the buffer, not the fd. */
	close_assert(one);
	ASSERT_TRUE(dma_arrives(self, page_size - DMA_SIZE / 2));
	ASSERT_TRUE(dma_arrives(self, EXPORT_SIZE - DMA_SIZE));
	ASSERT_UNMAP();
	ASSERT_FALSE(dma_arrives(self, 0));
}

/*
 * For writes and reads of DMA, and for CPUs. Another buffer, here mapped in part, is
 * left alone. The revoked buffer occupies its IOVAs until it is unmapped; then they
 * can be used again.
 */
TEST_F(dmabuf_import, revoke)
{
	iova_t iova = iova_allocator_alloc(self->iova_allocator, page_size);
	void *vaddr = mmap_shared(self->fd, 0, EXPORT_SIZE);
	int fd = export(self);

	ASSERT_MAP(self->fd);
	iommu_map_file(self->iommu, fd, page_size, page_size, iova);
	dma_fill(self, self->iova, 0x77);
	ASSERT_TRUE(filled_with(vaddr, 0x77));
	ASSERT_TRUE(filled_with(dma_fetch(self, self->iova), 0x77));

	ASSERT_EQ(0, __vfio_pci_dmabuf_revoke(self->ivshmem, self->fd));
	ASSERT_EQ(SIGBUS, try_touch_pages(vaddr, EXPORT_SIZE));
	ASSERT_FALSE(dma_arrives(self, 0));
	ASSERT_FALSE(dma_arrives(self, EXPORT_SIZE - DMA_SIZE));
	mmio_fill(self->mem, 0x42, DMA_SIZE);
	ASSERT_EQ(NULL, memchr(dma_fetch(self, self->iova), 0x42, DMA_SIZE));
	ASSERT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(self->ivshmem, self->fd));
	ASSERT_EQ(-ENODEV, map_elsewhere(self));
	dma_fill(self, iova, 0x55);
	ASSERT_TRUE(filled_with(self->mem + page_size, 0x55));

	ASSERT_EQ(-EEXIST, __map_fd(self, fd));
	ASSERT_UNMAP();
	ASSERT_MAP(fd);
	ASSERT_TRUE(dma_arrives(self, 0));
}

/* Two iommufds, each with a device that does DMA, lose the buffer at once. */
TEST_F(dmabuf_import, two_iommufds)
{
	const char *bdf = vfio_selftests_get_named_bdf("VFIO_EDU2_BDF");
	FIXTURE_DATA(dmabuf_import) other = *self;

	if (!bdf)
		SKIP(return, "No second edu device");

	other.iommu = iommu_init(MODE_IOMMUFD);
	edu_start(&other, bdf);
	ASSERT_MAP(self->fd);
	ASSERT_EQ(0, __map_fd(&other, self->fd));
	ASSERT_TRUE(dma_arrives(self, 0));
	ASSERT_TRUE(dma_arrives(&other, 0));

	ASSERT_EQ(0, __vfio_pci_dmabuf_revoke(self->ivshmem, self->fd));
	ASSERT_FALSE(dma_arrives(self, 0));
	ASSERT_FALSE(dma_arrives(&other, 0));
	ASSERT_EQ(-ENODEV, map_elsewhere(&other));
}

static void memory_off_and_on(struct vfio_pci_device *device)
{
	vfio_pci_cmd_clear(device, PCI_COMMAND_MEMORY);
	vfio_pci_cmd_set(device, PCI_COMMAND_MEMORY);
}

static void hot_reset(struct vfio_pci_device *device)
{
	VFIO_ASSERT_EQ(__vfio_pci_hot_reset(device), 0);
}

static void low_power(struct vfio_pci_device *device)
{
	vfio_pci_low_power_entry(device);
	vfio_pci_low_power_exit(device);
}

/*
 * iommufd loses a buffer when its device loses memory access, and maps it
 * again when that is restored. dmabuf_p2p.restored tests that DMA does not
 * arrive meanwhile.
 */
TEST_F(dmabuf_import, access_lost_and_restored)
{
	static void (* const fns[])(struct vfio_pci_device *device) = {
		memory_off_and_on, vfio_pci_device_reset, hot_reset,
		low_power,
	};
	int i;

	ASSERT_MAP(self->fd);
	for (i = 0; i < ARRAY_SIZE(fns); i++) {
		fns[i](self->ivshmem);
		ASSERT_TRUE(dma_arrives(self, 0)) {
			TH_LOG("operation %d", i);
		}
	}

	/* A revoke while memory is disabled is permanent, too. */
	vfio_pci_cmd_clear(self->ivshmem, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, map_elsewhere(self));
	ASSERT_EQ(0, __vfio_pci_dmabuf_revoke(self->ivshmem, self->fd));
	vfio_pci_cmd_set(self->ivshmem, PCI_COMMAND_MEMORY);
	ASSERT_FALSE(dma_arrives(self, 0));
	ASSERT_EQ(-ENODEV, map_elsewhere(self));
}

/* An import does not keep the exporting device open, and loses it. */
TEST_F(dmabuf_import, device_closed)
{
	ASSERT_MAP(self->fd);
	vfio_pci_device_cleanup(self->ivshmem);
	self->ivshmem = vfio_pci_device_init(ivshmem_bdf, self->iommu);
	self->mem = self->ivshmem->bars[self->bar].vaddr + EXPORT_OFFSET;
	ASSERT_FALSE(dma_arrives(self, 0));
	ASSERT_EQ(-ENODEV, map_elsewhere(self));
}

/*
 * VFIO's own IOMMU interface maps a BAR by its mapping, without a DMABUF. A
 * mapping of a DMABUF is refused, as a revoke could not end the DMA.
 */
TEST(mapping_of_dmabuf_is_refused)
{
	FIXTURE_DATA(dmabuf_import) data = {}, *self = &data;
	const char *reason = dma_setup(self, MODE_VFIO_TYPE1V2_IOMMU);
	struct dma_region region = { .size = SZ_4M };
	u64 offset = SZ_4M - page_size;
	int fd;

	if (reason)
		SKIP(return, "%s", reason);
	/* iommufd, where it provides the container, maps both, see p2p_test */
	if (!ioctl(self->iommu->container_fd, VFIO_CHECK_EXTENSION,
		   VFIO_UPDATE_VADDR))
		SKIP(return, "iommufd provides the container");

	fd = vfio_pci_dmabuf_export_range(self->ivshmem, self->bar, SZ_1M,
					  SZ_4M);
	region.vaddr = mmap_shared(fd, 0, SZ_4M);
	region.iova = iova_allocator_alloc(self->iova_allocator, SZ_4M);
	ASSERT_EQ(-EFAULT, __iommu_map(self->iommu, &region));
	ASSERT_EQ(0, try_touch(region.vaddr));
	ASSERT_EQ(-EFAULT, __iommu_map(self->iommu, &region));

	region.vaddr = self->ivshmem->bars[self->bar].vaddr + SZ_1M;
	iommu_map(self->iommu, &region);
	mmio_fill(region.vaddr + offset, 0xee, DMA_SIZE);
	dma_fill(self, region.iova + offset, 0x66);
	ASSERT_TRUE(filled_with(region.vaddr + offset, 0x66));
}

int main(int argc, char *argv[])
{
	dmabuf_test_init(&argc, argv);
	edu_bdf = vfio_selftests_get_named_bdf("VFIO_EDU_BDF");
	ivshmem_bdf = vfio_selftests_get_named_bdf("VFIO_IVSHMEM_BDF");
	return test_harness_run(argc, argv);
}
