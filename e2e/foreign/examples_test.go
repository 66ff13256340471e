// SPDX-License-Identifier: Apache-2.0

package foreign_test

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/e2e/kubelet"
	"github.com/bpfvol/bpfvol/e2e/nodetest"
	"github.com/bpfvol/bpfvol/internal/bpftest"
)

func TestXDPExample(t *testing.T) {
	node, peer := bpftest.Pair(t)
	n := nodetest.Start(t, nodetest.Options{NetNS: node})
	v := n.Publish(t, map[string]string{
		"image":  n.Signed(t, "xdp", example(t, "xdp/bpf_bpfel.o")),
		"attach": "{program: xdp_prog_func, xdp: veth0}",
	})
	peer.SendUDP(t, node.Addr, 9)
	// The key is a __u32, as the example's author wrote it: its number is that of this machine's byte order.
	addr := peer.Addr.As4()
	var packets int
	if v.Value(t, "xdp_stats_map", fmt.Sprint(binary.NativeEndian.Uint32(addr[:])), &packets); packets != 9 {
		t.Errorf("counted %d packets of the peer, want 9; the map holds %s", packets, v.Entries(t, "xdp_stats_map"))
	}
}

// Its counters are global variables, shown because the volume names their section.
func TestTCXExampleShowsItsGlobalVariables(t *testing.T) {
	node, peer := bpftest.Pair(t)
	n := nodetest.Start(t, nodetest.Options{NetNS: node})
	v := n.Publish(t, map[string]string{
		"image": n.Signed(t, "tcx", example(t, "tcx/bpf_bpfel.o")),
		"attach": "- {program: ingress_prog_func, tc: {interface: veth0, direction: ingress}}\n" +
			"- {program: egress_prog_func, tc: {interface: veth0, direction: egress}}\n",
		"maps": "bss",
	})
	node.SendUDP(t, peer.Addr, 4)
	peer.SendUDP(t, node.Addr, 3)
	var got struct {
		In  int `json:"ingress_pkt_count"`
		Out int `json:"egress_pkt_count"`
	}
	v.Value(t, "bss", "0", &got)
	// Nobody listens at the port: each datagram is answered by ICMP, as long as its rate limit (icmp_msgs_per_sec) lasts.
	if got.In < 3 || got.In > 3+4 || got.Out < 4 || got.Out > 4+3 {
		t.Errorf("counted %+v of 3 in and 4 out", got)
	}
}

func TestTracepointExample(t *testing.T) {
	n := nodetest.Start(t, nodetest.Options{})
	v := n.Publish(t, map[string]string{"image": n.Signed(t, "tracepoint", example(t, "tracepoint_in_c/bpf_bpfel.o"))})
	var before, after int
	v.Value(t, "counting_map", "0", &before)
	const pages = 64
	allocate(t, pages)
	if v.Value(t, "counting_map", "0", &after); after-before < pages {
		t.Errorf("counted %d page allocations, want at least %d", after-before, pages)
	}
}

// allocate makes the kernel allocate n pages.
func allocate(t *testing.T, n int) {
	t.Helper()
	size := n * unix.Getpagesize()
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Madvise(mem, unix.MADV_NOHUGEPAGE); err != nil && !errors.Is(err, unix.EINVAL) {
		t.Fatal(err)
	}
	for i := 0; i < size; i += unix.Getpagesize() {
		mem[i] = 1
	}
	if err := unix.Munmap(mem); err != nil {
		t.Fatal(err)
	}
}

func TestCgroupExampleCountsItsCgroupOnly(t *testing.T) {
	node, peer := bpftest.Pair(t)
	n := nodetest.Start(t, nodetest.Options{NetNS: node})
	group := nodetest.NewCgroup(t)
	v := n.Publish(t, map[string]string{
		"image":  n.Signed(t, "cgroup-skb", example(t, "cgroup_skb/bpf_bpfel.o")),
		"attach": "{program: count_egress_packets, cgroup: " + group.Path + "}",
	})
	send := group.Action("udp", peer.Addr.String()+":9", "6")
	if err := node.Do(send.Run); err != nil {
		t.Fatal(err)
	}
	node.SendUDP(t, peer.Addr, 5) // not in the cgroup
	var packets int
	if v.Value(t, "pkt_count", "0", &packets); packets != 6 {
		t.Errorf("counted %d packets, want 6", packets)
	}
}

