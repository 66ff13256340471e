// SPDX-License-Identifier: Apache-2.0

package cosign

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/sigstore/sigstore-go/pkg/root"
	sgverify "github.com/sigstore/sigstore-go/pkg/verify"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
)

// maxRoot bounds a trusted root; that of the public sigstore has 7 kB.
const maxRoot = 1 << 20

// trust is a trusted root and what verifies with it.
type trust struct {
	root     *root.TrustedRoot
	verifier *sgverify.Verifier
}

// parseTrust reads a trusted_root.json. It is complete in itself: nothing in it is followed anywhere.
func parseTrust(data []byte) (t *trust, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic while parsing: %.100q", fmt.Sprint(r))
		}
	}()
	if len(data) > maxRoot {
		return nil, fmt.Errorf("has more than %d bytes", maxRoot)
	}
	r, err := root.NewTrustedRootFromJSON(data)
	if err != nil {
		return nil, fmt.Errorf("is no trusted_root.json of sigstore: %.200q", stable(err))
	}
	switch {
	case len(r.FulcioCertificateAuthorities()) == 0:
		return nil, errors.New("has no certificate authority, so no signature could be good")
	case len(r.CTLogs()) == 0:
		return nil, errors.New("has no certificate log, so no signature could be good")
	case len(r.RekorLogs()) == 0:
		return nil, errors.New("has no transparency log, so no signature could be good")
	}
	v, err := sgverify.NewVerifier(r,
		sgverify.WithSignedCertificateTimestamps(1),
		sgverify.WithTransparencyLog(1),
		sgverify.WithObserverTimestamps(1),
		sgverify.WithoutStatementPredicate(),
	)
	if err != nil {
		return nil, err
	}
	return &trust{root: r, verifier: v}, nil
}

// trustedRoot is where an authority has its trust from.
type trustedRoot interface {
	// now is what holds at the moment.
	now(context.Context) (*trust, error)
	// Err says what is wrong with it, also where an older version still holds.
	Err() error
}

// openTrustedRoot takes a policy at its word. Errors begin with ":" or ".field:".
func openTrustedRoot(spec *v1alpha1.TrustedRoot, dir string) (trustedRoot, error) {
	switch {
	case spec == nil || spec.File == "" && spec.Data == "":
		return nil, errors.New(": is missing; keyless needs a trusted_root.json, as file or data")
	case spec.File != "" && spec.Data != "":
		return nil, errors.New(": has both file and data; write one")
	case spec.Data != "":
		t, err := parseTrust([]byte(spec.Data))
		if err != nil {
			return nil, fmt.Errorf(".data: %w", err)
		}
		return (*fixedRoot)(t), nil
	case filepath.IsAbs(spec.File):
		return openRootFile(filepath.Clean(spec.File)), nil
	case dir == "":
		return nil, fmt.Errorf(".file: %.100q is not absolute, and there is no policy file that it could be beside", spec.File)
	}
	path, err := filepath.Abs(filepath.Join(dir, spec.File))
	if err != nil {
		return nil, fmt.Errorf(".file: %w", err)
	}
	return openRootFile(path), nil
}

// fixedRoot is written in the policy.
type fixedRoot trust

func (r *fixedRoot) now(context.Context) (*trust, error) { return (*trust)(r), nil }
func (r *fixedRoot) Err() error                          { return nil }

// known returns those of a chain that hang on the trusted root and are not in it. The rest could prove nothing, and verifying
// with their keys could take as long as who made them likes.
func (t *trust) known(chain []*x509.Certificate) []*x509.Certificate {
	issuers := t.issuers()
	first := len(issuers)
	for range chain { // they stand in any order
		for _, c := range chain {
			isKnown := slices.ContainsFunc(issuers, c.Equal)
			if !isKnown && c.IsCA && len(c.Raw) <= maxCertificate && signedByAny(c, issuers) {
				issuers = append(issuers, c)
			}
		}
	}
	return issuers[first:]
}

// issuers are the certificates that the trusted root names.
func (t *trust) issuers() []*x509.Certificate {
	var all []*x509.Certificate
	for _, ca := range t.authorities(nil) {
		all = append(append(all, ca.Intermediates...), ca.Root)
	}
	return all
}

func signedByAny(cert *x509.Certificate, issuers []*x509.Certificate) bool {
	return slices.ContainsFunc(issuers, func(i *x509.Certificate) bool {
		return bytes.Equal(cert.RawIssuer, i.RawSubject) && cert.CheckSignatureFrom(i) == nil
	})
}

// authorities are those of the trusted root, each with further intermediates.
func (t *trust) authorities(intermediates []*x509.Certificate) []*root.FulcioCertificateAuthority {
	var all []*root.FulcioCertificateAuthority
	for _, ca := range t.root.FulcioCertificateAuthorities() {
		if ca, ok := ca.(*root.FulcioCertificateAuthority); ok {
			with := *ca
			with.Intermediates = append(slices.Clone(ca.Intermediates), intermediates...)
			all = append(all, &with)
		}
	}
	return all
}
