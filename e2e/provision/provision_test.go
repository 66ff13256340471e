// SPDX-License-Identifier: Apache-2.0

package provision_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	bytecode "github.com/bpfvol/bpfvol/internal/volume"
)

var counts = map[string]string{
	"image":  "ghcr.io/acme/count@sha256:0002f704642e9b04334a79dd20b6905b3c5d470cd1cf69ce19adb599890e3e7f",
	"attach": "- program: count\n  xdp: {interface: \"@default-route\"}\n",
	"maps":   "flows",
}

// label is for nodes with SELinux.
var label = []string{"context=system_u:object_r:container_file_t:s0"}

func TestClaimGetsAVolume(t *testing.T) {
	c := start(t)
	c.provision(t)
	for _, test := range []struct {
		name, policy string
		modes        []string
		after        string // of the volume, when the claim is gone
	}{
		{"shared", "Delete", []string{"ReadWriteMany"}, ""},
		{"read-only", "Delete", []string{"ReadOnlyMany", "ReadWriteOnce"}, ""},
		{"one-pod", "Delete", []string{"ReadWriteOncePod"}, ""},
		{"kept", "Retain", []string{"ReadWriteOnce"}, "Released"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c.class(t, test.name, counts, func(class map[string]any) {
				class["reclaimPolicy"] = test.policy
				class["mountOptions"] = label
			})
			c.claim(t, test.name, test.name, func(_, spec map[string]any) { spec["accessModes"] = test.modes })
			got := c.bound(t, test.name)

			var want volume
			want.Metadata.Name = "pvc-" + c.Kubectl(t, "get", "pvc", "-n", "shop", test.name, "-o", "jsonpath={.metadata.uid}")
			want.Status.Phase = "Bound"
			want.Spec.AccessModes = test.modes
			want.Spec.Capacity = map[string]string{"storage": "1Mi"}
			want.Spec.PersistentVolumeReclaimPolicy = test.policy
			want.Spec.StorageClassName = test.name
			want.Spec.VolumeMode = "Filesystem"
			want.Spec.MountOptions = label
			want.Spec.CSI.Driver = "csi.bpfvol.io"
			want.Spec.CSI.VolumeHandle = "bpfvol-" + want.Metadata.Name
			want.Spec.CSI.VolumeAttributes = counts
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}

			c.Kubectl(t, "delete", "pvc", "-n", "shop", test.name)
			if test.after == "" {
				c.wait(t, "--for=delete", "pv/"+got.Metadata.Name)
				return
			}
			c.wait(t, "--for=jsonpath={.status.phase}="+test.after, "pv/"+got.Metadata.Name)
		})
	}
}

// The class that most clusters have by default: a claim waits for a pod, and its volume is still one that any node can run.
func TestClaimWaitsForItsPod(t *testing.T) {
	c := start(t)
	c.Scheduler(t, "node-1")
	c.provision(t)
	c.class(t, "later", counts, func(class map[string]any) { class["volumeBindingMode"] = "WaitForFirstConsumer" })
	c.claim(t, "later", "later", nil)
	c.claim(t, "unused", "later", nil)
	for _, pod := range []string{"web-0", "web-1"} {
		c.apply(t, map[string]any{
			"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": pod, "namespace": "shop"},
			"spec": map[string]any{
				"containers": []any{map[string]any{"name": "c", "image": "x"}},
				"volumes":    []any{map[string]any{"name": "bpf", "persistentVolumeClaim": map[string]any{"claimName": "later"}}},
			},
		})
	}
	got := c.bound(t, "later")
	if got.Spec.NodeAffinity != nil {
		t.Errorf("the volume is tied to a node: %v", got.Spec.NodeAffinity)
	}
	c.wait(t, "-n", "shop", "--for=condition=PodScheduled", "pod/web-0", "pod/web-1")
	if phase := c.Kubectl(t, "get", "pvc", "-n", "shop", "unused", "-o", "jsonpath={.status.phase}"); phase != "Pending" {
		t.Errorf("the claim that no pod uses is %s", phase)
	}
}

