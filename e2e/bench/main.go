// SPDX-License-Identifier: Apache-2.0

// Command bench prints the project's figures, one line each: BENCH <name> <value> <unit>. Figures that are compared
// with each other come from one run, interleaved, so that a busy machine slows both. Run it with `make bench`.
package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/bpfvol/bpfvol/internal/bpftest"
)

// groups are run in this order; BENCH=<name> runs one.
var groups = []struct {
	name string
	run  func(ctx context.Context, bpfvol string) error
}{
	{"node", benchNode},
	{"trust", benchTrust},
	{"json", benchJSON},
	{"verify", benchVerify},
	{"dispatcher", benchDispatcher},
}

func main() {
	if len(os.Args) < 2 || os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "usage (as root): bench BPFVOL [GROUP]")
		os.Exit(2)
	}
	done, err := bpftest.Alone()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	defer done()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	for _, g := range groups {
		if len(os.Args) > 2 && os.Args[2] != "" && os.Args[2] != g.name {
			continue
		}
		if err := g.run(ctx, os.Args[1]); err != nil {
			fmt.Fprintf(os.Stderr, "bench %s: %v\n", g.name, err)
			os.Exit(1)
		}
	}
}

func figure(name string, value float64, unit string) {
	fmt.Printf("BENCH %s %s %s\n", name, strings.TrimRight(strings.TrimRight(fmt.Sprintf("%.3f", value), "0"), "."), unit)
}

func median(samples []time.Duration) float64 {
	slices.Sort(samples)
	return milliseconds(samples[len(samples)/2])
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
