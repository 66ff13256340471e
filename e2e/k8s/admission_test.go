// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bpfvol/bpfvol/internal/admission"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/verify"
)

const driver = "csi.bpfvol.io"

// admitted are policies that say nothing of who may use them.
const admitted = `
apiVersion: bpfvol.io/v1alpha1
kind: BytecodePolicy
metadata: {name: acme}
spec: {images: ["ghcr.io/acme/**"], unsigned: true}
---
apiVersion: bpfvol.io/v1alpha1
kind: BytecodePolicy
metadata: {name: star}
spec: {images: ["ghcr.io/star/*", "ghcr.io/acme/shared", "**/last"], unsigned: true}
---
apiVersion: bpfvol.io/v1alpha1
kind: BytecodePolicy
metadata: {name: hub}
spec: {images: ["nginx", "team/*", "index.docker.io/other/x"], unsigned: true}
---
apiVersion: bpfvol.io/v1alpha1
kind: BytecodePolicy
metadata: {name: hosts}
spec: {images: ["127.0.0.1:5000/**", "[::1]:5000/**", "localhost/**", "*.example.com/x", "*/any/host"], unsigned: true}
---
apiVersion: bpfvol.io/v1alpha1
kind: BytecodePolicy
metadata: {name: elsewhere}
spec: {images: ["ghcr.io/elsewhere/*"], unsigned: true}
`

const hex64 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// spellings are image attributes: names, and what else people and attackers write.
var spellings = []string{
	"ghcr.io/acme/x", "ghcr.io/acme/x:v1", "ghcr.io/acme/x:V1.0_a-b", "ghcr.io/acme/x@sha256:" + hex64, "ghcr.io/acme/x:v1@sha256:" + hex64,
	"GHCR.io/acme/x", "ghcr.io/acme/x/y/z", "ghcr.io/acme", "ghcr.io/acmeevil/x", "ghcr.io/evil/acme/x", "ghcr.io.evil.com/acme/x", "evil.com/ghcr.io/acme/x",
	"ghcr.io:443/acme/x", "acme/x", "ghcr.io/acme/shared", "ghcr.io/star/x", "ghcr.io/star/x/y", "ghcr.io/last", "ghcr.io/a/b/last", "last", "ghcr.io/a/lastly",
	"nginx", "nginx:1.25", "library/nginx", "docker.io/nginx", "docker.io/library/nginx", "index.docker.io/nginx", "registry-1.docker.io/library/nginx",
	"registry.hub.docker.com/nginx", "Docker.IO/nginx", "docker.io:443/nginx", "docker.io/evil/nginx", "nginx.evil.com/x", "team/x", "docker.io/team/x",
	"team/x/y", "team.evil.com/x", "other/x", "docker.io/other/x",
	"127.0.0.1:5000/x", "127.0.0.1:5000/a/b:v1", "127.0.0.1:5001/x", "127.0.0.1/x", "[::1]:5000/x", "[0:0:0:0:0:0:0:1]:5000/x", "[0::1]:5000/x", "[::2]:5000/x", "[::1]/x",
	"localhost/x", "LOCALHOST/x", "localhost:5000/x", "a.example.com/x", "A.Example.com/x:v1", "a.b.example.com/x", "example.com/x", "a.example.com.evil.org/x",
	"quay.io/any/host", "any/host", "quay.io/x/any/host", "ghcr.io/elsewhere/x",
	"", "/", "x:", "ghcr.io/acme/", "ghcr.io/acme//x", "ghcr.io/acme/../evil/x", "ghcr.io/acme/./x", "ghcr.io/acme/X", "https://ghcr.io/acme/x", "oci://ghcr.io/acme/x",
	"ghcr.io/acme/x y", " ghcr.io/acme/x", "ghcr.io/acme/x\n", "ghcr.io/acme/x\nevil", "ghcr.io/acme/x:", "ghcr.io/acme/x:-v", "ghcr.io/acme/x:a:b",
	"ghcr.io/acme/x:" + strings.Repeat("a", 128), "ghcr.io/acme/x:" + strings.Repeat("a", 129), "ghcr.io/acme/x@sha256:abc", "ghcr.io/acme/x@sha512:" + hex64,
	"ghcr.io/acme/x@sha256:" + strings.ToUpper(hex64), "ghcr.io/acme/x@sha256:" + hex64 + "@sha256:" + hex64, "evil.com/x@ghcr.io/acme/x", "user@ghcr.io/acme/x",
	"ghcr.io:0/acme/x", "127.0.0.1:05000/x", "127.0.0.1:65536/x", "127.0.0.1:/x", "[::1/x", "[::1]x/x", "[127.0.0.1]:5000/x", "[::1%25eth0]:5000/x", "-a.example.com/x",
	"ghcr.io/acme/" + strings.Repeat("a", 242), "ghcr.io/acme/" + strings.Repeat("a", 243), "ghcr.io/acme/x.", "ghcr.io/acme/x__y", "ghcr.io/acme/x___y", "ghcr.io/acme/x?y",
}

