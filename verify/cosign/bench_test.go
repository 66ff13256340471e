// SPDX-License-Identifier: Apache-2.0

package cosign_test

import (
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/bpfvol/bpfvol/verify/cosign/cosigntest"
)

// BenchmarkVerifyKey is what each publish pays for its signature; the limit is 0.3 ms (300,000 ns/op).
func BenchmarkVerifyKey(b *testing.B) {
	for _, name := range []string{"v2-tag", "v3-bundle", "v2-tag-rsa", "v3-bundle-ed25519"} {
		v := readVector(b, name)
		a, s := authority(b, v.key), v.signatures(b)[0]
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := a.Verify(b.Context(), v.image, s); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkVerifyKeyless is the same without a key; the limit is 2 ms.
func BenchmarkVerifyKeyless(b *testing.B) {
	sigstore := cosigntest.New()
	d := digest.FromString("image")
	a := keyless(b, sigstore.TrustedRoot(), exactly(release))
	for _, w := range ways {
		s := sigstore.Sign(d, theImage, release, w.format, w.opts...)
		b.Run(w.name, func(b *testing.B) {
			for b.Loop() {
				if _, err := a.Verify(b.Context(), d, s); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
