// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/bpfvol/bpfvol/e2e/nodetest"
	"github.com/bpfvol/bpfvol/internal/image"
)

// crowd is n volumes of one image.
func crowd(r repository, n int) []*nodetest.Volume {
	volumes := make([]*nodetest.Volume, n)
	for i := range volumes {
		volumes[i] = r.volume(":v1", nil)
	}
	return volumes
}

// together calls f for each volume at once.
func together(volumes []*nodetest.Volume, f func(i int, v *nodetest.Volume) error) []error {
	errs := make([]error, len(volumes))
	var wg sync.WaitGroup
	for i, v := range volumes {
		wg.Go(func() { errs[i] = f(i, v) })
	}
	wg.Wait()
	return errs
}

// tearDown takes all volumes away at once.
func tearDown(t *testing.T, volumes []*nodetest.Volume) {
	t.Helper()
	for i, err := range together(volumes, func(_ int, v *nodetest.Volume) error { return v.TearDown(t.Context()) }) {
		if err != nil {
			t.Errorf("volume %d: %v", i, err)
		}
	}
}

// wantNothingAskedTwice looks at the requests since the last look.
func (n *node) wantNothingAskedTwice(t *testing.T) {
	t.Helper()
	asked := n.Requests()
	if unique := slices.Compact(slices.Sorted(slices.Values(asked))); len(asked) != len(unique) {
		t.Errorf("the registry got %d requests, of which %d are different:\n%s", len(asked), len(unique), strings.Join(asked, "\n"))
	}
}

// Fifty pods that come at once, on a node that does not know the image, are one pull: no document is asked for twice.
func fiftyAtOnce(t *testing.T, n *node) {
	r := n.repository(release + "/fifty")
	d := pushParts(image.FormatTag)(t, r)
	r.sign(t, releaseKey(), d, image.FormatBundle)
	before := n.snapshot(t)
	volumes := crowd(r, 50)
	n.Requests()
	for i, err := range together(volumes, func(_ int, v *nodetest.Volume) error { return v.SetUp(t.Context()) }) {
		if err != nil {
			t.Errorf("volume %d: %v", i, err)
		}
	}
	n.wantNothingAskedTwice(t)
	for i, v := range volumes {
		if t.Failed() {
			break
		}
		if i%10 == 0 {
			n.wantRuns(t, v, d)
		}
	}
	tearDown(t, volumes)
	n.wantNothing(t, before)
}

// A pod that goes while its image is pulled takes the image from nobody else.
func oneOfManyGivesUp(t *testing.T, n *node) {
	r := n.repository(release + "/givesup")
	d := pushParts(image.FormatTag)(t, r)
	before := n.snapshot(t)
	volumes := crowd(r, 10)
	asked, release := make(chan struct{}, 100), make(chan struct{})
	n.InterceptFor(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		asked <- struct{}{}
		<-release
		next.ServeHTTP(w, r)
	})
	n.Requests()
	quitter, quit := context.WithCancel(t.Context())
	errs := together(volumes, func(i int, v *nodetest.Volume) error {
		if i > 0 {
			return v.SetUp(t.Context())
		}
		go func() {
			<-asked
			quit()
		}()
		err := v.SetUp(quitter)
		close(release)
		return err
	})
	for i, err := range errs {
		if (err == nil) != (i > 0) {
			t.Errorf("volume %d: %v", i, err)
		}
	}
	n.wantNothingAskedTwice(t)
	n.wantRuns(t, volumes[1], d)
	tearDown(t, volumes)
	n.wantNothing(t, before)
}

// A daemon that is killed while it pulls leaves a cache that opens, and nothing half-written.
func killedWhilePulling(t *testing.T, n *node) {
	r := n.repository(release + "/killed")
	d := pushParts(image.FormatTag)(t, r)
	before := n.snapshot(t)
	volumes := crowd(r, 10)
	asked := make(chan struct{}, 1000)
	n.Intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Length", "1000")
		w.Write(make([]byte, 500))
		w.(http.Flusher).Flush()
		asked <- struct{}{}
		<-r.Context().Done()
	})
	ended := make(chan []error)
	go func() {
		ended <- together(volumes, func(_ int, v *nodetest.Volume) error { return v.SetUp(t.Context()) })
	}()
	<-asked
	n.StopDaemon(t, syscall.SIGKILL)
	for i, err := range <-ended {
		if err == nil {
			t.Errorf("volume %d was published by a daemon that was killed", i)
		}
	}
	n.Intercept(nil)
	n.StartDaemon(t)
	n.wantNothing(t, before)
	if half, err := filepath.Glob(filepath.Join(n.CacheDir(), "oci", "ingest", "*")); err != nil || len(half) > 0 {
		t.Errorf("half-written blobs: %v, %v", half, err)
	}
	for _, v := range volumes {
		n.wantRuns(t, v, d)
		if err := v.TearDown(t.Context()); err != nil {
			t.Error(err)
		}
	}
	n.wantNothing(t, before)
}
