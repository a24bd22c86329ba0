# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2154 # BUILD is set in lib.sh
# Sourced after lib.sh: kernel sources, from Debian

download=$BUILD/download
apt=$download/apt

# The mirror this machine uses for the main archive, not the security one
debian_mirror() {
	# shellcheck disable=SC2016 # those are apt's words
	apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' |
		grep -E '/debian/?$' | sort -u | head -n 1
}

# debian_root SUITE TARGET OPTION...: Debian in a folder or tarball, by mmdebstrap from
# that mirror. It may be a snapshot: its signature counts, not its age.
debian_root() {
	local suite=$1 target=$2 mirror
	shift 2

	mirror=$(debian_mirror)
	[ -n "$mirror" ] || { echo "apt has no mirror of Debian" >&2; return 1; }
	mmdebstrap "$@" --aptopt='Acquire::Check-Valid-Until "false"' \
		--aptopt='Acquire::Retries "3"' "$suite" "$target" \
		"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main"
}

# An apt of our own: neither the system's sources nor its state are touched
setup_apt() {
	local mirror suite

	command -v apt-get > /dev/null || return
	mirror=$(debian_mirror)
	[ -n "$mirror" ] || return
	mkdir -p "$apt"/{lists/partial,cache/archives/partial,empty}
	cat > "$apt/apt.conf" <<-CONF
		Dir::State "$apt";
		Dir::State::lists "$apt/lists";
		Dir::State::status "/dev/null";
		Dir::Cache "$apt/cache";
		Dir::Etc::sourcelist "$apt/sources.list";
		Dir::Etc::sourceparts "$apt/empty";
		Dir::Etc::preferencesparts "$apt/empty";
		Acquire::Languages "none";
		Acquire::Retries "3";
		APT::Sandbox::User "root";
	CONF
	for suite in trixie-backports testing unstable experimental; do
		echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" \
			"$mirror $suite main"
	done > "$apt/sources.list"
	export APT_CONFIG=$apt/apt.conf
	# One suite that cannot be read must not hide the others
	apt-get -qq update >&2 || true
}

# The versions of PACKAGE, the oldest first
debian_versions() {
	apt-cache madison "$1" | cut -d'|' -f2 | tr -d ' ' | sort -uV
}

# "PACKAGE VERSION" of the newest kernel source
newest_source() {
	local package

	package=$(apt-cache search --names-only '^linux-source-[0-9.]+$' |
		cut -d' ' -f1 | sort -V | tail -n 1)
	echo "$package $(debian_versions "$package" | tail -n 1)"
}

# debian_tarball PACKAGE VERSION FILE: the kernel source that is in the package
debian_tarball() {
	local package=$1 version=$2 file=$3 deb

	say "downloading $package $version" >&2
	(cd "$download" && apt-get -qq download "$package=$version" >&2) || return
	deb=$(find "$download" -maxdepth 1 -name "${package}_*.deb" | head -n 1)
	dpkg-deb --fsys-tarfile "$deb" |
		tar -xO "./usr/src/$package.tar.xz" > "$file.part" || return
	rm -f "$deb"
	mv "$file.part" "$file"
}

# The base as Debian has it: the version in BASE where a mirror still has it, else the
# newest of that package
base_from_debian() {
	local tarball=$1 versions version

	say "looking for $PACKAGE in Debian" >&2
	setup_apt || return
	versions=$(debian_versions "$PACKAGE")
	version=$(grep -xF "$PACKAGE_VERSION" <<< "$versions" || tail -n 1 <<< "$versions")
	[ -n "$version" ] && debian_tarball "$PACKAGE" "$version" "$tarball" || return
	[ "$version" != "$PACKAGE_VERSION" ] || sha256sum --status -c <<< "$SHA256  $tarball" ||
		{ rm -f "$tarball"; die "$PACKAGE $version: wrong sha256"; }
}

base_from_kernel_org() {
	local url=https://cdn.kernel.org/pub/linux/kernel/v${VERSION%%.*}.x/linux-$VERSION.tar.xz

	say "downloading $url" >&2
	curl -fsSL --retry 2 -o "$1.part" "$url" >&2 && mv "$1.part" "$1"
}

# Print the name of the base's tarball, or KSRC where that is set
fetch_base() {
	local tarball=$download/$PACKAGE.tar.xz

	if [ -n "${KSRC-}" ]; then
		realpath -m "$KSRC"
		return
	fi
	mkdir -p "$download"
	[ -s "$tarball" ] || base_from_debian "$tarball" || base_from_kernel_org "$tarball" ||
		die "Linux $VERSION is to be had neither from Debian nor from kernel.org. Get" \
			"linux-$VERSION.tar.xz (or Debian's $PACKAGE) in another way and" \
			"run: make KSRC=/path/to/the/tarball/or/tree"
	sha256sum --status -c <<< "$SHA256  $tarball" ||
		say "NOTICE: $tarball is not the one that BASE names" >&2
	echo "$tarball"
}
