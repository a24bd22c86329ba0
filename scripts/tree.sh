# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# The topics of the series, and trees to apply them to. Brings lib.sh.

# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# patches/topics has a line per topic, in order: name | needs | held | to | what for.
# A topic ends at the branch topic/NAME of $linux, the last one at the tip.

# The same commits wherever they are made
export GIT_AUTHOR_NAME="VFIO DMABUF series" GIT_COMMITTER_NAME="VFIO DMABUF series"
export GIT_AUTHOR_EMAIL=vfio-dmabuf@localhost GIT_COMMITTER_EMAIL=vfio-dmabuf@localhost
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1
base_date="1795217258 +0000"

lgit() {
	git -C "$linux" "$@"
}

topics() {
	sed -nE 's/^([a-z][a-z0-9-]*) *\|.*/\1/p' "$patches/topics"
}

# topic_field NAME needs|held|to
topic_field() {
	awk -F ' *[|] *' -v name="$1" -v field="$2" '
		BEGIN { column["needs"] = 2; column["held"] = 3; column["to"] = 4 }
		$1 == name { print $column[field] }' "$patches/topics"
}

# The folder of a topic below patches/: they sort in the order of the topics
topic_folder() {
	printf '%02d-%s\n' "$(topics | grep -nxF "$1" | cut -d: -f1)" "$1"
}

topic_end() {
	if [ "$(topics | tail -n 1)" = "$1" ]; then echo series; else echo "topic/$1"; fi
}

topic_start() {
	local before

	before=$(topics | grep -xF -B1 "$1" | head -n 1)
	if [ "$before" = "$1" ]; then echo base; else echo "topic/$before"; fi
}

# All topics that a topic needs, also by way of others, in order
topic_needs() {
	local name needed=" $1 "

	for name in $(topics | tac); do
		[[ $needed != *" $name "* ]] || needed+="$(topic_field "$name" needs) "
	done
	for name in $(topics); do
		[[ $name = "$1" || $needed != *" $name "* ]] || echo "$name"
	done
}

# bare_clone DIR COMMIT: a clone of $linux at COMMIT without files. git am takes those
# that it needs from the index.
bare_clone() {
	git clone -q -s -n -b series "$linux" "$1"
	git -C "$1" reset -q --soft "$2"
	git -C "$1" read-tree HEAD
}

# am_topics DIR TOPIC...
am_topics() {
	local dir=$1 name said
	shift

	for name in "$@"; do
		said=$(git -C "$dir" am -q "$patches/$(topic_folder "$name")"/0*.patch 2>&1) || {
			git -C "$dir" am --abort
			grep -E '^(error|fatal|Patch failed)' <<< "$said"
			echo "$name does not apply"
			return 1
		}
	done
}

# format_patch DIR BRANCH COVER-LETTER OPTIONS...: whatever the git of this machine prefers
diff_options=(-c core.abbrev=12 -c diff.algorithm=myers)
format_patch() {
	git -C "$1" "${diff_options[@]}" -c "branch.$2.description=$3" \
		-c format.useAutoBase=false format-patch -q --zero-commit --no-signature \
		--stat=72 --cover-letter --cover-from-description=subject "${@:4}"
}

# make_harness DIR COMMIT: the guest harness of the tip, which asks for no option and runs
# no test that COMMIT does not have
make_harness() {
	local dir=$1 file vfio=tools/testing/selftests/vfio

	rm -rf "$dir"
	mkdir -p "$dir"
	cp "$linux/$vfio"/{vmtest*,settings,config*} "$dir"
	lgit grep -hE '^(menu)?config ' "$2" -- '*Kconfig*' |
		awk '{ print "CONFIG_" $2 }' | sort -u > "$dir/symbols"
	for file in "$dir"/*config*; do
		awk 'NR == FNR { known[$1]; next }
		     match($0, /CONFIG_[A-Za-z0-9_]+/) &&
			!(substr($0, RSTART, RLENGTH) in known) { next }
		     { print }' "$dir/symbols" "$file" > "$dir/new"
		mv "$dir/new" "$file"
	done
	# The driver test skips a device that libvfio has no driver for yet
	lgit ls-tree -r --name-only "$2:$vfio" | awk '
		NR == FNR { known[$1]; next }
		$2 == "vfio_pci_driver_test" && !("lib/drivers/edu/edu.c" in known) {
			sub(/edu /, "") }
		$1 !~ /^run/ || ($2 ".c") in known' - "$dir/vmtest.tests" > "$dir/new"
	mv "$dir/new" "$dir/vmtest.tests"
	lgit grep -q vfio_noiommu "$2" -- "$vfio/lib" ||
		sed -i /:vfio_noiommu/d "$dir/vmtest.tests"
}

# link_libvfio KDIR SOURCE PROGRAM: with libvfio as vmtest.sh has built it in KDIR
link_libvfio() {
	local tests=$linux/tools/testing/selftests objects cc=(gcc)

	[ "${ARCH-}" != arm64 ] || cc=(aarch64-linux-gnu-gcc -idirafter "$SYSROOT/usr/include"
				       -L "$SYSROOT/usr/lib/aarch64-linux-gnu")
	mapfile -t objects < <(find "$1/vfio_selftests/libvfio" -name '*.o')
	"${cc[@]}" -static -O2 -Wall -pthread -D_GNU_SOURCE -isystem "$1/usr/include" \
		-I "$tests" -I "$tests/vfio/lib/include" -I "$linux/tools/include" \
		-o "$3" "$2" "${objects[@]}" -luuid
}

# import_kernel SOURCE DIR: a tarball, HEAD of a git tree or a folder becomes a
# repository, branch "series" and tag "base"
import_kernel() {
	local from=$1 into=$2 id=""

	[ -e "$from" ] || die "$from does not exist"
	rm -rf "$into"
	mkdir -p "$into"
	if [ -f "$from" ]; then
		tar -xf "$from" -C "$into" --strip-components=1
	elif [ -e "$from/.git" ]; then
		say "taking HEAD of the git tree $from, not what is uncommitted"
		id=$(git -C "$from" rev-parse HEAD) && git -C "$from" archive HEAD | tar -x -C "$into"
	else
		tar -c -C "$from" --exclude=.git . | tar -x -C "$into"
	fi && [ -f "$into/Kbuild" ] || die "$from holds no kernel tree"
	git -c init.defaultBranch=series init -q "$into"
	git -C "$into" config gc.auto 0
	# For base-commit: of the mails
	[ -z "$id" ] || git -C "$into" config vfio.base-commit "$id"
	# -f: Debian's .gitignore hides everything
	git -C "$into" add -A -f
	GIT_AUTHOR_DATE=$base_date GIT_COMMITTER_DATE=$base_date git -C "$into" \
		commit -q -m "Linux $(kernel_version < "$into/Makefile")"
	git -C "$into" tag base
}
