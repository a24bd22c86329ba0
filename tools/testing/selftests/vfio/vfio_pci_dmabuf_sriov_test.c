// SPDX-License-Identifier: GPL-2.0-only
/*
 * DMABUFs of the BARs of SR-IOV virtual functions: each VF is a device with buffers
 * of its own, which last until the VF is closed, whatever becomes of the PF, and
 * hold up nothing when the VF is removed.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <linux/vfio.h>

#include "kselftest_harness.h"

#include <libvfio/dmabuf_test.h>

#define TOKEN	"52ac9bff-3a88-4fbd-901a-0d767c3b6c97"
#define NR_VFS	2

/* A VF, whose first page is exported, and mapped by this process */
struct vf {
	char *bdf;
	struct vfio_pci_device *device;
	int bar;
	int fd;
	void *vaddr;
};

FIXTURE(sriov) {
	struct iommu *iommu;
	struct vfio_pci_device *pf;
	struct vf vfs[NR_VFS];
	/* It has mapped the buffer of the first VF. */
	struct vfio_client *client;
};

static int set_numvfs(const char *nr)
{
	return sysfs_device_write(device_bdf, "sriov_numvfs", nr);
}

/* Without a mapping of a BAR, a VF is open as long as its fd is. */
static void vf_open(struct vf *vf, int i, struct iommu *iommu)
{
	vf->bdf = sysfs_sriov_vf_bdf_get(device_bdf, i);
	vf->device = vfio_pci_device_init_token(vf->bdf, iommu, TOKEN);
	vfio_pci_bar_unmap_all(vf->device);
	vf->bar = vfio_pci_last_bar(vf->device, page_size);
	VFIO_ASSERT_GE(vf->bar, 0);
	vf->fd = vfio_pci_dmabuf_export_range(vf->device, vf->bar, 0,
					      page_size);
	vf->vaddr = mmap_shared(vf->fd, 0, page_size);
	VFIO_ASSERT_EQ(try_touch(vf->vaddr), 0);
}

FIXTURE_SETUP(sriov)
{
	int i;

	/* No BAR of a VF is known to be plain memory */
	if (!getenv_u32("VFIO_SELFTESTS_READ_BARS", 0))
		SKIP(return, "VFIO_SELFTESTS_READ_BARS is not set");

	self->client = vfio_client_start();
	self->iommu = iommu_init(default_iommu_mode);
	self->pf = vfio_pci_device_init_token(device_bdf, self->iommu, TOKEN);
	if (!vfio_pci_dmabuf_supported(self->pf))
		SKIP(return, "No DMABUF export");

	ASSERT_EQ(0, set_numvfs("2"));
	for (i = 0; i < NR_VFS; i++)
		vf_open(&self->vfs[i], i, self->iommu);
	vfio_client_mmap(self->client, self->vfs[0].fd, 0, page_size);
	ASSERT_EQ(0, vfio_client_read32(self->client, 0, NULL));
}

/* The process of the test, which had them open, is gone. */
FIXTURE_TEARDOWN_PARENT(sriov)
{
	ASSERT_EQ(0, set_numvfs("0"));
}

#define ASSERT_VFS(_sig0, _sig1) do {						\
	ASSERT_EQ((_sig0), try_touch(self->vfs[0].vaddr));			\
	ASSERT_EQ((_sig0), vfio_client_read32(self->client, 0, NULL));		\
	ASSERT_EQ((_sig1), try_touch(self->vfs[1].vaddr));			\
} while (0)

/* By the fd of the VF, and no other */
TEST_F(sriov, revoke)
{
	struct vf *vf = &self->vfs[0];

	ASSERT_EQ(-ENODEV, __vfio_pci_dmabuf_revoke(self->pf, vf->fd));
	ASSERT_EQ(-ENODEV, __vfio_pci_dmabuf_revoke(self->vfs[1].device,
						    vf->fd));
	ASSERT_VFS(0, 0);

	vfio_pci_dmabuf_revoke(vf->device, vf->fd);
	ASSERT_VFS(SIGBUS, 0);

	/* The same page once more */
	vf->fd = vfio_pci_dmabuf_export_range(vf->device, vf->bar, 0,
					      page_size);
	vfio_client_mmap(self->client, vf->fd, 0, page_size);
	ASSERT_EQ(0, vfio_client_read32(self->client, 0, NULL));
	ASSERT_EQ(SIGBUS, try_touch(vf->vaddr));
}

