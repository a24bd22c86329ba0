#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Build a kernel, boot it in QEMU with PCI devices bound to vfio-pci behind an
# IOMMU, and run the VFIO selftests, a program or a shell in it. Needs neither
# root nor hardware nor a disk image.

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
arch=${ARCH:-x86}
sysroot=${SYSROOT:-}
mode=tests
debug=0
build=1
icount=0
timeout_arg=""
extra_append=""
patterns=()
fragments=()
extra_files=()
environment=()
program=()

usage() {
	cat <<EOT
usage: ${0##*/} [options]			run the selftests
       ${0##*/} [options] --exec PROGRAM [ARGS]	run one program of the host
       ${0##*/} [options] --shell		open a shell in the guest
       ${0##*/} [options] --build		build only
       ${0##*/} [options] --judge		evaluate the last run in the workspace again
Options:
	-s DIR	kernel tree (default: the one this script is in)
	-d DIR	kernel build folder (default: .vfio_vmtest in the tree)
	-n	do not build; the kernel may have more options than those asked for
	-D	debug kernel: config.debug too, default folder .vfio_vmtest_debug
	-c FILE	fragment of the configuration, e.g. config.vmtest.64k; may be repeated
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
for more arguments to QEMU, VMTEST_BOOT_LIMIT for the seconds that boot and shutdown
may take.
ARCH is x86 or arm64. For arm64 SYSROOT is a folder with a static busybox and libuuid
of that architecture: Debian's busybox-static and uuid-dev, unpacked by "dpkg -x".
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

	while getopts 's:d:nDc:w:T:f:a:j:p:m:t:e:A:ih-:' opt; do
		case $opt in
		s) src=$(realpath "$OPTARG") ;;
		d) build_dir=$OPTARG ;;
		n) build=0 ;;
		D) debug=1 ;;
		c) fragments+=("$(realpath "$OPTARG")") ;;
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
		-) mode=$OPTARG; [ "$mode" != exec ] || break ;;
		*) usage >&2; exit $USAGE ;;
		esac
	done
	shift $((OPTIND - 1))
	case $mode in
	exec) program=("$@") ;;
	help) usage; exit $OK ;;
	tests | shell | build | judge)
		[ $# -eq 0 ] || die $USAGE "unexpected argument: $1" ;;
	*) usage >&2; exit $USAGE ;;
	esac
}

