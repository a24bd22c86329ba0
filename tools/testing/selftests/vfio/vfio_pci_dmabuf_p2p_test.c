// SPDX-License-Identifier: GPL-2.0-only
/*
 * BARs and DMABUFs, mapped for DMA by an address in a mapping, as memory is.
 * The DMA engine of QEMU's edu, $VFIO_EDU_BDF, accesses the memory of ivshmem.
 */
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <linux/iommufd.h>
#include <linux/sizes.h>

#include "kselftest_harness.h"

#include <libvfio/dmabuf_test.h>

/* Where the part of the BAR starts that is mapped, and its size */
#define PART_OFFSET	(4 * page_size)
#define PART_SIZE	(4 * page_size)

#define ROUNDS		50

static const char *edu_bdf;

FIXTURE(dmabuf_p2p) {
	DMABUF_FIXTURE;
	struct iova_allocator *iova_allocator;
	struct vfio_pci_device *edu;
	struct dma_region ram;	/* Its second page is for DMA */
	u8 *mem;	/* The part of the BAR, for the CPU */
	iova_t iova;	/* Where that is mapped for DMA */
	bool stop;	/* For switch_main() */
};

FIXTURE_VARIANT(dmabuf_p2p) {
	const char *iommu_mode;
};

#define FIXTURE_VARIANT_ADD_IOMMU_MODE(_mode)					\
FIXTURE_VARIANT_ADD(dmabuf_p2p, _mode) { .iommu_mode = #_mode }

FIXTURE_VARIANT_ADD_IOMMU_MODE(iommufd_compat_type1);
FIXTURE_VARIANT_ADD_IOMMU_MODE(iommufd_compat_type1v2);
FIXTURE_VARIANT_ADD_IOMMU_MODE(iommufd);

static void edu_init(FIXTURE_DATA(dmabuf_p2p) *self)
{
	self->edu->driver.region = self->ram;
	self->edu->driver.region.size = page_size;
	vfio_pci_driver_init(self->edu);
}

static void edu_start(FIXTURE_DATA(dmabuf_p2p) *self, struct iommu *iommu)
{
	struct dma_region *ram = &self->ram;

	self->edu = vfio_pci_device_init(edu_bdf, iommu);
	ram->size = 2 * page_size;
	ram->vaddr = mmap(NULL, ram->size, PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	VFIO_ASSERT_NE(ram->vaddr, MAP_FAILED);
	ram->iova = iova_allocator_alloc(self->iova_allocator, ram->size);
	iommu_map(iommu, ram);
	edu_init(self);
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
	edu_start(self, self->iommu);
}

FIXTURE_TEARDOWN(dmabuf_p2p)
{
}

static void reopen(FIXTURE_DATA(dmabuf_p2p) *self)
{
	dmabuf_test_reopen(self->iommu, &self->device);
	self->mem = self->device->bars[self->bar].vaddr + PART_OFFSET;
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
 * From within a mapping. The DMA mapping outlasts munmap(), and can only be
 * unmapped as a whole, also where type1 could unmap a part.
 */
TEST_F(dmabuf_p2p, bar)
{
	bool type1 = self->iommu->mode->iommu_type == VFIO_TYPE1_IOMMU;
	void *vaddr = vfio_pci_region_mmap(self->device, self->bar,
					   PART_OFFSET - page_size,
					   PART_SIZE + 2 * page_size);

#ifdef __aarch64__
	/* A tag in the upper byte of an address is ignored, as for memory. */
	ASSERT_EQ(0, prctl(PR_SET_TAGGED_ADDR_CTRL, PR_TAGGED_ADDR_ENABLE, 0, 0, 0));
	ASSERT_EQ(0, MAP((void *)((u64)vaddr | 0x5aUL << 56), page_size));
	ASSERT_TRUE(dma_reaches(self, 0, self->mem - page_size));
	ASSERT_EQ(0, unmap(self, page_size));
#endif
	ASSERT_EQ(0, MAP(vaddr + page_size, PART_SIZE));
	ASSERT_TRUE(dma_reaches(self, 0, self->mem));
	munmap_assert(vaddr, PART_SIZE + 2 * page_size);
	ASSERT_TRUE(dma_reaches(self, page_size, self->mem + page_size));
	ASSERT_EQ(type1 ? -EOPNOTSUPP : -ENOENT, unmap(self, page_size));
	ASSERT_EQ(0, unmap(self, PART_SIZE));
	ASSERT_FALSE(dma_reaches(self, 0, self->mem));
}

/* The DMA mapping is of the DMABUF, not of the VMA, and ends with a revoke. */
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

/* How access is lost, and restored if that is an operation of its own */
static const struct {
	const char *what;
	void (*off)(struct vfio_pci_device *device);
	void (*on)(struct vfio_pci_device *device);
} losses[] = {
	{ "memory disable", vfio_pci_memory_off, vfio_pci_memory_on },
	{ "low power", vfio_pci_low_power_entry, vfio_pci_low_power_exit },
	{ "reset", vfio_pci_device_reset },
	{ "hot reset", vfio_pci_hot_reset },
};

static void lose_and_restore(struct vfio_pci_device *device, int i)
{
	losses[i].off(device);
	if (losses[i].on)
		losses[i].on(device);
}

/* In low power this device is in D0, and it is the IOMMU that ends DMA. */
static bool dma_is_lost(FIXTURE_DATA(dmabuf_p2p) *self, u64 offset)
{
	u32 *ram = self->ram.vaddr + page_size;
	u32 *mem = (u32 *)self->mem;

	*mem = 0x11111111;
	vfio_pci_low_power_entry(self->device);
	*ram = 0x22222222;
	dma(self, self->ram.iova + page_size, self->iova + offset);
	vfio_pci_low_power_exit(self->device);
	return *mem == 0x11111111;
}

/* The kernel maps again: mappings by address and by fd. */
TEST_F(dmabuf_p2p, restored)
{
	int fd = vfio_pci_dmabuf_export_range(self->device, self->bar,
					      PART_OFFSET, PART_SIZE);
	u64 offsets[] = { 0, PART_SIZE };
	int i, j, nr = 1;

	ASSERT_EQ(0, MAP(self->mem, PART_SIZE));
	if (self->iommu->iommufd) {
		iommu_map_file(self->iommu, fd, 0, PART_SIZE,
			       self->iova + offsets[nr]);
		nr++;
	}

	for (i = 0; i < ARRAY_SIZE(losses); i++) {
		lose_and_restore(self->device, i);
		for (j = 0; j < nr; j++) {
			ASSERT_TRUE(dma_reaches(self, offsets[j], self->mem)) {
				TH_LOG("%s, mapping %d", losses[i].what, j);
			}
		}
	}
	for (j = 0; j < nr; j++)
		ASSERT_TRUE(dma_is_lost(self, offsets[j]));
}

#define MEMCG "/sys/fs/cgroup/vfio_p2p"

static bool memcg_make(void)
{
	write_file("/sys/fs/cgroup/cgroup.subtree_control", O_WRONLY, "+memory");
	mkdir(MEMCG, 0755);
	return !access(MEMCG "/memory.stat", R_OK);
}

/* Bytes of page tables of an IOMMU that are charged to the memory cgroup */
static u64 charged(void)
{
	return read_key(MEMCG "/memory.stat", "sec_pagetables");
}

/* The statistics are some seconds late. */
static bool wait_charged(bool less, u64 than)
{
	int i;

	for (i = 0; (charged() < than) != less; i++) {
		if (i == 100)
			return false;
		usleep(100000);
	}
	return true;
}

/*
 * Page tables are charged to the process that maps, also when the owner restores
 * the mapping after the exit of that process. IOVA and memory have no large page
 * in common.
 */
TEST_F(dmabuf_p2p, charged)
{
	u64 size = self->bar_size - page_size, all;
	iova_t iova;
	pid_t pid;
	int fd;

	if (!self->iommu->iommufd)
		SKIP(return, "Covered by the iommufd variant");
	if (!memcg_make())
		SKIP(return, "No memory cgroup");

	fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
					  self->bar_size);
	iova = iova_allocator_alloc(self->iova_allocator, self->bar_size);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		write_file(MEMCG "/cgroup.procs", O_WRONLY, "0");
		iommu_map_file(self->iommu, fd, page_size, size, iova);
		_exit(0);
	}
	ASSERT_EQ(0, wait_child(pid));
	ASSERT_TRUE(wait_charged(false, size / page_size * sizeof(u64)));
	all = charged();

	vfio_pci_memory_off(self->device);
	ASSERT_TRUE(wait_charged(true, all));
	vfio_pci_memory_on(self->device);
	ASSERT_TRUE(wait_charged(false, all));
	rmdir(MEMCG);
}

/* Mapped while access is lost: empty until it is restored */
TEST_F(dmabuf_p2p, mapped_while_lost)
{
	struct vfio_region_dma_range ranges[] = {
		{ PART_OFFSET + page_size, page_size },
		{ PART_OFFSET, page_size },
	};
	int several = vfio_pci_dmabuf_export(self->device, self->bar, ranges, 2);
	int fd = vfio_pci_dmabuf_export_range(self->device, self->bar,
					      PART_OFFSET, PART_SIZE);
	void *vaddr = mmap_shared(fd, 0, PART_SIZE);
	int i;

	for (i = 0; losses[i].on; i++) {
		losses[i].off(self->device);
		ASSERT_EQ(-EOPNOTSUPP, MAP(mmap_shared(several, 0, page_size),
					   page_size));
		ASSERT_EQ(0, MAP(self->mem, PART_SIZE)) {
			TH_LOG("%s", losses[i].what);
		}
		ASSERT_EQ(0, map(self->iommu, vaddr, PART_SIZE,
				 self->iova + PART_SIZE, true));
		losses[i].on(self->device);
		ASSERT_TRUE(dma_reaches(self, 0, self->mem));
		ASSERT_TRUE(dma_reaches(self, PART_SIZE, self->mem));
		ASSERT_EQ(0, unmap(self, 2 * PART_SIZE));
	}

	/* A permanent revoke is final */
	vfio_pci_memory_off(self->device);
	ASSERT_EQ(0, MAP(vaddr, PART_SIZE));
	vfio_pci_dmabuf_revoke(self->device, fd);
	ASSERT_EQ(-ENODEV, map(self->iommu, vaddr, PART_SIZE,
			       self->iova + PART_SIZE, true));
	vfio_pci_memory_on(self->device);
	ASSERT_FALSE(dma_reaches(self, 0, self->mem));
}

/* Never restored after a permanent revoke, whenever that comes */
TEST_F(dmabuf_p2p, revoked)
{
	int i, j, fd;

	for (i = 0; i < ARRAY_SIZE(losses); i++) {
		for (j = 0; j < (losses[i].on ? 2 : 1); j++) {
			fd = vfio_pci_dmabuf_export_range(self->device,
							  self->bar,
							  PART_OFFSET,
							  PART_SIZE);
			ASSERT_EQ(0, MAP(mmap_shared(fd, 0, PART_SIZE),
					 PART_SIZE));
			if (!j)
				vfio_pci_dmabuf_revoke(self->device, fd);
			losses[i].off(self->device);
			if (j)
				vfio_pci_dmabuf_revoke(self->device, fd);
			if (losses[i].on)
				losses[i].on(self->device);
			ASSERT_FALSE(dma_reaches(self, 0, self->mem));
			ASSERT_EQ(0, unmap(self, PART_SIZE));
			close_assert(fd);
		}
	}
}

/* A device that has D3hot: DMA reads its registers, which stay as they are. */
TEST_F(dmabuf_p2p, d3hot)
{
	const char *bdf = vfio_selftests_get_named_bdf("VFIO_NVME_BDF");
	u32 *ram = self->ram.vaddr + page_size;
	struct vfio_pci_device *nvme;
	u32 version;

	if (!bdf)
		SKIP(return, "No nvme device");
	nvme = vfio_pci_device_init(bdf, self->iommu);
	version = *(u32 *)(nvme->bars[0].vaddr + 8);
	ASSERT_NE(0, version);
	if (nvme->bars[0].info.size < page_size) {
		/* There could be another BAR in the rest of the page. */
		ASSERT_EQ(-EFAULT, MAP(nvme->bars[0].vaddr, page_size));
		SKIP(return, "BAR smaller than a page");
	}
	ASSERT_EQ(0, MAP(nvme->bars[0].vaddr, page_size));

	vfio_pci_set_power_state(nvme, PCI_PM_CTRL_STATE_MASK);
	*ram = 0;
	dma(self, self->iova + 8, self->ram.iova + page_size);
	ASSERT_NE(version, *ram);

	vfio_pci_set_power_state(nvme, 0);
	dma(self, self->iova + 8, self->ram.iova + page_size);
	ASSERT_EQ(version, *ram);
}

/* A BAR that is mapped for DMA does not keep the device open. */
TEST_F(dmabuf_p2p, device_closed)
{
	ASSERT_EQ(0, MAP(self->mem, PART_SIZE));
	reopen(self);
	ASSERT_FALSE(dma_reaches(self, 0, self->mem));
	vfio_pci_memory_off(self->device);
	vfio_pci_memory_on(self->device);
	ASSERT_FALSE(dma_reaches(self, 0, self->mem));
	ASSERT_EQ(0, unmap(self, PART_SIZE));

	/* While access is lost */
	ASSERT_EQ(0, MAP(self->mem, PART_SIZE));
	vfio_pci_memory_off(self->device);
	reopen(self);
	ASSERT_FALSE(dma_reaches(self, 0, self->mem));
}

/* A client has an iommufd and edu of its own, until the owner's process is killed. */
TEST_F(dmabuf_p2p, owner_killed)
{
	int i, fd = vfio_pci_dmabuf_export_range(self->device, self->bar,
						 PART_OFFSET, PART_SIZE);
	void *vaddr = mmap_shared(fd, 0, PART_SIZE);
	struct iommu *iommu = iommu_init(MODE_IOMMUFD);
	pid_t owner;

	vfio_pci_device_cleanup(self->edu);
	edu_start(self, iommu);
	ASSERT_EQ(0, map(iommu, vaddr, PART_SIZE, self->iova, true));
	for (i = 0; i < ARRAY_SIZE(losses); i++) {
		lose_and_restore(self->device, i);
		ASSERT_TRUE(dma_reaches(self, 0, vaddr)) {
			TH_LOG("%s", losses[i].what);
		}
	}
	ASSERT_TRUE(dma_is_lost(self, 0));

	owner = fork();
	ASSERT_LE(0, owner);
	if (!owner) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pause();
		_exit(0);
	}
	dmabuf_test_close(&self->device);
	ASSERT_TRUE(dma_reaches(self, 0, vaddr));
	kill(owner, SIGKILL);
	ASSERT_EQ(owner, waitpid(owner, NULL, 0));
	ASSERT_EQ(SIGBUS, try_touch(vaddr));
	reopen(self);
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
	edu_start(self, iommu);
	ASSERT_TRUE(dma_reaches(self, 0, self->mem + page_size));
	ASSERT_TRUE(dma_reaches(self, PART_SIZE, self->mem));
	vfio_pci_device_reset(self->device);
	ASSERT_TRUE(dma_reaches(self, 0, self->mem + page_size));
	ASSERT_TRUE(dma_reaches(self, PART_SIZE, self->mem));

	/* The first device is attached while access is lost. */
	vfio_pci_device_cleanup(self->edu);
	vfio_pci_memory_off(self->device);
	self->edu = vfio_pci_device_init(edu_bdf, iommu);
	edu_init(self);
	vfio_pci_memory_on(self->device);
	ASSERT_TRUE(dma_reaches(self, 0, self->mem + page_size));
	ASSERT_TRUE(dma_reaches(self, PART_SIZE, self->mem));
}

