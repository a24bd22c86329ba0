# SPDX-License-Identifier: GPL-2.0
# In the guest: find the device, give it to vfio-pci and run the example.
set -e
cd /sys/bus/pci/devices
for bdf in *; do
	[ "$(cat "$bdf/vendor"):$(cat "$bdf/device")" != 0x1af4:0x1042 ] || break
done
echo vfio-pci > "$bdf/driver_override"
echo "$bdf" > /sys/bus/pci/drivers_probe
exec /exec/virtio-blk "/dev/vfio/devices/$(ls "$bdf/vfio-dev")"
