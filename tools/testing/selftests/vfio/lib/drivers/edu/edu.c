// SPDX-License-Identifier: GPL-2.0-only
/*
 * QEMU's educational device, see docs/specs/edu in its sources: a DMA engine and
 * one MSI, on any machine that runs QEMU.
 *
 * The DMA engine copies between memory and a small buffer in the device, so a
 * memcpy takes two transfers, of 100 ms each whatever the size. By default it
 * uses only the low 28 bits of an address. The tests need all of them:
 * -device edu,dma_mask=0xffffffffffffffff
 */
#include <unistd.h>

#include <linux/errno.h>
#include <linux/io.h>
#include <linux/pci_regs.h>

#include <libvfio.h>

#include "registers.h"

/* Twenty times what a transfer takes */
#define EDU_DMA_TIMEOUT_MS	2000

/* The memcpy to do: the device has no queue, memcpy_wait() feeds it. */
struct edu_state {
	u64 src;
	u64 dst;
	u64 size;
	u64 count;
};

static inline struct edu_state *to_edu_state(struct vfio_pci_device *device)
{
	return device->driver.region.vaddr;
}

static inline void *edu_registers(struct vfio_pci_device *device)
{
	return device->bars[0].vaddr;
}

static int edu_probe(struct vfio_pci_device *device)
{
	u32 id;

	if (!vfio_pci_device_match(device, PCI_VENDOR_ID_EDU,
				   PCI_DEVICE_ID_EDU))
		return -EINVAL;

	VFIO_ASSERT_NOT_NULL(edu_registers(device));

	id = readl(edu_registers(device) + EDU_ID);
	if ((id & EDU_ID_MASK) != EDU_ID_VALUE) {
		dev_err(device, "edu: Unknown ID: 0x%x\n", id);
		return -ENODEV;
	}

	return 0;
}

static int edu_dma_wait(struct vfio_pci_device *device)
{
	int ms;

	for (ms = 0; ms < EDU_DMA_TIMEOUT_MS; ms++) {
		if (!(readq(edu_registers(device) + EDU_DMA_CMD) &
		      EDU_DMA_CMD_RUN))
			return 0;

		/* A busy virtual CPU could starve the device. */
		usleep(1000);
	}

	dev_err(device, "edu: DMA does not end\n");
	return -ETIMEDOUT;
}

static int edu_dma(struct vfio_pci_device *device, u64 src, u64 dst, u64 size,
		   u64 cmd)
{
	void *registers = edu_registers(device);

	writeq(src, registers + EDU_DMA_SRC);
	writeq(dst, registers + EDU_DMA_DST);
	writeq(size, registers + EDU_DMA_COUNT);
	writeq(cmd | EDU_DMA_CMD_RUN, registers + EDU_DMA_CMD);

	return edu_dma_wait(device);
}

static void edu_init(struct vfio_pci_device *device)
{
	struct vfio_pci_driver *driver = &device->driver;
	void *registers = edu_registers(device);
	u32 alive = 0x12345678;

	VFIO_ASSERT_GE(driver->region.size, sizeof(struct edu_state));

	vfio_pci_cmd_set(device, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);

	writel(alive, registers + EDU_LIVENESS);
	VFIO_ASSERT_EQ(readl(registers + EDU_LIVENESS), ~alive);

	/* No reset reaches the registers: clear what a former user left. */
	VFIO_ASSERT_EQ(edu_dma_wait(device), 0);
	writel(readl(registers + EDU_IRQ_STATUS), registers + EDU_IRQ_ACK);

	vfio_pci_msi_enable(device, 0, 1);

	driver->msi = 0;
	driver->max_memcpy_size = EDU_MEMCPY_SIZE;
	driver->max_memcpy_count = 10;
}

static void edu_remove(struct vfio_pci_device *device)
{
	VFIO_ASSERT_EQ(edu_dma_wait(device), 0);
	vfio_pci_msi_disable(device);
	vfio_pci_cmd_clear(device, PCI_COMMAND_MASTER);
}

static void edu_memcpy_start(struct vfio_pci_device *device, iova_t src,
			     iova_t dst, u64 size, u64 count)
{
	*to_edu_state(device) = (struct edu_state) { src, dst, size, count };
}

static int edu_memcpy_wait(struct vfio_pci_device *device)
{
	struct edu_state *edu = to_edu_state(device);
	int ret = 0;

	for (; edu->count && !ret; edu->count--) {
		ret = edu_dma(device, edu->src, EDU_DMA_BUF, edu->size, 0);
		if (!ret)
			ret = edu_dma(device, EDU_DMA_BUF, edu->dst, edu->size,
				      EDU_DMA_CMD_TO_MEMORY);
	}

	return ret;
}

static void edu_send_msi(struct vfio_pci_device *device)
{
	void *registers = edu_registers(device);

	writel(1, registers + EDU_IRQ_RAISE);

	/* The next one is only raised when there is none pending. */
	writel(1, registers + EDU_IRQ_ACK);
}

const struct vfio_pci_driver_ops edu_ops = {
	.name = "edu",
	.probe = edu_probe,
	.init = edu_init,
	.remove = edu_remove,
	.memcpy_start = edu_memcpy_start,
	.memcpy_wait = edu_memcpy_wait,
	.send_msi = edu_send_msi,
};
