// SPDX-License-Identifier: Apache-2.0

package libxdp

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/bpftest"
)

// The test binary plays the process that is killed: what it is to do, with what, and at which effect it dies.
const (
	refused = "refused" // the role of TestRefusalSaysWhatToDo

	roleEnv    = "BPFVOL_LIBXDP_ROLE"
	dirEnv     = "BPFVOL_LIBXDP_DIR"
	progEnv    = "BPFVOL_LIBXDP_PROG"
	ifindexEnv = "BPFVOL_LIBXDP_IFINDEX"
	stepEnv    = "BPFVOL_LIBXDP_STEP"
)

// maxSteps is more than the effects of any call.
const maxSteps = 60

// victimPriority is between those of the others in the tests.
const victimPriority = 50

// kill starts the test binary in the namespace of the dispatcher, to add or remove a program and to kill itself right
// after the given effect. It reports whether it came that far.
func (w *world) kill(t testing.TB, role string, p program, step int) (killed bool) {
	t.Helper()
	pin := filepath.Join(w.bpffs, "victim")
	own, err := p.Clone()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if err := own.Pin(pin); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(pin)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleEnv+"="+role, dirEnv+"="+w.Dir, progEnv+"="+pin,
		ifindexEnv+"="+strconv.Itoa(w.ifindex), stepEnv+"="+strconv.Itoa(step))
	var out []byte
	err = w.here.Do(func() (err error) {
		out, err = cmd.CombinedOutput()
		return err
	})
	if err != nil && cmd.ProcessState.ExitCode() != -1 {
		t.Fatalf("%s: %v: %s", role, err, out)
	}
	if err != nil {
		t.Logf("%s: killed after: %s", role, out)
	}
	return err != nil
}

func victim(role string) error {
	if role == refused {
		return powerless(Supported)
	}
	last, err := strconv.Atoi(os.Getenv(stepEnv))
	if err != nil {
		return err
	}
	ifindex, err := strconv.Atoi(os.Getenv(ifindexEnv))
	if err != nil {
		return err
	}
	prog, err := ebpf.LoadPinnedProgram(os.Getenv(progEnv), nil)
	if err != nil {
		return err
	}
	steps := 0
	p := Protocol{Dir: os.Getenv(dirEnv), step: func(name string) {
		if steps++; steps == last {
			fmt.Print(name)
			unix.Kill(unix.Getpid(), unix.SIGKILL)
			select {}
		}
	}}
	switch role {
	case "add":
		return p.Add(context.Background(), ifindex, prog, Options{Run: Run{Priority: victimPriority, ProceedOn: onPass}})
	case "remove":
		info, err := prog.Info()
		if err != nil {
			return err
		}
		id, _ := info.ID()
		return p.Remove(context.Background(), ifindex, id)
	}
	return errors.New("unknown role")
}

// each calls f for every step of an action until there is none, and checks that there were many.
func eachStep(t *testing.T, atLeast int, f func(step int) (killed bool)) {
	t.Helper()
	step := 1
	for ; f(step); step++ {
		if step > maxSteps {
			t.Fatal("too many steps")
		}
	}
	if step <= atLeast {
		t.Errorf("only %d steps", step-1)
	}
}

func TestKilledAddIsFinishedByTheNext(t *testing.T) {
	w := newWorld(t)
	first, last, mine := w.program(t, "first", pass), w.program(t, "last", pass), w.program(t, "mine", pass)
	others := func(step int) {
		w.meets(t, fmt.Sprintf("step %d: the first", step), first)
		w.meets(t, fmt.Sprintf("step %d: the last", step), last)
	}
	w.mustAdd(t, first, Options{Run: Run{Priority: 1, ProceedOn: onPass}})
	w.mustAdd(t, last, Options{Run: Run{Priority: 99, ProceedOn: onPass}})
	clean := w.pins(t)
	eachStep(t, 12, func(step int) bool {
		killed := w.kill(t, "add", mine, step)
		others(step)

		// By adding it again.
		w.mustAdd(t, mine, Options{Run: Run{Priority: victimPriority, ProceedOn: onPass}})
		w.meets(t, fmt.Sprintf("step %d: the added", step), mine)
		others(step)
		w.mustRemove(t, mine.id)
		if !killed {
			return false
		}

		// By taking it away.
		if !w.kill(t, "add", mine, step) {
			t.Fatalf("step %d was not reached again", step)
		}
		w.mustRemove(t, mine.id)
		w.missed(t, fmt.Sprintf("step %d: the removed", step), mine, first, last)
		if left := w.pins(t); len(left) != len(clean) {
			t.Errorf("step %d: pins are %v, want as many as %v", step, left, clean)
		}
		return true
	})
	w.mustRemove(t, first.id, last.id)
}

func TestKilledFirstAddLeavesNothingForGood(t *testing.T) {
	w := newWorld(t)
	mine := w.program(t, "mine", pass)
	eachStep(t, 5, func(step int) bool {
		killed := w.kill(t, "add", mine, step)
		w.mustAdd(t, mine, Options{Run: Run{Priority: victimPriority, ProceedOn: onPass}})
		w.meets(t, fmt.Sprintf("step %d: the added", step), mine)
		w.mustRemove(t, mine.id)
		w.nothingLeft(t)
		if killed {
			w.kill(t, "add", mine, step)
			w.mustRemove(t, mine.id)
			w.nothingLeft(t)
		}
		return killed
	})
}

