// SPDX-License-Identifier: Apache-2.0

package nodetest

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Hostid returns the paths of hostid(1), which calls gethostid(3) once, and of the library that has that function.
// Nothing else on a machine calls it, so probes there can be counted.
func Hostid(t testing.TB) (program, libc string) {
	t.Helper()
	program, err := exec.LookPath("hostid")
	if err != nil {
		t.Skip(err)
	}
	out, err := exec.Command("ldd", program).Output()
	if err != nil {
		t.Skipf("ldd %s: %v", program, err)
	}
	for _, word := range strings.Fields(string(out)) {
		if !filepath.IsAbs(word) || !strings.HasPrefix(filepath.Base(word), "libc.") {
			continue
		}
		if libc, err = filepath.EvalSymlinks(word); err != nil {
			t.Fatal(err)
		}
		return program, libc
	}
	t.Skipf("%s has no shared libc: %s", program, out)
	return "", ""
}