check_args() {
	local arg

	[ -f "$src/Kbuild" ] || die $USAGE "$src is not a kernel tree"
	[ "$mode" != exec ] || [ ${#program[@]} -gt 0 ] ||
		die $USAGE "--exec needs a program"
	for arg in "$jobs" "$smp" "$limit"; do
		[[ $arg =~ ^[1-9][0-9]*$ ]] || die $USAGE "bad number: $arg"
	done
	for arg in "${program[@]:0:1}" "${extra_files[@]}"; do
		[[ -r $arg && -f $arg ]] || die $USAGE "cannot read the file $arg"
		! is_dynamic "$arg" ||
			die $USAGE "$arg is not static, the guest has no libraries"
	done
	for arg in "${environment[@]}"; do
		[[ $arg =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] ||
			die $USAGE "not NAME=VALUE: $arg"
	done
	for arg in "${fragments[@]}"; do
		[ -r "$arg" ] || die $USAGE "cannot read the file $arg"
	done
	[[ $arch =~ ^(x86|arm64)$ ]] ||
		die $USAGE "the architecture is x86 or arm64, not $arch"
	[[ $accel =~ ^(auto|tcg|kvm)$ ]] ||
		die $USAGE "acceleration is auto, tcg or kvm, not $accel"
	# Neither the kernel's build nor the list for gen_init_cpio can quote them
	for arg in "$src" "$test_dir" "$build_dir" "$workspace" \
		   "${program[@]:0:1}" "${extra_files[@]}"; do
		[[ $(realpath -m "$arg") != *[[:space:]]* ]] ||
			die $USAGE "whitespace in a path is not supported: $arg"
	done
}

# Lock the directory "$2"; "$1" is --exclusive or --shared
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

# /dev/kvm may exist on a CPU without virtualization
choose_accel() {
	local kvm=tcg

	! grep -qwE 'vmx|svm' /proc/cpuinfo || [ ! -w /dev/kvm ] ||
		[ "$arch" != x86 ] || kvm=kvm
	[ "$accel $kvm" != "kvm tcg" ] || die $NO_TOOL "KVM is not usable here"
	[ "$accel" != auto ] || accel=$kvm
	[ $icount -eq 0 ] || { accel=tcg; smp=1; }
}

check_tools() {
	local tool tools=("$qemu_binary" busybox readelf flock)

	# Independent of CC: tools for the host and the tests are made by gcc
	[ $build -eq 0 ] ||
		tools+=(make gcc "${cross}gcc" ${CC:+"${CC%% *}"} flex bison)
	for tool in "${tools[@]}"; do
		command -v "$tool" > /dev/null || die $NO_TOOL "$tool is missing"
	done
	busybox=${sysroot:+$sysroot/bin/busybox}
	: "${busybox:=$(command -v busybox)}"
	[ -x "$busybox" ] || die $NO_TOOL "$busybox is missing"
	[ "$arch" = x86 ] || [ -n "$sysroot" ] ||
		die $NO_TOOL "SYSROOT with busybox for $arch is missing"
	! is_dynamic "$busybox" ||
		die $NO_TOOL "$busybox is not static (Debian: busybox-static)"
}

kmake() {
	local args=(-C "$src" "O=$build_dir" "-j$jobs" "ARCH=$arch")

	[ -z "$cross" ] || args+=("CROSS_COMPILE=$cross")
	args+=("CC=${CC:-$(command -v ccache > /dev/null && echo ccache) ${cross}gcc}")
	make "${args[@]}" "$@"
}

# The last line that names an option counts
options() {
	local files=("$test_dir"/config{,.vmtest,.vmtest."$arch"} "${fragments[@]}")

	[ $debug -eq 0 ] || files+=("$test_dir/config.debug")
	grep -h CONFIG_ "${files[@]}" | tac |
		awk -F '[ =]' '!seen[$1 == "#" ? $2 : $1]++'
}

# Every line counts, also with -n. An option that does not exist is not set, and one
# without a line may be set or not.
check_config() {
	local line opt missing=0

	while read -r line; do
		opt=${line#\# }
		case $line in
		CONFIG_*) ! grep -qxF "$line" "$1" ;;
		"# CONFIG_"*" is not set") grep -q "^${opt%% *}=" "$1" ;;
		*) false ;;
		esac || continue
		echo "vmtest: $1: option missing: $line" >&2
		missing=1
	done < <(options)
	return $missing
}

build_kernel() {
	mkdir -p "$build_dir" || return
	{ options; cat "$test_dir/config.vmtest.build"; } > "$build_dir/vmtest.config"
	kmake "KCONFIG_ALLCONFIG=$build_dir/vmtest.config" allnoconfig &&
		check_config "$build_dir/.config" || return
	kmake "${image##*/}" && kmake headers
}

# The tests are static: the guest holds nothing but them and busybox
build_tests() {
	local cflags=-static ldflags="-static -pthread"

	if [ -n "$sysroot" ]; then
		cflags+=" -idirafter $sysroot/usr/include"
		ldflags+=" -L$(echo "$sysroot"/usr/lib/*-linux-gnu)"
	fi
	mkdir -p "$build_dir/vfio_selftests" &&
		make -s -j"$jobs" -C "$src/tools/testing/selftests/vfio" \
			ARCH="$arch" ${cross:+"CROSS_COMPILE=$cross"} \
			OUTPUT="$build_dir/vfio_selftests" \
			KHDR_INCLUDES="-isystem $build_dir/usr/include" \
			EXTRA_CFLAGS="$cflags" LDFLAGS="$ldflags" all
}

do_build() {
	local log=$workspace/build.log

	[ $build -eq 1 ] || return 0
	echo "# building in $build_dir, log: $log" >&2
	{ build_kernel && build_tests; } 2>&1 | tee "$log" |
		awk '/^  [A-Z]/ && ++n % 200 == 0 { print "#", n, "files built" }
		     { fflush() }' >&2
	[ "${PIPESTATUS[0]}" -ne 0 ] || return 0
	grep -E 'rror|option missing' "$log" | tail -n 10 >&2
	! grep -q 'option missing' "$log" || exit $CONFIG_MISSING
	die $BUILD_FAILED "the build failed, see $log"
}

# Prints "PROGRAM DEVICE" for each test that was asked for
list_tests() {
	local word prog devices dev pattern modes=()

	while read -r word prog devices; do
		case $word in
		modes) read -ra modes <<< "$prog $devices" ;;
		run) ;;
		run-modes) devices=${modes[*]/#/$devices:} ;;
		esac
		[[ $word == run* ]] || continue
		for dev in $devices; do
			[[ $arch = x86 || $dev != noiommu:* ]] || continue
			for pattern in "${patterns[@]}"; do
				# shellcheck disable=SC2053 # a glob
				[[ $prog.$dev == $pattern ]] || continue
				[ -x "$build_dir/vfio_selftests/$prog" ] ||
					die $BUILD_FAILED "$prog has not been built"
				echo "$prog $dev"
				break
			done
		done
	done < "$test_dir/vmtest.tests"
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
	local guest=$workspace/guest nr=1 var

	mkdir -p "$guest"
	echo "$mode" > "$guest/mode"
	echo "$limit" > "$guest/timeout"
	for var in "${environment[@]@Q}"; do
		echo "export $var"
	done > "$guest/setenv"
	: > "$guest/tests"
	: > "$guest/run"
	case $mode in
	tests)
		list_tests > "$guest/tests" || exit
		nr=$(wc -l < "$guest/tests")
		[ "$nr" -gt 0 ] || die $USAGE "no such test" ;;
	exec)
		set -- "/exec/${program[0]##*/}" "${program[@]:1}"
		echo "exec ${*@Q}" > "$guest/run" ;;
	shell)
		nr=1000 ;;
	esac
	# Each program up to its limit, and the boot
	guest_limit=$((nr * limit + ${VMTEST_BOOT_LIMIT:-120} * scale))
	cpio_list > "$workspace/cpio_list"
	"$build_dir/usr/gen_init_cpio" "$workspace/cpio_list" \
		> "$workspace/initrd.cpio" ||
		die $SETUP_FAILED "cannot make the initramfs"
}

