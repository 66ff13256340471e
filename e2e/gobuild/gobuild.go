// SPDX-License-Identifier: Apache-2.0

// Package gobuild builds programs of this repository for tests and benchmarks, as the Makefile does: static, and whatever the
// environment says.
package gobuild

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// Root returns the directory of the repository.
func Root() string {
	_, file, _, ok := runtime.Caller(0)
	if !ok || !filepath.IsAbs(file) {
		panic("gobuild: tests must be built with the paths of their source")
	}
	return filepath.Join(filepath.Dir(file), "..", "..")
}

// Build builds a package, by its path in a module of the repository ("" is the main one, "tools/helm" another), to the file
// output. flags are more of `go build`'s.
func Build(ctx context.Context, output, module, pkg string, flags ...string) error {
	args := append([]string{"build", "-tags=grpcnotrace", "-buildvcs=false", "-mod=readonly", "-o", output}, flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, pkg)...)
	cmd.Dir = filepath.Join(Root(), module)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w: %s", filepath.Join(module, pkg), err, strings.TrimSpace(string(out)))
	}
	return nil
}
