// SPDX-License-Identifier: GPL-2.0-only
/*
 * What an operator sees of DMABUFs: fdinfo and trace events. The latter need
 * CONFIG_VFIO_PCI_DMABUF_TEST and a kernel with trace events.
 */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <sys/stat.h>

#include <linux/pci_regs.h>
#include <linux/vfio.h>

#include <libvfio/dmabuf_test.h>

#include "kselftest_harness.h"

FIXTURE(dmabuf_fdinfo) {
	DMABUF_FIXTURE;
};

FIXTURE_SETUP(dmabuf_fdinfo)
{
	DMABUF_SETUP(self, false, 4 * page_size);
}

FIXTURE_TEARDOWN(dmabuf_fdinfo)
{
}

#define ASSERT_STATE(_fd, _state) \
	ASSERT_TRUE(vfio_pci_dmabuf_fdinfo_has((_fd), "state", (_state)))

/* Ranges are those of the region, merged. */
TEST_F(dmabuf_fdinfo, keys)
{
	struct vfio_region_dma_range ranges[] = {
		{ .offset = page_size, .length = page_size },
		{ .offset = 2 * page_size, .length = page_size },
		{ .offset = 0, .length = page_size },
	};
	int fd = vfio_pci_dmabuf_export(self->device, self->bar, ranges, 3);
	char expected[512];

	snprintf(expected, sizeof(expected),
		 "device:\t%s\nstate:\tusable\nimporters:\t0\n"
		 "memory-type:\tuncached\nregion:\t%d\nranges:\t2\n"
		 "range:\t0x%zx+0x%zx\nrange:\t0x0+0x%zx\n", device_bdf,
		 self->bar, page_size, 2 * page_size, page_size);
	ASSERT_STREQ(expected, vfio_pci_dmabuf_fdinfo(fd));
}

TEST_F(dmabuf_fdinfo, memory_type)
{
	int fd = __vfio_pci_dmabuf_export_range(self->device, self->bar, O_RDWR,
						VFIO_DEVICE_FEATURE_DMA_BUF_ATTR_WC,
						0, page_size);

	if (fd == -EOPNOTSUPP)
		SKIP(return, "No write-combining of this BAR");
	ASSERT_LE(0, fd);
	ASSERT_TRUE(vfio_pci_dmabuf_fdinfo_has(fd, "memory-type",
					       "write-combining"));
}

TEST_F(dmabuf_fdinfo, state)
{
	int revoked = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						   page_size);
	int fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
					      page_size);

	vfio_pci_cmd_clear(self->device, PCI_COMMAND_MEMORY);
	ASSERT_STATE(fd, "temporarily revoked");
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	ASSERT_STATE(fd, "usable");
	vfio_pci_dmabuf_revoke(self->device, revoked);
	ASSERT_STATE(revoked, "revoked");
	ASSERT_STATE(fd, "usable");

	dmabuf_test_close(&self->device);
	ASSERT_STATE(fd, "device closed");
	ASSERT_STATE(revoked, "device closed");
	ASSERT_FALSE(vfio_pci_dmabuf_fdinfo_has(fd, "device", device_bdf));
}

/* Trace events, in an instance of their own, which does not outlive the test */
#define INSTANCE "/sys/kernel/tracing/instances/vfio_pci_dmabuf_test"

FIXTURE(dmabuf_trace) {
	DMABUF_FIXTURE;
	int importer;
	struct importer_guard *guard;
	int fd;
};

FIXTURE_SETUP(dmabuf_trace)
{
	self->importer = importer_open();
	if (self->importer < 0)
		SKIP(return, "No test importer");
	self->guard = importer_guard_start(self->importer);
	DMABUF_SETUP(self, true, page_size);
	if (mkdir(INSTANCE, 0700) && errno != EEXIST)
		SKIP(return, "No trace events");

	ASSERT_EQ(0, write_file(INSTANCE "/events/vfio_pci/enable", 0, "1"));
	self->fd = vfio_pci_dmabuf_export_range(self->device, self->bar, 0,
						page_size);
	importer_attach(self->importer, self->device, self->fd, 0);
	ASSERT_EQ(0, importer_do(self->importer, VFIO_PCI_DMABUF_TEST_MAP));
}

FIXTURE_TEARDOWN_PARENT(dmabuf_trace)
{
	rmdir(INSTANCE);
}

/* What the trace says of @event, behind the name of the device, or NULL */
static const char *trace_of(const char *event, u64 ino)
{
	static char line[512];
	FILE *file = fopen(INSTANCE "/trace", "r");
	char start[128];
	char *found = NULL;

	VFIO_ASSERT_NOT_NULL(file);
	snprintf(start, sizeof(start), "vfio_pci_dma_buf_%s: %s: ino=%lu", event,
		 device_bdf, ino);
	while (!found && fgets(line, sizeof(line), file)) {
		found = strstr(line, start);
		if (found)
			found += strlen(start);
		/* Or it is only the beginning of another number */
		if (found && !isspace(*found))
			found = NULL;
	}
	VFIO_ASSERT_EQ(fclose(file), 0);

	return found;
}

/* How long it took, if it succeeded; otherwise 0 */
static u64 trace_ns(const char *event, u64 ino)
{
	const char *found = trace_of(event, ino);
	unsigned long long ns;
	int ret;

	if (!found || sscanf(found, " ns=%llu ret=%d", &ns, &ret) != 2 || ret)
		return 0;
	return ns;
}

/* What an operator sees of a revoke that waits, and of its end */
TEST_F(dmabuf_trace, revoke)
{
	struct stat st;
	struct job job;

	ASSERT_EQ(0, fstat(self->fd, &st));
	job_start(&job, job_revoke, self->device, self->fd);
	EXPECT_TRUE(vfio_pci_dmabuf_reaches_state(self->fd,
						  "revoked, waiting for importers",
						  JOB_ENDS_MS));
	EXPECT_TRUE(job_waits(&job));
	EXPECT_STREQ(" maps=1\n", trace_of("drain_begin", st.st_ino) ?: "");
	EXPECT_EQ(NULL, trace_of("drain_end", st.st_ino));
	EXPECT_EQ(NULL, trace_of("revoke", st.st_ino));

	importer_do(self->importer, VFIO_PCI_DMABUF_TEST_UNMAP);
	importer_guard_stop(self->guard);
	ASSERT_EQ(0, job_result(&job));

	/* It had begun to wait before job_waits() did. */
	ASSERT_LE(JOB_WAITS_MS * 1000000UL, trace_ns("drain_end", st.st_ino));
	ASSERT_LE(trace_ns("drain_end", st.st_ino),
		  trace_ns("revoke", st.st_ino));
}

int main(int argc, char *argv[])
{
	dmabuf_test_init(&argc, argv);
	return test_harness_run(argc, argv);
}
