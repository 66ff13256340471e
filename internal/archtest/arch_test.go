// SPDX-License-Identifier: Apache-2.0

// Package archtest holds the shape of the house: which package may import which, and which module has one home. It
// reads the import clauses of every file, so it needs neither a compiler nor a kernel.
package archtest

import (
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/bpfvol/bpfvol"

// floors says how high each package stands. A package imports only packages of lower floors, so those of one floor
// know nothing of each other. A new package gets its line here.
var floors = map[string]int{
	"api/v1alpha1":           0,
	"internal/volume":        0,
	"internal/kernelstate":   0,
	"internal/panics":        0,
	"bpf":                    0,
	"internal/claim":         1,
	"internal/flagenv":       0,
	"internal/image":         1,
	"verify":                 2,
	"internal/netns":         2,
	"internal/host":          1,
	"internal/privilege":     1,
	"internal/probes":        0,
	"internal/pin":           2,
	"verify/cosign":          3,
	"internal/cluster":       3,
	"internal/podfs/mapjson": 3,
	"internal/admission":     3,
	"internal/hook":          3,
	"dispatcher/fuse":        3,
	"internal/libxdp":        3,
	"loader":                 4,
	"dispatcher":             4,
	"internal/podfs":         4,
	"internal/node":          5,
	"internal/doctor":        5,
	"internal/provision":     5,
	"csi":                    6,
	"cmd/bpfvol":             7,
	"cmd/bpfvol-provision":   7,
}

// benches are packages for tests, the demo and the benchmarks, and examples. Nothing that is shipped imports them.
var benches = []string{
	"bpf/members",
	"deploy/examples",
	"e2e",
	"internal/archtest",
	"internal/bpftest",
	"internal/image/imagetest",
	"verify/cosign/cosigntest",
}

// homes says which packages alone may import a module, or a package of one. Tests and benches may import anything.
// (cosign hands out go-containerregistry's types.)
var homes = map[string][]string{
	"oras.land/oras-go":                                {"internal/image"},
	"github.com/sigstore":                              {"verify/cosign"},
	"google.golang.org/grpc":                           {"csi"},
	"google.golang.org/grpc/codes":                     {"csi"},
	"github.com/container-storage-interface/spec":      {"csi"},
	"github.com/google/go-containerregistry":           {"verify/cosign"},
	"k8s.io/kubelet":                                   {"csi"},
	"github.com/fsnotify/fsnotify":                     {"verify"},
	"github.com/BurntSushi/toml":                       {"internal/image"},
	"github.com/klauspost/compress":                    {"internal/image"},
	"github.com/vishvananda/netlink":                   {"dispatcher", "internal/doctor", "internal/libxdp"},
	"k8s.io/mount-utils":                               {"internal/doctor"},
	"k8s.io/client-go":                                 {"internal/cluster", "internal/provision"},
	"golang.org/x/sys/unix":                            {"dispatcher", "internal/doctor", "internal/hook", "internal/host", "internal/kernelstate", "internal/libxdp", "internal/netns", "internal/node", "internal/pin", "internal/podfs", "internal/podfs/mapjson", "internal/privilege"},
	"kernel.org/pub/linux/libs/security/libcap":        {"internal/privilege"},
	"github.com/spf13/cobra":                           {"cmd/bpfvol", "cmd/bpfvol-provision"},
	"github.com/prometheus/client_golang":              {"cmd/bpfvol", "internal/probes", "internal/provision"},
	"k8s.io/api":                                       {"internal/provision"},
	"sigs.k8s.io/sig-storage-lib-external-provisioner": {"internal/provision"},
	// It would cost an idle daemon eleven MiB (docs/adr/0003-provisioner-is-a-binary-of-its-own.md).
	module + "/internal/provision": {"cmd/bpfvol-provision"},
}

// onlyFile narrows a home to one file.
var onlyFile = map[string]string{
	"google.golang.org/grpc/codes": "csi/errors.go",
}

// source is one Go file that is part of the program: no test.
type source struct {
	file    string // path from the root of the module
	pkg     string
	imports []string
}

func TestImportsPointDownwards(t *testing.T) {
	for _, s := range sources(t) {
		floor, known := floors[s.pkg]
		if !known {
			t.Errorf("%s: package %s stands on no floor; see floors in %s", s.file, s.pkg, "internal/archtest")
			continue
		}
		for _, imported := range s.imports {
			other, ours := strings.CutPrefix(imported, module+"/")
			if !ours {
				continue
			}
			if isBench(other) {
				t.Errorf("%s imports %s, which is for tests", s.file, other)
			} else if below, known := floors[other]; known && below >= floor {
				t.Errorf("%s (floor %d) imports %s (floor %d): imports point downwards", s.file, floor, other, below)
			}
		}
	}
}

func TestModulesStayAtHome(t *testing.T) {
	for _, s := range sources(t) {
		for _, imported := range s.imports {
			for guest, home := range homes {
				if !within(imported, guest) {
					continue
				}
				if !slices.Contains(home, s.pkg) {
					t.Errorf("%s imports %s: only %v may import %s", s.file, imported, home, guest)
				} else if file, ok := onlyFile[guest]; ok && s.file != file {
					t.Errorf("%s imports %s: only %s may", s.file, imported, file)
				}
			}
		}
	}
}

// Every floor and home is of a package that exists: a rule about nothing guards nothing.
func TestRulesAreAboutPackagesThatExist(t *testing.T) {
	exists := map[string]bool{}
	for _, s := range sources(t) {
		exists[s.pkg] = true
	}
	for _, pkg := range slices.Sorted(maps.Keys(floors)) {
		if !exists[pkg] {
			t.Errorf("floors has %s, which does not exist", pkg)
		}
	}
	for guest, home := range homes {
		for _, pkg := range home {
			if !exists[pkg] {
				t.Errorf("homes[%q] has %s, which does not exist", guest, pkg)
			}
		}
	}
}

// TestEveryFileSaysItsLicence: a file that is copied out of the repository must still tell.
func TestEveryFileSaysItsLicence(t *testing.T) {
	want := map[string]string{
		".go": "// SPDX-License-Identifier: Apache-2.0\n\n",
		".c":  "// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)\n",
		".h":  "// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)\n",
	}
	walk(t, func(file string) {
		line, ok := want[path.Ext(file)]
		if !ok {
			return
		}
		b, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(string(b), line) {
			t.Errorf("%s does not begin with %q", file, line)
		}
	})
}

const root = "../.."

func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	walk(t, func(file string) {
		pkg := path.Dir(file)
		if path.Ext(file) != ".go" || strings.HasSuffix(file, "_test.go") || isBench(pkg) {
			return
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, file), nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		s := source{file: file, pkg: pkg}
		for _, spec := range parsed.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			s.imports = append(s.imports, imported)
		}
		all = append(all, s)
	})
	return all
}

// walk calls f for every file of the module, by its path from the root.
func walk(t *testing.T, f func(file string)) {
	t.Helper()
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		file, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if file != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin" || isModule(name)) {
				return fs.SkipDir
			}
			return nil
		}
		f(filepath.ToSlash(file))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// isModule says whether dir is a module of its own, such as tools.
func isModule(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil
}

func isBench(pkg string) bool {
	return slices.ContainsFunc(benches, func(b string) bool { return within(pkg, b) })
}

// within says whether pkg is parent or below it.
func within(pkg, parent string) bool { return pkg == parent || strings.HasPrefix(pkg, parent+"/") }