func TestSockopsExampleFollowsAConnection(t *testing.T) {
	node := bpftest.NewNetNS(t)
	n := nodetest.Start(t, nodetest.Options{NetNS: node})
	group := nodetest.NewCgroup(t)
	v := n.Publish(t, map[string]string{
		"image":  n.Signed(t, "tcprtt-sockops", example(t, "tcprtt_sockops/bpf_bpfel.o")),
		"attach": "{program: bpf_sockops_cb, cgroup: " + group.Path + "}",
	})
	var server net.Listener
	if err := node.Do(func() (err error) {
		server, err = net.Listen("tcp4", "127.0.0.1:0")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	client := group.Action("tcp", server.Addr().String())
	stdin, err := client.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := client.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := node.Do(client.Start); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || line != "connected\n" {
		t.Fatalf("client: %q, %v", line, err)
	}
	entries := v.Entries(t, "map_estab_sk")
	if len(entries) != 1 {
		t.Fatalf("the map holds %s, want the one connection", entries)
	}
	var key struct {
		RemotePort int `json:"remote_port"`
	}
	if err := json.Unmarshal(entries[0].Key, &key); err != nil {
		t.Fatal(err)
	}
	if want := server.Addr().(*net.TCPAddr).Port; key.RemotePort != want {
		t.Errorf("the connection is %s, want remote port %d", entries[0].Key, want)
	}
	stdin.Close()
	if err := client.Wait(); err != nil {
		t.Fatal(err)
	}
}

// A perf event array has entries for no one but its reader: it shows as a pin, and says so.
func TestUretprobeExampleRuns(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the example's object is for amd64")
	}
	hostid, libc := nodetest.Hostid(t)
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		t.Fatal(err)
	}
	defer stats.Close()
	n := nodetest.Start(t, nodetest.Options{})
	n.Publish(t, map[string]string{
		"image":  n.Signed(t, "uretprobe", example(t, "uretprobe/bpf_x86_bpfel.o")),
		"attach": "{program: uretprobe_bash_readline, uretprobe: {path: " + libc + ", symbol: gethostid}}",
	})
	for range 3 {
		if err := exec.Command(hostid).Run(); err != nil {
			t.Fatal(err)
		}
	}
	var points []struct {
		Point   string
		Members []struct{ Runs int }
	}
	if err := json.Unmarshal([]byte(n.Run(t, "status", "-o", "json")), &points); err != nil {
		t.Fatal(err)
	}
	if len(points) != 1 || len(points[0].Members) != 1 || points[0].Members[0].Runs != 3 {
		t.Errorf("status shows %+v, want one program with 3 runs", points)
	}
}

// What a volume or the node's kernel cannot run is refused with the reason, and leaves nothing.
func TestExamplesThatCannotRunAreRefused(t *testing.T) {
	n := nodetest.Start(t, nodetest.Options{})
	const noKprobes, noTrampolines = "this kernel cannot probe its functions", "this kernel does not let bpfvol load programs"
	for file, want := range map[string]string{
		"kprobe/bpf_bpfel.o":     `code = FailedPrecondition desc = program "kprobe_execve": ` + noKprobes,
		"ringbuffer/bpf_bpfel.o": `code = FailedPrecondition desc = program "kprobe_execve": ` + noKprobes,
		"fentry/bpf_bpfel.o":     `code = FailedPrecondition desc = program "tcp_connect": ` + noTrampolines,
		"sched_ext/bpf_bpfel.o":  "code = InvalidArgument desc = object: no program in it",
		"xdp/bpf_bpfel.o":        `code = InvalidArgument desc = program "xdp_prog_func": section "xdp" needs an interface; write attach: [{program: xdp_prog_func, xdp: {interface: eth0}}]`,
	} {
		t.Run(strings.ReplaceAll(file, "/", "-"), func(t *testing.T) {
			name := strings.NewReplacer("/", "-", ".o", "", "_", "-").Replace(file)
			v := n.New(map[string]string{"image": n.Signed(t, name, example(t, file))})
			err := v.SetUp(t.Context())
			if err == nil && strings.Contains(want, "this kernel") {
				if err := v.TearDown(t.Context()); err != nil {
					t.Error(err)
				}
				t.Skip("this kernel runs it")
			}
			var refused *kubelet.MountError
			if !errors.As(err, &refused) || !refused.Final() || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want a final error with %q", err, want)
			}
			if err == nil {
				if err := v.TearDown(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
