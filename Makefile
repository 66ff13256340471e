# SPDX-License-Identifier: Apache-2.0

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
PACKAGES ?= ./...

export CGO_ENABLED = 0
export PATH := $(PATH):/usr/local/go/bin:/usr/sbin:/sbin
# The version comes from the linker flags; asking git again fails in checkouts that belong to someone else.
# grpcnotrace: gRPC's traces are the one user of text/template, whose calls by name would keep every method of every type in
# the binary: a fifth of its size, and of the memory of an idle daemon.
export GOFLAGS := $(strip $(GOFLAGS) -buildvcs=false -tags=grpcnotrace)

GO_BUILD = $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)'

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/bpfvol and bin/bpfvol-provision, static binaries. Needs Go alone
	$(GO_BUILD) -o bin/ ./cmd/bpfvol ./cmd/bpfvol-provision

.PHONY: demo
demo: setup-demo build ## Tell the story of one volume on this machine, every step real. As root
	$(GO_BUILD) -o bin/reader ./deploy/examples/reader
	$(GO) run ./e2e/demo bin/bpfvol bin/reader

# Packages that use the kernel run one after another, and go test counts their waiting.
.PHONY: test
test: setup-test vet ## Run every test. As root; without, kernel tests skip. PACKAGES=./loader runs some
	$(GO) test -timeout 30m $(PACKAGES)

.PHONY: test-vm
test-vm: setup-vm ## Run the kernel tests on Linux 6.1 and 6.12 too, in QEMU. KERNEL=6.1 runs one, PACKAGES=./loader and RUN=Load some
	$(GO) run ./e2e/vm $(if $(KERNEL),-kernel $(KERNEL)) $(if $(RUN),-run '$(RUN)') $(filter-out ./...,$(PACKAGES))

.PHONY: e2e
e2e: setup-e2e ## Run a real Kubernetes node with the plugin on it, and its scenarios. As root. RUN=Restart runs some
	@start=$$(date +%s); $(GO) test -tags=grpcnotrace,e2e -count=1 -timeout 40m -v $(if $(RUN),-run '$(RUN)') ./e2e/kubernetes; status=$$?; \
	echo "BENCH e2e.total_s $$(($$(date +%s) - start)) s"; exit $$status

.PHONY: e2e-upstream
e2e-upstream: setup-e2e ## Run Kubernetes' own suite for CSI drivers against the plugin on such a node. As root
	$(GO) test -tags=grpcnotrace,e2e,upstream -count=1 -timeout 90m -v -run '^TestUpstreamStorageSuite$$' ./e2e/kubernetes

.PHONY: sanity
sanity: setup-demo ## Run csi-sanity, CSI's conformance suite, against the real daemon and kernel. As root
	$(GO) test -C e2e/sanity -timeout 15m -count=1 -v .

.PHONY: crash
crash: setup-demo ## Fail and kill the daemon at every system call that changes something, and again and again. As root
	$(GO) test ./e2e/crash -timeout 20m -count=1 -parallel 4 -args -all

.PHONY: fuzz
fuzz: ## Fuzz everything that reads what others wrote, FUZZTIME (20s) each. PACKAGES='./loader ./verify/...' fuzzes some
	@grep -rlE '^func Fuzz' --include='*_test.go' $(patsubst %/...,%,$(PACKAGES)) | while read -r file; do \
		for name in $$(sed -nE 's/^func (Fuzz[A-Za-z0-9_]*)\(.*/\1/p' "$$file"); do \
			$(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(or $(FUZZTIME),20s) -fuzzminimizetime 10x "$$(dirname "$$file")" </dev/null || exit 1; \
		done; \
	done

.PHONY: bench
bench: setup-demo build ## Print the figures, a line each. As root. BENCH=node runs one group
	$(GO) run ./e2e/bench bin/bpfvol $(BENCH)

.PHONY: lint
lint: vet bin/golangci-lint ## Check format, vet and lint
	@test -z "$$(gofmt -l .)" || { gofmt -d .; exit 1; }
	bin/golangci-lint run $(PACKAGES)
	cd e2e/sanity && ../../bin/golangci-lint run # a module of its own

.PHONY: vet
vet:
	$(GO) vet -tags=grpcnotrace,e2e,upstream $(PACKAGES)

.PHONY: generate
generate: setup-test ## Make the committed BPF objects and documents again
	$(GO) generate ./...

.PHONY: clean
clean: ## Remove what was built
	rm -rf bin

.PHONY: setup-demo setup-test setup-e2e setup-vm
setup-demo setup-test setup-e2e setup-vm: setup-%:
	@e2e/setup.sh $*

# Its version is pinned in tools/go.mod, a module of its own: a linter's dependencies are not the program's.
bin/golangci-lint: tools/go.mod tools/go.sum
	cd tools && $(GO) build -o ../$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	@touch $@