// newAdmission starts a cluster with the policies of a manifest in force as ValidatingAdmissionPolicy, too.
func newAdmission(t *testing.T, manifest string) *Cluster {
	t.Helper()
	c := Start(t)
	c.Apply(t, manifest)
	// As an admin does: what the cluster has.
	policies, err := admission.Read([]byte(c.Kubectl(t, "get", "bytecodepolicies", "-o", "yaml")), "-")
	if err != nil {
		t.Fatal(err)
	}
	c.admit(t, policies, admission.Options{Driver: driver})
	return c
}

// admit generates what bpfvol admission prints, applies it and waits until it is in force.
func (c *Cluster) admit(t *testing.T, policies []*verify.Policy, opts admission.Options) {
	t.Helper()
	text, err := admission.YAML(admission.Manifest(policies, opts))
	if err != nil {
		t.Fatal(err)
	}
	// Not Apply, which keeps a copy in an annotation, and those have a limit.
	if _, err := c.TryKubectl(t, string(text), "apply", "--server-side", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	c.await(t, opts.Driver)
}

// await returns when the ValidatingAdmissionPolicy for a driver is in force.
func (c *Cluster) await(t *testing.T, driver string) {
	t.Helper()
	c.ServiceAccount(t, "default", "default")
	probe := pod("default", csiVolume(driver, map[string]string{"csi.storage.k8s.io/pod.name": "x"}))
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if status, _ := c.post(t, "default", "Pod", probe); status != http.StatusCreated {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the ValidatingAdmissionPolicy is not in force after a minute")
		}
	}
}

func TestAdmissionAnswersAsTheNodeDoes(t *testing.T) {
	c := newAdmission(t, admitted)
	for _, account := range []string{"shop/web", "shop/default", "other/web"} {
		namespace, name, _ := strings.Cut(account, "/")
		c.ServiceAccount(t, namespace, name)
	}
	for _, policy := range []string{"acme", "hub", "hosts"} {
		c.GrantUse(t, policy, "shop", "web")
	}
	c.GrantUse(t, "star", "shop", "default")
	c.GrantUse(t, "elsewhere", "other", "web")
	// A binding is for the namespace that it is in, whoever it names.
	c.Kubectl(t, "create", "rolebinding", "shop-uses-elsewhere", "-n", "other", "--clusterrole=use-elsewhere", "--serviceaccount=shop:web")
	c.Kubectl(t, "create", "clusterrolebinding", "web-uses-hub", "--clusterrole=use-hub", "--serviceaccount=other:web")

	policies, err := admission.Read([]byte(admitted), "admitted.yaml")
	if err != nil {
		t.Fatal(err)
	}
	may := map[string]bool{}
	uses := func(namespace, account, policy string) bool {
		key := namespace + "/" + account + " " + policy
		if _, known := may[key]; !known {
			may[key] = c.mayUse(t, namespace, account, policy)
		}
		return may[key]
	}
	node := func(attribute, namespace, account string) bool {
		ref, err := image.ParseReference(attribute)
		if err != nil {
			return false
		}
		for _, p := range policies {
			for _, g := range p.Images {
				if g.Match(ref) && uses(namespace, account, p.Name) {
					return true
				}
			}
		}
		return false
	}
	admits := 0
	for _, attribute := range spellings {
		for _, account := range []string{"shop/web", "shop/default", "other/web"} {
			namespace, name, _ := strings.Cut(account, "/")
			want := node(attribute, namespace, name)
			status, message := c.post(t, namespace, "Pod", pod(name, csiVolume(driver, map[string]string{"image": attribute})))
			if got := status == http.StatusCreated; got != want {
				t.Errorf("image %q for %s: the node would answer %t, admission %d: %s", attribute, account, want, status, message)
			}
			if want {
				admits++
			}
		}
	}
	for _, attribute := range mutations(300) {
		want := node(attribute, "shop", "web")
		status, message := c.post(t, "shop", "Pod", pod("web", csiVolume(driver, map[string]string{"image": attribute})))
		if got := status == http.StatusCreated; got != want {
			t.Errorf("image %q for shop/web: the node would answer %t, admission %d: %s", attribute, want, status, message)
		}
	}
	if all := 3 * len(spellings); admits < all/10 || admits > all/2 {
		t.Errorf("%d of %d are admitted: the table shows little", admits, all)
	}
}

