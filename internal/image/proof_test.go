// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// private is a registry that lets users in, on a node whose cache has an image that alice pulled.
type private struct {
	*imagetest.Server
	tokens *imagetest.TokenServer
	store  *image.Store
	dir    string
	ref    image.Reference
}

func startPrivate(t *testing.T) *private {
	t.Helper()
	p := &private{
		Server: imagetest.Start(t),
		tokens: imagetest.StartTokenServer(t, map[string]string{"alice": "secret-of-alice", "bob": "secret-of-bob"}),
		dir:    filepath.Join(t.TempDir(), "oci"),
	}
	imagetest.PushImage(t, p.Host, "acme/count", "v1", bpf.Count())
	p.ref = imagetest.Reference(t, p.Host+"/acme/count:v1")
	p.Intercept(p.tokens.Guard())
	p.open(t)
	if err := p.get(t, p.as("alice"), volume.PullIfNotPresent); err != nil {
		t.Fatal(err)
	}
	p.Requests()
	return p
}

// open opens the cache, again after a close.
func (p *private) open(t *testing.T) {
	p.store = imagetest.OpenStore(t, image.Options{Dir: p.dir, Registries: imagetest.Registries(t, p.Host, p.tokens.Host)})
}

// restart is a restart of the daemon.
func (p *private) restart(t *testing.T) {
	t.Helper()
	if err := p.store.Close(); err != nil {
		t.Fatal(err)
	}
	p.open(t)
}

func (p *private) as(user string) image.Keyring {
	return keyring{p.Host: {{Username: user, Password: "secret-of-" + user}}}
}

// get is a publish by a pod with a keyring.
func (p *private) get(t testing.TB, k image.Keyring, policy volume.PullPolicy) error {
	t.Helper()
	root, err := resolve(t, p.store, p.ref, image.PullOptions{Keyring: k, Policy: policy})
	if err != nil {
		return err
	}
	if _, err := root.Signatures(context.Background(), false); err != nil && !errors.Is(err, image.ErrNotCached) {
		return err
	}
	_, err = root.Object(context.Background())
	return err
}

// What was pulled for one pod is no other pod's, unless his credentials may pull it, too; whether the daemon was
// restarted in between, or the reference is a digest, does not matter.
func TestPrivateImageIsServedToNobodyElse(t *testing.T) {
	for _, by := range []string{"Tag", "Digest"} {
		for _, restarted := range []string{"Running", "Restarted"} {
			t.Run(by+"/"+restarted, func(t *testing.T) {
				p := startPrivate(t)
				if by == "Digest" {
					root, err := resolve(t, p.store, p.ref, image.PullOptions{Keyring: p.as("alice")})
					if err != nil {
						t.Fatal(err)
					}
					p.ref.Tag, p.ref.Digest = "", root.Digest
				}
				if restarted == "Restarted" {
					p.restart(t)
				}
				for name, k := range map[string]image.Keyring{
					"without credentials": nil, "with a stranger's": p.as("mallory"), "with alice's name": keyring{p.Host: {{Username: "alice", Password: "guess"}}},
					"with alice's for another host": keyring{"other.example": {{Username: "alice", Password: "secret-of-alice"}}},
				} {
					wantError(t, p.get(t, k, volume.PullIfNotPresent), image.ErrUnauthenticated, "cached for other credentials: not authenticated: registry "+p.Host+" answered 401")
					wantError(t, p.get(t, k, volume.PullNever), image.ErrUnauthenticated, "the pull policy is Never")
					if got := p.Requests(); !slices.ContainsFunc(got, func(r string) bool { return strings.HasPrefix(r, "GET /v2/acme/count/manifests/sha256:") }) {
						t.Errorf("%s: the registry was not asked: %q", name, got)
					}
				}
				if err := p.get(t, p.as("alice"), volume.PullNever); err != nil {
					t.Errorf("alice: %v", err)
				}
				// Bob proves himself once, by one request for the manifest.
				p.Requests()
				for range 2 {
					if err := p.get(t, p.as("bob"), volume.PullIfNotPresent); err != nil {
						t.Errorf("bob: %v", err)
					}
				}
				asked := "GET /v2/acme/count/manifests/sha256:"
				if got := p.Requests(); len(got) != 2 || !strings.HasPrefix(got[0], asked) || !strings.HasPrefix(got[1], asked) {
					t.Errorf("bob's requests are %q, want one for the manifest, and again with a token", got)
				}
				p.restart(t)
				p.Intercept(imagetest.Drop(""))
				for _, user := range []string{"alice", "bob"} {
					if err := p.get(t, p.as(user), volume.PullIfNotPresent); err != nil {
						t.Errorf("%s after a restart, with the registry away: %v", user, err)
					}
				}
			})
		}
	}
}

