// SPDX-License-Identifier: Apache-2.0

// Package cosigntest is a sigstore of its own, in memory: a certificate authority, a certificate log, Rekor in both
// versions and a timestamp authority. It signs images without a key, by the calls of cosign's libraries and in each format
// that cosign v2 and v3 write.
//
//	sigstore := cosigntest.New()
//	os.WriteFile("trusted_root.json", sigstore.TrustedRoot(), 0o600)
//	sig := sigstore.Sign(root, ref, cosigntest.Identity{Issuer: "https://issuer.test", Subject: "me@acme.test"}, image.FormatBundle)
//
// Options make what a verifier must refuse. For tests and benchmarks only: whatever goes wrong panics.
package cosigntest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"time"

	"github.com/sigstore/sigstore-go/pkg/root"
)

// Identity is who signs: what an OIDC issuer would say of them. A subject with "://" is a URI, any other an e-mail address.
type Identity struct{ Issuer, Subject string }

// Sigstore is the services and their keys.
type Sigstore struct {
	root, intermediate *issuer // Fulcio's
	tsa                *issuer
	stamper            *issuer // what the TSA signs with
	rekor, ct          *ecdsa.PrivateKey
	start, end         time.Time // what the trusted root says of each
}

// New sets up a sigstore that no other trusts. Its authorities are valid for a year to both sides of now.
func New() *Sigstore {
	const year = 365 * 24 * time.Hour
	s := &Sigstore{rekor: newKey(), ct: newKey(), start: time.Now().Add(-year), end: time.Now().Add(year)}
	s.root = newRoot("fulcio", s.start, s.end)
	s.tsa = newRoot("tsa", s.start, s.end)
	s.stamper = s.tsa.issue(stamperTemplate(s.start, s.end))
	s.ReissueIntermediate(s.start, s.end)
	return s
}

// ReissueIntermediate replaces the certificate that signs signers' certificates, with a validity of its own.
func (s *Sigstore) ReissueIntermediate(notBefore, notAfter time.Time) {
	s.intermediate = s.root.issue(intermediateTemplate(notBefore, notAfter))
}

// TrustedRoot is the trusted_root.json that trusts all of it.
func (s *Sigstore) TrustedRoot() []byte { return s.trustedRoot(s.intermediate.cert) }

// TrustedRootWithoutIntermediate leaves the intermediate certificate to the signature's chain, as a private authority may.
func (s *Sigstore) TrustedRootWithoutIntermediate() []byte { return s.trustedRoot() }

func (s *Sigstore) trustedRoot(intermediates ...*x509.Certificate) []byte {
	r := must(root.NewTrustedRoot(root.TrustedRootMediaType01,
		[]root.CertificateAuthority{&root.FulcioCertificateAuthority{
			Root: s.root.cert, Intermediates: intermediates,
			ValidityPeriodStart: s.start, ValidityPeriodEnd: s.end, URI: "https://fulcio.test",
		}},
		s.logs(s.ct, "https://ct.test"),
		[]root.TimestampingAuthority{&root.SigstoreTimestampingAuthority{
			Root: s.tsa.cert, Leaf: s.stamper.cert,
			ValidityPeriodStart: s.start, ValidityPeriodEnd: s.end, URI: "https://tsa.test",
		}},
		s.logs(s.rekor, "https://"+rekorHost),
	))
	return must(r.MarshalJSON())
}

func (s *Sigstore) logs(key *ecdsa.PrivateKey, url string) map[string]*root.TransparencyLog {
	id := logID(key)
	return map[string]*root.TransparencyLog{hex.EncodeToString(id): {
		BaseURL: url, ID: id,
		ValidityPeriodStart: s.start, ValidityPeriodEnd: s.end,
		HashFunc: crypto.SHA256, SignatureHashFunc: crypto.SHA256, PublicKey: key.Public(),
	}}
}

// logID names a log by its key. (RFC 6962, 3.2)
func logID(key *ecdsa.PrivateKey) []byte {
	sum := sha256.Sum256(must(x509.MarshalPKIXPublicKey(key.Public())))
	return sum[:]
}

func newKey() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
