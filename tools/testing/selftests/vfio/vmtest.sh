#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Boot a kernel built from this tree in QEMU, with PCI devices bound to
# vfio-pci behind an IOMMU, and run the VFIO selftests, a program or a shell
# in it. Needs neither root nor hardware nor a disk image.

set -u

test_dir=$(realpath "$(dirname "${BASH_SOURCE[0]}")")

# Exit statuses; 1 is a failed test, and a program's own after --exec
readonly OK=0 USAGE=2 NO_TOOL=4
readonly BUILD_FAILED=70 CONFIG_MISSING=71 NO_VERDICT=72 PANIC=73 SPLAT=74
readonly LOCKDEP=75 LEAK=76 HANG=77 SETUP_FAILED=78

src=$(realpath "$test_dir/../../../..")
build_dir=""
workspace=""
jobs=$(nproc)
smp=2
mem=4G
accel=${ACCEL:-auto}
mode=tests
debug=0
build=1
icount=0
timeout_arg=""
extra_append=""
patterns=()
extra_files=()
environment=()
program=()

usage() {
	cat <<EOT
usage: ${0##*/} [options]			run the selftests
       ${0##*/} [options] --exec PROGRAM [ARGS]	run one program of the host
       ${0##*/} [options] --shell		look around
       ${0##*/} [options] --build		build only
       ${0##*/} [options] --judge		judge the workspace's last run anew
Options:
	-s DIR	kernel tree (default: the one this script is in)
	-d DIR	kernel build folder (default: .vfio_vmtest in the tree)
	-n	take the kernel in the build folder as it is
	-D	debug kernel: config.debug too, default folder .vfio_vmtest_debug
	-w DIR	workspace, for results (default: BUILD_DIR/vmtest)
	-T GLOB	only tests "PROGRAM.DEVICE" that match; may be repeated
	-f FILE	put FILE of the host in the guest's /exec; may be repeated
	-a WHAT	acceleration: auto, tcg or kvm (default: \$ACCEL or auto)
	-j N	jobs for make		-p N	CPUs (default: $smp)
	-m SIZE	memory (default: $mem)	-t SECS	time limit of one program
	-e N=V	set a variable for the programs; may be repeated
	-A ARGS	append to the kernel's command line
	-i	count instructions (TCG, one CPU): guest time is deterministic
	-h	this help
Environment: CC for the kernel (default: gcc, by ccache where that is), EXTRA_QEMU
for more arguments to QEMU, VMTEST_BOOT_LIMIT for the seconds that are not the tests'.
Exit status: 0 all passed, 1 a test failed, 2 usage, 4 a tool is missing,
	70 build failed, 71 config option missing, 72 no verdict, 73 panic,
	74 warning or other splat, 75 lockdep, 76 memory leak, 77 hang or
	timeout, 78 guest set-up failed; with --exec also the program's own.
EOT
}

die() {
	local status=$1
	shift

	echo "vmtest: $*" >&2
	exit "$status"
}

parse_args() {
	local opt

	while getopts 's:d:nDw:T:f:a:j:p:m:t:e:A:ih-:' opt; do
		case $opt in
		s) src=$(realpath "$OPTARG") ;;
		d) build_dir=$OPTARG ;;
		n) build=0 ;;
		D) debug=1 ;;
		w) workspace=$OPTARG ;;
		T) patterns+=("$OPTARG") ;;
		f) extra_files+=("$OPTARG") ;;
		a) accel=$OPTARG ;;
		j) jobs=$OPTARG ;;
		p) smp=$OPTARG ;;
		m) mem=$OPTARG ;;
		t) timeout_arg=$OPTARG ;;
		e) environment+=("$OPTARG") ;;
		A) extra_append=$OPTARG ;;
		i) icount=1 ;;
		h) usage; exit $OK ;;
		-)
			case $OPTARG in
			exec) mode="exec"; break ;;
			shell | build | judge) mode=$OPTARG ;;
			help) usage; exit $OK ;;
			*) usage >&2; exit $USAGE ;;
			esac ;;
		*) usage >&2; exit $USAGE ;;
		esac
	done
	shift $((OPTIND - 1))
	if [ "$mode" = exec ]; then
		[ $# -gt 0 ] || die $USAGE "--exec needs a program"
		program=("$@")
	elif [ $# -gt 0 ]; then
		die $USAGE "unexpected argument: $1"
	fi
}

check_args() {
	local file var

	[ -f "$src/Kbuild" ] || die $USAGE "$src is not a kernel tree"
	[[ $jobs =~ ^[1-9][0-9]*$ ]] || die $USAGE "bad number of jobs: $jobs"
	[[ $smp =~ ^[1-9][0-9]*$ ]] || die $USAGE "bad number of CPUs: $smp"
	[[ $timeout_arg =~ ^[0-9]*$ ]] || die $USAGE "bad limit: $timeout_arg"
	for file in "${program[@]:0:1}" "${extra_files[@]}"; do
		[[ -r $file && -f $file ]] ||
			die $USAGE "cannot read the file $file"
		is_dynamic "$file" &&
			die $USAGE "$file is not static, the guest has no libraries"
	done
	for var in "${environment[@]}"; do
		[[ $var =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] ||
			die $USAGE "no variable and its value: $var"
	done
	case $accel in
	auto | tcg | kvm) ;;
	*) die $USAGE "acceleration is auto, tcg or kvm, not $accel" ;;
	esac
}

