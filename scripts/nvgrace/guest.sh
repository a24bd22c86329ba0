# SPDX-License-Identifier: GPL-2.0
# In the guest: give bochs-display to nvgrace-gpu-vfio-pci and run the test.
set -e
dev=/sys/bus/pci/devices/$VFIO_BOCHS_BDF
echo "$VFIO_BOCHS_BDF" > "$dev/driver/unbind"
echo 1 > "$dev/enable"
/exec/nvgrace-test prepare "$dev/resource0"
echo nvgrace_gpu_vfio_pci > "$dev/driver_override"
echo "$VFIO_BOCHS_BDF" > /sys/bus/pci/drivers_probe
exec /exec/nvgrace-test "$VFIO_BOCHS_BDF"
