// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package kubernetes_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/bpfvol/bpfvol/e2e/gobuild"
	"github.com/bpfvol/bpfvol/e2e/k8s"
)

// The scenarios of deploy/examples, as a user applies them, on what the chart installs. Only the key in their policies is the
// tests'.

// example applies a file of deploy/examples, and deletes what it made with the test.
func (c *cluster) example(t *testing.T, file string) {
	t.Helper()
	if err := c.exampleImages(t.Context()); err != nil {
		t.Fatal(err)
	}
	manifest := c.exampleManifest(t, file)
	c.Apply(t, manifest)
	t.Cleanup(func() {
		if _, err := c.TryKubectl(outlive(t), manifest, "delete", "--ignore-not-found", "--timeout="+patience.String(), "-f", "-"); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		if t.Failed() {
			c.archive(t) // with the pods
		}
	})
}

// exampleManifest is a file of deploy/examples with the key of the tests.
func (c *cluster) exampleManifest(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../deploy/examples", file))
	if err != nil {
		t.Fatal(err)
	}
	ours := "        " + strings.ReplaceAll(strings.TrimSpace(c.publicKey(t)), "\n", "\n        ")
	return regexp.MustCompile(`(?s) *-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----`).ReplaceAllLiteralString(string(text), ours)
}

// counter starts the pod demo/counter of counter.yaml, which counts packets at the node's interface.
func (c *cluster) counter(t *testing.T) {
	t.Helper()
	c.example(t, "counter.yaml")
	c.awaitReady(t, "demo", "counter")
}

var exampleImages struct {
	sync.Once
	err error
}

// exampleImages pushes deploy/examples/reader and writer, with a shell and what asks for every command of bpf(2).
func (c *cluster) exampleImages(ctx context.Context) error {
	exampleImages.Do(func() { exampleImages.err = c.pushReader(ctx) })
	return exampleImages.err
}

func (c *cluster) pushReader(ctx context.Context) error {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	files := []k8s.File{{Path: "/bin/busybox", From: busybox}, {Path: "/bin/sleep", Link: "busybox"}}
	for name, pkg := range map[string]string{"reader": "./deploy/examples/reader", "writer": "./deploy/examples/writer", "bpfcalls": "./e2e/bpfcalls"} {
		binary := filepath.Join(c.dir, name)
		if err := gobuild.Build(ctx, binary, "", pkg, "-trimpath"); err != nil {
			return err
		}
		files = append(files, k8s.File{Path: "/" + name, From: binary})
	}
	image, err := k8s.Image(nil, nil, files...)
	if err != nil {
		return err
	}
	return errors.Join(c.Push(ctx, "ghcr.io/acme/reader:v1", image), c.Push(ctx, "ghcr.io/acme/writer:v1", image))
}

