#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Does vmtest.sh see what goes wrong? Recorded runs for what is hard to provoke,
# small programs in a real guest for the rest. Takes the options of vmtest.sh
# (-d and the like) for those; the kernel must have been built.

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

# recorded NAME STATUS VERDICT CONSOLE [OPTIONS], with what the tests printed on
# stdin
recorded() {
	cat > "$tmp/output.log"
	printf '%s' "$3" > "$tmp/verdict"
	printf '[    0.000000] Linux version\n%s\n' "$4" > "$tmp/console.log"
	expect "$1" "$2" "$vmtest" -w "$tmp" "${@:5}" --judge
}

program() {
	local name=$1 want=$2
	shift 2

	printf '#!/bin/sh\n%s\n' "$1" > "$tmp/program"
	shift
	expect "$name" "$want" "$vmtest" "${options[@]}" -n -w "$tmp/guest" \
		-t 1 --exec "$tmp/program" "$@"
}

# The output of one test program with the result lines of stdin
output() {
	printf '#vmtest# plan 1\n#vmtest# begin 1 prog edu\nTAP version 13\n'
	cat
	printf '\n#vmtest# end 1 %s\n#vmtest# done 1\n' "${1:-0}"
}

good() {
	printf '1..2\nok 1 a\nok 2 b\n' | output
}

# PROGRAM DEVICE REASON
skipped() {
	printf '1..1\nok 1 a # SKIP %s\n' "$3" | output |
		sed "s/prog edu/$1 $2/"
}

recorded_runs() {
	local ok="done 1 lockdep 1 leaks 0"

	recorded "all is well" 0 "$ok" "" < <(good)
	recorded "nested results" 0 "$ok" "" < <(printf '%s\n' 1..1 \
		"    1..2" "    ok 1 a" "    ok 2 b" "ok 1 all" | output)
	recorded "a failed test" 1 "$ok" "" < <(
		printf '1..2\nok 1 a\nnot ok 2 b\n' | output 1)
	recorded "a nested failure" 1 "$ok" "" < <(printf '%s\n' 1..1 \
		"    1..2" "    ok 1 a" "    not ok 2 b" "ok 1 all" | output)
	recorded "an exit status" 1 "$ok" "" < <(
		printf '1..1\nok 1 a\n' | output 139)
	recorded "a missing result" 1 "$ok" "" < <(printf '1..2\nok 1 a\n' | output)
	recorded "a missing plan" 1 "$ok" "" < <(printf 'ok 1 a\n' | output)
	recorded "a missing nested result" 1 "$ok" "" < <(printf '%s\n' 1..1 \
		"    1..2" "    ok 1 a" "ok 1 all" | output)
	recorded "nested results without a plan" 0 "$ok" "" < <(printf '%s\n' \
		1..1 "    ok 1 a" "ok 1 all" | output)
	recorded "nested results without an end" 1 "$ok" "" < <(printf '%s\n' \
		1..1 "    ok 1 a" | output)
	recorded "results out of order" 1 "$ok" "" < <(
		printf '1..2\nok 2 b\nok 2 b\n' | output)
	recorded "no result at all" 1 "$ok" "" < <(echo hello | output)
	recorded "a skip that is not allowed" 1 "$ok" "" < <(
		printf '1..1\nok 1 a # SKIP why\n' | output)
	recorded "a skip without the debug kernel" 0 "$ok" "" < <(
		skipped vfio_pci_dmabuf_fail_nth_test ivshmem "No fault injection")
	recorded "a skip on the debug kernel" 1 "$ok" "" -D < <(
		skipped vfio_pci_dmabuf_fail_nth_test ivshmem "No fault injection")
	recorded "a skip with nopat" 0 "$ok" "" -A nopat < <(
		skipped kunit vfio_pci_memtype_wc \
			"No write-combining on this machine")
	recorded "a skip without nopat" 1 "$ok" "" < <(
		skipped kunit vfio_pci_memtype_wc \
			"No write-combining on this machine")
	recorded "all skipped" 1 "$ok" "" < <(printf '1..0 # SKIP why\n' | output 4)
	recorded "a program that hangs" 77 "$ok" "" < <(
		printf '1..2\nok 1 a\n' | output 137)
	recorded "output that is cut off" 72 "$ok" "" < <(good | head -n 4)
	recorded "programs that did not run" 72 "$ok" "" < <(
		good | sed 's/plan 1/plan 2/')
	recorded "no verdict" 72 "" "" < <(good)
	recorded "half a verdict" 72 "done 1 lock" "" < <(good)
	recorded "a splat after ok lines" 74 "$ok" \
		"[    9.9] BUG: KASAN: slab-use-after-free in x" < <(good)
	recorded "a warning" 74 "$ok" "[    9.9] WARNING: x at y" < <(good)
	recorded "a lockdep report" 75 "$ok" \
		"[    9.9] WARNING: possible circular locking dependency detected" \
		< <(good)
	recorded "a sleep in atomic context" 74 "$ok" \
		"[    9.9] BUG: sleeping function called from invalid context" \
		< <(good)
	recorded "lockdep off" 75 "done 1 lockdep 0 leaks 0" "" < <(good)
	recorded "a leak" 76 "done 1 lockdep 1 leaks 2" "" < <(good)
	recorded "a hung task" 77 "$ok" \
		"[    9.9] INFO: task x:1 blocked for more than 120 seconds." \
		< <(good)
	recorded "a stall" 77 "$ok" \
		"[    9.9] rcu: INFO: rcu_preempt self-detected stall on CPU" \
		< <(good)
	recorded "a failed set-up" 78 "setup cannot bind x" "" < <(good)
}

real_runs() {
	program "a program's success" 0 'exit 0'
	program "a program's failure" 7 "exit \$1" 7
	program "arguments" 0 "[ \"\$1\" = \"a b\" ] && [ \"\$2\" = \"it's\" ]" \
		"a b" "it's"
	program "a panic" 73 'echo c > /proc/sysrq-trigger'
	program "a guest that ends early" 72 'poweroff -f'
	VMTEST_BOOT_LIMIT=20 program "a guest that hangs" 77 'sleep 1000'
	mkdir "$tmp/bin"
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
	mkdir "$tmp/build"
	echo "CONFIG_SMP=y" > "$tmp/build/.config"
	expect "a missing config option" 71 "$vmtest" -n -d "$tmp/build" \
		-w "$tmp/guest" --exec "$tmp/program"
	grep -h ^CONFIG_ "$dir"/config{,.vmtest} > "$tmp/build/.config"
	echo "CONFIG_MODULES=y" >> "$tmp/build/.config"
	expect "more config options" 0 "$vmtest" -n -d "$tmp/build" \
		-w "$tmp/guest" --build
	expect "a dynamic program" 2 "$vmtest" -n -w "$tmp/guest" \
		--exec "$(realpath "$(command -v readelf)")"
}

ktap_print_header
ktap_set_plan 45
recorded_runs
real_runs
ktap_finished
