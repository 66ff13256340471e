// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"
)

// text is a policy that everyone may use, by its name and image.
func text(name, glob string) string {
	return fmt.Sprintf(`
apiVersion: bpfvol.io/v1alpha1
kind: BytecodePolicy
metadata: {name: %s}
spec: {images: [%q], unsigned: true, subjects: ["*"]}
`, name, glob)
}

// put writes a file as everyone should: a reader sees the old one or the new one.
func put(t testing.TB, dir, name, text string) {
	t.Helper()
	tmp := filepath.Join(dir, "."+name+".tmp")
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// syncBuffer is a log that is read while it is written.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// watch opens a directory and runs it until the test ends.
func watch(t *testing.T, dir string) (*Dir, *syncBuffer) {
	t.Helper()
	d, err := OpenDir(dir, fakeCompile)
	must(t, err)
	log := &syncBuffer{}
	ctx := klog.NewContext(t.Context(), textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(log))))
	done := make(chan error)
	go func() { done <- d.Run(ctx) }()
	t.Cleanup(func() {
		must(t, d.Close())
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return d, log
}

// patience is twice the second that is promised, for a machine that has other things to do.
const patience = 2 * time.Second

// within waits until the names of the policies in force are want.
func within(t *testing.T, d *Dir, want ...string) {
	t.Helper()
	start := time.Now()
	for {
		got := names(d.Policies())
		if strings.Join(got, " ") == strings.Join(want, " ") {
			return
		}
		if time.Since(start) > patience {
			t.Fatalf("after %v %q are in force, want %q (%v)", patience, got, want, d.Err())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestMissingDirectoryIsAnError(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "policy.d")
	_, err := OpenDir(dir, fakeCompile)
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "policy directory "+dir+": ") || !strings.Contains(err.Error(), "create it") {
		t.Errorf("got %v", err)
	}
	must(t, os.WriteFile(dir, nil, 0o600))
	if _, err := OpenDir(dir, fakeCompile); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("a file as directory: got %v", err)
	}
}

func TestOpenDirReadsPolicyFilesOnly(t *testing.T) {
	dir := t.TempDir()
	for name, in := range map[string]string{
		"b.yaml": "b", "a.yml": "a", "c.json": "c",
		".hidden.yaml": "hidden", "d.yaml~": "backup", "e.txt": "text", "README": "readme",
	} {
		put(t, dir, name, text(in, "**"))
	}
	put(t, dir, "c.json", `{"apiVersion":"bpfvol.io/v1alpha1","kind":"BytecodePolicy","metadata":{"name":"c"},"spec":{"images":["**"]}}`)
	must(t, os.MkdirAll(filepath.Join(dir, "sub"), 0o700))
	put(t, filepath.Join(dir, "sub"), "f.yaml", text("f", "**"))
	d, err := OpenDir(dir, fakeCompile)
	must(t, err)
	within(t, d, "a", "b", "c")
	if err := d.Err(); err != nil {
		t.Error(err)
	}
}

func TestChangesAreInForceWithinASecond(t *testing.T) {
	dir := t.TempDir()
	d, log := watch(t, dir)
	agent := Subject{Namespace: "net", ServiceAccount: "agent"}

	put(t, dir, "a.yaml", text("a", "ghcr.io/acme/*"))
	within(t, d, "a")
	if _, err := d.For(t.Context(), agent, acmeX); err != nil {
		t.Error(err)
	}
	put(t, dir, "b.yaml", text("b", "ghcr.io/**"))
	within(t, d, "a", "b")
	must(t, os.Rename(filepath.Join(dir, "b.yaml"), filepath.Join(dir, "b.off")))
	within(t, d, "a")
	must(t, os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(text("a2", "quay.io/**")), 0o600)) // in place
	within(t, d, "a2")
	_, err := d.For(t.Context(), agent, acmeX)
	wantDenied(t, err, "no policy covers it")
	must(t, os.Remove(filepath.Join(dir, "a.yaml")))
	within(t, d)
	_, err = d.For(t.Context(), agent, acmeX)
	wantDenied(t, err, "no policy is in force")
	if n := strings.Count(log.String(), `"policies in force"`); n != 6 {
		t.Errorf("logged the policies %d times, want 6:\n%s", n, log)
	}
}

