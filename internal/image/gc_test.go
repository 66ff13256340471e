// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// padded is an object that no other image has, larger by so many bytes.
func padded(i, size int) []byte { return append(append(bpf.Count(), byte(i)), make([]byte, size)...) }

// agedSize is a little more than one of them takes.
const agedSize = 80 << 10

// aged pulls images acme/count:v0, v1, ... of more than 64 KiB, the first longest unused, all of them long ago.
func aged(t testing.TB, n int) (reg *imagetest.Server, store *image.Store, dir string, digests []digest.Digest) {
	t.Helper()
	reg = imagetest.Start(t)
	store, dir = cached(t, reg)
	for i := range n {
		tag := fmt.Sprintf("v%d", i)
		d := imagetest.PushImage(t, reg.Host, "acme/count", tag, padded(i, 64<<10))
		pull(t, store, imagetest.Reference(t, reg.Host+"/acme/count:"+tag), image.PullOptions{})
		age(t, dir, d, time.Duration(100-i)*time.Hour)
		digests = append(digests, d)
	}
	return reg, store, dir, digests
}

func age(t testing.TB, dir string, d digest.Digest, by time.Duration) {
	t.Helper()
	then := time.Now().Add(-by)
	if err := os.Chtimes(filepath.Join(dir, "blobs", "sha256", d.Encoded()), then, then); err != nil {
		t.Fatal(err)
	}
}

// has lists the tags that are found without a registry, their objects read to the end.
func has(t testing.TB, s *image.Store, reg *imagetest.Server, n int) []string {
	t.Helper()
	var out []string
	for i := range n {
		tag := fmt.Sprintf("v%d", i)
		root, err := resolve(t, s, imagetest.Reference(t, reg.Host+"/acme/count:"+tag), image.PullOptions{Policy: volume.PullNever})
		if errors.Is(err, image.ErrNotCached) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := root.Object(t.Context()); err != nil {
			t.Errorf("%s: %v", tag, err)
		}
		out = append(out, tag)
	}
	return out
}

