// SPDX-License-Identifier: Apache-2.0

package chart

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/bpfvol/bpfvol/e2e/gobuild"
	"github.com/bpfvol/bpfvol/e2e/k8s"
)

const namespace = "bpfvol-system"

// values are the files of testdata, and nil for what a first installation has.
func values(t *testing.T) map[string][]string {
	t.Helper()
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no values in testdata: %v", err)
	}
	sets := map[string][]string{"default": nil}
	for _, file := range files {
		sets[strings.TrimSuffix(filepath.Base(file), ".yaml")] = []string{"-f", file}
	}
	return sets
}

func template(t *testing.T, args ...string) string {
	t.Helper()
	return Helm{}.Must(t, append([]string{"template", "bpfvol", Dir(), "-n", namespace}, args...)...)
}

// objects are the documents of a manifest by kind, namespace and name.
func objects(t *testing.T, manifest string) map[string]map[string]any {
	t.Helper()
	all := map[string]map[string]any{}
	for _, document := range strings.Split("\n"+manifest, "\n---") {
		var object map[string]any
		if err := yaml.Unmarshal([]byte(document), &object); err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
		if object != nil {
			metadata := object["metadata"].(map[string]any)
			all[fmt.Sprint(object["kind"], metadata["namespace"], metadata["name"])] = object
		}
	}
	return all
}

// podMonitors makes the cluster know them.
func podMonitors(t *testing.T, c *k8s.Cluster) {
	t.Helper()
	c.Kubectl(t, "create", "-f", "testdata/crds")
	c.Kubectl(t, "wait", "--for=condition=Established", "--timeout=60s", "-f", "testdata/crds")
}

func TestLint(t *testing.T) {
	for name, args := range values(t) {
		t.Run(name, func(t *testing.T) {
			Helm{}.Must(t, append([]string{"lint", "--strict", Dir()}, args...)...)
		})
	}
}

// Each object of each set of values is what the API server would take, to the letter: a field that it does not know is an error.
func TestAPIServerTakesWhatIsRendered(t *testing.T) {
	c := k8s.Start(t)
	for _, namespace := range []string{namespace, "demo", "shop"} {
		c.Kubectl(t, "create", "namespace", namespace)
	}
	c.Kubectl(t, "create", "serviceaccount", "tester", "-n", namespace) // a dry run leaves none for the pod that comes after it
	podMonitors(t, c)
	for name, args := range values(t) {
		t.Run(name, func(t *testing.T) {
			manifest := template(t, args...)
			out, err := c.TryKubectl(t, manifest, "apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-")
			if err != nil {
				t.Fatal(err)
			}
			got, want := strings.Count(out, "serverside-applied"), len(objects(t, manifest))
			if got != want {
				t.Errorf("%d of %d objects:\n%s", got, want, out)
			}
		})
	}
}