// A registry that cannot be asked lets nobody in.
func TestProofFailsClosed(t *testing.T) {
	p := startPrivate(t)
	for name, tt := range map[string]struct {
		hook imagetest.Hook
		want error
	}{
		"Away":      {imagetest.Drop(""), image.ErrUnavailable},
		"Broken":    {imagetest.Status("", http.StatusInternalServerError), image.ErrUnavailable},
		"Busy":      {imagetest.Status("", http.StatusTooManyRequests), image.ErrUnavailable},
		"Forbidden": {imagetest.Status("", http.StatusForbidden), image.ErrUnauthenticated},
		"Gone":      {imagetest.Status("", http.StatusNotFound), image.ErrNotFound},
		"Nonsense":  {func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { w.Write([]byte("<html>log in")) }, image.ErrDigestMismatch},
	} {
		p.Intercept(tt.hook)
		t.Run(name, func(t *testing.T) {
			wantError(t, p.get(t, p.as("bob"), volume.PullIfNotPresent), tt.want, "cached for other credentials: ")
		})
	}
	p.Intercept(p.tokens.Guard())
	if err := p.get(t, p.as("bob"), volume.PullIfNotPresent); err != nil {
		t.Error(err)
	}
}

// What anybody may pull is everybody's, whoever pulled it first.
func TestPublicImageIsServedToEverybody(t *testing.T) {
	p := startPrivate(t)
	p.Intercept(nil) // it is made public
	if err := p.get(t, nil, volume.PullIfNotPresent); err != nil {
		t.Fatal(err)
	}
	p.restart(t)
	p.Intercept(imagetest.Drop(""))
	for _, k := range []image.Keyring{nil, p.as("alice"), p.as("mallory")} {
		for _, policy := range []volume.PullPolicy{volume.PullIfNotPresent, volume.PullNever} {
			if err := p.get(t, k, policy); err != nil {
				t.Error(err)
			}
		}
	}
}

// Who has lost his rights keeps what he had under IfNotPresent, as with container images; Always asks. New credentials
// are asked about.
func TestRevokedCredentials(t *testing.T) {
	p := startPrivate(t)
	p.tokens.Revoke("alice")
	if err := p.get(t, p.as("alice"), volume.PullIfNotPresent); err != nil {
		t.Error(err)
	}
	wantError(t, p.get(t, p.as("alice"), volume.PullAlways), image.ErrUnauthenticated, "answered 401")
	changed := keyring{p.Host: {{Username: "alice", Password: "new-secret"}}}
	wantError(t, p.get(t, changed, volume.PullIfNotPresent), image.ErrUnauthenticated, "answered 401")
	// An admin can make the node forget.
	if err := os.RemoveAll(filepath.Join(p.dir, "proofs")); err != nil {
		t.Fatal(err)
	}
	p.restart(t)
	wantError(t, p.get(t, p.as("alice"), volume.PullIfNotPresent), image.ErrUnauthenticated, "answered 401")
	if err := p.get(t, p.as("bob"), volume.PullIfNotPresent); err != nil {
		t.Error(err)
	}
}