# Neither the kernel's build nor the list for gen_init_cpio can quote them
check_paths() {
	local path

	for path in "$src" "$test_dir" "$build_dir" "$workspace" "$busybox" \
		    "${program[@]:0:1}" "${extra_files[@]}"; do
		[[ $(realpath -m "$path") != *[[:space:]]* ]] ||
			die $USAGE "blanks in a path do not work: $path"
	done
}

# Have "$2" to oneself, or with other readers if "$1" is --shared
lock() {
	local fd

	[ -d "$2" ] || return 0
	exec {fd}< "$2"
	flock --nonblock "$1" "$fd" && return
	echo "# waiting for another run in $2" >&2
	flock "$1" "$fd"
}

is_dynamic() {
	LC_ALL=C readelf -l "$1" 2>/dev/null | grep -q INTERP
}

# /dev/kvm alone says little: it may be there on a CPU that cannot virtualise
have_kvm() {
	grep -qwE 'vmx|svm' /proc/cpuinfo && [ -r /dev/kvm ] && [ -w /dev/kvm ]
}

choose_accel() {
	[ "$icount" -eq 0 ] || { accel=tcg; smp=1; }
	if [ "$accel" = auto ]; then
		if have_kvm; then accel=kvm; else accel=tcg; fi
	elif [ "$accel" = kvm ] && ! have_kvm; then
		die $NO_TOOL "KVM is not usable here"
	fi
}

check_tools() {
	local tool tools=(qemu-system-x86_64 busybox readelf flock)

	# Whatever CC is: tools for the host and the tests are made by gcc
	[ $build -eq 0 ] || tools+=(make gcc ${CC:+"${CC%% *}"} flex bison)
	for tool in "${tools[@]}"; do
		command -v "$tool" > /dev/null || die $NO_TOOL "$tool is missing"
	done
	busybox=$(command -v busybox)
	! is_dynamic "$busybox" ||
		die $NO_TOOL "$busybox is not static (Debian: busybox-static)"
}

kmake() {
	local args=(-C "$src" "O=$build_dir" "-j$jobs" ARCH=x86)

	args+=("CC=${CC:-$(command -v ccache > /dev/null && echo ccache) gcc}")
	make "${args[@]}" "$@"
}

