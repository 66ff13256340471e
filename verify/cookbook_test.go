// SPDX-License-Identifier: Apache-2.0

package verify_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	yaml "sigs.k8s.io/yaml/goyaml.v3"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/internal/volume"
	"github.com/bpfvol/bpfvol/verify"
	"github.com/bpfvol/bpfvol/verify/cosign"
)

const cookbook = "../docs/policy.md"

var yamlBlock = regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$")

// Every block of the cookbook can be used as it stands: policies are compiled, and attributes of volumes parsed.
func TestCookbookIsValid(t *testing.T) {
	text, err := os.ReadFile(cookbook)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	kinds := map[string]int{}
	for _, block := range yamlBlock.FindAllSubmatch(text, -1) {
		dec := yaml.NewDecoder(bytes.NewReader(block[1]))
		for {
			var object struct {
				Kind string
				Spec struct {
					CSI struct {
						VolumeAttributes map[string]string `yaml:"volumeAttributes"`
					}
				}
			}
			if err := dec.Decode(&object); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Errorf("%v in\n%s", err, block[1])
				break
			}
			kinds[object.Kind]++
			switch object.Kind {
			case v1alpha1.Kind:
				policies, err := verify.ParsePolicies(block[1], "policy.md", cosign.Compile)
				if err != nil {
					t.Errorf("%v in\n%s", err, block[1])
				}
				for _, p := range policies {
					if names[p.Name] {
						t.Errorf("two policies are called %s", p.Name)
					}
					names[p.Name] = true
					for _, s := range verify.Describe(p, func(verify.Authority) string { return "" }) {
						// Objects of a cluster have no subjects, and the trusted root is on the reader's nodes.
						if !s.OK && s.Stage != "subject" && !strings.HasSuffix(s.Text, "trusted_root.json: no such file or directory") {
							t.Errorf("policy %s: %s", p.Name, s.Text)
						}
					}
				}
			case "PersistentVolume":
				if _, err := volume.Parse(object.Spec.CSI.VolumeAttributes); err != nil {
					t.Error(err)
				}
			case "ClusterRole", "RoleBinding":
			default:
				t.Errorf("nobody checks kind %q", object.Kind)
			}
		}
	}
	if kinds[v1alpha1.Kind] < 6 || kinds["PersistentVolume"] == 0 {
		t.Errorf("found %v", kinds)
	}
}

// The table of fields is that of the schema, in its order.
func TestCookbookHasEveryField(t *testing.T) {
	text, err := os.ReadFile(cookbook)
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllSubmatch(text, -1) {
		documented = append(documented, string(row[1]))
	}
	want := fields(reflect.TypeFor[v1alpha1.BytecodePolicySpec](), "")
	slices.Sort(want)
	slices.Sort(documented)
	// A list of its own kind has a row beside those of its entries.
	documented = slices.DeleteFunc(documented, func(name string) bool { return name == "authorities" })
	if diff := cmp.Diff(want, documented); diff != "" {
		t.Errorf("fields (-schema +%s):\n%s", cookbook, diff)
	}
}

// fields are the paths of the values that a schema has.
func fields(t reflect.Type, path string) []string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct:
		return fields(t.Elem(), path+"[]")
	case t.Kind() != reflect.Struct:
		return []string{path}
	}
	var out []string
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if path != "" {
			name = path + "." + name
		}
		out = append(out, fields(t.Field(i).Type, name)...)
	}
	return out
}
