// SPDX-License-Identifier: GPL-2.0-only
/*
 * The device, as its owner sees it: VFIO and iommufd without a library, and as much of
 * virtio as there has to be. Only the owner has the device fd, which can do everything:
 * reset, configuration, each doorbell, DMA to all memory that is mapped.
 */
#include "vblk.h"

#include <fcntl.h>
#include <glob.h>
#include <sys/ioctl.h>

#include <linux/iommufd.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>

#define NEEDED	(1ULL << VIRTIO_F_VERSION_1 | 1ULL << VIRTIO_F_ACCESS_PLATFORM | \
		 1ULL << VIRTIO_F_RING_RESET | 1ULL << VIRTIO_BLK_F_MQ)

static int fd, iommufd;
static __u32 ioas;

/* Each virtio capability names a BAR and an offset; those of QEMU are in one BAR. */
static struct vfio_region_info bar = { .argsz = sizeof(bar) };
static char *bar_start;
static __u32 offsets[VIRTIO_PCI_CAP_DEVICE_CFG + 1], multiplier;
static volatile struct virtio_pci_modern_common_cfg *common;

static void find_capabilities(__u64 config)
{
	struct virtio_pci_notify_cap notify;
	struct virtio_pci_cap *cap = &notify.cap;
	__u8 pos = 0;

	must(pread(fd, &pos, 1, config + PCI_CAPABILITY_LIST));
	for (; pos; pos = cap->cap_next) {
		must(pread(fd, &notify, sizeof(notify), config + pos));
		if (cap->cap_vndr != PCI_CAP_ID_VNDR ||
		    cap->cfg_type > VIRTIO_PCI_CAP_DEVICE_CFG)
			continue;
		bar.index = cap->bar;
		offsets[cap->cfg_type] = cap->offset;
		if (cap->cfg_type == VIRTIO_PCI_CAP_NOTIFY_CFG)
			multiplier = notify.notify_off_multiplier;
	}
}

void device_open(const char *bdf)
{
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind) };
	struct vfio_device_attach_iommufd_pt attach = { .argsz = sizeof(attach) };
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
	struct vfio_region_info config = { .argsz = sizeof(config),
					   .index = VFIO_PCI_CONFIG_REGION_INDEX };
	__u16 command = PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
	char path[100];
	glob_t found;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/vfio-dev/vfio*", bdf);
	must(-glob(path, 0, NULL, &found));
	snprintf(path, sizeof(path), "/dev/vfio/devices%s", strrchr(found.gl_pathv[0], '/'));
	fd = must(open(path, O_RDWR | O_CLOEXEC));
	iommufd = bind.iommufd = must(open("/dev/iommu", O_RDWR | O_CLOEXEC));
	must(ioctl(fd, VFIO_DEVICE_BIND_IOMMUFD, &bind));
	must(ioctl(iommufd, IOMMU_IOAS_ALLOC, &alloc));
	attach.pt_id = ioas = alloc.out_ioas_id;
	must(ioctl(fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach));

	must(ioctl(fd, VFIO_DEVICE_GET_REGION_INFO, &config));
	must(pwrite(fd, &command, sizeof(command), config.offset + PCI_COMMAND));
	find_capabilities(config.offset);
	must(ioctl(fd, VFIO_DEVICE_GET_REGION_INFO, &bar));
	bar_start = must(mmap(NULL, bar.size, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
			      bar.offset));
	common = (void *)(bar_start + offsets[VIRTIO_PCI_CAP_COMMON_CFG]);
}

/* Returns -1 if the device lacks a feature. Queues are enabled as clients come. */
int device_start(void)
{
	volatile struct virtio_pci_common_cfg *cfg = &common->cfg;
	__u64 needed = NEEDED;
	int i;

	cfg->device_status = 0;
	while (cfg->device_status)
		;
	cfg->device_status = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
	for (i = 0; i < 2; i++) {
		cfg->device_feature_select = cfg->guest_feature_select = i;
		cfg->guest_feature = needed >> i * 32;
		if ((__u32)(needed >> i * 32) & ~cfg->device_feature)
			return -1;
	}
	cfg->device_status |= VIRTIO_CONFIG_S_FEATURES_OK;
	if (!(cfg->device_status & VIRTIO_CONFIG_S_FEATURES_OK))
		return -1;
	cfg->device_status |= VIRTIO_CONFIG_S_DRIVER_OK;
	return 0;
}

/* Ends access through each DMABUF and DMA by all queues, without a revoke */
void device_close(void)
{
	munmap(bar_start, bar.size);
	close(fd);
	close(iommufd);
}

volatile __u16 *doorbell(int queue)
{
	common->cfg.queue_select = queue;
	return (void *)(bar_start + offsets[VIRTIO_PCI_CAP_NOTIFY_CFG] +
			common->cfg.queue_notify_off * multiplier);
}

static void set_address(volatile __le32 *low_high, __u64 iova)
{
	low_high[0] = iova;
	low_high[1] = iova >> 32;
}

/*
 * Map the memory of a client for DMA, which pins it, whatever the client does with the
 * memfd. Enable the queue: the owner writes the addresses of the rings, and the client
 * those in the rings. Returns the doorbell's page as a DMABUF.
 */
int queue_share(struct queue *q, int memfd)
{
	volatile struct virtio_pci_common_cfg *cfg = &common->cfg;
	struct iommu_ioas_map_file map = {
		.size = sizeof(map), .ioas_id = ioas, .fd = memfd,
		.flags = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
		.length = sizeof(struct queue_mem),
	};
	struct {
		struct vfio_device_feature feature;
		struct vfio_device_feature_dma_buf dmabuf;
		struct vfio_region_dma_range range;
	} get = {
		{ sizeof(get), VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF },
		{ bar.index, O_RDWR | O_CLOEXEC, 0, 1 },
		{ (char *)doorbell(q->index) - bar_start, getpagesize() },
	};

	must(ioctl(iommufd, IOMMU_IOAS_MAP_FILE, &map));
	q->iova = map.iova;
	q->doorbell = doorbell(q->index);
	cfg->queue_select = q->index;
	cfg->queue_size = QUEUE_SIZE;
	set_address(&cfg->queue_desc_lo, map.iova + offsetof(struct queue_mem, desc));
	set_address(&cfg->queue_avail_lo, map.iova + offsetof(struct queue_mem, avail_flags));
	set_address(&cfg->queue_used_lo, map.iova + offsetof(struct queue_mem, used_flags));
	cfg->queue_enable = 1;
	return must(ioctl(fd, VFIO_DEVICE_FEATURE, &get));
}

/* After this no process can touch the doorbell by the DMABUF ... */
void queue_revoke(int dmabuf)
{
	struct vfio_pci_dmabuf_revoke revoke = { sizeof(revoke), dmabuf };

	while (ioctl(fd, VFIO_DEVICE_PCI_DMABUF_REVOKE, &revoke))
		must(errno == EINTR ? 0 : -1);
}

/* ... and after this the device works for the queue no more, nor reaches the memory. */
void queue_reset(struct queue *q)
{
	struct iommu_ioas_unmap unmap = { .size = sizeof(unmap), .ioas_id = ioas,
					  .iova = q->iova,
					  .length = sizeof(struct queue_mem) };

	common->cfg.queue_select = q->index;
	common->queue_reset = 1;
	while (common->queue_reset || common->cfg.queue_enable)
		;
	must(ioctl(iommufd, IOMMU_IOAS_UNMAP, &unmap));
}
