#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=dash disable=SC2154 # run() assigns pids
# The demo, in the guest: owners of edu and ivshmem share slices with clients of another
# uid that leave, hang, are stopped or killed. The last line is "demo: PASS" or
# "demo: FAIL: reason".

share=/exec/vfio-pci-share
log=/tmp/log
start=$(cut -d . -f 1 /proc/uptime)

step() {
	echo
	echo "$*"
}

fail() {
	echo "demo: FAIL: $*"
	exit 1
}

# Its lines, with time and name
show() {
	local line now

	while read -r line; do
		read -r now _ < /proc/uptime
		printf '%4d s  %-10s %s\n' $((${now%.*} - start)) "$1" \
			"${line#vfio-pci-share: }" | tee -a "$log"
	done
}

# run NAME COMMAND...: in the background; its pid is in $NAME
run() {
	local name=$1
	shift

	mkfifo "/tmp/$name"
	show "$name" < "/tmp/$name" &
	"$@" > "/tmp/$name" 2>&1 &
	eval "$name=$!"
}

# owner NAME BDF BAR OFFSET LENGTH COUNT MILLISECONDS
owner() {
	run "$1" "$share" owner "/tmp/socket.$1" "$2" "$3" "$4" "$5" "$6" "$7"
	expect "$1" ready
	chmod 666 "/tmp/socket.$1"
}

# client NAME registers|memory OWNER ROUNDS
client() {
	run "$1" su -s /bin/sh client -c "exec $share $2 /tmp/socket.$3 $4"
}

# expect NAME LINE [COUNT]: has it printed the line, so often
expect() {
	local tries=600

	while [ "$(grep -c " $1  *.*$2" "$log" 2> /dev/null)" -lt "${3:-1}" ]; do
		[ $((tries -= 1)) -gt 0 ] || fail "$1 does not print '$2'"
		usleep 100000
	done
}

mkdir -p /etc
echo 'client:x:65534:65534::/:/bin/sh' > /etc/passwd
touch "$log"

step "One owner exports a page of edu's registers, another two slices of ivshmem's memory"
owner edu "$VFIO_EDU_BDF" 0 0 0x1000 1 5000
owner ivshmem "$VFIO_IVSHMEM_BDF" 2 0x10000 0x10000 2 5000

step "Three clients at the same time: Ann uses edu's DMA, Bob and Cem write and read memory"
client Ann registers edu 5
client Bob memory ivshmem 50
client Cem memory ivshmem 50
expect Ann leaves
expect Bob leaves
expect Cem leaves
expect edu "revoked"
expect ivshmem "revoked" 2

step "Hal hangs. He loses the registers to Ida, who has waited for them"
client Hal registers edu -1
expect Hal "works with"
client Ida registers edu 5
expect edu "timed out"
expect Hal "SIGBUS: the slice is revoked"
expect Ida leaves
expect edu "revoked" 3

step "Kai is stopped: the revoke does not wait for the client"
client Kai memory ivshmem -1
expect Kai "works with"
kill -STOP "$Kai"
expect ivshmem "revoked" 3
kill -CONT "$Kai"
expect Kai "SIGBUS: the slice is revoked"

step "Lea is killed in the middle, and Max gets a slice"
client Lea memory ivshmem -1
expect Lea "works with"
kill -KILL "$Lea"
expect ivshmem "revoked" 4
client Max memory ivshmem 50
expect Max leaves

step "The owner of ivshmem is killed: the kernel revokes"
client Uma memory ivshmem -1
client Val memory ivshmem -1
expect Uma "works with"
expect Val "works with"
kill -KILL "$ivshmem"
expect Uma "SIGBUS: the slice is revoked"
expect Val "SIGBUS: the slice is revoked"

kill "$edu"
echo
echo "demo: PASS"
