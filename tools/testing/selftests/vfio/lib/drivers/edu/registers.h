/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SELFTESTS_VFIO_LIB_DRIVERS_EDU_REGISTERS_H
#define SELFTESTS_VFIO_LIB_DRIVERS_EDU_REGISTERS_H

#define PCI_VENDOR_ID_EDU	0x1234
#define PCI_DEVICE_ID_EDU	0x11e8

/* 0xRRrr00ed: major and minor version of the device */
#define EDU_ID			0x00
#define EDU_ID_MASK		0x0000ffff
#define EDU_ID_VALUE		0x000000ed

/* Reads back inverted */
#define EDU_LIVENESS		0x04

#define EDU_IRQ_STATUS		0x24
#define EDU_IRQ_RAISE		0x60
#define EDU_IRQ_ACK		0x64

/* 64 bits wide each */
#define EDU_DMA_SRC		0x80
#define EDU_DMA_DST		0x88
#define EDU_DMA_COUNT		0x90
#define EDU_DMA_CMD		0x98
#define EDU_DMA_CMD_RUN		0x1
#define EDU_DMA_CMD_TO_MEMORY	0x2

/*
 * The buffer as the DMA engine sees it. A transfer that touches its last byte
 * stops QEMU in some versions: use half of it.
 */
#define EDU_DMA_BUF		0x40000
#define EDU_MEMCPY_SIZE		2048

#endif /* SELFTESTS_VFIO_LIB_DRIVERS_EDU_REGISTERS_H */