/* A reset of one VF revokes the mappings of that one, for its time. */
TEST_F(sriov, reset)
{
	int i;

	for (i = 0; i < 2; i++) {
		if (i)
			vfio_pci_pcie_flr(self->vfs[0].device);
		else
			vfio_pci_device_reset(self->vfs[0].device);
		ASSERT_EQ(1, faults_to_touch(self->vfs[0].vaddr, 4, 4));
		ASSERT_EQ(0, faults_to_touch(self->vfs[1].vaddr, 4, 4));
		ASSERT_VFS(0, 0);
	}
}

/*
 * The PF can be closed. Opening it needs the token as long as a VF is open, and
 * neither revokes a buffer of a VF. It may reset the VFs, so what is read is not
 * compared.
 */
TEST_F(sriov, pf_closed)
{
	int fd;

	vfio_pci_device_cleanup(self->pf);
	ASSERT_VFS(0, 0);

	self->pf = vfio_pci_device_alloc(device_bdf, self->iommu);
	vfio_pci_cdev_open(self->pf, device_bdf);
	ASSERT_EQ(-EACCES, __vfio_device_bind_iommufd(self->pf->fd,
						      self->iommu->iommufd,
						      NULL));
	close_assert(self->pf->fd);
	vfio_pci_device_free(self->pf);
	ASSERT_VFS(0, 0);

	self->pf = vfio_pci_device_init_token(device_bdf, self->iommu, TOKEN);
	ASSERT_VFS(0, 0);

	/* Without VFs in use the PF needs no token, and the buffers are dead. */
	fd = self->vfs[0].fd;
	vfio_pci_device_cleanup(self->pf);
	vfio_pci_device_cleanup(self->vfs[0].device);
	ASSERT_VFS(SIGBUS, 0);
	vfio_pci_device_cleanup(self->vfs[1].device);
	ASSERT_VFS(SIGBUS, SIGBUS);
	self->pf = vfio_pci_device_init(device_bdf, self->iommu);
	ASSERT_EQ(-ENODEV, __vfio_pci_dmabuf_revoke(self->pf, fd));
}

/* A process of its own, which has no VF open, and which the kernel may hold up */
static int remove_vfs(void *arg, int fd)
{
	pid_t pid = fork_child(-1);

	if (!pid)
		_exit(-set_numvfs("0"));
	return wait_child(pid);
}

/*
 * Open VFs hold up their removal. Their buffers, open in other processes, do
 * not. The VF of the same address that comes next has nothing to do with them.
 */
TEST_F(sriov, removed)
{
	struct vf *vf = self->vfs, old = vf[0];
	struct pollfd request[NR_VFS];
	struct job job;
	void *again;
	int i;

	for (i = 0; i < NR_VFS; i++) {
		request[i].fd = vfio_pci_request_eventfd(vf[i].device);
		request[i].events = POLLIN;
	}
	job_start(&job, remove_vfs, NULL, -1);
	for (i = 0; i < NR_VFS; i++) {
		/* The kernel, in the removal, asks for this VF. */
		ASSERT_EQ(1, poll(&request[i], 1, JOB_ENDS_MS));
		ASSERT_TRUE(job_waits(&job));
		ASSERT_VFS(i ? SIGBUS : 0, 0);
		vfio_pci_device_cleanup(vf[i].device);
	}
	ASSERT_TRUE(job_ends(&job, JOB_ENDS_MS));
	ASSERT_EQ(0, job_result(&job));
	ASSERT_VFS(SIGBUS, SIGBUS);
	ASSERT_EQ(-ENODEV, __mmap_shared(old.fd, 0, page_size, PROT_READ,
					 &again));

	ASSERT_EQ(0, set_numvfs("2"));
	vf_open(&vf[0], 0, self->iommu);
	ASSERT_EQ(SIGBUS, try_touch(old.vaddr));
	ASSERT_EQ(-ENODEV, __vfio_pci_dmabuf_revoke(vf[0].device, old.fd));
	vfio_pci_dmabuf_revoke(vf[0].device, vf[0].fd);
}

int main(int argc, char *argv[])
{
	dmabuf_test_init(&argc, argv);
	if (sysfs_sriov_totalvfs_get(device_bdf) < NR_VFS)
		ksft_exit_skip("No device with %d virtual functions\n", NR_VFS);
	if (set_numvfs("2") || set_numvfs("0"))
		ksft_exit_skip("No virtual functions by this driver\n");
	return test_harness_run(argc, argv);
}