# Each device sits behind a root port of its own: one IOMMU group each, and a
# bus reset that affects no other device. From 8 GT/s on Linux waits after a
# bus reset for a link-active bit that QEMU does not set again.
device() {
	local port="pcie-root-port,x-speed=5,${3-hotplug=off}"

	nports=$((nports + 1))
	qemu+=(-device "$port,id=rp$nports,chassis=$nports,slot=$nports,bus=${2-pcie.0}"
	       -device "$1,bus=rp$nports")
}

# Three serial ports: the console, ttyS1 and ttyS2
machine_x86() {
	local machine=q35,accel=$accel cpu=max,la57=off

	[ "$accel" = tcg ] || { machine+=,kernel-irqchip=split; cpu=host; }
	# no_timer_check: on a busy host the emulated timer may miss that check
	append+=" console=ttyS0 no_timer_check intel_iommu=on"
	append+=" hugepagesz=1G hugepages=1 hugepagesz=2M hugepages=32"
	# shellcheck disable=SC2054 # those commas are QEMU's
	qemu+=(-machine "$machine" -cpu "$cpu"
	       -device intel-iommu,intremap=on,caching-mode=on,device-iotlb=on
	       -global ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off
	       -device isa-serial,chardev=console
	       -device isa-serial,chardev=verdict
	       -device isa-serial,iobase=0x3e8,irq=5,chardev=out)
}

