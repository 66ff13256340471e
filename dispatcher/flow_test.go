// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/bpftest"
)

// flow is a stream of datagrams by the point of a world. What arrives behind it is counted, and no more are under way
// than a veth holds: one that does not arrive was lost at the point.
type flow struct {
	arrivals *ebpf.Map
	sent     atomic.Uint64
	stuck    atomic.Bool // packets were lost, and no more are sent
	stopping atomic.Bool
	done     chan error
}

const (
	// flowWindow is how many datagrams are under way at most. The ring of a veth takes 256 (VETH_RING_SIZE).
	flowWindow = 128
	// flowPort is not that of bpftest's datagrams.
	flowPort = 10
	// flowPayload leaves room for stamps, and headers is what comes before it: Ethernet, IPv4 and UDP.
	flowPayload = 32
	headers     = 14 + 20 + 8
	// flowPatience is how long nothing may arrive until what is under way counts as lost.
	flowPatience = 10 * time.Second
)

// flow starts a flow, with a pause after each burst of half a window. The test must end it.
func (w *world) flow(t testing.TB, pause time.Duration) *flow {
	t.Helper()
	from, to := w.there, w.here
	if carriers[w.carrier].egress {
		from, to = to, from
	}
	f := &flow{done: make(chan error, 1)}
	sink := f.listen(t, to)
	var source int
	err := from.Do(func() (err error) {
		if source, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		// Without a checksum, the stamps on a datagram do not spoil it.
		if err := unix.SetsockoptInt(source, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1); err != nil {
			return err
		}
		return unix.Connect(source, &unix.SockaddrInet4{Port: flowPort, Addr: to.Addr.As4()})
	})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer unix.Close(source)
		defer unix.Close(sink)
		f.done <- f.send(source, pause)
	}()
	return f
}

// listen takes the datagrams by a socket whose filter counts and drops them.
func (f *flow) listen(t testing.TB, ns *bpftest.NetNS) (sink int) {
	t.Helper()
	arrivals, err := newCounter("arrivals")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { arrivals.Close() })
	f.arrivals = arrivals
	filter, err := loadProgram(&ebpf.ProgramSpec{
		Name: "arrive", Type: ebpf.SocketFilter, License: "GPL",
		Instructions: append(countOne("arrivals", 0), asm.Mov.Imm(asm.R0, 0), asm.Return()),
	}, map[string]*ebpf.Map{"arrivals": arrivals})
	if err != nil {
		t.Fatal(err)
	}
	defer filter.Close()
	err = ns.Do(func() (err error) {
		if sink, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(sink, unix.SOL_SOCKET, unix.SO_ATTACH_BPF, filter.FD()); err != nil {
			return err
		}
		return unix.Bind(sink, &unix.SockaddrInet4{Port: flowPort})
	})
	if err != nil {
		t.Fatal(err)
	}
	return sink
}

func (f *flow) send(source int, pause time.Duration) error {
	payload := make([]byte, flowPayload)
	for !f.stopping.Load() {
		for range flowWindow / 2 {
			if _, err := unix.Write(source, payload); err != nil {
				return err
			}
		}
		f.sent.Add(flowWindow / 2)
		if time.Sleep(pause); f.await(flowWindow/2) > flowWindow/2 {
			f.stuck.Store(true)
			return nil
		}
	}
	f.await(0)
	return nil
}

// await waits until no more than some are under way, and returns how many are.
func (f *flow) await(atMost uint64) (underway uint64) {
	last, end := uint64(0), time.Now().Add(flowPatience)
	for {
		var arrived uint64
		if err := f.arrivals.Lookup(uint32(0), &arrived); err != nil {
			return atMost + 1
		}
		now := time.Now()
		if underway = f.sent.Load() - arrived; underway <= atMost || now.After(end) {
			return underway
		}
		if arrived > last {
			last, end = arrived, now.Add(flowPatience)
		}
		runtime.Gosched()
	}
}

// stop ends the flow and returns how many datagrams were sent, and how many of them were lost.
func (f *flow) stop(t testing.TB) (sent, lost uint64) {
	t.Helper()
	f.stopping.Store(true)
	if err := <-f.done; err != nil {
		t.Errorf("flow: %v", err)
	}
	sent = f.sent.Load()
	return sent, sent - count(t, f.arrivals)
}
