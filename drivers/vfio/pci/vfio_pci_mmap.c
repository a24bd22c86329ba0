// SPDX-License-Identifier: GPL-2.0-only
/*
 * CPU mappings of DMABUFs: VMAs and faults. vfio_pci_dmabuf.h has the locks.
 */
#include <linux/dma-buf.h>
#include <linux/file.h>
#include <linux/memory-failure.h>
#include <linux/mm.h>
#include <linux/overflow.h>
#include <linux/slab.h>
#include <linux/wait_bit.h>

#include "vfio_pci_dmabuf.h"

/*
 * A mapping of a region holds the device open: by the device file that it was
 * made from, in vm_private_data. A mapping of an exported DMABUF has no device
 * file.
 */
static void vfio_pci_dma_buf_vm_open(struct vm_area_struct *vma)
{
	if (vma->vm_private_data)
		get_file(vma->vm_private_data);
}

static void vfio_pci_dma_buf_vm_close(struct vm_area_struct *vma)
{
	if (vma->vm_private_data)
		fput(vma->vm_private_data);
}

/* Driver memory may need time after a reset before it can be accessed */
static bool vfio_pci_dma_buf_is_ready(struct vfio_pci_dma_buf *priv)
{
	const struct vfio_pci_device_ops *ops;

	lockdep_assert_held(&priv->lock);

	if (likely(priv->in_bar))
		return true;
	ops = priv->vdev->pci_ops;
	return !ops->mem_is_ready || ops->mem_is_ready(priv->vdev);
}

static vm_fault_t vfio_pci_dma_buf_insert(struct vfio_pci_dma_buf *priv,
					  struct vm_fault *vmf,
					  unsigned long pfn, unsigned int order)
{
	lockdep_assert_held(&priv->lock);

	WRITE_ONCE(priv->mapped, true);
	if (!order)
		return vmf_insert_pfn_nosleep(vmf, pfn);

	if (priv->memtype == VFIO_PCI_MEMTYPE_UC &&
	    vfio_pci_wc_overlaps(priv->bufs, pfn, order))
		return VM_FAULT_FALLBACK;

	/* Where page tables are deposited, inserting a PMD may sleep */
	if (IS_ENABLED(CONFIG_ARCH_SUPPORTS_PMD_PFNMAP) &&
	    order == PMD_ORDER && !arch_needs_pgtable_deposit())
		return vmf_insert_pfn_pmd(vmf, pfn, false);

	if (IS_ENABLED(CONFIG_ARCH_SUPPORTS_PUD_PFNMAP) && order == PUD_ORDER)
		return vmf_insert_pfn_pud(vmf, pfn, false);

	return VM_FAULT_FALLBACK;
}

/*
 * Wait for the end of a reset, or until driver memory is ready, which only
 * regions have. If a retry is allowed, drop the VMA or mmap lock for the wait,
 * so that other threads can proceed. The VMA may be gone afterwards, and the
 * access faults again. That fault raises SIGBUS if the wait for driver memory
 * failed.
 *
 * Return: 0 to go on with the fault, or its result
 */
static vm_fault_t vfio_pci_dma_buf_wait(struct vm_fault *vmf, bool busy)
{
	struct vfio_pci_dma_buf *priv = vfio_pci_vma_dma_buf(vmf->vma);
	/* A device file keeps the device open, and so the region's DMABUF */
	struct file *file = vmf->vma->vm_private_data ?: vmf->vma->vm_file;
	/* Also with FAULT_FLAG_TRIED: there may be another reset */
	bool retry = vmf->flags & FAULT_FLAG_ALLOW_RETRY;
	int ret;

	if (retry && (vmf->flags & FAULT_FLAG_RETRY_NOWAIT))
		return VM_FAULT_RETRY;
	if (!busy && (vmf->flags & FAULT_FLAG_TRIED) &&
	    READ_ONCE(priv->wait_failed))
		return VM_FAULT_SIGBUS;

	if (retry) {
		get_file(file);
		release_fault_lock(vmf);
	}
	if (busy) {
		ret = wait_var_event_killable(&priv->state,
					      READ_ONCE(priv->state) !=
					      VFIO_PCI_MEM_BUSY);
	} else {
		ret = priv->vdev->pci_ops->mem_wait_ready(priv->vdev);
		WRITE_ONCE(priv->wait_failed, ret && ret != -EINTR);
	}
	if (retry) {
		fput(file);
		return VM_FAULT_RETRY;
	}
	return ret ? VM_FAULT_SIGBUS : 0;
}

