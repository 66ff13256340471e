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

// Health says whether a volume does what it was published for. What is wrong does not mend itself: the volume has to be
// unpublished and published again, as when its pod is deleted and created.
type Health struct {
	Healthy bool `json:"healthy"`
	// Problems are what is wrong, in words that stay the same as long as it does. Empty if the volume is healthy.
	Problems []string `json:"problems,omitempty"`
}

// String is "ok", or what is wrong.
func (h Health) String() string {
	if h.Healthy {
		return "ok"
	}
	return strings.Join(h.Problems, "; ")
}

// Health looks at a volume: do its targets show it, and does each of its programs run where it was attached? Kernel and
// pins are asked, not the record. ErrUnknownVolume if there is no such volume.
func (e *Engine) Health(_ context.Context, id string) (Health, error) {
	v, err := e.volume(volume.FileName(id))
	if err != nil {
		return Health{}, err
	}
	points, unread := e.points.Status()
	return e.examine(v, points, unread), nil
}

// examine finds what is wrong with a volume, given the points that could be read and why others could not.
func (e *Engine) examine(v Volume, points []dispatcher.PointStatus, unread error) Health {
	var problems []string
	switch {
	case v.State == stateUnreadable:
		problems = []string{"its record cannot be read"}
	case v.State == statePublishing:
		problems = []string{"it is being published, or a crash cut that short"}
	case !e.pinned(v.name):
		problems = []string{"its pins are gone"}
	default:
		problems = e.stopped(v, points, unread)
	}
	switch {
	case v.unmounted == 0:
	case len(v.Targets) == 1:
		problems = append(problems, "it is not mounted at its target")
	default:
		problems = append(problems, fmt.Sprintf("it is not mounted at %d of its %d targets", v.unmounted, len(v.Targets)))
	}
	return Health{Healthy: len(problems) == 0, Problems: problems}
}

// stopped says which programs of a volume do not run.
func (e *Engine) stopped(v Volume, points []dispatcher.PointStatus, unread error) (problems []string) {
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
		problems = append(problems, err.Error())
	}
	for _, l := range links {
		take(func(p podfs.Program) bool { return p == l.program })
		if l.gone != "" {
			problems = append(problems, fmt.Sprintf("%s: program %.64q does not run: %s", l.program.Point, l.program.Name, l.gone))
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
			if wrong == "" && m.Way == "" {
				wrong = fmt.Sprintf("program %.64q does not run: its point runs without it", m.Program)
			}
			if wrong != "" {
				problems = append(problems, pointAt(s.Point, where)+": "+wrong)
			}
		}
	}
	for _, at := range renamed {
		take(at)
	}
	if len(missing) > 0 && unread != nil {
		return append(problems, unread.Error())
	}
	for _, p := range missing {
		problems = append(problems, fmt.Sprintf("%s: program %.64q does not run: nothing of it is attached there", p.Point, p.Name))
	}
	return slices.Compact(problems) // two of its programs at one point have one problem
}
