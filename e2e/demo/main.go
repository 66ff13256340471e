// SPDX-License-Identifier: Apache-2.0

// Command demo tells the story of one volume, every step real: a registry, a signed image, the node plugin, kubelet's
// CSI calls, packets, a reader without any privilege, and a second volume that shares the interface. It prints DEMO OK
// only if each step did what it says and nothing is left behind. Run it with `make demo`.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/e2e/kubelet"
	"github.com/bpfvol/bpfvol/e2e/nobpf"
	"github.com/bpfvol/bpfvol/e2e/stack"
	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/kernelstate"
)

const (
	nodeNS, peerNS = "bpfvol-demo-node", "bpfvol-demo-peer"
	nodeIP, peerIP = "10.77.0.1", "10.77.0.2"
	packets        = 5
)

func main() {
	nobpf.Main(os.Args)
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: demo BPFVOL READER   (the built binaries; `make demo` does it)")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintf(os.Stderr, "\nDEMO FAILED: %v\n", err)
		os.Exit(1)
	}
	fmt.Println("\nDEMO OK")
}

// run checks that what tell does leaves nothing.
func run(bpfvol, reader string) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root: it makes network namespaces, mounts and BPF programs")
	}
	done, err := bpftest.Alone()
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	before, err := kernelstate.Take()
	if err != nil {
		return err
	}
	if err := tell(ctx, bpfvol, reader); err != nil {
		return err
	}
	left, err := kernelstate.Leftovers(ctx, before)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
	}
	step("Nothing is left: no program, link, map, mount, network namespace or pin that was not there before.")
	return nil
}

func tell(ctx context.Context, bpfvol, reader string) (err error) {
	step("Two network namespaces, a node and a peer, joined by a veth pair")
	cleanup, err := network()
	defer func() { err = errors.Join(err, cleanup()) }()
	if err != nil {
		return err
	}
	say("node eth0 %s <-> peer eth0 %s", nodeIP, peerIP)

	step("A registry on loopback; the example object becomes a signed image")
	made, err := stack.New(stack.Options{Bin: bpfvol, NetNS: nodeNS})
	if err != nil {
		return err
	}
	node := demoNode{made}
	defer func() { err = errors.Join(err, node.Close()) }()
	image := node.Registry + "/demo/count:v1"
	for _, args := range [][]string{
		{"build", "bpf/count.bpf.o", "-t", image},
		{"sign", image, "--key", node.KeyPrefix() + ".key"},
		{"push", image},
	} {
		if err := node.show(ctx, args...); err != nil {
			return err
		}
	}

	step("bpfvol serve, with one policy: images of this registry, signed by our key, for service account demo/counter")
	if err := writePolicy(node); err != nil {
		return err
	}
	ready, err := node.StartDaemon(ctx)
	if err != nil {
		return err
	}
	say("the CSI socket answers after %v", ready.Round(time.Millisecond))

	step("A pod with this volume starts; kubelet calls NodePublishVolume")
	pod := kubelet.Pod{Namespace: "demo", Name: "counter", UID: "0b5d4ad2-4d53-4a5c-8b0e-3c1f7c9d0a11", ServiceAccount: "counter"}
	attributes := map[string]string{"image": image, "attach": "- program: count\n  xdp: {interface: eth0}\n"}
	show("volumes:\n- name: bpf\n  csi:\n    driver: csi.bpfvol.io\n    volumeAttributes:\n      image: " + image +
		"\n      attach: |\n        - program: count\n          xdp: {interface: eth0}")
	k, err := kubelet.Connect(ctx, node.Endpoint(), node.KubeletDir())
	if err != nil {
		return err
	}
	defer k.Close()
	volume := kubelet.Volume{Name: "bpf", Attributes: attributes}
	target, err := k.SetUp(ctx, pod, volume)
	if err != nil {
		return err
	}
	published := true
	defer func() {
		if published {
			err = errors.Join(err, k.TearDown(ctx, pod, volume.Name))
		}
	}()
	if err := node.show(ctx, "status"); err != nil {
		return err
	}
	// The container runtime binds the volume into the container, with all mounts below it.
	bpf := filepath.Join(node.Dir, "bpf")
	if err := bind(target, bpf); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unbind(bpf)) }()

	step("The peer sends %d pings; a process with uid 65534 and no capability reads the map", packets)
	if err := sendPings(ctx); err != nil {
		return err
	}
	if reader, err = filepath.Abs(reader); err != nil {
		return err
	}
	fromSyscall, err := output(nobpf.AsNobody(reader, bpf))
	if err != nil {
		return err
	}
	say("by BPF_OBJ_GET of maps/flows, read-only (deploy/examples/reader):")
	show(fromSyscall)
	if want := fmt.Sprintf("%s protocol 1: %d packets", peerIP, packets); !strings.Contains(fromSyscall, want) {
		return fmt.Errorf("reader printed %q, want %q in it", fromSyscall, want)
	}
	fromFile, err := output(nobpf.Command("cat", filepath.Join(bpf, "json", "flows")))
	if err != nil {
		return err
	}
	say("by cat json/flows, where seccomp refuses bpf(2) as in a container:")
	show(fromFile)
	if want := fmt.Sprintf(`{"key":{"saddr":"%s","protocol":"ICMP"},"value":{"packets":%d,`, peerIP, packets); !strings.Contains(fromFile, want) {
		return fmt.Errorf("json/flows is %q, want %q in it", fromFile, want)
	}

	step("Nobody can write, root included")
	_, err = ebpf.LoadPinnedMap(filepath.Join(bpf, "maps", "flows"), nil)
	if !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("root opened the map for writing: error is %v, want %v", err, unix.EROFS)
	}
	say("root opens maps/flows for writing: %v", unix.EROFS)
	_, err = os.Create(filepath.Join(bpf, "maps", "mine"))
	if !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("root created a file in maps: error is %v", err)
	}
	say("root creates a file in maps: %v", errors.Unwrap(err))

	step("Another pod comes, with a firewall on the same interface, before the counter")
	if err := share(ctx, node, k, bpf); err != nil {
		return err
	}

	step("An image that nobody signed")
	if err := unsigned(ctx, node, k); err != nil {
		return err
	}

	step("The pod is deleted; kubelet calls NodeUnpublishVolume")
	if err := unbind(bpf); err != nil {
		return err
	}
	published = false
	if err := k.TearDown(ctx, pod, volume.Name); err != nil {
		return err
	}
	if err := node.show(ctx, "status"); err != nil {
		return err
	}
	return node.StopDaemon(syscall.SIGTERM)
}

