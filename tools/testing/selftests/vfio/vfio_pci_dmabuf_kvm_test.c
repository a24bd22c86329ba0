// SPDX-License-Identifier: GPL-2.0-only
/*
 * A virtual machine has a mapping of a BAR or DMABUF as memory. Each event that ends the
 * access of user space ends that of the virtual machine, which goes on when access
 * is back.
 */
#include <unistd.h>

#include <sys/mman.h>

/* For kvm.h, as linux/types.h of tools/include does not include it */
#include <linux/stddef.h>
#include <linux/kvm.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include "kselftest_harness.h"

#include <libvfio/dmabuf_test.h>

/* The part of the BAR that is the memory slot: one large page, where it is UC */
#define SLICE_SIZE	SZ_2M
#define SLICE_PAGES	(SLICE_SIZE / SZ_4K)

#define SLOT		1

FIXTURE(kvm) {
	DMABUF_FIXTURE;
	u32 *word;	/* The owner's mapping of the first word of the slice */
	bool memory;	/* Or may it only be read? */
	int fd;
	void *vaddr;
	struct vfio_vm *vm;
	struct job job;
};

FIXTURE_VARIANT(kvm) {
	bool dmabuf;
	u32 flags;
};

FIXTURE_VARIANT_ADD(kvm, bar) {};

FIXTURE_VARIANT_ADD(kvm, uc) { .dmabuf = true };

FIXTURE_VARIANT_ADD(kvm, wc) {
	.dmabuf = true,
	.flags = VFIO_DEVICE_FEATURE_DMA_BUF_ATTR_WC,
};

FIXTURE_SETUP(kvm)
{
	int kvm_fd = vfio_vm_open_kvm();

	if (kvm_fd < 0)
		SKIP(return, "No KVM");
	DMABUF_SETUP(self, false, 2 * SLICE_SIZE);
	self->memory = vfio_pci_memory_bar(self->device, 2 * SLICE_SIZE) ==
		       self->bar;
	self->word = self->device->bars[self->bar].vaddr + SLICE_SIZE;
	self->fd = __vfio_pci_dmabuf_export_range(self->device, self->bar,
						  O_RDWR | O_CLOEXEC,
						  variant->flags, SLICE_SIZE,
						  SLICE_SIZE);
	if (self->fd == -EOPNOTSUPP)
		SKIP(return, "No write-combining on this machine");
	ASSERT_LE(0, self->fd);
	self->vaddr = variant->dmabuf ?
		mmap_shared_aligned(self->fd, 0, SLICE_SIZE, SZ_2M, 0) :
		vfio_pci_region_mmap_aligned(self->device, self->bar,
					     SLICE_SIZE, SLICE_SIZE, SZ_2M, 0);
	self->vm = vfio_vm_init(kvm_fd);
	vfio_vm_set_slot(self->vm, SLOT, 0, self->vaddr, SLICE_SIZE);
}

FIXTURE_TEARDOWN(kvm)
{
}

static void start(FIXTURE_DATA(kvm) *self)
{
	vfio_vm_start(self->vm, SLOT, self->memory, 0);
	job_start(&self->job, job_vm_run, self->vm, -1);
	VFIO_ASSERT_TRUE(count_grows(&self->vm->page->count));
}

/* The access that was refused has not been made, all before have. */
#define ASSERT_STORED(_refused) do {						\
	if (self->memory)							\
		ASSERT_EQ(vfio_vm_value(self->vm) - (_refused), *self->word);	\
} while (0)

#define ASSERT_REFUSED() do {							\
	ASSERT_EQ(-EFAULT, job_result(&self->job));				\
	ASSERT_EQ(-EFAULT, vfio_vm_run(self->vm));				\
} while (0)

/* From where it was refused */
#define ASSERT_GOES_ON() do {							\
	ASSERT_STORED(1);							\
	job_start(&self->job, job_vm_run, self->vm, -1);			\
	ASSERT_STOPS();								\
} while (0)

#define ASSERT_STOPS() do {							\
	ASSERT_TRUE(count_grows(&self->vm->page->count));			\
	vfio_vm_stop(self->vm);							\
	ASSERT_EQ(0, job_result(&self->job));					\
	ASSERT_STORED(0);							\
} while (0)