static vm_fault_t vfio_pci_dma_buf_huge_fault(struct vm_fault *vmf,
					      unsigned int order)
{
	struct vm_area_struct *vma = vmf->vma;
	struct vfio_pci_dma_buf *priv = vfio_pci_vma_dma_buf(vma);
	enum vfio_pci_mem_state state;
	unsigned long pfn;
	vm_fault_t ret;
	bool ready;
	int err;

	err = vfio_pci_ranges_find_pfn(&priv->ranges, vma, priv->pgoff_base,
				       vmf->address, order, &pfn);
	if (err)
		return order && err == -ERANGE ? VM_FAULT_FALLBACK :
						 VM_FAULT_SIGBUS;

	do {
		ret = VM_FAULT_SIGBUS;
		spin_lock(&priv->lock);
		state = priv->state;
		ready = state == VFIO_PCI_MEM_USABLE &&
			vfio_pci_dma_buf_is_ready(priv);
		if (likely(ready))
			ret = vfio_pci_dma_buf_insert(priv, vmf, pfn, order);
		spin_unlock(&priv->lock);

		if (state == VFIO_PCI_MEM_BUSY ||
		    (state == VFIO_PCI_MEM_USABLE && !ready))
			ret = vfio_pci_dma_buf_wait(vmf, state ==
						    VFIO_PCI_MEM_BUSY);
	} while (!ret);

	return ret;
}

static vm_fault_t vfio_pci_dma_buf_fault(struct vm_fault *vmf)
{
	return vfio_pci_dma_buf_huge_fault(vmf, 0);
}

static const struct vm_operations_struct vfio_pci_dma_buf_vm_ops = {
	.open = vfio_pci_dma_buf_vm_open,
	.close = vfio_pci_dma_buf_vm_close,
	.fault = vfio_pci_dma_buf_fault,
#ifdef CONFIG_ARCH_SUPPORTS_HUGE_PFNMAP
	.huge_fault = vfio_pci_dma_buf_huge_fault,
#endif
};

static void vfio_pci_dma_buf_set_vma(struct vfio_pci_dma_buf *priv,
				     struct vm_area_struct *vma)
{
	vma->vm_ops = &vfio_pci_dma_buf_vm_ops;
	vma->vm_page_prot = vfio_pci_memtype_pgprot(priv->memtype,
						    vma->vm_page_prot);

	/*
	 * Set vm_flags now, they should not be changed in the fault handler.
	 * We want the same flags and page protection (decrypted above) as
	 * io_remap_pfn_range() would set.
	 */
	vm_flags_set(vma, VM_IO | VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP);

	/*
	 * VM_ALLOW_ANY_UNCACHED: The VMA flag is implemented for ARM64,
	 * allowing KVM stage 2 device mapping attributes to use Normal-NC
	 * rather than DEVICE_nGnRE, which allows guest mappings
	 * supporting write-combining attributes (WC). ARM does not
	 * architecturally guarantee this is safe, and indeed some MMIO
	 * regions like the GICv2 VCPU interface can trigger uncontained
	 * faults if Normal-NC is used.
	 *
	 * To safely use VFIO in KVM the platform must guarantee full
	 * safety in the guest where no action taken against a MMIO
	 * mapping can trigger an uncontained failure. The assumption is
	 * that most VFIO PCI platforms support this for both mapping types,
	 * at least in common flows, based on some expectations of how
	 * PCI IP is integrated. Hence VM_ALLOW_ANY_UNCACHED is set in
	 * the VMA flags.
	 */
	if (priv->memtype != VFIO_PCI_MEMTYPE_WB)
		vm_flags_set(vma, VM_ALLOW_ANY_UNCACHED);
}