machine_arm64() {
	append+=" console=ttyAMA0 hugepagesz=2M hugepages=32"
	if grep -qx CONFIG_ARM64_64K_PAGES=y "$build_dir/.config"; then
		append+=" hugepagesz=512M hugepages=1"
		# Where a large page has 512 MiB, some of them
		shm=8G
	else
		append+=" hugepagesz=1G hugepages=1"
	fi
	# shellcheck disable=SC2054 # those commas are QEMU's
	qemu+=(-machine "virt,gic-version=3,iommu=smmuv3,accel=$accel"
	       -cpu neoverse-n1 -serial chardev:console
	       -device pci-serial-4x,chardev2=verdict,chardev3=out)
}

qemu_command() {
	local nports=0 shm=2G slot=power_controller_present=off
	local sriov=sriov_max_vfs=2,sriov_vq_flexible=4,sriov_vi_flexible=2
	local append panic=1

	# Data races of the rest of the kernel are reported, too, see judge()
	! grep -qx CONFIG_KCSAN=y "$build_dir/.config" || panic=0
	append="loglevel=8 panic=-1 panic_on_warn=$panic
		oops=panic hung_task_panic=1
		rcupdate.rcu_cpu_stall_timeout=60 watchdog_thresh=30
		sysctl.kernel.panic_on_rcu_stall=1"
	# shellcheck disable=SC2054 # those commas are QEMU's
	qemu=("$qemu_binary" -nodefaults -no-user-config -display none
	      -no-reboot -smp "$smp" -m "$mem"
	      -chardev "file,id=console,path=$workspace/console.log"
	      -chardev "file,id=verdict,path=$workspace/verdict"
	      -chardev "stdio,id=out,signal=$(
			[ "$mode" = shell ] && echo off || echo on)")
	case $arch in
	x86) machine_x86 ;;
	arm64) machine_arm64 ;;
	esac
	[ $icount -eq 0 ] || qemu+=(-icount "shift=0,sleep=off")
	# By default edu's DMA engine has 28 address bits, and wraps
	device edu,dma_mask=0xffffffffffffffff
	qemu+=(-object "memory-backend-memfd,id=shm,size=$shm,share=on")
	device ivshmem-plain,memdev=shm
	device bochs-display,vgamem=64M
	qemu+=(-drive "if=none,id=disk,driver=null-co,size=64M,read-zeroes=on")
	device nvme,serial=vmtest,drive=disk,cmb_size_mb=16
	# QEMU has SR-IOV only for controllers of a subsystem, without CMB. Below a port
	# without hotplug, to enable VFs fails with EIO.
	qemu+=(-device "nvme-subsys,id=subsys")
	device "nvme,serial=sriov,subsys=subsys,$sriov" pcie.0 hotplug=on
	device virtio-net-pci,ats=on,aer=on,iommu_platform=on,disable-legacy=on,romfile=
	# Its BAR 1 has I/O ports. It can be unplugged and, as QEMU does not
	# see that it has no power, plugged again. Not with lockdep, which
	# reports locks of pciehp, and of VFIO that resets a device when it is
	# opened.
	[ "$debug" -eq 0 ] || slot=hotplug=off
	device pci-testdev,membar=1M pcie.0 "$slot"
	# Two functions of one device: they are reset together
	device edu,addr=0.0,multifunction=on
	qemu+=(-device "bochs-display,vgamem=16M,bus=rp$nports,addr=0.1")
	# One that no IOMMU translates; on arm64 only ACPI describes this
	if [ "$arch" = x86 ]; then
		qemu+=(-device "pxb-pcie,id=pxb,bus_nr=64,bypass_iommu=on")
		device bochs-display,vgamem=16M pxb
	fi
	[[ $icount -eq 1 || $mode = shell ]] ||
		qemu+=(-chardev "pipe,id=monitor,path=$workspace/monitor"
		       -mon chardev=monitor)
	# shellcheck disable=SC2206 # a list of arguments
	qemu+=(${EXTRA_QEMU-})
	qemu+=(-kernel "$build_dir/$image"
	       -initrd "$workspace/initrd.cpio"
	       -append "${append//[[:space:]]/ } $extra_append")
}

