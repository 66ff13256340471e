// SPDX-License-Identifier: Apache-2.0

//go:build e2e && upstream

package kubernetes_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/bpfvol/bpfvol/e2e/k8s"
)

// Kubernetes' own suite for CSI drivers (k8s.io/kubernetes/test/e2e/storage/external) runs against the chart on the node, its
// pods' volumes each with a program at the node's interface. What of it cannot run, and why, stands in upstreamReasons.
func TestUpstreamStorageSuite(t *testing.T) {
	c := start(t)
	u, err := c.newUpstream(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c.nothingLeft(t)
	c.policyForAll(t)
	judgeUpstream(t, u.run(t))
}

// policyForAll admits what the key of the tests signed for every service account: the suite makes namespaces as it goes.
func (c *cluster) policyForAll(t *testing.T) {
	t.Helper()
	c.Apply(t, fmt.Sprintf(`
apiVersion: bpfvol.io/v1alpha1
kind: BytecodePolicy
metadata: {name: upstream}
spec: {images: [ghcr.io/acme/count], authorities: [{key: {data: %q}}], allow: {writableMaps: [flows]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: use-upstream}
rules: [{apiGroups: [bpfvol.io], resources: [bytecodepolicies], resourceNames: [upstream], verbs: [use]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: use-upstream}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: use-upstream}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: "system:serviceaccounts"}]
`, c.publicKey(t)))
	t.Cleanup(func() {
		c.kubectl(t, "delete", "bytecodepolicy/upstream", "clusterrole/use-upstream", "clusterrolebinding/use-upstream")
	})
}

// upstream is the suite, with its images in the node's registry.
type upstream struct {
	c   *cluster
	bin string // of build.sh
	dir string // of its files
}

func (c *cluster) newUpstream(ctx context.Context, dir string) (*upstream, error) {
	bin, err := k8s.BuildUpstream(ctx)
	if err != nil {
		return nil, err
	}
	u := &upstream{c: c, bin: bin, dir: dir}
	for _, name := range []string{"driver.yaml", "storageclass.yaml"} {
		text, err := os.ReadFile(filepath.Join("testdata/upstream", name))
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(strings.ReplaceAll(string(text), "$DIR", dir)), 0o600); err != nil {
			return nil, err
		}
	}
	return u, u.pushImages(ctx)
}

// pushImages pushes the images that the suite's pods name, made of what its own module and Debian have.
func (u *upstream) pushImages(ctx context.Context) error {
	busybox, err := k8s.Busybox()
	if err != nil {
		return err
	}
	agnhost, err := k8s.BusyboxAnd([]string{"/agnhost"}, []string{"pause"}, k8s.File{Path: "/agnhost", From: filepath.Join(u.bin, "agnhost")})
	if err != nil {
		return err
	}
	ours := map[string]v1.Image{
		"busybox":           busybox,
		"agnhost":           agnhost,
		"glibc-dns-testing": busybox, // of which the storage suite runs only the shell
	}
	list, err := u.c.Output(u.command("--list-images"))
	if err != nil {
		return fmt.Errorf("list the suite's images: %w: %s", err, list)
	}
	for name, image := range ours {
		references := regexp.MustCompile(`(?m)^\S+/`+name+`:\S+$`).FindAllString(list, -1)
		if len(references) == 0 {
			return fmt.Errorf("the suite names no image %s:\n%s", name, list)
		}
		for _, reference := range references {
			if err := u.c.Push(ctx, reference, image); err != nil {
				return err
			}
		}
	}
	return nil
}

func (u *upstream) command(args ...string) *exec.Cmd {
	return exec.Command(filepath.Join(u.bin, "upstream"), append([]string{"--provider=local", "--kubeconfig=" + u.c.Admin}, args...)...)
}

// upstreamPrefix is what the names of the specs begin with. With the suite's framework come specs of Kubernetes itself.
const upstreamPrefix = "External Storage [Driver: csi.bpfvol.io] "

// A spec is what the suite reports of one.
type spec struct {
	ContainerHierarchyTexts []string
	LeafNodeType            string
	LeafNodeText            string
	State                   string
	Failure                 struct{ Message string }
}

func (s spec) name() string {
	return strings.Join(append(slices.Clone(s.ContainerHierarchyTexts), s.LeafNodeText), " ")
}

// run runs every spec that upstreamReasons do not leave out, and returns the reports of all. Its output is kept as upstream.log
// beside what a failed test keeps.
func (u *upstream) run(t *testing.T) []spec {
	t.Helper()
	report := filepath.Join(u.dir, "report.json")
	args := []string{"--ginkgo.focus=" + regexp.QuoteMeta(upstreamPrefix), "--storage.testdriver=" + filepath.Join(u.dir, "driver.yaml"), "--ginkgo.no-color", "--ginkgo.v", "--ginkgo.timeout=60m", "--ginkgo.json-report=" + report}
	for _, r := range upstreamReasons {
		if r.says == "" {
			args = append(args, "--ginkgo.skip="+r.specs)
		}
	}
	log, err := os.Create(filepath.Join(u.c.Dir(), "upstream.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := u.command(args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := u.c.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	data, err := os.ReadFile(report)
	if err != nil {
		t.Fatalf("the suite made no report; upstream.log says why: %v", err)
	}
	var suites []struct{ SpecReports []spec }
	if err := json.Unmarshal(data, &suites); err != nil {
		t.Fatal(err)
	}
	var specs []spec
	for _, s := range suites {
		for _, spec := range s.SpecReports {
			if spec.LeafNodeType == "It" && strings.HasPrefix(spec.name(), upstreamPrefix) {
				specs = append(specs, spec)
			}
		}
	}
	return specs
}
