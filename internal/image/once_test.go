// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// gate holds requests for a part of the registry until it is opened.
func gate(part string) (hook imagetest.Hook, arrived <-chan struct{}, open func()) {
	first, gate := make(chan struct{}), make(chan struct{})
	var once sync.Once
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, part) {
			once.Do(func() { close(first) })
			<-gate
		}
		next.ServeHTTP(w, r)
	}, first, sync.OnceFunc(func() { close(gate) })
}

func TestOnePullForAll(t *testing.T) {
	reg := imagetest.Start(t)
	store := imagetest.Store(t, reg.Host)
	imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count())
	ref := imagetest.Reference(t, reg.Host+"/acme/count:v1")
	reg.Requests()
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			root, err := store.Resolve(t.Context(), ref, image.PullOptions{})
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := root.Signatures(t.Context(), false); err != nil {
				t.Error(err)
			}
			if _, err := root.Object(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	got := reg.Requests()
	slices.Sort(got)
	if unique := slices.Compact(slices.Clone(got)); len(unique) != len(got) || len(got) != 5 {
		t.Errorf("requests are %q", got)
	}
}

// One who gives up neither stops the pull nor fails the others.
func TestWaiterGivesUp(t *testing.T) {
	reg := imagetest.Start(t)
	store := imagetest.Store(t, reg.Host)
	imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count())
	hook, arrived, open := gate("/blobs/")
	defer open()
	reg.Intercept(hook)
	root, err := resolve(t, store, imagetest.Reference(t, reg.Host+"/acme/count:v1"), image.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}

	canceled, cancel := context.WithCancel(t.Context())
	expired, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	results := make([]error, 3)
	var wg sync.WaitGroup
	for i, ctx := range []context.Context{canceled, expired, t.Context()} {
		wg.Go(func() { _, results[i] = root.Object(ctx) })
	}
	<-arrived
	cancel()
	<-expired.Done()
	time.Sleep(10 * time.Millisecond)
	open()
	wg.Wait()
	if !errors.Is(results[0], context.Canceled) {
		t.Errorf("who canceled got %v", results[0])
	}
	wantError(t, results[1], image.ErrPulling, "try again")
	if results[2] != nil {
		t.Errorf("who waited got %v", results[2])
	}
}

// A pull that nobody waits for any more still fills the cache.
func TestPullGoesOnAlone(t *testing.T) {
	reg := imagetest.Start(t)
	store := imagetest.Store(t, reg.Host)
	imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count())
	ref := imagetest.Reference(t, reg.Host+"/acme/count:v1")
	root, err := resolve(t, store, ref, image.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	hook, _, open := gate("/manifests/")
	defer open()
	reg.Intercept(hook)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = root.Object(ctx)
	wantError(t, err, image.ErrPulling, "")
	open()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		never, err := resolve(t, store, ref, image.PullOptions{Policy: volume.PullNever})
		if err != nil {
			t.Fatal(err)
		}
		if _, err = never.Object(t.Context()); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the cache stays empty: %v", err)
		}
	}
}

// Credentials that may not pull do not share the pull of those that may.
func TestPullsAreNotSharedBetweenCredentials(t *testing.T) {
	reg := imagetest.Start(t)
	store := imagetest.Store(t, reg.Host)
	imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count())
	ref := imagetest.Reference(t, reg.Host+"/acme/count:v1")
	auth := imagetest.BasicAuth("good", "secret")
	hold, arrived, open := gate("/manifests/v1")
	defer open()
	reg.Intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if _, _, ok := r.BasicAuth(); !ok {
			auth(w, r, next)
			return
		}
		auth(w, r, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { hold(w, r, next) }))
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := store.Resolve(t.Context(), ref, image.PullOptions{Keyring: keyring{reg.Host: {{Username: "good", Password: "secret"}}}}); err != nil {
			t.Error(err)
		}
	})
	<-arrived
	_, err := resolve(t, store, ref, image.PullOptions{})
	wantError(t, err, image.ErrUnauthenticated, "")
	open()
	wg.Wait()
}

func TestCloseEndsPulls(t *testing.T) {
	reg := imagetest.Start(t)
	imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count())
	before := descriptors(t)
	store, err := image.Open(image.Options{Dir: t.TempDir(), Registries: imagetest.Registries(t, reg.Host)})
	if err != nil {
		t.Fatal(err)
	}
	reg.Intercept(imagetest.Hang("/manifests/"))
	failed := make(chan error)
	go func() {
		_, err := store.Resolve(context.Background(), imagetest.Reference(t, reg.Host+"/acme/count:v1"), image.PullOptions{})
		failed <- err
	}()
	for len(reg.Requests()) == 0 {
		time.Sleep(time.Millisecond)
	}
	if err := store.Close(); err != nil {
		t.Error(err)
	}
	if err := <-failed; err == nil {
		t.Error("the pull succeeded")
	}
	if _, err := resolve(t, store, imagetest.Reference(t, reg.Host+"/acme/count:v1"), image.PullOptions{}); err == nil {
		t.Error("a closed store resolves")
	}
	for deadline := time.Now().Add(3 * time.Second); descriptors(t) > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d file descriptors, before %d", descriptors(t), before)
		}
	}
}

// descriptors counts what this process has open and the store could: files and sockets that are not of the registry.
func descriptors(t testing.TB) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}
