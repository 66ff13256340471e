// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bpfvol/bpfvol/e2e/crash/inject"
	"github.com/bpfvol/bpfvol/e2e/kubelet"
	"github.com/bpfvol/bpfvol/e2e/nodetest"
	"github.com/bpfvol/bpfvol/internal/bpftest"
)

// world is a node, and mostly a neighbour on it that is to notice nothing: a volume at the XDP point that the volumes of the
// tests join and leave.
type world struct {
	*nodetest.Node
	faults    *inject.Supervisor
	node      *bpftest.NetNS
	peer      *bpftest.NetNS
	count     string           // image that counts at all hooks
	neighbour *nodetest.Volume // nil: there is none
	metrics   metrics
	pods      int   // that had the PersistentVolume
	idle      state // of a daemon at rest
}

// How the daemon of a world runs.
type supervision bool

const (
	plain      supervision = false
	supervised supervision = true
)

func newWorld(t *testing.T, how supervision) *world {
	t.Helper()
	bpftest.Root(t)
	w := new(world)
	w.faults = inject.New(inject.Options{Name: w.name})
	t.Cleanup(w.faults.Wait)
	w.node, w.peer = bpftest.Pair(t)
	options := nodetest.Options{NetNS: w.node, Serve: []string{"--http", metricsAddress, "--repair-interval", "24h"}}
	if how == supervised {
		options.Start = w.faults.Start
	}
	w.Node = nodetest.Start(t, options)
	w.metrics = newMetrics(w.Node)
	t.Cleanup(w.metrics.close)
	w.count = w.Signed(t, "count", object("count"))
	return w
}

// settleNeighbour gives the node its neighbour.
func (w *world) settleNeighbour(t *testing.T) {
	t.Helper()
	w.neighbour = w.Publish(t, map[string]string{"image": w.Signed(t, "counter", object("counter")), "attach": "{program: counter, xdp: veth0}"})
}

// settleOther gives the PersistentVolume to a pod, which has it until the test ends.
func (w *world) settleOther(t *testing.T) {
	t.Helper()
	other := w.persistent()
	defer w.traffic(t).end()
	published(t, w, other)
	t.Cleanup(func() {
		w.wantView(t, other)
		if err := other.TearDown(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
}

// settle learns what a daemon at rest has open, and sees to it that there is one to take away what the test published so
// far, however it ends.
func (w *world) settle(t *testing.T) {
	t.Helper()
	w.restart(t) // its start tidies the cache
	w.idle = w.settled(t)
	t.Cleanup(func() {
		if w.Running() {
			return
		}
		ctx := context.WithoutCancel(t.Context())
		if _, err := w.Stack.StartDaemon(ctx); err != nil {
			t.Error(err)
		} else if err := w.Connect(ctx); err != nil {
			t.Error(err)
		}
	})
}

func object(name string) string { return filepath.Join("..", "..", "bpf", name+".bpf.o") }

// everywhere are programs of which one is the second at its point, one the first, and one at a hook that the kernel shares.
const everywhere = `
- {program: count, xdp: {interface: veth0, priority: 50}}
- {program: count_out, tc: {interface: veth0, direction: egress}}
- {program: on_exec, tracepoint: syscalls/sys_enter_execve}`

// volume is a pod's own.
func (w *world) volume(attach string) *nodetest.Volume {
	return w.New(map[string]string{"image": w.count, "attach": attach})
}

// persistent is a PersistentVolume in a new pod. It is the same in all of them.
func (w *world) persistent() *nodetest.Volume {
	w.pods++
	return w.NewFor(
		kubelet.Pod{Namespace: "e2e", Name: "reader", UID: fmt.Sprintf("10000000-0000-4000-8000-%012d", w.pods), ServiceAccount: "app"},
		kubelet.Volume{Name: "bpf", Attributes: map[string]string{"image": w.count, "attach": everywhere}, Persistent: true, Handle: "shared"},
	)
}

// restart starts the daemon again, without faults, however it ended.
func (w *world) restart(t *testing.T) {
	t.Helper()
	w.StopDaemon(t, syscall.SIGKILL)
	w.StartDaemon(t)
}

// whileRunning returns a context that ends with the daemon: a call to one that died waits for the next one. The caller must
// call stop.
func (w *world) whileRunning(ctx context.Context) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if !w.Running() {
				cancel()
			}
			time.Sleep(time.Millisecond)
		}
	}()
	return ctx, func() {
		cancel()
		<-done
	}
}

