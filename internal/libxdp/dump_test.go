// SPDX-License-Identifier: Apache-2.0

package libxdp

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// xdpdump attaches fentry and fexit programs, which need BTF of the functions they watch: the dispatcher's entry, and
// those of the components.
func TestDumpSeesDispatcherAndComponents(t *testing.T) {
	w := newWorld(t)
	theirs := w.their(t, "their_pass", "-P", "10")
	ours := w.program(t, "ours_with_a_long_name", drop)
	w.mustAdd(t, ours, Options{Run: Run{Priority: 20, ProceedOn: onPass}})
	got := w.dump(t, ours, "-p", "xdp_dispatcher,their_pass,ours_with_a_long_name")
	// One packet, from outside to inside and back.
	want := []string{
		"xdp_dispatcher()@entry",
		"their_pass()@entry", "their_pass()@exit[PASS]",
		"ours_with_a_long_name()@entry", "ours_with_a_long_name()@exit[DROP]",
		"xdp_dispatcher()@exit[DROP]",
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("xdpdump saw %q, want %q", got, want)
	}
	// A component that is alone stands for the dispatcher, and xdpdump knows.
	w.unload(t, theirs)
	got = w.dump(t, ours)
	want = []string{"ours_with_a_long_name()@entry", "ours_with_a_long_name()@exit[DROP]"}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("xdpdump saw %q, want %q", got, want)
	}
	w.mustRemove(t, ours.id)
}

// dump runs Debian's xdpdump while one packet passes, and returns what it saw.
func (w *world) dump(t *testing.T, p program, args ...string) (events []string) {
	t.Helper()
	path, err := exec.LookPath("xdpdump")
	if err != nil {
		t.Skip("no xdpdump here; install xdp-tools")
	}
	cmd := exec.Command(path, append([]string{"-i", "veth0", "--rx-capture", "entry,exit"}, args...)...)
	cmd.Env = append(os.Environ(), "LIBXDP_BPFFS="+w.bpffs)
	var out bytes.Buffer
	cmd.Stdout = &out
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.here.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(said)
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "listening on veth0") {
		t.Logf("xdpdump says %s", lines.Text())
	}
	time.Sleep(time.Second) // it has attached, and is making its ring
	was := p.now(t)
	w.send(t, 1)
	p.met(t, was+1)
	if err := cmd.Process.Signal(unix.SIGINT); err != nil {
		t.Error(err)
	}
	for lines.Scan() {
		t.Logf("xdpdump says %s", lines.Text())
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("xdpdump: %v", err)
	}
	for _, m := range event.FindAllSubmatch(out.Bytes(), -1) {
		events = append(events, string(m[1]))
	}
	return events
}

// event is a line such as "1795632189.807349619: count()@entry: packet size 60 bytes on if_index 2, rx queue 0, id 1".
var event = regexp.MustCompile(`(?m)^[0-9.]+: (\S+): packet size 60 bytes`)
