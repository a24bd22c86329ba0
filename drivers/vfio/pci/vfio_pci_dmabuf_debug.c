// SPDX-License-Identifier: GPL-2.0-only
/* Debugging of DMABUFs: fdinfo and trace events */
#include <linux/dma-resv.h>
#include <linux/pci.h>
#include <linux/seq_file.h>

#include "vfio_pci_dmabuf.h"

#define CREATE_TRACE_POINTS
#include "trace.h"

/* fdinfo is written into one buffer: limit the number of ranges */
#define VFIO_PCI_DMA_BUF_SHOW_RANGES	256U

static const char *vfio_pci_dma_buf_show_state(struct vfio_pci_dma_buf *priv)
{
	if (!READ_ONCE(priv->vdev))
		return "device closed";

	switch (READ_ONCE(priv->state)) {
	case VFIO_PCI_MEM_USABLE:
		return "usable";
	case VFIO_PCI_MEM_DEAD:
		return READ_ONCE(priv->drained) ?
			"revoked" : "revoked, waiting for importers";
	default:
		return "temporarily revoked";
	}
}

static const char *vfio_pci_dma_buf_show_type(struct vfio_pci_dma_buf *priv)
{
	if (!priv->in_bar)
		return "driver";
	return priv->memtype == VFIO_PCI_MEMTYPE_WC ? "write-combining" :
						      "uncached";
}

/*
 * For debugging of a client, or the revoke of its buffer, that hangs. Ranges
 * are merged and shown as offsets in the region, not as physical addresses.
 */
void vfio_pci_dma_buf_show_fdinfo(struct dma_buf *dmabuf, struct seq_file *m)
{
	struct vfio_pci_dma_buf *priv = dmabuf->priv;
	u32 i;

	/* The close of the device clears vdev under this lock */
	scoped_guard(spinlock, &priv->bufs->lock) {
		if (priv->vdev)
			seq_printf(m, "vfio-pci-device:\t%s\n",
				   pci_name(priv->vdev->pdev));
	}
	seq_printf(m, "vfio-pci-state:\t%s\n",
		   vfio_pci_dma_buf_show_state(priv));
	seq_printf(m, "vfio-pci-importers:\t%d\n",
		   atomic_read(&priv->nr_attached));
	seq_printf(m, "vfio-pci-memory-type:\t%s\n",
		   vfio_pci_dma_buf_show_type(priv));
	seq_printf(m, "vfio-pci-region:\t%u\n", priv->region_index);
	seq_printf(m, "vfio-pci-ranges:\t%u\n", priv->ranges.nr);

	for (i = 0; i < min(priv->ranges.nr, VFIO_PCI_DMA_BUF_SHOW_RANGES); i++)
		seq_printf(m, "vfio-pci-range:\t0x%llx+0x%zx\n",
			   (u64)(priv->ranges.vec[i].paddr -
				 priv->region_start),
			   priv->ranges.vec[i].len);
}

/* The importers that a revoke may wait for. Called under the resv lock. */
void vfio_pci_dma_buf_trace_importers(struct pci_dev *pdev,
				      struct vfio_pci_dma_buf *priv)
{
	struct dma_buf_attachment *attach;

	dma_resv_assert_held(priv->dmabuf->resv);

	if (!trace_vfio_pci_dma_buf_drain_importer_enabled())
		return;

	list_for_each_entry(attach, &priv->dmabuf->attachments, node)
		trace_vfio_pci_dma_buf_drain_importer(pdev, priv->dmabuf,
						      attach->dev);
}
