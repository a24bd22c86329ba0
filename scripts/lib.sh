# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2034 # for those who source this
# Shared by the scripts here. BUILD is the build folder, made absolute.

set -euo pipefail

top=$(realpath "$(dirname "${BASH_SOURCE[0]}")/..")
BUILD=$(realpath -m "${BUILD:-$top/build}")
linux=$BUILD/linux
patches=$top/patches

say() {
	echo "== $*"
}

die() {
	echo "${0##*/}: $*" >&2
	exit 1
}

# shellcheck source=BASE
. "$top/BASE"
