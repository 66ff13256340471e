// SPDX-License-Identifier: Apache-2.0

package cosigntest

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/sigstore/cosign/v2/pkg/cosign"
	cosignbundle "github.com/sigstore/cosign/v2/pkg/cosign/bundle"
	"github.com/sigstore/cosign/v2/pkg/oci/static"
	rekorclient "github.com/sigstore/rekor/pkg/generated/client"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/sign"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature/payload"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/bpfvol/bpfvol/internal/image"
)

// signed is how a signature is made.
type signed struct {
	at, stamped                    time.Time
	noSCT, noLog, noPromise, tiled bool
	withTimestamp                  bool
}

// Option changes how a signature is made. Without any it is as cosign makes them today: a certificate that is in a
// certificate log, an entry of Rekor v1 with promise and proof, no timestamp.
type Option func(*signed)

// At makes the certificate, the log entry and the timestamp at another time than now.
func At(t time.Time) Option { return func(s *signed) { s.at, s.stamped = t, t } }

// WithoutSCT makes a certificate that no certificate log has seen.
func WithoutSCT() Option { return func(s *signed) { s.noSCT = true } }

// WithoutLog makes no entry in the transparency log.
func WithoutLog() Option { return func(s *signed) { s.noLog = true } }

// WithoutPromise leaves the entry its proof of inclusion alone, which says no time. For bundles.
func WithoutPromise() Option { return func(s *signed) { s.noPromise = true } }

// RekorV2 makes an entry in a log on tiles. For bundles.
func RekorV2() Option { return func(s *signed) { s.tiled = true } }

// WithTimestamp has the signature stamped by the timestamp authority.
func WithTimestamp() Option { return func(s *signed) { s.withTimestamp = true } }

// StampedAt is WithTimestamp at another time than the rest.
func StampedAt(t time.Time) Option {
	return func(s *signed) { s.withTimestamp, s.stamped = true, t }
}

func options(opts []Option) signed {
	now := time.Now().Truncate(time.Second)
	s := signed{at: now, stamped: now}
	for _, o := range opts {
		o(&s)
	}
	return s
}

// Predicate types.
const (
	SignPredicate = "https://sigstore.dev/cosign/sign/v1" // an image signature
	SLSA          = "https://slsa.dev/provenance/v1"
)

// Sign approves an image to run.
func (s *Sigstore) Sign(d digest.Digest, ref image.Reference, id Identity, f image.Format, opts ...Option) image.Signature {
	switch f {
	case image.FormatTag, image.FormatReferrer:
		return s.signPayload(d, ref, id, f, options(opts))
	case image.FormatBundle:
		return s.Attest(d, id, SignPredicate, struct{}{}, opts...)
	}
	panic(fmt.Sprintf("there is no format %q", f))
}

// Attest states something about an image, in a bundle as `cosign attest` of v3 makes it.
func (s *Sigstore) Attest(d digest.Digest, id Identity, predicateType string, predicate any, opts ...Option) image.Signature {
	how := options(opts)
	statement := must(json.Marshal(map[string]any{
		"_type":         "https://in-toto.io/Statement/v1",
		"subject":       []any{map[string]any{"digest": map[string]string{d.Algorithm().String(): d.Encoded()}}},
		"predicateType": predicateType,
		"predicate":     predicate,
	}))
	with := sign.BundleOptions{CertificateProvider: &fulcio{Sigstore: s, id: id, signed: how}}
	switch {
	case how.noLog:
	case how.tiled:
		with.TransparencyLogs = []sign.Transparency{sign.NewRekor(&sign.RekorOptions{Version: 2, ClientV2: rekorV2{s}})}
	default:
		with.TransparencyLogs = []sign.Transparency{sign.NewRekor(&sign.RekorOptions{Client: &rekorV1{Sigstore: s, signed: how}})}
	}
	if how.withTimestamp {
		with.TimestampAuthorities = []*sign.TimestampAuthority{s.timestamps(how)}
	}
	b := must(sign.Bundle(&sign.DSSEData{Data: statement, PayloadType: bundle.IntotoMediaType}, must(sign.NewEphemeralKeypair(nil)), with))
	if how.noPromise {
		for _, e := range b.VerificationMaterial.TlogEntries {
			e.InclusionPromise = nil
		}
	}
	return image.Signature{Format: image.FormatBundle, Payload: must(protojson.Marshal(b))}
}

// Provenance is the predicate of SLSA v1 that names a builder.
func Provenance(builder string) any {
	return map[string]any{
		"buildDefinition": map[string]any{"buildType": "https://build.test/v1"},
		"runDetails":      map[string]any{"builder": map[string]any{"id": builder}},
	}
}

// signPayload makes what `cosign sign` of v2 does: a JSON document, and everything else in annotations.
func (s *Sigstore) signPayload(d digest.Digest, ref image.Reference, id Identity, f image.Format, how signed) image.Signature {
	ctx := context.Background()
	doc := must(json.Marshal(payload.SimpleContainerImage{Critical: payload.Critical{
		Identity: payload.Identity{DockerReference: ref.Registry + "/" + ref.Repository},
		Image:    payload.Image{DockerManifestDigest: d.String()},
		Type:     payload.CosignSignatureType,
	}}))
	key := must(sign.NewEphemeralKeypair(nil))
	sig, _, err := key.SignData(ctx, doc)
	if err != nil {
		panic(err)
	}
	leaf := must(cryptoutils.MarshalCertificateToPEM(s.certificate(key.GetPublicKey(), id, how)))
	annotations := map[string]string{
		static.SignatureAnnotationKey:   base64.StdEncoding.EncodeToString(sig),
		static.CertificateAnnotationKey: string(leaf),
		static.ChainAnnotationKey: string(must(cryptoutils.MarshalCertificateToPEM(s.intermediate.cert))) +
			string(must(cryptoutils.MarshalCertificateToPEM(s.root.cert))),
	}
	if !how.noLog {
		sum := sha256.New()
		sum.Write(doc)
		entry := must(cosign.TLogUpload(ctx, &rekorclient.Rekor{Entries: &rekorV1{Sigstore: s, signed: how}}, sig, sum, leaf))
		annotations[static.BundleAnnotationKey] = string(must(json.Marshal(cosignbundle.EntryToBundle(entry))))
	}
	if how.withTimestamp {
		stamp := must(s.timestamps(how).GetTimestamp(ctx, sig))
		annotations[static.RFC3161TimestampAnnotationKey] = string(must(json.Marshal(cosignbundle.TimestampToRFC3161Timestamp(stamp))))
	}
	return image.Signature{Format: f, Payload: doc, Annotations: annotations}
}
