# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2154 # BUILD is set in lib.sh
# Sourced after lib.sh: kernel sources in Debian

download=$BUILD/download
apt=$download/apt

# The mirror this machine uses for the main archive, not the security one
debian_mirror() {
	# shellcheck disable=SC2016 # those are apt's words
	apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' |
		grep -E '/debian/?$' | sort -u | head -n 1
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
	CONF
	[ "$(id -u)" -ne 0 ] ||
		echo 'APT::Sandbox::User "root";' >> "$apt/apt.conf"
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
