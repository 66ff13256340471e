// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Kubectl runs kubectl as admin and returns its standard output. The test fails with what it printed where it fails.
func (c *Cluster) Kubectl(t testing.TB, args ...string) string {
	t.Helper()
	out, err := c.TryKubectl(t, "", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TryKubectl runs kubectl as admin with stdin and returns its standard output. The error holds what it printed on
// standard error.
func (c *Cluster) TryKubectl(t testing.TB, stdin string, args ...string) (string, error) {
	t.Helper()
	return c.kubectl(t.Context(), stdin, args...)
}

func (c *Cluster) kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, c.Hyperkube, append([]string{"kubectl", "--kubeconfig", c.Admin}, args...)...)
	cmd.Env = append(os.Environ(), "HOME="+c.dir) // its cache goes with the cluster
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := c.space.run(cmd); err != nil {
		return stdout.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// Apply applies a manifest of any number of documents as admin.
func (c *Cluster) Apply(t testing.TB, manifest string) {
	t.Helper()
	if _, err := c.TryKubectl(t, manifest, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

// ServiceAccount makes a service account, and its namespace, where they do not exist, and returns the path of a
// kubeconfig with a token of it.
func (c *Cluster) ServiceAccount(t testing.TB, namespace, name string) string {
	t.Helper()
	object := func(apiPath, kind, name string) {
		status, body := c.Do(t, http.MethodPost, apiPath, map[string]any{
			"apiVersion": "v1", "kind": kind, "metadata": map[string]any{"name": name},
		})
		if status != http.StatusCreated && status != http.StatusConflict {
			t.Fatalf("create %s %s: %d: %s", kind, name, status, body)
		}
	}
	object("/api/v1/namespaces", "Namespace", namespace)
	accounts := "/api/v1/namespaces/" + namespace + "/serviceaccounts"
	object(accounts, "ServiceAccount", name)
	status, body := c.Do(t, http.MethodPost, accounts+"/"+name+"/token", map[string]any{
		"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": map[string]any{},
	})
	var answer struct{ Status struct{ Token string } }
	if err := json.Unmarshal(body, &answer); status != http.StatusCreated || err != nil {
		t.Fatalf("token of %s/%s: %d: %s", namespace, name, status, body)
	}
	return c.kubeconfig(t, namespace+"-"+name, answer.Status.Token)
}

// GrantUse lets a service account's pods use a policy in its own namespace, the way docs/policy.md shows: kubectl create
// clusterrole does not take the verb.
func (c *Cluster) GrantUse(t testing.TB, policy, namespace, account string) {
	t.Helper()
	c.Apply(t, fmt.Sprintf(`
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: use-%[1]s}
rules: [{apiGroups: [bpfvol.io], resources: [bytecodepolicies], resourceNames: [%[1]q], verbs: [use]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: %[3]s-use-%[1]s, namespace: %[2]s}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: use-%[1]s}
subjects: [{kind: ServiceAccount, namespace: %[2]s, name: %[3]s}]
`, policy, namespace, account))
}

// Do sends one request as admin, with body as JSON unless it is nil, and returns the status and body of the answer.
// It is what a test with hundreds of questions uses instead of Kubectl.
func (c *Cluster) Do(t testing.TB, method, path string, body any) (int, []byte) {
	t.Helper()
	status, answer, err := c.request(t.Context(), method, path, body)
	if err != nil {
		t.Fatal(err)
	}
	return status, answer
}

func (c *Cluster) request(ctx context.Context, method, path string, body any) (int, []byte, error) {
	var send io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return 0, nil, err
		}
		send = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.Server+path, send)
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+c.secret.admin)
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	return resp.StatusCode, answer, err
}

// kubeconfig writes one for who has the token.
func (c *Cluster) kubeconfig(t testing.TB, name, token string) string {
	t.Helper()
	file, err := c.writeKubeconfig(name, token)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// writeKubeconfig writes one for who has the token. JSON is YAML.
func (c *Cluster) writeKubeconfig(name, token string) (string, error) {
	data, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "test",
		"clusters": []any{map[string]any{"name": "test", "cluster": map[string]any{"server": c.Server, "certificate-authority-data": c.secret.cert}}},
		"users":    []any{map[string]any{"name": "test", "user": map[string]any{"token": token}}},
		"contexts": []any{map[string]any{"name": "test", "context": map[string]any{"cluster": "test", "user": "test"}}},
	})
	if err != nil {
		return "", err
	}
	file := c.file(name + ".kubeconfig")
	return file, os.WriteFile(file, data, 0o600)
}
