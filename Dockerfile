# SPDX-License-Identifier: Apache-2.0
#
#   docker buildx build --platform linux/amd64,linux/arm64 --build-arg VERSION=$(git describe --tags --always) -t bpfvol .
#
# The image holds the static binaries, which lie beside each other, and the certificates for registries. What the node
# plugin's pod needs, and why, is in docs/adr/0004-unprivileged-pod.md.
FROM --platform=$BUILDPLATFORM golang:1.26 AS build
ARG TARGETOS TARGETARCH VERSION=dev
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY . .
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -buildvcs=false -tags=grpcnotrace -ldflags "-s -w -X main.version=$VERSION" -o /out/ ./cmd/bpfvol ./cmd/bpfvol-provision

FROM scratch
LABEL org.opencontainers.image.title="bpfvol" \
      org.opencontainers.image.description="eBPF programs as Kubernetes volumes" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY LICENSE /LICENSE
COPY --from=build /out/bpfvol /out/bpfvol-provision /
ENTRYPOINT ["/bpfvol"]
CMD ["serve"]
