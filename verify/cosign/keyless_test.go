// SPDX-License-Identifier: Apache-2.0

package cosign_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/verify"
	"github.com/bpfvol/bpfvol/verify/cosign"
	"github.com/bpfvol/bpfvol/verify/cosign/cosigntest"
)

// release is who signs in these tests, as GitHub names a workflow.
var release = cosigntest.Identity{
	Issuer:  "https://token.actions.githubusercontent.com",
	Subject: "https://github.com/acme/ebpf/.github/workflows/release.yml@refs/tags/v1.2.3",
}

// exactly is a policy's word for an identity.
func exactly(id cosigntest.Identity) *v1alpha1.Keyless {
	return &v1alpha1.Keyless{Issuer: id.Issuer, Subject: id.Subject}
}

// keyless compiles an authority that trusts a sigstore.
func keyless(t testing.TB, trustedRoot []byte, id *v1alpha1.Keyless, attestations ...v1alpha1.Attestation) verify.Authority {
	t.Helper()
	a, err := cosign.Compile(v1alpha1.Authority{Keyless: id, TrustedRoot: &v1alpha1.TrustedRoot{Data: string(trustedRoot)}, Attestations: attestations}, "")
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// ways are the forms in which cosign leaves a keyless signature.
var ways = []struct {
	name   string
	format image.Format
	opts   []cosigntest.Option
}{
	{"tag, rekor v1", image.FormatTag, nil},
	{"tag, rekor v1 and timestamp", image.FormatTag, []cosigntest.Option{cosigntest.WithTimestamp()}},
	{"referrer, rekor v1", image.FormatReferrer, nil},
	{"bundle, rekor v1", image.FormatBundle, nil},
	{"bundle, rekor v1 and timestamp", image.FormatBundle, []cosigntest.Option{cosigntest.WithTimestamp()}},
	{"bundle, rekor v1 by proof alone", image.FormatBundle, []cosigntest.Option{cosigntest.WithoutPromise(), cosigntest.WithTimestamp()}},
	{"bundle, rekor v2", image.FormatBundle, []cosigntest.Option{cosigntest.RekorV2(), cosigntest.WithTimestamp()}},
}

func TestKeylessSignatures(t *testing.T) {
	sigstore := cosigntest.New()
	d := digest.FromString("image")
	a := keyless(t, sigstore.TrustedRoot(), exactly(release))
	for _, w := range ways {
		for when, at := range map[string]time.Time{"now": time.Now(), "half a year ago": time.Now().AddDate(0, -6, 0)} {
			sig := sigstore.Sign(d, theImage, release, w.format, append([]cosigntest.Option{cosigntest.At(at)}, w.opts...)...)
			signer, err := a.Verify(t.Context(), d, sig)
			if err != nil {
				t.Errorf("%s, %s: %v", w.name, when, err)
				continue
			}
			want := verify.Signer{Authority: "keyless", Format: w.format, Identity: release.Subject + " (issuer " + release.Issuer + ")"}
			if signer != want {
				t.Errorf("%s: got %+v, want %+v", w.name, signer, want)
			}
			if _, err := a.Verify(t.Context(), digest.FromString("other"), sig); !errors.Is(err, verify.ErrOtherImage) {
				t.Errorf("%s, another image: got %v, want ErrOtherImage", w.name, err)
			}
		}
	}
}

func TestIdentityMatchesWholly(t *testing.T) {
	sigstore := cosigntest.New()
	d := digest.FromString("image")
	const repo = `https://github\.com/acme/ebpf/\.github/workflows/release\.yml@refs/tags/v.*`
	issuer := release.Issuer
	for _, tc := range []struct {
		name string
		who  cosigntest.Identity
		want *v1alpha1.Keyless
		err  error
	}{
		{"exact", release, exactly(release), nil},
		{"expression", release, &v1alpha1.Keyless{Issuer: issuer, SubjectRegexp: repo}, nil},
		{"both expressions", release, &v1alpha1.Keyless{IssuerRegexp: `https://token\.actions\.githubusercontent\.com`, SubjectRegexp: repo}, nil},
		{"anchored already", release, &v1alpha1.Keyless{Issuer: issuer, SubjectRegexp: "^" + repo + "$"}, nil},
		{"one of two", release, &v1alpha1.Keyless{Issuer: issuer, SubjectRegexp: "nobody@acme\\.test|" + repo}, nil},
		{"e-mail", cosigntest.Identity{Issuer: issuer, Subject: "me@acme.test"}, &v1alpha1.Keyless{Issuer: issuer, SubjectRegexp: `.*@acme\.test`}, nil},
		{"other issuer", cosigntest.Identity{Issuer: "https://evil.test", Subject: release.Subject}, exactly(release), verify.ErrOtherIssuer},
		{"other subject", cosigntest.Identity{Issuer: issuer, Subject: "https://github.com/evil/x"}, exactly(release), verify.ErrOtherSubject},
		{"longer issuer", cosigntest.Identity{Issuer: issuer + ".evil.test", Subject: release.Subject}, exactly(release), verify.ErrOtherIssuer},
		{"longer issuer, expression", cosigntest.Identity{Issuer: issuer + ".evil.test", Subject: release.Subject}, &v1alpha1.Keyless{IssuerRegexp: `https://token\.actions\.githubusercontent\.com`, Subject: release.Subject}, verify.ErrOtherIssuer},
		{"suffix", cosigntest.Identity{Issuer: issuer, Subject: "https://github.com/acme/ebpf-evil"}, &v1alpha1.Keyless{Issuer: issuer, SubjectRegexp: `https://github\.com/acme/ebpf`}, verify.ErrOtherSubject},
		{"prefix", cosigntest.Identity{Issuer: issuer, Subject: "https://evil.test/https://github.com/acme/ebpf"}, &v1alpha1.Keyless{Issuer: issuer, SubjectRegexp: `https://github\.com/acme/ebpf`}, verify.ErrOtherSubject},
		{"second line", cosigntest.Identity{Issuer: issuer + "\nx", Subject: release.Subject}, &v1alpha1.Keyless{IssuerRegexp: `(?m)https://token\.actions\.githubusercontent\.com$`, Subject: release.Subject}, verify.ErrOtherIssuer},
		{"an alternative's end", cosigntest.Identity{Issuer: issuer, Subject: "https://github.com/acme/a.evil"}, &v1alpha1.Keyless{Issuer: issuer, SubjectRegexp: `https://github\.com/acme/a|https://github\.com/acme/b`}, verify.ErrOtherSubject},
		{"case", cosigntest.Identity{Issuer: issuer, Subject: "https://github.com/ACME/ebpf"}, &v1alpha1.Keyless{Issuer: issuer, Subject: "https://github.com/acme/ebpf"}, verify.ErrOtherSubject},
		{"a dot is any character", cosigntest.Identity{Issuer: issuer, Subject: "https://githubXcom/acme/x"}, &v1alpha1.Keyless{Issuer: issuer, SubjectRegexp: `https://github\.com/acme/.*`}, verify.ErrOtherSubject},
	} {
		for _, f := range []image.Format{image.FormatTag, image.FormatBundle} {
			sig := sigstore.Sign(d, theImage, tc.who, f)
			if _, err := keyless(t, sigstore.TrustedRoot(), tc.want).Verify(t.Context(), d, sig); !errors.Is(err, tc.err) || (err == nil) != (tc.err == nil) {
				t.Errorf("%s, %s: got %v, want %v", tc.name, f, err, tc.err)
			}
		}
	}
}

func TestHostileIdentityIsQuotedAndShort(t *testing.T) {
	sigstore := cosigntest.New()
	d := digest.FromString("image")
	who := cosigntest.Identity{Issuer: "https://issuer.test\n\x1b[31mCleared: (issuer " + strings.Repeat("x", 5000), Subject: "https://acme.test/" + strings.Repeat("y", 5000)}
	sig := sigstore.Sign(d, theImage, who, image.FormatBundle)
	id := &v1alpha1.Keyless{IssuerRegexp: `(?s)https://issuer\.test.*`, SubjectRegexp: `https://acme\.test/y*`}
	signer, err := keyless(t, sigstore.TrustedRoot(), id).Verify(t.Context(), d, sig)
	if err != nil {
		t.Fatal(err)
	}
	if s := signer.String(); len(s) > 600 || strings.ContainsAny(s, "\n\x1b") || !strings.Contains(s, `"https://issuer.test\n`) {
		t.Errorf("got %q", s)
	}
	_, err = keyless(t, sigstore.TrustedRoot(), exactly(release)).Verify(t.Context(), d, sig)
	if err == nil || len(err.Error()) > 400 || strings.ContainsAny(err.Error(), "\n\x1b") {
		t.Errorf("got %v", err)
	}
}

func TestKeylessProofs(t *testing.T) {
	sigstore, stranger := cosigntest.New(), cosigntest.New()
	d := digest.FromString("image")
	now := time.Now()
	type options = []cosigntest.Option
	for _, tc := range []struct {
		name    string
		formats []image.Format
		opts    options
		want    error
	}{
		{"no SCT", formats, options{cosigntest.WithoutSCT()}, verify.ErrNoSCT},
		{"no log entry", formats, options{cosigntest.WithoutLog()}, verify.ErrNotLogged},
		{"no log entry, but a timestamp", formats, options{cosigntest.WithoutLog(), cosigntest.WithTimestamp()}, verify.ErrNotLogged},
		{"proof without any time", formats[2:], options{cosigntest.WithoutPromise()}, verify.ErrNoTime},
		{"rekor v2 without timestamp", formats[2:], options{cosigntest.RekorV2()}, verify.ErrNoTime},
		{"expired, without timestamp", formats[2:], options{cosigntest.RekorV2(), cosigntest.At(now.Add(-time.Hour))}, verify.ErrNoTime},
		{"expired, with timestamp", formats[2:], options{cosigntest.RekorV2(), cosigntest.At(now.Add(-time.Hour)), cosigntest.WithTimestamp()}, nil},
		{"stamped after it expired", formats, options{cosigntest.At(now.Add(-time.Hour)), cosigntest.StampedAt(now)}, verify.ErrExpired},
		{"stamped before it was valid", formats, options{cosigntest.StampedAt(now.Add(-time.Hour))}, verify.ErrExpired},
		{"before the log was trusted", formats, options{cosigntest.At(now.AddDate(-2, 0, 0))}, verify.ErrNotLogged},
	} {
		for _, f := range tc.formats {
			sig := sigstore.Sign(d, theImage, release, f, tc.opts...)
			_, err := keyless(t, sigstore.TrustedRoot(), exactly(release)).Verify(t.Context(), d, sig)
			if !errors.Is(err, tc.want) || (err == nil) != (tc.want == nil) {
				t.Errorf("%s, %s: got %v, want %v", tc.name, f, err, tc.want)
			}
			if _, err := keyless(t, stranger.TrustedRoot(), exactly(release)).Verify(t.Context(), d, sig); !errors.Is(err, verify.ErrOtherRoot) {
				t.Errorf("%s, %s, another root: got %v", tc.name, f, err)
			}
		}
	}
}

// CVE-2026-24122: cosign v2 looks at the validity of the signer's certificate alone.
func TestExpiredIntermediateIsRefused(t *testing.T) {
	sigstore := cosigntest.New()
	d := digest.FromString("image")
	now := time.Now()
	sigstore.ReissueIntermediate(now.AddDate(0, -2, 0), now.AddDate(0, -1, 0))
	for _, w := range ways {
		roots := [][]byte{sigstore.TrustedRoot()}
		if w.format != image.FormatBundle {
			roots = append(roots, sigstore.TrustedRootWithoutIntermediate()) // a bundle brings no chain
		}
		late := sigstore.Sign(d, theImage, release, w.format, w.opts...)
		timely := sigstore.Sign(d, theImage, release, w.format, append([]cosigntest.Option{cosigntest.At(now.AddDate(0, -1, -5))}, w.opts...)...)
		for _, trustedRoot := range roots {
			a := keyless(t, trustedRoot, exactly(release))
			if _, err := a.Verify(t.Context(), d, late); !errors.Is(err, verify.ErrExpired) {
				t.Errorf("%s: got %v, want ErrExpired", w.name, err)
			}
			if _, err := a.Verify(t.Context(), d, timely); err != nil {
				t.Errorf("%s, while it was valid: %v", w.name, err)
			}
		}
	}
}

// A private authority may keep its intermediates out of the trusted root; cosign v2 stores them beside the signature.
func TestChainBesideThePayload(t *testing.T) {
	sigstore, stranger := cosigntest.New(), cosigntest.New()
	d := digest.FromString("image")
	a := keyless(t, sigstore.TrustedRootWithoutIntermediate(), exactly(release))
	sig := sigstore.Sign(d, theImage, release, image.FormatTag)
	if _, err := a.Verify(t.Context(), d, sig); err != nil {
		t.Error(err)
	}
	foreign := stranger.Sign(d, theImage, release, image.FormatTag)
	if _, err := a.Verify(t.Context(), d, foreign); !errors.Is(err, verify.ErrOtherRoot) {
		t.Errorf("a chain to another root: got %v", err)
	}
	delete(sig.Annotations, "dev.sigstore.cosign/chain")
	if _, err := a.Verify(t.Context(), d, sig); !errors.Is(err, verify.ErrOtherRoot) {
		t.Errorf("without the chain: got %v", err)
	}
}

// CVE-2026-22703: an entry of the log counts for the signature it was made of, and so does a timestamp.
func TestProofOfAnotherSignature(t *testing.T) {
	sigstore := cosigntest.New()
	d := digest.FromString("image")
	a := keyless(t, sigstore.TrustedRoot(), exactly(release))
	for _, tc := range []struct {
		name   string
		format image.Format
		part   string
		opts   []cosigntest.Option
		want   error
	}{
		{"tag, entry", image.FormatTag, "dev.sigstore.cosign/bundle", nil, verify.ErrNotLogged},
		{"referrer, entry", image.FormatReferrer, "dev.sigstore.cosign/bundle", nil, verify.ErrNotLogged},
		{"bundle, entry", image.FormatBundle, "tlogEntries", nil, verify.ErrNotLogged},
		{"bundle, entry of rekor v2", image.FormatBundle, "tlogEntries", []cosigntest.Option{cosigntest.RekorV2(), cosigntest.WithTimestamp()}, verify.ErrNotLogged},
		{"bundle, timestamp", image.FormatBundle, "timestampVerificationData", []cosigntest.Option{cosigntest.RekorV2(), cosigntest.WithTimestamp()}, verify.ErrNoTime},
		{"bundle, certificate", image.FormatBundle, "certificate", nil, verify.ErrNotLogged},
		{"tag, certificate", image.FormatTag, "dev.sigstore.cosign/certificate", nil, verify.ErrNotLogged},
		{"tag, signature", image.FormatTag, "dev.cosignproject.cosign/signature", nil, verify.ErrNotLogged},
	} {
		// The other is of the same image, by the same signer.
		sig, other := sigstore.Sign(d, theImage, release, tc.format, tc.opts...), sigstore.Sign(d, theImage, release, tc.format, tc.opts...)
		if tc.format == image.FormatBundle {
			sig.Payload = edit(t, sig.Payload, func(b map[string]any) {
				material(b)[tc.part] = material(decode(t, other.Payload))[tc.part]
			})
		} else {
			sig.Annotations[tc.part] = other.Annotations[tc.part]
		}
		if _, err := a.Verify(t.Context(), d, sig); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.name, err, tc.want)
		}
	}
}

