// SPDX-License-Identifier: Apache-2.0

package cosign_test

import (
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/bpfvol/bpfvol/internal/image"
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
