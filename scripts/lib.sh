# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2034 # for those who source this
# Shared by the scripts here. BUILD is the build folder, made absolute.

set -euo pipefail

top=$(realpath "$(dirname "${BASH_SOURCE[0]}")/..")
BUILD=$(realpath -m "${BUILD:-$top/build}")
linux=$BUILD/linux
patches=$top/patches
jobs=${J:-$(nproc)}

say() {
	echo "== $*"
}

die() {
	echo "${0##*/}: $*" >&2
	exit 1
}

# Checks: a line for each, and at the end those that failed and how many there were

passed=0 failed=0 skipped=0 failures=()

ok() {
	echo "ok - $*"
	passed=$((passed + 1))
}

not_ok() {
	echo "not ok - $*"
	failed=$((failed + 1))
	failures+=("$*")
}

# skip NAME REASON...
skip() {
	local name=$1
	shift

	echo "ok - $name # SKIP $*"
	skipped=$((skipped + 1))
}

# The last lines of what a failed check had to say
excerpt() {
	tail -n 40 | sed 's/^/  /'
}

# gate NAME COMMAND...: the command's output is shown only when it fails
gate() {
	local name=$1 output
	shift

	if output=$("$@" 2>&1); then
		ok "$name"
	else
		not_ok "$name"
		printf '%s\n' "$output" | excerpt
		return 1
	fi
}

# alive LOG COMMAND...: what it prints goes to LOG. A counter of the files built on a
# terminal, else a line a minute, shows that it lives.
alive() {
	local log=$1 rc=0 ticker
	shift

	: > "$log"
	tick "$log" &
	ticker=$!
	"$@" > "$log" 2>&1 || rc=$?
	kill "$ticker" && wait "$ticker" 2> /dev/null || true
	[ ! -t 1 ] || printf '\r\033[K'
	return $rc
}

# QEMU before 8.2 may lose a store to a local APIC while a device's memory is disabled and
# enabled: no fault of a test. Either vmtest.sh has seen it in QEMU, or the kernel reports
# that an interrupt of a timer did not come: of a CPU, or for a sleep of fixed time.
lost_interrupt() {
	local console=$1 out=$2

	grep -qas 'rcu: .*Possible timer handling issue on cpu' "$console" ||
		grep -qxF "vmtest: QEMU has lost an interrupt" <(cut -d, -f1 "$out") ||
		grep -as -A 9 'blocked for more than' "$console" | grep -q '  usleep_range_state+'
}

# run_guest CONSOLE OUT COMMAND...: with vmtest.sh, which writes these two. Up to twice more
# if QEMU has lost an interrupt.
run_guest() {
	local console=$1 out=$2 again=0 rc
	shift 2

	while rc=0; "$@" || rc=$?; [ $rc -gt 1 ] && [ $((again++)) -lt 2 ] &&
	      lost_interrupt "$console" "$out"; do
		say "QEMU has lost an interrupt, see Documentation/testing.md: once more"
	done
	return $rc
}

# step LOG NAME COMMAND...: a check that takes minutes, its log in the folder $out
# shellcheck disable=SC2154 # out is of those who source this
step() {
	local log=$out/$1 name=$2
	shift 2

	say "$name, log: $log"
	if alive "$log" "$@"; then
		ok "$name"
	else
		not_ok "$name"
		excerpt < "$log"
		return 1
	fi
}

tick() {
	local start=$SECONDS period=60 form="   ... %d:%02d, %d files built, log: %s\n"

	[ ! -t 1 ] || period=1 form="\r %d:%02d, %d files built, log: %s\033[K"
	trap 'kill $!; exit' INT TERM
	while sleep $period & wait $! && kill -0 $$; do
		# shellcheck disable=SC2059 # it is a format
		printf "$form" $(((SECONDS - start) / 60)) $(((SECONDS - start) % 60)) \
			"$(grep -c '^  [A-Z]' "$1")" "$1"
	done
}

# The last lines, for a log may keep no more than some 25, and the exit status
verdict() {
	say "$((SECONDS / 60)) min $((SECONDS % 60)) s"
	[ ${#failures[@]} -le 20 ] || say "the first 20 of ${#failures[@]} that failed:"
	[ ${#failures[@]} -eq 0 ] || printf 'not ok: %s\n' "${failures[@]:0:20}"
	echo "$passed passed, $failed failed, $skipped skipped"
	[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
}

# The patches, in order
numbered() {
	find "$patches" -path "$patches/[0-9]*/0*.patch" | LC_ALL=C sort
}

# need_worktree DIR COMMIT: a checkout next to the one people work in
need_worktree() {
	if ! git -C "$1" rev-parse -q --verify series > /dev/null 2>&1; then
		rm -rf "$1"
		git -C "$linux" worktree prune
		git -C "$linux" worktree add -q --detach "$1" "$2"
	fi
	git -C "$1" checkout -q --detach "$2"
}

# The version that a kernel's Makefile on stdin names, such as 7.3.4 or 7.4.0-rc2
kernel_version() {
	sed -n 's/^\(VERSION\|PATCHLEVEL\|SUBLEVEL\|EXTRAVERSION\) = *//p' |
		head -n 4 | paste -sd. | sed 's/\.\([^.]*\)$/\1/'
}

# shellcheck source=BASE
. "$top/BASE"
