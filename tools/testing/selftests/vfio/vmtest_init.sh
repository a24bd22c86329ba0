#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=dash
#
# PID 1 of the guest that vmtest.sh boots. The serial ports are separate channels:
#   ttyS0  the kernel's console, and nothing of ours but marks in the kernel log
#   ttyS1  the verdict, written once, when everything else is over
#   ttyS2  what the programs print
# vmtest.sh leaves the work in /vmtest: "mode", "tests", "run", "timeout"
# and "setenv".

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
	[ ! -d /sys/kernel/tracing ] || mount -t tracefs none /sys/kernel/tracing
	ln -s /proc/self/fd /dev/fd
}

# With a dead verdict channel vmtest.sh reports "no verdict", as it should.
verdict() {
	sync
	stty -F /dev/ttyS2 -opost	# sets it when the output has drained
	echo "$*" > /dev/ttyS1
	poweroff -f
}

device_name() {
	case $1 in
	0x1234:0x11e8) echo edu ;;
	0x1234:0x1111) echo bochs ;;
	0x1af4:0x1110) echo ivshmem ;;
	0x1b36:0x0010) echo nvme ;;
	0x1af4:0x1041) echo virtio ;;
	esac
}

# The first edu is $VFIO_EDU_BDF, the second one $VFIO_EDU2_BDF, and so on.
export_bdf() {
	local var n=1

	var=VFIO_$(echo "$1" | tr '[:lower:]' '[:upper:]')
	while eval "[ \"\${$var$([ $n -eq 1 ] || echo $n)_BDF-}\" ]"; do
		n=$((n + 1))
	done
	[ $n -eq 1 ] || var=$var$n
	export "${var}_BDF=$2"
	echo "${var}_BDF=$2" >> /vmtest/env
}

bind_devices() {
	local dev bdf name

	for dev in "$DEVICES"/*; do
		bdf=${dev##*/}
		name=$(device_name "$(cat "$dev/vendor"):$(cat "$dev/device")")
		[ "$name" ] || continue
		[ ! -e "$dev/driver" ] || echo "$bdf" > "$dev/driver/unbind"
		echo vfio-pci > "$dev/driver_override"
		echo "$bdf" > /sys/bus/pci/drivers/vfio-pci/bind
		[ "$(readlink "$dev/driver")" ] ||
			verdict "setup cannot bind $name at $bdf to vfio-pci"
		export_bdf "$name" "$bdf"
	done
	[ "${VFIO_EDU_BDF-}" ] && export VFIO_SELFTESTS_BDF="$VFIO_EDU_BDF"

	# Reads of any BAR of these devices have no side effects, and two are memory
	export VFIO_SELFTESTS_READ_BARS=1
	export VFIO_SELFTESTS_MEMORY_BAR="${VFIO_IVSHMEM_BDF-}:2 ${VFIO_BOCHS_BDF-}:0"
}

# Programs get /vmtest/timeout seconds; one that needs SIGKILL has hung, and may
# leave children that keep the device.
run_program() {
	local rc

	timeout -s KILL "$(cat /vmtest/timeout)" "$@" < /dev/null 2>&1
	rc=$?
	[ $rc -ne 137 ] || { kill -KILL -1; sleep 1; }
	return $rc
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

run_kunit() {
	local suite

	for suite in /sys/kernel/debug/kunit/*; do
		[ -d "$suite" ] || continue
		begin kunit "${suite##*/}"
		cat "$suite/results"
		end 0
	done
}

run_tests() {
	local n=0 prog dev bdf

	set -- /sys/kernel/debug/kunit/*/
	[ -d "$1" ] || shift
	printf '#vmtest# plan %s\n' $(($# + $(wc -l < /vmtest/tests)))
	run_kunit
	while read -r prog dev; do
		bdf=$VFIO_SELFTESTS_BDF
		[ "$dev" = all ] ||
			eval "bdf=\${VFIO_$(echo "$dev" | tr '[:lower:]' '[:upper:]')_BDF-}"
		begin "$prog" "$dev"
		VFIO_SELFTESTS_BDF=$bdf run_program "/tests/$prog"
		end $?
	done < /vmtest/tests
	printf '\n#vmtest# done %s\n' "$n"
	result="done $n"
}

run_one() {
	sh /vmtest/run < /dev/null 2>&1
	result="exit $?"
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
# What the boot left is not what the tests leaked
[ ! -e /sys/kernel/debug/kmemleak ] || echo clear > /sys/kernel/debug/kmemleak
case $mode in
tests) run_tests > /dev/ttyS2 ;;
exec) run_one > /dev/ttyS2 ;;
shell) run_shell > /dev/ttyS2 ;;
esac
verdict "$result $(lockdep) $(leaks)"
