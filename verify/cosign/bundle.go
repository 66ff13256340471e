// SPDX-License-Identifier: Apache-2.0

package cosign

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	bundlepb "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	sgverify "github.com/sigstore/sigstore-go/pkg/verify"
	"google.golang.org/protobuf/encoding/protojson"
	kjson "sigs.k8s.io/json"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/verify"
)

// signPredicate is the predicate type of an approval to run; SBOMs and scan reports come in the same envelope with
// another one. (cosign/v2 pkg/types.CosignSignPredicateType)
const signPredicate = "https://sigstore.dev/cosign/sign/v1"

// readBundle parses a bundle that carries a statement, once prepare took what it brings to prove itself.
func readBundle(sig image.Signature, prepare func(*bundlepb.VerificationMaterial) error) (*bundle.Bundle, error) {
	pb := &bundlepb.Bundle{}
	if err := protojson.Unmarshal(sig.Payload, pb); err != nil {
		return nil, fmt.Errorf("bundle: %.200q", stable(err))
	}
	if pb.GetVerificationMaterial() != nil {
		if err := prepare(pb.GetVerificationMaterial()); err != nil {
			return nil, err
		}
	}
	b, err := bundle.NewBundle(pb)
	if err != nil {
		return nil, fmt.Errorf("bundle: %.200q", err.Error())
	}
	if b.GetDsseEnvelope() == nil {
		return nil, fmt.Errorf("%w: bundle without a DSSE envelope", verify.ErrNotImageSignature)
	}
	return b, nil
}

// stable is an error of protojson without the space that it varies from build to build.
func stable(err error) string { return strings.ReplaceAll(err.Error(), "\u00a0", " ") }

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
