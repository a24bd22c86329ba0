// SPDX-License-Identifier: GPL-2.0-only
/*
 * An importer of DMABUFs that is controlled by user space, for the selftests.
 *
 * Real importers release a buffer as soon as its mappings are invalidated. How the
 * exporter waits for one that does not can only be tested with an importer that
 * waits for a command. It does no DMA and uses no address.
 *
 * It also reports page table entries of its caller: nothing else shows the memory
 * type of a mapping on every architecture.
 */
#include <linux/bitfield.h>
#include <linux/dma-buf.h>
#include <linux/dma-fence.h>
#include <linux/dma-resv.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "vfio_pci_dmabuf_test.h"

struct vfio_pci_dmabuf_test {
	/* Serialises the commands on one file */
	struct mutex lock;
	struct pci_dev *pdev;
	struct dma_buf_attachment *attach;
	struct dma_fence *fence;
	u32 flags;
	/* The following are protected by the resv lock */
	struct sg_table *sgt;
	unsigned int nr_invalidated;
};

static void vfio_pci_dmabuf_test_put_sgt(struct vfio_pci_dmabuf_test *test)
{
	dma_resv_assert_held(test->attach->dmabuf->resv);

	if (test->sgt)
		dma_buf_unmap_attachment(test->attach, test->sgt,
					 DMA_BIDIRECTIONAL);
	test->sgt = NULL;
}

static void vfio_pci_dmabuf_test_invalidate(struct dma_buf_attachment *attach)
{
	struct vfio_pci_dmabuf_test *test = attach->importer_priv;

	dma_resv_assert_held(attach->dmabuf->resv);

	test->nr_invalidated++;
	/* Before the attach has returned there is nothing to release. */
	if ((test->flags & VFIO_PCI_DMABUF_TEST_PROMPT) && test->sgt)
		vfio_pci_dmabuf_test_put_sgt(test);
}

static const struct dma_buf_attach_ops vfio_pci_dmabuf_test_ops[] = {
	[0] = {
		.allow_peer2peer = true,
		.invalidate_mappings = vfio_pci_dmabuf_test_invalidate,
	},
	[VFIO_PCI_DMABUF_TEST_NO_INVALIDATE] = {
		.allow_peer2peer = true,
	},
	[VFIO_PCI_DMABUF_TEST_NO_P2P] = {
		.invalidate_mappings = vfio_pci_dmabuf_test_invalidate,
	},
	[VFIO_PCI_DMABUF_TEST_NO_INVALIDATE | VFIO_PCI_DMABUF_TEST_NO_P2P] = {},
};

static int vfio_pci_dmabuf_test_attach(struct vfio_pci_dmabuf_test *test,
				       void __user *arg)
{
	struct vfio_pci_dmabuf_test_attach args;
	struct dma_buf_attachment *attach;
	struct dma_buf *dmabuf;
	struct pci_dev *pdev;
	int ret;

	if (test->attach)
		return -EBUSY;
	if (copy_from_user(&args, arg, sizeof(args)))
		return -EFAULT;
	if (args.flags & ~VFIO_PCI_DMABUF_TEST_FLAGS)
		return -EINVAL;

	pdev = pci_get_domain_bus_and_slot(args.domain, args.bus, args.devfn);
	if (!pdev)
		return -ENODEV;

	dmabuf = dma_buf_get(args.dmabuf_fd);
	if (IS_ERR(dmabuf)) {
		ret = PTR_ERR(dmabuf);
		goto err_put_pdev;
	}

	test->flags = args.flags;
	args.flags &= VFIO_PCI_DMABUF_TEST_NO_INVALIDATE |
		      VFIO_PCI_DMABUF_TEST_NO_P2P;
	attach = dma_buf_dynamic_attach(dmabuf, &pdev->dev,
					&vfio_pci_dmabuf_test_ops[args.flags],
					test);
	if (IS_ERR(attach)) {
		ret = PTR_ERR(attach);
		goto err_put_dmabuf;
	}

	test->pdev = pdev;
	test->attach = attach;
	return 0;

err_put_dmabuf:
	dma_buf_put(dmabuf);
err_put_pdev:
	pci_dev_put(pdev);
	return ret;
}

