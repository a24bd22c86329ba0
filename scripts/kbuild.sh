# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2154,SC2034 # what who sources this has and wants
# Sourced after lib.sh: builds what the series changes in $tree, a checkout that
# knows "base" and "series", in a configuration of scripts/configs, below $work

configs=$top/scripts/configs
ccache=$(command -v ccache || true)
# Of the configuration at hand
config="" objs=""

declare -A arch=([i386]=i386 [arm64]=arm64 [s390x]=s390)
declare -A cross=([arm64]=aarch64-linux-gnu- [s390x]=s390x-linux-gnu-)
# What each takes besides common.config; the last one that names an option wins
declare -A fragments=([all]="x86_64 all" [clang]="x86_64 all" [drivers]="x86_64 drivers" [module]="x86_64 module"
	[nop2p]="x86_64 nop2p" [variants]="x86_64 variants")
clang=19

tgit() {
	git -C "$tree" "$@"
}

use() {
	config=$1
	objs=$work/$1
	mkdir -p "$objs"
}

compiler() {
	[ "$config" = clang ] && echo "clang-$clang" || echo "${cross[$config]-}gcc"
}

kmake() {
	local args=(-C "$tree" "O=$objs" "-j$jobs" W=1
		"ARCH=${arch[$config]-x86_64}" "CC=$ccache $(compiler)")

	[ -z "${cross[$config]-}" ] || args+=("CROSS_COMPILE=${cross[$config]}")
	[ "$config" != clang ] || args+=("LLVM=-$clang")
	make "${args[@]}" "$@"
}

# The .config is made anew where a patch has changed what can be in it
configure() {
	local last name

	last=$(cat "$objs/configured" 2>/dev/null || true)
	for name in common ${fragments[$config]-$config}; do
		grep CONFIG_ "$configs/$name.config"
	done | tac | awk -F '[ =]' '!seen[$1 == "#" ? $2 : $1]++' > "$objs/wanted.new"
	if [ -n "$last" ] && cmp -s "$objs/wanted.new" "$objs/wanted" &&
	   tgit diff --quiet "$last" HEAD -- '*Kconfig*' 2>/dev/null; then
		return
	fi
	mv "$objs/wanted.new" "$objs/wanted"
	kmake KCONFIG_ALLCONFIG="$objs/wanted" allnoconfig || return
	tgit rev-parse HEAD > "$objs/configured"
}

# Print what is not as wanted. An option that cannot even be seen counts as not set.
options_set() {
	configure > /dev/null || return
	! awk -F '[ =]' 'NR == FNR { if (/^CONFIG_/) set[$1] = $0; next }
		$1 == "#" ? $2 in set : set[$1] != $0' "$objs/.config" "$objs/wanted" | grep .
}

# What the series changes and this configuration builds, as make's targets:
# drivers and parts of an architecture by the folder, all else by the file. drivers/gpu is
# one folder too large.
targets() {
	local dir=${arch[$config]-x86} file

	[ "$dir" != i386 ] || dir=x86
	tgit diff --name-only base series | sed -nE -e "s,^(drivers/gpu/drm/[^/]+/).*,\1,p;t" \
		-e "s,^(drivers/[^/]+/).*,\1,p" \
		-e "s,^(arch/$dir/.*/)[^/]*\$,\1,p" | sort -u
	tgit diff --name-only base series -- block fs kernel lib mm net virt |
		sed -n 's/\.c$/.o/p' | while read -r file; do
		! enabled "$file" || echo "$file"
	done
}

# Is this object built, as far as its Makefile tells in one line?
enabled() {
	local option

	option=$(sed -nE "s/^obj-\\$\((CONFIG_\w+)\).*\<${1##*/}\>.*/\1/p" \
		"$tree/${1%/*}/Makefile")
	[ -z "$option" ] || grep -q "^$option=" "$objs/.config"
}

build_code() {
	local list

	configure || return
	mapfile -t list < <(targets)
	kmake "${list[@]}" || return
	! grep -q '^CONFIG_MODULES=y' "$objs/.config" || not_exported
}

# Folders alone are not linked: a symbol that a module takes from elsewhere must
# be one of its own folder's or exported
not_exported() {
	local list

	mapfile -t list < <(cat "$objs"/drivers/vfio/{,pci/}modules.order 2>/dev/null |
		sed "s,^,$objs/," | sort -u)
	[ ${#list[@]} -gt 0 ] || return 0
	comm -23 <(nm -u "${list[@]}" | awk 'NF == 2 { print $2 }' | sort -u) \
		<(tgit grep -ohE 'EXPORT_[A-Z_]*SYMBOL[A-Z_]*\(\w+' -- '*.[chS]' |
			sed 's/.*(//' | sort -u) |
		sed 's/^/modules: error: not exported: /'
}