func prune(t testing.TB, s *image.Store, opts image.PruneOptions) image.Pruned {
	t.Helper()
	p, err := s.Prune(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// The longest unused images go first, whole, and no more of them than need be. What volumes were made from stays.
func TestPruneRemovesTheLongestUnused(t *testing.T) {
	reg, store, dir, digests := aged(t, 6)
	age(t, dir, digests[4], 200*time.Hour)
	p := prune(t, store, image.PruneOptions{Size: 4 * agedSize, Keep: digests[:1]})
	var gone []string
	for _, i := range p.Images {
		gone = append(gone, i.Tags...)
	}
	if want := []string{"v4", "v1"}; !slices.Equal(gone, want) {
		t.Errorf("removed %q, want %q", gone, want)
	}
	if p.Freed < 2*64<<10 || p.Size > 4*agedSize {
		t.Errorf("freed %d, %d are left", p.Freed, p.Size)
	}
	if got, want := has(t, store, reg, 6), []string{"v0", "v2", "v3", "v5"}; !slices.Equal(got, want) {
		t.Errorf("there are %q, want %q", got, want)
	}
	var onDisk int64
	for _, path := range blobs(t, dir) {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		onDisk += info.Size()
	}
	if onDisk != p.Size {
		t.Errorf("%d bytes on disk, said are %d", onDisk, p.Size)
	}
	// What went can be had again.
	pull(t, store, imagetest.Reference(t, reg.Host+"/acme/count:v1"), image.PullOptions{})
}

// What a publish may be at work on stays, and what no registry has. All of it goes where that is asked for.
func TestPruneSparesWhatIsInUse(t *testing.T) {
	reg, store, dir, digests := aged(t, 2)
	ref, files := exported(t)
	if _, err := store.Import(t.Context(), hostsDir(t, files), image.ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	built := imagetest.Reference(t, "localhost/acme/built:v1")
	d := build(t, store, built, image.BuildOptions{})
	age(t, dir, d.Digest, time.Hour)
	root, err := resolve(t, store, ref, image.PullOptions{Policy: volume.PullNever})
	if err != nil {
		t.Fatal(err)
	}
	age(t, dir, root.Digest, time.Hour)
	if _, err := resolve(t, store, imagetest.Reference(t, reg.Host+"/acme/count:v0"), image.PullOptions{}); err != nil {
		t.Fatal(err)
	}
	prune(t, store, image.PruneOptions{})
	if got := has(t, store, reg, 2); !slices.Equal(got, []string{"v0"}) {
		t.Errorf("there are %q, want v0, which was asked for just now", got)
	}
	age(t, dir, digests[0], time.Hour)
	age(t, dir, root.Digest, time.Hour)
	wantOffline(t, store, ref, three())
	pull(t, store, built, image.PullOptions{Policy: volume.PullNever})
	prune(t, store, image.PruneOptions{All: true, Keep: []digest.Digest{root.Digest}, Settling: -1})
	wantOffline(t, store, ref, three())
	if _, err := resolve(t, store, built, image.PullOptions{Policy: volume.PullNever}); !errors.Is(err, image.ErrNotCached) {
		t.Errorf("what was built here is still there: %v", err)
	}
	p := prune(t, store, image.PruneOptions{All: true, Settling: -1})
	if left, _ := filepath.Glob(filepath.Join(dir, "blobs", "sha256", "*")); len(left) > 0 || p.Size != 0 {
		t.Errorf("%d blobs are left", len(left))
	}
}

// Images share blobs: one that goes takes nothing from another.
func TestPruneKeepsSharedBlobs(t *testing.T) {
	reg := imagetest.Start(t)
	store, dir := cached(t, reg)
	for i, form := range []imagetest.Format{imagetest.BPFMan, imagetest.BPFManIndex} {
		d := imagetest.PushImage(t, reg.Host, "acme/count", fmt.Sprintf("v%d", i), bpf.Count(), form)
		pull(t, store, imagetest.Reference(t, fmt.Sprintf("%s/acme/count:v%d", reg.Host, i)), image.PullOptions{})
		age(t, dir, d, time.Duration(10-i)*time.Hour)
	}
	all := len(blobs(t, dir))
	p := prune(t, store, image.PruneOptions{Size: 1})
	if len(p.Images) != 2 {
		t.Errorf("removed %d images, want both", len(p.Images))
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "blobs", "sha256", "*")); len(left) > 0 {
		t.Errorf("%d of %d blobs are left", len(left), all)
	}
}

// What belongs to no image, and what was being written when somebody was killed, goes at once.
func TestPruneSweepsOrphans(t *testing.T) {
	reg, store, dir, _ := aged(t, 1)
	orphan := filepath.Join(dir, "blobs", "sha256", digest.FromString("orphan").Encoded())
	write(t, orphan, "orphan")
	half := filepath.Join(dir, "ingest", "import-1", "blobs")
	if err := os.MkdirAll(half, 0o700); err != nil {
		t.Fatal(err)
	}
	p := prune(t, store, image.PruneOptions{Size: 1 << 30})
	if p.Freed != int64(len("orphan")) || len(p.Images) != 0 {
		t.Errorf("freed %d bytes and %d images, want the orphan alone", p.Freed, len(p.Images))
	}
	for _, path := range []string{orphan, half} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s is still there", path)
		}
	}
	if got := has(t, store, reg, 1); len(got) != 1 {
		t.Error("the image is gone")
	}
}

