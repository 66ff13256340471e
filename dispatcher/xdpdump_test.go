// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"bufio"
	"bytes"
	"io"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/libxdp"
)

// Debian's xdpdump attaches to the fused program by fentry and fexit, and shows what members let pass and drop.
func TestXDPDumpSeesWhatMembersDecide(t *testing.T) {
	bpftest.Root(t)
	// Kernels that refuse freplace refuse fentry, too: both are trampolines.
	if err := libxdp.Supported(); err != nil {
		bpftest.SkipIfNotSupported(t, err)
		t.Fatal(err)
	}
	path, err := exec.LookPath("xdpdump")
	if err != nil {
		t.Skip("no xdpdump here; install xdp-tools")
	}
	w := newWorld(t, "xdp")
	w.chain(t, xdpKinds(t, "subprograms", "counter")...)
	drop, _ := w.program(t, "drop", 1)

	for _, c := range []struct {
		verdict string
		change  func()
	}{
		{"PASS", func() {}},
		{"DROP", func() { w.mustAttach(t, Member{Volume: "drop", Program: "drop", Priority: 15}, drop) }},
	} {
		c.change()
		out := w.capture(t, path, func() { w.send(t, 3) })
		if got := strings.Count(out, "bpfvol_xdp()@exit["+c.verdict+"]"); got < 3 {
			t.Errorf("xdpdump shows %d packets that end with %s, want 3:\n%s", got, c.verdict, out)
		}
		if got := strings.Count(out, "bpfvol_xdp()@entry"); got < 3 {
			t.Errorf("xdpdump shows %d packets that enter, want 3:\n%s", got, out)
		}
	}
	w.mustDetach(t, "drop")
}

// capture runs xdpdump while packets are sent, and returns what it prints.
func (w *world) capture(t testing.TB, path string, send func()) string {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.Command(path, "-i", "veth0", "--rx-capture", "entry,exit")
	cmd.Stdout = &out
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.here.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewReader(stderr)
	for {
		line, err := said.ReadString('\n')
		if strings.Contains(line, "listening on") {
			break
		}
		if err != nil {
			t.Fatalf("xdpdump: %v: %s", cmd.Wait(), line)
		}
	}
	for range 10 { // it may say so before it hears anything
		send()
		time.Sleep(200 * time.Millisecond)
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Error(err)
	}
	io.Copy(io.Discard, said)
	if err := cmd.Wait(); err != nil {
		t.Errorf("xdpdump: %v", err)
	}
	return out.String()
}
