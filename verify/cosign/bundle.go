// SPDX-License-Identifier: Apache-2.0

package cosign

import (
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	sgverify "github.com/sigstore/sigstore-go/pkg/verify"
	kjson "sigs.k8s.io/json"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/verify"
)

// signPredicate is the predicate type of an approval to run; SBOMs and scan reports come in the same envelope with
// another one. (cosign/v2 pkg/types.CosignSignPredicateType)
const signPredicate = "https://sigstore.dev/cosign/sign/v1"

// readBundle parses a bundle that carries a statement.
func readBundle(sig image.Signature) (*bundle.Bundle, error) {
	var b bundle.Bundle
	if err := b.UnmarshalJSON(sig.Payload); err != nil {
		return nil, fmt.Errorf("bundle: %.200q", err.Error())
	}
	if b.GetDsseEnvelope() == nil {
		return nil, fmt.Errorf("%w: bundle without a DSSE envelope", verify.ErrNotImageSignature)
	}
	return &b, nil
}

// about makes the library compare the statement's subjects with the image.
func about(d digest.Digest) (sgverify.ArtifactPolicyOption, error) {
	sum, err := hex.DecodeString(d.Encoded())
	return sgverify.WithArtifactDigest(d.Algorithm().String(), sum), err
}

// statement is what a verified bundle says. Predicates are large and mostly not asked for, so the library leaves them out
// and raw has them.
type statement struct {
	predicateType string
	raw           []byte
}

func newStatement(b *bundle.Bundle, res *sgverify.VerificationResult) (statement, error) {
	if res.Statement == nil {
		return statement{}, errors.New("bundle without a statement")
	}
	return statement{res.Statement.GetPredicateType(), b.GetDsseEnvelope().GetPayload()}, nil
}

// approves returns nil if the statement is an image signature.
func (s statement) approves() error {
	if s.predicateType != signPredicate {
		return fmt.Errorf("%w: predicate %.100q", verify.ErrNotImageSignature, s.predicateType)
	}
	return nil
}

// is returns nil if the statement is the attestation that is wanted.
func (s statement) is(want v1alpha1.Attestation) error {
	if s.predicateType != want.PredicateType {
		return fmt.Errorf("%w: predicate %.100q", verify.ErrOtherStatement, s.predicateType)
	}
	if want.BuilderID == "" {
		return nil
	}
	var provenance struct {
		Predicate struct {
			RunDetails struct {
				Builder struct {
					ID string `json:"id"`
				} `json:"builder"`
			} `json:"runDetails"`
		} `json:"predicate"`
	}
	twice, err := kjson.UnmarshalStrict(s.raw, &provenance, kjson.DisallowDuplicateFields)
	if err != nil || len(twice) > 0 {
		return fmt.Errorf("provenance: %.100q", errors.Join(append(twice, err)...).Error())
	}
	if id := provenance.Predicate.RunDetails.Builder.ID; id != want.BuilderID {
		return fmt.Errorf("%w: %.100q", verify.ErrOtherBuilder, id)
	}
	return nil
}
