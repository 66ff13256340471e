#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# build.sh [node] [upstream]: builds what tests run of Kubernetes and prints the directory that holds it, ~/.cache/bpfvol/kubernetes:
#
#   hyperkube                     Kubernetes' components and etcd, one static binary
#
# and, with "node", what else a node runs:
#
#   containerd, containerd-shim-runc-v2, runc, ptp, host-local, loopback, pause
#
# and, with "upstream", Kubernetes' own tests of storage and the main image of their containers:
#
#   upstream, agnhost
#
# The sources come from the Go module proxy at the versions of each folder's go.mod. runc wants a C compiler and
# libseccomp (e2e/setup.sh e2e). A cold build takes about ten minutes on two cores, so what is built is kept outside the
# clone, stamped by what it was made of.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
DIR=${XDG_CACHE_HOME:-$HOME/.cache}/bpfvol/kubernetes
PATH=$PATH:/usr/local/go/bin
mkdir -p "$DIR"
exec 9>"$DIR/.lock"
flock 9 # another run that builds it saves this one the work

export GOFLAGS='-buildvcs=false -trimpath -mod=readonly'

# part NAME: runs the function of that name in the folder of that name, unless what is there was made by the same function and
# Go from the same files.
part() {
	local name=$1 stamp
	cd "$HERE/$name"
	stamp=$({ go env GOVERSION GOARCH && declare -f "$name" && find . -maxdepth 1 -type f -print0 | sort -z | xargs -0 cat; } | sha256sum | cut -c1-16)
	[ "$(cat "$DIR/$name.stamp" 2>/dev/null)" != "$stamp" ] || return 0
	echo "build.sh: $name, once" >&2
	"$name"
	echo "$stamp" >"$DIR/$name.stamp"
}

compile() { nice -n "${BUILD_NICE:-5}" go build "$@"; }

hyperkube() {
	local version major minor at=k8s.io/component-base/version
	version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
	IFS=. read -r major minor _ <<<"${version#v}"
	CGO_ENABLED=0 compile -o "$DIR/hyperkube" -ldflags \
		"-s -w -X $at.gitVersion=$version -X $at.gitMajor=$major -X $at.gitMinor=$minor -X $at.gitTreeState=clean" .
}

runtime() {
	local containerd=github.com/containerd/containerd/v2 plugins=github.com/containernetworking/plugins/plugins flags
	flags="-s -w -X $containerd/version.Version=$(go list -m -f '{{.Version}}' $containerd)"
	CGO_ENABLED=0 compile -o "$DIR/" -ldflags "$flags" \
		-tags 'urfave_cli_no_docs no_btrfs no_devmapper no_zfs no_tracing osusergo netgo static_build' \
		$containerd/cmd/containerd $plugins/main/ptp $plugins/main/loopback $plugins/ipam/host-local
	CGO_ENABLED=0 compile -o "$DIR/" -ldflags "$flags" -tags 'no_grpc osusergo netgo static_build' $containerd/cmd/containerd-shim-runc-v2
	# Without the tag no container could have a seccomp profile, not even the runtime's own.
	CGO_ENABLED=1 compile -o "$DIR/runc" -ldflags '-s -w' -buildmode=pie -tags 'seccomp urfave_cli_no_docs' github.com/opencontainers/runc
}

pause() { CGO_ENABLED=0 compile -o "$DIR/pause" -ldflags '-s -w' .; }

upstream() {
	CGO_ENABLED=0 compile -o "$DIR/" -ldflags '-s -w' . k8s.io/kubernetes/test/images/agnhost
}

part hyperkube
for what in "$@"; do
	case $what in
	node)
		part runtime
		part pause
		;;
	upstream) part upstream ;;
	*)
		echo 'usage: build.sh [node] [upstream]' >&2
		exit 2
		;;
	esac
done
ln -sfn hyperkube "$DIR/kubectl" # it goes by its name, too
echo "$DIR"
