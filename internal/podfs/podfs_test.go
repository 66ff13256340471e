// SPDX-License-Identifier: Apache-2.0

package podfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/bpftest"
)

func TestVolumeSaysWhatItIs(t *testing.T) {
	bpftest.NothingLeft(t)
	c := content(t)
	dir := mounted(t, c)

	got, err := Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := c.Volume
	want.Version = 1
	want.Maps = []Shown{
		{Name: "flows", Type: "lru_hash", Key: "__u32", Value: "struct stats", MaxEntries: 64, Access: "ro", JSON: true},
		{Name: "counters", Type: "array", Key: "4 bytes", Value: "8 bytes", MaxEntries: 2, Access: "ro", JSON: true},
		{Name: "events", Type: "ringbuf", Key: "0 bytes", Value: "0 bytes", MaxEntries: 4096, Access: "ro",
			JSONReason: "no iterator: the kernel does not iterate over maps of this type"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("volume.json (-want +got):\n%s", diff)
	}

	var wantFiles []string
	for _, name := range []string{"", "/json", "/json/counters", "/json/flows", "/maps", "/maps/counters", "/maps/events", "/maps/flows", "/types.btf", "/volume.json"} {
		wantFiles = append(wantFiles, dir+name)
	}
	if diff := cmp.Diff(wantFiles, files(t, dir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if b, err := os.ReadFile(dir + "/types.btf"); err != nil || string(b) != string(c.Types) {
		t.Errorf("types.btf: %q, %v", b, err)
	}
	if pins, err := Stats(dir); err != nil || pins != 5 {
		t.Errorf("Stats = %d, %v, want 5 pins", pins, err)
	}
	if ok, err := Mounted(dir); err != nil || !ok {
		t.Errorf("Mounted = %v, %v", ok, err)
	}
	if err := Check(dir, ""); err != nil {
		t.Errorf("Check of a volume of ours: %v", err)
	}
}

// The target has no flag that the runtime would want to take away, which in a pod with a user namespace (hostUsers: false)
// nobody can: runc then starts no container.
func TestMountFlags(t *testing.T) {
	bpftest.NothingLeft(t)
	dir := mounted(t, content(t))
	const locked = unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC
	for name, want := range map[string]int64{"": unix.ST_RDONLY, "/maps": unix.ST_RDONLY | locked, "/json": unix.ST_RDONLY | locked} {
		var st unix.Statfs_t
		if err := unix.Statfs(dir+name, &st); err != nil {
			t.Fatal(err)
		}
		if got := st.Flags & (unix.ST_RDONLY | locked); got != want {
			t.Errorf("%q: flags %#x, want %#x", name, got, want)
		}
	}
}

// Where somebody unmounted a volume, a container that starts gets the bare directory of the node and writes what it likes. Nobody
// who looks at the target takes that for a volume: not a pipe, which nobody would ever read to its end, nor a symlink.
func TestWhatAPodWritesWhereNothingIsMountedIsNoVolume(t *testing.T) {
	bpftest.NothingLeft(t)
	flows := newMap(t, ebpf.Array, 4, 8, 2)
	elsewhere := bpftest.BPFFS(t)
	if err := flows.Pin(elsewhere + "/flows"); err != nil {
		t.Fatal(err)
	}
	for name, write := range map[string]func(dir string) error{
		"a pipe": func(dir string) error { return unix.Mkfifo(dir+"/volume.json", 0o666) },
		"a map of somebody else": func(dir string) error {
			return errors.Join(os.WriteFile(dir+"/volume.json", []byte(`{"version":1,"maps":[{"name":"flows"}]}`), 0o666), os.Symlink(elsewhere, dir+"/maps"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := target(t)
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := write(dir); err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 3)
			go func() {
				_, err := Read(dir)
				done <- err
				_, err = Stats(dir)
				done <- err
				_, err = MapID(dir, "flows")
				done <- err
			}()
			for _, what := range []string{"Read", "Stats", "MapID"} {
				select {
				case err := <-done:
					if !errors.Is(err, os.ErrNotExist) {
						t.Errorf("%s: error is %v, want that there is nothing", what, err)
					}
				case <-time.After(10 * time.Second):
					t.Fatalf("%s waits for whoever writes to the pipe", what)
				}
			}
			if ok, err := Mounted(dir); ok || err != nil {
				t.Errorf("Mounted = %v, %v", ok, err)
			}
		})
	}
}

// TestUnprivilegedReader reads as a pod does: uid 65534, no capability.
func TestUnprivilegedReader(t *testing.T) {
	bpftest.NothingLeft(t)
	dir := mounted(t, content(t))
	if got, want := as(t, nobody, "read", dir+"/maps/flows"), "get(ro)=ok lookup=ok [12 3400] update=EPERM get(rw)=EROFS get(wo)= EROFS\n"; got != want {
		t.Errorf("read: got %q, want %q", got, want)
	}
	if got, want := as(t, nobody, "cat", dir+"/json/flows"), "bpf: EPERM\ncat: ok\n"+`{"key":443,"value":{"packets":12,"bytes":3400}}`+"\n"; got != want {
		t.Errorf("cat without bpf(2): got %q, want %q", got, want)
	}
	if got, want := as(t, nobody, "cat", dir+"/json/counters"), "bpf: EPERM\ncat: ok\n"+
		`{"key":0,"value":"0x0000000000000000"}`+"\n"+`{"key":1,"value":"0x0700000000000000"}`+"\n"; got != want {
		t.Errorf("cat without BTF: got %q, want %q", got, want)
	}
}

// TestNobodyWrites has root with all capabilities try what a container's root could.
func TestNobodyWrites(t *testing.T) {
	bpftest.NothingLeft(t)
	dir := mounted(t, content(t))
	if got, want := as(t, root, "read", dir+"/maps/flows"), "get(ro)=ok lookup=ok [12 3400] update=EPERM get(rw)=EROFS get(wo)= EROFS\n"; got != want {
		t.Errorf("root: got %q, want %q", got, want)
	}
	for _, u := range []user{root, nobody} {
		for _, attempt := range strings.Fields(strings.ReplaceAll(as(t, u, "write", dir), " json", "-json")) {
			if _, got, ok := strings.Cut(attempt, "="); ok && got != "EROFS" && got != "EACCES" && got != "EPERM" {
				t.Errorf("uid %d: %s", u.uid, attempt)
			}
		}
	}
	if got := as(t, root, "write", dir); strings.Count(got, "=EROFS") != 10 {
		t.Errorf("root: not every write is EROFS: %s", got)
	}
}

func TestGroup(t *testing.T) {
	bpftest.NothingLeft(t)
	c := content(t)
	gid := 2000
	c.Group = &gid
	dir := mounted(t, c)

	if got := as(t, member, "read", dir+"/maps/flows"); !strings.HasPrefix(got, "get(ro)=ok lookup=ok") {
		t.Errorf("member: %s", got)
	}
	if got := as(t, member, "cat", dir+"/json/flows"); !strings.Contains(got, "cat: ok") {
		t.Errorf("member: %s", got)
	}
	for _, file := range []string{"/maps/flows", "/json/flows", "/volume.json", "/types.btf"} {
		if got := as(t, nobody, "cat", dir+file); !strings.Contains(got, "cat: EACCES") {
			t.Errorf("%s: others: %s", file, got)
		}
	}
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		gid, want := uint32(2000), uint32(0o440)
		switch {
		case path == dir:
			want = 0o750
		case e.IsDir():
			gid, want = 0, 0o755
		case filepath.Dir(path) != dir:
			gid, want = 0, 0o444
		}
		if st.Uid != 0 || st.Gid != gid || st.Mode&0o7777 != want {
			t.Errorf("%s: %d:%d %o, want 0:%d %o", path, st.Uid, st.Gid, st.Mode&0o7777, gid, want)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestMountKeepsCallersPin(t *testing.T) {
	bpftest.NothingLeft(t)
	c := content(t)
	pin := filepath.Join(bpftest.BPFFS(t), "flows")
	if err := c.Maps[0].Map.Pin(pin); err != nil {
		t.Fatal(err)
	}
	mounted(t, c)
	if _, err := os.Stat(pin); err != nil {
		t.Error(err)
	}
}

func TestUnmountIsIdempotent(t *testing.T) {
	bpftest.NothingLeft(t)
	dir := target(t)
	c := content(t)
	unmount(t, dir)
	if err := mountContent(t.Context(), dir, c, Options{Types: types}); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir + "/json/flows") // an open file does not hold it up
	if err != nil {
		t.Fatal(err)
	}
	unmount(t, dir)
	f.Close()
	unmount(t, dir)
	unmount(t, filepath.Join(dir, "no", "such"))
	if ok, err := Mounted(dir); ok || err != nil {
		t.Errorf("Mounted = %v, %v", ok, err)
	}
}

func TestKilledWhileMounting(t *testing.T) {
	bpftest.Root(t)
	for _, step := range []string{"attach top", "clone pins", "attach maps", "attach json", "clone rw", "attach rw", "done"} {
		t.Run(step, func(t *testing.T) {
			bpftest.NothingLeft(t)
			dir := target(t)
			if got, want := as(t, root, "mount", dir, step), "signal: killed"; got != want {
				t.Fatalf("got %q, want %q", got, want)
			}
			if ok, err := Mounted(dir); err != nil || ok != (step == "done") {
				t.Errorf("Mounted = %v, %v", ok, err)
			}
			unmount(t, dir)
			if err := mountContent(t.Context(), dir, content(t), Options{Types: types}); err != nil {
				t.Errorf("again: %v", err)
			}
			unmount(t, dir)
		})
	}
}

func TestTargets(t *testing.T) {
	bpftest.NothingLeft(t)
	bpftest.Root(t)
	base := filepath.Dir(target(t))
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(base+"/pods/full", 0o755))
	must(os.MkdirAll(base+"/pods/empty", 0o755))
	must(os.MkdirAll(base+"/pods/foreign", 0o755))
	must(os.MkdirAll(base+"/outside", 0o755))
	must(os.WriteFile(base+"/pods/full/keep", nil, 0o644))
	must(os.WriteFile(base+"/pods/file", nil, 0o644))
	must(os.Symlink(base+"/outside", base+"/pods/link"))
	must(os.Symlink("/proc/self/cwd", base+"/pods/magic"))
	must(unix.Mount("somebody", base+"/pods/foreign", "tmpfs", 0, ""))
	t.Cleanup(func() { must(unix.Unmount(base+"/pods/foreign", 0)) })
	must(os.WriteFile(base+"/pods/foreign/keep", nil, 0o644))

	c := content(t)
	for _, tc := range []struct {
		target string
		want   error
	}{
		{"pods/new", nil},
		{"pods/empty", nil},
		{"pods/link", ErrTarget},
		{"pods/link/below", ErrTarget},
		{"pods/magic/below", ErrTarget},
		{"pods/file", ErrTarget},
		{"pods/file/below", ErrTarget},
		{"pods/full", ErrTarget},
		{"pods/foreign", ErrTarget},
		{"pods/no/parent", ErrTarget},
		{"outside", ErrTargetPath},
		{"pods", ErrTargetPath},
		{"pods/../outside", ErrTargetPath},
		{"podsX", ErrTargetPath},
	} {
		target := base + "/" + tc.target
		err := Check(target, base+"/pods")
		if !errors.Is(err, tc.want) {
			t.Errorf("Check %s: %v, want %v", tc.target, err, tc.want)
		}
		if tc.want != nil && !errors.As(err, new(*TargetError)) {
			t.Errorf("Check %s: %T, want *TargetError", tc.target, err)
		}
		if errors.Is(tc.want, ErrTarget) && strings.Contains(err.Error(), base) {
			t.Errorf("Check %s: the message differs from pod to pod: %v", tc.target, err)
		}
		before := files(t, base)
		err = mountContent(t.Context(), target, c, Options{Root: base + "/pods", Types: types})
		if !errors.Is(err, tc.want) {
			t.Errorf("Mount %s: %v, want %v", tc.target, err, tc.want)
		}
		if tc.want != nil {
			if diff := cmp.Diff(before, files(t, base)); diff != "" {
				t.Errorf("Mount %s changed (-before +after):\n%s", tc.target, diff)
			}
			if errors.Is(tc.want, ErrTarget) && tc.target != "pods/no/parent" && !strings.Contains(tc.target, "below") {
				if err := Unmount(target); !errors.Is(err, ErrTarget) {
					t.Errorf("Unmount %s: %v, want ErrTarget", tc.target, err)
				}
				if diff := cmp.Diff(before, files(t, base)); diff != "" {
					t.Errorf("Unmount %s changed (-before +after):\n%s", tc.target, diff)
				}
			}
			continue
		}
		if err := mountContent(t.Context(), target, c, Options{Types: types}); !errors.Is(err, ErrTarget) {
			t.Errorf("Mount %s again: %v, want ErrTarget", tc.target, err)
		}
		unmount(t, target)
	}
	for _, bad := range []string{"relative", "", "/", "/a/../b", "/a/"} {
		if err := Check(bad, ""); !errors.Is(err, ErrTargetPath) {
			t.Errorf("Check %q: %v, want ErrTargetPath", bad, err)
		}
	}
}

// TestParentIsSwapped has somebody put a symlink in the place of the directory above the target while it is mounted.
func TestParentIsSwapped(t *testing.T) {
	bpftest.NothingLeft(t)
	base := filepath.Dir(target(t))
	for _, dir := range []string{"/pod", "/outside/mount"} {
		if err := os.MkdirAll(base+dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	opts := Options{Types: types, Root: base}
	opts.step = func(step string) {
		if step != "attach top" {
			return
		}
		if err := errors.Join(os.Rename(base+"/pod", base+"/moved"), os.Symlink(base+"/outside", base+"/pod")); err != nil {
			t.Error(err)
		}
	}
	if err := mountContent(t.Context(), base+"/pod/mount", content(t), opts); err != nil {
		t.Fatal(err)
	}
	if ok, err := Mounted(base + "/outside/mount"); ok || err != nil {
		t.Errorf("mounted outside: %v, %v", ok, err)
	}
	if ok, err := Mounted(base + "/moved/mount"); !ok || err != nil {
		t.Errorf("not mounted where the directory went: %v, %v", ok, err)
	}
	unmount(t, base+"/moved/mount")
}

// TestParentIsSwappedAfterTheCheck has somebody do the same between Check and Mount: what was checked is no promise.
func TestParentIsSwappedAfterTheCheck(t *testing.T) {
	bpftest.NothingLeft(t)
	base := filepath.Dir(target(t))
	for _, dir := range []string{"/pod", "/outside/mount"} {
		if err := os.MkdirAll(base+dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := Check(base+"/pod/mount", base); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Rename(base+"/pod", base+"/moved"), os.Symlink(base+"/outside", base+"/pod")); err != nil {
		t.Fatal(err)
	}
	before := files(t, base)
	if err := mountContent(t.Context(), base+"/pod/mount", content(t), Options{Types: types, Root: base}); !errors.Is(err, ErrTarget) {
		t.Errorf("Mount: %v, want ErrTarget", err)
	}
	if diff := cmp.Diff(before, files(t, base)); diff != "" {
		t.Errorf("files (-before +after):\n%s", diff)
	}
}

func TestNoTypesNoFile(t *testing.T) {
	bpftest.NothingLeft(t)
	c := content(t)
	c.Types = nil
	dir := mounted(t, c)
	if _, err := os.Stat(dir + "/types.btf"); !os.IsNotExist(err) {
		t.Errorf("types.btf: %v", err)
	}
}

// files lists what is below a directory.
func files(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		names = append(names, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// TestForeignMountOnTop has somebody mount over a volume of ours.
func TestForeignMountOnTop(t *testing.T) {
	bpftest.NothingLeft(t)
	dir := mounted(t, content(t))
	if err := unix.Mount("somebody", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if err := Unmount(dir); !errors.Is(err, ErrTarget) {
		t.Errorf("Unmount: %v, want ErrTarget", err)
	}
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	if ok, err := Mounted(dir); !ok || err != nil {
		t.Errorf("Mounted = %v, %v", ok, err)
	}
}

// TestOddMountElsewhere has somebody mount a file system without a source, for which mountinfo has a field less.
func TestOddMountElsewhere(t *testing.T) {
	bpftest.NothingLeft(t)
	odd := t.TempDir()
	if err := unix.Mount("", odd, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(odd, 0); err != nil {
			t.Error(err)
		}
	}()
	dir := mounted(t, content(t))
	if err := Check(dir, ""); err != nil {
		t.Errorf("Check: %v", err)
	}
	if err := Check(odd, ""); !errors.Is(err, ErrTarget) || !strings.Contains(err.Error(), `"tmpfs"`) {
		t.Errorf("Check of the odd mount: %v", err)
	}
	if err := Unmount(dir); err != nil {
		t.Errorf("Unmount: %v", err)
	}
}

func TestMountFails(t *testing.T) {
	bpftest.NothingLeft(t)
	c := content(t)
	closed := newMap(t, ebpf.Hash, 4, 4, 1)
	closed.Close()
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, tc := range map[string]struct {
		ctx  context.Context
		maps []Map
		want error
	}{
		"dot":       {t.Context(), []Map{{Name: ".rodata", Map: c.Maps[0].Map}}, nil},
		"slash":     {t.Context(), []Map{{Name: "../x", Map: c.Maps[0].Map}}, nil},
		"twice":     {t.Context(), []Map{{Name: "a", Map: c.Maps[0].Map}, {Name: "a", Map: c.Maps[0].Map}}, nil},
		"canceled":  {canceled, c.Maps, context.Canceled},
		"closed fd": {t.Context(), append([]Map{{Name: "gone", Map: closed}}, c.Maps...), nil},
	} {
		dir := target(t)
		bad := c
		bad.Maps = tc.maps
		err := mountContent(tc.ctx, dir, bad, Options{Types: types})
		if err == nil || tc.want != nil && !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
		if _, err := os.Lstat(dir); !os.IsNotExist(err) {
			t.Errorf("%s: target is still there: %v", name, err)
		}
	}
}

func TestManyMaps(t *testing.T) {
	bpftest.NothingLeft(t)
	c := content(t)
	c.Maps = nil
	for i := range 128 {
		c.Maps = append(c.Maps, Map{Name: fmt.Sprintf("map_%d", i), Map: newMap(t, ebpf.Array, 4, 8, 1), Key: u32, Value: u64})
	}
	c.Types = make([]byte, 1<<20)
	dir := mounted(t, c)
	if pins, err := Stats(dir); err != nil || pins != 256 {
		t.Errorf("Stats = %d, %v", pins, err)
	}
}

func BenchmarkMount(b *testing.B) {
	c := content(b)
	dir := target(b)
	for b.Loop() {
		if err := mountContent(b.Context(), dir, c, Options{Types: types}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := Unmount(dir); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func BenchmarkUnmount(b *testing.B) {
	c := content(b)
	dir := target(b)
	for b.Loop() {
		b.StopTimer()
		if err := mountContent(b.Context(), dir, c, Options{Types: types}); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := Unmount(dir); err != nil {
			b.Fatal(err)
		}
	}
}
