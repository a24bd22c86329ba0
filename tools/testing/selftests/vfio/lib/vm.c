// SPDX-License-Identifier: GPL-2.0-only
#include <fcntl.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>

/* For kvm.h, as linux/types.h of tools/include does not include it */
#include <linux/stddef.h>
#include <linux/compiler.h>
#include <linux/kvm.h>
#include <linux/sizes.h>
#include <linux/types.h>

#include "../../../kselftest.h"
#include <libvfio.h>

#ifdef __x86_64__
int vfio_vm_open_kvm(void)
{
	return open("/dev/kvm", O_RDWR | O_CLOEXEC);
}

static void vm_set_memory(struct vfio_vm *vm, u32 slot, u32 flags, void *vaddr,
			  size_t size)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot,
		.flags = flags,
		.guest_phys_addr = (u64)slot * SZ_1G,
		.memory_size = size,
		.userspace_addr = (u64)vaddr,
	};

	ioctl_assert(vm->fd, KVM_SET_USER_MEMORY_REGION, &region);
}

struct vfio_vm *vfio_vm_init(int kvm_fd)
{
	struct vfio_vm *vm = calloc_assert(1, sizeof(*vm));
	size_t size = getpagesize();

	vm->fd = ioctl(kvm_fd, KVM_CREATE_VM, 0);
	VFIO_ASSERT_GE(vm->fd, 0);
	vm->vcpu_fd = ioctl(vm->fd, KVM_CREATE_VCPU, 0);
	VFIO_ASSERT_GE(vm->vcpu_fd, 0);
	vm->run = mmap_shared(vm->vcpu_fd, 0, size);
	vm->page = mmap(NULL, size, PROT_READ | PROT_WRITE,
			MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	VFIO_ASSERT_NE(vm->page, MAP_FAILED);
	vm_set_memory(vm, 0, 0, vm->page, size);
	return vm;
}

void vfio_vm_set_slot(struct vfio_vm *vm, u32 slot, u32 flags, void *vaddr,
		      size_t size)
{
	VFIO_ASSERT_GE(slot, 1);
	VFIO_ASSERT_LE(size, SZ_1G);
	vm_set_memory(vm, slot, flags, vaddr, size);
}

void vfio_vm_get_dirty_log(struct vfio_vm *vm, u32 slot, u64 *bitmap)
{
	struct kvm_dirty_log log = { .slot = slot, .dirty_bitmap = bitmap };

	ioctl_assert(vm->fd, KVM_GET_DIRTY_LOG, &log);
}

void vfio_vm_start(struct vfio_vm *vm, u32 slot, bool write, u32 value)
{
	u16 count = offsetof(struct vfio_vm_page, count);
	u16 stop = offsetof(struct vfio_vm_page, stop);
	u8 code[] = {
		/* 1: inc %eax */
		0x66, 0x40,
		/* mov %eax, %ds:0 or mov %ds:0, %eax */
		0x66, write ? 0xa3 : 0xa1, 0, 0,
		/* incl %cs:count */
		0x2e, 0x66, 0xff, 0x06, count & 0xff, count >> 8,
		/* cmpb $0, %cs:stop */
		0x2e, 0x80, 0x3e, stop & 0xff, stop >> 8, 0,
		/* je 1b */
		0x74, -20,
		/* hlt; jmp 1b */
		0xf4, 0xeb, -23,
	};
	struct kvm_regs regs = { .rflags = 2, .rax = value };
	struct kvm_sregs sregs;

	memset(vm->page, 0, sizeof(*vm->page));
	memcpy(vm->page->code, code, sizeof(code));
	ioctl_assert(vm->vcpu_fd, KVM_GET_SREGS, &sregs);
	sregs.cs.selector = 0;
	sregs.cs.base = 0;
	sregs.ds.base = (u64)slot * SZ_1G;
	ioctl_assert(vm->vcpu_fd, KVM_SET_SREGS, &sregs);
	ioctl_assert(vm->vcpu_fd, KVM_SET_REGS, &regs);
}

int vfio_vm_run(struct vfio_vm *vm)
{
	if (ioctl(vm->vcpu_fd, KVM_RUN, NULL))
		return -errno;

	return vm->run->exit_reason == KVM_EXIT_HLT ? 0 : vm->run->exit_reason;
}

u32 vfio_vm_value(struct vfio_vm *vm)
{
	struct kvm_regs regs;

	ioctl_assert(vm->vcpu_fd, KVM_GET_REGS, &regs);
	return regs.rax;
}
#else
int vfio_vm_open_kvm(void)
{
	return -1;
}

struct vfio_vm *vfio_vm_init(int kvm_fd)
{
	return NULL;
}

void vfio_vm_set_slot(struct vfio_vm *vm, u32 slot, u32 flags, void *vaddr,
		      size_t size)
{
}

void vfio_vm_get_dirty_log(struct vfio_vm *vm, u32 slot, u64 *bitmap)
{
}

void vfio_vm_start(struct vfio_vm *vm, u32 slot, bool write, u32 value)
{
}

int vfio_vm_run(struct vfio_vm *vm)
{
	return -ENOTTY;
}

u32 vfio_vm_value(struct vfio_vm *vm)
{
	return 0;
}
#endif

void vfio_vm_stop(struct vfio_vm *vm)
{
	WRITE_ONCE(vm->page->stop, 1);
}

int job_vm_run(void *arg, int fd)
{
	return vfio_vm_run(arg);
}

int vfio_vm_read32(struct vfio_vm *vm, u32 slot, u32 *val)
{
	int ret;

	vfio_vm_start(vm, slot, false, 0);
	vfio_vm_stop(vm);
	ret = vfio_vm_run(vm);
	if (!ret)
		*val = vfio_vm_value(vm);
	return ret;
}

int vfio_vm_write32(struct vfio_vm *vm, u32 slot, u32 val)
{
	vfio_vm_start(vm, slot, true, val - 1);
	vfio_vm_stop(vm);
	return vfio_vm_run(vm);
}