fragments() {
	local files=("$test_dir/config" "$test_dir/config.vmtest")

	[ $debug -eq 0 ] || files+=("$test_dir/config.debug")
	cat "${files[@]}"
}

# An option that cannot even be seen counts as not set. A kernel that was built by
# others may have more than the tests need.
check_config() {
	local line opt missing=0

	while read -r line; do
		case $line in
		CONFIG_*)
			grep -qxF "$line" "$1" && continue ;;
		"# CONFIG_"*" is not set")
			[ $build -eq 1 ] || continue
			opt=${line#\# }
			grep -q "^${opt% is not set}=" "$1" || continue ;;
		*)
			continue ;;
		esac
		echo "vmtest: $1: option missing: $line" >&2
		missing=1
	done < <(fragments)
	return $missing
}

build_kernel() {
	mkdir -p "$build_dir" || return
	fragments | grep CONFIG_ > "$build_dir/vmtest.config"
	kmake "KCONFIG_ALLCONFIG=$build_dir/vmtest.config" allnoconfig &&
		check_config "$build_dir/.config" || return
	kmake bzImage && kmake headers
}

# The tests are static: the guest holds nothing but them and busybox
build_tests() {
	mkdir -p "$build_dir/vfio_selftests" &&
		make -s -j"$jobs" -C "$src/tools/testing/selftests/vfio" \
			ARCH=x86 OUTPUT="$build_dir/vfio_selftests" \
			KHDR_INCLUDES="-isystem $build_dir/usr/include" \
			EXTRA_CFLAGS=-static LDFLAGS="-static -pthread" all
}

# A sign of life: a counter on a terminal, else a line a minute
progress() {
	local about=2700 period=60 head="#" tail="\n"

	[ $debug -eq 0 ] || about=3000
	[ ! -t 2 ] || period=1 head="\r#" tail="\033[K"
	trap 'kill $!; exit' INT TERM	# no sleep may keep the locks
	while sleep $period & wait $! && kill -0 $$; do
		printf "$head %d min %d s: %d of about $about files built$tail" \
			$((SECONDS / 60)) $((SECONDS % 60)) \
			"$(grep -c '^  [A-Z]' "$1")" >&2
	done
}

do_build() {
	local log=$workspace/build.log pid rc

	[ $build -eq 1 ] || return 0
	echo "# building in $build_dir, log: $log" >&2
	: > "$log"
	progress "$log" &
	pid=$!
	trap 'kill $pid 2> /dev/null' EXIT
	{ build_kernel && build_tests; } > "$log" 2>&1
	rc=$?
	trap - EXIT
	kill $pid
	wait $pid 2> /dev/null
	[ ! -t 2 ] || echo >&2
	[ $rc -ne 0 ] || return 0
	grep -E 'rror|option missing' "$log" | tail -n 10 >&2
	! grep -q 'option missing' "$log" || exit $CONFIG_MISSING
	die $BUILD_FAILED "the build failed, see $log"
}

# Prints "PROGRAM DEVICE" for each test there is
list_tests() {
	local word prog devices dev

	while read -r word prog devices; do
		[ "$word" = run ] || continue
		for dev in $devices; do
			wanted "$prog.$dev" || continue
			[ -x "$build_dir/vfio_selftests/$prog" ] ||
				die $BUILD_FAILED "$prog has not been built"
			echo "$prog $dev"
		done
	done < "$test_dir/vmtest.tests"
}

