// SPDX-License-Identifier: GPL-2.0-only
/*
 * Debugging of DMABUFs: fdinfo and trace events. The latter need
 * CONFIG_VFIO_PCI_DMABUF_TEST and a kernel with trace events.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <sys/stat.h>

#include <linux/dma-buf.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>

#include "kselftest_harness.h"

#include <libvfio/dmabuf_test.h>

/* An instance for the trace events, which does not outlive the test */
#define INSTANCE "/sys/kernel/tracing/instances/vfio_pci_dmabuf_test"

FIXTURE(dmabuf_observe) {
	DMABUF_FIXTURE;
	int importer;
	struct importer_guard *guard;
	int fd;
};

FIXTURE_SETUP(dmabuf_observe)
{
	self->importer = importer_open();
	if (self->importer >= 0)
		self->guard = importer_guard_start(self->importer);
	DMABUF_SETUP(self, false, 4 * page_size);
	self->fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						page_size);
}

FIXTURE_TEARDOWN_PARENT(dmabuf_observe)
{
	rmdir(INSTANCE);
}

#define ASSERT_FDINFO(_fd, _key, _val) \
	ASSERT_TRUE(vfio_pci_dmabuf_fdinfo_has((_fd), (_key), (_val)))

/* Ranges are those of the region, merged. A buffer name cannot add lines. */
TEST_F(dmabuf_observe, keys)
{
	struct vfio_region_dma_range ranges[] = {
		{ page_size, page_size },
		{ 2 * page_size, page_size },
		{ 0, page_size },
	};
	int fd = vfio_pci_dmabuf_export(self->device, self->bar, ranges, 3);
	char expected[512];

	ioctl_assert(fd, DMA_BUF_SET_NAME, "x\nvfio-pci-state:\trevoked\r\033[\\");
	ASSERT_STREQ("\tx\\012vfio-pci-state:\\011revoked\\015\\033[\\134\n",
		     vfio_pci_dmabuf_fdinfo(fd, "name:"));
	snprintf(expected, sizeof(expected),
		 "device:\t%s\nstate:\tusable\nimporters:\t0\n"
		 "memory-type:\tuncached\nregion:\t%d\nranges:\t2\n"
		 "range:\t0x%zx+0x%zx\nrange:\t0x0+0x%zx\n", device_bdf,
		 self->bar, page_size, 2 * page_size, page_size);
	ASSERT_STREQ(expected, vfio_pci_dmabuf_fdinfo(fd, "vfio-pci-"));
}

TEST_F(dmabuf_observe, state)
{
	int revoked = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						   page_size);

	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	ASSERT_FDINFO(self->fd, "state", "temporarily revoked");
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	ASSERT_FDINFO(self->fd, "state", "usable");
	vfio_pci_dmabuf_revoke(self->device, revoked);
	ASSERT_FDINFO(revoked, "state", "revoked");
	ASSERT_FDINFO(self->fd, "state", "usable");

	dmabuf_test_close(&self->device);
	ASSERT_FDINFO(self->fd, "state", "device closed");
	ASSERT_FDINFO(revoked, "state", "device closed");
	ASSERT_FALSE(vfio_pci_dmabuf_fdinfo_has(self->fd, "device",
						device_bdf));
}

/* The trace line of @event, after the inode number, or "" */
static const char *trace_of(const char *event, int fd)
{
	FILE *file = fopen(INSTANCE "/trace", "r");
	const char *found = NULL;
	static char line[512];
	char start[128];
	struct stat st;

	VFIO_ASSERT_NOT_NULL(file);
	VFIO_ASSERT_EQ(fstat(fd, &st), 0);
	snprintf(start, sizeof(start), "vfio_pci_dma_buf_%s: %s: ino=%lu ",
		 event, device_bdf, st.st_ino);
	while (!found && fgets(line, sizeof(line), file))
		found = strstr(line, start);
	VFIO_ASSERT_EQ(fclose(file), 0);

	return found ? found + strlen(start) : "";
}

/* How long it took, if it succeeded; otherwise 0 */
static u64 trace_ns(const char *event, int fd)
{
	unsigned long long ns;
	int ret;

	if (sscanf(trace_of(event, fd), "ns=%llu ret=%d", &ns, &ret) != 2)
		return 0;
	return ret ? 0 : ns;
}

/* A revoke that waits, and its end */
TEST_F(dmabuf_observe, trace)
{
	static const char waiting[] = "revoked, waiting for importers";
	char importer[64];
	struct job job;
	u64 ns;

	if (!self->guard)
		SKIP(return, "No test importer");
	if (mkdir(INSTANCE, 0700) && errno != EEXIST)
		SKIP(return, "No trace events");
	ASSERT_EQ(0, write_file(INSTANCE "/events/vfio_pci/enable", 0, "1"));

	importer_attach(self->importer, self->device, self->fd, 0);
	ASSERT_EQ(0, importer_do(self->importer, VFIO_PCI_DMABUF_TEST_MAP));
	job_start(&job, job_revoke, self->device, self->fd);
	/* The wait has begun before that of job_waits() does. */
	ASSERT_TRUE(vfio_pci_dmabuf_reaches_state(self->fd, waiting,
						  JOB_ENDS_MS));
	ASSERT_TRUE(job_waits(&job));
	ASSERT_STREQ("maps=1\n", trace_of("drain_begin", self->fd));
	snprintf(importer, sizeof(importer), "importer=vfio-pci %s\n",
		 device_bdf);
	ASSERT_STREQ(importer, trace_of("drain_importer", self->fd));
	ASSERT_STREQ("", trace_of("drain_end", self->fd));
	ASSERT_STREQ("", trace_of("revoke", self->fd));

	importer_release(self->importer);
	importer_guard_stop(self->guard);
	ASSERT_EQ(0, job_result(&job));

	ns = trace_ns("drain_end", self->fd);
	ASSERT_LE(JOB_WAITS_MS * 1000000UL, ns);
	ASSERT_LE(ns, trace_ns("revoke", self->fd));
}

int main(int argc, char *argv[])
{
	dmabuf_test_init(&argc, argv);
	return test_harness_run(argc, argv);
}
