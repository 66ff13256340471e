// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/bpfvol/bpfvol/dispatcher"
)

// ReconcileOptions configures a Reconciler.
type ReconcileOptions struct {
	// Repair brings back what others took away. Without it, that is only told.
	Repair bool
	// Grace is how long a pod must have been gone before its volumes are taken away; zero: they are not.
	Grace time.Duration
	// Now is the time; nil: time.Now.
	Now func() time.Time
}

// Reconciler looks from time to time whether what runs is what was published: programs that others detached, pins that they
// removed, volumes of pods that are gone. It tells every state once, when it begins, and again when it is over. One that
// cannot be mended is tried again after longer and longer pauses.
//
// It takes the lock of a volume only to change it, and leaves one that is locked to whoever holds it. Between two passes
// it holds nothing open.
type Reconciler struct {
	engine *Engine
	opts   ReconcileOptions

	failed map[string]failure   // repairs, by what
	tried  map[string]bool      // in this pass: keys of failed that are still about something
	told   map[string]string    // what is wrong, by volume
	absent map[string]time.Time // since when a target's pod is gone
	// troubled is why the last pass could not look at everything.
	troubled string

	mu   sync.Mutex
	last Report
}

// Report is what passes found and did.
type Report struct {
	// Of the last pass.
	Unhealthy  int // volumes of which something does not run, or is not shown
	Unreadable int // records that cannot be read, those of newer versions among them
	Foreign    int // points where a program of somebody else took the place
	Took       time.Duration
	// Since the start.
	Repairs, Failures, Orphans int
}

// failure is a repair that did not work.
type failure struct {
	next  time.Time
	pause time.Duration
	text  string
}

const (
	firstPause = time.Minute
	maxPause   = 10 * time.Minute
)

// NewReconciler makes a Reconciler. Call Recover before its first pass.
func NewReconciler(e *Engine, o ReconcileOptions) *Reconciler {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Reconciler{engine: e, opts: o, failed: map[string]failure{}, told: map[string]string{}, absent: map[string]time.Time{}}
}

