// SPDX-License-Identifier: Apache-2.0

package cosign

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	bundlepb "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	"github.com/sigstore/sigstore-go/pkg/root"
	sgverify "github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/cryptoutils/goodkey"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/options"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/verify"
)

// keyWay is whoever holds one private key. The transparency log is not asked for: a key in a policy is trust enough, and
// nodes without a way out can verify.
type keyWay struct {
	key     *publicKey
	bundles *sgverify.Verifier
}

func compileKey(spec *v1alpha1.Key) (*keyWay, error) {
	k, err := parsePublicKey([]byte(spec.Data))
	if err != nil {
		return nil, fmt.Errorf("key.data: %w", err)
	}
	key := root.NewExpiringKey(k.verifier, time.Time{}, time.Time{})
	v, err := sgverify.NewVerifier(
		root.NewTrustedPublicKeyMaterial(func(string) (root.TimeConstrainedVerifier, error) { return key, nil }),
		sgverify.WithNoObserverTimestamps(), // a key has no validity that a time would be compared with
		sgverify.WithoutStatementPredicate(),
	)
	if err != nil {
		return nil, err
	}
	return &keyWay{key: k, bundles: v}, nil
}

// Name implements verify.Authority.
func (*keyWay) Name() string { return "key" }

func (w *keyWay) bundle(_ context.Context, d digest.Digest, sig image.Signature) (statement, string, error) {
	b, err := readBundle(sig, func(m *bundlepb.VerificationMaterial) error {
		m.TlogEntries, m.TimestampVerificationData = nil, nil // what is not asked for is not read
		return nil
	})
	if err != nil {
		return statement{}, "", err
	}
	artifact, err := about(d)
	if err != nil {
		return statement{}, "", err
	}
	res, err := w.bundles.Verify(b, sgverify.NewPolicy(artifact, sgverify.WithKey()))
	if err != nil {
		// Was it the signature or what it is about? The second attempt only words the refusal.
		if _, err := w.bundles.Verify(b, sgverify.NewPolicy(sgverify.WithoutArtifactUnsafe(), sgverify.WithKey())); err == nil {
			return statement{}, "", verify.ErrOtherImage
		}
		return statement{}, "", fmt.Errorf("%w: %.200q", verify.ErrOtherKey, err.Error())
	}
	s, err := newStatement(b, res)
	return s, w.key.fingerprint, err
}

// publicKey is a key that policies name.
type publicKey struct {
	verifier    signature.Verifier
	fingerprint string
}

// parsePublicKey reads exactly one PEM block: a second key would otherwise be ignored without a word.
func parsePublicKey(data []byte) (*publicKey, error) {
	data = bytes.TrimSpace(data)
	if !bytes.HasPrefix(data, []byte("-----BEGIN ")) {
		return nil, errors.New(`is not PEM; it must begin with "-----BEGIN PUBLIC KEY-----"`)
	}
	block, rest := pem.Decode(data)
	switch {
	case block == nil:
		return nil, errors.New("is not PEM; is a line broken?")
	case len(bytes.TrimSpace(rest)) > 0:
		return nil, errors.New("has text after the first PEM block; give each key its own entry")
	case strings.Contains(block.Type, "PRIVATE KEY"):
		return nil, errors.New("is a private key; put the public key here and make a new pair if others could read it")
	}
	pub, err := cryptoutils.UnmarshalPEMToPublicKey(data)
	if err != nil {
		return nil, fmt.Errorf("PEM block %.40q: %w", block.Type, err)
	}
	if err := goodkey.ValidatePubKey(pub); err != nil {
		return nil, fmt.Errorf("is not a key that cosign takes: %w", err)
	}
	v, err := newVerifier(pub)
	if err != nil {
		return nil, err
	}
	der, err := cryptoutils.MarshalPublicKeyToDER(pub)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(der)
	return &publicKey{verifier: v, fingerprint: "sha256:" + hex.EncodeToString(sum[:])}, nil
}

// Fingerprint names a public key: the hash of its DER encoding, which cosign writes into bundles in base64.
func Fingerprint(pubPEM []byte) (string, error) {
	k, err := parsePublicKey(pubPEM)
	if err != nil {
		return "", fmt.Errorf("public key: %w", err)
	}
	return k.fingerprint, nil
}

// newVerifier takes a signature in every way that some cosign makes one with such a key. With P-384, P-521 and
// Ed25519 they differ by version and format: SHA-256 or the curve's own hash, Ed25519 or Ed25519ph.
func newVerifier(pub crypto.PublicKey) (signature.Verifier, error) {
	ways := [][]signature.LoadOption{{options.WithHash(crypto.SHA256)}}
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		switch pub.Curve {
		case elliptic.P384():
			ways = append(ways, []signature.LoadOption{options.WithHash(crypto.SHA384)})
		case elliptic.P521():
			ways = append(ways, []signature.LoadOption{options.WithHash(crypto.SHA512)})
		}
	case ed25519.PublicKey:
		ways = append(ways, []signature.LoadOption{options.WithED25519ph()})
	}
	var any anyWay
	for _, w := range ways {
		v, err := signature.LoadVerifierWithOpts(pub, w...)
		if err != nil {
			return nil, err
		}
		any = append(any, v)
	}
	return any, nil
}

// anyWay is one key and the ways it may have been used.
type anyWay []signature.Verifier

func (a anyWay) PublicKey(opts ...signature.PublicKeyOption) (crypto.PublicKey, error) {
	return a[0].PublicKey(opts...)
}

func (a anyWay) VerifySignature(sig, message io.Reader, opts ...signature.VerifyOption) error {
	s, err := io.ReadAll(sig)
	if err != nil {
		return err
	}
	m, err := io.ReadAll(message)
	if err != nil {
		return err
	}
	for _, v := range a {
		if err = v.VerifySignature(bytes.NewReader(s), bytes.NewReader(m), opts...); err == nil {
			return nil
		}
	}
	return err
}
