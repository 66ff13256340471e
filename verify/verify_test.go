// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/internal/image"
)

// fakeKey is an authority whose signatures are "<key> signs <digest>", "<key> attests <digest>"; package
// verify/cosign is tested with real ones.
type fakeKey string

func (fakeKey) Name() string { return "key" }

func (k fakeKey) Verify(_ context.Context, d digest.Digest, s image.Signature) (Signer, error) {
	words := strings.Fields(string(s.Payload))
	switch {
	case len(words) != 3:
		return Signer{}, errors.New("unreadable")
	case words[0] != string(k):
		return Signer{}, ErrOtherKey
	case words[2] != d.String():
		return Signer{}, ErrOtherImage
	case words[1] != "signs":
		return Signer{}, ErrNotImageSignature
	}
	return Signer{Identity: string(k), Format: s.Format}, nil
}

func (fakeKey) Attestations() []v1alpha1.Attestation { return nil }

func (fakeKey) Attests(context.Context, digest.Digest, image.Signature, v1alpha1.Attestation) error {
	return errors.New("attests nothing")
}

// fakeCompile takes the key's data as the name of a fakeKey.
func fakeCompile(spec v1alpha1.Authority, _ string) (Authority, error) {
	if spec.Keyless != nil {
		return nil, errors.New("keyless: not supported")
	}
	if spec.Key.Data == "bad" {
		return nil, errors.New("key.data: is not PEM")
	}
	return fakeKey(spec.Key.Data), nil
}

// fakeRoot stands in for a resolved image.
type fakeRoot struct {
	cached, fresh []string // signatures
	err           error    // of looking for cached ones
	freshErr      error
	object        image.Object
	asked         []bool // fresh?
}

func (r *fakeRoot) Signatures(_ context.Context, fresh bool) ([]image.Signature, error) {
	r.asked = append(r.asked, fresh)
	texts, err := r.cached, r.err
	if fresh {
		texts, err = r.fresh, r.freshErr
	}
	if err != nil {
		return nil, err
	}
	var sigs []image.Signature
	for _, text := range texts {
		sigs = append(sigs, image.Signature{Format: image.FormatTag, Payload: []byte(text)})
	}
	return sigs, nil
}

func (r *fakeRoot) Object(context.Context) (image.Object, error) { return r.object, nil }

var (
	acmeX = image.Reference{Registry: "ghcr.io", Repository: "acme/x", Tag: "v1"}
	d1    = digest.FromString("one")
	d2    = digest.FromString("two")
)

func signs(key string, d digest.Digest) string { return fmt.Sprintf("%s signs %s", key, d) }

func policyOf(t testing.TB, text string) *Policy {
	t.Helper()
	ps, err := ParsePolicies([]byte(text), "test.yaml", fakeCompile)
	if err != nil {
		t.Fatal(err)
	}
	if len(ps) != 1 {
		t.Fatalf("got %d policies, want 1", len(ps))
	}
	return ps[0]
}

// keyed is a policy for everything that keys sign.
func keyed(name string, keys ...string) *Policy {
	p := anything(name)
	for _, k := range keys {
		p.Authorities = append(p.Authorities, fakeKey(k))
	}
	return p
}

// wantDenied fails unless err is a *DeniedError that holds every text.
func wantDenied(t testing.TB, err error, texts ...string) {
	t.Helper()
	var denied *DeniedError
	if !errors.As(err, &denied) {
		t.Errorf("got %v, want a denial", err)
		return
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("got %q\nwant %q in it", err, text)
		}
	}
	if len(err.Error()) > 700 {
		t.Errorf("denial of %d bytes; kubelet's events take 700", len(err.Error()))
	}
}

func TestZeroSignedOpensNothing(t *testing.T) {
	if _, err := Open(t.Context(), Signed{}); err == nil {
		t.Error("Open took a zero Signed")
	}
	_, err := Signed{}.Permit(t.Context(), Facts{})
	wantDenied(t, err, "was not checked")
	// Neither does a Signed that no policy granted anything.
	_, err = Open(t.Context(), Signed{root: &fakeRoot{}, digest: d1})
	wantDenied(t, err, "was not checked")
}

func TestOpenBindsBytesToTheCheckedDigest(t *testing.T) {
	elf := []byte("elf")
	good := image.Object{Root: d1, Digest: digest.FromBytes(elf), ELF: elf}
	otherRoot, otherBytes := good, good
	otherRoot.Root = d2
	otherBytes.ELF = []byte("evil")
	for _, tc := range []struct {
		name string
		o    image.Object
		want error
	}{{"good", good, nil}, {"object of another root", otherRoot, image.ErrDigestMismatch}, {"other bytes", otherBytes, image.ErrDigestMismatch}} {
		root := &fakeRoot{cached: []string{signs("k", d1)}, object: tc.o}
		s, err := check(t.Context(), root, acmeX, d1, []*Policy{keyed("p", "k")})
		if err != nil {
			t.Fatal(err)
		}
		b, err := Open(t.Context(), s)
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.name, err, tc.want)
		}
		if err == nil && (string(b.ELF()) != "elf" || b.Signed().Digest() != d1 || b.Object().Digest != good.Digest) {
			t.Errorf("%s: got %+v", tc.name, b)
		}
	}
}

