/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_DMABUF_H
#define SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_DMABUF_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/types.h>
#include <linux/vfio.h>

#include <libvfio/vfio_pci_device.h>

/* Does the kernel export DMABUFs of this device? */
bool vfio_pci_dmabuf_supported(struct vfio_pci_device *device);

/*
 * Export ranges of region @index as one DMABUF, or the one range [offset,
 * offset + size). Return the fd; with "__" it may be -errno, and @open_flags
 * and @flags are passed on unchecked.
 */
int __vfio_pci_dmabuf_export(struct vfio_pci_device *device, u32 index,
			     u32 open_flags, u32 flags,
			     const struct vfio_region_dma_range *ranges,
			     u32 nr_ranges);
int vfio_pci_dmabuf_export(struct vfio_pci_device *device, u32 index,
			   const struct vfio_region_dma_range *ranges,
			   u32 nr_ranges);
int __vfio_pci_dmabuf_export_range(struct vfio_pci_device *device, u32 index,
				   u32 open_flags, u32 flags, u64 offset,
				   u64 size);
int vfio_pci_dmabuf_export_range(struct vfio_pci_device *device, u32 index,
				 u64 offset, u64 size);

/* The range as write-combining. Returns the fd or -errno. */
int vfio_pci_dmabuf_export_wc(struct vfio_pci_device *device, u32 index,
			      u64 offset, u64 size);

/* VFIO_DEVICE_PCI_DMABUF_REVOKE. Return 0 or -errno, or assert success. */
int __vfio_pci_dmabuf_revoke_fd(int device_fd, int dmabuf_fd);
int __vfio_pci_dmabuf_revoke(struct vfio_pci_device *device, int dmabuf_fd);
void vfio_pci_dmabuf_revoke(struct vfio_pci_device *device, int dmabuf_fd);

/* mmap(MAP_SHARED). Return 0 or -errno, or assert success. */
int __mmap_shared(int fd, u64 offset, size_t size, int prot, void **vaddr);
void *mmap_shared(int fd, u64 offset, size_t size);

/*
 * As mmap_shared(), at an address with (vaddr % align) == misalign, and with
 * MADV_HUGEPAGE: @align is the size of the huge page to make possible, and
 * @misalign == getpagesize() makes it impossible.
 */
void *mmap_shared_aligned(int fd, u64 offset, size_t size, size_t align,
			  size_t misalign);

/* mmap_shared() and mmap_shared_aligned() of a part of region @index */
void *vfio_pci_region_mmap(struct vfio_pci_device *device, u32 index,
			   u64 offset, size_t size);
void *vfio_pci_region_mmap_aligned(struct vfio_pci_device *device, u32 index,
				   u64 offset, size_t size, size_t align,
				   size_t misalign);

/* The offset of region @index in the file of the device */
static inline u64 vfio_pci_region_offset(struct vfio_pci_device *device,
					 u32 index)
{
	VFIO_ASSERT_LT(index, PCI_STD_NUM_BARS);
	return device->bars[index].info.offset;
}

#define munmap_assert(_vaddr, _size) \
	VFIO_ASSERT_EQ(munmap((_vaddr), (_size)), 0)

/*
 * The index of a BAR that can be mapped and has at least @min_size bytes, or -1:
 * the one with the highest index, or one that is plain memory, which keeps what
 * is written to it and has no side effects. $VFIO_SELFTESTS_MEMORY_BAR lists
 * such BARs as BDF:INDEX, separated by blanks.
 */
int vfio_pci_last_bar(struct vfio_pci_device *device, u64 min_size);
int vfio_pci_memory_bar(struct vfio_pci_device *device, u64 min_size);

/*
 * The lines of fdinfo of a DMABUF that start with @prefix, which is removed.
 * The string is overwritten by the next call.
 */
const char *vfio_pci_dmabuf_fdinfo(int dmabuf_fd, const char *prefix);
bool vfio_pci_dmabuf_fdinfo_has(int dmabuf_fd, const char *key,
				const char *val);
bool vfio_pci_dmabuf_reaches_state(int dmabuf_fd, const char *state,
				   int timeout_ms);

/* The first number in the file at @path */
u64 read_number(const char *path);

/* The number in the line "KEY NUMBER" of the file at @path, 0 if there is none */
u64 read_key(const char *path, const char *key);

/* For comparisons: fds of the process, and inodes of the system */
int count_fds(void);
u64 count_inodes(void);

/* An O_PATH descriptor of the file of @fd */
int open_o_path(int fd);

#endif /* SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_DMABUF_H */
