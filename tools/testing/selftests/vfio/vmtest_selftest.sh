#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Check that vmtest.sh detects failures. Recorded runs for what is hard to
# provoke, small programs in a real guest for the rest. Takes the options of
# vmtest.sh (-d and the like) for those; the kernel must have been built.

set -u

dir=$(realpath "$(dirname "$0")")
vmtest=$dir/vmtest.sh
options=("$@")
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# shellcheck disable=SC1091
source "$dir/../kselftest/ktap_helpers.sh"

expect() {
	local name=$1 want=$2 rc
	shift 2

	"$@" > "$tmp/out" 2>&1 < /dev/null
	rc=$?
	if [ $rc -eq "$want" ]; then
		ktap_test_pass "$name"
		return
	fi
	sed 's/^/# /' "$tmp/out" | tail -n 20
	ktap_print_msg "exit status $rc instead of $want"
	ktap_test_fail "$name"
}

# recorded NAME STATUS VERDICT CONSOLE [OPTIONS], with the output on stdin
recorded() {
	cat > "$tmp/output.log"
	printf '%s' "$3" > "$tmp/verdict"
	printf '[    0.000000] Linux version\n%s\n' "$4" > "$tmp/console.log"
	expect "$1" "$2" "$vmtest" -w "$tmp" "${@:5}" --judge
}

# output LINES [STATUS [PROGRAM DEVICE]]: a program that printed LINES
output() {
	printf '#vmtest# plan 1\n#vmtest# begin 1 %s %s\nTAP version 13\n%b\n' \
		"${3:-prog}" "${4:-edu}" "$1"
	printf '\n#vmtest# end 1 %s\n#vmtest# done 1\n' "${2:-0}"
}

ok="done 1 lockdep 1 leaks 0"
good=$(output '1..2\nok 1 a\nok 2 b')

# printed NAME STATUS LINES [PROGRAM'S STATUS]
printed() {
	recorded "$1" "$2" "$ok" "" < <(output "${@:3}")
}

# skipped NAME STATUS PROGRAM DEVICE REASON [OPTIONS]
skipped() {
	recorded "$1" "$2" "$ok" "" "${@:6}" < <(
		output "1..1\nok 1 a # SKIP $5" 0 "$3" "$4")
}

# console NAME STATUS LINE
console() {
	recorded "$1" "$2" "$ok" "[    9.9] $3" <<< "$good"
}

# monitor NAME STATUS HALTED INTERRUPT-IN-SERVICE: what QEMU says of the second CPU
monitor() {
	printf '%s\n' "CPU#0" "CPL=0 HLT=1" "CPU#1" "CPL=0 HLT=$3" \
		"dumping local APIC state for CPU 0 " "ISR	 (none)" \
		"dumping local APIC state for CPU 1 " "ISR	 $4 " > "$tmp/monitor.log"
	recorded "$1" "$2" "$ok" "" <<< "$good"
	rm "$tmp/monitor.log"
}

# shows NAME LINES: the last run printed LINES, and no more than 20 before a result
shows() {
	local line

	while read -r line; do
		grep -qxF "$line" "$tmp/out" && continue
		sed 's/^/# /' "$tmp/out"
		ktap_print_msg "missing: $line"
		ktap_test_fail "$1"
		return
	done <<< "$2"
	[ "$(grep -c '^# ' "$tmp/out")" -le 22 ]
	ktap_test_result "$1" test $? -eq 0
}

