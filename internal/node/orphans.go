// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// kubeletData is the file by which kubelet knows of a volume (volDataFileName in pkg/volume/csi/csi_plugin.go). It is
// written before the volume is published and removed after it was unpublished; kubelet unpublishes none without it.
const kubeletData = "vol_data.json"

// collect takes away the targets of pods that kubelet knows of no more, and with the last target the volume: nobody will
// ever unpublish them. The API server is not asked.
func (r *Reconciler) collect(ctx context.Context, volumes []Volume, report *Report) error {
	if r.opts.Grace == 0 || r.engine.opts.TargetRoot == "" {
		return nil
	}
	seen := map[string]bool{}
	for _, v := range volumes {
		for _, t := range v.Targets { // none, where the record cannot be read
			key := v.name + " " + t.Path
			gone, err := isForgotten(r.engine.opts.TargetRoot, t)
			if err != nil {
				return err // whatever it is, it is no proof
			}
			if !gone {
				continue
			}
			seen[key] = true
			since, known := r.absent[key]
			if !known {
				r.absent[key] = r.opts.Now()
			}
			if !known || r.opts.Now().Sub(since) < r.opts.Grace {
				continue
			}
			r.takeOrphan(ctx, v, t, report)
		}
	}
	maps.DeleteFunc(r.absent, func(key string, _ time.Time) bool { return !seen[key] })
	return nil
}

func (r *Reconciler) takeOrphan(ctx context.Context, v Volume, t Target, report *Report) {
	log := klog.FromContext(ctx).WithValues("volume", v.VolumeID, "pod", klog.KRef(t.Pod.Namespace, t.Pod.Name), "podUID", t.Pod.UID)
	what := "orphan " + v.VolumeID + " " + t.Path
	r.tried[what] = true
	was, failed := r.failed[what]
	taken, err := r.engine.takeForgotten(ctx, v.name, t.Path)
	switch {
	case err == nil && !taken: // kubelet came back to it
	case err == nil:
		report.Orphans++
		delete(r.failed, what)
		log.Info("volume of a pod that is gone taken away")
	case errors.Is(err, ErrBusy): // a call of kubelet, so it knows of the volume after all
	case !failed || was.text != err.Error():
		r.failed[what] = failure{text: err.Error()}
		log.Error(err, "volume of a pod that is gone not taken away, it will be tried again")
	}
}

// takeForgotten looks again under the volume's lock, as kubelet may have come back to the target, and takes it away.
func (e *Engine) takeForgotten(ctx context.Context, name, target string) (taken bool, err error) {
	unlock, err := e.locks.try(name)
	if err != nil {
		return false, err
	}
	defer unlock()
	rec, err := e.records.read(name)
	if errors.Is(err, ErrUnknownVolume) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	t := rec.Target(target)
	if t == nil {
		return false, nil
	}
	if gone, err := isForgotten(e.opts.TargetRoot, *t); !gone || err != nil {
		return false, err
	}
	return true, e.take(ctx, name, rec, target)
}

// isForgotten says whether kubelet does not know a target any more: the directory of its pod, or its record in the
// directory of the volume, is not there. Where pods is not the file system that it was, that proves nothing, and where the
// command line chose the target, kubelet never knew.
func isForgotten(pods string, t Target) (bool, error) {
	if !isBelow(t.Path, pods) || t.Pod.UID == "" {
		return false, nil
	}
	var root unix.Stat_t
	if err := unix.Stat(pods, &root); err != nil {
		return false, fmt.Errorf("kubelet's directory of pods: %w", err)
	}
	if root.Dev != t.Device {
		return false, errors.New("kubelet's directory of pods: is on another file system than when its volumes were published; look whether it is mounted")
	}
	rel, err := filepath.Rel(pods, t.Path)
	if err != nil {
		return false, err
	}
	pod, _, _ := strings.Cut(rel, "/")
	for _, path := range []string{filepath.Join(pods, pod), filepath.Join(filepath.Dir(t.Path), kubeletData)} {
		_, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return true, nil
		} else if err != nil {
			return false, fmt.Errorf("kubelet's directory of a pod: %w", err)
		}
	}
	return false, nil
}

// deviceOf is the file system of the directory of all pods, for Target.Device; 0 if there is none.
func deviceOf(pods string) uint64 {
	var root unix.Stat_t
	if pods == "" || unix.Stat(pods, &root) != nil {
		return 0
	}
	return root.Dev
}
