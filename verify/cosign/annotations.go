// SPDX-License-Identifier: Apache-2.0

package cosign

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	cosignbundle "github.com/sigstore/cosign/v2/pkg/cosign/bundle"
	"github.com/sigstore/cosign/v2/pkg/oci/static"
	bundlepb "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	commonpb "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	rekorpb "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	sgverify "github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/cryptoutils"

	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/verify"
)

// entity is a simple signing payload and its annotations, as sigstore-go sees a bundle. A bundle of version 0.1 has no place
// for the chain, which a private authority leaves to the signature.
type entity struct {
	*bundle.Bundle
	chain []*x509.Certificate
}

func (e entity) VerificationContent() (sgverify.VerificationContent, error) {
	content, err := e.Bundle.VerificationContent()
	if err != nil {
		return nil, err
	}
	return chained{content, e.chain}, nil
}

type chained struct {
	sgverify.VerificationContent
	chain []*x509.Certificate
}

func (c chained) Intermediates() []*x509.Certificate { return c.chain }

// payloadEntity takes the annotations of a payload's layer together, as cosign v2 writes them.
func payloadEntity(sig image.Signature, t *trust) (sgverify.SignedEntity, error) {
	raw, err := base64.StdEncoding.DecodeString(sig.Annotations[static.SignatureAnnotationKey])
	if err != nil || len(raw) == 0 {
		return nil, fmt.Errorf("annotation %s: is not a signature in base64", static.SignatureAnnotationKey)
	}
	leaf, chain, err := certificates(sig.Annotations)
	if err != nil {
		return nil, err
	}
	entries, err := logEntries(sig.Annotations[static.BundleAnnotationKey])
	if err != nil {
		return nil, fmt.Errorf("annotation %s: %w", static.BundleAnnotationKey, err)
	}
	stamps, err := timestamps(sig.Annotations[static.RFC3161TimestampAnnotationKey])
	if err != nil {
		return nil, fmt.Errorf("annotation %s: %.100q", static.RFC3161TimestampAnnotationKey, err.Error())
	}
	sum := sha256.Sum256(sig.Payload)
	material := &bundlepb.VerificationMaterial{
		Content: &bundlepb.VerificationMaterial_X509CertificateChain{X509CertificateChain: &commonpb.X509CertificateChain{
			Certificates: []*commonpb.X509Certificate{{RawBytes: leaf.Raw}},
		}},
		TlogEntries:               entries,
		TimestampVerificationData: &bundlepb.TimestampVerificationData{Rfc3161Timestamps: stamps},
	}
	if err := bound(material); err != nil {
		return nil, err
	}
	b, err := bundle.NewBundle(&bundlepb.Bundle{
		MediaType:            "application/vnd.dev.sigstore.bundle+json;version=0.1",
		VerificationMaterial: material,
		Content: &bundlepb.Bundle_MessageSignature{MessageSignature: &commonpb.MessageSignature{
			MessageDigest: &commonpb.HashOutput{Algorithm: commonpb.HashAlgorithm_SHA2_256, Digest: sum[:]},
			Signature:     raw,
		}},
	})
	if err != nil {
		return nil, fmt.Errorf("annotations: %.200q", err.Error())
	}
	return entity{b, t.known(chain)}, nil
}

// certificates are the signer's own and those between it and a root, which cosign writes beside them.
func certificates(annotations map[string]string) (leaf *x509.Certificate, chain []*x509.Certificate, err error) {
	own := annotations[static.CertificateAnnotationKey]
	if own == "" {
		return nil, nil, verify.ErrNoCertificate
	}
	const most = 10
	certs, err := cryptoutils.UnmarshalCertificatesFromPEMLimited([]byte(own), most)
	if err == nil && len(certs) == 0 {
		err = errors.New("is empty")
	}
	if err != nil {
		return nil, nil, fmt.Errorf("annotation %s: %.100q", static.CertificateAnnotationKey, err.Error())
	}
	above, err := cryptoutils.UnmarshalCertificatesFromPEMLimited([]byte(annotations[static.ChainAnnotationKey]), most)
	if err != nil {
		return nil, nil, fmt.Errorf("annotation %s: %.100q", static.ChainAnnotationKey, err.Error())
	}
	return certs[0], above, nil
}

// logEntries is the entry of Rekor v1 that cosign keeps beside a payload; there is none of v2 in this form.
func logEntries(annotation string) ([]*rekorpb.TransparencyLogEntry, error) {
	if annotation == "" {
		return nil, nil
	}
	r, err := readRekorBundle(annotation)
	if err != nil {
		return nil, err
	}
	body, err := base64.StdEncoding.DecodeString(r.Payload.Body.(string))
	if err != nil {
		return nil, fmt.Errorf("body: %.100q", err.Error())
	}
	id, err := hex.DecodeString(r.Payload.LogID)
	if err != nil {
		return nil, fmt.Errorf("logID: %.100q", err.Error())
	}
	var kind struct{ Kind, APIVersion string }
	if err := json.Unmarshal(body, &kind); err != nil {
		return nil, fmt.Errorf("body: %.100q", err.Error())
	}
	return []*rekorpb.TransparencyLogEntry{{
		LogIndex:          r.Payload.LogIndex,
		LogId:             &commonpb.LogId{KeyId: id},
		KindVersion:       &rekorpb.KindVersion{Kind: kind.Kind, Version: kind.APIVersion},
		IntegratedTime:    r.Payload.IntegratedTime,
		InclusionPromise:  &rekorpb.InclusionPromise{SignedEntryTimestamp: r.SignedEntryTimestamp},
		CanonicalizedBody: body,
	}}, nil
}

func timestamps(annotation string) ([]*commonpb.RFC3161SignedTimestamp, error) {
	if annotation == "" {
		return nil, nil
	}
	var t cosignbundle.RFC3161Timestamp
	if err := json.Unmarshal([]byte(annotation), &t); err != nil {
		return nil, err
	}
	return []*commonpb.RFC3161SignedTimestamp{{SignedTimestamp: t.SignedRFC3161Timestamp}}, nil
}
