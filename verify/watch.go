// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
	"k8s.io/klog/v2"
)

const (
	// settle waits for a writer to finish: an editor truncates before it writes, and half a policy may be a valid
	// one that says something else. It is put off by every event, but not beyond settleMax: changes are promised to
	// be in force within 1 s.
	settle    = 100 * time.Millisecond
	settleMax = 500 * time.Millisecond
	// retry is how often a directory that is gone is looked for.
	retry = 250 * time.Millisecond
)

// Run keeps the policies up to date until ctx ends or Close is called. It logs what changes, and each mistake once.
func (d *Dir) Run(ctx context.Context) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		klog.FromContext(ctx).Error(err, "policy directory cannot be watched, so it is read four times a second; raise fs.inotify.max_user_instances", "dir", d.path)
		d.poll(ctx)
		return nil
	}
	defer w.Close()
	// The parent tells of a directory that is renamed into place, or a symlink to one that is swapped.
	parent := filepath.Dir(d.path)
	watching := func() bool { return w.Add(parent) == nil && w.Add(d.path) == nil }

	report := reporter{log: klog.FromContext(ctx), dir: d.path}
	report.state(d.Policies(), d.fileErr())

	// The first reload follows the first watch, so no change since OpenDir is missed.
	timer := time.NewTimer(0)
	defer timer.Stop()
	var first time.Time // of the events that wait to settle
	ok := watching()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.done:
			return nil
		case e := <-w.Events:
			if filepath.Dir(e.Name) != d.path && filepath.Clean(e.Name) != d.path {
				continue // a neighbour in the parent
			}
			if filepath.Clean(e.Name) == d.path && !e.Has(fsnotify.Chmod) {
				ok = false // another directory may be behind the name now
				_ = w.Remove(d.path)
			}
			if first.IsZero() {
				first = time.Now()
			}
			timer.Reset(min(settle, time.Until(first.Add(settleMax))))
		case <-w.Errors: // events were lost
			timer.Reset(settle)
		case <-timer.C:
			first = time.Time{}
			if !ok {
				ok = watching()
			}
			err := d.reload()
			report.state(d.Policies(), d.fileErr())
			if !ok || err != nil {
				timer.Reset(retry)
			}
		}
	}
}

// poll is Run for a node whose inotify instances are used up: what a policy no longer allows must not go on because of that.
func (d *Dir) poll(ctx context.Context) {
	report := reporter{log: klog.FromContext(ctx), dir: d.path}
	every := time.NewTicker(retry)
	defer every.Stop()
	for {
		_ = d.reload() // Err has it
		report.state(d.Policies(), d.fileErr())
		select {
		case <-ctx.Done():
			return
		case <-d.done:
			return
		case <-every.C:
		}
	}
}

// reporter logs changes of state, not states.
type reporter struct {
	log      klog.Logger
	dir      string
	policies []*Policy       // nil: nothing was logged yet
	mistakes map[string]bool // logged and still there
}

func (r *reporter) state(policies []*Policy, err error) {
	if r.policies == nil || !slices.Equal(policies, r.policies) {
		r.log.Info("policies in force", "dir", r.dir, "policies", names(policies))
	}
	r.policies = append([]*Policy{}, policies...)
	mistakes := map[string]bool{}
	for _, err := range parts(err) {
		mistakes[err.Error()] = true
		if !r.mistakes[err.Error()] {
			r.log.Error(err, "policy refused, the last good version stays in force")
		}
	}
	r.mistakes = mistakes
}

// parts takes apart what errors.Join made of Dir.Err.
func parts(err error) []error {
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		return joined.Unwrap()
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

func names(policies []*Policy) []string {
	out := make([]string, len(policies))
	for i, p := range policies {
		out[i] = p.Name
	}
	return out
}
