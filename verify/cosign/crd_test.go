// SPDX-License-Identifier: Apache-2.0

package cosign

import (
	"os"
	"strings"
	"testing"
)

// The API server tries expressions on the same identities: its rules stand in markers, where no variable can.
func TestCRDHasTheSameNobodies(t *testing.T) {
	types, err := os.ReadFile("../../api/v1alpha1/types.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, nobody := range nobodies {
		word := "'" + strings.ReplaceAll(nobody, "\u2603", `\\u2603`) + "'.matches("
		if got := strings.Count(string(types), word); got != 2 {
			t.Errorf("%s is in %d rules of api/v1alpha1, want 2: issuerRegexp's and subjectRegexp's", word, got)
		}
	}
	if got := strings.Count(string(types), ".matches('^(?:' + self + ')$')"); got != 2*len(nobodies) {
		t.Errorf("api/v1alpha1 tries %d identities, want %d", got, 2*len(nobodies))
	}
}
