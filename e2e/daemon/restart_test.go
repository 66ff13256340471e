// SPDX-License-Identifier: Apache-2.0

package daemon_test

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/e2e/nodetest"
	"github.com/bpfvol/bpfvol/internal/bpftest"
)

const onGetpgid = "{program: on_tracepoint, tracepoint: syscalls/sys_enter_getpgid}"

// Packets pass and calls are counted while the daemon is killed, is away, and comes back.
func TestKilledDaemonLosesNothing(t *testing.T) {
	node, peer := bpftest.Pair(t)
	n := nodetest.Start(t, nodetest.Options{NetNS: node})
	n.Publish(t, map[string]string{"image": n.Signed(t, "pass", object("pass")), "attach": "{program: pass, xdp: veth0}"})
	counting := n.Publish(t, map[string]string{"image": n.Signed(t, "hooks", object("hooks")), "attach": onGetpgid})
	status := n.Run(t, "status", "-o", "json")

	stream := startStream(t, node, peer)
	calls := startCalls(t, counting)
	n.StopDaemon(t, syscall.SIGKILL)
	stream.wait(t, 1000)
	calls.wait(t, 1000)
	if got := n.Run(t, "status", "-o", "json"); got != status {
		t.Errorf("status while the daemon is away (-before +now):\n%s", cmp.Diff(status, got))
	}
	n.StartDaemon(t)
	stream.wait(t, 1000)
	calls.wait(t, 1000)
	if got := n.Run(t, "status", "-o", "json"); got != status {
		t.Errorf("status after the restart (-before +now):\n%s", cmp.Diff(status, got))
	}

	if sent, received := stream.stop(t); sent != received {
		t.Errorf("%d packets sent, %d received", sent, received)
	}
	if made, counted := calls.stop(t); made != counted {
		t.Errorf("%d calls made, %d counted", made, counted)
	}
}

// stream sends datagrams from peer to node, with at most window of them under way.
type stream struct {
	sent, received atomic.Int64
	ending         chan struct{}
	senders        sync.WaitGroup
	server         *net.UDPConn
}

const window = 64

