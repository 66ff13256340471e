// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"sigs.k8s.io/yaml"
)

func FuzzParse(f *testing.F) {
	for _, file := range []string{"testdata/good.txtar", "testdata/bad.txtar"} {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for _, part := range archive.Files {
			var a map[string]string
			if yaml.Unmarshal(part.Data, &a) == nil && a != nil {
				f.Add(a["image"], a["attach"], a["maps"], a["variables"], a["mapEntries"], a["pullPolicy"], "", "")
			}
		}
	}
	f.Add("a:1", "", "", "a: \"\\x01\\ufeff\\u2028\\n \"", "", "", "", "")
	f.Add("a:1", "", "", "a: |\n  text\n\n", "", "", "\x00", "\xff")
	f.Fuzz(func(t *testing.T, image, attach, maps, variables, mapEntries, pullPolicy, key, v string) {
		attributes := map[string]string{}
		for k, v := range map[string]string{
			"image": image, "attach": attach, "maps": maps, "variables": variables, "mapEntries": mapEntries,
			"pullPolicy": pullPolicy, key: v,
		} {
			if v != "" {
				attributes[k] = v
			}
		}
		s, err := Parse(attributes)
		if err != nil {
			checkError(t, err)
			return
		}
		again, err := Parse(s.Attributes())
		if err != nil {
			t.Fatalf("canonical attributes %q: %v", s.Attributes(), err)
		}
		if diff := cmp.Diff(s, again); diff != "" {
			t.Errorf("canonical attributes %q mean something else (-want +got):\n%s", s.Attributes(), diff)
		}
		if diff := cmp.Diff(s.Attributes(), again.Attributes()); diff != "" {
			t.Errorf("canonical attributes are not the same twice (-want +got):\n%s", diff)
		}
	})
}
