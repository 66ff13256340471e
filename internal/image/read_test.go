// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"bytes"
	"context"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

func TestReadsEveryFormat(t *testing.T) {
	reg := imagetest.Start(t)
	store := imagetest.Store(t, reg.Host)
	for _, form := range imagetest.Formats {
		t.Run(string(form), func(t *testing.T) {
			want := imagetest.PushImage(t, reg.Host, "acme/count", string(form), bpf.Count(), form)
			root, err := store.Resolve(t.Context(), imagetest.Reference(t, reg.Host+"/acme/count:"+string(form)), image.PullOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if root.Digest != want || digest.FromBytes(root.Raw) != want {
				t.Errorf("root is %s, want %s", root.Digest, want)
			}
			o, err := root.Object(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(o.ELF, bpf.Count()) || o.Digest != digest.FromBytes(bpf.Count()) {
				t.Error("the object is another one")
			}
			if o.Name != "prog.bpf.o" || o.Root != want || o.Manifest == "" {
				t.Errorf("object is %q of manifest %s in %s", o.Name, o.Manifest, o.Root)
			}
			if labelled := o.Labels["io.ebpf.programs"] != ""; labelled != slices.Contains(imagetest.Formats[1:7], form) {
				t.Errorf("labels are %v", o.Labels)
			}
		})
	}
}

// A plain oras push of several files labels each of them as an archive.
func TestFilesBesideTheObjectAreIgnored(t *testing.T) {
	reg := imagetest.Start(t)
	r := imagetest.In(reg.Host, "acme/bad")
	ref := layered(t, reg,
		r.PutBlob(t, ocispec.MediaTypeImageLayer, []byte("# read me"), nil),
		r.PutBlob(t, ocispec.MediaTypeImageLayer, bpf.Count(), nil),
		r.PutBlob(t, ocispec.MediaTypeImageLayer, bytes.Repeat([]byte("license\n"), 100), nil),
		r.PutBlob(t, "application/gzip", imagetest.Gzip(t, []byte("notes")), nil),
		r.PutBlob(t, "application/zstd", append([]byte("\x50\x2a\x4d\x18\x02\x00\x00\x00ab"), imagetest.Zstd(t, []byte("notes"))...), nil))
	if o := pull(t, imagetest.Store(t, reg.Host), ref, image.PullOptions{}); !bytes.Equal(o.ELF, bpf.Count()) {
		t.Error("the object is another one")
	}
}

// A cold pull costs as few round trips as the protocol allows.
func TestColdPullIsShort(t *testing.T) {
	reg := imagetest.Start(t)
	store := imagetest.Store(t, reg.Host)
	imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count())
	ref := imagetest.Reference(t, reg.Host+"/acme/count:v1")
	reg.Requests()
	pull(t, store, ref, image.PullOptions{})
	if got := reg.Requests(); len(got) != 3 {
		t.Errorf("an unsigned pull made %d requests, want index, manifest, layer: %q", len(got), got)
	}
	pull(t, store, ref, image.PullOptions{})
	if got := reg.Requests(); len(got) != 0 {
		t.Errorf("a warm pull made requests: %q", got)
	}
}

func TestIndexIsReadForOneArchitecture(t *testing.T) {
	reg := imagetest.Start(t)
	r := imagetest.In(reg.Host, "acme/count")
	var entries []ocispec.Descriptor
	for i, p := range []*ocispec.Platform{nil, {OS: "unknown", Architecture: "unknown"}, {OS: "windows", Architecture: "arm64"}, {OS: "linux", Architecture: "arm64"}} {
		d := r.PutManifest(t, "", ocispec.Manifest{
			MediaType: ocispec.MediaTypeImageManifest, Config: r.PutEmpty(t),
			Layers: []ocispec.Descriptor{r.PutBlob(t, "x/y", append(bpf.Pass(), byte(i)), nil)},
		})
		d.Platform = p
		entries = append(entries, d)
	}
	r.PutIndex(t, "v1", ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: entries})
	ref := imagetest.Reference(t, reg.Host+"/acme/count:v1")

	arm := imagetest.OpenStore(t, image.Options{Arch: "arm64", Registries: imagetest.Registries(t, reg.Host)})
	if o := pull(t, arm, ref, image.PullOptions{}); o.ELF[len(o.ELF)-1] != 3 {
		t.Errorf("took entry %d", o.ELF[len(o.ELF)-1])
	}
	riscv := imagetest.OpenStore(t, image.Options{Arch: "riscv64", Registries: imagetest.Registries(t, reg.Host)})
	root, err := riscv.Resolve(t.Context(), ref, image.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = root.Object(t.Context())
	wantError(t, err, image.ErrPlatform, `linux/riscv64; it has: "linux/arm64, windows/arm64"`)
	if got, err := root.Platforms(); err != nil || !slices.Equal(got, []string{"linux/arm64", "windows/arm64"}) {
		t.Errorf("platforms are %v, %v", got, err)
	}
}

// The keyring is asked for the host it is about, its credentials are tried in order, then none.
func TestCredentialsAreTriedInOrder(t *testing.T) {
	reg := imagetest.Start(t)
	imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count())
	reg.Intercept(imagetest.BasicAuth("good", "secret"))
	ref := imagetest.Reference(t, reg.Host+"/acme/count:v1")
	good := image.Credential{Username: "good", Password: "secret"}
	bad := image.Credential{Username: "bad", Password: "hunter2"}

	pull(t, imagetest.Store(t, reg.Host), ref, image.PullOptions{Keyring: keyring{reg.Host: {bad, good}}})
	store := imagetest.Store(t, reg.Host)
	for _, k := range []image.Keyring{nil, keyring{reg.Host: {bad}}, keyring{"other.example": {good}}} {
		_, err := store.Resolve(t.Context(), ref, image.PullOptions{Keyring: k})
		wantError(t, err, image.ErrUnauthenticated, "answered 401")
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("a password is in the error: %v", err)
		}
	}
	reg.Intercept(nil)
	pull(t, store, ref, image.PullOptions{Keyring: keyring{reg.Host: {bad}}})
}