func TestBadClaimsSayWhy(t *testing.T) {
	c := start(t)
	c.provision(t)
	with := func(key, value string) map[string]string {
		return map[string]string{"image": counts["image"], key: value}
	}
	tests := []struct {
		name       string
		parameters map[string]string
		class      func(map[string]any)
		claim      func(object, spec map[string]any)
		says       string
	}{
		{name: "typo", parameters: with("atach", "x"), says: `parameters: unknown key "atach"; did you mean "attach"?`},
		{name: "value", parameters: with("pullPolicy", "Sometimes"), says: `parameters: pullPolicy: unknown value "Sometimes"; known are Always, IfNotPresent, Never`},
		{name: "none", says: "parameters: image: is missing; name a bytecode image, like ghcr.io/acme/count:v1"},
		{name: "pod-info", parameters: with("csi.storage.k8s.io/ephemeral", "false"), says: `parameters: key "csi.storage.k8s.io/ephemeral" is Kubernetes' own; remove it`},
		{name: "options", parameters: counts, class: func(class map[string]any) { class["mountOptions"] = []string{"ro"} }, says: "mountOptions: a bytecode volume takes none but context=; leave the others out"},
		{name: "copy", parameters: counts, claim: func(_, spec map[string]any) {
			spec["dataSource"] = map[string]any{"kind": "PersistentVolumeClaim", "name": "other"}
		}, says: "dataSource: a bytecode volume has no data to copy; leave it out"},
		{name: "selector", parameters: counts, claim: func(_, spec map[string]any) {
			spec["selector"] = map[string]any{"matchLabels": map[string]any{"a": "b"}}
		}, says: "selector: volumes of a StorageClass have no labels; leave it out"},
		{name: "block", parameters: counts, claim: func(_, spec map[string]any) { spec["volumeMode"] = "Block" }, says: "csi.bpfvol.io does not support block volume provisioning"},
		{name: "half", parameters: with("csi.storage.k8s.io/node-publish-secret-name", "ghcr"), says: `parameters: key "csi.storage.k8s.io/node-publish-secret-name" names a Secret, and nothing says where; add csi.storage.k8s.io/node-publish-secret-namespace`},
	}
	for _, test := range tests {
		c.class(t, test.name, test.parameters, test.class)
		c.claim(t, test.name, test.name, test.claim)
	}
	event := func(name string) string {
		return c.Kubectl(t, "get", "events", "-n", "shop", "--field-selector", "involvedObject.kind=PersistentVolumeClaim,reason=ProvisioningFailed,involvedObject.name="+name,
			"-o", `jsonpath={range .items[*]}{.type}: {.message}{"\n"}{end}`)
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var got string
			soon(t, "the claim has an event", func() bool { got = event(test.name); return got != "" })
			if want := "Warning: " + test.says + "\n"; got != want {
				t.Errorf("got  %swant %s", got, want)
			}
			if phase := c.Kubectl(t, "get", "pvc", "-n", "shop", test.name, "-o", "jsonpath={.status.phase}"); phase != "Pending" {
				t.Errorf("the claim is %s", phase)
			}
		})
	}
	t.Run("a class that is made anew", func(t *testing.T) {
		c.Kubectl(t, "delete", "storageclass", "typo")
		c.class(t, "typo", counts, nil)
		if got := c.bound(t, "typo").Spec.CSI.VolumeAttributes; !cmp.Equal(got, counts) {
			t.Errorf("attributes are %v", got)
		}
	})
}

func TestSecretOfAClass(t *testing.T) {
	c := start(t)
	c.provision(t)
	parameters := map[string]string{
		"image": counts["image"],
		"csi.storage.k8s.io/node-publish-secret-name":      "${pvc.annotations['acme.example/registry']}",
		"csi.storage.k8s.io/node-publish-secret-namespace": "${pvc.namespace}",
	}
	c.class(t, "private", parameters, nil)
	c.claim(t, "private", "private", func(object, _ map[string]any) {
		object["metadata"].(map[string]any)["annotations"] = map[string]any{"acme.example/registry": "ghcr"}
	})
	got := c.bound(t, "private").Spec.CSI
	if want := map[string]string{"name": "ghcr", "namespace": "shop"}; !cmp.Equal(got.NodePublishSecretRef, want) {
		t.Errorf("the Secret is %v, want %v", got.NodePublishSecretRef, want)
	}
	if want := map[string]string{"image": counts["image"]}; !cmp.Equal(got.VolumeAttributes, want) {
		t.Errorf("attributes are %v, want %v", got.VolumeAttributes, want)
	}
}

// What the documents show works as it stands there.
func TestExamplesAreBound(t *testing.T) {
	c := start(t)
	c.provision(t)
	for _, example := range []struct{ file, namespace, claim string }{
		{"storageclass.yaml", "claims", "flows"},
		{"static-pv.yaml", "demo", "by-hand"},
	} {
		c.ServiceAccount(t, example.namespace, "default")
		c.Kubectl(t, "apply", "-f", "../../deploy/examples/"+example.file)
		c.wait(t, "-n", example.namespace, "--for=jsonpath={.status.phase}=Bound", "pvc/"+example.claim)
		name := c.Kubectl(t, "get", "pvc", "-n", example.namespace, example.claim, "-o", "jsonpath={.spec.volumeName}")
		spec, err := bytecode.Parse(c.volume(t, name).Spec.CSI.VolumeAttributes)
		if err != nil || spec.Image != "ghcr.io/acme/count:v1" || len(spec.Attach) != 1 {
			t.Errorf("%s: a node reads %+v, %v", example.file, spec, err)
		}
	}
}

func TestOneOfTwoActs(t *testing.T) {
	c := start(t)
	c.class(t, "count", counts, nil)
	const works = "Started provisioner controller"
	first := c.provision(t)
	soon(t, "the first works", func() bool { return first.says(works) })
	second := c.provision(t)
	soon(t, "the second knows the first", func() bool { return second.says(`"leader"`) })
	c.claim(t, "one", "count", nil)
	c.bound(t, "one")
	if second.says(works) {
		t.Error("both work")
	}
	first.stop(t) // and gives the lease back
	c.claim(t, "two", "count", nil)
	soon(t, "the second works", func() bool { return second.says(works) })
	c.bound(t, "two")
}
