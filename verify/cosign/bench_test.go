// SPDX-License-Identifier: Apache-2.0

package cosign_test

import "testing"

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