/* Whether @vma is within @priv. vm_pgoff is user input. */
static bool vfio_pci_dma_buf_covers(const struct vfio_pci_dma_buf *priv,
				    const struct vm_area_struct *vma)
{
	unsigned long end;

	return vma->vm_pgoff >= priv->pgoff_base &&
	       !check_add_overflow(vma->vm_pgoff - priv->pgoff_base,
				   vma_pages(vma), &end) &&
	       end <= priv->size >> PAGE_SHIFT;
}

/* For memory-failure handling: where in @vma is @pfn mapped? */
static int vfio_pci_dma_buf_pfn_to_pgoff(struct vm_area_struct *vma,
					 unsigned long pfn, pgoff_t *pgoff)
{
	struct vfio_pci_dma_buf *priv = vfio_pci_vma_dma_buf(vma);
	unsigned long offset = pfn - PHYS_PFN(priv->phys_vec[0].paddr);

	if (offset >= priv->size >> PAGE_SHIFT)
		return -EFAULT;

	*pgoff = priv->pgoff_base + offset;
	if (*pgoff < vma->vm_pgoff || *pgoff - vma->vm_pgoff >= vma_pages(vma))
		return -EFAULT;
	return 0;
}

/**
 * vfio_pci_dma_buf_register_pfns() - register memory for memory-failure
 * handling
 * @priv: the DMABUF of a region that is driver memory
 *
 * Without CONFIG_MEMORY_FAILURE this does nothing and succeeds;
 * @priv->pfn_space stays NULL. Otherwise the caller unregisters and frees
 * @priv->pfn_space.
 *
 * Return: 0 or a negative errno
 */
int vfio_pci_dma_buf_register_pfns(struct vfio_pci_dma_buf *priv)
{
	struct pfn_address_space *space;
	int ret;

	space = kzalloc_obj(*space, GFP_KERNEL_ACCOUNT);
	if (!space)
		return -ENOMEM;

	space->node.start = PHYS_PFN(priv->phys_vec[0].paddr);
	space->node.last = space->node.start + (priv->size >> PAGE_SHIFT) - 1;
	space->mapping = priv->mapping;
	space->pfn_to_vma_pgoff = vfio_pci_dma_buf_pfn_to_pgoff;
	ret = register_pfn_address_space(space);
	if (ret) {
		kfree(space);
		return ret == -EOPNOTSUPP ? 0 : ret;
	}
	priv->pfn_space = space;
	return 0;
}

/**
 * vfio_pci_dma_buf_mmap() - mmap() of a DMABUF fd
 * @dmabuf: the DMABUF, one that was exported
 * @vma: the new mapping
 *
 * mmap() succeeds while memory is inaccessible, as for a BAR, and fails if the
 * buffer is permanently revoked. The latter is tested without a lock, only to
 * return an errno early; the fault handler tests it under the lock.
 *
 * Context: mmap_lock is held for writing.
 * Return: 0; -EINVAL if @vma is private or not within @dmabuf; -EOPNOTSUPP if
 * this is not memory of a BAR; or -ENODEV if it is permanently revoked
 */
