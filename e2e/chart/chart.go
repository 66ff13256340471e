// SPDX-License-Identifier: Apache-2.0

// Package chart runs helm with the chart deploy/helm/bpfvol, for tests of the chart and for those that a cluster installs
// it for. helm is built from its module, tools/helm, so nothing need be installed.
package chart

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/bpfvol/bpfvol/e2e/gobuild"
)

//go:generate go run ./schema ../../deploy/crd/bpfvol.io_bytecodepolicies.yaml ../../deploy/helm/bpfvol/values.schema.json

// Dir returns the chart's directory.
func Dir() string { return filepath.Join(gobuild.Root(), "deploy", "helm", "bpfvol") }

// Helm is a helm that talks to one API server.
type Helm struct {
	Kubeconfig string // empty: none, for what needs no cluster
}

// Run runs helm and returns its standard output. The error has what it printed on standard error.
func (h Helm) Run(t testing.TB, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), Binary(t), args...)
	home := t.TempDir()
	cmd.Env = append(os.Environ(),
		"KUBECONFIG="+h.Kubeconfig, "HOME="+home, "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("helm %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// Must is Run for what has to succeed.
func (h Helm) Must(t testing.TB, args ...string) string {
	t.Helper()
	out, err := h.Run(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Binary returns the path of helm.
func Binary(t testing.TB) string {
	t.Helper()
	binary, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return binary
}

// build makes bin/helm. go build looks at what it was made of, so this takes a second where it is up to date.
var build = sync.OnceValues(func() (string, error) {
	binary := filepath.Join(gobuild.Root(), "bin", "helm")
	return binary, gobuild.Build(context.Background(), binary, "tools/helm", "helm.sh/helm/v4/cmd/helm", "-trimpath")
})