static void copy_mapping(FIXTURE_DATA(dmabuf_p2p) *self, u32 ioas_id,
			 iova_t from, iova_t to, u64 size)
{
	struct iommu_ioas_copy copy = {
		.size = sizeof(copy),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE |
			 IOMMU_IOAS_MAP_WRITEABLE,
		.dst_ioas_id = ioas_id,
		.src_ioas_id = self->iommu->ioas_id,
		.length = size,
		.dst_iova = to,
		.src_iova = from,
	};

	ioctl_assert(self->iommu->iommufd, IOMMU_IOAS_COPY, &copy);
}

/* A range that was unmapped meanwhile stays unmapped; its copy is restored. */
TEST_F(dmabuf_p2p, unmapped)
{
	ASSERT_EQ(0, MAP(self->mem, PART_SIZE));
	if (self->iommu->iommufd)
		copy_mapping(self, self->iommu->ioas_id, self->iova,
			     self->iova + PART_SIZE, PART_SIZE);
	vfio_pci_memory_off(self->device);
	ASSERT_EQ(0, unmap(self, PART_SIZE));
	vfio_pci_memory_on(self->device);
	ASSERT_FALSE(dma_reaches(self, 0, self->mem));
	if (self->iommu->iommufd)
		ASSERT_TRUE(dma_reaches(self, PART_SIZE, self->mem));
	ASSERT_EQ(0, MAP(self->mem, PART_SIZE));
	ASSERT_TRUE(dma_reaches(self, 0, self->mem));
}

