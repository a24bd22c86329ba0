#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=dash
# usage: guest.sh ROW...
# In the guest of vmtest.sh: run each ROW, a program of the root image on devices that are
# bound to vfio-pci. Prints "ok - ROW: what was seen" or "not ok - ROW: why".

root=/tmp/root
log=/tmp/log
why=
first=
seconds=${CLIENTS_SECONDS:-20}
number=0

mount_root() {
	mkdir -p $root
	mount -t squashfs -o ro /dev/vda $root || return
	for dir in proc sys dev; do
		mount --rbind /$dir $root/$dir || return
	done
	mount --bind /exec $root/home &&
		mount -t tmpfs none $root/run && mount -t tmpfs none $root/tmp
}

# in_root SECONDS COMMAND...: with a limit, after which all of it is killed
in_root() {
	limit=$1
	shift
	timeout -s KILL "$limit" env -i PATH=/bin:/usr/bin RUNTIME_DIRECTORY=/run chroot $root "$@"
}

bind_e1000e() {
	for dev in /sys/bus/pci/devices/*; do
		[ "$(cat "$dev/vendor") $(cat "$dev/device")" = "0x8086 0x10d3" ] || continue
		echo vfio-pci > "$dev/driver_override"
		echo "${dev##*/}" > /sys/bus/pci/drivers/vfio-pci/bind
		echo "${dev##*/}"
	done
}

# What each port has sent, by the last report
sent() {
	awk '/Forward statistics for port/ { port = $6 }
	     /Accumulated/ { port = "" }
	     /TX-packets/ && port != "" { sent[port] = $2 }
	     END { print sent[0] + 0, sent[1] + 0 }' $log
}

enough() {
	# shellcheck disable=SC2046 # two numbers
	set -- $(sent)
	[ "$1" -gt 100000 ] && [ "$2" -gt 100000 ]
}

# What is typed: on a busy machine it may take longer
orders() {
	tries=20
	echo start
	sleep "$seconds"
	while echo "show fwd stats all"; sleep 5; ! enough && [ $tries -gt 0 ]; do
		tries=$((tries - 1))
		sleep 10
	done
	[ -z "$first" ] || { kill -KILL "$first"; sleep 5; }
	echo stop
	echo quit
}

# What testpmd says on any kernel: when it has not enabled MSI-X, and a second process, which
# finds the statistics of pdump, but no fields for timestamps
harmless='disabling MSI-X|allocate pdump statistics|mbuf dyn shared memory'

# testpmd OPTION...: two devices send. IOVA as VA and type1, as is usual.
testpmd() {
	orders | in_root $((seconds + 500)) dpdk-testpmd -v -l 0-1 --iova-mode=va "$@" \
		-- -i --forward-mode=txonly --burst=128 --total-num-mbufs=8192 > $log 2>&1
	rc=$?
	# What a second process says, in newer versions, and ends
	! grep -q 'Primary process is no longer active' $log || rc=0
	version=$(sed -n "s/^.*RTE Version: 'DPDK \([0-9.]*\).*/\1/p" $log)
	seen="DPDK $version, packets sent: $(sent)"
	if [ "$rc" -ne 0 ]; then
		why="exit status $rc"
	elif errors=$(grep -iE 'error|fail|cannot|unable' $log | grep -vE "$harmless"); then
		why=$(echo "$errors" | head -n 1)
	elif ! grep -q 'Using IOMMU type 1' $log; then
		why="not type1"
	elif ! enough; then
		why=$seen
	else
		why=
	fi
}

# secondary BDF BDF: one process of DPDK sets the devices up. Another one has its group and
# memory from that, maps the BARs itself and sends; the first one is killed meanwhile.
secondary() {
	set -- --file-prefix=pair -a "$1" -a "$2"
	sleep 900 | in_root 900 dpdk-testpmd -l 0-1 --iova-mode=va --proc-type=primary "$@" \
		-- -i --total-num-mbufs=8192 > $log.first 2>&1 &
	tries=100
	until grep -q 'testpmd>' $log.first || [ $tries -eq 0 ]; do
		tries=$((tries - 1))
		sleep 2
	done
	first=$(pidof dpdk-testpmd)
	testpmd --proc-type=secondary "$@"
	first=
	rm -f $log.first /dev/hugepages/pair*
}

# second MODE RUNS QEMU-ARGUMENTS...: a guest of the guest, which resets itself until it
# has run RUNS times. The iommufd of "iommufd=fd" is made if there is one.
second() {
	mode=$1 runs=$2
	shift 2
	in_root 900 qemu-system-x86_64 -accel kvm -cpu kvm64 -machine q35 -m 256 -nodefaults \
		-no-user-config -display none -serial stdio -kernel /home/bzImage \
		-initrd /home/second.cpio -append "console=ttyS0 panic=-1 oops=panic \
		no_timer_check kunit.enable=0 intel_iommu=off nonce=$number mode=$mode" "$@" \
		< /dev/null > $log 2>&1
	rc=$?
	version=$(in_root 60 qemu-system-x86_64 -version | sed -n 's/.*version \([0-9.]*\).*/\1/p')
	if grep -q VFIO_MAP_DMA $log; then
		why=$(grep VFIO_MAP_DMA $log | head -n 1)
	elif grep -q '^second: not ok' $log; then
		why=$(grep '^second: not ok' $log | head -n 1)
	elif [ "$rc" -ne 0 ]; then
		why="exit status $rc: $(tail -n 1 $log)"
	elif [ "$(grep -c '^second: run [0-9]* ok' $log)" -ne "$runs" ]; then
		why="it did not run $runs times"
	elif grep -aqE 'Kernel panic|WARNING:|BUG:' $log; then
		why="splat in the second guest"
	else
		why=
		seen="QEMU $version, $(grep -c '^second: ok' $log) checks in $runs runs"
	fi
}

# handed [OPTION]: the devices for the second guest
handed() {
	for bdf in "$VFIO_EDU_BDF" "$VFIO_IVSHMEM_BDF" "$VFIO_NVME2_BDF"; do
		echo "-device vfio-pci,host=$bdf$1"
	done
}

# shellcheck disable=SC2046 # lists of arguments
run_row() {
	case $1 in
	dpdk-virtio) testpmd --in-memory -a "$VFIO_VIRTIO2_BDF" -a "$VFIO_VIRTIO3_BDF" ;;
	dpdk-secondary) secondary "$VFIO_VIRTIO2_BDF" "$VFIO_VIRTIO3_BDF" ;;
	dpdk-e1000e) testpmd --in-memory $(bind_e1000e | sed 's/^/-a /') ;;
	qemu) second basic 2 $(handed) ;;
	qemu-iommufd) second basic 2 -object iommufd,id=fd $(handed ,iommufd=fd) ;;
	qemu-p2p) second p2p 1 -object iommufd,id=fd $(handed ,iommufd=fd) ;;
	qemu-p2p-flr) second p2p-flr 1 -object iommufd,id=fd $(handed ,iommufd=fd) ;;
	*) why="no such row" ;;
	esac
}

# DPDK takes physical addresses for all devices while there may be one without an IOMMU
echo 0 > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode
mount_root || { echo "cannot mount the root image"; exit 1; }
for row; do
	number=$((number + 1))
	: > $log
	run_row "$row"
	sed 's/^/  /' $log
	if [ -z "$why" ]; then echo "ok - $row: $seen"; else echo "not ok - $row: $why"; fi
done
