#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=dash
# In an installed Debian, by systemd: what README says under "Own hardware", and the
# modules unloaded while a client has a DMABUF. A line for each check goes to stdout,
# "end" after the last one.

cd /opt/vfio || exit 1
bdf=$(grep -l 0x1110 /sys/bus/pci/devices/*/device | cut -d/ -f6)
export VFIO_SELFTESTS_MEMORY_BAR="$bdf:2" VFIO_SELFTESTS_READ_BARS=1

check() {
	name=$1
	shift
	if "$@" >&2; then echo "ok - $name"; else echo "not ok - $name"; fi
}

loaded() {
	[ -d "/sys/module/$1" ]
}

unloaded() {
	! loaded "$1"
}

run_test() {
	timeout 900 bash scripts/run.sh "./vfio_pci_dmabuf_$1_test"
}

each_test() {
	for program in uapi mmap revoke access observe memtype import drain race; do
		check "$program test" run_test $program
	done
}

unload() {
	bash scripts/cleanup.sh && modprobe -r vfio_pci_dmabuf_test && modprobe -r vfio_pci
}

load() {
	modprobe -a vfio-pci vfio_pci_dmabuf_test && bash scripts/setup.sh "$bdf"
}

# The client keeps the code of DMABUFs, not the driver
unload_with_client() {
	leftover=$(./leftover "$bdf") && bash scripts/cleanup.sh &&
		modprobe -r vfio_pci_dmabuf_test || return
	modprobe -r vfio_pci	# fails for the core, which the driver needs
	unloaded vfio_pci && loaded vfio_pci_core
}

# On SIGUSR1 it accesses its mapping, and writes what that raised
client_ends() {
	kill -USR1 "$leftover" && sleep 1 && [ "$(cat /run/leftover)" = SIGBUS ]
}

check "the kernel of the package" sh -c 'uname -r | grep vfio-dmabuf'
check "udev has loaded modules" loaded virtio_blk
check "modules are loaded, the device is bound" load
each_test
check "modules are unloaded" unload
check "the core is unloaded" unloaded vfio_pci_core
check "modules are loaded again" load
check "vfio-pci is unloaded while a client has a DMABUF" unload_with_client
check "vfio-pci is loaded again beside the client" load
check "revoke test beside the client" run_test revoke
check "the client gets SIGBUS and ends" client_ends
check "modules are unloaded after the client" unload
check "the core is unloaded after the client" unloaded vfio_pci_core
echo end