// Whatever can be misspelt or of the wrong kind is named, before anything reaches the cluster.
func TestTypoInValuesIsAnError(t *testing.T) {
	for _, test := range []struct{ set, want string }{
		{"kubletDir=/x", "'kubletDir' not allowed"},
		{"kubeletDir=var/lib/kubelet", "'/kubeletDir'"},
		{"kubeletDir=/var/lib/kubelet/", "'/kubeletDir'"},
		{"image.digets=x", "'digets' not allowed"},
		{"image.digest=latest", "'/image/digest'"},
		{"image.pullPolicy=Sometimes", "'/image/pullPolicy'"},
		{"node.tolerationz[0].operator=Exists", "'tolerationz' not allowed"},
		{"node.terminationGracePeriodSeconds=5", "'/node/terminationGracePeriodSeconds'"},
		{"node.resources.limit.memory=1Gi", "'limit' not allowed"},
		{"node.cacheSize=many", "'/node/cacheSize'"},
		{"metrics.port=0", "'/metrics/port'"},
		{"metrics.serviceMonitor.enabled=true", "'serviceMonitor' not allowed"},
		{"networkPolicy.enable=true", "'enable' not allowed"},
		{"policies[0].name=acme", "'spec'"},
		{"policies[0].name=acme,policies[0].spec.images[0]=a/b,policies[0].spec.unsgined=true", "'unsgined' not allowed"},
		{"policies[0].name=acme,policies[0].spec.images[0]=a/b,policies[0].spec.allow.hocks[0]=xdp", "'hocks' not allowed"},
		{"policies[0].name=acme,policies[0].spec.images[0]=a/b,policies[0].spec.subjects[0]=a/b", "'subjects' not allowed"},
		{"policies[0].name=acme,policies[0].spec.images[0]=a/b,policies[0].useableBy[0].namespace=demo", "'useableBy' not allowed"},
		{"policies[0].name=acme,policies[0].spec.images[0]=a/b,policies[0].usableBy[0].namespace=demo", "'serviceAccounts'"},
		{"policies[0].name=acme,policies[0].spec.images[0]=a/b,policies[1].name=acme,policies[1].spec.images[0]=a/c", `"acme" is there twice`},
		{"policies[0].name=acme,policies[0].spec.images[0]=a/b,policies[0].usableBy[0].namespace=demo,policies[0].usableBy[0].serviceAccounts[0]=a," +
			"policies[0].usableBy[1].namespace=demo,policies[0].usableBy[1].serviceAccounts[0]=b", `usableBy has namespace "demo" twice`},
		{"registries.config.registries[0].hots=ghcr.io", "'hots' not allowed"},
		{"registries.config.denyunlisted=true", "'denyunlisted' not allowed"},
		{"storageClasses[0].name=count,storageClasses[0].parameters.img=x", "'img' not allowed"},
		{"storageClasses[0].name=count,storageClasses[0].parameters.image=x", "set provisioner.enabled"},
		{"test.volumeAttributes.imag=x", "'imag' not allowed"},
		{"csiDriver.openshiftProfile=lax", "'/csiDriver/openshiftProfile'"},
	} {
		t.Run(test.set, func(t *testing.T) {
			_, err := Helm{}.Run(t, "template", "bpfvol", Dir(), "--set", test.set)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v\nwant %s", err, test.want)
			}
		})
	}
}