// awaitEvent waits for an event of a pod with this reason, and returns its text.
func (c *cluster) awaitEvent(t *testing.T, namespace, pod, reason string) string {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), patience, errors.New("not in time"))
	defer cancel()
	var text string
	err := c.AwaitAll(ctx, "/api/v1/namespaces/"+namespace+"/events", "involvedObject.name="+pod+",reason="+reason, func(events map[string]json.RawMessage) (bool, error) {
		for _, e := range events {
			var event struct{ Message string }
			if err := json.Unmarshal(e, &event); err != nil {
				return false, err
			}
			text = event.Message
		}
		return len(events) > 0, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// The whole way: kubelet publishes an inline volume, its program counts packets of the node's interface, and an unprivileged
// container reads the count by cat.
func TestPodReadsItsVolume(t *testing.T) {
	c := start(t)
	c.nothingLeft(t)
	c.counter(t)
	const packets = 100
	c.send(t, packets)
	if got := c.packets(t, "demo", "counter"); got != packets {
		t.Errorf("the pod reads %d packets, want %d", got, packets)
	}
}

// A namespace that enforces "restricted" takes the pod, which reads the map by cat under the default seccomp profile, and by
// bpf(2) under the one that the chart brings. That one lets through what reading needs, and nothing else.
func TestRestrictedPodReadsMaps(t *testing.T) {
	c := start(t)
	c.nothingLeft(t)
	c.example(t, "restricted.yaml")
	c.awaitReady(t, "restricted", "flows")
	const packets = 10
	c.send(t, packets)
	in := func(container string, command ...string) string {
		return c.kubectl(t, append([]string{"exec", "-n", "restricted", "flows", "-c", container, "--"}, command...)...)
	}
	if got, want := in("cat", "cat", "/bpf/json/flows"), `{"key":{"saddr":"10.250.0.1","protocol":"UDP"},"value":{"packets":10,"bytes":600}}`+"\n"; !strings.Contains(got, want) {
		t.Errorf("cat: got %s\nwant a line %s", got, want)
	}
	if got, want := in("reader", "/reader", "/bpf"), "10.250.0.1 protocol 17: 10 packets, 600 bytes\n"; !strings.Contains(got, want) {
		t.Errorf("bpf(2): got %s\nwant a line %s", got, want)
	}
	// BPF_MAP_LOOKUP_ELEM, _GET_NEXT_KEY, OBJ_GET, OBJ_GET_INFO_BY_FD, MAP_LOOKUP_BATCH
	if got, want := in("reader", "/bpfcalls"), "1\n4\n7\n15\n24\n"; got != want {
		t.Errorf("commands of bpf(2) that the profile lets through:\n%swant\n%s", got, want)
	}
	if got := in("cat", "cat", "/proc/self/status"); !regexp.MustCompile(`(?m)^CapEff:\t0+$`).MatchString(got) || !strings.Contains(got, "Seccomp:\t2") {
		t.Errorf("who reads by cat has privileges:\n%s", got)
	}
}

// What the firewall drops, the counter does not see, since it comes later by its priority, though its pod may have come first.
func TestPodsShareAnInterfaceInOrder(t *testing.T) {
	c := start(t)
	c.nothingLeft(t)
	c.example(t, "shared-interface.yaml")
	c.awaitReady(t, "shared", "counter")
	c.awaitReady(t, "shared", "firewall")
	send := func(port uint16, n int) {
		t.Helper()
		if err := c.World.SendUDPTo(port, n); err != nil {
			t.Fatal(err)
		}
	}
	send(9, 7)
	send(10, 5)
	if got := c.dropped(t, "shared", "firewall"); got != 7 {
		t.Errorf("the firewall dropped %d, want 7", got)
	}
	if got := c.packets(t, "shared", "counter"); got != 5 {
		t.Errorf("behind the firewall %d packets were counted, want 5", got)
	}
	c.deletePod(t, "shared", "firewall")
	send(9, 3)
	if got := c.packets(t, "shared", "counter"); got != 5+3 {
		t.Errorf("without the firewall %d packets were counted, want 8", got)
	}
}

// dropped is what the firewall's map says, over all CPUs.
func (c *cluster) dropped(t *testing.T, namespace, pod string) (sum uint64) {
	t.Helper()
	out := c.exec(t, namespace, pod, "cat", "/bpf/json/dropped")
	var entry struct{ Value []uint64 }
	if err := json.Unmarshal([]byte(out), &entry); err != nil {
		t.Fatalf("json/dropped: %q: %v", out, err)
	}
	for _, n := range entry.Value {
		sum += n
	}
	return sum
}

// An image without a signature does not run, and who looks at the pod reads why.
func TestUnsignedImageIsRefusedInAnEvent(t *testing.T) {
	c := start(t)
	c.nothingLeft(t)
	c.example(t, "unsigned.yaml")
	const want = `is not signed, and policy "unsigned" wants a signature; sign it`
	for _, reason := range []string{"FailedMount", "BytecodeRefused"} {
		if got := c.awaitEvent(t, "unsigned", "unsigned", reason); !strings.Contains(got, want) {
			t.Errorf("event %s: %s\nwant %s", reason, got, want)
		}
	}
	if got := c.awaitEvent(t, "unsigned", "unsigned", "FailedMount"); !strings.Contains(got, `volume "bpf" : rpc error: code = PermissionDenied desc = image ghcr.io/acme/unsigned@sha256:`) {
		t.Errorf("event of kubelet: %s", got)
	}
}

// A service account without the grant is refused by name, and once it has it the pod starts by itself.
func TestGrantStartsAPodThatWaits(t *testing.T) {
	c := start(t)
	c.nothingLeft(t)
	c.example(t, "denied.yaml")
	const want = `service account "granted/counter" may not use policy "granted"; an admin must grant it verb "use" on bytecodepolicies/granted`
	if got := c.awaitEvent(t, "granted", "counter", "BytecodeRefused"); !strings.Contains(got, want) {
		t.Errorf("event: %s\nwant %s", got, want)
	}
	c.example(t, "granted.yaml")
	c.awaitReady(t, "granted", "counter")
	c.send(t, 4)
	if got := c.packets(t, "granted", "counter"); got != 4 {
		t.Errorf("the pod reads %d packets, want 4", got)
	}
}

// A container whose root is nobody on the node starts with a volume, reads it and cannot write it.
func TestPodWithUserNamespaceReadsMaps(t *testing.T) {
	c := start(t)
	c.nothingLeft(t)
	c.example(t, "user-namespace.yaml")
	c.awaitReady(t, "userns", "flows")
	if got := strings.Fields(c.exec(t, "userns", "flows", "cat", "/proc/self/uid_map")); len(got) != 3 || got[0] != "0" || got[1] == "0" {
		t.Fatalf("the pod has no user namespace: %v", got)
	}
	c.send(t, 6)
	if got := c.packets(t, "userns", "flows"); got != 6 {
		t.Errorf("the pod reads %d packets, want 6", got)
	}
	for _, command := range []string{"echo x >/bpf/volume.json", "rm /bpf/volume.json", "dd if=/dev/null of=/bpf/maps/flows", "mkdir /bpf/x"} {
		if out, err := c.TryKubectl(t, "", "exec", "-n", "userns", "flows", "--", "sh", "-c", command); err == nil || !strings.Contains(err.Error(), "Read-only file system") {
			t.Errorf("%s: %s %v", command, out, err)
		}
	}
}

// A claim of the class gets its volume from our provisioner; both pods that mount it see one program, which is there until
// the last of them goes.
func TestPodsOfAClaimShareOneInstance(t *testing.T) {
	c := start(t)
	c.nothingLeft(t)
	c.example(t, "storageclass.yaml")
	c.awaitReady(t, "claims", "one")
	c.awaitReady(t, "claims", "two")
	volume := c.kubectl(t, "get", "pvc", "-n", "claims", "flows", "-o", "jsonpath={.spec.volumeName}")
	if got := c.kubectl(t, "get", "pv", volume, "-o", "jsonpath={.status.phase} {.spec.csi.driver} {.spec.csi.volumeAttributes.image}"); got != "Bound csi.bpfvol.io ghcr.io/acme/count:v1" {
		t.Errorf("the claim's volume: %s", got)
	}
	programs := programsNamed(t, "count")
	for _, sent := range []int{8, 3} {
		c.send(t, sent)
		if one, two := c.packets(t, "claims", "one"), c.packets(t, "claims", "two"); one != two || one < uint64(sent) {
			t.Errorf("the pods read %d and %d packets", one, two)
		}
	}
	c.deletePod(t, "claims", "two")
	if got := programsNamed(t, "count"); got != programs || got == 0 {
		t.Errorf("%d programs for two pods, %d for one", programs, got)
	}
	c.send(t, 1)
	if got := c.packets(t, "claims", "one"); got != 8+3+1 {
		t.Errorf("the pod that stays reads %d packets, want 12", got)
	}
}

// programsNamed is how many programs of a name the kernel has.
func programsNamed(t *testing.T, name string) (n int) {
	t.Helper()
	var id ebpf.ProgramID
	for {
		next, err := ebpf.ProgramGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			return n
		}
		if err != nil {
			t.Fatal(err)
		}
		id = next
		program, err := ebpf.NewProgramFromID(id)
		if errors.Is(err, os.ErrNotExist) {
			continue // gone meanwhile
		}
		if err != nil {
			t.Fatal(err)
		}
		info, err := program.Info()
		program.Close()
		if err != nil {
			t.Fatal(err)
		}
		if info.Name == name {
			n++
		}
	}
}

// A pod with the least rights there are, in a user namespace and with a group of its own, writes a map of its volume, and the
// program goes on from what it wrote. It changes nothing else.
func TestPodWritesAMap(t *testing.T) {
	c := start(t)
	c.nothingLeft(t)
	c.example(t, "writable-map.yaml")
	c.awaitReady(t, "writable", "flows")
	const before, packets = 1_000_000, 100
	c.send(t, packets)
	if got := c.packets(t, "writable", "flows"); got != before+packets {
		t.Errorf("the pod reads %d packets, want %d", got, before+packets)
	}
	if got := c.exec(t, "writable", "flows", "ls", "/bpf/rw"); got != "flows\n" {
		t.Errorf("files in rw: %q", got)
	}
	for _, attempt := range []string{"rm /bpf/rw/flows", "mv /bpf/rw/flows /bpf/rw/x", "mkdir /bpf/rw/x", "rm /bpf/maps/flows"} {
		got := c.exec(t, "writable", "flows", "sh", "-c", attempt+" 2>&1; true")
		if !strings.Contains(got, "Read-only file system") {
			t.Errorf("%s: %q", attempt, got)
		}
	}
}
