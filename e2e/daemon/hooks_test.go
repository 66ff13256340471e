// SPDX-License-Identifier: Apache-2.0

package daemon_test

import (
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/e2e/nodetest"
	"github.com/bpfvol/bpfvol/internal/bpftest"
)

// Indexes of the map hits; see bpf.Hooks.
const (
	onTracepoint = iota
	onRawTracepoint
	onUprobe
	onUretprobe
	_ // kprobe
	onPerfEvent
	onIngress
	onEgress
	onConnect
)

func TestTracepointsCountCalls(t *testing.T) {
	inBothPlaces(t, nil, func(t *testing.T, n *nodetest.Node) {
		v := n.Publish(t, map[string]string{
			"image":  n.Signed(t, "hooks", object("hooks")),
			"attach": "- {program: on_tracepoint, tracepoint: {name: syscalls/sys_enter_getpgid, cookie: 77}}\n- {program: on_raw_tracepoint, rawTracepoint: sys_enter}\n",
		})
		const calls = 25
		raw := hits(t, v, onRawTracepoint)
		for range calls {
			if _, err := unix.Getpgid(0); err != nil {
				t.Fatal(err)
			}
		}
		if got := hits(t, v, onTracepoint); got != calls {
			t.Errorf("the tracepoint counted %d calls, want %d", got, calls)
		}
		if got := hits(t, v, onRawTracepoint) - raw; got < calls { // every system call of the machine
			t.Errorf("the raw tracepoint counted %d calls, want at least %d", got, calls)
		}
		var byCookie int
		if v.Value(t, "cookies", "77", &byCookie); byCookie != calls {
			t.Errorf("cookie 77 counted %d calls, want %d", byCookie, calls)
		}
	})
}

func TestProbesCountCallsOfALibrary(t *testing.T) {
	hostid, libc := nodetest.Hostid(t)
	inBothPlaces(t, nil, func(t *testing.T, n *nodetest.Node) {
		v := n.Publish(t, map[string]string{
			"image":  n.Signed(t, "hooks", object("hooks")),
			"attach": "- {program: on_uprobe, uprobe: " + libc + ":gethostid}\n- {program: on_uretprobe, uretprobe: " + libc + ":gethostid}\n",
		})
		const calls = 4
		for range calls {
			if err := exec.Command(hostid).Run(); err != nil {
				t.Fatal(err)
			}
		}
		for _, hook := range []int{onUprobe, onUretprobe} {
			if got := hits(t, v, hook); got != calls {
				t.Errorf("hook %d counted %d calls, want %d", hook, got, calls)
			}
		}
	})
}

