/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef VFIO_PCI_DMABUF_H
#define VFIO_PCI_DMABUF_H

#include <linux/dma-buf.h>

#include "vfio_pci_priv.h"

/*
 * There are two kinds of DMABUFs: exported ones, of which user space has a
 * descriptor, and one per region of an open device, which backs the mappings
 * of the region and has no descriptor. Each has its own address_space, so that
 * it can be unmapped separately.
 *
 * Locks: memory_lock is held for writing from a revoke to the matching
 * un-revoke. The restore that follows holds it for reading. Inside memory_lock
 * nest, one at a time, the resv lock of a DMABUF (importers), i_mmap_rwsem
 * (unmap) and the lock of a DMABUF, and inside the latter
 * vfio_pci_dma_bufs.lock. The revoke of a single DMABUF takes these without
 * memory_lock.
 *
 * The lock of a DMABUF protects its state. A fault tests the state and inserts
 * the PFN within one hold of it. A revoke changes the state and then unmaps, so
 * either the fault comes first and the unmap finds its PTE, or it comes second
 * and sees the state. Nothing sleeps under the lock, so a page fault of a
 * client does not make the owner of the device wait. The unmap takes
 * i_mmap_rwsem, which mmap(), munmap() and fork() of a client hold for writing,
 * and visits each mapping of the DMABUF.
 *
 * The mmap ops take none of these locks (mm takes i_mmap_rwsem): they run
 * under mmap_lock, and a holder of memory_lock may fault on user memory. The
 * release of a DMABUF does not take memory_lock either, as a holder of
 * memory_lock may wait for the task that releases.
 */
struct vfio_pci_dma_buf {
	struct dma_buf *dmabuf;
	struct vfio_pci_dma_bufs *bufs;
	/* NULL after the device was closed; cleared under bufs->lock */
	struct vfio_pci_core_device *vdev;
	struct list_head dmabufs_elm;
	struct address_space *mapping;
	size_t size;
	struct p2pdma_provider *provider;
	struct vfio_pci_ranges ranges;
	/* Held to change the state, and to test it and insert a PFN */
	spinlock_t lock;
	enum vfio_pci_mem_state state;
	/* PTEs may exist */
	bool mapped;
	/* The last wait for driver memory failed, in this state */
	bool wait_failed;
	/* Importers have released their mappings since the last revoke */
	bool drained;
	/* Attachments, counted before their importer sees the state */
	atomic_t nr_attached;
	/* Outstanding DMA mappings, incremented under the resv lock */
	atomic_t nr_maps;
	unsigned int region_index;
	phys_addr_t region_start;
	/* False for driver memory in place of the BAR */
	bool in_bar;
	enum vfio_pci_memtype memtype;
	/*
	 * The reservation of the pages, or NULL. Changes with memory_lock held
	 * for writing, and on close with bufs->lock held as well, with which
	 * the release reads it. Without these locks it is only compared with
	 * NULL, as it may be freed.
	 */
	struct vfio_pci_wc *wc;
	/* vm_pgoff of the first page; includes the region index for a region */
	unsigned long pgoff_base;
	/* Driver memory may fail as system memory does */
	struct pfn_address_space *pfn_space;
	struct phys_vec phys_vec[];
};

static inline struct vfio_pci_dma_buf *
vfio_pci_vma_dma_buf(const struct vm_area_struct *vma)
{
	struct dma_buf *dmabuf = vma->vm_file->private_data;

	return dmabuf->priv;
}

int vfio_pci_dma_buf_mmap(struct dma_buf *dmabuf, struct vm_area_struct *vma);
int vfio_pci_dma_buf_register_pfns(struct vfio_pci_dma_buf *priv);

void vfio_pci_dma_buf_show_fdinfo(struct dma_buf *dmabuf, struct seq_file *m);
void vfio_pci_dma_buf_trace_importers(struct pci_dev *pdev,
				      struct vfio_pci_dma_buf *priv);

#endif
