// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"testing"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// Every hook that a policy can name has a check, and the answer is that of the whole report.
func TestEveryHookHasACheck(t *testing.T) {
	all := map[string]Check{}
	for _, c := range Run(t.Context(), "") {
		all[c.Name] = c
	}
	checks := RunHooks(t.Context(), volume.Kinds)
	if len(checks) != len(volume.Kinds) {
		t.Fatalf("%d checks for %d hooks", len(checks), len(volume.Kinds))
	}
	for i, kind := range volume.Kinds {
		names := checksOf[kind]
		if names == nil {
			names = []string{string(kind)}
		}
		want := false
		for _, name := range names {
			c, ok := all[name]
			if !ok {
				t.Errorf("hook %s: there is no check %q", kind, name)
			}
			want = want || c.OK
		}
		if got := checks[i]; got.Name != string(kind) || got.OK != want || !got.OK && got.Reason == "" {
			t.Errorf("hook %s: got %+v, the report says %v", kind, got, want)
		}
	}
}
