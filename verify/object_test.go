// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"strings"
	"testing"
)

const object = `{
	"apiVersion": "bpfvol.io/v1alpha1", "kind": "BytecodePolicy",
	"metadata": {"name": "acme", "uid": "5a", "resourceVersion": "7", "managedFields": [{"manager": "kubectl"}]},
	"spec": {"images": ["ghcr.io/acme/**"], "authorities": [{"key": {"data": "k"}}]}
}`

func TestObjectIsReadLikeAFile(t *testing.T) {
	got, err := CompileObject([]byte(object), fakeCompile)
	if err != nil {
		t.Fatal(err)
	}
	if got.Name != "acme" || len(got.Images) != 1 || len(got.Authorities) != 1 || got.Allow.MaxPriority != maxPriority {
		t.Errorf("got %+v", got)
	}
}

func TestObjectIsRefused(t *testing.T) {
	for _, c := range []struct{ name, from, to, want string }{
		{"subjects", `"authorities"`, `"subjects": ["net/agent"], "authorities"`, `policy "acme": spec.subjects: in a cluster RBAC says who`},
		{"field of a later version", `"authorities"`, `"notOn": ["node-1"], "authorities"`, `unknown field "spec.notOn"`},
		{"trusted root without a directory", `"key": {"data": "k"}`, `"keyless": {"issuer": "i", "subject": "s"}, "trustedRoot": {"file": "root.json"}`, `spec.authorities[0].trustedRoot.file: "root.json" is no absolute path on the node`},
		{"bad key", `"k"`, `"bad"`, `policy "acme": spec.authorities[0]: key.data: is not PEM`},
		{"no spec", `"spec"`, `"status"`, "spec.images is empty"},
		{"another kind", `"BytecodePolicy"`, `"Pod"`, `is "Pod" of`},
		{"no JSON", `{`, ``, "policy object: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := CompileObject([]byte(strings.Replace(object, c.from, c.to, 1)), fakeCompile)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q in it", err, c.want)
			}
		})
	}
}