// Records that are missing, spoiled or of another image prove nothing; nor does one that was made with another key.
func TestSpoiledProofsProveNothing(t *testing.T) {
	p := startPrivate(t)
	paths, err := filepath.Glob(filepath.Join(p.dir, "proofs", "*.json"))
	if err != nil || len(paths) != 1 {
		t.Fatalf("records are %q, %v", paths, err)
	}
	good := read(t, paths[0])
	key := read(t, filepath.Join(p.dir, "proofs", "key"))
	for name, spoil := range map[string]func(){
		"Gone":         func() { os.Remove(paths[0]) },
		"Empty":        func() { write(t, paths[0], "") },
		"Cut":          func() { write(t, paths[0], string(good[:len(good)/2])) },
		"OfAnother":    func() { write(t, paths[0], strings.Replace(string(good), "acme/count", "acme/other", 1)) },
		"PublicOther":  func() { write(t, paths[0], `{"image":"x","public":true}`) },
		"Huge":         func() { write(t, paths[0], `{"public":true,"image":"`+strings.Repeat("x", 1<<20)+`"}`) },
		"KeyGone":      func() { os.Remove(filepath.Join(p.dir, "proofs", "key")) },
		"KeyCut":       func() { write(t, filepath.Join(p.dir, "proofs", "key"), "short") },
		"KeyOfAnother": func() { write(t, filepath.Join(p.dir, "proofs", "key"), strings.Repeat("k", 32)) },
	} {
		t.Run(name, func(t *testing.T) {
			spoil()
			p.restart(t)
			p.Intercept(imagetest.Drop(""))
			wantError(t, p.get(t, p.as("alice"), volume.PullIfNotPresent), image.ErrUnavailable, "cached for other credentials")
			p.Intercept(p.tokens.Guard())
			for range 2 {
				if err := p.get(t, p.as("alice"), volume.PullIfNotPresent); err != nil {
					t.Error(err)
				}
			}
			write(t, paths[0], string(good))
			write(t, filepath.Join(p.dir, "proofs", "key"), string(key))
		})
	}
}

// Records live as long as their images, and nobody but root reads them.
func TestProofsGoWithTheirImages(t *testing.T) {
	p := startPrivate(t)
	left := func() (names []string) {
		filepath.WalkDir(filepath.Join(p.dir, "proofs"), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				t.Fatal(err)
			}
			info, err := d.Info()
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s has mode %v", d.Name(), info.Mode())
			}
			if strings.Contains(d.Name(), ".json") {
				names = append(names, d.Name())
			}
			return nil
		})
		return names
	}
	age := func() {
		t.Helper()
		for _, name := range left() {
			old := time.Now().Add(-time.Hour)
			if err := os.Chtimes(filepath.Join(p.dir, "proofs", name), old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(t, filepath.Join(p.dir, "proofs", "half-written.json.tmp"), "{")
	p.restart(t)
	if got := left(); len(got) != 2 {
		t.Errorf("what was written just now is gone: %q", got)
	}
	age()
	p.restart(t)
	if got := left(); len(got) != 1 {
		t.Errorf("records are %q, want one", got)
	}
	age()
	if _, err := p.store.Prune(t.Context(), image.PruneOptions{Settling: -1}); err != nil {
		t.Fatal(err)
	}
	if got := left(); len(got) != 0 {
		t.Errorf("of no image: %q", got)
	}
}

// No secret is in the cache, in clear, encoded or as a hash that anybody could make.
func TestCacheHoldsNoSecret(t *testing.T) {
	p := startPrivate(t)
	if err := p.get(t, p.as("bob"), volume.PullIfNotPresent); err != nil {
		t.Fatal(err)
	}
	filepath.WalkDir(p.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		for _, part := range []string{"alice", "bob", "secret", "YWxpY2U6", "Ym9iOn", "token-"} {
			if bytes.Contains(read(t, path), []byte(part)) {
				t.Errorf("%s has %q in it", path, part)
			}
		}
		return nil
	})
}

// Whoever knows the digest of a private image's parts can name them in an image of his own. He is given what his own
// repository serves under these digests, which is nothing.
func TestPartsOfAPrivateImageAreServedToNobodyElse(t *testing.T) {
	p := startPrivate(t)
	p.Intercept(nil)
	layer := imagetest.In(p.Host, "acme/count").PutBlob(t, image.ObjectMediaType, append(bpf.Count(), "private"...), nil)
	config := imagetest.In(p.Host, "acme/count").PutEmpty(t)
	private := imagetest.In(p.Host, "acme/count").PutManifest(t, "v2", ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{layer}})
	private.Platform = &ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	p.Intercept(p.tokens.Guard())
	p.ref = imagetest.Reference(t, p.Host+"/acme/count:v2")
	if err := p.get(t, p.as("alice"), volume.PullIfNotPresent); err != nil {
		t.Fatal(err)
	}

	evil := imagetest.Start(t)
	r := imagetest.In(evil.Host, "evil/count")
	r.PutManifest(t, "layer", ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: r.PutEmpty(t), Layers: []ocispec.Descriptor{layer}})
	r.PutIndex(t, "manifest", ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{private}})
	both := imagetest.OpenStore(t, image.Options{Dir: p.dir, Registries: imagetest.Registries(t, p.Host, p.tokens.Host, evil.Host)})
	for _, tag := range []string{"layer", "manifest"} {
		for range 2 {
			wantError(t, open(t, both, imagetest.Reference(t, evil.Host+"/evil/count:"+tag)), image.ErrNotFound, "registry "+evil.Host+" answered 404")
			root, err := resolve(t, both, imagetest.Reference(t, evil.Host+"/evil/count:"+tag), image.PullOptions{Policy: volume.PullNever})
			if err != nil {
				t.Fatal(err)
			}
			_, err = root.Object(t.Context())
			wantError(t, err, image.ErrNotCached, "pull or build it again")
		}
	}
	// Who has the parts himself is served, and from the cache the next time.
	r.PutBlob(t, image.ObjectMediaType, append(bpf.Count(), "private"...), nil)
	for range 2 {
		pull(t, both, imagetest.Reference(t, evil.Host+"/evil/count:layer"), image.PullOptions{})
		evil.Requests()
	}
	evil.Intercept(imagetest.Drop(""))
	pull(t, both, imagetest.Reference(t, evil.Host+"/evil/count:layer"), image.PullOptions{})
}