/* A second IOAS, with copies of what is mapped for the edu device */
static u32 copy_ioas(FIXTURE_DATA(dmabuf_p2p) *self)
{
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
	struct dma_region *ram = &self->ram;

	ioctl_assert(self->iommu->iommufd, IOMMU_IOAS_ALLOC, &alloc);
	copy_mapping(self, alloc.out_ioas_id, ram->iova, ram->iova, ram->size);
	copy_mapping(self, alloc.out_ioas_id, self->iova, self->iova, PART_SIZE);
	return alloc.out_ioas_id;
}

static void attach(struct vfio_pci_device *device, u32 pt_id)
{
	struct vfio_device_attach_iommufd_pt args = {
		.argsz = sizeof(args),
		.pt_id = pt_id,
	};

	ioctl_assert(device->fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &args);
}

/* Domains that come and go meanwhile: that of the second IOAS */
TEST_F(dmabuf_p2p, domains)
{
	u32 other;

	if (!self->iommu->iommufd)
		SKIP(return, "One IOAS only");

	ASSERT_EQ(0, MAP(self->mem, PART_SIZE));
	vfio_pci_memory_off(self->device);
	other = copy_ioas(self);
	attach(self->edu, other);
	vfio_pci_memory_on(self->device);
	ASSERT_TRUE(dma_reaches(self, 0, self->mem));
	ASSERT_TRUE(dma_is_lost(self, 0));

	vfio_pci_memory_off(self->device);
	attach(self->edu, self->iommu->ioas_id);
	vfio_pci_memory_on(self->device);
	ASSERT_TRUE(dma_reaches(self, 0, self->mem));
	ASSERT_TRUE(dma_is_lost(self, 0));
}