static int vfio_pci_dmabuf_test_map(struct vfio_pci_dmabuf_test *test)
{
	struct dma_resv *resv = test->attach->dmabuf->resv;
	struct sg_table *sgt;
	int ret = -EBUSY;

	dma_resv_lock(resv, NULL);
	if (!test->sgt) {
		sgt = dma_buf_map_attachment(test->attach, DMA_BIDIRECTIONAL);
		ret = PTR_ERR_OR_ZERO(sgt);
		if (!ret)
			test->sgt = sgt;
	}
	dma_resv_unlock(resv);
	return ret;
}

static int vfio_pci_dmabuf_test_unmap(struct vfio_pci_dmabuf_test *test)
{
	struct dma_resv *resv = test->attach->dmabuf->resv;

	dma_resv_lock(resv, NULL);
	vfio_pci_dmabuf_test_put_sgt(test);
	dma_resv_unlock(resv);
	return 0;
}

static const char *vfio_pci_dmabuf_test_fence_name(struct dma_fence *fence)
{
	return VFIO_PCI_DMABUF_TEST_NAME;
}

static const struct dma_fence_ops vfio_pci_dmabuf_test_fence_ops = {
	.get_driver_name = vfio_pci_dmabuf_test_fence_name,
	.get_timeline_name = vfio_pci_dmabuf_test_fence_name,
};

static int vfio_pci_dmabuf_test_signal(struct vfio_pci_dmabuf_test *test)
{
	if (test->fence) {
		dma_fence_signal(test->fence);
		dma_fence_put(test->fence);
		test->fence = NULL;
	}
	return 0;
}

/* DMA_RESV_USAGE_BOOKKEEP: implicit sync ignores it, a revoke does not. */
static int vfio_pci_dmabuf_test_fence(struct vfio_pci_dmabuf_test *test)
{
	struct dma_resv *resv = test->attach->dmabuf->resv;
	struct dma_fence *fence;
	int ret;

	if (test->fence)
		return -EBUSY;

	fence = kzalloc_obj(*fence);
	if (!fence)
		return -ENOMEM;
	dma_fence_init(fence, &vfio_pci_dmabuf_test_fence_ops, NULL,
		       dma_fence_context_alloc(1), 1);

	dma_resv_lock(resv, NULL);
	ret = dma_resv_reserve_fences(resv, 1);
	if (!ret)
		dma_resv_add_fence(resv, fence, DMA_RESV_USAGE_BOOKKEEP);
	dma_resv_unlock(resv);

	test->fence = fence;
	if (ret)
		vfio_pci_dmabuf_test_signal(test);
	return ret;
}

static int vfio_pci_dmabuf_test_nr_invalidated(struct vfio_pci_dmabuf_test *test)
{
	struct dma_resv *resv = test->attach->dmabuf->resv;
	int ret;

	dma_resv_lock(resv, NULL);
	ret = test->nr_invalidated;
	dma_resv_unlock(resv);
	return ret;
}

#if defined(CONFIG_X86_64)
static u32 vfio_pci_dmabuf_test_memtype(pgprot_t prot, bool large)
{
	if (large)
		prot = pgprot_large_2_4k(prot);
	switch (pgprot_val(prot) & _PAGE_CACHE_MASK) {
	case _PAGE_PCD:
		return VFIO_PCI_DMABUF_TEST_UC;
	case _PAGE_PWT:
		return VFIO_PCI_DMABUF_TEST_WC;
	case 0:
		return VFIO_PCI_DMABUF_TEST_WB;
	default:
		return VFIO_PCI_DMABUF_TEST_OTHER;
	}
}
#elif defined(CONFIG_ARM64)
static u32 vfio_pci_dmabuf_test_memtype(pgprot_t prot, bool large)
{
	switch (FIELD_GET(PTE_ATTRINDX_MASK, pgprot_val(prot))) {
	case MT_DEVICE_nGnRnE:
		return VFIO_PCI_DMABUF_TEST_UC;
	case MT_NORMAL_NC:
		return VFIO_PCI_DMABUF_TEST_WC;
	case MT_NORMAL:
		return VFIO_PCI_DMABUF_TEST_WB;
	default:
		return VFIO_PCI_DMABUF_TEST_OTHER;
	}
}
#else
static u32 vfio_pci_dmabuf_test_memtype(pgprot_t prot, bool large)
{
	return VFIO_PCI_DMABUF_TEST_OTHER;
}
#endif