TEST_F(kvm, memory_disabled)
{
	start(self);
	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	ASSERT_REFUSED();
	if (self->device->info.flags & VFIO_DEVICE_FLAGS_RESET)
		vfio_pci_device_reset(self->device);
	ASSERT_EQ(-EFAULT, vfio_vm_run(self->vm));
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	ASSERT_GOES_ON();
}

TEST_F(kvm, d3hot)
{
	if (!vfio_pci_find_capability(self->device, PCI_CAP_ID_PM))
		SKIP(return, "Not supported by the device");
	start(self);
	vfio_pci_set_power_state(self->device, PCI_PM_CTRL_STATE_MASK);
	ASSERT_REFUSED();
	vfio_pci_set_power_state(self->device, 0);
	ASSERT_GOES_ON();
}

/* The virtual machine waits meanwhile. */
TEST_F(kvm, reset)
{
	if (!(self->device->info.flags & VFIO_DEVICE_FLAGS_RESET))
		SKIP(return, "Not supported by the device");
	start(self);
	vfio_pci_device_reset(self->device);
	ASSERT_STOPS();
}

/* Revoke ends what is reached through the DMABUF, not what is through the BAR. */
TEST_F(kvm, revoke)
{
	u32 seen;

	start(self);
	vfio_pci_dmabuf_revoke(self->device, self->fd);
	if (!variant->dmabuf) {
		ASSERT_STOPS();
		return;
	}
	seen = *self->word;
	ASSERT_REFUSED();
	ASSERT_STORED(1);
	ASSERT_EQ(seen, *self->word);
}

TEST_F(kvm, munmap)
{
	u32 seen;

	start(self);
	munmap_assert(self->vaddr, SLICE_SIZE);
	seen = *self->word;
	ASSERT_REFUSED();
	ASSERT_STORED(1);
	ASSERT_EQ(seen, *self->word);
}

/* The mapping of a BAR keeps the device open, that of a DMABUF does not. */
TEST_F(kvm, close)
{
	start(self);
	dmabuf_test_close(&self->device);
	if (!variant->dmabuf) {
		ASSERT_TRUE(count_grows(&self->vm->page->count));
		munmap_assert(self->vaddr, SLICE_SIZE);
	}
	ASSERT_REFUSED();
	dmabuf_test_reopen(self->iommu, &self->device);
	self->word = self->device->bars[self->bar].vaddr + SLICE_SIZE;
	ASSERT_STORED(1);
	ASSERT_EQ(-EFAULT, vfio_vm_run(self->vm));
}

/* The log has KVM map pages anew, small ones, and then large ones again. */
TEST_F(kvm, dirty_log)
{
	u64 bitmap[SLICE_PAGES / 64];
	int i;

	start(self);
	for (i = 0; i < 2; i++) {
		vfio_vm_set_slot(self->vm, SLOT, KVM_MEM_LOG_DIRTY_PAGES,
				 self->vaddr, SLICE_SIZE);
		ASSERT_TRUE(count_grows(&self->vm->page->count));
		ASSERT_TRUE(count_grows(&self->vm->page->count));
		vfio_vm_get_dirty_log(self->vm, SLOT, bitmap);
		ASSERT_EQ(self->memory, bitmap[0]);
		ASSERT_EQ(0, bitmap[SLICE_PAGES / 64 - 1]);
		if (i)
			break;
		vfio_vm_set_slot(self->vm, SLOT, 0, self->vaddr, SLICE_SIZE);
		ASSERT_TRUE(count_grows(&self->vm->page->count));
	}
	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	ASSERT_REFUSED();
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	ASSERT_GOES_ON();
}

TEST_F(kvm, read_only_slot)
{
	u32 val, old = *self->word;

	vfio_vm_set_slot(self->vm, SLOT + 1, KVM_MEM_READONLY, self->vaddr,
			 SLICE_SIZE);
	ASSERT_EQ(0, vfio_vm_read32(self->vm, SLOT + 1, &val));
	ASSERT_EQ(old, val);
	ASSERT_EQ(KVM_EXIT_MMIO, vfio_vm_write32(self->vm, SLOT + 1, ~old));
	ASSERT_EQ(old, *self->word);

	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(-EFAULT, vfio_vm_read32(self->vm, SLOT + 1, &val));
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, vfio_vm_read32(self->vm, SLOT + 1, &val));
	ASSERT_EQ(old, val);
}

int main(int argc, char *argv[])
{
	dmabuf_test_init(&argc, argv);
	return test_harness_run(argc, argv);
}