// A public image is pulled by who has only logins that are wrong: the last try is without any.
func TestWithoutCredentialsComesLast(t *testing.T) {
	reg := imagetest.Start(t)
	imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count())
	tokens := imagetest.StartTokenServer(t, nil)
	tokens.Open = true
	reg.Intercept(tokens.Guard())
	wrong := keyring{reg.Host: {{Username: "old", Password: "secret"}, {Username: "older", Password: "secret"}}}
	pull(t, imagetest.Store(t, reg.Host, tokens.Host), imagetest.Reference(t, reg.Host+"/acme/count:v1"), image.PullOptions{Keyring: wrong})
	if got, want := tokens.Asked(), []string{"old", "older", ""}; !slices.Equal(got[:min(3, len(got))], want) {
		t.Errorf("tokens were asked for by %q, want %q first", got, want)
	}
}

// A registry that redirects is followed, but takes no credentials along.
func TestRedirectTakesNoCredentials(t *testing.T) {
	reg, other := imagetest.Start(t), imagetest.Start(t)
	imagetest.PushImage(t, reg.Host, "acme/count", "v1", bpf.Count())
	imagetest.PushImage(t, other.Host, "acme/count", "v1", bpf.Count())
	leaked := make(chan string, 64)
	other.Intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		leaked <- r.Header.Get("Authorization")
		next.ServeHTTP(w, r)
	})
	auth := imagetest.BasicAuth("good", "secret")
	reg.Intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		auth(w, r, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/blobs/") {
				http.Redirect(w, r, "http://"+other.Host+r.URL.Path, http.StatusTemporaryRedirect)
				return
			}
			next.ServeHTTP(w, r)
		}))
	})
	ref := imagetest.Reference(t, reg.Host+"/acme/count:v1")
	k := keyring{reg.Host: {{Username: "good", Password: "secret"}}}
	pull(t, imagetest.Store(t, reg.Host, other.Host), ref, image.PullOptions{Keyring: k})
	select {
	case got := <-leaked:
		if got != "" {
			t.Errorf("the other host got credentials: %q", got)
		}
	default:
		t.Error("the redirect was not followed")
	}

	// The other host is not listed here, and a redirect makes it no better.
	root, err := imagetest.Store(t, reg.Host).Resolve(t.Context(), ref, image.PullOptions{Keyring: k})
	if err != nil {
		t.Fatal(err)
	}
	_, err = root.Object(t.Context())
	wantError(t, err, image.ErrHostNotAllowed, other.Host)
}

func TestMirrorsAreAskedInOrder(t *testing.T) {
	first, second, origin := imagetest.Start(t), imagetest.Start(t), imagetest.Start(t)
	path := filepath.Join(t.TempDir(), "registries.yaml")
	write(t, path, "registries:\n"+
		"- {host: \""+first.Host+"\", plainHTTP: true}\n- {host: \""+second.Host+"\", plainHTTP: true}\n"+
		"- host: \""+origin.Host+"\"\n  plainHTTP: true\n  mirrors: [\""+first.Host+"\", \""+second.Host+"\"]\n")
	hosts, err := image.LoadRegistries(path)
	if err != nil {
		t.Fatal(err)
	}
	servers := []*imagetest.Server{first, second, origin}
	for i, s := range servers {
		imagetest.PushImage(t, s.Host, "acme/count", "v1", append(bpf.Pass(), byte(i)))
	}
	ref := imagetest.Reference(t, origin.Host+"/acme/count:v1")
	for i := range servers {
		store := imagetest.OpenStore(t, image.Options{Registries: hosts})
		o := pull(t, store, ref, image.PullOptions{})
		if got := int(o.ELF[len(o.ELF)-1]); got != i {
			t.Errorf("with the first %d mirrors broken, server %d answered", i, got)
		}
		if _, err := resolve(t, store, ref, image.PullOptions{Policy: volume.PullNever}); err != nil {
			t.Errorf("what a mirror served is not cached under the image's own name: %v", err)
		}
		servers[i].Intercept([]imagetest.Hook{imagetest.Drop(""), imagetest.Status("", http.StatusNotFound), imagetest.Status("", http.StatusInternalServerError)}[i])
	}
	_, err = resolve(t, imagetest.OpenStore(t, image.Options{Registries: hosts}), ref, image.PullOptions{})
	wantError(t, err, image.ErrUnavailable, origin.Host+" answered 500")
}

type keyring map[string][]image.Credential

func (k keyring) Credentials(ref image.Reference) []image.Credential { return k[ref.Registry] }

func resolve(t testing.TB, s *image.Store, ref image.Reference, opts image.PullOptions) (*image.Root, error) {
	t.Helper()
	return s.Resolve(context.Background(), ref, opts)
}

// pull resolves ref and returns its object.
func pull(t testing.TB, s *image.Store, ref image.Reference, opts image.PullOptions) image.Object {
	t.Helper()
	root, err := resolve(t, s, ref, opts)
	if err != nil {
		t.Fatal(err)
	}
	o, err := root.Object(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return o
}
