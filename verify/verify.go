// SPDX-License-Identifier: Apache-2.0

// Package verify answers one question: may this digest run, and if so, doing what?
//
//	Policies.For   which policies cover the image and name the subject    before any traffic to the registry
//	Check          which of them the image satisfies, by whose signature  offline, never cached
//	Open           the object's bytes, reached by hash from the digest that Check saw
//	Signed.Permit  does a satisfied policy allow what the object would do
//
// Invariants, and the test that holds each:
//
//   - Without a policy nothing runs (TestNothingRunsWithoutPolicy).
//   - Only Check makes a Signed that grants something and only Open makes a Bytecode that holds bytes, so bytes
//     that were not verified cannot reach package loader (TestZeroSignedOpensNothing).
//   - A signature counts for the digest that was asked and for no other (verify/cosign: TestTransplantedSignature).
//   - A registry that cannot be asked is an error, never "unsigned" (TestLookupErrorIsNotUnsigned).
//   - A policy file that does not parse changes nothing (TestInvalidFileKeepsLastGood).
//
// How a signature is checked is an Authority's business; package verify/cosign has them, and only that package
// knows sigstore.
package verify

import (
	"context"

	"github.com/opencontainers/go-digest"

	"github.com/bpfvol/bpfvol/internal/image"
)

// Signed is a root digest together with the policies it satisfies. Only Check makes one that grants anything.
type Signed struct {
	root   source
	ref    image.Reference
	digest digest.Digest
	grants []Grant
}

// Grant is one policy that the image satisfies, and by whose signature.
type Grant struct {
	Policy *Policy
	Signer Signer
}

// Signer says who signed.
type Signer struct {
	Authority string // which of the policy's authorities: "key[0]"; "" for an unsigned grant
	Identity  string // key fingerprint, or certificate subject; "" for an unsigned grant
	Format    image.Format
}

// String is the signer in words, as in volume.json.
func (s Signer) String() string {
	if s.Identity == "" {
		return "unsigned"
	}
	return s.Identity
}

// Digest is the root digest that was checked.
func (s Signed) Digest() digest.Digest { return s.digest }

// Reference is the reference that the digest was resolved from.
func (s Signed) Reference() image.Reference { return s.ref }

// Grants lists every policy that the image satisfies: signed ones first, each group in the order Check was given.
func (s Signed) Grants() []Grant { return append([]Grant(nil), s.grants...) }

// source is what is asked of an image.Root; tests stand in for the registry behind it.
type source interface {
	Signatures(ctx context.Context, fresh bool) ([]image.Signature, error)
	Object(ctx context.Context) (image.Object, error)
}
