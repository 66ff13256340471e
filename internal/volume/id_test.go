// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"strings"
	"testing"
)

func TestFileNamesAreDistinctAndSafe(t *testing.T) {
	sum := sha256.Sum256([]byte("a.b"))
	ids := []string{
		"csi-0123456789abcdef", "a", "a.b", "a/b", "../a", "a\x00b", "", " ", "-a", "_a", "ü",
		strings.Repeat("a", 128), strings.Repeat("a", 129), strings.Repeat("a", 1000),
		"sha256-" + hex.EncodeToString(sum[:]), // the name that "a.b" gets
		"sha256-x",
	}
	safe := regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$`)
	seen := map[string]string{}
	for _, id := range ids {
		name := FileName(id)
		if !safe.MatchString(name) {
			t.Errorf("%q: name %q is not safe", id, name)
		}
		if other, ok := seen[name]; ok {
			t.Errorf("%q and %q have the same name %q", id, other, name)
		}
		seen[name] = id
	}
	if got := FileName("csi-0123456789abcdef"); got != "csi-0123456789abcdef" {
		t.Errorf("kubelet's id became %q", got)
	}
}
