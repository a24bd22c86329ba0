// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <unistd.h>

#include <sys/resource.h>

#include <linux/compiler.h>
#include <linux/types.h>

#include "../../../kselftest.h"
#include <libvfio.h>

/* Where the handler jumps to; NULL outside of a guarded access */
static __thread sigjmp_buf *guard;

static void guard_handler(int sig)
{
	sigjmp_buf *env = READ_ONCE(guard);

	if (env)
		siglongjmp(*env, sig);

	/* The access is repeated on return, and now kills the process. */
	signal(sig, SIG_DFL);
}

/*
 * Before there are threads, as fork() does not copy memory and handlers at the
 * same time: a child might miss handlers that another thread installs.
 */
static __attribute__((constructor)) void guard_install(void)
{
	/*
	 * With SA_NODEFER the signal mask stays the same, and sigsetjmp() needs
	 * no system call to save it: race tests use these accessors.
	 */
	struct sigaction action = {
		.sa_handler = guard_handler,
		.sa_flags = SA_NODEFER,
	};

	VFIO_ASSERT_EQ(sigaction(SIGBUS, &action, NULL), 0);
	VFIO_ASSERT_EQ(sigaction(SIGSEGV, &action, NULL), 0);
}

/* A macro, as the function that calls sigsetjmp() must not return before. */
#define guarded(_access) ({				\
	sigjmp_buf __env;				\
	int __sig;					\
							\
	__sig = sigsetjmp(__env, 0);			\
	if (!__sig) {					\
		WRITE_ONCE(guard, &__env);		\
		_access;				\
	}						\
	WRITE_ONCE(guard, NULL);			\
	__sig;						\
})

int try_read32(const void *addr, u32 *val)
{
	return guarded(*val = READ_ONCE(*(const u32 *)addr));
}

int try_write32(void *addr, u32 val)
{
	return guarded(WRITE_ONCE(*(u32 *)addr, val));
}

int try_touch(const void *addr)
{
	u32 val;

	return try_read32(addr, &val);
}

int try_touch_pages(const void *addr, size_t size)
{
	size_t step = getpagesize(), offset;
	int first = try_touch(addr);

	for (offset = step; offset < size; offset += step) {
		if (try_touch(addr + offset) != first)
			return -1;
	}

	return first;
}

void mmio_fill(void *vaddr, u8 byte, size_t size)
{
	size_t i;

	for (i = 0; i < size; i++)
		WRITE_ONCE(((u8 *)vaddr)[i], byte);
}

bool mmio_equals(const void *vaddr, const void *data, size_t size)
{
	size_t i;

	for (i = 0; i < size; i++) {
		if (READ_ONCE(((const u8 *)vaddr)[i]) != ((const u8 *)data)[i])
			return false;
	}
	return true;
}

u64 nr_page_faults(void)
{
	struct rusage usage;

	VFIO_ASSERT_EQ(getrusage(RUSAGE_THREAD, &usage), 0);
	return usage.ru_minflt + usage.ru_majflt;
}

u64 faults_to_touch(const void *vaddr, size_t size, size_t step)
{
	size_t offset = 0;
	u64 faults;

	/* Do not count faults of the stack and of this function. */
	VFIO_ASSERT_EQ(try_touch(&offset), 0);
	faults = nr_page_faults();
	for (offset = 0; offset < size; offset += step)
		VFIO_ASSERT_EQ(try_touch(vaddr + offset), 0);

	return nr_page_faults() - faults;
}