// unstable is what is different in every run of what effects are about.
var unstable = []struct {
	pattern *regexp.Regexp
	word    string
}{
	{regexp.MustCompile(`csi-[0-9a-f]{64}`), "VOLUME"},
	{regexp.MustCompile(`[0-9a-f]{64}`), "DIGEST"},
	{regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`), "POD"},
	{regexp.MustCompile(`(xdp|tc-[a-z]+)-[0-9]+-[0-9]+`), "$1-POINT"},
	{regexp.MustCompile(`/[0-9]+(/|$)`), "/ID$1"},
	{regexp.MustCompile(`socket:\[[0-9]+\]`), "socket"},
	{regexp.MustCompile(`(DIGEST_|\.tmp)[0-9]+`), "${1}RANDOM"}, // of os.CreateTemp
}

// name makes the name of an effect: the system call, and what it changes, from the directory of the node.
func (w *world) name(call, what string) string {
	if w.Node != nil {
		what = strings.ReplaceAll(what, w.Dir+"/", "")
	}
	for _, u := range unstable {
		what = u.pattern.ReplaceAllString(what, u.word)
	}
	return call + " " + what
}

// traffic sends datagrams to the node, one a millisecond, until it is stopped.
type traffic struct {
	counted int    // by the neighbour, before
	end     func() // returns when the last one is sent
	sent    int    // from then on
	err     error
}

func (w *world) traffic(t *testing.T) *traffic {
	t.Helper()
	f := &traffic{counted: w.counted(t)}
	stop, done := make(chan struct{}), make(chan struct{})
	f.end = sync.OnceFunc(func() {
		close(stop)
		<-done
	})
	var c *net.UDPConn
	err := w.peer.Do(func() (err error) {
		c, err = net.ListenUDP("udp4", nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	to := netip.AddrPortFrom(w.node.Addr, 9) // discard
	t.Cleanup(f.end)
	go func() {
		defer close(done)
		defer c.Close()
		for tick := time.NewTicker(time.Millisecond); ; {
			if _, f.err = c.WriteToUDPAddrPort([]byte("packet"), to); f.err != nil {
				return
			}
			f.sent++
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	}()
	return f
}

// wantAllCounted ends the traffic and wants the neighbour to have counted all of it.
func (w *world) wantAllCounted(t *testing.T, f *traffic) {
	t.Helper()
	f.end()
	if f.err != nil {
		t.Error(f.err)
	}
	for deadline := time.Now().Add(5 * time.Second); w.neighbour != nil; time.Sleep(time.Millisecond) {
		counted := w.counted(t) - f.counted
		if counted == f.sent {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("the neighbour counted %d of %d packets", counted, f.sent)
			return
		}
	}
}

// counted is how many packets the neighbour has counted.
func (w *world) counted(t *testing.T) (sum int) {
	t.Helper()
	if w.neighbour == nil {
		return 0
	}
	var perCPU []int
	w.neighbour.Value(t, "packets", "0", &perCPU)
	for _, n := range perCPU {
		sum += n
	}
	return sum
}

// wantView wants the volume to show to its pod what its programs count.
func (w *world) wantView(t *testing.T, v *nodetest.Volume) {
	t.Helper()
	var flow struct{ Packets int }
	key := `{"saddr":"` + w.peer.Addr.String() + `","protocol":"UDP"}`
	for deadline := time.Now().Add(5 * time.Second); !v.Value(t, "flows", key, &flow); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("the volume counts no packet")
			return
		}
	}
	if entries := v.Entries(t, "totals"); len(entries) != 2 {
		t.Errorf("totals shows %d entries, want 2", len(entries))
	}
	if _, err := os.Stat(filepath.Join(v.Target, "maps", "events")); err != nil {
		t.Error(err)
	}
}