// mutations are spellings with a piece of another one in them, the same in every run.
func mutations(n int) []string {
	r := rand.New(rand.NewPCG(4, 4))
	all := make([]string, n)
	for i := range all {
		s, other := spellings[r.IntN(len(spellings))], spellings[r.IntN(len(spellings))]
		cut, from := r.IntN(len(s)+1), r.IntN(len(other)+1)
		all[i] = s[:cut] + other[from:]
	}
	return all
}

func TestAdmissionAsksWhatMakesPods(t *testing.T) {
	c := newAdmission(t, admitted)
	c.ServiceAccount(t, "shop", "web")
	c.GrantUse(t, "acme", "shop", "web")
	good := csiVolume(driver, map[string]string{"image": "ghcr.io/acme/x"})
	bad := csiVolume(driver, map[string]string{"image": "ghcr.io/star/x"})
	for kind := range paths {
		if status, message := c.post(t, "shop", kind, wrap(kind, pod("web", good))); status != http.StatusCreated {
			t.Errorf("%s with an image that may be used: %d: %s", kind, status, message)
		}
		for name, volumes := range map[string][]any{"one that may not": {bad}, "one that may and one that may not": {good, bad}} {
			if status, message := c.post(t, "shop", kind, wrap(kind, pod("web", volumes...))); status != http.StatusUnprocessableEntity {
				t.Errorf("%s with %s: %d: %s", kind, name, status, message)
			}
		}
		// What is no business of ours.
		for name, volumes := range map[string][]any{
			"no volume":           nil,
			"other volumes":       {map[string]any{"name": "tmp", "emptyDir": map[string]any{}}},
			"another CSI driver":  {csiVolume("csi.example.com", map[string]string{"image": "ghcr.io/star/x"})},
			"a persistent volume": {map[string]any{"name": "pv", "persistentVolumeClaim": map[string]any{"claimName": "x"}}},
		} {
			if status, message := c.post(t, "shop", kind, wrap(kind, pod("web", volumes...))); status != http.StatusCreated {
				t.Errorf("%s with %s: %d: %s", kind, name, status, message)
			}
		}
	}

	t.Run("a change of the pods is asked about, scaling is not", func(t *testing.T) {
		path := paths["Deployment"]
		deployment := wrap("Deployment", pod("web", good))
		if status, message := c.do(t, http.MethodPost, "/"+fmt.Sprintf(path, "shop"), deployment); status != http.StatusCreated {
			t.Fatalf("%d: %s", status, message)
		}
		c.Kubectl(t, "delete", "rolebinding", "web-use-acme", "-n", "shop")
		for end := time.Now().Add(time.Minute); c.mayUse(t, "shop", "web", "acme"); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the grant holds a minute after its binding was deleted")
			}
		}
		c.Kubectl(t, "scale", "deployment", "x", "-n", "shop", "--replicas=3")
		c.Kubectl(t, "annotate", "deployment", "x", "-n", "shop", "note=hello")
		c.Kubectl(t, "patch", "deployment", "x", "-n", "shop", "-p", `{"spec":{"replicas":2}}`)
		if _, err := c.TryKubectl(t, "", "patch", "deployment", "x", "-n", "shop", "-p", `{"spec":{"template":{"metadata":{"labels":{"v":"2"}}}}}`); err == nil {
			t.Error("new pods are not asked about")
		}
	})
}

