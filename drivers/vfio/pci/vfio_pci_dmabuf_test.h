/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * What tools/testing/selftests/vfio and the test importer agree on. Never to be
 * used by anything else, and free to change with both of them.
 */
#ifndef _VFIO_PCI_DMABUF_TEST_H
#define _VFIO_PCI_DMABUF_TEST_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define VFIO_PCI_DMABUF_TEST_NAME "vfio-pci-dmabuf-test"

/* Attach as one that cannot be told to let go of the buffer */
#define VFIO_PCI_DMABUF_TEST_NO_INVALIDATE	0x1
/* Attach as one that cannot do peer-to-peer DMA */
#define VFIO_PCI_DMABUF_TEST_NO_P2P		0x2
/* Let go of the map when told to, as a real importer has to */
#define VFIO_PCI_DMABUF_TEST_PROMPT		0x4
#define VFIO_PCI_DMABUF_TEST_FLAGS		0x7

/* The importing device, and with it all DMA addresses, is that at the BDF. */
struct vfio_pci_dmabuf_test_attach {
	__s32 dmabuf_fd;
	__u32 flags;
	__u16 domain;
	__u8 bus;
	__u8 devfn;
};

#define VFIO_PCI_DMABUF_TEST_TYPE	0xd7

/* One attachment for each open file, which is detached when that is closed */
#define VFIO_PCI_DMABUF_TEST_ATTACH	_IOW(VFIO_PCI_DMABUF_TEST_TYPE, 0, \
					     struct vfio_pci_dmabuf_test_attach)
/* A map, and what ends it */
#define VFIO_PCI_DMABUF_TEST_MAP	_IO(VFIO_PCI_DMABUF_TEST_TYPE, 1)
#define VFIO_PCI_DMABUF_TEST_UNMAP	_IO(VFIO_PCI_DMABUF_TEST_TYPE, 2)
/* A fence, as of DMA that has been started, and its end */
#define VFIO_PCI_DMABUF_TEST_FENCE	_IO(VFIO_PCI_DMABUF_TEST_TYPE, 3)
#define VFIO_PCI_DMABUF_TEST_SIGNAL	_IO(VFIO_PCI_DMABUF_TEST_TYPE, 4)
/* Returns how many times the importer was told to let go */
#define VFIO_PCI_DMABUF_TEST_NR_INVALIDATED \
					_IO(VFIO_PCI_DMABUF_TEST_TYPE, 5)

#endif /* _VFIO_PCI_DMABUF_TEST_H */
