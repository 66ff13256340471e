// SPDX-License-Identifier: Apache-2.0

package cosign_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/verify/cosign"
	"github.com/bpfvol/bpfvol/verify/cosign/cosigntest"
)

// FuzzVerify mutates signatures that real cosign wrote: none may panic, and none that differs may pass for another
// image.
func FuzzVerify(f *testing.F) {
	for name := range written {
		for _, s := range readVector(f, name).signatures(f) {
			f.Add(string(s.Format), s.Payload, s.Annotations["dev.cosignproject.cosign/signature"], "")
		}
	}
	f.Add("tag", []byte("{}"), "AAAA", rekorAnnotation("1"))
	a := authority(f, readVector(f, "v3-bundle").key)
	other := digest.FromString("an image nobody signed")
	f.Fuzz(func(t *testing.T, format string, payload []byte, sig, log string) {
		s := image.Signature{Format: image.Format(format), Payload: payload, Annotations: map[string]string{
			"dev.cosignproject.cosign/signature": sig,
			"dev.sigstore.cosign/bundle":         log,
		}}
		if _, err := a.Verify(t.Context(), other, s); err == nil {
			t.Error("was accepted")
		} else if strings.Contains(err.Error(), "panic") {
			t.Error(err)
		}
	})
}

// FuzzKeyless mutates what comes with a certificate, in a bundle and in annotations.
func FuzzKeyless(f *testing.F) {
	sigstore := cosigntest.New()
	d := digest.FromString("image")
	for _, w := range ways {
		s := sigstore.Sign(d, theImage, release, w.format, w.opts...)
		f.Add(string(w.format), s.Payload, s.Annotations["dev.cosignproject.cosign/signature"], s.Annotations["dev.sigstore.cosign/certificate"],
			s.Annotations["dev.sigstore.cosign/chain"], s.Annotations["dev.sigstore.cosign/bundle"], s.Annotations["dev.sigstore.cosign/rfc3161timestamp"])
	}
	f.Add("bundle", sigstore.Attest(d, release, cosigntest.SLSA, cosigntest.Provenance(builder)).Payload, "", "", "", "", "")
	a := keyless(f, sigstore.TrustedRoot(), exactly(release), provenance)
	other := digest.FromString("an image nobody signed")
	f.Fuzz(func(t *testing.T, format string, payload []byte, sig, cert, chain, log, stamp string) {
		s := image.Signature{Format: image.Format(format), Payload: payload, Annotations: map[string]string{
			"dev.cosignproject.cosign/signature":   sig,
			"dev.sigstore.cosign/certificate":      cert,
			"dev.sigstore.cosign/chain":            chain,
			"dev.sigstore.cosign/bundle":           log,
			"dev.sigstore.cosign/rfc3161timestamp": stamp,
		}}
		_, err := a.Verify(t.Context(), other, s)
		for _, err := range []error{err, a.Attests(t.Context(), other, s, provenance)} {
			if err == nil {
				t.Error("was accepted")
			} else if strings.Contains(err.Error(), "panic") {
				t.Error(err)
			}
		}
	})
}

// FuzzTrustedRoot parses what an admin wrote, and verifies with what it makes of it.
func FuzzTrustedRoot(f *testing.F) {
	sigstore := cosigntest.New()
	f.Add(sigstore.TrustedRoot())
	f.Add(sigstore.TrustedRootWithoutIntermediate())
	d := digest.FromString("image")
	var sigs []image.Signature
	for _, w := range ways {
		sigs = append(sigs, sigstore.Sign(d, theImage, release, w.format, w.opts...))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := cosign.Compile(v1alpha1.Authority{Keyless: exactly(release), TrustedRoot: &v1alpha1.TrustedRoot{Data: string(data)}}, "")
		if err != nil {
			if strings.Contains(err.Error(), "panic") {
				t.Error(err)
			}
			return
		}
		for _, s := range sigs {
			if _, err := a.Verify(t.Context(), d, s); err != nil && strings.Contains(err.Error(), "panic") {
				t.Error(err)
			}
		}
	})
}

// FuzzIdentity compiles what an admin wrote: what is taken matches no nobody.
func FuzzIdentity(f *testing.F) {
	root := &v1alpha1.TrustedRoot{Data: string(cosigntest.New().TrustedRoot())}
	for _, e := range []string{".*", `https://github\.com/acme/.*`, "a)|(?:b", "(?i)x", "((a{9}){9}){9}"} {
		f.Add(e)
	}
	f.Fuzz(func(t *testing.T, expression string) {
		_, err := cosign.Compile(v1alpha1.Authority{Keyless: &v1alpha1.Keyless{Issuer: "https://issuer.test", SubjectRegexp: expression}, TrustedRoot: root}, "")
		if err != nil {
			return
		}
		if re := regexp.MustCompile("^(?:" + expression + ")$"); re.MatchString("nobody@nobody.invalid") {
			t.Errorf("%q matches nobody", expression)
		}
	})
}

func FuzzPublicKey(f *testing.F) {
	for _, name := range []string{"v3-bundle", "v3-bundle-rsa", "v3-bundle-p384", "v3-bundle-ed25519"} {
		f.Add(readVector(f, name).key)
	}
	f.Fuzz(func(t *testing.T, pem []byte) {
		a, err := compileKey(pem)
		if err == nil && a.Name() != "key" {
			t.Error("an authority without a name")
		}
	})
}
