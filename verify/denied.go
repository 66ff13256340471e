// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/bpfvol/bpfvol/internal/image"
)

// DeniedError says that policy refuses, which policy came closest, and what would help. Its text is stable: the
// same refusal reads the same every time, so that events aggregate.
type DeniedError struct {
	Image  string // as policies see it: "ghcr.io/acme/x@sha256:..."
	Policy string // the policy that came closest; "" when none covers the image
	Cause  string
	Fix    string
}

// Denied is the refusal of an image by its reference, where its digest is not known yet.
func Denied(ref image.Reference, policy, cause, fix string) *DeniedError {
	return &DeniedError{Image: display(ref, ""), Policy: policy, Cause: cause, Fix: fix}
}

func (e *DeniedError) Error() string {
	s := "image " + e.Image + ": " + e.Cause
	if e.Fix != "" {
		s += "; " + e.Fix
	}
	return s
}

// Why an Authority refuses a signature. An error that wraps none of them means the signature could not be read.
var (
	// ErrOtherKey: the signature may be good, but not by this authority.
	ErrOtherKey = errors.New("by another key")
	// ErrNoCertificate: made with a key, where the authority is an identity.
	ErrNoCertificate = errors.New("by a key and without a certificate")
	// ErrOtherRoot: the certificate is of an authority that the trusted root does not name.
	ErrOtherRoot = errors.New("by a certificate of another root")
	// ErrOtherIssuer: the certificate is genuine; who vouched for its owner is not whom the policy names.
	ErrOtherIssuer = errors.New("by another issuer")
	// ErrOtherSubject: the certificate is genuine and of the right issuer, but somebody else's.
	ErrOtherSubject = errors.New("by another subject")
	// ErrNoSCT: no certificate log has seen the certificate.
	ErrNoSCT = errors.New("by a certificate that is in no certificate log")
	// ErrNotLogged: no transparency log of the trusted root has an entry of this very signature.
	ErrNotLogged = errors.New("not in the transparency log")
	// ErrNoTime: neither the log nor a timestamp authority of the trusted root says when it was made.
	ErrNoTime = errors.New("without a trusted timestamp")
	// ErrExpired: a certificate of the chain was not valid when it was made.
	ErrExpired = errors.New("made outside the validity of its certificate")
	// ErrNotImageSignature: this authority signed something else than an approval to run, such as an SBOM.
	ErrNotImageSignature = errors.New("not an image signature")
	// ErrOtherImage: this authority signed, but another digest.
	ErrOtherImage = errors.New("for another image")
	// ErrOtherStatement: an attestation of another predicate type than the one that was asked for.
	ErrOtherStatement = errors.New("another kind of statement")
	// ErrOtherBuilder: a provenance that names another builder.
	ErrOtherBuilder = errors.New("names another builder")
	// ErrNoTrustedRoot: the policy's trusted root cannot be used, so nothing can be said of the signature.
	ErrNoTrustedRoot = errors.New("not checked, because the policy's trusted root cannot be used")
)

// OtherIdentityError says whose certificate it is instead. It wraps ErrOtherIssuer or ErrOtherSubject.
type OtherIdentityError struct {
	Kind  error
	Found string // what the certificate has in the place of what the policy names; hostile
}

func (e *OtherIdentityError) Error() string { return fmt.Sprintf("%v (%.120q)", e.Kind, e.Found) }

func (e *OtherIdentityError) Unwrap() error { return e.Kind }

// display names an image in messages. Every part of a parsed reference is from a safe alphabet and short.
func display(ref image.Reference, d digest.Digest) string {
	var b strings.Builder
	b.WriteString(repository(ref))
	if d == "" {
		d = ref.Digest
	}
	switch {
	case d != "":
		b.WriteString("@" + d.String())
	case ref.Tag != "":
		b.WriteString(":" + ref.Tag)
	}
	return b.String()
}