int vfio_pci_dma_buf_mmap(struct dma_buf *dmabuf, struct vm_area_struct *vma)
{
	struct vfio_pci_dma_buf *priv = dmabuf->priv;

	/* VM_SHARED is cleared for a shared mapping of a read-only fd */
	if (!(vma->vm_flags & VM_MAYSHARE))
		return -EINVAL;
	if (!vfio_pci_dma_buf_covers(priv, vma))
		return -EINVAL;
	/* Memory that is in no BAR may need other attributes than a BAR */
	if (!priv->in_bar)
		return -EOPNOTSUPP;
	if (READ_ONCE(priv->state) == VFIO_PCI_MEM_DEAD)
		return -ENODEV;

	/* If called by dma_buf_mmap(), the VMA is that of another driver */
	vma->vm_private_data = NULL;
	vfio_pci_dma_buf_set_vma(priv, vma);
	return 0;
}

/**
 * vfio_pci_dma_buf_mmap_region() - map a part of a region
 * @vdev: the device, which is open
 * @vma: the new mapping
 * @index: index of the BAR region, below %VFIO_PCI_ROM_REGION_INDEX
 *
 * Puts the DMABUF of the region under @vma, whose vm_pgoff stays as it is. The
 * DMABUF is larger than the mapping, but user space gets no descriptor of it,
 * and each VMA is bounded by its own span.
 *
 * Context: mmap_lock is held for writing.
 * Return: 0, -EINVAL if @vma is not within the region, or why the region cannot
 * be mapped. vm_file is replaced only on success, and the caller must not fail
 * after that.
 */
int vfio_pci_dma_buf_mmap_region(struct vfio_pci_core_device *vdev,
				 struct vm_area_struct *vma, unsigned int index)
{
	struct dma_buf *dmabuf = vdev->dma_bufs->region[index];

	mmap_assert_write_locked(vma->vm_mm);

	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	if (!vfio_pci_dma_buf_covers(dmabuf->priv, vma))
		return -EINVAL;

	vfio_pci_dma_buf_set_vma(dmabuf->priv, vma);
	/* Keeps the device open, see .close */
	vma->vm_private_data = get_file(vma->vm_file);
	/* vdev->dma_bufs holds a reference, so dmabuf->file is valid */
	vma_set_file(vma, dmabuf->file);
	return 0;
}

/**
 * vfio_pci_dma_buf_iommufd_get() - find the DMABUF behind a user address
 * @vma: the VMA at @addr
 * @addr: the start of a range, without tag
 * @length: size of the range in bytes
 * @write: DMA may write to the range, and not only read from it
 * @offset: set to the offset of @addr in the DMABUF
 *
 * Part of the interconnect of vfio_pci_dma_buf_iommufd_map(). The whole range
 * has to be in @vma: user space was given that part only, while the DMABUF of
 * a region is larger. The protection of @vma is checked as pin_user_pages()
 * does. The state of the DMABUF is checked by attach, as it may change at any
 * time.
 *
 * Context: mmap_lock is held.
 * Return: the DMABUF, for the caller to put; NULL if @vma is not a mapping of
 * a vfio-pci DMABUF that importers can map; or -EFAULT if @vma does not allow
 * the range or the access
 */
struct dma_buf *vfio_pci_dma_buf_iommufd_get(struct vm_area_struct *vma,
					     unsigned long addr,
					     unsigned long length, bool write,
					     unsigned long *offset)
{
	struct vfio_pci_dma_buf *priv;

	mmap_assert_locked(vma->vm_mm);

	if (vma->vm_ops != &vfio_pci_dma_buf_vm_ops)
		return NULL;

	/* The VMA holds the file, and so the DMABUF */
	priv = vfio_pci_vma_dma_buf(vma);
	if (!priv->provider)
		return NULL;
	if (length > vma->vm_end - addr ||
	    !(vma->vm_flags & (write ? VM_WRITE : VM_READ)))
		return ERR_PTR(-EFAULT);

	*offset = ((vma->vm_pgoff - priv->pgoff_base) << PAGE_SHIFT) +
		  (addr - vma->vm_start);
	get_dma_buf(priv->dmabuf);
	return priv->dmabuf;
}
EXPORT_SYMBOL_FOR_MODULES(vfio_pci_dma_buf_iommufd_get, "iommufd");
