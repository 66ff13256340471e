#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# build.sh [DIR]: builds Kubernetes' components as one static binary, DIR/hyperkube, and prints its path.
#
# The sources come from the Go module proxy at the versions of hyperkube/go.mod. A cold build takes about eight minutes
# on two cores, so the binary is kept outside the clone, stamped by what it was made of. DIR defaults to
# ~/.cache/bpfvol/k8s.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
DIR=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/bpfvol/k8s}
PATH=$PATH:/usr/local/go/bin
mkdir -p "$DIR"
exec 9>"$DIR/.lock"
flock 9 # another run that builds it saves this one the work

cd "$HERE/hyperkube"
export CGO_ENABLED=0 GOFLAGS='-buildvcs=false -trimpath -mod=readonly'
stamp=$({ go env GOVERSION GOARCH && cat ./*.go go.mod go.sum "$HERE/build.sh"; } | sha256sum | cut -c1-16)
if [ "$(cat "$DIR/hyperkube.stamp" 2>/dev/null)" != "$stamp" ]; then
	version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
	echo "build.sh: Kubernetes $version from its modules: minutes, once" >&2
	IFS=. read -r major minor _ <<<"${version#v}"
	at=k8s.io/component-base/version
	nice -n "${BUILD_NICE:-5}" go build -ldflags "-s -w -X $at.gitVersion=$version -X $at.gitMajor=$major -X $at.gitMinor=$minor -X $at.gitTreeState=clean" \
		-o "$DIR/hyperkube" .
	echo "$stamp" >"$DIR/hyperkube.stamp"
fi
echo "$DIR/hyperkube"
