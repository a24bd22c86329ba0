/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef VFIO_PCI_DMABUF_H
#define VFIO_PCI_DMABUF_H

#include <linux/dma-buf.h>

#include "vfio_pci_priv.h"

/*
 * A DMABUF is either exported, and user space has a descriptor of it, or it is
 * under the mappings of a region of the device, from open to close, and user
 * space has none. Each has an address_space of its own, to be unmapped alone.
 *
 * Locks: memory_lock held for writing makes a revoke last until the matching
 * un-revoke. The restore that follows needs it for reading. Inside it nest, one
 * at a time, the resv lock of a DMABUF (importers), i_mmap_rwsem (unmap) and
 * the lock of a DMABUF, and inside the latter vfio_pci_dma_bufs.lock. The
 * revoke of a single DMABUF takes these without memory_lock.
 *
 * The lock of a DMABUF protects its state. A fault tests the state and inserts
 * the PFN within one hold of it. A revoke changes the state and then unmaps, so
 * either the fault comes first and the unmap finds its PTE, or it comes second
 * and sees the state. Nothing sleeps under the lock, so a page fault of a
 * client does not make the owner of the device wait. The unmap takes
 * i_mmap_rwsem, which mmap(), munmap() and fork() of a client hold for writing,
 * and visits each mapping of the DMABUF.
 *
 * mmap() takes none of these locks: it runs under mmap_lock, and a holder of
 * memory_lock may fault on user memory. Nor does the release of a DMABUF take
 * memory_lock: its caller may be the one that a holder of the lock waits for.
 */
struct vfio_pci_dma_buf {
	struct dma_buf *dmabuf;
	struct vfio_pci_dma_bufs *bufs;
	/* NULL when the device is closed; changes with bufs->lock held */
	struct vfio_pci_core_device *vdev;
	struct list_head dmabufs_elm;
	struct address_space *mapping;
	size_t size;
	struct p2pdma_provider *provider;
	struct vfio_pci_ranges ranges;
	/* Held to change the state, and to insert PFNs while it is usable */
	spinlock_t lock;
	enum vfio_pci_mem_state state;
	/* There may be PTEs */
	bool mapped;
	/* The last wait for memory of a driver failed, in this state */
	bool wait_failed;
	/* Importers have released their mappings since the buffer was revoked */
	bool drained;
	/* Attachments, counted before their importer sees the state */
	atomic_t nr_attached;
	/* Outstanding DMA mappings, incremented under the resv lock */
	atomic_t nr_maps;
	unsigned int region_index;
	phys_addr_t region_start;
	/* False for memory of a driver in place of the BAR */
	bool in_bar;
	enum vfio_pci_memtype memtype;
	/* Set while the pages are reserved, under memory_lock for writing */
	struct vfio_pci_wc *wc;
	/* vm_pgoff of the first page: that of a region has the index in it */
	unsigned long pgoff_base;
	/* Memory of a driver may fail as system memory does */
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