func TestAdmissionSaysWhatIsMissing(t *testing.T) {
	c := newAdmission(t, admitted)
	c.ServiceAccount(t, "shop", "web")
	for _, tc := range []struct {
		name       string
		attributes map[string]string
		want       string
	}{
		{"no attributes", nil, `volume "bpf": attribute image is missing; write it as host/repository:tag`},
		{"no image", map[string]string{"maps": "x"}, `volume "bpf": attribute image is missing; write it as host/repository:tag`},
		{"empty image", map[string]string{"image": ""}, `image "" is no reference; write it as host/repository:tag`},
		{"no reference", map[string]string{"image": "https://ghcr.io/acme/x"}, `image "https://ghcr.io/acme/x" is no reference; write it as host/repository:tag`},
		{"no text", map[string]string{"image": "ghcr.io/a\n" + strings.Repeat("x", 10000)}, `image "ghcr.io/a\n` + strings.Repeat("x", 90) + `" is no reference; write it as host/repository:tag`},
		{"kubelet's words", map[string]string{"image": "ghcr.io/acme/x", "csi.storage.k8s.io/serviceAccount.name": "root"}, `volume attributes csi.storage.k8s.io/* are for kubelet; leave them out`},
		{"not covered", map[string]string{"image": "quay.io/x/y:v1"}, `image "quay.io/x/y": no BytecodePolicy covers it; an admin must add one whose images include it (and run bpfvol admission again)`},
		{"not granted", map[string]string{"image": "ghcr.io/acme/shared"}, `image "ghcr.io/acme/shared": service account "shop/web" may use none of the BytecodePolicies that cover it (acme, star); ask an admin for a RoleBinding in its namespace to a role with the verb "use" on one`},
	} {
		status, message := c.post(t, "shop", "Pod", pod("web", csiVolume(driver, tc.attributes)))
		if status != http.StatusUnprocessableEntity || !strings.HasSuffix(message, ": "+tc.want) {
			t.Errorf("%s: %d: %s\nwant at its end %s", tc.name, status, message, tc.want)
		}
	}

	t.Run("subjects of files", func(t *testing.T) {
		const other = "files.bpfvol.io"
		file := strings.Replace(admitted, "unsigned: true", "unsigned: true, subjects: [shop/web, 'night/*']", 1)
		policies, err := verify.ParsePolicies([]byte(file), "policies.yaml", admission.NoSigners)
		if err != nil {
			t.Fatal(err)
		}
		c.admit(t, policies, admission.Options{Driver: other, Subjects: true})
		c.ServiceAccount(t, "night", "owl")
		c.ServiceAccount(t, "shop", "default")
		for account, want := range map[string]string{
			"shop/web":     "",
			"night/owl":    "",
			"shop/default": `service account "shop/default" may use none of the BytecodePolicies that cover it (acme); ask an admin to add it to the subjects of one (and run bpfvol admission again)`,
		} {
			namespace, name, _ := strings.Cut(account, "/")
			status, message := c.post(t, namespace, "Pod", pod(name, csiVolume(other, map[string]string{"image": "ghcr.io/acme/x"})))
			if (status == http.StatusCreated) != (want == "") || !strings.HasSuffix(message, want) {
				t.Errorf("%s: %d: %s\nwant at its end %s", account, status, message, want)
			}
		}
	})
	t.Run("no policy at all", func(t *testing.T) {
		const other = "none.bpfvol.io"
		c.admit(t, nil, admission.Options{Driver: other})
		status, message := c.post(t, "shop", "Pod", pod("web", csiVolume(other, map[string]string{"image": "ghcr.io/acme/x"})))
		if want := "no BytecodePolicy covers it"; status != http.StatusUnprocessableEntity || !strings.Contains(message, want) {
			t.Errorf("%d: %s\nwant %s", status, message, want)
		}
	})
}