// What an admin imports is for all on this node, and a registry need not be there.
func TestImportedImageIsForAll(t *testing.T) {
	p := startPrivate(t)
	root, err := resolve(t, p.store, p.ref, image.PullOptions{Keyring: p.as("alice")})
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := root.Export(t.Context(), &archive); err != nil {
		t.Fatal(err)
	}
	p.dir = filepath.Join(t.TempDir(), "oci")
	p.open(t)
	if _, err := p.store.ImportArchive(t.Context(), &archive, image.ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	p.Intercept(imagetest.Drop(""))
	for _, policy := range []volume.PullPolicy{volume.PullIfNotPresent, volume.PullNever} {
		if err := p.get(t, nil, policy); err != nil {
			t.Error(err)
		}
	}
	p.Intercept(p.tokens.Guard())
	wantError(t, p.get(t, nil, volume.PullAlways), image.ErrUnauthenticated, "answered 401")
	if err := p.get(t, p.as("bob"), volume.PullAlways); err != nil {
		t.Error(err)
	}
	// Who pulls it once more does not take it from the others.
	if err := p.get(t, nil, volume.PullIfNotPresent); err != nil {
		t.Error(err)
	}
}

// What was built here is for all on this node, before and after it is pushed to a registry that lets only users in.
func TestBuiltImageIsForAll(t *testing.T) {
	p := startPrivate(t)
	p.ref = imagetest.Reference(t, p.Host+"/acme/built:v1")
	objects := []image.BuildInput{{Name: "count.o", Arch: "amd64", ELF: bpf.Count()}}
	if _, err := p.store.Build(t.Context(), p.ref, objects, image.BuildOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := p.get(t, nil, volume.PullNever); err != nil {
		t.Error(err)
	}
	if _, err := p.store.Push(t.Context(), p.ref, image.PushOptions{Keyring: p.as("alice")}); err != nil {
		t.Fatal(err)
	}
	if err := p.get(t, nil, volume.PullNever); err != nil {
		t.Error(err)
	}
}

// The node's own credentials come after those of the pod, and before none.
func TestNodeCredentialsComeAfterThePods(t *testing.T) {
	reg := imagetest.Start(t)
	imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count())
	ref := imagetest.Reference(t, reg.Host+"/acme/count:v1")
	var asked []string
	var mu sync.Mutex
	auth := imagetest.BasicAuth("node", "secret")
	reg.Intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		user, _, _ := r.BasicAuth()
		mu.Lock()
		asked = append(asked, user)
		mu.Unlock()
		auth(w, r, next)
	})
	open := func(node image.Keyring) *image.Store {
		return imagetest.OpenStore(t, image.Options{Registries: imagetest.Registries(t, reg.Host), Keyring: node})
	}
	node := keyring{reg.Host: {{Username: "node", Password: "secret"}}}
	pod := keyring{reg.Host: {{Username: "pod", Password: "other-secret"}}}
	for _, k := range []image.Keyring{nil, pod} {
		if _, err := resolve(t, open(node), ref, image.PullOptions{Keyring: k}); err != nil {
			t.Error(err)
		}
	}
	asked = nil
	if _, err := resolve(t, open(node), ref, image.PullOptions{Keyring: pod}); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(asked, ","); got != ",pod,,node" {
		t.Errorf("it was asked as %q, want pod, then node", got)
	}
	_, err := resolve(t, open(nil), ref, image.PullOptions{Keyring: pod})
	wantError(t, err, image.ErrUnauthenticated, "answered 401")
}

