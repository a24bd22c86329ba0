// SPDX-License-Identifier: GPL-2.0-only
/* VFIO, iommufd and virtio. Only the owner has the device fd, which can do everything. */
#include "vblk.h"

#include <fcntl.h>
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
static struct virtio_pci_notify_cap caps[VIRTIO_PCI_CAP_DEVICE_CFG + 1];
static volatile struct virtio_pci_modern_common_cfg *common;

static void find_capabilities(__u64 config)
{
	struct virtio_pci_notify_cap notify;
	struct virtio_pci_cap *cap = &notify.cap;

	must(pread(fd, &cap->cap_next, 1, config + PCI_CAPABILITY_LIST));
	while (cap->cap_next) {
		must(pread(fd, &notify, sizeof(notify), config + cap->cap_next));
		if (cap->cap_vndr != PCI_CAP_ID_VNDR ||
		    cap->cfg_type > VIRTIO_PCI_CAP_DEVICE_CFG)
			continue;
		bar.index = cap->bar;
		caps[cap->cfg_type] = notify;
	}
}

/* Reset the device and start it. Queues are enabled as clients come. */
static void start(volatile struct virtio_pci_common_cfg *cfg)
{
	__u64 i, needed = NEEDED, missing = 0;

	cfg->device_status = 0;
	while (cfg->device_status)
		;
	cfg->device_status = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
	for (i = 0; i < 2; i++, needed >>= 32) {
		cfg->device_feature_select = cfg->guest_feature_select = i;
		cfg->guest_feature = needed;
		missing |= (__u32)needed & ~cfg->device_feature;
	}
	cfg->device_status |= VIRTIO_CONFIG_S_FEATURES_OK;
	if (missing || !(cfg->device_status & VIRTIO_CONFIG_S_FEATURES_OK))
		errx(EXIT_FAILURE, "the device lacks a feature");
	cfg->device_status |= VIRTIO_CONFIG_S_DRIVER_OK;
}

void device_open(const char *path)
{
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind) };
	struct vfio_device_attach_iommufd_pt attach = { .argsz = sizeof(attach) };
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
	struct vfio_region_info config = { sizeof(config), .index = VFIO_PCI_CONFIG_REGION_INDEX };
	__u16 command = PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;

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
	bar_start = must(map_shared(fd, bar.size, bar.offset));
	common = (void *)(bar_start + caps[VIRTIO_PCI_CAP_COMMON_CFG].cap.offset);
	start(&common->cfg);
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
	return (void *)(bar_start + caps[VIRTIO_PCI_CAP_NOTIFY_CFG].cap.offset +
			caps[VIRTIO_PCI_CAP_NOTIFY_CFG].notify_off_multiplier *
			common->cfg.queue_notify_off);
}

/* Map (and pin) the client's memory, enable the queue, return the doorbell as a DMABUF. */
int queue_share(struct queue *q, int memfd)
{
	const size_t rings[] = { offset(desc), offset(avail_flags), offset(used_flags) };
	volatile struct virtio_pci_common_cfg *cfg = &common->cfg;
	volatile __le32 *low_high = &cfg->queue_desc_lo;
	struct iommu_ioas_map_file map = {
		.size = sizeof(map), .ioas_id = ioas, .fd = memfd,
		.flags = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
		.length = sizeof(struct queue_mem),
	};
	int i;
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
	for (i = 0; i < 6; i++)
		low_high[i] = (q->iova + rings[i / 2]) >> i % 2 * 32;
	cfg->queue_enable = 1;
	return must(ioctl(fd, VFIO_DEVICE_FEATURE, &get));
}

/* After this no process can touch the doorbell by the DMABUF ... */
void queue_revoke(int dmabuf)
{
	struct vfio_pci_dmabuf_revoke revoke = { sizeof(revoke), dmabuf };

	while (ioctl(fd, VFIO_DEVICE_PCI_DMABUF_REVOKE, &revoke) && errno != EBADFD)
		must(errno == EINTR ? 0 : -1);
}

/* ... and after this the device works for the queue no more, nor reaches the memory. */
void queue_reset(struct queue *q)
{
	struct iommu_ioas_unmap unmap = { .size = sizeof(unmap), .ioas_id = ioas,
		.iova = q->iova, .length = sizeof(struct queue_mem) };

	common->cfg.queue_select = q->index;
	common->queue_reset = 1;
	while (common->queue_reset || common->cfg.queue_enable)
		;
	must(ioctl(iommufd, IOMMU_IOAS_UNMAP, &unmap));
}