// A writer that never pauses cannot put a change off.
func TestSteadyWritesDoNotDelayReload(t *testing.T) {
	dir := t.TempDir()
	d, _ := watch(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			_ = os.WriteFile(filepath.Join(dir, "noise.txt"), nil, 0o600)
			time.Sleep(10 * time.Millisecond)
		}
	}()
	time.Sleep(50 * time.Millisecond)
	put(t, dir, "a.yaml", text("a", "**"))
	within(t, d, "a")
	cancel()
	<-done
}

func TestInvalidFileKeepsLastGood(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "a.yaml", text("a", "**"))
	put(t, dir, "z.yaml", "kind: nonsense")
	d, log := watch(t, dir)
	within(t, d, "a")
	if err := d.Err(); err == nil || !strings.Contains(err.Error(), "z.yaml") {
		t.Errorf("got %v, want what is wrong with z.yaml", err)
	}
	put(t, dir, "a.yaml", text("a", "**")+"oops: true")
	put(t, dir, "b.yaml", text("b", "**")) // the rest goes on changing
	within(t, d, "a", "b")
	if err := d.Err(); err == nil || !strings.Contains(err.Error(), "a.yaml") || !strings.Contains(err.Error(), `unknown field "oops"`) || !strings.Contains(err.Error(), "z.yaml") {
		t.Errorf("got %v, want what is wrong with a.yaml and z.yaml", err)
	}
	put(t, dir, "c.yaml", text("c", "**"))
	within(t, d, "a", "b", "c")
	for _, name := range []string{"a.yaml", "z.yaml"} {
		if n := strings.Count(log.String(), "policy file "+filepath.Join(dir, name)); n != 1 {
			t.Errorf("the mistake in %s was logged %d times, want 1:\n%s", name, n, log)
		}
	}
	put(t, dir, "a.yaml", text("a3", "**"))
	must(t, os.Remove(filepath.Join(dir, "z.yaml")))
	within(t, d, "a3", "b", "c")
	if err := d.Err(); err != nil {
		t.Errorf("all is well again, got %v", err)
	}
	// Deleted is revoked, also when the file was invalid.
	put(t, dir, "a.yaml", "}")
	must(t, os.Remove(filepath.Join(dir, "a.yaml")))
	within(t, d, "b", "c")
}

func TestConfigMapSwapIsOneChange(t *testing.T) {
	dir := t.TempDir()
	// As kubelet's AtomicWriter lays it out: files link into ..data, which links to a dated directory.
	publish := func(version string, files map[string]string) {
		must(t, os.Mkdir(filepath.Join(dir, version), 0o700))
		for name, text := range files {
			must(t, os.WriteFile(filepath.Join(dir, version, name), []byte(text), 0o600))
			if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
				must(t, os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)))
			}
		}
		must(t, os.Symlink(version, filepath.Join(dir, "..data_tmp")))
		must(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	}
	publish("..1", map[string]string{"a.yaml": text("a1", "**"), "b.yaml": text("b1", "**")})
	d, _ := watch(t, dir)
	within(t, d, "a1", "b1")
	publish("..2", map[string]string{"a.yaml": text("a2", "**")}) // b.yaml dangles until kubelet removes it
	within(t, d, "a2")
	if err := d.Err(); err != nil {
		t.Errorf("a dangling link is a file that is gone, got %v", err)
	}
	must(t, os.RemoveAll(filepath.Join(dir, "..1")))
	must(t, os.Remove(filepath.Join(dir, "b.yaml")))
	publish("..3", map[string]string{"a.yaml": text("a3", "**"), "c.yaml": text("c3", "**")})
	within(t, d, "a3", "c3")
}

func TestDirectoryMayBeReplaced(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "policy.d")
	must(t, os.Mkdir(dir, 0o700))
	put(t, dir, "a.yaml", text("a", "**"))
	d, _ := watch(t, dir)
	within(t, d, "a")

	must(t, os.RemoveAll(dir))
	within(t, d)
	for start := time.Now(); !errors.Is(d.Err(), fs.ErrNotExist); time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > patience {
			t.Fatalf("got %v, want ErrNotExist", d.Err())
		}
	}
	must(t, os.Mkdir(dir, 0o700))
	put(t, dir, "b.yaml", text("b", "**"))
	within(t, d, "b")
	if err := d.Err(); err != nil {
		t.Error(err)
	}

	other := filepath.Join(parent, "other")
	must(t, os.Mkdir(other, 0o700))
	put(t, other, "c.yaml", text("c", "**"))
	must(t, os.Rename(dir, filepath.Join(parent, "old")))
	must(t, os.Rename(other, dir))
	within(t, d, "c")
	put(t, dir, "d.yaml", text("d", "**")) // the new one is watched
	within(t, d, "c", "d")
}