// Of what a credential may not see, some registries say that it does not exist. The next one is tried all the same.
func TestHiddenImageIsTriedWithEveryCredential(t *testing.T) {
	reg := imagetest.Start(t)
	imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count())
	ref := imagetest.Reference(t, reg.Host+"/acme/count:v1")
	reg.Intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch user, _, ok := r.BasicAuth(); {
		case !ok:
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
		case user != "second":
			w.WriteHeader(http.StatusNotFound)
		default:
			next.ServeHTTP(w, r)
		}
	})
	first, second := image.Credential{Username: "first", Password: "secret"}, image.Credential{Username: "second", Password: "secret"}
	store := imagetest.Store(t, reg.Host)
	pull(t, store, ref, image.PullOptions{Keyring: keyring{reg.Host: {first, second}}})
	// So it is where it is in the cache already.
	third := image.Credential{Username: "third", Password: "secret"}
	second.Password = "rotated"
	pull(t, store, ref, image.PullOptions{Keyring: keyring{reg.Host: {third, second}}})
	// Who gets nothing is told what the first said.
	_, err := resolve(t, store, ref, image.PullOptions{Keyring: keyring{reg.Host: {first}}, Policy: volume.PullAlways})
	wantError(t, err, image.ErrNotFound, "answered 404")
}

// A hundred publishes of a cold image by one set of credentials are one pull; a second set costs its proof, and not
// the image once more.
func TestOnePullForEachSetOfCredentials(t *testing.T) {
	p := startPrivate(t)
	p.ref = imagetest.Reference(t, p.Host+"/acme/many:v1")
	p.Intercept(nil)
	imagetest.PushImage(t, p.Host, "acme/many", "v1", append(bpf.Count(), "many"...))
	p.Intercept(p.tokens.Guard())
	p.Requests()
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			if err := p.get(t, p.as([]string{"alice", "bob"}[i%2]), volume.PullIfNotPresent); err != nil {
				t.Error(err)
			}
		})
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.store.Resolve(canceled, p.ref, image.PullOptions{Keyring: p.as("alice")}); !errors.Is(err, context.Canceled) {
		t.Errorf("who gave up got %v", err)
	}
	wg.Wait()
	parts, manifests := 0, 0
	for _, r := range p.Requests() {
		if strings.Contains(r, "/blobs/") {
			parts++
		}
		if strings.HasSuffix(r, "/manifests/v1") {
			manifests++
		}
	}
	// Two for each set: without a token, and with one.
	if parts != 1 || manifests > 4 {
		t.Errorf("%d requests for blobs, %d for the tag; want 1, and 2 for each of the two", parts, manifests)
	}
	// So it is where a part of it has to be fetched again.
	for _, path := range blobs(t, p.dir) {
		if bytes.HasSuffix(read(t, path), []byte("many")) {
			os.Remove(path)
		}
	}
	for i := range 20 {
		wg.Go(func() {
			if err := p.get(t, p.as([]string{"alice", "bob"}[i%2]), volume.PullIfNotPresent); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	again := slices.DeleteFunc(p.Requests(), func(r string) bool { return !strings.Contains(r, "/blobs/") })
	if len(again) != 2 { // without a token, and with one
		t.Errorf("to fetch a part again took %q", again)
	}
	for _, user := range p.tokens.Asked() {
		if user != "alice" && user != "bob" {
			t.Errorf("%q asked for a token", user)
		}
	}
}