wanted() {
	local pattern

	[ ${#patterns[@]} -gt 0 ] || return 0
	for pattern in "${patterns[@]}"; do
		# shellcheck disable=SC2053 # a glob
		[[ $1 == $pattern ]] && return 0
	done
	return 1
}

shell_quote() {
	local arg

	for arg in "$@"; do
		printf "'%s' " "${arg//\'/\'\\\'\'}"
	done
}

cpio_list() {
	local dir file

	for dir in bin dev proc sys tmp tests exec vmtest; do
		echo "dir /$dir 0755 0 0"
	done
	echo "nod /dev/console 0600 0 0 c 5 1"
	echo "nod /dev/ttyS1 0600 0 0 c 4 65"
	echo "file /bin/busybox $busybox 0755 0 0"
	echo "slink /bin/sh busybox 0777 0 0"
	echo "file /init $test_dir/vmtest_init.sh 0755 0 0"
	for file in mode tests run timeout setenv; do
		echo "file /vmtest/$file $workspace/guest/$file 0644 0 0"
	done
	for file in "$build_dir"/vfio_selftests/*_test; do
		[ -x "$file" ] &&
			echo "file /tests/${file##*/} $file 0755 0 0"
	done
	for file in "${program[@]:0:1}" "${extra_files[@]}"; do
		echo "file /exec/${file##*/} $(realpath "$file") 0755 0 0"
	done
}

make_initrd() {
	local var

	mkdir -p "$workspace/guest"
	echo "$mode" > "$workspace/guest/mode"
	echo "$limit" > "$workspace/guest/timeout"
	: > "$workspace/guest/tests"
	[ "$mode" != tests ] || list_tests > "$workspace/guest/tests" || exit
	for var in "${environment[@]}"; do
		echo "export ${var%%=*}=$(shell_quote "${var#*=}")"
	done > "$workspace/guest/setenv"
	[ "$mode" != exec ] ||
		echo "exec $(shell_quote "/exec/${program[0]##*/}" "${program[@]:1}")" \
			> "$workspace/guest/run"
	[ "$mode" != tests ] || [ -s "$workspace/guest/tests" ] ||
		die $USAGE "no such test"
	touch "$workspace/guest/run"
	cpio_list > "$workspace/cpio_list"
	"$build_dir/usr/gen_init_cpio" "$workspace/cpio_list" \
		> "$workspace/initrd.cpio" ||
		die $SETUP_FAILED "cannot make the initramfs"
}

# Each device sits behind a root port of its own: one IOMMU group each, and a
# bus reset that hits nobody else. From 8 GT/s on Linux waits after a bus reset
# for a link-active bit that QEMU does not set again.
device() {
	local port="pcie-root-port,x-speed=5"

	nports=$((nports + 1))
	qemu+=(-device "$port,id=rp$nports,chassis=$nports,slot=$nports"
	       -device "$1,bus=rp$nports")
}

# Two devices that are functions of one: they are reset together.
device_pair() {
	device "$1,addr=0.0,multifunction=on"
	qemu+=(-device "$2,bus=rp$nports,addr=0.1")
}

qemu_command() {
	local nports=0 machine=q35,accel=$accel cpu=max,la57=off
	# no_timer_check: on a busy host the emulated timer may miss that check
	local append="console=ttyS0 loglevel=8 panic=-1 panic_on_warn=1
		no_timer_check oops=panic hung_task_panic=1 intel_iommu=on
		rcupdate.rcu_cpu_stall_timeout=60 watchdog_thresh=30
		hugepagesz=1G hugepages=1 hugepagesz=2M hugepages=32"

	[ "$accel" = tcg ] || { machine+=,kernel-irqchip=split; cpu=host; }
	# shellcheck disable=SC2054 # those commas are QEMU's
	qemu=(qemu-system-x86_64 -nodefaults -no-user-config -display none
	      -no-reboot -machine "$machine" -cpu "$cpu" -smp "$smp" -m "$mem"
	      -device intel-iommu,intremap=on,caching-mode=on,device-iotlb=on
	      -chardev "file,id=console,path=$workspace/console.log"
	      -chardev "file,id=verdict,path=$workspace/verdict"
	      -device isa-serial,chardev=console
	      -device isa-serial,chardev=verdict
	      -device isa-serial,iobase=0x3e8,irq=5,chardev=out
	      -chardev "stdio,id=out,signal=$(
			[ "$mode" = shell ] && echo off || echo on)")
	[ $icount -eq 0 ] || qemu+=(-icount "shift=0,sleep=off")
	# By default edu's DMA engine has 28 address bits, and wraps
	device edu,dma_mask=0xffffffffffffffff
	qemu+=(-object "memory-backend-memfd,id=shm,size=2G,share=on")
	device ivshmem-plain,memdev=shm
	device bochs-display,vgamem=64M
	qemu+=(-drive "if=none,id=disk,driver=null-co,size=64M,read-zeroes=on")
	device nvme,serial=vmtest,drive=disk,cmb_size_mb=16
	device virtio-net-pci,ats=on,iommu_platform=on,disable-legacy=on,romfile=
	device_pair edu bochs-display,vgamem=16M
	# shellcheck disable=SC2206 # a list of arguments
	qemu+=(${EXTRA_QEMU-})
	qemu+=(-kernel "$build_dir/arch/x86/boot/bzImage"
	       -initrd "$workspace/initrd.cpio"
	       -append "${append//[[:space:]]/ } $extra_append")
}

# How long the guest may live: each program up to its limit, and the boot
guest_limit() {
	local n

	n=$(wc -l < "$workspace/guest/tests")
	[ "$mode" != exec ] || n=1
	[ "$mode" != shell ] || n=1000
	echo $((n * limit + ${VMTEST_BOOT_LIMIT:-120} * scale))
}

judge_again() {
	tr -d '\r' < "$workspace/output.log" | read_ktap
	status=(0 "${PIPESTATUS[1]}")
}

# The program's output as it comes; the tests' goes through the KTAP reader
show() {
	case $mode in
	tests) tee "$workspace/output.log" | tr -d '\r' | read_ktap ;;
	exec) tee "$workspace/output.log" ;;
	shell) cat ;;
	esac
}

