// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bpfvol/bpfvol/e2e/nodetest"
	"github.com/bpfvol/bpfvol/internal/kernelstate"
)

// state is everything that a volume could leave behind. Ids are left out: a program that was replaced by its like is no
// difference.
type state struct {
	Mounts     []string       // with network namespaces that have names
	BPF        map[string]int // programs, links and maps of the machine, by their types
	Files      []string       // of the daemon, with directories and pins
	Pods       []string       // files and directories of kubelet
	Open       []string       // what the daemon has open
	Goroutines string         // of the daemon
}

var shared = flag.Bool("shared", false, "others use BPF on this machine, too: do not want its programs, links and maps to be as before in the end")

// state looks. Without a daemon, the last two are empty.
func (w *world) state(t *testing.T) (s state) {
	t.Helper()
	kernel, err := kernelstate.Take()
	if err != nil {
		t.Fatal(err)
	}
	// A BPF object does not say whose it is. Where others make some, too, TestFaultAtEveryEffect looks in the end.
	alone := !*shared && !*all
	s.BPF = map[string]int{}
	for _, name := range kernel.Names() {
		switch kind, _, _ := strings.Cut(name, " "); kind {
		case "link", "program", "map":
			if alone {
				s.BPF[quoted.ReplaceAllString(name, "")]++
			}
		default:
			if alone || strings.Contains(name, w.Dir) {
				s.Mounts = append(s.Mounts, name)
			}
		}
	}
	ingest := filepath.Join(w.CacheDir(), "oci", "ingest") // made by a pull and removed at a start; what is in it counts
	err = filepath.WalkDir(w.Dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		if strings.HasPrefix(path, w.KubeletDir()) {
			s.Pods = append(s.Pods, path)
			return nil
		}
		if path != ingest {
			s.Files = append(s.Files, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if w.Running() {
		s.Goroutines = w.metrics.goroutines(t) // over a connection that stays
		s.Open = openFiles(t, w.DaemonPID())
	}
	return s
}

// quoted is the name of an object. One whose library could not find out whether the kernel takes names has none.
var quoted = regexp.MustCompile(`"[^"]*" `)

var number = regexp.MustCompile(`\[[0-9]+\]`)

// openFiles lists what a process has open, sockets and pipes without their numbers.
func openFiles(t *testing.T, pid int) (open []string) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil { // else it is closed by now
			open = append(open, number.ReplaceAllString(target, ""))
		}
	}
	slices.Sort(open)
	return open
}

// rest is the state of now, with a daemon that has come to rest.
func (w *world) rest(t *testing.T) state {
	t.Helper()
	s := w.state(t)
	s.Open, s.Goroutines = w.idle.Open, w.idle.Goroutines
	return s
}

// settled is the state when nothing changes any more: connections take a moment to end.
func (w *world) settled(t *testing.T) state {
	t.Helper()
	s := w.state(t)
	for same := 0; same < 5; {
		time.Sleep(10 * time.Millisecond)
		now := w.state(t)
		if same++; !cmp.Equal(s, now) {
			s, same = now, 0
		}
	}
	return s
}

// want wants everything to be as it was, as soon as the kernel and the daemon had time to free what nobody uses.
func (w *world) want(t *testing.T, what string, before state, but ...func(*state)) {
	t.Helper()
	for deadline, pause := time.Now().Add(5*time.Second), time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		now := w.state(t)
		for _, leaveOut := range but {
			leaveOut(&before)
			leaveOut(&now)
		}
		for what, n := range before.BPF { // some of an earlier case go only now
			now.BPF[what] = max(now.BPF[what], n)
		}
		diff := cmp.Diff(before, now)
		if diff == "" {
			return
		}
		if time.Now().After(deadline) {
			if before.Goroutines != now.Goroutines {
				_ = w.Stack.StopDaemon(syscall.SIGQUIT) // which makes it write what each does
				w.StartDaemon(t)
			}
			t.Fatalf("%s (-before +now):\n%s", what, diff)
		}
		time.Sleep(pause)
	}
}

// The pod's directory is kubelet's until it has unpublished the volume.
func pods(s *state) { s.Pods = nil }

// A connection to a registry is kept for the next pull.
func connections(s *state) { s.Open, s.Goroutines = nil, "" }

// A pull that did not end leaves what it has in the cache.
func cached(s *state) {
	s.Files = slices.DeleteFunc(slices.Clone(s.Files), func(path string) bool { return strings.Contains(path, "/cache/") })
}

// metricsAddress is in the network namespace of the node.
const metricsAddress = "127.0.0.1:9808"

// metrics asks the daemon how many goroutines it has.
type metrics struct{ client *http.Client }

func newMetrics(n *nodetest.Node) metrics {
	return metrics{&http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialContext: func(_ context.Context, network, address string) (c net.Conn, err error) {
			err = n.InNetNS(func() error {
				c, err = net.Dial(network, address)
				return err
			})
			return c, err
		},
	}}}
}

func (m metrics) close() { m.client.CloseIdleConnections() }

// goroutines is the daemon's own count. It serves metrics a moment after the CSI socket.
func (m metrics) goroutines(t *testing.T) string {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		count, err := m.value("go_goroutines")
		if err == nil {
			return count
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// value is that of a metric.
func (m metrics) value(name string) (string, error) {
	response, err := m.client.Get("http://" + metricsAddress + "/metrics")
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value), nil
		}
	}
	return "", fmt.Errorf("no %s in /metrics", name)
}
