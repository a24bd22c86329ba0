// SPDX-License-Identifier: GPL-2.0-only
/*
 * BARs and DMABUFs, mapped for DMA by an address in a mapping, as memory is.
 * The DMA engine of QEMU's edu, $VFIO_EDU_BDF, accesses the memory of ivshmem.
 */
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/iommufd.h>
#include <linux/sizes.h>

#include "kselftest_harness.h"

#include <libvfio/dmabuf_test.h>

/* Where the part of the BAR starts that is mapped, and its size */
#define PART_OFFSET	(4 * page_size)
#define PART_SIZE	(4 * page_size)

static const char *edu_bdf;

FIXTURE(dmabuf_p2p) {
	DMABUF_FIXTURE;
	struct iova_allocator *iova_allocator;
	struct vfio_pci_device *edu;
	struct dma_region ram;	/* Its second page is for DMA */
	u8 *mem;	/* The part of the BAR, for the CPU */
	iova_t iova;	/* Where that is mapped for DMA */
};

FIXTURE_VARIANT(dmabuf_p2p) {
	const char *iommu_mode;
};

#define FIXTURE_VARIANT_ADD_IOMMU_MODE(_mode)					\
FIXTURE_VARIANT_ADD(dmabuf_p2p, _mode) { .iommu_mode = #_mode }

FIXTURE_VARIANT_ADD_IOMMU_MODE(iommufd_compat_type1);
FIXTURE_VARIANT_ADD_IOMMU_MODE(iommufd_compat_type1v2);
FIXTURE_VARIANT_ADD_IOMMU_MODE(iommufd);

static void edu_start(FIXTURE_DATA(dmabuf_p2p) *self, struct iommu *iommu)
{
	struct dma_region *ram = &self->ram;

	ram->size = 2 * page_size;
	ram->vaddr = mmap(NULL, ram->size, PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	VFIO_ASSERT_NE(ram->vaddr, MAP_FAILED);
	ram->iova = iova_allocator_alloc(self->iova_allocator, ram->size);
	iommu_map(iommu, ram);

	self->edu->driver.region = *ram;
	self->edu->driver.region.size = page_size;
	vfio_pci_driver_init(self->edu);
}

FIXTURE_SETUP(dmabuf_p2p)
{
	if (!edu_bdf)
		SKIP(return, "No edu device");

	default_iommu_mode = variant->iommu_mode;
	DMABUF_SETUP(self, true, SZ_1M);
	self->iova_allocator = iova_allocator_init(self->iommu);
	self->iova = iova_allocator_alloc(self->iova_allocator, SZ_1M);
	self->mem = self->device->bars[self->bar].vaddr + PART_OFFSET;
	self->edu = vfio_pci_device_init(edu_bdf, self->iommu);
	edu_start(self, self->iommu);
}

FIXTURE_TEARDOWN(dmabuf_p2p)
{
}

static int map(struct iommu *iommu, void *vaddr, u64 size, iova_t iova,
	       bool write)
{
	struct dma_region region = { {}, vaddr, iova, size };
	int ret = write ? __iommu_map(iommu, &region) :
			  __iommu_map_readonly(iommu, &region);

	if (!ret)
		list_del(&region.link);
	return ret;
}

#define MAP(_vaddr, _size) \
	map(self->iommu, (_vaddr), (_size), self->iova, true)
#define MAP_READONLY(_vaddr, _size) \
	map(self->iommu, (_vaddr), (_size), self->iova, false)

static int unmap(FIXTURE_DATA(dmabuf_p2p) *self, u64 size)
{
	struct dma_region region = { LIST_HEAD_INIT(region.link), NULL,
				     self->iova, size };

	return __iommu_unmap(self->iommu, &region, NULL);
}

static void dma(FIXTURE_DATA(dmabuf_p2p) *self, iova_t from, iova_t to)
{
	VFIO_ASSERT_EQ(vfio_pci_driver_memcpy(self->edu, from, to, 4), 0);
}

/* Does DMA at self->iova + @offset reach @mem? Both directions must agree. */
static bool dma_reaches(FIXTURE_DATA(dmabuf_p2p) *self, u64 offset, void *mem)
{
	static u32 pattern = 0x1000;
	u32 *ram = self->ram.vaddr + page_size, *val = mem;
	bool written;

	*val = ++pattern;
	*ram = ~pattern;
	dma(self, self->ram.iova + page_size, self->iova + offset);
	written = *val == ~pattern;
	VFIO_ASSERT_TRUE(written || *val == pattern);

	*ram = 0;
	*val = ++pattern;
	dma(self, self->iova + offset, self->ram.iova + page_size);
	VFIO_ASSERT_EQ(*ram == pattern, written);
	return written;
}

/*
 * From within a mapping. What was mapped is the BAR, not its address, and is
 * unmapped at once, also where type1 could unmap a part.
 */
TEST_F(dmabuf_p2p, bar)
{
	bool type1 = self->iommu->mode->iommu_type == VFIO_TYPE1_IOMMU;
	void *vaddr = vfio_pci_region_mmap(self->device, self->bar,
					   PART_OFFSET - page_size,
					   PART_SIZE + 2 * page_size);

	ASSERT_EQ(0, MAP(vaddr + page_size, PART_SIZE));
	ASSERT_TRUE(dma_reaches(self, 0, self->mem));
	munmap_assert(vaddr, PART_SIZE + 2 * page_size);
	ASSERT_TRUE(dma_reaches(self, page_size, self->mem + page_size));
	ASSERT_EQ(type1 ? -EOPNOTSUPP : -ENOENT, unmap(self, page_size));
	ASSERT_EQ(0, unmap(self, PART_SIZE));
	ASSERT_FALSE(dma_reaches(self, 0, self->mem));
}

/* It follows the buffer, and ends with the permanent revoke of that. */
TEST_F(dmabuf_p2p, dmabuf)
{
	int fd = vfio_pci_dmabuf_export_range(self->device, self->bar,
					      PART_OFFSET, PART_SIZE);
	u8 *vaddr = mmap_shared(fd, page_size, PART_SIZE - page_size);
	void *other = mmap_shared(fd, 0, PART_SIZE);

	ASSERT_EQ(0, MAP(vaddr + page_size, page_size));
	ASSERT_TRUE(dma_reaches(self, 0, self->mem + 2 * page_size));
	munmap_assert(vaddr, PART_SIZE - page_size);
	ASSERT_TRUE(dma_reaches(self, 0, self->mem + 2 * page_size));

	vfio_pci_dmabuf_revoke(self->device, fd);
	ASSERT_FALSE(dma_reaches(self, 0, self->mem + 2 * page_size));
	ASSERT_EQ(0, unmap(self, page_size));
	ASSERT_EQ(-ENODEV, MAP(other, PART_SIZE));
}

/* The mapping ends with the access to memory, and has to be made again. */
TEST_F(dmabuf_p2p, memory_disable)
{
	ASSERT_EQ(0, MAP(self->mem, PART_SIZE));
	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(-ENODEV, map(self->iommu, self->mem, page_size,
			       self->iova + PART_SIZE, true));
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	ASSERT_FALSE(dma_reaches(self, 0, self->mem));

	ASSERT_EQ(0, unmap(self, PART_SIZE));
	ASSERT_EQ(0, MAP(self->mem, PART_SIZE));
	ASSERT_TRUE(dma_reaches(self, 0, self->mem));
}

/* A BAR that is mapped for DMA does not keep the device open. */
TEST_F(dmabuf_p2p, device_closed)
{
	ASSERT_EQ(0, MAP(self->mem, PART_SIZE));
	dmabuf_test_reopen(self->iommu, &self->device);
	self->mem = self->device->bars[self->bar].vaddr + PART_OFFSET;
	ASSERT_FALSE(dma_reaches(self, 0, self->mem));
}

/* One mapping has to cover the range, however large the buffer under it is. */
TEST_F(dmabuf_p2p, range)
{
	u8 *vaddr = vfio_pci_region_mmap_aligned(self->device, self->bar,
						 PART_OFFSET, PART_SIZE, SZ_2M,
						 page_size);
	u8 *last = vaddr + PART_SIZE - page_size;

	ASSERT_EQ(-EFAULT, MAP(last, 2 * page_size));
	ASSERT_EQ(0, mprotect(last, page_size, PROT_READ));
	ASSERT_EQ(-EFAULT, MAP_READONLY(vaddr, PART_SIZE));
	munmap_assert(last, page_size);
	ASSERT_EQ(-EFAULT, MAP(vaddr, PART_SIZE));
	ASSERT_EQ(-EINVAL, MAP(vaddr, 0));
	/* Memory, up to the mapping of the BAR and into it */
	ASSERT_EQ(vaddr - page_size,
		  mmap(vaddr - page_size, page_size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	ASSERT_EQ(-EFAULT, MAP(vaddr - page_size, 2 * page_size));

	ASSERT_EQ(0, MAP(vaddr, PART_SIZE - page_size));
	ASSERT_EQ(-EEXIST, MAP(vaddr, page_size));
	ASSERT_TRUE(dma_reaches(self, page_size, self->mem + page_size));
}

/* As for memory, DMA gets no more access than the mapping, or the fd, gives. */
TEST_F(dmabuf_p2p, protection)
{
	u8 *vaddr = vfio_pci_region_mmap(self->device, self->bar, PART_OFFSET,
					 PART_SIZE);
	int fd = __vfio_pci_dmabuf_export_range(self->device, self->bar,
						O_RDONLY | O_CLOEXEC, 0,
						PART_OFFSET, PART_SIZE);
	u32 *ram = self->ram.vaddr + page_size;
	u32 *mem = (u32 *)self->mem;
	void *read_only;

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, __mmap_shared(fd, 0, PART_SIZE, PROT_READ, &read_only));
	ASSERT_EQ(-EFAULT, MAP(read_only, PART_SIZE));
	if (self->iommu->iommufd)
		ASSERT_EQ(-EACCES, __iommu_map_file(self->iommu, fd, 0, page_size,
						    self->iova));
	ASSERT_EQ(0, MAP_READONLY(read_only, PART_SIZE));
	*mem = 0x12345678;
	dma(self, self->iova, self->ram.iova + page_size);
	ASSERT_EQ(0x12345678, *ram);
	*ram = 0;
	dma(self, self->ram.iova + page_size, self->iova);
	ASSERT_EQ(0x12345678, *mem);
	ASSERT_EQ(0, unmap(self, PART_SIZE));

	ASSERT_EQ(0, mprotect(vaddr, PART_SIZE, PROT_READ));
	ASSERT_EQ(-EFAULT, MAP(vaddr, PART_SIZE));
	ASSERT_EQ(0, mprotect(vaddr, PART_SIZE, PROT_NONE));
	ASSERT_EQ(-EFAULT, MAP_READONLY(vaddr, PART_SIZE));
}

/* A buffer of several ranges, and a BAR smaller than a page */
TEST_F(dmabuf_p2p, unsupported)
{
	struct vfio_region_dma_range ranges[] = {
		{ PART_OFFSET + page_size, page_size },
		{ PART_OFFSET, page_size },
	};
	int i, fd = vfio_pci_dmabuf_export(self->device, self->bar, ranges, 2);

	ASSERT_EQ(-EOPNOTSUPP, MAP(mmap_shared(fd, 0, page_size), page_size));
	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		struct vfio_pci_bar *bar = &self->device->bars[i];

		if (bar->vaddr && bar->info.size < page_size)
			ASSERT_EQ(-EFAULT, MAP(bar->vaddr, page_size));
	}
}

/*
 * In an IOAS without a device, where memory is not pinned when it is mapped.
 * The mapping can be copied, and the process be changed.
 */
TEST_F(dmabuf_p2p, before_attach)
{
	struct iommu *iommu = iommu_init(MODE_IOMMUFD);
	struct iommu_ioas_change_process change = { .size = sizeof(change) };
	struct iommu_ioas_copy copy = {
		sizeof(copy), IOMMU_IOAS_MAP_FIXED_IOVA |
		IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
		iommu->ioas_id, iommu->ioas_id, page_size, self->iova,
		self->iova + PART_SIZE + page_size,
	};

	ASSERT_EQ(0, map(iommu, self->mem, PART_SIZE, self->iova + PART_SIZE,
			 true));
	ASSERT_EQ(0, ioctl(iommu->iommufd, IOMMU_IOAS_COPY, &copy));
	ASSERT_EQ(0, ioctl(iommu->iommufd, IOMMU_IOAS_CHANGE_PROCESS, &change));

	vfio_pci_device_cleanup(self->edu);
	self->edu = vfio_pci_device_init(edu_bdf, iommu);
	edu_start(self, iommu);
	ASSERT_TRUE(dma_reaches(self, 0, self->mem + page_size));
	ASSERT_TRUE(dma_reaches(self, PART_SIZE, self->mem));
	vfio_pci_device_reset(self->device);
	ASSERT_FALSE(dma_reaches(self, 0, self->mem + page_size));
	ASSERT_FALSE(dma_reaches(self, PART_SIZE, self->mem));
}

int main(int argc, char *argv[])
{
	dmabuf_test_init(&argc, argv);
	edu_bdf = vfio_selftests_get_named_bdf("VFIO_EDU_BDF");
	return test_harness_run(argc, argv);
}
