// SPDX-License-Identifier: Apache-2.0

package cosign

import (
	"crypto/x509"
	"fmt"

	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"
	sgverify "github.com/sigstore/sigstore-go/pkg/verify"

	"github.com/bpfvol/bpfvol/verify"
)

// why words the refusal of a signature that was refused already: it asks the library again, one thing at a time. First
// whose certificate it is, then what is wrong with it, so that the text tells a stranger from one's own mistake.
func (w *keylessWay) why(t *trust, e sgverify.SignedEntity, refused error) error {
	content, err := e.VerificationContent()
	if err != nil {
		return err
	}
	leaf := content.Certificate()
	leaf.UnhandledCriticalExtensions = nil // an OtherName is one to crypto/x509, not to sigstore
	if !t.issued(leaf, content.Intermediates()) {
		return verify.ErrOtherRoot
	}
	cert, err := certificate.SummarizeCertificate(leaf)
	if err != nil {
		return fmt.Errorf("certificate: %.100q", err.Error())
	}
	if err := w.identity.Issuer.Verify(cert); err != nil {
		return &verify.OtherIdentityError{Kind: verify.ErrOtherIssuer, Found: cert.Issuer}
	}
	if err := w.identity.SubjectAlternativeName.Verify(cert); err != nil {
		return &verify.OtherIdentityError{Kind: verify.ErrOtherSubject, Found: cert.SubjectAlternativeName}
	}
	entries, err := e.TlogEntries()
	if err != nil {
		return fmt.Errorf("log entry: %.200q", err.Error())
	}
	for _, entry := range entries {
		if at := entry.IntegratedTime(); !at.IsZero() && !content.ValidAtTime(at, nil) {
			return verify.ErrExpired
		}
	}
	logged, err := t.verifier.VerifyTransparencyLogInclusion(e)
	if err != nil {
		return fmt.Errorf("%w: %.200q", verify.ErrNotLogged, err.Error())
	}
	times, err := t.verifier.VerifyObserverTimestamps(e, logged)
	if err != nil {
		return fmt.Errorf("%w: %.200q", verify.ErrNoTime, err.Error())
	}
	var chains [][]*x509.Certificate
	for _, at := range times {
		if chains = t.chains(leaf, content.Intermediates(), at); chains == nil {
			return verify.ErrExpired
		}
	}
	if err := sgverify.VerifySignedCertificateTimestamp(chains, 1, t.root); err != nil {
		return fmt.Errorf("%w: %.200q", verify.ErrNoSCT, err.Error())
	}
	everything := sgverify.NewPolicy(sgverify.WithoutArtifactUnsafe(), sgverify.WithCertificateIdentity(w.identity))
	if _, err := t.verifier.Verify(e, everything); err == nil {
		return verify.ErrOtherImage
	}
	return fmt.Errorf("%.200q", refused.Error())
}

// issued reports whether the certificate hangs on the trusted root, at whatever time.
func (t *trust) issued(leaf *x509.Certificate, intermediates []*x509.Certificate) bool {
	return signedByAny(leaf, append(t.issuers(), intermediates...))
}

// chains are those to the trusted root that were valid at a time; nil where none was.
func (t *trust) chains(leaf *x509.Certificate, intermediates []*x509.Certificate, at sgverify.TimestampVerificationResult) [][]*x509.Certificate {
	for _, ca := range t.authorities(intermediates) {
		if chains, err := ca.Verify(leaf, at.Timestamp); err == nil {
			return chains
		}
	}
	return nil
}