// deploy/csidriver.yaml, deploy/rbac.yaml and deploy/provision-rbac.yaml are for those who install without helm, and say the same.
func TestPlainManifestsAreWhatTheChartInstalls(t *testing.T) {
	rendered := objects(t, template(t, "--set", "provisioner.enabled=true"))
	for _, file := range []string{"csidriver.yaml", "rbac.yaml", "provision-rbac.yaml"} {
		text, err := os.ReadFile(filepath.Join(gobuild.Root(), "deploy", file))
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range objects(t, string(text)) {
			got, ok := rendered[name]
			if !ok {
				t.Errorf("%s: %s is not in the chart", file, name)
				continue
			}
			for _, object := range []map[string]any{got, want} {
				labels, _ := object["metadata"].(map[string]any)["labels"].(map[string]any)
				for label := range labels {
					if strings.HasPrefix(label, "app.kubernetes.io/") || strings.HasPrefix(label, "helm.sh/") {
						delete(labels, label)
					}
				}
				if len(labels) == 0 {
					delete(object["metadata"].(map[string]any), "labels")
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s: %s: the chart differs (-file +chart):\n%s", file, name, diff)
			}
		}
	}
}

// An installation lets nothing run, says so, and which lines change that.
func TestFirstInstallationSaysWhatIsMissing(t *testing.T) {
	c := k8s.Start(t)
	h := Helm{Kubeconfig: c.Admin}
	notes := h.Must(t, "install", "bpfvol", Dir(), "-n", namespace, "--create-namespace")
	for _, want := range []string{"NOTHING RUNS YET", "usableBy:", "kubectl -n bpfvol-system rollout status daemonset/bpfvol", "kubectl apply -f pod.yaml"} {
		if !strings.Contains(notes, want) {
			t.Errorf("no %q in the notes:\n%s", want, notes)
		}
	}
	if got := c.Kubectl(t, "get", "bytecodepolicies", "-o", "name"); got != "" {
		t.Errorf("policies of a first installation: %s", got)
	}
}

func TestValuesSayWhoMayUseAPolicy(t *testing.T) {
	c := k8s.Start(t)
	for _, namespace := range []string{"demo", "shop"} {
		c.Kubectl(t, "create", "namespace", namespace)
	}
	podMonitors(t, c)
	Helm{Kubeconfig: c.Admin}.Must(t, "install", "bpfvol", Dir(), "-n", namespace, "--create-namespace", "-f", "testdata/everything.yaml")
	for _, test := range []struct {
		namespace, account, policy string
		want                       bool
	}{
		{"demo", "counter", "acme", true},
		{"demo", "other", "acme", true},
		{"demo", "default", "acme", false},
		{"demo", "counter", "unsigned", false},
		{"shop", "anybody", "acme", true},
		{"default", "counter", "acme", false},
	} {
		_, err := c.TryKubectl(t, "", "auth", "can-i", "use", "bytecodepolicies/"+test.policy, "-n", test.namespace,
			"--as", "system:serviceaccount:"+test.namespace+":"+test.account,
			"--as-group", "system:serviceaccounts:"+test.namespace)
		if got := err == nil; got != test.want {
			t.Errorf("%s/%s uses %s: %t, want %t (%v)", test.namespace, test.account, test.policy, got, test.want, err)
		}
	}
}

// An API server drops fields of a policy that its definition has not, so an older definition is an error; and the command
// that the error names is enough.
func TestUpgradeWantsTheChartsOwnDefinition(t *testing.T) {
	c := k8s.Start(t)
	h := Helm{Kubeconfig: c.Admin}
	h.Must(t, "install", "bpfvol", Dir(), "-n", namespace, "--create-namespace")
	h.Must(t, "upgrade", "bpfvol", Dir(), "-n", namespace)
	const unsigned = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/unsigned"
	c.Kubectl(t, "patch", "crd", "bytecodepolicies.bpfvol.io", "--type=json", "-p", `[{"op":"remove","path":"`+unsigned+`"}]`)
	_, err := h.Run(t, "upgrade", "bpfvol", Dir(), "-n", namespace)
	const want = "helm show crds CHART | kubectl apply --server-side --force-conflicts -f -"
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Fatalf("upgrade with an older definition: %v\nwant %s", err, want)
	}
	crds := h.Must(t, "show", "crds", Dir())
	if _, err := c.TryKubectl(t, crds, "apply", "--server-side", "--force-conflicts", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	h.Must(t, "upgrade", "bpfvol", Dir(), "-n", namespace)
}

// What an admin wrote by hand is not the chart's to remove.
func TestUninstallLeavesPoliciesOfOthers(t *testing.T) {
	c := k8s.Start(t)
	h := Helm{Kubeconfig: c.Admin}
	h.Must(t, "install", "bpfvol", Dir(), "-n", namespace, "--create-namespace", "--set", "policies[0].name=ours,policies[0].spec.images[0]=ghcr.io/acme/x")
	c.Apply(t, "{apiVersion: bpfvol.io/v1alpha1, kind: BytecodePolicy, metadata: {name: theirs}, spec: {images: [ghcr.io/acme/y]}}")
	h.Must(t, "uninstall", "bpfvol", "-n", namespace, "--no-hooks") // here are no controllers, which a job needs
	if got := strings.TrimSpace(c.Kubectl(t, "get", "bytecodepolicies", "-o", "name")); got != "bytecodepolicy.bpfvol.io/theirs" {
		t.Errorf("policies after uninstall: %q", got)
	}
	for _, path := range []string{
		"/apis/storage.k8s.io/v1/csidrivers/csi.bpfvol.io",
		"/apis/apps/v1/namespaces/" + namespace + "/daemonsets/bpfvol",
		"/apis/rbac.authorization.k8s.io/v1/clusterroles/bpfvol",
	} {
		if status, body := c.Do(t, http.MethodGet, path, nil); status != http.StatusNotFound {
			t.Errorf("after uninstall: %s: %d: %s", path, status, body)
		}
	}
}

// Each example is a file that kubectl takes as it is, also the pod of the restricted namespace.
func TestAPIServerTakesTheExamples(t *testing.T) {
	c := k8s.Start(t)
	c.Kubectl(t, "create", "namespace", "demo") // that of policy.yaml and use.yaml, which docs speak of
	files, err := filepath.Glob(filepath.Join(gobuild.Root(), "deploy", "examples", "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	for _, file := range files {
		c.Kubectl(t, "apply", "--validate=strict", "-f", file)
	}
	if got := c.Kubectl(t, "get", "pod", "flows", "-n", "restricted", "-o", "name"); strings.TrimSpace(got) != "pod/flows" {
		t.Errorf("pod of the restricted namespace: %q", got)
	}
}