// unsigned shows the event of a pod whose image is not signed.
func unsigned(ctx context.Context, node demoNode, k *kubelet.Kubelet) error {
	image := node.Registry + "/demo/unsigned:v1"
	out, err := node.CLI(ctx, "build", "bpf/drop.bpf.o", "-t", image, "--push")
	if err != nil {
		return err
	}
	pod := kubelet.Pod{Namespace: "demo", Name: "evil", UID: "5a1f5a60-58b7-4b30-9d7e-5f1d3f0c2b22", ServiceAccount: "counter"}
	volume := kubelet.Volume{
		Name:       "bpf",
		Attributes: map[string]string{"image": image, "attach": "- program: drop\n  xdp: {interface: eth0}\n"},
	}
	_, err = k.SetUp(ctx, pod, volume)
	if err == nil {
		return errors.Join(errors.New("an unsigned image was run"), k.TearDown(ctx, pod, volume.Name))
	}
	event := err.Error()
	show(event)
	want := fmt.Sprintf("MountVolume.SetUp failed for volume %q : rpc error: code = PermissionDenied desc = "+
		"image %s: is not signed, and policy %q wants a signature; sign it with a key of the policy", "bpf", strings.TrimSpace(out), "demo")
	if event != want {
		return fmt.Errorf("the event must read %q", want)
	}
	return nil
}

func writePolicy(node demoNode) error {
	key, err := os.ReadFile(node.KeyPrefix() + ".pub")
	if err != nil {
		return err
	}
	policy := "apiVersion: bpfvol.io/v1alpha1\nkind: BytecodePolicy\nmetadata: {name: demo}\nspec:\n" +
		"  images: [\"" + node.Registry + "/demo/*\"]\n  authorities:\n  - key:\n      data: |\n        " +
		strings.ReplaceAll(strings.TrimSpace(string(key)), "\n", "\n        ") + "\n  subjects: [demo/counter]\n"
	show(policy)
	return os.WriteFile(filepath.Join(node.PolicyDir(), "demo.yaml"), []byte(policy), 0o644)
}

// network makes the namespaces. cleanup removes what was made, also after an error.
func network() (cleanup func() error, err error) {
	cleanup = func() error {
		var errs []error
		for _, ns := range []string{nodeNS, peerNS} {
			if _, err := os.Stat("/run/netns/" + ns); err == nil {
				errs = append(errs, ip("netns", "del", ns))
			}
		}
		return errors.Join(errs...)
	}
	for _, args := range []string{
		"netns add " + nodeNS,
		"netns add " + peerNS,
		"-n " + nodeNS + " link add eth0 type veth peer name eth0 netns " + peerNS,
		"-n " + nodeNS + " addr add " + nodeIP + "/24 dev eth0",
		"-n " + peerNS + " addr add " + peerIP + "/24 dev eth0",
		"-n " + nodeNS + " link set lo up",
		"-n " + nodeNS + " link set eth0 up",
		"-n " + peerNS + " link set eth0 up",
	} {
		if err := ip(strings.Fields(args)...); err != nil {
			return cleanup, err
		}
	}
	return cleanup, nil
}

func bind(target, at string) error {
	if err := os.Mkdir(at, 0o755); err != nil {
		return err
	}
	return unix.Mount(target, at, "", unix.MS_BIND|unix.MS_REC, "")
}

// unbind undoes bind, and does nothing the second time.
func unbind(at string) error {
	if err := unix.Unmount(at, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return os.RemoveAll(at)
}

func ip(args ...string) error {
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}