func TestCheckCollectsEveryGrant(t *testing.T) {
	root := &fakeRoot{cached: []string{"junk", signs("b", d2), signs("b", d1), signs("c", d1)}}
	s, err := check(t.Context(), root, acmeX, d1, []*Policy{
		UnsignedPolicy(),
		keyed("first", "a", "b"), // the second of two keys
		keyed("stranger", "z"),
		keyed("third", "c"),
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, g := range s.Grants() {
		got = append(got, g.Policy.Name+" "+g.Signer.Authority+" "+g.Signer.String())
	}
	want := "first key[1] b; third key[0] c; --allow-unsigned  unsigned"
	if strings.Join(got, "; ") != want {
		t.Errorf("got %q\nwant %q", strings.Join(got, "; "), want)
	}
}

func TestCheckRefreshesSignaturesOnce(t *testing.T) {
	policies := []*Policy{keyed("p", "k")}
	for _, tc := range []struct {
		name  string
		root  *fakeRoot
		ok    bool
		asked int
	}{
		{"a match at hand", &fakeRoot{cached: []string{signs("k", d1)}}, true, 1},
		{"signed since", &fakeRoot{cached: []string{signs("old", d1)}, fresh: []string{signs("old", d1), signs("k", d1)}}, true, 2},
		{"still unsigned", &fakeRoot{}, false, 2},
		{"registry may not be asked", &fakeRoot{cached: []string{signs("old", d1)}, freshErr: fmt.Errorf("x: %w", image.ErrNotCached)}, false, 2},
	} {
		_, err := check(t.Context(), tc.root, acmeX, d1, policies)
		if (err == nil) != tc.ok {
			t.Errorf("%s: got %v", tc.name, err)
		}
		if !tc.ok {
			wantDenied(t, err)
		}
		if len(tc.root.asked) != tc.asked || tc.root.asked[0] || tc.asked == 2 && !tc.root.asked[1] {
			t.Errorf("%s: asked (fresh?) %v", tc.name, tc.root.asked)
		}
	}
	unsigned := &fakeRoot{}
	if _, err := check(t.Context(), unsigned, acmeX, d1, []*Policy{UnsignedPolicy()}); err != nil {
		t.Error(err)
	}
	if len(unsigned.asked) != 0 {
		t.Error("looked for signatures that no policy asks for")
	}
}

func TestLookupErrorIsNotUnsigned(t *testing.T) {
	down := fmt.Errorf("registry: 500: %w", image.ErrUnavailable)
	for _, root := range []*fakeRoot{{err: down}, {cached: []string{signs("old", d1)}, freshErr: down}} {
		for _, policies := range [][]*Policy{{keyed("p", "k")}, {keyed("p", "k"), keyed("q", "j")}} {
			_, err := check(t.Context(), root, acmeX, d1, policies)
			if !errors.Is(err, image.ErrUnavailable) || errors.As(err, new(*DeniedError)) {
				t.Errorf("got %v, want ErrUnavailable and no denial", err)
			}
		}
	}
}

// Pull policy Never and no signature looked for yet: that is not found, not refused.
func TestNotCachedIsNotUnsigned(t *testing.T) {
	root := &fakeRoot{err: fmt.Errorf("x: %w", image.ErrNotCached)}
	_, err := check(t.Context(), root, acmeX, d1, []*Policy{keyed("p", "k")})
	if !errors.Is(err, image.ErrNotCached) || errors.As(err, new(*DeniedError)) {
		t.Errorf("got %v, want ErrNotCached and no denial", err)
	}
}

func TestCheckHeedsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := check(ctx, &fakeRoot{cached: []string{"junk"}}, acmeX, d1, []*Policy{keyed("p", "k")})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestCheckIgnoresPoliciesForOtherImages(t *testing.T) {
	other := keyed("other", "k")
	g, err := ParseGlob("ghcr.io/other/*")
	if err != nil {
		t.Fatal(err)
	}
	other.Images = []Glob{g}
	_, err = check(t.Context(), &fakeRoot{cached: []string{signs("k", d1)}}, acmeX, d1, []*Policy{other})
	wantDenied(t, err, "ghcr.io/acme/x@"+d1.String()+": no policy covers it")
}

func TestDenialNamesTheClosestPolicyAndWhy(t *testing.T) {
	two := []*Policy{keyed("far", "z"), keyed("near", "k")}
	name := "image ghcr.io/acme/x@" + d1.String() + ": "
	const fix = "; sign it with a key of the policy or ask an admin to add yours"
	for _, tc := range []struct {
		sigs     []string
		policies []*Policy
		want     string
	}{
		{nil, two, name + `is not signed, and policy "far" wants a signature; sign it with a key of the policy`},
		{[]string{"a signs b"}, two, name + `no signature by policy "far" (found 1: by another key)` + fix},
		{[]string{"junk", "a signs b"}, two, name + `no signature by policy "far" (found 2: by another key, unreadable)` + fix},
		{[]string{"junk"}, two, name + `no signature by policy "far" (found 1: unreadable)` + fix},
		{[]string{signs("k", d2), signs("j", d1)}, two, name + `no signature by policy "near" (found 2: for another image, by another key)` + fix},
		{[]string{"k attests " + d1.String()}, two, name + `no signature by policy "near" (found 1: an attestation and not an image signature)` + fix},
		{nil, []*Policy{keyed("empty")}, name + `policy "empty" has no authorities and no "unsigned: true", so nothing satisfies it; ask an admin to add a key to the policy`},
		{nil, nil, name + "no policy covers it; ask an admin for a policy"},
	} {
		_, err := check(t.Context(), &fakeRoot{cached: tc.sigs, fresh: tc.sigs}, acmeX, d1, tc.policies)
		wantDenied(t, err)
		if err != nil && err.Error() != tc.want {
			t.Errorf("got  %q\nwant %q", err, tc.want)
		}
	}
}