func TestKeysAndIdentitiesAreApart(t *testing.T) {
	sigstore := cosigntest.New()
	d := digest.FromString("image")
	priv, pub := pair(t, "p256")
	a := keyless(t, sigstore.TrustedRoot(), exactly(release))
	for _, f := range formats {
		if _, err := a.Verify(t.Context(), d, sign(t, priv, d, f)); !errors.Is(err, verify.ErrNoCertificate) {
			t.Errorf("%s by a key: got %v, want ErrNoCertificate", f, err)
		}
		if _, err := authority(t, pub).Verify(t.Context(), d, sigstore.Sign(d, theImage, release, f)); !errors.Is(err, verify.ErrOtherKey) {
			t.Errorf("%s by an identity: got %v, want ErrOtherKey", f, err)
		}
	}
}

func TestKeylessThatIsRefusedAtOnce(t *testing.T) {
	good := string(cosigntest.New().TrustedRoot())
	root := &v1alpha1.TrustedRoot{Data: good}
	const issuer = "https://issuer.test"
	everybody := []string{".*", ".+", "^.*$", "(.*)", "(?s).*", ".*|x", "x|.*", `\S+`, "[^x]*", ".{3,}", "https://.*", "http.*", ".*@.*", `[a-z]+://.*`, ".*e.*", ".*/.*", "(?i)[A-Z0-9/.:@-]+", ".*.*", "(.*)*", "^(?:.*)$", `\w*`, ".*@.*|x"}
	for _, e := range everybody {
		for what, id := range map[string]*v1alpha1.Keyless{
			"subjectRegexp": {Issuer: issuer, SubjectRegexp: e},
			"issuerRegexp":  {IssuerRegexp: e, Subject: "me@acme.test"},
		} {
			_, err := cosign.Compile(v1alpha1.Authority{Keyless: id, TrustedRoot: root}, "")
			if err == nil || !strings.Contains(err.Error(), "keyless."+what+": matches anybody") {
				t.Errorf("%s %q: got %v", what, e, err)
			}
		}
	}
	for _, tc := range []struct {
		name string
		id   v1alpha1.Keyless
		root *v1alpha1.TrustedRoot
		want string
	}{
		{"no issuer", v1alpha1.Keyless{Subject: "me"}, root, "keyless.issuer: is missing; write issuer or issuerRegexp"},
		{"no subject", v1alpha1.Keyless{Issuer: issuer}, root, "keyless.subject: is missing; write subject or subjectRegexp"},
		{"two issuers", v1alpha1.Keyless{Issuer: issuer, IssuerRegexp: "x", Subject: "me"}, root, "keyless.issuer: has both issuer and issuerRegexp; write one"},
		{"two subjects", v1alpha1.Keyless{Issuer: issuer, Subject: "me", SubjectRegexp: "me"}, root, "keyless.subject: has both subject and subjectRegexp; write one"},
		{"broken expression", v1alpha1.Keyless{Issuer: issuer, SubjectRegexp: "a("}, root, "keyless.subjectRegexp: is no regular expression (RE2): "},
		{"look-ahead", v1alpha1.Keyless{Issuer: issuer, SubjectRegexp: "(?!a)"}, root, "keyless.subjectRegexp: is no regular expression (RE2): "},
		{"out of the group", v1alpha1.Keyless{Issuer: issuer, SubjectRegexp: "a)|(?:b"}, root, "keyless.subjectRegexp: is no regular expression (RE2): "},
		{"repeated too often", v1alpha1.Keyless{Issuer: issuer, SubjectRegexp: "((a{99}){99}){99}"}, root, "keyless.subjectRegexp: is no regular expression (RE2): "},
		{"too large", v1alpha1.Keyless{Issuer: issuer, SubjectRegexp: strings.Repeat("(a{99}){10}", 20)}, root, "instructions; the limit is 10000"},
		{"too long", v1alpha1.Keyless{Issuer: issuer, SubjectRegexp: strings.Repeat("a", 1025)}, root, "keyless.subjectRegexp: has 1025 bytes; the limit is 1024"},
		{"too long a subject", v1alpha1.Keyless{Issuer: issuer, Subject: strings.Repeat("a", 1025)}, root, "keyless.subject: has 1025 bytes; the limit is 1024"},
		{"no root", v1alpha1.Keyless{Issuer: issuer, Subject: "me"}, nil, "trustedRoot: is missing; keyless needs a trusted_root.json, as file or data"},
		{"empty root", v1alpha1.Keyless{Issuer: issuer, Subject: "me"}, &v1alpha1.TrustedRoot{}, "trustedRoot: is missing"},
		{"two roots", v1alpha1.Keyless{Issuer: issuer, Subject: "me"}, &v1alpha1.TrustedRoot{File: "/x", Data: good}, "trustedRoot: has both file and data; write one"},
		{"junk root", v1alpha1.Keyless{Issuer: issuer, Subject: "me"}, &v1alpha1.TrustedRoot{Data: "junk"}, "trustedRoot.data: is no trusted_root.json of sigstore: "},
		{"half a root", v1alpha1.Keyless{Issuer: issuer, Subject: "me"}, &v1alpha1.TrustedRoot{Data: good[:len(good)/2]}, "trustedRoot.data: is no trusted_root.json of sigstore: "},
		{"root of nothing", v1alpha1.Keyless{Issuer: issuer, Subject: "me"}, &v1alpha1.TrustedRoot{Data: `{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}`}, "trustedRoot.data: has no certificate authority"},
		{"relative to nothing", v1alpha1.Keyless{Issuer: issuer, Subject: "me"}, &v1alpha1.TrustedRoot{File: "root.json"}, `trustedRoot.file: "root.json" is not absolute`},
	} {
		_, err := cosign.Compile(v1alpha1.Authority{Keyless: &tc.id, TrustedRoot: tc.root}, "")
		if err == nil || !strings.Contains(err.Error(), tc.want) || len(err.Error()) > 700 {
			t.Errorf("%s: got %v, want %q", tc.name, err, tc.want)
		}
	}
}