// What deploy has is what an admin tries first. The other examples have policies of their own, and e2e/chart.
func TestExamplesWorkTogether(t *testing.T) {
	c := Start(t)
	c.ServiceAccount(t, "demo", "counter")
	c.ServiceAccount(t, "demo", "default")
	deploy := filepath.Join(folder(), "../../deploy")
	c.Kubectl(t, "create", "namespace", "bpfvol-system")
	for _, manifests := range []string{"csidriver.yaml", "rbac.yaml", "examples/policy.yaml", "examples/use.yaml", "admission"} {
		c.Kubectl(t, "apply", "-f", filepath.Join(deploy, manifests))
	}
	c.await(t, driver)
	if got := c.Kubectl(t, "get", "csidriver", driver, "-o", "jsonpath={.spec.podInfoOnMount}"); got != "true" {
		t.Errorf("podInfoOnMount of the driver: %s", got)
	}
	for account, want := range map[string]int{"counter": http.StatusCreated, "default": http.StatusUnprocessableEntity} {
		status, message := c.post(t, "demo", "Pod", pod(account, csiVolume(driver, map[string]string{"image": "ghcr.io/acme/count:v1"})))
		if status != want {
			t.Errorf("demo/%s: %d: %s", account, status, message)
		}
	}
}

// Of fifty policies with as many globs as a policy may have, twenty cover the image and the last of them is granted.
func TestAdmissionHoldsFiftyPolicies(t *testing.T) {
	var manifest strings.Builder
	for i := range 50 {
		team := i
		if i >= 30 {
			team = 30
		}
		var globs []string
		for j := range 64 {
			globs = append(globs, fmt.Sprintf("%q", fmt.Sprintf("registry%d.example.com/team%d/**/programs-*/x", j, team)))
		}
		fmt.Fprintf(&manifest, "---\n%smetadata: {name: team-%d}\nspec: {images: [%s], unsigned: true}\n",
			"apiVersion: bpfvol.io/v1alpha1\nkind: BytecodePolicy\n", i, strings.Join(globs, ", "))
	}
	c := newAdmission(t, manifest.String())
	c.ServiceAccount(t, "shop", "web")
	c.GrantUse(t, "team-49", "shop", "web")
	c.GrantUse(t, "team-0", "shop", "web")
	// Eight volumes, as programs of several teams.
	var volumes []any
	for i := range 8 {
		v := csiVolume(driver, map[string]string{"image": fmt.Sprintf("registry%d.example.com/team30/a/b/programs-%d/x:v1", 63-i, i)}).(map[string]any)
		v["name"] = fmt.Sprintf("bpf%d", i)
		volumes = append(volumes, v)
	}
	if status, message := c.post(t, "shop", "Pod", pod("web", volumes...)); status != http.StatusCreated {
		t.Errorf("granted by the last policy: %d: %s", status, message)
	}
	volumes[7] = csiVolume(driver, map[string]string{"image": "registry0.example.com/team1/programs-1/x"})
	status, message := c.post(t, "shop", "Pod", pod("web", volumes...))
	if want := `one of 8 images: service account "shop/web" may use none of the BytecodePolicies that cover it (21 of them); ask an admin`; status != http.StatusUnprocessableEntity || !strings.Contains(message, want) {
		t.Errorf("one that is not granted: %d: %s\nwant %s", status, message, want)
	}
}

// paths are the collections of the kinds that make pods, Pod among them.
var paths = map[string]string{
	"Pod":                   "api/v1/namespaces/%s/pods",
	"ReplicationController": "api/v1/namespaces/%s/replicationcontrollers",
	"Deployment":            "apis/apps/v1/namespaces/%s/deployments",
	"ReplicaSet":            "apis/apps/v1/namespaces/%s/replicasets",
	"StatefulSet":           "apis/apps/v1/namespaces/%s/statefulsets",
	"DaemonSet":             "apis/apps/v1/namespaces/%s/daemonsets",
	"Job":                   "apis/batch/v1/namespaces/%s/jobs",
	"CronJob":               "apis/batch/v1/namespaces/%s/cronjobs",
}