/* Access is lost and restored all the time. */
static int switch_main(void *arg, int fd)
{
	FIXTURE_DATA(dmabuf_p2p) *self = arg;

	while (!READ_ONCE(self->stop)) {
		vfio_pci_low_power_entry(self->device);
		vfio_pci_low_power_exit(self->device);
	}
	return 0;
}

/* Areas, domains and whole iommufds come and go at the same time. */
TEST_F(dmabuf_p2p, race)
{
	struct job job;
	int i, fd;
	u32 other;

	if (!self->iommu->iommufd)
		SKIP(return, "One IOAS only");

	ASSERT_EQ(0, MAP(self->mem, PART_SIZE));
	fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0, SZ_1M);
	other = copy_ioas(self);
	job_start(&job, switch_main, self, 0);
	for (i = 0; i < ROUNDS; i++) {
		iova_t iova = self->iova + SZ_1M / 2;
		struct iommu *iommu = iommu_init(MODE_IOMMUFD);

		attach(self->edu, i % 2 ? self->iommu->ioas_id : other);
		if (!__iommu_map_file(self->iommu, fd, 0, SZ_64K, iova))
			iommu_unmap_iova(self->iommu, iova, SZ_64K);
		__iommu_map_file(iommu, fd, 0, SZ_64K, iova);
		iommu_cleanup(iommu);
	}
	WRITE_ONCE(self->stop, true);
	ASSERT_EQ(0, job_result(&job));
	ASSERT_TRUE(dma_reaches(self, 0, self->mem));
	ASSERT_TRUE(dma_is_lost(self, 0));
}

int main(int argc, char *argv[])
{
	dmabuf_test_init(&argc, argv);
	edu_bdf = vfio_selftests_get_named_bdf("VFIO_EDU_BDF");
	return test_harness_run(argc, argv);
}
