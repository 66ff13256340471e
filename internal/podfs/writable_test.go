// SPDX-License-Identifier: Apache-2.0

package podfs

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// writable is content, with flows and events for the pod to write.
func writable(t testing.TB) Content {
	t.Helper()
	c := content(t)
	c.Maps[0].Access = volume.ReadWrite
	c.Maps[2].Access = volume.ReadWrite
	return c
}

// verdict is what a program says of a packet that takes the first number of flows[443] for its verdict, and sends the
// number to events.
func verdict(t *testing.T, c Content) uint32 {
	t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{
		asm.StoreImm(asm.RFP, -4, 443, asm.Word),
		asm.LoadMapPtr(asm.R1, c.Maps[0].Map.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.LoadMem(asm.R6, asm.R0, 0, asm.DWord),
		asm.StoreMem(asm.RFP, -16, asm.R6, asm.DWord),
		asm.LoadMapPtr(asm.R1, c.Maps[2].Map.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -16),
		asm.Mov.Imm(asm.R3, 8),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnRingbufOutput.Call(),
		asm.Mov.Reg(asm.R0, asm.R6),
		asm.Return().WithSymbol("out"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	got, _, err := prog.Test(make([]byte, 64))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestVolumeSaysWhatIsWritable(t *testing.T) {
	bpftest.NothingLeft(t)
	dir := mounted(t, writable(t))
	v, err := Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	var access []string
	for _, m := range v.Maps {
		access = append(access, m.Name+" "+string(m.Access))
	}
	if want := []string{"flows rw", "counters ro", "events rw"}; !slices.Equal(access, want) {
		t.Errorf("access is %v, want %v", access, want)
	}
	if got := files(t, dir+"/rw"); !slices.Equal(got, []string{dir + "/rw", dir + "/rw/events", dir + "/rw/flows"}) {
		t.Errorf("files are %v", got)
	}
	if pins, err := Stats(dir); err != nil || pins != 7 {
		t.Errorf("Stats = %d, %v, want 7 pins", pins, err)
	}
	if ok, err := Mounted(dir); err != nil || !ok {
		t.Errorf("Mounted = %v, %v", ok, err)
	}
	if err := unix.Unmount(dir+"/rw", 0); err != nil {
		t.Fatal(err)
	}
	if ok, err := Mounted(dir); err != nil || ok {
		t.Errorf("without rw/ Mounted = %v, %v", ok, err)
	}
}

// TestPodWritesItsMap has containers of all kinds write a map, and the program do what they wrote. maps/ is not written by
// any of them.
func TestPodWritesItsMap(t *testing.T) {
	gid := 2000
	for _, group := range []*int{nil, &gid} {
		for who, c := range map[string]container{
			"user": app, "member": appMember, "root": appRoot,
			"user of a user namespace": shiftedApp, "member in a user namespace": shiftedAppMember, "root of a user namespace": shiftedRoot,
		} {
			t.Run(fmt.Sprintf("%s,group=%v", who, group != nil), func(t *testing.T) {
				bpftest.NothingLeft(t)
				content := writable(t)
				content.Group = group
				dir := mounted(t, content)
				admitted := group == nil || len(c.groups) > 0 || c.uid == 0
				want, wantMaps, wantVerdict := "ok", "EROFS", uint32(77)
				if !admitted {
					want, wantMaps, wantVerdict = "EACCES", "EACCES", 12
				}
				if got := in(t, c, dir, "update", "maps/flows"); got != wantMaps {
					t.Errorf("update through maps/: %s, want %s", got, wantMaps)
				}
				if got := verdict(t, content); got != 12 {
					t.Errorf("the program says %d before the update, want 12", got)
				}
				if got := in(t, c, dir, "update", "rw/flows"); got != want {
					t.Errorf("update through rw/: %s, want %s", got, want)
				}
				if got := verdict(t, content); got != wantVerdict {
					t.Errorf("the program says %d after the update, want %d", got, wantVerdict)
				}
			})
		}
	}
}

// A group can be told from others in a pod with hostUsers: false, where no id of the pod is one that bpffs knows.
func TestGroupOfShiftedPod(t *testing.T) {
	bpftest.NothingLeft(t)
	c := content(t)
	gid := 2000
	c.Group = &gid
	dir := mounted(t, c)
	for _, path := range []string{"volume.json", "types.btf", "json/flows"} {
		if got := in(t, shiftedAppMember, dir, "cat", path); !strings.Contains(got, "cat: ok") {
			t.Errorf("%s: member: %s", path, got)
		}
		if got := in(t, shiftedApp, dir, "cat", path); !strings.Contains(got, "cat: EACCES") {
			t.Errorf("%s: others: %s", path, got)
		}
	}
	if got := in(t, shiftedAppMember, dir, "read", "maps/flows"); !strings.HasPrefix(got, "get(ro)=ok lookup=ok") {
		t.Errorf("maps/flows: member: %s", got)
	}
}

// TestPodConsumesRingBuffer reads events, for which a reader must write how far it has read.
func TestPodConsumesRingBuffer(t *testing.T) {
	bpftest.NothingLeft(t)
	c := writable(t)
	dir := mounted(t, c)
	verdict(t, c)
	if got := in(t, app, dir, "consume", "maps/events"); got != "EROFS" {
		t.Errorf("through maps/: %s, want EROFS", got)
	}
	if got := in(t, app, dir, "consume", "rw/events"); got != "ok 12" {
		t.Errorf("through rw/: %s, want the event 12", got)
	}
}

// TestWritableDirectoryIsFixed has containers try to change the directory, in which they may write maps.
func TestWritableDirectoryIsFixed(t *testing.T) {
	bpftest.NothingLeft(t)
	dir := mounted(t, writable(t))
	before := files(t, dir)
	for who, c := range map[string]container{"root": appRoot, "user": app, "root of a user namespace": shiftedRoot, "user of a user namespace": shiftedApp} {
		t.Run(who, func(t *testing.T) {
			got := in(t, c, dir, "rearrange", "rw")
			for _, attempt := range strings.Fields(got) {
				_, err, _ := strings.Cut(attempt, "=")
				if err != "EROFS" && err != "EACCES" && err != "EPERM" && err != "EOVERFLOW" || who == "root" && err != "EROFS" {
					t.Error(attempt)
				}
			}
			if strings.Count(got, "=") != 9 {
				t.Error(got)
			}
		})
	}
	if after := files(t, dir); !slices.Equal(before, after) {
		t.Errorf("files were %v, are %v", before, after)
	}
}

// TestJunkGoesWithTheVolume has a container that may do everything make a mess of rw/. It spoils nothing but that.
func TestJunkGoesWithTheVolume(t *testing.T) {
	bpftest.NothingLeft(t)
	c := writable(t)
	dir, other := mounted(t, c), mounted(t, c)
	if got := in(t, appRoot, dir, "litter", "rw"); got != "ok" {
		t.Fatal(got)
	}
	names, err := os.ReadDir(dir + "/rw")
	if err != nil || len(names) < 1000 || slices.ContainsFunc(names, func(e os.DirEntry) bool { return e.Name() == "flows" }) {
		t.Fatalf("%d files, %v; want many, and no flows", len(names), err)
	}
	for _, path := range []string{dir + "/json/flows", other + "/json/flows"} {
		if b, err := os.ReadFile(path); err != nil || !strings.Contains(string(b), `"packets":12`) {
			t.Errorf("%s: %q, %v", path, b, err)
		}
	}
	if got := files(t, other+"/rw"); !slices.Equal(got, []string{other + "/rw", other + "/rw/events", other + "/rw/flows"}) {
		t.Errorf("the other target has %v", got)
	}
	if got := in(t, app, other, "update", "rw/flows"); got != "ok" {
		t.Errorf("update through the other target: %s", got)
	}
	if ok, err := Mounted(dir); err != nil || !ok {
		t.Errorf("Mounted = %v, %v", ok, err)
	}
	unmount(t, dir)
	if ok, err := Mounted(other); err != nil || !ok {
		t.Errorf("Mounted = %v, %v: the other target", ok, err)
	}
}

// update writes a map as a container does.
func update(pin string) {
	m, err := ebpf.LoadPinnedMap(pin, nil)
	if err == nil {
		err = m.Put(uint32(443), []uint64{77, 0})
		m.Close()
	}
	fmt.Print(errno(err))
}

// consume reads one event of a ring buffer.
func consume(pin string) {
	m, err := ebpf.LoadPinnedMap(pin, nil)
	if err != nil {
		fmt.Print(errno(err))
		return
	}
	r, err := ringbuf.NewReader(m)
	if err != nil {
		fmt.Print(errno(err))
		return
	}
	record, err := r.Read()
	fmt.Print(errno(err), " ", binary.NativeEndian.Uint64(record.RawSample))
}

// rearrange tries what changes a directory of pins.
func rearrange(dir string) {
	pin := func() error {
		m, err := ebpf.LoadPinnedMap(dir+"/flows", nil)
		if err != nil {
			return err
		}
		return m.Pin(dir + "/again")
	}
	for _, what := range []struct {
		name string
		err  error
	}{
		{"unlink", os.Remove(dir + "/flows")},
		{"rename", os.Rename(dir+"/flows", dir+"/others")},
		{"mkdir", os.Mkdir(dir+"/x", 0o777)},
		{"rmdir", os.Remove(dir)},
		{"symlink", os.Symlink("/etc/shadow", dir+"/x")},
		{"link", os.Link(dir+"/flows", dir+"/x")},
		{"chmod", os.Chmod(dir+"/flows", 0o400)},
		{"chown", os.Chown(dir+"/flows", os.Getuid(), os.Getgid())},
		{"pin", pin()},
	} {
		fmt.Printf("%s=%s ", what.name, errno(what.err))
	}
}

// litter makes the directory writable, which takes CAP_SYS_ADMIN of the node, and fills it.
func litter(dir string) error {
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("remount: %w", err)
	}
	m, err := ebpf.LoadPinnedMap(dir+"/flows", nil)
	if err != nil {
		return err
	}
	defer m.Close()
	if err := os.Remove(dir + "/flows"); err != nil {
		return err
	}
	for i := range 1000 {
		name := filepath.Join(dir, fmt.Sprintf("junk_%d", i))
		clone, err := m.Clone()
		if err != nil {
			return err
		}
		if err := clone.Pin(name); err != nil {
			return err
		}
		clone.Close()
		if err := os.Symlink("/etc/shadow", name+"_link"); err != nil {
			return err
		}
	}
	// Deeper than any path can be.
	if err := os.Chdir(dir); err != nil {
		return err
	}
	for range 5000 {
		if err := os.Mkdir("deep", 0o700); err != nil {
			return err
		}
		if err := os.Chdir("deep"); err != nil {
			return err
		}
	}
	clone, err := m.Clone()
	if err != nil {
		return err
	}
	defer clone.Close()
	return clone.Pin("deepest")
}
