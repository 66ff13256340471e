// SPDX-License-Identifier: Apache-2.0

package events

import (
	"bytes"
	"debug/elf"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// foreign attaches a program of somebody else to eth0.
func foreign(t *testing.T, _ *node, _ *csi.NodePublishVolumeRequest) {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "firewall", Type: ebpf.XDP, License: "MIT",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { prog.Close() })
	eth0, err := net.InterfaceByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: eth0.Index})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
}

func occupied(t *testing.T, n *node, _ *csi.NodePublishVolumeRequest) {
	n.published(t, with(attach(onEth0), "image", count))
}

// slotted takes all slots of eth0, by volumes of the same image.
func slotted(t *testing.T, n *node, req *csi.NodePublishVolumeRequest) {
	var attach strings.Builder
	for _, program := range []string{"tail_call", "tail_call_function", "full_stack", "kconfig"} {
		fmt.Fprintf(&attach, "- {program: %s, xdp: eth0}\n", program)
	}
	for range 32 / 4 {
		n.published(t, map[string]string{"image": req.VolumeContext["image"], "attach": attach.String()})
	}
}

// largePackets makes the packets of eth0 so large that they come in fragments, for a program that takes those.
func largePackets(t *testing.T, n *node, req *csi.NodePublishVolumeRequest) {
	mtu := func(bytes int) {
		for _, name := range []string{"eth0", "eth1"} {
			l, err := netlink.LinkByName(name)
			if err == nil {
				err = netlink.LinkSetMTU(l, bytes)
			}
			if err != nil {
				t.Error(err)
			}
		}
	}
	mtu(9000)
	t.Cleanup(func() { mtu(1500) })
	n.published(t, map[string]string{"image": req.VolumeContext["image"], "attach": "{program: frags, xdp: eth0}"})
}

const onLocalIn = "{program: on_netfilter, netfilter: {family: ipv4, hook: localIn, priority: 7}}"

// priorityTaken publishes the same for another pod.
func priorityTaken(t *testing.T, n *node, req *csi.NodePublishVolumeRequest) {
	n.published(t, with(attach(onLocalIn), "image", req.VolumeContext["image"]))
}

// cached publishes and unpublishes the volume, which brings its image into the cache.
func cached(t *testing.T, n *node, req *csi.NodePublishVolumeRequest) {
	if err := n.publish(t, req); err != nil {
		t.Fatal(err)
	}
	if err := n.unpublish(t, req); err != nil {
		t.Fatal(err)
	}
}

// blobs lists the files of the image cache.
func blobs(t *testing.T, n *node) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(n.CacheDir(), "oci", "blobs", "sha256", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// spoil flips a bit of every object in the cache.
func spoil(t *testing.T, n *node) {
	t.Helper()
	for path, data := range objects(t, n) {
		data[len(data)/2] ^= 1
		// A new file, as the old one is read-only.
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// lose removes every object from the cache.
func lose(t *testing.T, n *node) {
	t.Helper()
	for path := range objects(t, n) {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// objects returns the BPF objects of the cache, by path.
func objects(t *testing.T, n *node) map[string][]byte {
	t.Helper()
	found := map[string][]byte{}
	for _, path := range blobs(t, n) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.HasPrefix(data, []byte(elf.ELFMAG)) {
			found[path] = data
		}
	}
	return found
}

// mounted puts a file system of somebody else on the target.
func mounted(t *testing.T, _ *node, req *csi.NodePublishVolumeRequest) {
	if err := os.Mkdir(req.TargetPath, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("somebody", req.TargetPath, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(req.TargetPath, 0); err != nil {
			t.Error(err)
		}
	})
}

func capability(change func(*csi.VolumeCapability_MountVolume)) func(*testing.T, *node, *csi.NodePublishVolumeRequest) {
	return func(_ *testing.T, _ *node, req *csi.NodePublishVolumeRequest) {
		change(req.VolumeCapability.GetMount())
	}
}

// full leaves no room in the directory of the records.
func full(t *testing.T, n *node, _ *csi.NodePublishVolumeRequest) {
	path := filepath.Join(n.StateDir(), "ballast")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(path) })
	var st unix.Statfs_t
	if err := unix.Statfs(n.StateDir(), &st); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize); err != nil {
		t.Fatal(err)
	}
}
