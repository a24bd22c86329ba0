/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_GUARDED_H
#define SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_GUARDED_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/types.h>

/*
 * Accesses that may raise a signal. Return 0, or the number of the signal, SIGBUS
 * or SIGSEGV. Any thread may use them. A signal that no such access has raised
 * kills the process.
 */
int try_read32(const void *addr, u32 *val);
int try_write32(void *addr, u32 val);
int try_touch(const void *addr);

/* try_touch() each page of [addr, addr + size). Returns -1 if the results differ. */
int try_touch_pages(const void *addr, size_t size);

/*
 * memset() and a test for equality for memory of devices, byte by byte: on
 * arm64 an uncached access must be aligned, and those of memset() and memcmp()
 * may not be.
 */
void mmio_fill(void *vaddr, u8 byte, size_t size);
bool mmio_equals(const void *vaddr, const void *data, size_t size);

/* Number of page faults that the calling thread has taken so far */
u64 nr_page_faults(void);

/* The faults it takes to touch a word every @step bytes; no access may fail. */
u64 faults_to_touch(const void *vaddr, size_t size, size_t step);

#endif /* SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_GUARDED_H */