// Run makes a pass at once and then one each interval, until ctx ends.
func (r *Reconciler) Run(ctx context.Context, interval time.Duration) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		err := r.Pass(ctx)
		switch text := fmt.Sprint(err); {
		case ctx.Err() != nil:
		case err != nil && r.troubled != text:
			klog.FromContext(ctx).Error(err, "volumes not looked after, they will be looked at again")
			r.troubled = text
		case err == nil && r.troubled != "":
			klog.FromContext(ctx).Info("volumes are looked after again")
			r.troubled = ""
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// Last is what the passes so far found and did.
func (r *Reconciler) Last() Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

// Pass looks at every volume and point once. Passes must not run at once.
func (r *Reconciler) Pass(ctx context.Context) error {
	start := time.Now()
	report := r.Last()
	report.Unhealthy, report.Unreadable, report.Foreign = 0, 0, 0
	err := r.engine.opts.Host.Do(func() error { return r.pass(ctx, &report) })
	report.Took = time.Since(start)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = report
	return err
}

func (r *Reconciler) pass(ctx context.Context, report *Report) error {
	r.tried = map[string]bool{}
	volumes, err := r.engine.volumes()
	if err != nil {
		return err
	}
	orphans := report.Orphans
	uncollected := r.collect(ctx, volumes, report)
	if report.Orphans > orphans {
		if volumes, err = r.engine.volumes(); err != nil {
			return errors.Join(uncollected, err)
		}
	}
	if r.opts.Repair {
		if err := r.repairPoints(ctx, report); err != nil {
			return errors.Join(uncollected, err)
		}
	}
	points, unread := r.engine.points.Status()
	if r.opts.Repair && r.repairVolumes(ctx, volumes, points, report) {
		points, unread = r.engine.points.Status()
	}
	for _, p := range points {
		if p.Foreign.ID != 0 {
			report.Foreign++
		}
	}
	r.examine(ctx, volumes, points, unread, report)
	maps.DeleteFunc(r.failed, func(what string, _ failure) bool { return !r.tried[what] })
	return errors.Join(uncollected, unread)
}

// examine tells which volumes are not well.
func (r *Reconciler) examine(ctx context.Context, volumes []Volume, points []dispatcher.PointStatus, unread error, report *Report) {
	var names []string
	for _, v := range volumes {
		names = append(names, v.name)
		if v.State == statePublishing {
			continue // a call works on it, or will
		}
		if v.State == stateUnreadable {
			report.Unreadable++
		}
		health := r.engine.examine(v, points, unread)
		text := ""
		if !health.Healthy {
			report.Unhealthy++
			text = health.String()
		}
		r.tell(ctx, v, text)
	}
	maps.DeleteFunc(r.told, func(name, _ string) bool { return !slices.Contains(names, name) }) // unpublished
}

// tell logs what is wrong with a volume when that changes.
func (r *Reconciler) tell(ctx context.Context, v Volume, text string) {
	if r.told[v.name] == text {
		return
	}
	var pods []string
	for _, p := range v.pods() {
		pods = append(pods, klog.KRef(p.Namespace, p.Name).String())
	}
	log := klog.FromContext(ctx).WithValues("volume", v.VolumeID, "pods", pods)
	if text == "" {
		delete(r.told, v.name)
		log.Info("volume is healthy again")
		return
	}
	r.told[v.name] = text
	log.Error(nil, "volume is not healthy", "problem", text)
}

// repairPoints repairs what is shared at interfaces.
func (r *Reconciler) repairPoints(ctx context.Context, report *Report) error {
	points, err := r.engine.points.Points()
	if err != nil {
		return fmt.Errorf("points: %w", err)
	}
	for _, p := range points {
		r.try(ctx, fmt.Sprintf("%s in network namespace %d", p, p.NetNS), report, func() ([]string, error) { return r.engine.points.Repair(ctx, p) })
	}
	return nil
}

// repairVolumes repairs what is each volume's own, and says whether it did anything.
func (r *Reconciler) repairVolumes(ctx context.Context, volumes []Volume, points []dispatcher.PointStatus, report *Report) (changed bool) {
	for _, v := range volumes {
		// What is shown nowhere is about to go: whoever takes it away may have been interrupted.
		if v.State != statePublished || v.unmounted == len(v.Targets) || !r.engine.pinned(v.name) || r.engine.isSound(v, points) {
			delete(r.failed, v.name)
			continue
		}
		changed = true
		r.try(ctx, v.name, report, func() ([]string, error) { return r.engine.repairLocked(ctx, v.name) })
	}
	return changed
}

// repairLocked looks again under the lock, since calls go on beside the look, and repairs.
func (e *Engine) repairLocked(ctx context.Context, name string) (did []string, err error) {
	unlock, err := e.locks.try(name)
	if errors.Is(err, ErrBusy) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	defer unlock()
	v, err := e.volume(name)
	if errors.Is(err, ErrUnknownVolume) || err == nil && v.State != statePublished {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	points, err := e.points.Status()
	if err != nil {
		klog.FromContext(ctx).V(4).Info("points not read", "reason", err.Error())
	}
	return e.repairVolume(ctx, v, points)
}

// try repairs, unless it is too early after a failure, and logs what came of it: a failure once, as long as it is the same.
func (r *Reconciler) try(ctx context.Context, what string, report *Report, repair func() (did []string, err error)) {
	r.tried[what] = true
	was, failed := r.failed[what]
	if failed && r.opts.Now().Before(was.next) {
		return
	}
	did, err := repair()
	log := klog.FromContext(ctx).WithValues("where", what)
	for _, d := range did {
		report.Repairs++
		log.Info("repaired", "what", d)
	}
	if err == nil {
		delete(r.failed, what)
		return
	}
	report.Failures++
	pause := firstPause
	if failed {
		pause = min(2*was.pause, maxPause)
	}
	if err.Error() != was.text {
		log.Error(err, "not repaired, it will be tried again")
	}
	r.failed[what] = failure{next: r.opts.Now().Add(pause), pause: pause, text: err.Error()}
}