func TestCgroupCountsAndRefuses(t *testing.T) {
	node, peer := bpftest.Pair(t)
	inBothPlaces(t, node, func(t *testing.T, n *nodetest.Node) {
		group := nodetest.NewCgroup(t)
		var open, closed net.Listener
		if err := peer.Do(func() (err error) {
			if open, err = net.Listen("tcp4", peer.Addr.String()+":0"); err != nil {
				return err
			}
			closed, err = net.Listen("tcp4", peer.Addr.String()+":0")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		defer open.Close()
		defer closed.Close()
		cgroup := ", cgroup: " + group.Path + "}\n"
		v := n.Publish(t, map[string]string{
			"image":     n.Signed(t, "hooks", object("hooks")),
			"attach":    "- {program: on_ingress" + cgroup + "- {program: on_egress" + cgroup + "- {program: on_connect" + cgroup,
			"variables": fmt.Sprintf("refused_port: %d", closed.Addr().(*net.TCPAddr).Port),
		})
		if err := node.Do(group.Action("udp", peer.Addr.String()+":9", "6").Run); err != nil {
			t.Fatal(err)
		}
		node.SendUDP(t, peer.Addr, 3) // not in the cgroup
		if got := hits(t, v, onEgress); got != 6 {
			t.Errorf("counted %d packets out, want 6", got)
		}
		if err := node.Do(group.Action("tcp", open.Addr().String()).Run); err != nil {
			t.Errorf("connect to the open port: %v", err)
		}
		if hits(t, v, onIngress) == 0 {
			t.Error("counted no packet in, of a TCP connection")
		}
		var out []byte
		err := node.Do(func() (err error) {
			out, err = group.Action("tcp", closed.Addr().String()).Output()
			return err
		})
		if err == nil || !strings.Contains(string(out), "operation not permitted") {
			t.Errorf("connect to the refused port: %v, %s; want that it is not permitted", err, out)
		}
		if err := node.Do(nodetest.Action("tcp", closed.Addr().String()).Run); err != nil {
			t.Errorf("connect to the refused port from outside the cgroup: %v", err)
		}
		if got := hits(t, v, onConnect); got != 2 {
			t.Errorf("counted %d connects, want 2", got)
		}
	})
}

func TestPerfEventSamplesAProcess(t *testing.T) {
	busy := exec.Command("sh", "-c", "while :; do :; done")
	if err := busy.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(busy.Process.Kill(), busy.Wait()); err != nil && !errors.As(err, new(*exec.ExitError)) {
			t.Error(err)
		}
	}()
	inBothPlaces(t, nil, func(t *testing.T, n *nodetest.Node) {
		v := n.Publish(t, map[string]string{
			"image":  n.Signed(t, "hooks", object("hooks")),
			"attach": fmt.Sprintf("{program: on_perf_event, perfEvent: {event: task-clock, frequency: 1000, pid: %d}}", busy.Process.Pid),
		})
		for deadline := time.Now().Add(10 * time.Second); hits(t, v, onPerfEvent) < 10; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d samples of a busy process in 10 s", hits(t, v, onPerfEvent))
			}
		}
	})
}

// Hooks of the network are those of the daemon's network namespace.
func TestNetworkHooksCount(t *testing.T) {
	bpftest.SkipOnOldKernel(t, "6.4", "netfilter programs")
	const onNetfilter, onSKLookup = 0, 11 // see bpf.Network and bpf.Sections
	node, peer := bpftest.Pair(t)
	inBothPlaces(t, node, func(t *testing.T, n *nodetest.Node) {
		filter := n.Publish(t, map[string]string{
			"image":  n.Signed(t, "network", object("network")),
			"attach": "{program: on_netfilter, netfilter: {family: ipv4, hook: localIn}}",
		})
		lookup := n.Publish(t, map[string]string{
			"image":  n.Signed(t, "sections", object("sections")),
			"attach": "{program: on_sk_lookup, skLookup: {}}",
		})
		var open net.Listener
		if err := node.Do(func() (err error) {
			open, err = net.Listen("tcp4", node.Addr.String()+":0")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		defer open.Close()
		if err := peer.Do(func() error {
			c, err := net.Dial("tcp4", open.Addr().String())
			if err != nil {
				return err
			}
			return c.Close()
		}); err != nil {
			t.Fatal(err)
		}
		if hits(t, filter, onNetfilter) < 2 { // the first and the third packet of the handshake
			t.Errorf("the netfilter program counted %d packets of a connection", hits(t, filter, onNetfilter))
		}
		if hits(t, lookup, onSKLookup) == 0 {
			t.Error("the skLookup program did not choose for a connection")
		}
	})
}

func TestIteratorIsRead(t *testing.T) {
	inBothPlaces(t, nil, func(t *testing.T, n *nodetest.Node) {
		v := n.Publish(t, map[string]string{
			"image":  n.Signed(t, "sections", object("sections")),
			"attach": "- {program: show_tasks, iter: task}\n- {program: on_tp_btf, rawTracepoint: sys_enter}\n",
		})
		text, err := exec.Command("cat", filepath.Join(v.Target, "iter", "show_tasks")).Output()
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), " cat\n") {
			t.Errorf("iter/show_tasks does not show who reads it: %q", text)
		}
		const onTpBTF = 2
		if hits(t, v, onTpBTF) == 0 {
			t.Error("the tp_btf program counted no system call")
		}
	})
}
