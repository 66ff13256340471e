// SPDX-License-Identifier: Apache-2.0

package cosign

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	"github.com/sigstore/cosign/v2/pkg/cosign"
	"github.com/sigstore/cosign/v2/pkg/oci/static"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/sign"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/cryptoutils/goodkey"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/options"
	"github.com/sigstore/sigstore/pkg/signature/payload"

	"github.com/bpfvol/bpfvol/internal/image"
)

// GenerateKey makes a P-256 key pair as `cosign generate-key-pair` does: the private key encrypted with the password,
// which may be empty, and the public key for policies.
func GenerateKey(password []byte) (privPEM, pubPEM []byte, err error) {
	keys, err := cosign.GenerateKeyPair(func(bool) ([]byte, error) { return password, nil })
	if err != nil {
		return nil, nil, fmt.Errorf("key pair: %w", err)
	}
	return keys.PrivateBytes, keys.PublicBytes, nil
}

// Sign approves d in one of cosign's formats. ref is what the payload says the image is called; nobody compares it.
// The private key is one of cosign's, or PEM without a password (PKCS #8, PKCS #1 or SEC 1).
func Sign(_ context.Context, privPEM, password []byte, d digest.Digest, ref image.Reference, f image.Format) (image.Signature, error) {
	if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
		return image.Signature{}, fmt.Errorf("sign %.100q: is not a SHA-256 digest", d)
	}
	signer, err := loadSigner(privPEM, password)
	if err != nil {
		return image.Signature{}, fmt.Errorf("private key: %w", err)
	}
	pub, err := signer.PublicKey()
	if err != nil {
		return image.Signature{}, fmt.Errorf("private key: %w", err)
	}
	if err := goodkey.ValidatePubKey(pub); err != nil {
		return image.Signature{}, fmt.Errorf("private key: is not one that cosign takes: %w", err)
	}
	switch f {
	case image.FormatTag, image.FormatReferrer:
		return signPayload(signer, d, ref, f)
	case image.FormatBundle:
		return signBundle(signer, pub, d)
	}
	return image.Signature{}, fmt.Errorf("sign %s: unknown format %q; there are %s, %s and %s", d, f, image.FormatTag, image.FormatReferrer, image.FormatBundle)
}

// loadSigner reads a private key.
func loadSigner(privPEM, password []byte) (signature.Signer, error) {
	block, _ := pem.Decode(privPEM)
	if block == nil {
		return nil, errors.New("is not PEM")
	}
	var key crypto.PrivateKey
	var err error
	switch block.Type {
	case cosign.CosignPrivateKeyPemType, cosign.SigstorePrivateKeyPemType:
		s, err := cosign.LoadPrivateKey(privPEM, password, &[]signature.LoadOption{})
		if err != nil {
			return nil, fmt.Errorf("%w; is the password right?", err)
		}
		return s, nil
	case cosign.PrivateKeyPemType:
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case cosign.RSAPrivateKeyPemType:
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case cosign.ECPrivateKeyPemType:
		key, err = x509.ParseECPrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("PEM block %.40q is no private key that cosign writes, nor one without a password", block.Type)
	}
	if err != nil {
		return nil, fmt.Errorf("PEM block %.40q: %w", block.Type, err)
	}
	return signature.LoadSigner(key, crypto.SHA256)
}

// signMessage signs with SHA-256, or pure Ed25519, whatever the key: `cosign verify --key` tries nothing else unless
// told to, not even what `cosign sign` makes of a P-384 or Ed25519 key itself.
func signMessage(s signature.Signer, message []byte) ([]byte, error) {
	return s.SignMessage(bytes.NewReader(message), options.WithCryptoSignerOpts(crypto.SHA256))
}

// signPayload writes what `cosign sign` of v2 does: a JSON document and a signature beside it.
func signPayload(signer signature.Signer, d digest.Digest, ref image.Reference, f image.Format) (image.Signature, error) {
	registry := ref.Registry
	if registry == "docker.io" {
		registry = "index.docker.io" // as cosign spells it
	}
	doc, err := json.Marshal(payload.SimpleContainerImage{Critical: payload.Critical{
		Identity: payload.Identity{DockerReference: registry + "/" + ref.Repository},
		Image:    payload.Image{DockerManifestDigest: d.String()},
		Type:     payload.CosignSignatureType,
	}})
	if err != nil {
		return image.Signature{}, err
	}
	sig, err := signMessage(signer, doc)
	if err != nil {
		return image.Signature{}, fmt.Errorf("sign %s: %w", d, err)
	}
	return image.Signature{
		Format:      f,
		Payload:     doc,
		Annotations: map[string]string{static.SignatureAnnotationKey: base64.StdEncoding.EncodeToString(sig)},
	}, nil
}

// bundleMediaType is the version that cosign v2 and v3 write.
const bundleMediaType = "application/vnd.dev.sigstore.bundle.v0.3+json"

// signBundle writes what `cosign sign` of v3 does: a statement about the digest in a DSSE envelope.
func signBundle(signer signature.Signer, pub crypto.PublicKey, d digest.Digest) (image.Signature, error) {
	der, err := cryptoutils.MarshalPublicKeyToDER(pub)
	if err != nil {
		return image.Signature{}, err
	}
	hint := sha256.Sum256(der)
	statement, err := json.Marshal(map[string]any{
		"_type":         "https://in-toto.io/Statement/v1",
		"subject":       []any{map[string]any{"digest": map[string]string{d.Algorithm().String(): d.Encoded()}}},
		"predicateType": signPredicate,
		"predicate":     struct{}{},
	})
	if err != nil {
		return image.Signature{}, err
	}
	content := sign.DSSEData{Data: statement, PayloadType: bundle.IntotoMediaType}
	sig, err := signMessage(signer, content.PreAuthEncoding())
	if err != nil {
		return image.Signature{}, fmt.Errorf("sign %s: %w", d, err)
	}
	// protojson puts spaces in at random; the same input shall make the same bytes.
	raw, err := json.Marshal(map[string]any{
		"mediaType": bundleMediaType,
		"verificationMaterial": map[string]any{
			"publicKey": map[string]string{"hint": base64.StdEncoding.EncodeToString(hint[:])},
		},
		"dsseEnvelope": map[string]any{
			"payload":     content.Data,
			"payloadType": content.PayloadType,
			"signatures":  []any{map[string][]byte{"sig": sig}},
		},
	})
	if err != nil {
		return image.Signature{}, err
	}
	return image.Signature{Format: image.FormatBundle, Payload: raw}, nil
}
