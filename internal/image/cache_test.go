// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// cached opens a store in a directory that the test can look into.
func cached(t testing.TB, reg *imagetest.Server) (*image.Store, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "oci")
	return imagetest.OpenStore(t, image.Options{Dir: dir, Registries: imagetest.Registries(t, reg.Host)}), dir
}

// Each policy, with the registry up and down, the cache warm and cold, after the tag has moved.
func TestPullPolicies(t *testing.T) {
	const (
		older = "older"
		newer = "newer"
	)
	for _, tt := range []struct {
		policy    volume.PullPolicy
		warm, up  bool
		byDigest  bool // of the older image
		want      string
		wantError error
	}{
		{policy: volume.PullAlways, up: true, want: newer},
		{policy: volume.PullAlways, wantError: image.ErrUnavailable},
		{policy: volume.PullAlways, warm: true, up: true, want: newer},
		{policy: volume.PullAlways, warm: true, wantError: image.ErrUnavailable},
		{policy: volume.PullIfNotPresent, up: true, want: newer},
		{policy: volume.PullIfNotPresent, wantError: image.ErrUnavailable},
		{policy: volume.PullIfNotPresent, warm: true, up: true, want: older},
		{policy: volume.PullIfNotPresent, warm: true, want: older},
		{policy: volume.PullNever, up: true, wantError: image.ErrNotCached},
		{policy: volume.PullNever, wantError: image.ErrNotCached},
		{policy: volume.PullNever, warm: true, up: true, want: older},
		{policy: volume.PullNever, warm: true, want: older},

		{policy: volume.PullAlways, byDigest: true, up: true, want: older},
		{policy: volume.PullAlways, byDigest: true, wantError: image.ErrUnavailable},
		{policy: volume.PullAlways, byDigest: true, warm: true, want: older},
		{policy: volume.PullIfNotPresent, byDigest: true, up: true, want: older},
		{policy: volume.PullIfNotPresent, byDigest: true, warm: true, want: older},
		{policy: volume.PullNever, byDigest: true, up: true, wantError: image.ErrNotCached},
		{policy: volume.PullNever, byDigest: true, warm: true, want: older},
	} {
		t.Run(fmt.Sprintf("%s/warm=%t/up=%t/digest=%t", tt.policy, tt.warm, tt.up, tt.byDigest), func(t *testing.T) {
			t.Parallel()
			reg := imagetest.Start(t)
			store, dir := cached(t, reg)
			ref := imagetest.Reference(t, reg.Host+"/acme/count:v1")
			names := map[digest.Digest]string{imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Pass()): older}
			if tt.warm {
				pull(t, store, ref, image.PullOptions{})
				// What is cached is found again by the next process.
				if err := store.Close(); err != nil {
					t.Fatal(err)
				}
				store = imagetest.OpenStore(t, image.Options{Dir: dir, Registries: imagetest.Registries(t, reg.Host)})
			}
			if tt.byDigest {
				for d := range names {
					ref.Digest = d
				}
			}
			names[imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count())] = newer
			if !tt.up {
				reg.Intercept(imagetest.Drop(""))
			}
			root, err := resolve(t, store, ref, image.PullOptions{Policy: tt.policy})
			if tt.wantError != nil {
				wantError(t, err, tt.wantError, "")
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := names[root.Digest]; got != tt.want {
				t.Errorf("got the %s image, want the %s", got, tt.want)
			}
			o, err := root.Object(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if want := map[string][]byte{older: bpf.Pass(), newer: bpf.Count()}[tt.want]; !bytes.Equal(o.ELF, want) {
				t.Error("the object is another one")
			}
		})
	}
}

func blobs(t testing.TB, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "blobs", "sha256", "*"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no blobs in %s: %v", dir, err)
	}
	return paths
}

