// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/panics"
)

func TestMain(m *testing.M) { bpftest.Main(m) }

// elsewhere is a process in namespaces of its own.
func elsewhere(t *testing.T) Process {
	t.Helper()
	return Process(fmt.Sprintf("/proc/%d", bpftest.Process(t, syscall.CLONE_NEWNS|syscall.CLONE_NEWNET|syscall.CLONE_NEWCGROUP)))
}

// namespaces are those of a process or thread, by its directory in /proc; empty if it has ended.
func namespaces(dir string) string {
	var all []string
	for _, name := range []string{"mnt", "net", "cgroup"} {
		ns, err := os.Readlink(filepath.Join(dir, "ns", name))
		if err != nil {
			return ""
		}
		all = append(all, ns)
	}
	return strings.Join(all, " ")
}

func TestOnlyTheFunctionIsThere(t *testing.T) {
	node := elsewhere(t)
	here, there := namespaces("/proc/self"), namespaces(string(node))
	// Many at once, so that one of them begins on the process's first thread.
	var calls sync.WaitGroup
	for range 100 {
		calls.Go(func() {
			err := node.Do(func() error {
				if got := namespaces("/proc/thread-self"); got != there {
					t.Errorf("the function is in %s, want %s", got, there)
				}
				elsewhere := make(chan string)
				go func() { elsewhere <- namespaces("/proc/thread-self") }()
				if got := <-elsewhere; got != here {
					t.Errorf("a goroutine that it started is in %s, want %s", got, here)
				}
				if got := namespaces("/proc/self"); got != here {
					t.Errorf("/proc/self is in %s, want %s", got, here)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	calls.Wait()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		threads, err := filepath.Glob("/proc/self/task/*")
		if err != nil || len(threads) == 0 {
			t.Fatalf("threads: %v, %v", threads, err)
		}
		var left []string
		for _, thread := range threads {
			if got := namespaces(thread); got != here && got != "" {
				left = append(left, thread)
			}
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("threads %v are not in %s", left, here)
		}
	}
}

func TestMountIsMadeOnTheNode(t *testing.T) {
	node := elsewhere(t)
	dir := t.TempDir()
	if err := node.Do(func() error { return unix.Mount("here", dir, "tmpfs", 0, "") }); err != nil {
		t.Fatal(err)
	}
	if on := mountinfo(t, node); !strings.Contains(on, " "+dir+" ") {
		t.Errorf("it is not mounted on the node:\n%s", on)
	}
	if on := mountinfo(t, "/proc/self"); strings.Contains(on, " "+dir+" ") {
		t.Errorf("it is mounted here:\n%s", on)
	}
}

func mountinfo(t *testing.T, p Process) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(string(p), "mountinfo"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestDoReturnsWhatTheFunctionReturns(t *testing.T) {
	for _, node := range []Process{"", elsewhere(t)} {
		want := errors.New("no")
		if err := node.Do(func() error { return want }); !errors.Is(err, want) {
			t.Errorf("Do at %q = %v, want %v", node, err, want)
		}
	}
	err := elsewhere(t).Do(func() error { panic("oops") })
	if !errors.As(err, new(*panics.Error)) {
		t.Errorf("Do of a function that panics = %v, want a *panics.Error", err)
	}
}

func TestProcessThatIsNotThereIsAnError(t *testing.T) {
	called := false
	err := Process("/proc/0").Do(func() error { called = true; return nil })
	if called || err == nil || !strings.Contains(err.Error(), "host process: open /proc/0/ns/net: no such file or directory") {
		t.Errorf("Do = %v, called %v", err, called)
	}
}

func BenchmarkDo(b *testing.B) {
	t := Process("/proc/self")
	for b.Loop() {
		if err := t.Do(func() error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
