/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_GUARDED_H
#define SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_GUARDED_H

#include <stddef.h>
#include <linux/types.h>

#include "kselftest.h"

/*
 * Accesses that may be answered by a signal. Each returns 0 when the access was
 * done, or the number of the signal (SIGBUS or SIGSEGV) that it raised.
 *
 * They may be used from any thread. A SIGBUS or SIGSEGV that does not come from
 * one of them kills the process, as if no handler was there.
 */
int try_read32(const void *addr, u32 *val);
int try_write32(void *addr, u32 val);

/* As above, without interest in the value. */
int try_touch(const void *addr);

/*
 * Touch the first word of each page of [addr, addr + size). Returns 0 or a
 * signal number if that was the answer of every page, -1 if the answers differ.
 */
int try_touch_pages(const void *addr, size_t size);

/* Number of page faults that the calling thread has taken so far. */
u64 nr_page_faults(void);

/*
 * Touch a word every @step bytes of [vaddr, vaddr + size), which has to work.
 * Returns the number of faults that this takes.
 */
u64 faults_to_touch(const void *vaddr, size_t size, size_t step);

#endif /* SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_GUARDED_H */