read_ktap() {
	local conditions=""

	[ $debug -eq 1 ] || conditions+=" nodebug "
	[[ " $extra_append " != *" nopat "* ]] || conditions+=" nopat "
	awk -v skips="$test_dir/vmtest.tests" -v ktap="$workspace/ktap.log" \
		-v conditions="$conditions" \
		-f "$test_dir/vmtest_ktap.awk"
}

# On a busy host an interrupt of the emulated UART may get lost, and then the guest
# waits for ever to send more. To receive a byte makes it look at that, too.
kick() {
	while sleep 2; do
		echo || return
	done 2> /dev/null
}

run_guest() {
	local input=/dev/null

	cp "$build_dir/.config" "$workspace/config"
	rm -f "$workspace"/{console.log,verdict,output.log,ktap.log}
	if [ "$mode" = shell ]; then
		input=/dev/stdin
	elif [ $icount -eq 0 ]; then	# or time is not the same each time
		exec {kick}< <(kick)
		input=/dev/fd/$kick
	fi
	elapsed=$SECONDS
	timeout --foreground -k 10 "$(guest_limit)" "${qemu[@]}" \
		< $input 2> "$workspace/qemu.log" | show
	status=("${PIPESTATUS[@]}")
	elapsed=$((SECONDS - elapsed))
	[ -z "${kick-}" ] || exec {kick}<&-
}

console_has() {
	grep -aqE "$@" "$workspace/console.log"
}

lockdep_report() {
	console_has -e 'possible (circular|recursive|irq lock|deadlock)' \
		-e 'WARNING: (suspicious RCU|inconsistent lock|bad unlock)' \
		-e 'WARNING: (Nested lock|held lock|lock held|.*lock order)' \
		-e 'INFO: trying to register non-static key' \
		-e 'BUG: Invalid wait context' -e 'BUG: .*(held lock|LOCKDEP)' \
		-e 'BUG: MAX_' -e DEBUG_LOCKS_WARN
}

