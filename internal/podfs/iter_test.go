// SPDX-License-Identifier: Apache-2.0

package podfs

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/bpftest"
)

// tasks is a volume with a program that prints process and command of every task.
func tasks(t *testing.T) Content {
	t.Helper()
	bpftest.Root(t)
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(bpf.Sections()))
	if err != nil {
		t.Fatal(err)
	}
	for name := range spec.Programs {
		if name != "show_tasks" {
			delete(spec.Programs, name)
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Cache: types})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(coll.Close)
	l, err := link.AttachIter(link.IterOptions{Program: coll.Programs["show_tasks"]})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	c := content(t)
	c.Volume.Programs = append(c.Volume.Programs, Program{Name: "show_tasks", Hook: "iter", Point: "iter task"})
	c.Iterators = []Iterator{{Name: "show_tasks", Link: l}}
	return c
}

// processes are those in what the iterator printed.
func processes(t *testing.T, text string) []string {
	t.Helper()
	var all []string
	for line := range strings.Lines(strings.TrimPrefix(text, "bpf: EPERM\ncat: ok\n")) {
		process, command, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || strings.Trim(process, "0123456789") != "" {
			t.Fatalf("%q is not a process and a command: %q", process, command)
		}
		all = append(all, process)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func TestIteratorsAreFiles(t *testing.T) {
	bpftest.NothingLeft(t)
	c := tasks(t)
	dir := mounted(t, c)
	if got := processes(t, as(t, nobody, "cat", dir+"/iter/show_tasks")); len(got) < 2 {
		t.Errorf("processes are %v, want those of the machine", got)
	}
	if got := processes(t, as(t, apart, "cat", dir+"/iter/show_tasks")); len(got) != 1 {
		t.Errorf("processes are %v, want the reader alone, who is in a PID namespace of its own", got)
	}
	if err := os.Remove(dir + "/iter/show_tasks"); err == nil || !strings.Contains(err.Error(), unix.EROFS.Error()) {
		t.Errorf("remove: %v, want %v", err, unix.EROFS)
	}
	if pins, err := Stats(dir); err != nil || pins != 6 {
		t.Errorf("Stats = %d, %v, want 6 pins", pins, err)
	}
	if ok, err := Mounted(dir); err != nil || !ok {
		t.Errorf("Mounted = %v, %v", ok, err)
	}
	if err := unix.Unmount(dir+"/iter", 0); err != nil {
		t.Fatal(err)
	}
	if ok, err := Mounted(dir); err != nil || ok {
		t.Errorf("without its iterators Mounted = %v, %v", ok, err)
	}
}

func TestIteratorsBelongToTheGroup(t *testing.T) {
	bpftest.NothingLeft(t)
	c := tasks(t)
	gid := 2000
	c.Group = &gid
	dir := mounted(t, c)
	if got := as(t, member, "cat", dir+"/iter/show_tasks"); !strings.Contains(got, "cat: ok") {
		t.Errorf("member: %s", got)
	}
	if got := as(t, nobody, "cat", dir+"/iter/show_tasks"); !strings.Contains(got, "cat: EACCES") {
		t.Errorf("others: %s", got)
	}
}

// The caller's link may be pinned, and stays so.
func TestIteratorsStayTheCallers(t *testing.T) {
	bpftest.NothingLeft(t)
	c := tasks(t)
	pin := bpftest.BPFFS(t) + "/link"
	if err := c.Iterators[0].Link.Pin(pin); err != nil {
		t.Fatal(err)
	}
	dir := mounted(t, c)
	for _, path := range []string{pin, dir + "/iter/show_tasks"} {
		if text, err := os.ReadFile(path); err != nil || len(text) == 0 {
			t.Errorf("%s: %q, %v", path, text, err)
		}
	}
}