# The program's output as it comes; the tests' goes through the KTAP reader
show() {
	case $mode in
	tests) tee "$workspace/output.log" | read_ktap ;;
	exec) tee "$workspace/output.log" ;;
	shell) cat ;;
	esac
}

read_ktap() {
	local conditions

	conditions=" $arch "
	if [ $debug -eq 1 ]; then conditions+=" debug "; else conditions+=" nodebug "; fi
	! grep -qx CONFIG_ARM64_64K_PAGES=y "$workspace/config" ||
		conditions+=" 64k "
	! grep -qx CONFIG_IOMMUFD_VFIO_CONTAINER=y "$workspace/config" ||
		conditions+=" container "
	[[ " $extra_append " != *" nopat "* ]] || conditions+=" nopat "
	[ "$accel" = tcg ] || conditions+=" notcg "
	tr -d '\r' |
		awk -v skips="$test_dir/vmtest.tests" -v ktap="$workspace/ktap.log" \
			-v conditions="$conditions" -f "$test_dir/vmtest_ktap.awk"
}

# QEMU before 8.2 loses a store to the local APIC that meets a change of the memory map,
# as when a device's memory is enabled on another CPU. If the store was an EOI, that CPU
# gets no more interrupts: it is halted while one is in service.
lost_eoi() {
	awk '/^CPU#/ { cpu = substr($1, 5) }
	     /HLT=/ { halted[cpu] = /HLT=1/ }
	     /local APIC state for CPU/ { cpu = $NF }
	     /^ISR/ && halted[cpu] && $2 ~ /^[0-9]/ { lost = 1 }
	     END { exit !lost }' "$workspace/monitor.log" 2> /dev/null
}

ask_monitor() {
	local cpu line

	echo "info registers -a"
	for ((cpu = 0; cpu < smp; cpu++)); do
		echo "info lapic $cpu"
	done
	while read -r -t 2 line; do
		echo "${line%$'\r'}"
	done > "$workspace/monitor.log"
}

# Ends QEMU when the guest is dead: a CPU gets no interrupts, or nothing has come for
# longer than the guest lets a program run
watch_guest() {
	local size=0 now last=$SECONDS line

	while ! { lost_eoi && ask_monitor && lost_eoi; }; do
		now=$(cat "$workspace"/{console,output}.log 2> /dev/null | wc -c)
		[ "$now" = "$size" ] || { size=$now; last=$SECONDS; }
		if [ "$mode" = tests ] && [ $((SECONDS - last)) -gt $((limit + 60)) ]; then
			echo $((SECONDS - last)) > "$workspace/silent"
			break
		fi
		read -r -t 10 line	# sleeps without a fork
		ask_monitor
	done
	echo quit
}

run_guest() {
	local input=/dev/null watch=""

	cp "$build_dir/.config" "$workspace/config"
	rm -f "$workspace"/{console.log,verdict,output.log,ktap.log,silent,monitor.*}
	if [ "$mode" = shell ]; then
		input=/dev/stdin
	elif [ $icount -eq 0 ]; then	# or time is not the same each time
		# On a busy host an interrupt of the emulated UART may get lost,
		# and the guest waits to send more, until it receives a byte.
		exec {kick}< <(while sleep 2 && echo; do :; done 2> /dev/null)
		input=/dev/fd/$kick
		mkfifo "$workspace"/monitor.{in,out}
		watch_guest <> "$workspace/monitor.out" 1<> "$workspace/monitor.in" 2> /dev/null &
		watch=$!
	fi
	elapsed=$SECONDS
	timeout --foreground -k 10 "$guest_limit" "${qemu[@]}" \
		< $input 2> "$workspace/qemu.log" | show
	status=("${PIPESTATUS[@]}")
	elapsed=$((SECONDS - elapsed))
	[ -z "${kick-}" ] || exec {kick}<&-
	[ -z "$watch" ] || { kill $watch; wait $watch; } 2> /dev/null
}

