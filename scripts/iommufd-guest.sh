#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# In the guest of "make test ONLY=iommufd": run the test program $1

leaks=/sys/kernel/debug/kmemleak

# 400 MiB for the variants with huge pages
echo 200 > /proc/sys/vm/nr_hugepages
"/exec/$1"
rc=$?
[ "$1" = iommufd_fail_nth ] || exit $rc

# The base leaks dev->iommu of a mock device when the allocation of its fwspec fails.
# If these are the only leaks, do not report them.
echo scan > $leaks
sleep 6
echo scan > $leaks
[ "$(grep -c '^unreferenced object' $leaks)" -ne "$(grep -c ' iommu_fwspec_init+' $leaks)" ] ||
	echo clear > $leaks
exit $rc
