#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Unpacks the newest cloud kernel of a Debian suite into a directory, unless one is there, and prints its release:
#
#   kernel.sh bookworm .cache/vm/6.1
#
# apt finds and checks the package, with an index of its own: the machine's configuration stays as it is. The mirror is
# the one that the machine uses; on what is not Debian, set DEBIAN_MIRROR.
set -euo pipefail

suite=${1:?usage: kernel.sh SUITE DIR}
dir=${2:?usage: kernel.sh SUITE DIR}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

release() { basename "$dir"/boot/vmlinuz-* | sed 's/^vmlinuz-//'; }

if compgen -G "$dir/boot/vmlinuz-*" >/dev/null; then
	release
	exit
fi

# The first of the machine's own mirrors, and not the one that has security updates alone.
mirror() {
	apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' | grep -v security | head -n 1 || true
}

mirror=${DEBIAN_MIRROR:-$(mirror)}
if [ -z "$mirror" ] && [ "$(id -u)" = 0 ]; then # who is Debian is in the lists, which a fresh machine has not
	apt-get -qq update
	mirror=$(mirror)
fi
if [ -z "$mirror" ]; then
	echo "kernel.sh: apt knows no Debian mirror; set DEBIAN_MIRROR" >&2
	exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
cat >"$work/debian.sources" <<SOURCES
Types: deb
URIs: $mirror
Suites: $suite
Components: main
Architectures: amd64
Signed-By: $keyring
SOURCES
apt=(-qq -o Dir::Etc::SourceList="$work/debian.sources" -o Dir::Etc::SourceParts=/dev/null
	-o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root
	-o APT::Architecture=amd64 -o Acquire::Languages=none)

apt-get "${apt[@]}" update
# The metapackage depends on the newest kernel, whose name has the release in it.
package=$(apt-cache "${apt[@]}" depends linux-image-cloud-amd64 | awk '/Depends: linux-image-/ { print $2; exit }')
(cd "$work" && apt-get "${apt[@]}" download "$package")

# Renamed when complete: a cache that was cut short would be taken for one.
mkdir -p "$(dirname "$dir")"
rm -rf "$dir" "$dir.new"
dpkg-deb -x "$work"/linux-image-*.deb "$dir.new"
mv "$dir.new" "$dir"
release