recorded_runs() {
	local many

	recorded "success" 0 "$ok" "" <<< "$good"
	printed "nested results" 0 '1..1\n    1..2\n    ok 1 a\n    ok 2 b\nok 1 all'
	printed "a failed test" 1 '1..2\nok 1 a\nnot ok 2 b' 1
	printed "a nested failure" 1 \
		'1..1\n    1..2\n    ok 1 a\n    not ok 2 b\nok 1 all'
	printed "an exit status" 1 '1..1\nok 1 a' 139
	printed "a missing result" 1 '1..2\nok 1 a'
	printed "a missing plan" 1 'ok 1 a'
	printed "a missing nested result" 1 '1..1\n    1..2\n    ok 1 a\nok 1 all'
	printed "nested results without a plan" 0 '1..1\n    ok 1 a\nok 1 all'
	printed "nested results without an end" 1 '1..1\n    ok 1 a'
	printed "results out of order" 1 '1..2\nok 2 b\nok 2 b'
	printed "no result at all" 1 hello
	printed "a skip that is not allowed" 1 '1..1\nok 1 a # SKIP why'
	printed "all skipped" 1 '1..0 # SKIP why' 4
	printed "a program that hangs" 77 '1..2\nok 1 a\n#  RUN   b ...' 137
	shows "what hangs" "# RUN   b ..."
	printed "an assertion" 1 '1..2\n# noise\nok 1 a\n#  RUN   b ...\n# x.c:1:b:
Expected 0 (0) == 1 (1)\n#  FAIL  b\nnot ok 2 b' 1
	shows "the assertion" $'# x.c:1:b:\n# Expected 0 (0) == 1 (1)\n# not ok 2 b'
	many=$(seq -f '# assertion\n# more\nnot ok %.0f x' -s '\n' 15)
	printed "many failures" 1 "1..15\n$many" 1
	shows "all of many failures" "$(seq -f '# not ok %.0f x' 15)"
	skipped "a skip without the debug kernel" 0 \
		vfio_pci_dmabuf_fail_nth_test ivshmem "No fault injection"
	skipped "a skip on the debug kernel" 1 \
		vfio_pci_dmabuf_fail_nth_test ivshmem "No fault injection" -D
	skipped "a skip with nopat" 0 kunit vfio_pci_memtype_wc \
		"No write-combining on this machine" -A nopat
	skipped "a skip without nopat" 1 kunit vfio_pci_memtype_wc \
		"No write-combining on this machine"
	recorded "output that is cut off" 72 "$ok" "" < <(head -n 4 <<< "$good")
	recorded "programs that did not run" 72 "$ok" "" <<< "${good/plan 1/plan 2}"
	recorded "no verdict" 72 "" "" <<< "$good"
	recorded "half a verdict" 72 "done 1 lock" "" <<< "$good"
	recorded "lockdep off" 75 "done 1 lockdep 0 leaks 0" "" <<< "$good"
	recorded "a leak" 76 "done 1 lockdep 1 leaks 2" "" <<< "$good"
	recorded "a failed set-up" 78 "setup cannot bind x" "" <<< "$good"
	console "a splat after ok lines" 74 "BUG: KASAN: slab-use-after-free in x"
	console "a warning" 74 "WARNING: x at y"
	console "a data race" 74 \
		"BUG: KCSAN: data-race in vfio_pci_x / unmap_y"
	console "a data race of other code" 0 "BUG: KCSAN: data-race in x / y"
	console "a lockdep report" 75 \
		"WARNING: possible circular locking dependency detected"
	console "a sleep in atomic context" 74 \
		"BUG: sleeping function called from invalid context"
	console "a hung task" 77 "INFO: task x:1 blocked for more than 120 seconds."
	console "a stall" 77 "rcu: INFO: rcu_preempt self-detected stall on CPU"
	console "a panic in the log" 73 "Kernel panic - not syncing: x"
	monitor "a CPU without interrupts" 77 1 251
	monitor "a CPU in an interrupt" 0 0 251
	monitor "a CPU that is idle" 0 1 "(none)"
	echo 361 > "$tmp/silent"
	recorded "a guest that is silent" 77 "" "" <<< "$good"
	rm "$tmp/silent"
}

program() {
	local name=$1 want=$2
	shift 2

	printf '#!/bin/sh\n%s\n' "$1" > "$tmp/program"
	shift
	expect "$name" "$want" "$vmtest" "${options[@]}" -n -w "$tmp/guest" \
		-t 1 --exec "$tmp/program" "$@"
}

# config NAME STATUS [LINE]: a kernel that vmtest.sh has not built, with the
# required options and LINE
config() {
	grep -hE ^CONFIG_ "$dir"/config{,.vmtest{,.x86}} > "$tmp/build/.config"
	echo "${3-}" >> "$tmp/build/.config"
	expect "$1" "$2" "$vmtest" -n -d "$tmp/build" -w "$tmp/guest" --build
}

real_runs() {
	program "a program's success" 0 'exit 0'
	program "a program's failure" 7 "exit \$1" 7
	program "arguments" 0 "[ \"\$1\" = \"a b\" ] && [ \"\$2\" = \"it's\" ]" \
		"a b" "it's"
	program "a panic" 73 'echo c > /proc/sysrq-trigger'
	program "a guest that ends early" 72 'poweroff -f'
	VMTEST_BOOT_LIMIT=20 program "a guest that hangs" 77 'sleep 1000'
	mkdir "$tmp/bin" "$tmp/build"
	cat > "$tmp/bin/qemu-system-x86_64" <<'EOT'
#!/bin/sh
for arg; do
	case $arg in
	*console.log) echo "Linux version" > "${arg##*path=}" ;;
	esac
done
kill -KILL $$
EOT
	chmod +x "$tmp/bin/qemu-system-x86_64"
	PATH=$tmp/bin:$PATH program "QEMU is killed" 72 'exit 0'
	expect "a variable without a value" 2 "$vmtest" -n -e FOO \
		--exec "$tmp/program"
	expect "a variable with a blank" 2 "$vmtest" -n -e "A B=1" \
		--exec "$tmp/program"
	expect "a path with a blank" 2 "$vmtest" -n -w "$tmp/a b" \
		--exec "$tmp/program"
	expect "a dynamic program" 2 "$vmtest" -n -w "$tmp/guest" \
		--exec "$(realpath "$(command -v readelf)")"
	config "more config options" 0 CONFIG_MODULES=y
	config "an option that must be off" 71 CONFIG_SLUB_TINY=y
	sed -i /CONFIG_SMP=/d "$tmp/build/.config"
	expect "a missing config option" 71 "$vmtest" -n -d "$tmp/build" \
		-w "$tmp/guest" --build
}

ktap_print_header
ktap_set_plan 58
recorded_runs
real_runs
ktap_finished