func spoil(t testing.TB, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > 0 {
		b[len(b)/2] ^= 1
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	write(t, path, string(b))
}

// A byte that changes in the cache, in any blob, is noticed on the next read. With the registry the blob is replaced;
// without it the error says what happened, again and again.
func TestCacheIsRepaired(t *testing.T) {
	for name, damage := range map[string]func(testing.TB, string){
		"flipped": spoil,
		"empty":   func(t testing.TB, path string) { os.Remove(path); write(t, path, "") },
		"gone":    func(_ testing.TB, path string) { os.Remove(path) },
		"longer":  func(t testing.TB, path string) { os.Remove(path); write(t, path, strings.Repeat("x", 1<<20)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reg := imagetest.Start(t)
			store, dir := cached(t, reg)
			imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count(), imagetest.BPFManIndex)
			ref := imagetest.Reference(t, reg.Host+"/acme/count:v1")
			pull(t, store, ref, image.PullOptions{})
			all := blobs(t, dir)
			if len(all) != 4 {
				t.Fatalf("%d blobs, want index, manifest, config, layer", len(all))
			}
			online, offline := image.ErrDigestMismatch, image.ErrDigestMismatch
			if name == "gone" {
				online, offline = image.ErrUnavailable, image.ErrNotCached
			}
			for _, path := range all {
				damage(t, path)
				reg.Intercept(imagetest.Drop(""))
				for range 2 {
					wantError(t, open(t, store, ref), online, "")
					root, err := resolve(t, store, ref, image.PullOptions{Policy: volume.PullNever})
					if err == nil {
						_, err = root.Object(t.Context())
					}
					wantError(t, err, offline, "")
				}
				reg.Intercept(nil)
				reg.Requests()
				pull(t, store, ref, image.PullOptions{})
				if got := reg.Requests(); len(got) != 1 {
					t.Errorf("repairing one blob took %q", got)
				}
				pull(t, store, ref, image.PullOptions{Policy: volume.PullNever})
			}
		})
	}
}

// A policy may trust all that one repository serves. So what the cache has from another repository is not served
// under its name, not even by digest.
func TestCacheKeepsRepositoriesApart(t *testing.T) {
	reg := imagetest.Start(t)
	store := imagetest.Store(t, reg.Host)
	d := imagetest.PushImage(t, reg.Host, "evil/count", "v1", bpf.Count())
	pull(t, store, imagetest.Reference(t, reg.Host+"/evil/count:v1"), image.PullOptions{})
	for _, policy := range []volume.PullPolicy{volume.PullAlways, volume.PullIfNotPresent, volume.PullNever} {
		for _, ref := range []string{"/acme/count:v1", "/acme/count@" + d.String()} {
			_, err := resolve(t, store, imagetest.Reference(t, reg.Host+ref), image.PullOptions{Policy: policy})
			if !errors.Is(err, image.ErrNotFound) && !errors.Is(err, image.ErrNotCached) {
				t.Errorf("%s of %s: %v", policy, ref, err)
			}
		}
	}
}

// A document that could be taken for two things is refused, also where it is reached by digest.
func TestConfusedDocuments(t *testing.T) {
	reg := imagetest.Start(t)
	store := imagetest.Store(t, reg.Host)
	r := imagetest.In(reg.Host, "acme/bad")
	for _, tt := range []struct {
		mediaType, body string
		want            error
	}{
		{ocispec.MediaTypeImageManifest, `{"manifests":[],"layers":[]}`, image.ErrAmbiguous},
		{ocispec.MediaTypeImageManifest, `{"manifests":[],"config":{}}`, image.ErrAmbiguous},
		{ocispec.MediaTypeImageManifest, `{"Manifests":[],"LAYERS":[]}`, image.ErrAmbiguous},
		{ocispec.MediaTypeImageManifest, `{"mediaType":"` + ocispec.MediaTypeImageIndex + `","layers":[]}`, image.ErrAmbiguous},
		{ocispec.MediaTypeImageManifest, `{"manifests":[]}`, image.ErrUnsupported},
		{ocispec.MediaTypeImageManifest, `[]`, image.ErrUnsupported},
		{ocispec.MediaTypeImageManifest, `{`, image.ErrUnsupported},
		{ocispec.MediaTypeImageManifest, ``, image.ErrUnsupported},
		{ocispec.MediaTypeImageManifest, `null`, image.ErrNoObject},
		{"application/vnd.docker.distribution.manifest.v1+prettyjws", `{"schemaVersion":1}`, image.ErrUnsupported},
		{"text/html", `<html>`, image.ErrUnsupported},
	} {
		d := r.PutRaw(t, "", tt.mediaType, []byte(tt.body))
		wantError(t, open(t, store, imagetest.Reference(t, reg.Host+"/acme/bad@"+d.Digest.String())), tt.want, "")
	}
}

func TestCacheIsPrivate(t *testing.T) {
	reg := imagetest.Start(t)
	_, dir := cached(t, reg)
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o700 {
		t.Errorf("cache has mode %o", info.Mode().Perm())
	}
}