static long vfio_pci_dmabuf_test_entry(void __user *arg)
{
	struct vfio_pci_dmabuf_test_entry entry;
	struct follow_pfnmap_args walk = {};
	struct mm_struct *mm = current->mm;
	int ret = -ENOENT;

	if (copy_from_user(&entry, arg, sizeof(entry)))
		return -EFAULT;

	mmap_read_lock(mm);
	walk.address = entry.addr;
	walk.vma = vma_lookup(mm, entry.addr);
	if (walk.vma && !follow_pfnmap_start(&walk)) {
		entry.size = -walk.addr_mask;
		entry.level = (entry.size > PAGE_SIZE) +
			      (entry.size > PMD_SIZE);
		entry.memtype = vfio_pci_dmabuf_test_memtype(walk.pgprot,
							     entry.level);
		entry.writable = walk.writable;
		entry.any_uncached = !VM_ALLOW_ANY_UNCACHED ||
			(walk.vma->vm_flags & VM_ALLOW_ANY_UNCACHED);
		follow_pfnmap_end(&walk);
		ret = 0;
	}
	mmap_read_unlock(mm);

	if (!ret && copy_to_user(arg, &entry, sizeof(entry)))
		ret = -EFAULT;
	return ret;
}

static long vfio_pci_dmabuf_test_ioctl(struct file *file, unsigned int cmd,
				       unsigned long arg)
{
	struct vfio_pci_dmabuf_test *test = file->private_data;

	if (cmd == VFIO_PCI_DMABUF_TEST_ENTRY)
		return vfio_pci_dmabuf_test_entry((void __user *)arg);

	guard(mutex)(&test->lock);

	if (cmd == VFIO_PCI_DMABUF_TEST_ATTACH)
		return vfio_pci_dmabuf_test_attach(test, (void __user *)arg);
	if (!test->attach)
		return -ENXIO;

	switch (cmd) {
	case VFIO_PCI_DMABUF_TEST_MAP:
		return vfio_pci_dmabuf_test_map(test);
	case VFIO_PCI_DMABUF_TEST_UNMAP:
		return vfio_pci_dmabuf_test_unmap(test);
	case VFIO_PCI_DMABUF_TEST_FENCE:
		return vfio_pci_dmabuf_test_fence(test);
	case VFIO_PCI_DMABUF_TEST_SIGNAL:
		return vfio_pci_dmabuf_test_signal(test);
	case VFIO_PCI_DMABUF_TEST_NR_INVALIDATED:
		return vfio_pci_dmabuf_test_nr_invalidated(test);
	default:
		return -ENOTTY;
	}
}

static int vfio_pci_dmabuf_test_open(struct inode *inode, struct file *file)
{
	struct vfio_pci_dmabuf_test *test = kzalloc_obj(*test);

	if (!test)
		return -ENOMEM;
	mutex_init(&test->lock);
	file->private_data = test;
	return 0;
}

static int vfio_pci_dmabuf_test_release(struct inode *inode, struct file *file)
{
	struct vfio_pci_dmabuf_test *test = file->private_data;
	struct dma_buf *dmabuf;

	vfio_pci_dmabuf_test_signal(test);
	if (test->attach) {
		dmabuf = test->attach->dmabuf;
		vfio_pci_dmabuf_test_unmap(test);
		dma_buf_detach(dmabuf, test->attach);
		dma_buf_put(dmabuf);
		pci_dev_put(test->pdev);
	}
	mutex_destroy(&test->lock);
	kfree(test);
	return 0;
}

static const struct file_operations vfio_pci_dmabuf_test_fops = {
	.owner = THIS_MODULE,
	.open = vfio_pci_dmabuf_test_open,
	.release = vfio_pci_dmabuf_test_release,
	.unlocked_ioctl = vfio_pci_dmabuf_test_ioctl,
};

static struct miscdevice vfio_pci_dmabuf_test_misc = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = VFIO_PCI_DMABUF_TEST_NAME,
	.fops = &vfio_pci_dmabuf_test_fops,
	.mode = 0600,
};
module_misc_device(vfio_pci_dmabuf_test_misc);

MODULE_IMPORT_NS("DMA_BUF");
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Test importer of VFIO PCI DMABUFs");
