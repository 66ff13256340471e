// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/bpfvol/bpfvol/dispatcher"
	"github.com/bpfvol/bpfvol/internal/podfs"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// Health says whether a volume does what it was published for. What is wrong is mended by a Reconciler, where that is
// possible; else the volume has to be unpublished and published again, as when its pod is deleted and created.
type Health struct {
	Healthy bool `json:"healthy"`
	// Problems are what is wrong, in words that stay the same as long as it does. Empty if the volume is healthy.
	Problems []Problem `json:"problems,omitempty"`
}

// Problem is one thing that is wrong.
type Problem struct {
	Reason Reason
	Text   string
}

// MarshalText is the text alone.
func (p Problem) MarshalText() ([]byte, error) { return []byte(p.Text), nil }

// Reason is of which kind a problem is, for machines.
type Reason string

const (
	RecordUnreadable Reason = "RecordUnreadable" // nobody knows what the volume was asked to be
	Unpublished      Reason = "Unpublished"      // not yet, or not any more as a whole
	PinsGone         Reason = "PinsGone"         // somebody unmounted the bpffs: nothing runs
	NotMounted       Reason = "NotMounted"       // a target does not show the volume
	LinkSevered      Reason = "LinkSevered"      // a program was detached
	InterfaceGone    Reason = "InterfaceGone"    // or its network namespace, or what else a program was attached to
	InterfaceMoved   Reason = "InterfaceMoved"   // to another network namespace
	PointDrifted     Reason = "PointDrifted"     // an interface runs other programs than those that it should
	ForeignProgram   Reason = "ForeignProgram"   // somebody else's program took the place
	Unknown          Reason = "Unknown"          // it cannot be looked at
)

// String is "ok", or what is wrong.
func (h Health) String() string {
	if h.Healthy {
		return "ok"
	}
	var texts []string
	for _, p := range h.Problems {
		texts = append(texts, p.Text)
	}
	return strings.Join(texts, "; ")
}

// Health looks at a volume: does its target show it, or each of them for the target "", and does each of its programs run
// where it was attached? Kernel and pins are asked, not the record. ErrUnknownVolume if there is no such volume, or not there.
func (e *Engine) Health(_ context.Context, id, target string) (h Health, err error) {
	err = e.opts.Host.Do(func() (err error) {
		h, err = e.health(id, target)
		return err
	})
	return h, err
}

func (e *Engine) health(id, target string) (Health, error) {
	v, err := e.volume(volume.FileName(id))
	if err != nil {
		return Health{}, err
	}
	if target != "" && v.State != stateUnreadable {
		t := v.Target(target)
		if t == nil {
			return Health{}, fmt.Errorf("%w at this path", ErrUnknownVolume)
		}
		whole, err := t.whole()
		if err != nil {
			return Health{}, err
		}
		v.Targets, v.unmounted, v.unseen = []Target{*t}, 0, nil
		if !whole && t.State == statePublished {
			v.unmounted = 1
		}
	}
	points, unread := e.points.Status()
	return e.examine(v, points, unread), nil
}

// examine finds what is wrong with a volume, given the points that could be read and why others could not.
func (e *Engine) examine(v Volume, points []dispatcher.PointStatus, unread error) Health {
	var problems []Problem
	switch {
	case v.State == stateUnreadable:
		problems = []Problem{{RecordUnreadable, v.unread.Error()}}
	case v.State == statePublishing:
		problems = []Problem{{Unpublished, "it is being published, or a crash cut that short"}}
	case !e.pinned(v.name):
		problems = []Problem{{PinsGone, "its pins are gone"}}
	default:
		problems = e.stopped(v, points, unread)
	}
	if v.unseen != nil {
		problems = append(problems, Problem{Unknown, v.unseen.Error()})
	}
	switch {
	case v.unmounted == 0:
	case len(v.Targets) == 1:
		problems = append(problems, Problem{NotMounted, "it is not mounted at its target"})
	default:
		problems = append(problems, Problem{NotMounted, fmt.Sprintf("it is not mounted at %d of its %d targets", v.unmounted, len(v.Targets))})
	}
	return Health{Healthy: len(problems) == 0, Problems: problems}
}

// stopped says which programs of a volume do not run.
func (e *Engine) stopped(v Volume, points []dispatcher.PointStatus, unread error) (problems []Problem) {
	missing := slices.Clone(v.Programs)
	take := func(match func(podfs.Program) bool) bool {
		i := slices.IndexFunc(missing, match)
		if i >= 0 {
			missing = slices.Delete(missing, i, i+1)
		}
		return i >= 0
	}
	links, err := e.ownLinks(v.name, v.Record)
	if err != nil {
		problems = append(problems, Problem{Unknown, err.Error()})
	}
	for _, l := range links {
		take(func(p podfs.Program) bool { return p == l.program })
		if l.gone != "" {
			problems = append(problems, Problem{InterfaceGone, fmt.Sprintf("%s: program %.64q does not run: %s", l.program.Point, l.program.Name, l.gone)})
		}
	}
	// An interface may have had another name when the record was written.
	var renamed []func(podfs.Program) bool
	for _, s := range points {
		for _, m := range s.Members {
			if m.Volume != v.name {
				continue
			}
			at := func(p podfs.Program) bool { return p.Name == m.Program && p.Hook == string(s.Kind) }
			if !take(func(p podfs.Program) bool { return at(p) && p.Point == s.Point.String() }) {
				renamed = append(renamed, at)
			}
			where, wrong := e.look(s)
			if wrong == (Problem{}) && m.Way == "" {
				wrong = Problem{PointDrifted, fmt.Sprintf("program %.64q does not run: its point runs without it", m.Program)}
			}
			if wrong != (Problem{}) {
				wrong.Text = pointAt(s.Point, where) + ": " + wrong.Text
				problems = append(problems, wrong)
			}
		}
	}
	for _, at := range renamed {
		take(at)
	}
	if len(missing) > 0 && unread != nil {
		return append(problems, Problem{Unknown, unread.Error()})
	}
	for _, p := range missing {
		problems = append(problems, Problem{LinkSevered, fmt.Sprintf("%s: program %.64q does not run: nothing of it is attached there", p.Point, p.Name)})
	}
	return slices.Compact(problems) // two of its programs at one point have one problem
}
