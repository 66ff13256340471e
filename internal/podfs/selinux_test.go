// SPDX-License-Identifier: Apache-2.0

package podfs

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/bpftest"
)

const containerFile = "system_u:object_r:container_file_t:s0:c1,c2"

// selinuxOn skips where the kernel runs without SELinux, and loads testdata/selinux.cil where it has no policy yet.
func selinuxOn(t *testing.T) {
	t.Helper()
	bpftest.Root(t)
	if on, err := selinux(); on || err != nil {
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		t.Fatal(err)
	}
	if !selinuxfs.Match(known) {
		t.Skip("SELinux is off: /proc/filesystems has no selinuxfs")
	}
	file := filepath.Join(t.TempDir(), "policy")
	if out, err := exec.Command("secilc", "-o", file, "-f", os.DevNull, "testdata/selinux.cil").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	policy, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := unix.Mount("selinuxfs", dir, "selinuxfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	// In one write, as the kernel wants it.
	if err := os.WriteFile(dir+"/load", policy, 0); err != nil {
		t.Fatal(err)
	}
}

// wantContext reads the context of every file.
func wantContext(t *testing.T, dir, want string) {
	t.Helper()
	for _, path := range files(t, dir) {
		context := make([]byte, 256)
		n, err := unix.Lgetxattr(path, "security.selinux", context)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if got := strings.TrimRight(string(context[:n]), "\x00"); got != want {
			t.Errorf("%s: context is %q, want %q", path, got, want)
		}
	}
}

func TestContextOfEveryFile(t *testing.T) {
	bpftest.NothingLeft(t)
	selinuxOn(t)
	c := writable(t)
	c.Context = containerFile
	dir := mounted(t, c)
	wantContext(t, dir, containerFile)
	if got := in(t, app, dir, "update", "rw/flows"); got != "ok" {
		t.Errorf("update through rw/: %s", got)
	}
	if got := in(t, app, dir, "cat", "json/flows"); !strings.Contains(got, `"packets":77`) {
		t.Errorf("json/flows: %s", got)
	}

	c.Context = "system_u:object_r:no_such_t:s0"
	err := mountContent(t.Context(), target(t), c, Options{Types: types})
	const want = `SELinux context "system_u:object_r:no_such_t:s0": not known on this node: its SELinux policy has no such user, role, type or range; ` +
		`look at the pod's seLinuxOptions`
	if !errors.Is(err, ErrContext) || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// TestInlineVolumeIsNotRelabelled has no context from kubelet, as is so for a pod's own volumes. Without one on the mount
// kubelet would have the files labelled, which are read-only.
func TestInlineVolumeIsNotRelabelled(t *testing.T) {
	bpftest.NothingLeft(t)
	selinuxOn(t)
	dir := mounted(t, writable(t))
	wantContext(t, dir, containerFiles)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(mounts)) {
		if !strings.Contains(line, " "+dir) {
			continue
		}
		n++
		if strings.Contains(line, "seclabel") || !strings.Contains(line, "context=") {
			t.Errorf("mount without a context: %s", line)
		}
	}
	if n != 4 {
		t.Errorf("%d mounts, want 4", n)
	}

	// A policy need not know of containers.
	s, err := newSuperblock("tmpfs", everybody, label{context: "system_u:object_r:no_such_t:s0"}, nil)
	if err != nil {
		t.Fatalf("by a policy without containers: %v", err)
	}
	s.root.Close()
}

func TestContextWithoutSELinux(t *testing.T) {
	bpftest.NothingLeft(t)
	bpftest.Root(t)
	if on, err := selinux(); on || err != nil {
		t.Skipf("SELinux is on (%v), %v", on, err)
	}
	c := content(t)
	c.Context = containerFile
	dir := target(t)
	if err := mountContent(t.Context(), dir, c, Options{Types: types}); !errors.Is(err, ErrContext) {
		t.Errorf("%v, want ErrContext", err)
	}
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		t.Errorf("target: %v", err)
	}
}