// post asks whether an object would be taken.
func (c *Cluster) post(t *testing.T, namespace, kind string, object map[string]any) (int, string) {
	t.Helper()
	return c.do(t, http.MethodPost, "/"+fmt.Sprintf(paths[kind], namespace)+"?dryRun=All", object)
}

func (c *Cluster) do(t *testing.T, method, path string, object map[string]any) (int, string) {
	t.Helper()
	status, body := c.Do(t, method, path, object)
	var answer struct{ Message string }
	if err := json.Unmarshal(body, &answer); err != nil {
		t.Fatalf("%d: %s", status, body)
	}
	return status, answer.Message
}

// mayUse asks as the node plugin does.
func (c *Cluster) mayUse(t *testing.T, namespace, account, policy string) bool {
	t.Helper()
	status, body := c.Do(t, http.MethodPost, "/apis/authorization.k8s.io/v1/subjectaccessreviews", map[string]any{
		"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
		"spec": map[string]any{
			"user":   "system:serviceaccount:" + namespace + ":" + account,
			"groups": []string{"system:serviceaccounts", "system:serviceaccounts:" + namespace, "system:authenticated"},
			"resourceAttributes": map[string]any{
				"group": "bpfvol.io", "resource": "bytecodepolicies", "name": policy, "verb": "use", "namespace": namespace,
			},
		},
	})
	var answer struct{ Status struct{ Allowed bool } }
	if err := json.Unmarshal(body, &answer); err != nil || status != http.StatusCreated {
		t.Fatalf("SubjectAccessReview: %d: %s", status, body)
	}
	return answer.Status.Allowed
}

func csiVolume(driver string, attributes map[string]string) any {
	csi := map[string]any{"driver": driver}
	if attributes != nil {
		csi["volumeAttributes"] = attributes
	}
	return map[string]any{"name": "bpf", "csi": csi}
}

// pod returns one with volumes, of which those without a name of their own are numbered.
func pod(account string, volumes ...any) map[string]any {
	for i, v := range volumes {
		if m := v.(map[string]any); i > 0 && m["name"] == "bpf" {
			volumes[i] = map[string]any{"name": fmt.Sprintf("bpf%d", i), "csi": m["csi"]}
		}
	}
	return map[string]any{
		"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": "x", "labels": map[string]any{"app": "x"}},
		"spec": map[string]any{
			"serviceAccountName": account, "volumes": volumes,
			"containers": []any{map[string]any{"name": "x", "image": "registry.example.com/app"}},
		},
	}
}

// wrap returns an object of a kind that makes such pods.
func wrap(kind string, pod map[string]any) map[string]any {
	spec := pod["spec"].(map[string]any)
	template := map[string]any{"metadata": map[string]any{"labels": map[string]any{"app": "x"}}, "spec": spec}
	selector := map[string]any{"matchLabels": map[string]any{"app": "x"}}
	once := map[string]any{}
	for key, value := range spec {
		once[key] = value
	}
	once["restartPolicy"] = "Never"
	job := map[string]any{"template": map[string]any{"spec": once}}
	object := func(version string, spec map[string]any) map[string]any {
		return map[string]any{"apiVersion": version, "kind": kind, "metadata": map[string]any{"name": "x"}, "spec": spec}
	}
	switch kind {
	case "Pod":
		return pod
	case "ReplicationController":
		return object("v1", map[string]any{"template": template})
	case "Job":
		return object("batch/v1", job)
	case "CronJob":
		return object("batch/v1", map[string]any{"schedule": "@daily", "jobTemplate": map[string]any{"spec": job}})
	case "StatefulSet":
		return object("apps/v1", map[string]any{"selector": selector, "template": template, "serviceName": "x"})
	}
	return object("apps/v1", map[string]any{"selector": selector, "template": template})
}
