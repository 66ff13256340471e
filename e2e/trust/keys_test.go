// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"maps"
	"slices"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/internal/image"
)

// keyPair is a key in PEM, without a password.
type keyPair struct{ private, public []byte }

// Keys, each of which exists once.
var (
	releaseKey  = sync.OnceValue(func() keyPair { return pair(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) })
	strangerKey = sync.OnceValue(func() keyPair { return pair(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) })
	p384Key     = sync.OnceValue(func() keyPair { return pair(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)) })
	rsaKey      = sync.OnceValue(func() keyPair { return pair(rsa.GenerateKey(rand.Reader, 2048)) })
	ed25519Key  = sync.OnceValue(func() keyPair {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return pair(key, err)
	})
)

func pair(key crypto.Signer, err error) keyPair {
	if err != nil {
		panic(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		panic(err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		panic(err)
	}
	return keyPair{
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
		pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}),
	}
}

// keys are authorities, any of which suffices.
func keys(pairs ...keyPair) []v1alpha1.Authority {
	var as []v1alpha1.Authority
	for _, k := range pairs {
		as = append(as, v1alpha1.Authority{Key: &v1alpha1.Key{Data: string(k.public)}})
	}
	return as
}

var kindsOfKeys = map[string]func() keyPair{"p256": releaseKey, "p384": p384Key, "rsa": rsaKey, "ed25519": ed25519Key}

func keyPolicies() map[string]v1alpha1.BytecodePolicySpec {
	all := map[string]v1alpha1.BytecodePolicySpec{"rotated": {Authorities: keys(strangerKey(), releaseKey())}}
	for kind, key := range kindsOfKeys {
		all["key-"+kind] = v1alpha1.BytecodePolicySpec{Authorities: keys(key())}
	}
	return all
}

// keyCases are every kind of key in every format that cosign v2 and v3 store signatures in.
func keyCases() []testCase {
	signed := func(key func() keyPair, f image.Format) func(*testing.T, repository) digest.Digest {
		return func(t *testing.T, r repository) digest.Digest {
			d := r.push(t, "v1")
			r.sign(t, key(), d, f)
			return d
		}
	}
	var cases []testCase
	for _, f := range signatureFormats {
		for _, kind := range slices.Sorted(maps.Keys(kindsOfKeys)) {
			cases = append(cases, testCase{name: "Key-" + kind + "-" + string(f), policy: "key-" + kind, push: signed(kindsOfKeys[kind], f)})
		}
		cases = append(cases,
			testCase{name: "SecondOfTwoKeys-" + string(f), policy: "rotated", push: signed(releaseKey, f)},
			testCase{name: "WrongKey-" + string(f), push: signed(strangerKey, f), code: codes.PermissionDenied, says: byAnotherKey},
			testCase{name: "WrongKindOfKey-" + string(f), push: signed(rsaKey, f), code: codes.PermissionDenied, says: byAnotherKey},
		)
	}
	return cases
}

const byAnotherKey = `image $SIGNED: no signature by policy "release" (found 1: by another key); sign it with a key of the policy or ask an admin to add yours`