kernel_hang() {
	console_has -e 'blocked for more than' -e 'soft lockup' -e 'hard LOCKUP' \
		-e 'rcu.*detected (expedited )?stall' -e 'rcu.*self-detected'
}

splat() {
	console_has -e 'WARNING:' -e 'BUG:' -e 'UBSAN:' -e 'KASAN:' -e 'KFENCE:' \
		-e 'KCSAN:' -e 'Oops' -e 'general protection' -e 'refcount_t:' \
		-e 'kernel BUG at'
}

# The worst first: what comes after a splat is not to be believed. Lockdep
# reports are no warnings to panic_on_warn, they are only found in the log.
judge() {
	local verdict lockdep leaks word value
	local form="^(done|exit) ([0-9]+) lockdep ([0-9]+|none) leaks ([0-9]+|none)$"

	[ -s "$workspace/console.log" ] ||
		die $SETUP_FAILED "QEMU did not start: $(cat "$workspace/qemu.log")"
	! lockdep_report ||
		die $LOCKDEP "lockdep report, see $workspace/console.log"
	! kernel_hang ||
		die $HANG "hang in the kernel, see $workspace/console.log"
	! splat ||
		die $SPLAT "splat, see $workspace/console.log"
	! console_has 'Kernel panic' ||
		die $PANIC "panic, see $workspace/console.log"
	[[ ${status[0]} != 137 || $elapsed -ge $(guest_limit) ]] ||
		die $NO_VERDICT "QEMU was killed after $elapsed s: no memory?"
	[[ ${status[0]} != 124 && ${status[0]} != 137 ]] ||
		die $HANG "time is over after $(guest_limit) s"
	verdict=$(tr -d '\r' < "$workspace/verdict")
	[[ $verdict != "setup "* ]] || die $SETUP_FAILED "$verdict"
	[[ $verdict =~ $form ]] ||
		die $NO_VERDICT "no verdict, see $workspace/console.log"
	word=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
	lockdep=${BASH_REMATCH[3]} leaks=${BASH_REMATCH[4]}
	[ "$lockdep" != 0 ] || die $LOCKDEP "lockdep has switched itself off"
	[ "$leaks" = none ] || [ "$leaks" = 0 ] ||
		die $LEAK "$leaks leaks, see $workspace/output.log"
	[ $debug -eq 0 ] || [ "$lockdep $leaks" = "1 0" ] ||
		die $NO_VERDICT "the debug kernel did not check itself"
	[ "$word" = "done" ] || return "$value"
	case ${status[1]} in
	"$NO_VERDICT") die "$NO_VERDICT" "the output is incomplete" ;;
	"$HANG") die "$HANG" "a test ran into its limit" ;;
	*) return "${status[1]}" ;;
	esac
}

main() {
	local qemu status elapsed limit scale=1 busybox result

	parse_args "$@"
	check_args
	choose_accel
	check_tools
	[ $debug -eq 0 ] || scale=4
	limit=${timeout_arg:-$(sed -n 's/^timeout=//p' "$test_dir/settings")}
	limit=$((limit * scale))
	: "${build_dir:=$src/.vfio_vmtest$([ $debug -eq 0 ] || echo _debug)}"
	build_dir=$(realpath -m "$build_dir")
	workspace=$(realpath -m "${workspace:-$build_dir/vmtest}")
	check_paths
	mkdir -p "$workspace" || die $USAGE "cannot make $workspace"
	lock --exclusive "$workspace"
	if [ "$mode" = judge ]; then
		judge_again
	else
		lock "$([ $build -eq 1 ] && echo --exclusive || echo --shared)" \
			"$build_dir"
		do_build
		check_config "$build_dir/.config" || exit $CONFIG_MISSING
		[ "$mode" != build ] || exit $OK
		make_initrd
		qemu_command
		run_guest
	fi
	(judge)
	result=$?
	echo "# console, output, KTAP and config: $workspace" >&2
	exit $result
}

main "$@"