// Pulls, imports and collecting at the same time, by two processes' stores: no pull fails, and what is found is whole.
func TestPruneBesidePulls(t *testing.T) {
	reg, one, dir, _ := aged(t, 4)
	two := imagetest.OpenStore(t, image.Options{Dir: dir, Registries: imagetest.Registries(t, reg.Host)})
	done := make(chan struct{})
	var wg sync.WaitGroup
	for _, s := range []*image.Store{one, two} {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if _, err := s.Prune(t.Context(), image.PruneOptions{Settling: -1}); err != nil && !strings.Contains(err.Error(), "in use") {
					t.Error(err)
				}
			}
		})
	}
	for i := range 60 {
		ref := imagetest.Reference(t, fmt.Sprintf("%s/acme/count:v%d", reg.Host, i%4))
		root, err := resolve(t, []*image.Store{one, two}[i%2], ref, image.PullOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := root.Object(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	close(done)
	wg.Wait()
}

// The daemon's cache comes down to its size by itself after a pull, and says what went. What volumes need it asks each time,
// and without an answer it removes nothing.
func TestTendKeepsTheSize(t *testing.T) {
	reg, store, _, digests := aged(t, 4)
	type result struct {
		image.Pruned
		err error
	}
	results := make(chan result, 16)
	answers := make(chan error, 16)
	answers <- errors.New("records cannot be read")
	keep := func() ([]digest.Digest, error) {
		select {
		case err := <-answers:
			return nil, err
		default:
			return digests[:1], nil
		}
	}
	var wg sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	defer func() { stop(); wg.Wait() }()
	wg.Go(func() {
		store.Tend(ctx, 3*agedSize, keep, func(p image.Pruned, err error) { results <- result{p, err} })
	})
	if r := <-results; r.err == nil || len(r.Images) > 0 || !strings.Contains(r.err.Error(), "records cannot be read") {
		t.Errorf("without knowing what volumes need: %+v", r)
	}
	imagetest.PushImage(t, reg.Host, "acme/count", "v4", padded(4, 64<<10))
	pull(t, store, imagetest.Reference(t, reg.Host+"/acme/count:v4"), image.PullOptions{})
	var gone []string
	for len(gone) < 2 {
		select {
		case r := <-results:
			for _, i := range r.Images {
				gone = append(gone, i.Tags...)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("removed %q in 10 s", gone)
		}
	}
	if want := []string{"v1", "v2"}; !slices.Equal(gone, want) {
		t.Errorf("removed %q, want %q", gone, want)
	}
	if got, want := has(t, store, reg, 5), []string{"v0", "v3", "v4"}; !slices.Equal(got, want) {
		t.Errorf("there are %q, want %q", got, want)
	}
}

const pruning = "BPFVOL_TEST_PRUNING" // directory, host

// Whoever is killed while collecting leaves a cache that names nothing it has not, and the next one frees the rest.
func TestKillDuringPrune(t *testing.T) {
	if v := os.Getenv(pruning); v != "" {
		dir, host, _ := strings.Cut(v, ",")
		s, err := image.Open(image.Options{Dir: dir, Registries: imagetest.Registries(t, host)})
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; ; i++ {
			pull(t, s, imagetest.Reference(t, fmt.Sprintf("%s/acme/count:v%d", host, i%4)), image.PullOptions{})
			if _, err := s.Prune(t.Context(), image.PruneOptions{Size: agedSize, Settling: -1}); err != nil {
				t.Fatal(err)
			}
		}
	}
	reg, store, dir, _ := aged(t, 4)
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	for i := range 8 {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestKillDuringPrune$", "-test.timeout=30s")
		cmd.Env = append(os.Environ(), pruning+"="+dir+","+reg.Host, "TMPDIR="+t.TempDir()) // who is killed cleans up nothing
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(60+13*i) * time.Millisecond)
		cmd.Process.Signal(syscall.SIGKILL)
		cmd.Wait()
		s, err := image.Open(image.Options{Dir: dir, Registries: imagetest.Registries(t, reg.Host)})
		if err != nil {
			t.Fatal(err)
		}
		list, err := s.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		reg.Intercept(imagetest.Drop(""))
		for _, c := range list {
			if c.Size == 0 {
				t.Errorf("%s is named, and nothing of it is there", c.References())
			}
		}
		reg.Intercept(nil)
		if p := prune(t, s, image.PruneOptions{Settling: -1}); p.Size != 0 {
			t.Errorf("%d bytes cannot be freed", p.Size)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// List says of each image what it is, and how it may be called.
func TestListSaysWhatIsThere(t *testing.T) {
	reg := imagetest.Start(t)
	store, _ := cached(t, reg)
	ref := signed(t, reg)
	root, err := resolve(t, store, ref, image.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := root.Object(t.Context()); err != nil {
		t.Fatal(err)
	}
	list := func() image.Cached {
		t.Helper()
		all, err := store.List(t.Context())
		if err != nil || len(all) != 1 {
			t.Fatalf("got %+v, %v", all, err)
		}
		return all[0]
	}
	got := list()
	if got.Signatures != nil || got.Origin != image.OriginPulled || got.Digest != root.Digest || !slices.Equal(got.References(), []string{ref.String()}) {
		t.Errorf("before signatures were asked for: %+v", got)
	}
	if got.Size < int64(len(bpf.Count())) || time.Since(got.Used) > time.Minute {
		t.Errorf("size %d, used %s", got.Size, got.Used)
	}
	if _, err := root.Signatures(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	with := list()
	slices.Sort(with.Signatures)
	if !slices.Equal(with.Signatures, []image.Format{image.FormatBundle, image.FormatReferrer, image.FormatTag}) || with.Size <= got.Size {
		t.Errorf("afterwards: %+v", with)
	}
}