func startStream(t *testing.T, node, peer *bpftest.NetNS) *stream {
	t.Helper()
	s := &stream{ending: make(chan struct{})}
	var client *net.UDPConn
	err := node.Do(func() (err error) {
		s.server, err = net.ListenUDP("udp4", nil)
		return err
	})
	if err == nil {
		err = peer.Do(func() (err error) {
			client, err = net.ListenUDP("udp4", nil)
			return err
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	to := netip.AddrPortFrom(node.Addr, s.server.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	arrived := make(chan struct{}, window)
	s.senders.Go(func() {
		defer client.Close()
		for {
			// A lost packet leaves the window full for ever: the test sees it by wait.
			for s.sent.Load()-s.received.Load() >= window {
				select {
				case <-arrived:
				case <-s.ending:
					return
				}
			}
			select {
			case <-s.ending:
				return
			default:
			}
			if _, err := client.WriteToUDPAddrPort([]byte("packet"), to); err != nil {
				t.Error(err)
				return
			}
			s.sent.Add(1)
		}
	})
	go func() { // ends with server
		packet := make([]byte, 64)
		for {
			if _, err := s.server.Read(packet); err != nil {
				return
			}
			s.received.Add(1)
			select {
			case arrived <- struct{}{}:
			default:
			}
		}
	}()
	return s
}

// wait returns when n more packets have arrived.
func (s *stream) wait(t *testing.T, n int64) {
	t.Helper()
	more(t, "packets arrived", s.received.Load, n)
}

// stop returns how many were sent, and how many arrived.
func (s *stream) stop(t *testing.T) (sent, received int64) {
	t.Helper()
	close(s.ending)
	s.senders.Wait()
	sent = s.sent.Load()
	for deadline := time.Now().Add(5 * time.Second); s.received.Load() < sent && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	s.server.Close()
	return sent, s.received.Load()
}

// more waits until a counter has grown by n.
func more(t *testing.T, what string, counter func() int64, n int64) {
	t.Helper()
	start := counter()
	for deadline := time.Now().Add(10 * time.Second); counter() < start+n; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d %s in 10 s, want %d", counter()-start, what, n)
		}
	}
}

// calls makes getpgid(2) calls, which nothing else on the machine makes, and reads the volume's count all the time.
type calls struct {
	volume *nodetest.Volume
	start  int64
	made   atomic.Int64
	ending chan struct{}
	makers sync.WaitGroup
}

func startCalls(t *testing.T, v *nodetest.Volume) *calls {
	t.Helper()
	c := &calls{volume: v, start: hits(t, v, 0), ending: make(chan struct{})}
	c.makers.Go(func() {
		last := c.start
		for {
			select {
			case <-c.ending:
				return
			default:
			}
			for range 100 {
				if _, err := unix.Getpgid(0); err != nil {
					t.Error(err)
					return
				}
			}
			c.made.Add(100)
			now := hits(t, v, 0)
			if now < last {
				t.Errorf("the count went from %d to %d", last, now)
			}
			last = now
		}
	})
	return c
}

func (c *calls) wait(t *testing.T, n int64) {
	t.Helper()
	more(t, "calls", c.made.Load, n)
}

func (c *calls) stop(t *testing.T) (made, counted int64) {
	t.Helper()
	close(c.ending)
	c.makers.Wait()
	return c.made.Load(), hits(t, c.volume, 0) - c.start
}

// hits is the count of a program of hooks.bpf.o.
func hits(t *testing.T, v *nodetest.Volume, index int) int64 {
	t.Helper()
	entries := v.Entries(t, "hits")
	var n int64
	if len(entries) <= index || !v.Value(t, "hits", string(entries[index].Key), &n) {
		t.Errorf("hits has no element %d", index)
	}
	return n
}

// SIGTERM ends the daemon with status 0, which StopDaemon checks, and takes nothing away.
func TestTerminatedDaemonDetachesNothing(t *testing.T) {
	n := nodetest.Start(t, nodetest.Options{})
	v := n.Publish(t, map[string]string{"image": n.Signed(t, "hooks", object("hooks")), "attach": onGetpgid})
	status := n.Run(t, "status", "-o", "json")
	n.StopDaemon(t, syscall.SIGTERM)
	if got := n.Run(t, "status", "-o", "json"); got != status {
		t.Errorf("status (-before +after):\n%s", cmp.Diff(status, got))
	}
	before := hits(t, v, 0)
	if _, err := unix.Getpgid(0); err != nil {
		t.Fatal(err)
	}
	if got := hits(t, v, 0) - before; got != 1 {
		t.Errorf("counted %d calls, want 1", got)
	}
	n.StartDaemon(t)
}

func TestTerminatedDaemonFinishesThePublishInFlight(t *testing.T) {
	pulling, goOn := make(chan struct{}), make(chan struct{})
	var hold atomic.Bool
	n := nodetest.Start(t, nodetest.Options{Registry: func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") && hold.CompareAndSwap(true, false) {
				close(pulling)
				<-goOn
			}
			next.ServeHTTP(w, r)
		})
	}})
	// Made with a cache of its own: the daemon has to pull.
	image, elsewhere := n.Image("hooks"), t.TempDir()
	n.Run(t, "build", object("hooks"), "-t", image, "--push", "--cache-dir", elsewhere)
	n.Run(t, "sign", image, "--key", n.KeyPrefix()+".key", "--cache-dir", elsewhere)
	hold.Store(true)
	v := n.New(map[string]string{"image": image, "attach": onGetpgid})
	published := make(chan error, 1)
	go func() { published <- v.SetUp(t.Context()) }()
	<-pulling
	stopped := make(chan error, 1)
	go func() { stopped <- n.Stack.StopDaemon(syscall.SIGTERM) }()
	refused(t, n)
	close(goOn)
	if err := <-published; err != nil {
		t.Errorf("the publish in flight: %v", err)
	}
	if err := <-stopped; err != nil {
		t.Errorf("the daemon ended by SIGTERM: %v", err)
	}
	n.StartDaemon(t)
	hits(t, v, 0)
	if err := v.TearDown(t.Context()); err != nil {
		t.Error(err)
	}
}

// refused waits until the daemon takes no more calls.
func refused(t *testing.T, n *nodetest.Node) {
	t.Helper()
	path := strings.TrimPrefix(n.Endpoint(), "unix://")
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		c, err := net.Dial("unix", path)
		if err != nil {
			return
		}
		c.Close()
		if time.Now().After(deadline) {
			t.Fatal("5 s after SIGTERM the socket still answers")
		}
	}
}
