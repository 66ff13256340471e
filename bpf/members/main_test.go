// SPDX-License-Identifier: Apache-2.0

package members_test

import (
	"encoding/binary"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/bpfvol/bpfvol/bpf/members"
	"github.com/bpfvol/bpfvol/internal/bpftest"
)

func TestMain(m *testing.M) { bpftest.Main(m) }

// Verdicts of the kernel (linux/bpf.h, linux/pkt_cls.h).
const (
	xdpDrop     = 1
	xdpPass     = 2
	xdpTX       = 3
	xdpRedirect = 4
	tcOK        = 0
	tcShot      = 2
	tcRedirect  = 7
)

// kernelTypes spares each test the reading of the kernel's BTF.
var kernelTypes = btf.NewCache()

// loaded is a member in the kernel.
type loaded struct {
	*ebpf.Collection
	members.Member
}

// load loads a member alone.
func load(t testing.TB, m members.Member, verdict int32) loaded {
	t.Helper()
	bpftest.Root(t)
	coll, err := ebpf.NewCollectionWithOptions(m.Spec(t, verdict), ebpf.CollectionOptions{
		Cache:    kernelTypes,
		Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats},
	})
	if m.Program == "conntrack" {
		bpftest.SkipIfNotSupported(t, err) // nf_conntrack is not loaded
	}
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(coll.Close)
	return loaded{coll, m}
}

// find loads a member of XDP or TC by its name.
func find(t testing.TB, typ ebpf.ProgramType, program string, verdict int32) loaded {
	t.Helper()
	return load(t, members.Find(t, typ, program), verdict)
}

// run gives the member a packet. It returns its verdict and what the packet is then.
func (l loaded) run(t testing.TB, packet []byte) (verdict int32, out []byte) {
	t.Helper()
	opts := &ebpf.RunOptions{Data: packet, DataOut: make([]byte, len(packet)+256)}
	ret, err := l.Programs[l.Program].Run(opts)
	if err != nil {
		t.Fatal(err)
	}
	return int32(ret), opts.DataOut
}

func (l loaded) result(t testing.TB) members.Result {
	t.Helper()
	return members.ReadResult(t, l.Maps[l.Program+"_result"])
}

// frame is an Ethernet frame that says it is IPv4; what follows are the numbers of its bytes.
func frame(size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(i)
	}
	copy(b, []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2})
	binary.BigEndian.PutUint16(b[12:], 0x0800)
	return b
}
