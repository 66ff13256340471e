// SPDX-License-Identifier: Apache-2.0

package nodetest

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/bpfvol/bpfvol/e2e/gobuild"
)

// Plugins is kubelet as far as it looks for drivers and registers them: kubelet's own code, see e2e/k8s/hyperkube/plugins.
type Plugins struct{ states chan string }

// pluginsBinary builds it, for all tests of a package below e2e. It lies in a module of its own: Kubernetes' dependencies
// are not ours.
var pluginsBinary = sync.OnceValues(func() (string, error) {
	path := filepath.Join(binDir, "plugins")
	// -trimpath as e2e/k8s/build.sh, to share what that has compiled.
	return path, gobuild.Build(context.Background(), path, "e2e/k8s/hyperkube", "./plugins", "-trimpath")
})

// StartPlugins starts it on the node's kubelet directory, until the test ends. nodeObject is the name of the node in the
// cluster; when it is empty the cluster has none, so that kubelet can register nobody.
func (n *Node) StartPlugins(t testing.TB, nodeObject string) *Plugins {
	t.Helper()
	path, err := pluginsBinary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, n.KubeletDir(), nodeObject)
	var log bytes.Buffer
	cmd.Stderr = &log
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &Plugins{states: make(chan string, 64)}
	var reading sync.WaitGroup
	reading.Go(func() {
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			p.states <- lines.Text()
		}
	})
	t.Cleanup(func() {
		stdin.Close() // ends it
		reading.Wait()
		if err := cmd.Wait(); err != nil {
			t.Errorf("plugins: %v", err)
		}
		if t.Failed() {
			t.Logf("kubelet's log:\n%s", log.Bytes())
		}
	})
	return p
}

// Wait waits until the node's CSINode object changes to the given drivers, "name=node id" each.
func (p *Plugins) Wait(t testing.TB, drivers ...string) {
	t.Helper()
	want, last := fmt.Sprint("drivers: ", drivers), "nothing"
	for deadline := time.After(30 * time.Second); ; {
		select {
		case last = <-p.states:
			if last == want {
				return
			}
		case <-deadline:
			t.Fatalf("kubelet's last word is %q, want %q", last, want)
		}
	}
}