func TestKilledRemoveIsFinishedByTheNext(t *testing.T) {
	for name, others := range map[string]int{"alone": 0, "of three": 2} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			mine := w.program(t, "mine", pass)
			stay := make([]program, others)
			for i := range stay {
				stay[i] = w.program(t, fmt.Sprint("stay", i), pass)
				w.mustAdd(t, stay[i], Options{Run: Run{Priority: uint32(100 * i), ProceedOn: onPass}})
			}
			clean := w.pins(t)
			eachStep(t, 4, func(step int) bool {
				w.mustAdd(t, mine, Options{Run: Run{Priority: victimPriority, ProceedOn: onPass}})
				killed := w.kill(t, "remove", mine, step)
				for _, p := range stay {
					w.meets(t, fmt.Sprintf("step %d: one that stays", step), p)
				}
				w.mustRemove(t, mine.id)
				w.missed(t, fmt.Sprintf("step %d: the removed", step), mine, stay...)
				if left := w.pins(t); len(left) != len(clean) {
					t.Errorf("step %d: pins are %v, want as many as %v", step, left, clean)
				}
				return killed
			})
			for _, p := range stay {
				w.mustRemove(t, p.id)
			}
		})
	}
}

// What libxdp finds after a kill at any step is a dispatcher that it can change. What it does not know stays until the
// next change of ours.
func TestLoaderGoesOnAfterKill(t *testing.T) {
	w := newWorld(t)
	mine, first := w.program(t, "mine", pass), w.their(t, "their_pass", "-P", "1")
	for _, role := range []string{"add", "remove"} {
		eachStep(t, 10, func(step int) bool {
			if role == "remove" {
				w.mustAdd(t, mine, Options{Run: Run{Priority: victimPriority, ProceedOn: onPass}})
			}
			killed := w.kill(t, role, mine, step)
			second := w.their(t, "their_frags", "-P", "60")
			w.meets(t, fmt.Sprintf("%s, step %d: their first", role, step), first)
			w.meets(t, fmt.Sprintf("%s, step %d: their second", role, step), second)
			w.unload(t, second)
			w.mustRemove(t, mine.id)
			w.missed(t, fmt.Sprintf("%s, step %d: the removed", role, step), mine, first)
			if left := w.pins(t); len(left) != 3 {
				t.Errorf("%s, step %d: pins are %v, want those of one component", role, step, left)
			}
			return killed
		})
	}
	w.unload(t, first)
}

// The intents of other namespaces are not ours to judge, and what they name may run there.
func TestIntentOfAnotherNamespaceStays(t *testing.T) {
	w := newWorld(t)
	w.ifindex = w.here.Index(t, "lo") // in every namespace the same
	elsewhere := &world{Protocol: w.Protocol, bpffs: w.bpffs, here: w.there, there: w.there, ifindex: w.ifindex}
	theirs, ours := w.program(t, "theirs", pass), w.program(t, "ours", pass)
	elsewhere.mustAdd(t, theirs, Options{Run: Run{ProceedOn: onPass}})
	if !elsewhere.kill(t, "remove", theirs, 1) {
		t.Fatal("not killed")
	}
	before := w.pins(t)
	w.mustAdd(t, ours, Options{Run: Run{ProceedOn: onPass}})
	w.mustRemove(t, ours.id)
	if after := w.pins(t); !slices.Equal(before, after) {
		t.Errorf("pins are %v, were %v", after, before)
	}
	elsewhere.listen(t) // lest the answers that nobody listens meet the program, too
	elsewhere.meets(t, "the program in the other namespace", theirs)
	elsewhere.mustRemove(t, theirs.id)
}

// An interface that moves to another namespace takes its dispatcher along, and keeps its index if nobody has it there.
// A process that died in a change of ours does not make the others' components fall out of it.
func TestMovedInterfaceKeepsItsComponents(t *testing.T) {
	bpftest.Root(t)
	bpftest.SkipIfNotSupported(t, Supported())
	eachStep(t, 12, func(step int) (killed bool) {
		t.Run(fmt.Sprint("step", step), func(t *testing.T) {
			w := newWorld(t)
			w.here.Veth(t, "x0", "x1")
			w.ifindex = w.here.Index(t, "x0")
			mine, other := w.program(t, "mine", pass), w.program(t, "other", pass)
			w.mustAdd(t, other, Options{Run: Run{ProceedOn: onPass}})
			killed = w.kill(t, "add", mine, step)
			destination := bpftest.NewNetNS(t)
			if err := w.here.Do(func() error { return move("x0", destination) }); err != nil {
				t.Fatal(err)
			}
			w.mustRemove(t, mine.id)

			moved := &world{Protocol: w.Protocol, bpffs: w.bpffs, here: destination, ifindex: w.ifindex}
			if got := moved.running(t); got != "other" {
				t.Errorf("components are %q, want the other", got)
			}
			moved.mustRemove(t, other.id)
			moved.nothingLeft(t)
		})
		return killed
	})
}

func move(name string, to *bpftest.NetNS) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	f, err := os.Open(to.Path())
	if err != nil {
		return err
	}
	defer f.Close()
	return netlink.LinkSetNsFd(l, int(f.Fd()))
}
