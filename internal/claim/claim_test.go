// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bpfvol/bpfvol/internal/volume"
)

func TestParametersBecomeAttributes(t *testing.T) {
	parameters := map[string]string{"image": "ghcr.io/acme/count:v1", "attach": "{program: count, xdp: eth0}"}
	got, err := New(Request{Name: "pvc-0b3f2c1e-7a54-4c5d-9a58-0e5a1f6b7c8d", Parameters: parameters})
	if err != nil {
		t.Fatal(err)
	}
	want := Volume{ID: "bpfvol-pvc-0b3f2c1e-7a54-4c5d-9a58-0e5a1f6b7c8d", Attributes: parameters}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	got.Attributes["image"] = "other"
	if parameters["image"] != "ghcr.io/acme/count:v1" {
		t.Error("the volume shares its map with the class")
	}
}

func TestWhatNoNodeCouldDoIsRefused(t *testing.T) {
	with := func(key, value string) map[string]string { return map[string]string{"image": "a", key: value} }
	for _, c := range []struct {
		name string
		req  Request
		want string
	}{
		{"no image", Request{}, "parameters: image: is missing; name a bytecode image, like ghcr.io/acme/count:v1"},
		{"unknown key", Request{Parameters: with("imagee", "b")}, `parameters: unknown key "imagee"; did you mean "image"?`},
		{"bad value", Request{Parameters: with("attach", "{program: p, xdp: {interface: eth0, mode: fast}}")}, `parameters: attach.xdp.mode: unknown value "fast"; known are auto, native, generic`},
		{"mount options", Request{MountOptions: []string{"context=x", "ro"}, Parameters: with("maps", "m")}, "mountOptions: a bytecode volume takes none but context=; leave the others out"},
		{"a snapshot", Request{DataSource: true, Parameters: with("maps", "m")}, "dataSource: a bytecode volume has no data to copy; leave it out"},
		{"an attributes class", Request{AttributesClass: true, Parameters: with("maps", "m")}, "volumeAttributesClassName: the attributes of a bytecode volume cannot change; leave it out"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := New(c.req)
			if _, ok := errors.AsType[*Error](err); !ok || err.Error() != c.want {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
		})
	}
}

func TestReservedParametersAreRefused(t *testing.T) {
	for _, key := range []string{"csi.storage.k8s.io/pod.uid", "csi.storage.k8s.io/ephemeral", "csi.storage.k8s.io/serviceAccount.name", "csi.storage.k8s.io/fstype"} {
		_, err := New(Request{Name: "pvc-1", Parameters: map[string]string{"image": "a", key: "true"}})
		if want := `parameters: key "` + key + `" is Kubernetes' own; remove it`; err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}

func TestIDs(t *testing.T) {
	seen := map[string]string{}
	hash := "sha256-" + strings.Repeat("a", 64)
	for _, name := range []string{"pvc-1", "pvc-2", "a.b", "a_b", "a/b", "../b", hash, "bpfvol-pvc-1", strings.Repeat("x", 121), strings.Repeat("x", 122), strings.Repeat("x", 128), strings.Repeat("x", 5000), "é", "\x00"} {
		id := ID(name)
		if other, dup := seen[id]; dup {
			t.Errorf("%.20q and %.20q have one id, %s", name, other, id)
		}
		seen[id] = name
		if len(id) > 128 || volume.FileName(id) != id {
			t.Errorf("%.20q: id %q is no safe file name of at most 128 bytes", name, id)
		}
		if ID(name) != id || !IsID(id) {
			t.Errorf("%.20q: id %q is not known again", name, id)
		}
	}
	for _, id := range []string{"", "bpfvol-", "fake-vol-id", "bpfvol-a/b", "bpfvol-" + strings.Repeat("x", 122)} {
		if IsID(id) {
			t.Errorf("%.20q is taken for an id of ours", id)
		}
	}
}
