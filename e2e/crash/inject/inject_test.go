// SPDX-License-Identifier: Apache-2.0

package inject_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/e2e/crash/inject"
)

// workArg makes the test binary a program that changes things, below the directory that follows.
const workArg = "work"

func TestMain(m *testing.M) {
	inject.Main()
	if len(os.Args) == 3 && os.Args[1] == workArg {
		if err := work(os.Args[2]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// work makes a file, twice the same way, and removes a directory that is not there. It calls personality(2), which is on no
// list.
func work(dir string) error {
	if _, _, errno := unix.Syscall(unix.SYS_PERSONALITY, 0xffffffff, 0, 0); errno != 0 {
		return errno
	}
	_ = os.Remove(filepath.Join(dir, "missing"))
	for _, name := range []string{"a", "b"} {
		f, err := os.OpenFile(filepath.Join(dir, name+".new"), os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		if _, err := f.WriteString("text"); err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		if err := os.Rename(f.Name(), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// worked is what became of work.
type worked struct {
	output  string
	end     error // of the process
	effects []string
	unknown []string
	files   []string // that are left
}

func supervise(t *testing.T, faults ...inject.Fault) (w worked) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("runs as uid %d, needs root", os.Geteuid())
	}
	dir := t.TempDir()
	s := inject.New(inject.Options{Name: func(call, what string) string {
		if !strings.Contains(what, dir) {
			return "" // not of work
		}
		return call + " " + strings.ReplaceAll(what, dir+"/", "")
	}})
	s.Watch(faults...)
	cmd := exec.Command("/proc/self/exe", workArg, dir)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := s.Start(cmd); err != nil {
		t.Fatal(err)
	}
	w.end = cmd.Wait()
	s.Wait()
	w.output, w.unknown = out.String(), s.Unknown()
	var hit map[inject.Fault]bool
	w.effects, hit = s.Done()
	for _, f := range faults {
		if !hit[f] {
			t.Errorf("fault %+v did not come", f)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		w.files = append(w.files, e.Name())
	}
	return w
}

func TestEffectsAreNamedInOrder(t *testing.T) {
	w := supervise(t)
	if w.end != nil {
		t.Fatal(w.end, w.output)
	}
	want := []string{
		"openat a.new", "write a.new", "renameat a.new to a",
		"openat b.new", "write b.new", "renameat b.new to b",
	}
	if !slices.Equal(w.effects, want) {
		t.Errorf("effects are %q, want %q", w.effects, want)
	}
	if want := []string{"a", "b"}; !slices.Equal(w.files, want) {
		t.Errorf("files are %q, want %q", w.files, want)
	}
}

func TestUnknownCallsAreTold(t *testing.T) {
	w := supervise(t)
	if w.end != nil {
		t.Fatal(w.end, w.output)
	}
	if want := []string{"personality"}; !slices.Equal(w.unknown, want) {
		t.Errorf("unknown calls are %q, want %q", w.unknown, want)
	}
}

func TestFaultsComeBeforeTheEffect(t *testing.T) {
	t.Run("error", func(t *testing.T) {
		w := supervise(t, inject.Fault{Effect: "renameat b.new to b", Nth: 1, Errno: unix.EXDEV})
		if w.end == nil || !strings.Contains(w.output, "cross-device") {
			t.Errorf("the program ends with %v and says %q, want EXDEV", w.end, w.output)
		}
		if want := []string{"a", "b.new"}; !slices.Equal(w.files, want) {
			t.Errorf("files are %q, want %q", w.files, want)
		}
	})
	t.Run("kill", func(t *testing.T) {
		w := supervise(t, inject.Fault{Effect: "openat b.new", Nth: 1})
		exit, ok := errors.AsType[*exec.ExitError](w.end)
		if !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Errorf("the program ends with %v, want SIGKILL", w.end)
		}
		if want := []string{"a"}; !slices.Equal(w.files, want) {
			t.Errorf("files are %q, want %q", w.files, want)
		}
		if last, want := w.effects[len(w.effects)-1], "openat b.new"; last != want {
			t.Errorf("the last effect is %q, want %q", last, want)
		}
	})
}
