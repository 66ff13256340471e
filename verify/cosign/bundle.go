// SPDX-License-Identifier: Apache-2.0

package cosign

import (
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	sgverify "github.com/sigstore/sigstore-go/pkg/verify"

	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/verify"
)

// signPredicate is the predicate type of an approval to run; SBOMs and scan reports come in the same envelope with
// another one. (cosign/v2 pkg/types.CosignSignPredicateType)
const signPredicate = "https://sigstore.dev/cosign/sign/v1"

func newKeyAuthority(k *publicKey) (*keyAuthority, error) {
	key := root.NewExpiringKey(k.verifier, time.Time{}, time.Time{})
	v, err := sgverify.NewVerifier(
		root.NewTrustedPublicKeyMaterial(func(string) (root.TimeConstrainedVerifier, error) { return key, nil }),
		sgverify.WithNoObserverTimestamps(), // a key has no validity that a time would be compared with
		sgverify.WithoutStatementPredicate(),
	)
	if err != nil {
		return nil, err
	}
	return &keyAuthority{key: k, bundles: v}, nil
}

// verifyBundle checks a sigstore bundle: an in-toto statement about the digest in a DSSE envelope.
func (a *keyAuthority) verifyBundle(d digest.Digest, sig image.Signature) error {
	var b bundle.Bundle
	if err := b.UnmarshalJSON(sig.Payload); err != nil {
		return fmt.Errorf("bundle: %.200q", err.Error())
	}
	if b.GetDsseEnvelope() == nil {
		return fmt.Errorf("%w: bundle without a DSSE envelope", verify.ErrNotImageSignature)
	}
	sum, err := hex.DecodeString(d.Encoded())
	if err != nil {
		return err
	}
	artifact := sgverify.WithArtifactDigest(d.Algorithm().String(), sum)
	res, err := a.bundles.Verify(&b, sgverify.NewPolicy(artifact, sgverify.WithKey()))
	if err != nil {
		// Was it the signature or what it is about? The second attempt only words the refusal.
		if _, err := a.bundles.Verify(&b, sgverify.NewPolicy(sgverify.WithoutArtifactUnsafe(), sgverify.WithKey())); err == nil {
			return verify.ErrOtherImage
		}
		return fmt.Errorf("%w: %.200q", verify.ErrOtherKey, err.Error())
	}
	if res.Statement == nil {
		return errors.New("bundle without a statement")
	}
	if t := res.Statement.GetPredicateType(); t != signPredicate {
		return fmt.Errorf("%w: predicate %.100q", verify.ErrNotImageSignature, t)
	}
	return nil
}