# found STATUS WHAT PATTERN...: end with STATUS if the console has one of them
found() {
	local code=$1 what=$2
	shift 2

	! grep -aqE "${@/#/-e}" "$workspace/console.log" ||
		die "$code" "$what, see $workspace/console.log"
}

# The worst first: results after a splat are not reliable. Lockdep reports are
# no warnings to panic_on_warn, they are only found in the log.
judge() {
	local verdict lockdep leaks word value
	local form="^(done|exit) ([0-9]+) lockdep ([0-9]+|none) leaks ([0-9]+|none)$"

	[ -s "$workspace/console.log" ] ||
		die $SETUP_FAILED "QEMU did not start: $(cat "$workspace/qemu.log")"
	! lost_eoi || die $HANG "QEMU has lost an interrupt, see $workspace/monitor.log"
	found $LOCKDEP "lockdep report" \
		'possible (circular|recursive|irq lock|deadlock)' \
		'WARNING: (suspicious RCU|inconsistent lock|bad unlock)' \
		'WARNING: (Nested lock|held lock|lock held|.*lock order)' \
		'INFO: trying to register non-static key' \
		'BUG: (Invalid wait context|.*(held lock|LOCKDEP)|MAX_)' \
		DEBUG_LOCKS_WARN
	found $HANG "hang in the kernel" 'blocked for more than' \
		'soft lockup' 'hard LOCKUP' \
		'rcu.*(detected (expedited )?stall|self-detected)'
	# Other functions have data races that are known
	found $SPLAT "data race" \
		'KCSAN: .* in .*(vfio|dma_?buf|iopt|iommufd|vmf_insert_pfn)'
	found $SPLAT "splat" '(WARNING|UBSAN|KASAN|KFENCE):' Oops \
		'BUG: ([^K]|K[^C])' \
		'general protection' 'refcount_t:' 'kernel BUG at'
	found $PANIC "panic" 'Kernel panic'
	[[ ${status[0]} != 137 || $elapsed -ge $guest_limit ]] ||
		die $NO_VERDICT "QEMU was killed after $elapsed s: no memory?"
	[ ! -e "$workspace/silent" ] ||
		die $HANG "no output for $(cat "$workspace/silent") s"
	[[ ${status[0]} != 124 && ${status[0]} != 137 ]] ||
		die $HANG "timed out after $guest_limit s"
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
		die $NO_VERDICT "lockdep or kmemleak did not run on the debug kernel"
	[ "$word" = "done" ] || return "$value"
	case ${status[1]} in
	"$NO_VERDICT") die "$NO_VERDICT" "the output is incomplete" ;;
	"$HANG") die "$HANG" "a test ran into its limit" ;;
	*) return "${status[1]}" ;;
	esac
}

main() {
	local qemu status elapsed limit guest_limit scale=1 busybox result
	local image=arch/x86/boot/bzImage cross="" qemu_binary="qemu-system-x86_64"

	parse_args "$@"
	[ "$arch" != x86_64 ] || arch=x86
	if [ "$arch" = arm64 ]; then
		image=arch/arm64/boot/Image
		cross=aarch64-linux-gnu-
		qemu_binary="qemu-system-aarch64"
	fi
	[ ${#patterns[@]} -gt 0 ] || patterns=("*")
	[ $debug -eq 0 ] || scale=4
	limit=${timeout_arg:-$(sed -n 's/^timeout=//p' "$test_dir/settings")}
	: "${build_dir:=$src/.vfio_vmtest$([ $debug -eq 0 ] || echo _debug)}"
	build_dir=$(realpath -m "$build_dir")
	workspace=$(realpath -m "${workspace:-$build_dir/vmtest}")
	check_args
	limit=$((limit * scale))
	choose_accel
	check_tools
	mkdir -p "$workspace" || die $USAGE "cannot make $workspace"
	lock --exclusive "$workspace"
	if [ "$mode" = judge ]; then
		read_ktap < "$workspace/output.log"
		status=(0 $?)
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
