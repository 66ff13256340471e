// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/go-cmp/cmp"

	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/node"
	"github.com/bpfvol/bpfvol/verify"
)

const testTarget = "/var/lib/kubelet/pods/0b3f/volumes/kubernetes.io~csi/bpf/mount"

// validRequest is what kubelet sends for an inline volume of a pod with an fsGroup.
func validRequest() *csi.NodePublishVolumeRequest {
	return &csi.NodePublishVolumeRequest{
		VolumeId:         "csi-6ee1",
		TargetPath:       testTarget,
		VolumeCapability: mountCapability(&csi.VolumeCapability_MountVolume{VolumeMountGroup: "2000"}),
		Readonly:         true,
		VolumeContext: map[string]string{
			"image":  "ghcr.io/acme/count:v1",
			"attach": "{program: count}",

			"csi.storage.k8s.io/pod.name":            "web-0",
			"csi.storage.k8s.io/pod.namespace":       "shop",
			"csi.storage.k8s.io/pod.uid":             "0b3f",
			"csi.storage.k8s.io/serviceAccount.name": "web",
			"csi.storage.k8s.io/ephemeral":           "true",
		},
	}
}

func mountCapability(m *csi.VolumeCapability_MountVolume) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Mount{Mount: m},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
	}
}

func TestPublishRequestSplitsWhoFromWhat(t *testing.T) {
	group := 2000
	want := node.Request{
		VolumeID:   "csi-6ee1",
		Target:     testTarget,
		Attributes: map[string]string{"image": "ghcr.io/acme/count:v1", "attach": "{program: count}"},
		Subject:    verify.Subject{Namespace: "shop", ServiceAccount: "web"},
		Pod:        node.Pod{Namespace: "shop", Name: "web-0", UID: "0b3f", ServiceAccount: "web"},
		Group:      &group,
		ReadOnly:   true,
	}
	got, err := publishRequest(validRequest(), "/var/lib/kubelet/pods")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// Whoever makes a PersistentVolume is an admin, so who it is must not be for the pod to say.
func TestPersistentVolumeIsKubeletsWord(t *testing.T) {
	for _, c := range []struct {
		ephemeral  string
		persistent bool
	}{{"true", false}, {"false", true}} {
		req := validRequest()
		req.VolumeContext[keyEphemeral] = c.ephemeral
		got, err := publishRequest(req, "")
		if err != nil || got.Subject.Persistent != c.persistent {
			t.Errorf("ephemeral %q: persistent %t, error %v", c.ephemeral, got.Subject.Persistent, err)
		}
	}
}

func TestPublishRequestWithoutGroupHasNone(t *testing.T) {
	req := validRequest()
	req.VolumeCapability.GetMount().VolumeMountGroup = ""
	got, err := publishRequest(req, "")
	if err != nil || got.Group != nil {
		t.Errorf("got group %v, error %v; want none", got.Group, err)
	}
}

// The Secret of a volume is its keyring; both types of it count.
func TestPublishRequestReadsTheSecret(t *testing.T) {
	req := validRequest()
	req.Secrets = map[string]string{
		".dockerconfigjson": `{"auths":{"https://ghcr.io":{"auth":"YWxpY2U6aHVudGVyMg=="}}}`,
		".dockercfg":        `{"*.io":{"username":"bob","password":"hunter2"}}`,
		"note":              "made by hand",
	}
	got, err := publishRequest(req, "")
	if err != nil {
		t.Fatal(err)
	}
	ref, err := image.ParseReference("ghcr.io/acme/count:v1")
	if err != nil {
		t.Fatal(err)
	}
	want := []image.Credential{{Username: "alice", Password: "hunter2"}, {Username: "bob", Password: "hunter2"}}
	if diff := cmp.Diff(want, got.Keyring.Credentials(ref)); diff != "" {
		t.Error(diff)
	}
}

func TestPublishRequestRefuses(t *testing.T) {
	group := func(s string) func(*csi.NodePublishVolumeRequest) {
		return func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability.GetMount().VolumeMountGroup = s }
	}
	secret := func(key, value string) func(*csi.NodePublishVolumeRequest) {
		return func(r *csi.NodePublishVolumeRequest) { r.Secrets = map[string]string{key: value} }
	}
	for _, c := range []struct {
		name string
		edit func(*csi.NodePublishVolumeRequest)
		want string
	}{
		// The order in which CSI's conformance suite leaves fields out: id, target, capability.
		{"everything missing", func(r *csi.NodePublishVolumeRequest) { *r = csi.NodePublishVolumeRequest{} }, "volume id: missing"},
		{"target and capability missing", func(r *csi.NodePublishVolumeRequest) { r.TargetPath, r.VolumeCapability = "", nil }, "target path: missing"},
		{"capability and context missing", func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability, r.VolumeContext = nil, nil }, "volume capability: missing"},

		{"long id", func(r *csi.NodePublishVolumeRequest) { r.VolumeId = strings.Repeat("x", 129) }, "volume id: 129 bytes"},
		{"long target", func(r *csi.NodePublishVolumeRequest) { r.TargetPath = "/" + strings.Repeat("x", 4095) }, "target path: 4096 bytes"},
		{"block", func(r *csi.NodePublishVolumeRequest) {
			r.VolumeCapability.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
		}, "volumeMode: Block"},
		{"no access type", func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability.AccessType = nil }, "access type missing"},
		{"no access mode", func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability.AccessMode = nil }, "access mode missing"},
		{"file system type", func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability.GetMount().FsType = "ext4" }, `fsType: "ext4"`},
		{"mount flags", func(r *csi.NodePublishVolumeRequest) {
			r.VolumeCapability.GetMount().MountFlags = []string{"password=hunter2"}
		}, "mountOptions: a bytecode volume takes none but context="},
		{"group by name", group("wheel"), `volume mount group: "wheel"`},
		{"negative group", group("-1"), `volume mount group: "-1"`},
		{"group over 32 bits", group("4294967296"), `volume mount group: "4294967296"`},
		{"the group that means no change", group("4294967295"), `volume mount group: "4294967295"`},
		{"secret of another type", secret("password", "hunter2"), "nodePublishSecretRef: the Secret is not of type kubernetes.io/dockerconfigjson; make it with"},
		{"secret that is no JSON", secret(".dockerconfigjson", "hunter2"), "nodePublishSecretRef: .dockerconfigjson: is not the JSON of a docker config"},
		{"secret with a broken login", secret(".dockercfg", `{"ghcr.io":{"auth":"hunter2!"}}`), `nodePublishSecretRef: .dockercfg: "ghcr.io": auth is not base64 of user:password`},
		{"secret without a login", secret(".dockerconfigjson", `{"auths":{"hunter2":{}}}`), "nodePublishSecretRef: no user with a password in the Secret; make it with"},
		{"secret that leaves it to a program", secret(".dockerconfigjson", `{"credsStore":"hunter2"}`), "in the Secret (credsStore names a program, and none is run); make it with"},
	} {
		t.Run(c.name, func(t *testing.T) {
			req := validRequest()
			c.edit(req)
			_, err := publishRequest(req, "/var/lib/kubelet/pods")
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q in it", err, c.want)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%v: tells a mount flag or a secret", err)
			}
			if !errors.As(err, new(*requestError)) {
				t.Errorf("%T, want a *requestError", err)
			}
		})
	}
}