// A full disk is an error that a caller can tell, and nothing half-written stays.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("mount tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	reg := imagetest.Start(t)
	imagetest.PushImage(t, reg.Host, "acme/count", "v1", append(bpf.Count(), make([]byte, 1<<20)...))
	store := imagetest.OpenStore(t, image.Options{Dir: filepath.Join(dir, "oci"), Registries: imagetest.Registries(t, reg.Host)})
	err := open(t, store, imagetest.Reference(t, reg.Host+"/acme/count:v1"))
	wantError(t, err, syscall.ENOSPC, "image cache: no space left")
	if left, _ := filepath.Glob(filepath.Join(dir, "oci", "ingest", "*")); len(left) > 0 {
		t.Errorf("half-written blobs stay: %q", left)
	}
}

// Somebody removed the whole cache under a process that uses it. It makes a new one, which others use as well.
func TestCacheThatWasRemovedIsMadeAnew(t *testing.T) {
	reg := imagetest.Start(t)
	store, dir := cached(t, reg)
	imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count())
	ref := imagetest.Reference(t, reg.Host+"/acme/count:v1")
	for range 2 {
		pull(t, store, ref, image.PullOptions{})
		if err := os.RemoveAll(filepath.Dir(dir)); err != nil {
			t.Fatal(err)
		}
	}
	pull(t, store, ref, image.PullOptions{})
	other := imagetest.OpenStore(t, image.Options{Dir: dir, Registries: imagetest.Registries(t, reg.Host)})
	pull(t, other, ref, image.PullOptions{Policy: volume.PullNever})
}

const killed = "BPFVOL_TEST_KILLED" // directory, host

// A process that pulls is killed at any moment; the next one opens the cache, finds nothing half-written and pulls.
func TestKillDuringPull(t *testing.T) {
	if v := os.Getenv(killed); v != "" {
		dir, host, _ := strings.Cut(v, ",")
		for i := 0; ; i++ {
			s, err := image.Open(image.Options{Dir: dir, Registries: imagetest.Registries(t, host)})
			if err != nil {
				t.Fatal(err)
			}
			pull(t, s, imagetest.Reference(t, fmt.Sprintf("%s/acme/count:v%d", host, i%4)), image.PullOptions{Policy: volume.PullAlways})
			os.RemoveAll(filepath.Join(dir, "blobs"))
			s.Close()
		}
	}
	reg := imagetest.Start(t)
	for i := range 4 {
		imagetest.PushImage(t, reg.Host, "acme/count", fmt.Sprintf("v%d", i), append(bpf.Count(), make([]byte, 1<<20+i)...))
	}
	dir := filepath.Join(t.TempDir(), "oci")
	for i := range 8 {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestKillDuringPull$", "-test.timeout=30s")
		cmd.Env = append(os.Environ(), killed+"="+dir+","+reg.Host, "TMPDIR="+t.TempDir()) // who is killed cleans up nothing
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(60+17*i) * time.Millisecond)
		cmd.Process.Signal(syscall.SIGKILL)
		cmd.Wait()
		s, err := image.Open(image.Options{Dir: dir, Registries: imagetest.Registries(t, reg.Host)})
		if err != nil {
			t.Fatal(err)
		}
		pull(t, s, imagetest.Reference(t, reg.Host+"/acme/count:v0"), image.PullOptions{})
		if left, _ := filepath.Glob(filepath.Join(dir, "ingest", "*")); len(left) > 0 {
			t.Errorf("half-written blobs stay: %q", left)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "*.tmp*")); len(left) > 0 {
			t.Errorf("half-written files stay: %q", left)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Two processes share a cache: what one records, the other sees, and neither loses the other's entries.
func TestTwoStoresShareACache(t *testing.T) {
	reg := imagetest.Start(t)
	one, dir := cached(t, reg)
	two := imagetest.OpenStore(t, image.Options{Dir: dir, Registries: imagetest.Registries(t, reg.Host)})
	done := make(chan error)
	for i, s := range []*image.Store{one, two} {
		go func() {
			for n := range 20 {
				ref := imagetest.Reference(t, fmt.Sprintf("registry.test/acme/s%d:v%d", i, n))
				if _, err := s.Build(t.Context(), ref, []image.BuildInput{{Name: "x.o", Arch: "amd64", ELF: append(bpf.Pass(), byte(i), byte(n))}}, image.BuildOptions{}); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	for i := range 2 {
		for n := range 20 {
			ref := imagetest.Reference(t, fmt.Sprintf("registry.test/acme/s%d:v%d", i, n))
			if _, err := resolve(t, one, ref, image.PullOptions{Policy: volume.PullNever}); err != nil {
				t.Error(err)
			}
		}
	}
}
