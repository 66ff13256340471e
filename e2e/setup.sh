#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Installs what `make` needs beyond Go, with apt, and nothing that is there already:
#
#   setup.sh demo   what the demo and the benchmarks run: ip, ping
#   setup.sh test   that, and what the tests and `make generate` need: clang, libbpf's headers, other people's objects
#   setup.sh e2e    what builds and runs a node of Kubernetes: a C compiler and libseccomp for runc, a static busybox
#   setup.sh vm     what test needs, and what runs the tests on other kernels: QEMU, what checks and unpacks Debian's packages,
#                   and SELinux's compiler
set -eu

PATH=$PATH:/usr/sbin:/sbin # where ip, tc and bpftool are; a plain `su` leaves them out

packages=
optional=
command_of() { command -v "$1" >/dev/null 2>&1 || packages="$packages $2"; }

command_of ip iproute2
command_of ping iputils-ping
case ${1:-} in
demo) ;;
e2e)
	command_of gcc gcc
	command_of pkg-config pkg-config
	[ -e /usr/include/seccomp.h ] || packages="$packages libseccomp-dev libc6-dev"
	command_of busybox busybox-static
	;;
test | vm)
	command_of git git
	command_of clang clang
	command_of llvm-strip llvm
	[ -e /usr/include/bpf/bpf_helpers.h ] || packages="$packages libbpf-dev"
	# Not in every release, or under another name (Ubuntu has bpftool in linux-tools): tests that want them say so and skip.
	command -v bpftool >/dev/null 2>&1 || optional="$optional bpftool"
	command -v xdp-loader >/dev/null 2>&1 || optional="$optional xdp-tools"
	[ "$1" = test ] || {
		command_of qemu-system-x86_64 qemu-system-x86
		command_of dpkg-deb dpkg
		command_of xz xz-utils
		command_of nsenter util-linux
		command_of secilc secilc
		[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || packages="$packages debian-archive-keyring"
	}
	;;
*)
	echo "usage: setup.sh demo|test|e2e|vm" >&2
	exit 2
	;;
esac

# Debian's package of this one starts a daemon where it is installed, so it is unpacked instead.
registry=$(dirname "$0")/../.cache/docker-registry
unpack=
[ "${1:-}" != test ] || [ -x "$registry/usr/bin/docker-registry" ] || command -v docker-registry >/dev/null 2>&1 || unpack=docker-registry

[ -n "$packages$optional$unpack" ] || exit 0
if ! command -v apt-get >/dev/null 2>&1 || [ "$(id -u)" != 0 ]; then
	[ -n "$packages" ] || exit 0
	echo "setup: missing; as root on Debian or Ubuntu this script installs it, elsewhere install what corresponds to:$packages" >&2
	exit 1
fi

export DEBIAN_FRONTEND=noninteractive
install() { apt-get install -y -qq --no-install-recommends "$@" >/dev/null; }
[ -z "$packages$optional" ] || echo "setup: apt-get install$packages$optional" >&2
apt-get update -qq
# shellcheck disable=SC2086 # lists
if [ -n "$packages" ]; then install $packages; fi
for package in $optional; do
	install "$package" || echo "setup: no $package here; tests that need it will skip" >&2
done
if [ -n "$unpack" ]; then
	work=$(mktemp -d)
	if (cd "$work" && apt-get download -qq -o APT::Sandbox::User=root "$unpack" && dpkg-deb -x ./*.deb x) >/dev/null; then
		mkdir -p "$(dirname "$registry")"
		rm -rf "$registry"
		mv "$work/x" "$registry"
	else
		echo "setup: no $unpack here; tests that need it will skip" >&2
	fi
	rm -rf "$work"
fi
