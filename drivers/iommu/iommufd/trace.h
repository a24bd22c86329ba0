/* SPDX-License-Identifier: GPL-2.0-only */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM iommufd

#if !defined(_TRACE_IOMMUFD_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_IOMMUFD_H

#include <linux/dma-buf.h>
#include <linux/tracepoint.h>

/*
 * The exporter has restored access to an imported DMABUF. If ret is not 0 the
 * areas stay empty. The inode number is that in /proc/PID/maps and
 * /proc/PID/fdinfo.
 */
TRACE_EVENT(iommufd_dmabuf_restore,
	TP_PROTO(struct dma_buf *dmabuf, unsigned long start,
		 unsigned long npages, int ret),
	TP_ARGS(dmabuf, start, npages, ret),

	TP_STRUCT__entry(
		__field(u64, ino)
		__field(unsigned long, start)
		__field(unsigned long, npages)
		__field(int, ret)
	),

	TP_fast_assign(
		__entry->ino = file_inode(dmabuf->file)->i_ino;
		__entry->start = start;
		__entry->npages = npages;
		__entry->ret = ret;
	),

	TP_printk("ino=%llu start=0x%lx npages=%lu ret=%d", __entry->ino,
		  __entry->start, __entry->npages, __entry->ret)
);

#endif /* _TRACE_IOMMUFD_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH ../../drivers/iommu/iommufd
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace

/* This part must be outside protection */
#include <trace/define_trace.h>
