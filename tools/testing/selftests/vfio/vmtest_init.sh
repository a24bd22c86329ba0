#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=dash
#
# PID 1 of the guest that vmtest.sh boots, with its orders in /vmtest. The serial
# ports are separate channels:
#   ttyS0  the kernel's console, and nothing of ours but marks in the kernel log
#   ttyS1  the verdict, written once, when everything else is over
#   ttyS2  what the programs print

export PATH=/bin HOME=/ TERM=linux
DEVICES=/sys/bus/pci/devices

mount_all() {
	/bin/busybox mount -t proc none /proc
	/bin/busybox --install -s /bin
	mount -t sysfs none /sys
	mount -t devtmpfs none /dev
	mkdir -p /dev/shm /dev/hugepages /tmp
	mount -t tmpfs none /dev/shm
	mount -t tmpfs none /tmp
	mount -t hugetlbfs none /dev/hugepages
	mount -t debugfs none /sys/kernel/debug
	[ ! -d /sys/fs/cgroup ] || mount -t cgroup2 none /sys/fs/cgroup
	[ ! -d /sys/kernel/tracing ] || mount -t tracefs none /sys/kernel/tracing
	ifconfig lo up
	ln -s /proc/self/fd /dev/fd
	ln -s /proc/self/fd/1 /dev/stdout	# run_kselftest.sh appends to it
}

# With a dead verdict channel vmtest.sh reports "no verdict", as it should.
verdict() {
	sync
	stty -F /dev/ttyS2 -opost	# sets it when the output has drained
	echo "$*" > /dev/ttyS1
	# After a sleep QEMU 7.2 does not power off, and on reboot it ends as well
	[ -z "$VFIO_SELFTESTS_SLEEP" ] || reboot -f
	poweroff -f
}

# The first edu is $VFIO_EDU_BDF, the second one $VFIO_EDU2_BDF, and so on.
export_bdf() {
	local var=VFIO_$1_BDF n=1

	while eval "[ \"\${$var-}\" ]"; do
		n=$((n + 1))
		var=VFIO_$1${n}_BDF
	done
	export "$var=$2"
	echo "$var=$2" >> /vmtest/env
}

bind_devices() {
	local dev bdf name

	echo 1 > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode
	echo 1 > /sys/module/vfio_pci/parameters/enable_sriov
	for dev in "$DEVICES"/*; do
		bdf=${dev##*/}
		case $(cat "$dev/vendor"):$(cat "$dev/device") in
		0x1234:0x11e8) name=EDU ;;
		0x1234:0x1111) name=BOCHS ;;
		0x1af4:0x1110) name=IVSHMEM ;;
		0x1b36:0x0010) name=NVME ;;
		0x1af4:0x1041) name=VIRTIO ;;
		0x1b36:0x0005) name=TESTDEV ;;
		*) continue ;;
		esac
		[ ! -e "$dev/sriov_totalvfs" ] || name=SRIOV
		# VFIO will make a group for it
		[ -e "$dev/iommu_group" ] || name=NOIOMMU
		# Waits for a probe; no other driver can bind after that
		echo vfio-pci > "$dev/driver_override"
		[ ! -e "$dev/driver" ] || echo "$bdf" > "$dev/driver/unbind"
		echo "$bdf" > /sys/bus/pci/drivers/vfio-pci/bind
		[ -e "$dev/driver" ] ||
			verdict "setup cannot bind $name at $bdf to vfio-pci"
		export_bdf "$name" "$bdf"
	done
	[ "${VFIO_EDU_BDF-}" ] && export VFIO_SELFTESTS_BDF="$VFIO_EDU_BDF"

	# Reads of any BAR of these devices have no side effects, and some are memory
	export VFIO_SELFTESTS_READ_BARS=1
	export VFIO_SELFTESTS_MEMORY_BAR="${VFIO_IVSHMEM_BDF-}:2 ${VFIO_BOCHS_BDF-}:0
		${VFIO_NOIOMMU_BDF-}:0"
}

begin() {
	n=$((n + 1))
	echo "vmtest: begin $n $*" > /dev/kmsg
	printf '\n#vmtest# begin %s %s\n' "$n" "$*"
}

end() {
	printf '\n#vmtest# end %s %s\n' "$n" "$1"
	echo "vmtest: end $n $1" > /dev/kmsg
}

# A program has /vmtest/timeout seconds. One that needs SIGKILL has hung, and may
# leave children that keep the device.
run_tests() {
	local n=0 prog dev bdf mode rc suite

	set -- /sys/kernel/debug/kunit/*/results
	[ -e "$1" ] || shift
	printf '#vmtest# plan %s\n' $(($# + $(wc -l < /vmtest/tests)))
	for suite; do
		begin kunit "$(basename "${suite%/*}")"
		cat "$suite"
		end 0
	done
	while read -r prog dev; do
		begin "$prog" "$dev"
		mode=${dev#*:}
		[ "$mode" != "$dev" ] || mode=
		dev=${dev%%:*}
		bdf=$VFIO_SELFTESTS_BDF
		[ "$dev" = all ] ||
			eval "bdf=\${VFIO_$(echo "$dev" | tr '[:lower:]' '[:upper:]')_BDF-}"
		if [ -z "$bdf" ]; then
			echo "1..0 # SKIP No such device"
			end 4
			continue
		fi
		VFIO_SELFTESTS_BDF=$bdf VFIO_SELFTESTS_IOMMU_MODE=$mode \
			timeout -s KILL "$(cat /vmtest/timeout)" \
			"/tests/$prog" < /dev/null 2>&1
		rc=$?
		[ $rc -ne 137 ] || { kill -KILL -1; sleep 1; }
		end $rc
	done < /vmtest/tests
	printf '\n#vmtest# done %s\n' "$n"
	result="done $n"
}

run_shell() {
	echo "Devices bound to vfio-pci:"
	cat /vmtest/env
	echo "Programs are in /tests and /exec; \"exit\" ends the guest."
	setsid -c sh < /dev/ttyS2 2>&1
	result="exit $?"
}

# kmemleak reports what two scans in a row found unreferenced.
leaks() {
	local file=/sys/kernel/debug/kmemleak

	[ -e $file ] || { echo leaks none; return; }
	echo scan > $file
	sleep 6
	echo scan > $file
	cat $file > /dev/ttyS2
	echo leaks "$(grep -c '^unreferenced object' $file)"
}

lockdep() {
	[ -e /proc/lockdep_stats ] || { echo lockdep none; return; }
	echo lockdep "$(awk '/debug_locks:/ { print $2 }' /proc/lockdep_stats)"
}

mount_all
stty -F /dev/ttyS1 -opost -echo
mode=$(cat /vmtest/mode)
[ "$mode" = shell ] || stty -F /dev/ttyS2 -opost -echo
bind_devices
# shellcheck disable=SC1091 # made by vmtest.sh
. /vmtest/setenv
# Leaks of the boot are not those of the tests
[ ! -e /sys/kernel/debug/kmemleak ] || echo clear > /sys/kernel/debug/kmemleak
case $mode in
tests) run_tests > /dev/ttyS2 ;;
exec)
	sh /vmtest/run < /dev/null > /dev/ttyS2 2>&1
	result="exit $?" ;;
shell) run_shell > /dev/ttyS2 ;;
esac
verdict "$result $(lockdep) $(leaks)"
