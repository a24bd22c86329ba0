/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_VM_H
#define SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_VM_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/types.h>

/* The first page of the virtual machine */
struct vfio_vm_page {
	u8 code[256];
	u64 count;	/* Number of accesses done */
	u8 stop;	/* Halt after the next access */
};

/*
 * A virtual machine by KVM, of one CPU without paging. It does nothing but access the
 * first word of a memory slot.
 */
struct vfio_vm {
	int fd, vcpu_fd;
	struct kvm_run *run;
	struct vfio_vm_page *page;
};

/* An fd of /dev/kvm, or -1 without KVM, and on what is not x86 */
int vfio_vm_open_kvm(void);

struct vfio_vm *vfio_vm_init(int kvm_fd);

/*
 * Have [vaddr, vaddr + size) as memory slot @slot, which is 1 or more, with KVM_MEM_
 * @flags, or change the flags.
 */
void vfio_vm_set_slot(struct vfio_vm *vm, u32 slot, u32 flags, void *vaddr,
		      size_t size);

/* KVM_GET_DIRTY_LOG */
void vfio_vm_get_dirty_log(struct vfio_vm *vm, u32 slot, u64 *bitmap);

/*
 * vfio_vm_start() has vfio_vm_run() read the word over and over, or increase the
 * value and store it in the word. vfio_vm_stop() ends this, also in advance: that
 * makes it one access.
 *
 * vfio_vm_run() returns 0 when it was stopped, -errno or the KVM_EXIT_ reason. After
 * that it tries the same access again.
 */
void vfio_vm_start(struct vfio_vm *vm, u32 slot, bool write, u32 value);
void vfio_vm_stop(struct vfio_vm *vm);
int vfio_vm_run(struct vfio_vm *vm);

/* vfio_vm_run() as a job: @arg is the struct vfio_vm */
int job_vm_run(void *arg, int fd);

/* What was read last, or what was stored or was to be stored */
u32 vfio_vm_value(struct vfio_vm *vm);

/* One access; as vfio_vm_run() */
int vfio_vm_read32(struct vfio_vm *vm, u32 slot, u32 *val);
int vfio_vm_write32(struct vfio_vm *vm, u32 slot, u32 val);

#endif /* SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_VM_H */
