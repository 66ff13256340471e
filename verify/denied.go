// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"errors"
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
	// ErrNotImageSignature: this authority signed something else than an approval to run, such as an SBOM.
	ErrNotImageSignature = errors.New("not an image signature")
	// ErrOtherImage: this authority signed, but another digest.
	ErrOtherImage = errors.New("for another image")
)

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