func TestExpressionsThatNameSomebody(t *testing.T) {
	root := &v1alpha1.TrustedRoot{Data: string(cosigntest.New().TrustedRoot())}
	for _, e := range []string{
		`https://github\.com/acme/.*`, `.*@acme\.test`, `https://github\.com/(acme|beta)/[^/]+/\.github/workflows/.*@refs/tags/v\d+\.\d+\.\d+`,
		`spiffe://acme\.test/.*`, `(?i)me@acme\.test`, `https://gitlab\.acme\.test/.*//\.gitlab-ci\.yml@refs/heads/main`, `me`,
	} {
		if _, err := cosign.Compile(v1alpha1.Authority{Keyless: &v1alpha1.Keyless{Issuer: "https://issuer.test", SubjectRegexp: e}, TrustedRoot: root}, ""); err != nil {
			t.Errorf("%q: %v", e, err)
		}
	}
}

func TestSecondBundleCounts(t *testing.T) {
	sigstore := cosigntest.New()
	d := digest.FromString("image")
	a := keyless(t, sigstore.TrustedRoot(), exactly(release))
	sigs := []image.Signature{
		sigstore.Sign(d, theImage, release, image.FormatBundle, cosigntest.WithoutLog()),
		sigstore.Sign(d, theImage, release, image.FormatBundle),
	}
	counts := func(s image.Signature) bool {
		_, err := a.Verify(t.Context(), d, s)
		return err == nil
	}
	if i := slices.IndexFunc(sigs, counts); i != 1 {
		t.Errorf("the one that counts is %d, want 1", i)
	}
}
