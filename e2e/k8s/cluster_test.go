// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const policy = `
apiVersion: bpfvol.io/v1alpha1
kind: BytecodePolicy
metadata: {name: acme}
spec:
  images: ["ghcr.io/acme/**"]
  unsigned: true
`

func TestClusterServesPolicies(t *testing.T) {
	c := Start(t)
	c.Apply(t, policy)
	if got := c.Kubectl(t, "get", "bytecodepolicy", "acme", "-o", "jsonpath={.spec.images[0]}"); got != "ghcr.io/acme/**" {
		t.Errorf("images: got %q", got)
	}
}

func TestServiceAccountIsWhoItSaysItIs(t *testing.T) {
	c := Start(t)
	c.Apply(t, policy)
	config := c.ServiceAccount(t, "shop", "web")
	if got := c.Kubectl(t, "--kubeconfig", config, "auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"); got != "system:serviceaccount:shop:web" {
		t.Errorf("whoami: got %q", got)
	}
	c.GrantUse(t, "acme", "shop", "web")
	for namespace, want := range map[string]string{"shop": "yes", "default": "no"} {
		// It exits with 1 where the answer is no.
		got, _ := c.TryKubectl(t, "", "--kubeconfig", config, "auth", "can-i", "use", "bytecodepolicies/acme", "-n", namespace)
		if strings.TrimSpace(got) != want {
			t.Errorf("can use acme in namespace %s: got %q, want %q", namespace, got, want)
		}
	}
}

func TestAPIServerComesBackWithItsState(t *testing.T) {
	c := Start(t)
	c.Apply(t, policy)
	config := c.ServiceAccount(t, "shop", "web")
	c.Kill(t)
	if conn, err := net.Dial("tcp", strings.TrimPrefix(c.Server, "https://")); err == nil {
		conn.Close()
		t.Error("the port takes connections after Kill")
	}
	c.Restart(t)
	if status, body := c.Do(t, http.MethodGet, "/apis/bpfvol.io/v1alpha1/bytecodepolicies/acme", nil); status != http.StatusOK {
		t.Errorf("the policy after Restart: %d: %s", status, body)
	}
	c.Kubectl(t, "--kubeconfig", config, "auth", "whoami") // the token is still good
}

func TestClusterLeavesNothing(t *testing.T) {
	var dir string
	var pids []int
	t.Run("cluster", func(t *testing.T) {
		c := Start(t)
		dir, pids = c.dir, []int{c.etcd.cmd.Process.Pid, c.api.cmd.Process.Pid}
		c.ServiceAccount(t, "shop", "web")
		for _, pid := range pids {
			if _, err := os.Stat(filepath.Join("/proc", strconv.Itoa(pid))); err != nil {
				t.Fatal(err)
			}
		}
	})
	for _, pid := range pids {
		if _, err := os.Stat(filepath.Join("/proc", strconv.Itoa(pid))); err == nil {
			t.Errorf("process %d still runs", pid)
		}
	}
	if _, err := os.Stat(dir); err == nil {
		t.Errorf("%s still exists", dir)
	}
}
