/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * The interface between tools/testing/selftests/vfio and the test importer. Not to
 * be used by anything else: it may change with both of them.
 */
#ifndef _VFIO_PCI_DMABUF_TEST_H
#define _VFIO_PCI_DMABUF_TEST_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define VFIO_PCI_DMABUF_TEST_NAME "vfio-pci-dmabuf-test"

/* Attach without a callback for the invalidation of mappings */
#define VFIO_PCI_DMABUF_TEST_NO_INVALIDATE	0x1
/* Attach as one that cannot do peer-to-peer DMA */
#define VFIO_PCI_DMABUF_TEST_NO_P2P		0x2
/* Release the map when it is invalidated, as a real importer has to */
#define VFIO_PCI_DMABUF_TEST_PROMPT		0x4
#define VFIO_PCI_DMABUF_TEST_FLAGS		0x7

/* The device at the BDF is the importing device. */
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
/* Map the DMABUF, and unmap it */
#define VFIO_PCI_DMABUF_TEST_MAP	_IO(VFIO_PCI_DMABUF_TEST_TYPE, 1)
#define VFIO_PCI_DMABUF_TEST_UNMAP	_IO(VFIO_PCI_DMABUF_TEST_TYPE, 2)
/* Add a fence, as for DMA in progress, and signal it */
#define VFIO_PCI_DMABUF_TEST_FENCE	_IO(VFIO_PCI_DMABUF_TEST_TYPE, 3)
#define VFIO_PCI_DMABUF_TEST_SIGNAL	_IO(VFIO_PCI_DMABUF_TEST_TYPE, 4)
/* Returns how many times the mappings were invalidated */
#define VFIO_PCI_DMABUF_TEST_NR_INVALIDATED \
					_IO(VFIO_PCI_DMABUF_TEST_TYPE, 5)

enum vfio_pci_dmabuf_test_memtype {
	VFIO_PCI_DMABUF_TEST_OTHER,
	/* UC- on x86, Device-nGnRnE on arm64 */
	VFIO_PCI_DMABUF_TEST_UC,
	/* WC on x86, Normal Non-cacheable on arm64 */
	VFIO_PCI_DMABUF_TEST_WC,
	VFIO_PCI_DMABUF_TEST_WB,
};

/* The page table entry that maps @addr for the caller; the rest is output. */
struct vfio_pci_dmabuf_test_entry {
	__u64 addr;
	__u64 size;
	/* 0: the entry is a PTE, 1: a PMD, 2: a PUD */
	__u32 level;
	__u32 memtype;
	__u32 writable;
	/* The VMA has VM_ALLOW_ANY_UNCACHED, or the architecture does not */
	__u32 any_uncached;
};

/* Needs no attachment. ENOENT if nothing is mapped there */
#define VFIO_PCI_DMABUF_TEST_ENTRY	_IOWR(VFIO_PCI_DMABUF_TEST_TYPE, 6, \
					      struct vfio_pci_dmabuf_test_entry)

#endif /* _VFIO_PCI_DMABUF_TEST_H */
