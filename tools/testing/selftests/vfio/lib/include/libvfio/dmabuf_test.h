/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_DMABUF_TEST_H
#define SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_DMABUF_TEST_H

/* For the programs vfio_pci_dmabuf_*_test, which include kselftest_harness.h first */

#include <libvfio.h>

/* Debug kernels on a busy machine need more than the default of 30 seconds. */
#ifdef TEST_TIMEOUT_DEFAULT
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	300
#endif

/*
 * Each test of DMABUFs works with the BARs of one device. Registers are read only
 * if $VFIO_SELFTESTS_READ_BARS is set, which promises that a read has no side
 * effects. Otherwise only the BARs in $VFIO_SELFTESTS_MEMORY_BAR are used.
 *
 * $VFIO_SELFTESTS_IOMMU_MODE selects the IOMMU mode; the default is iommufd.
 */
extern const char *device_bdf;
extern size_t page_size;

/* Called by main(); sets @device_bdf and @page_size. */
void dmabuf_test_init(int *argc, char *argv[]);

/* The members of a FIXTURE() that DMABUF_SETUP() sets */
#define DMABUF_FIXTURE								\
	struct iommu *iommu;							\
	struct vfio_pci_device *device;						\
	int bar;								\
	u64 bar_size;								\
	u64 bar_offset	/* in the file of the device */

/*
 * Open the device and find a BAR of at least @_min_size bytes: one that is plain
 * memory if @_memory, otherwise the largest. Skip the test if there is none.
 *
 * Nothing needs to be released: each test is a process, and its exit closes
 * and unmaps, also if the test has failed. A FIXTURE_TEARDOWN() only stops
 * other processes, and ends waits that would keep the process from exiting.
 */
#define DMABUF_OPEN(_memory, _min_size, _iommu, _device, _bar) do {		\
	const char *__reason = dmabuf_test_open((_memory), (_min_size),		\
						(_iommu), (_device), (_bar));	\
										\
	if (__reason)								\
		SKIP(return, "%s", __reason);					\
} while (0)

#define DMABUF_SETUP(_self, _memory, _min_size) do {				\
	DMABUF_OPEN((_memory), (_min_size), &(_self)->iommu,			\
		    &(_self)->device, &(_self)->bar);				\
	(_self)->bar_size = (_self)->device->bars[(_self)->bar].info.size;	\
	(_self)->bar_offset = vfio_pci_region_offset((_self)->device,		\
						     (_self)->bar);		\
} while (0)

const char *dmabuf_test_open(bool memory, u64 min_size, struct iommu **iommu,
			     struct vfio_pci_device **device, int *bar);
void dmabuf_test_close(struct vfio_pci_device **device);
void dmabuf_test_reopen(struct iommu *iommu, struct vfio_pci_device **device);

#endif /* SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_DMABUF_TEST_H */