func TestPodInfo(t *testing.T) {
	for _, c := range []struct {
		name, key, value string // value "" removes the key
		want             string
	}{
		{"no namespace", "pod.namespace", "", "podInfoOnMount"},
		{"no name", "pod.name", "", "podInfoOnMount"},
		{"no service account", "serviceAccount.name", "", "podInfoOnMount"},
		{"no uid", "pod.uid", "", "podInfoOnMount"},
		{"uid of another pod", "pod.uid", "ffff", "podInfoOnMount"},
		{"uid that is the start of ours", "pod.uid", "0b3", "podInfoOnMount"},
		{"uid that climbs", "pod.uid", "..", "podInfoOnMount"},
		{"not said whether a PersistentVolume", "ephemeral", "", "podInfoOnMount"},
		{"ephemeral in words of a user", "ephemeral", "False", `ephemeral: "False": is not a word of kubelet's`},
		{"namespace that is a pattern", "pod.namespace", "*", "is no name"},
		{"namespace with a slash", "pod.namespace", "kube-system/admin", "is no name"},
		{"service account with a newline", "serviceAccount.name", "web\nadmin", "is no name"},
	} {
		t.Run(c.name, func(t *testing.T) {
			req := validRequest()
			req.VolumeContext[reservedPrefix+c.key] = c.value
			if c.value == "" {
				delete(req.VolumeContext, reservedPrefix+c.key)
			}
			if _, err := publishRequest(req, "/var/lib/kubelet/pods"); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q in it", err, c.want)
			}
		})
	}
}

// Without podInfoOnMount all that kubelet passes on is the user's own words. A driver of the same name in another cluster,
// or an edited CSIDriver object, must not make them count.
func TestPodInfoOfAUserIsRefused(t *testing.T) {
	claim := func(words map[string]string) map[string]string {
		context := map[string]string{"image": "ghcr.io/acme/count:v1"}
		for key, value := range words {
			context[reservedPrefix+key] = value
		}
		return context
	}
	admin := map[string]string{"pod.name": "web-0", "pod.namespace": "kube-system", "serviceAccount.name": "admin"}
	with := func(more map[string]string) map[string]string {
		all := maps.Clone(admin)
		maps.Copy(all, more)
		return all
	}
	for _, c := range []struct {
		name  string
		words map[string]string
		want  string
	}{
		{"nothing", nil, "pod.namespace: missing"},
		{"who, but not the uid", with(map[string]string{"ephemeral": "false"}), "pod.uid: is not the pod"},
		{"the uid of another pod", with(map[string]string{"pod.uid": "ffff", "ephemeral": "false"}), "pod.uid: is not the pod"},
		// A pod's author does not know its uid before there is a pod; then its volumes can't be changed.
		{"the uid, but not how the volume came", with(map[string]string{"pod.uid": "0b3f"}), "ephemeral: missing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			req := validRequest()
			req.VolumeContext = claim(c.words)
			_, err := publishRequest(req, "/var/lib/kubelet/pods")
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "podInfoOnMount") {
				t.Errorf("got %v, want %q in it, and podInfoOnMount", err, c.want)
			}
		})
	}
}

// What kubelet says of the pod, now and in later versions, must not fail the strict parse of attributes.
func TestReservedKeysAreNoAttributes(t *testing.T) {
	req := validRequest()
	req.VolumeContext["csi.storage.k8s.io/serviceAccount.tokens"] = "{}"
	req.VolumeContext["csi.storage.k8s.io/something.new"] = "x"
	got, err := publishRequest(req, "")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"image": "ghcr.io/acme/count:v1", "attach": "{program: count}"}
	if !maps.Equal(got.Attributes, want) {
		t.Errorf("attributes %v, want %v", got.Attributes, want)
	}
}