func TestSymlinkToDirectoryMayBeSwapped(t *testing.T) {
	parent := t.TempDir()
	for _, v := range []string{"v1", "v2"} {
		must(t, os.Mkdir(filepath.Join(parent, v), 0o700))
		put(t, filepath.Join(parent, v), "a.yaml", text(v, "**"))
	}
	dir := filepath.Join(parent, "policy.d")
	must(t, os.Symlink("v1", dir))
	d, _ := watch(t, dir)
	within(t, d, "v1")
	must(t, os.Symlink("v2", dir+".new"))
	must(t, os.Rename(dir+".new", dir))
	within(t, d, "v2")
	put(t, filepath.Join(parent, "v2"), "b.yaml", text("b", "**"))
	within(t, d, "v2", "b")
}

func TestWholeTreeMayVanishAndReturn(t *testing.T) {
	parent := filepath.Join(t.TempDir(), "etc")
	dir := filepath.Join(parent, "policy.d")
	must(t, os.MkdirAll(dir, 0o700))
	put(t, dir, "a.yaml", text("a", "**"))
	d, _ := watch(t, dir)
	within(t, d, "a")
	must(t, os.RemoveAll(parent))
	within(t, d)
	must(t, os.MkdirAll(dir, 0o700))
	put(t, dir, "b.yaml", text("b", "**"))
	within(t, d, "b")
	put(t, dir, "c.yaml", text("c", "**"))
	within(t, d, "b", "c")
}

func TestTwoFilesWithOneNameAreAMistake(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "a.yaml", text("same", "ghcr.io/**"))
	put(t, dir, "b.yaml", text("same", "**")+"---"+text("b", "**"))
	d, err := OpenDir(dir, fakeCompile)
	must(t, err)
	within(t, d, "same", "b")
	if err := d.Err(); err == nil || !strings.Contains(err.Error(), `b.yaml: policy "same" is defined in a.yaml already`) {
		t.Errorf("got %v", err)
	}
	if got := d.Policies()[0].Images[0].String(); got != "ghcr.io/**" {
		t.Errorf("%q is in force, want the first file's", got)
	}
}

func TestOddFilesDoNotHoldUpReload(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "a.yaml", text("a", "**"))
	must(t, syscall.Mkfifo(filepath.Join(dir, "fifo.yaml"), 0o600))
	must(t, os.Mkdir(filepath.Join(dir, "dir.yaml"), 0o700))
	put(t, dir, "huge.yaml", strings.Repeat("#", maxFile+1))
	d, err := OpenDir(dir, fakeCompile)
	must(t, err)
	within(t, d, "a")
	for _, name := range []string{"fifo.yaml: is not a regular file", "dir.yaml: is not a regular file", "huge.yaml: "} {
		if err := d.Err(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want %q", err, name)
		}
	}
}

func TestRunEndsWithItsContextAndWithClose(t *testing.T) {
	d, err := OpenDir(t.TempDir(), fakeCompile)
	must(t, err)
	quiet := klog.NewContext(t.Context(), klog.Logger{})
	ctx, cancel := context.WithCancel(quiet)
	cancel()
	must(t, d.Run(ctx))
	must(t, d.Close())
	must(t, d.Close())
	must(t, d.Run(quiet))
}

// A node has 128 inotify instances for all of root's processes; when they are used up, a revoked policy must go all the same.
func TestChangesAreSeenWithoutInotify(t *testing.T) {
	const inside = "BPFVOL_TEST_WITHOUT_INOTIFY"
	if os.Getenv(inside) == "" {
		child := exec.Command(os.Args[0], "-test.run=^TestChangesAreSeenWithoutInotify$", "-test.v")
		child.Env = append(os.Environ(), inside+"=1")
		child.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		}
		out, err := child.CombinedOutput()
		if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EINVAL) {
			t.Skipf("no user namespace: %v", err)
		}
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	must(t, os.WriteFile("/proc/sys/user/max_inotify_instances", []byte("0"), 0))
	dir := t.TempDir()
	put(t, dir, "a.yaml", text("a", "acme/*"))
	d, log := watch(t, dir)
	put(t, dir, "b.yaml", text("b", "acme/*"))
	within(t, d, "a", "b")
	must(t, os.Remove(filepath.Join(dir, "a.yaml")))
	within(t, d, "b")
	if !strings.Contains(log.String(), "fs.inotify.max_user_instances") {
		t.Errorf("the log does not say what to raise: %s", log)
	}
}
