// SPDX-License-Identifier: Apache-2.0

package cosigntest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"time"

	ct "github.com/google/certificate-transparency-go"
	cttls "github.com/google/certificate-transparency-go/tls"
	"github.com/google/certificate-transparency-go/x509util"
	"github.com/sigstore/sigstore-go/pkg/sign"
)

// issuer is a certificate and its key.
type issuer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newRoot(name string, notBefore, notAfter time.Time) *issuer {
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: subject(name),
		NotBefore: notBefore, NotAfter: notAfter,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true,
	}
	self := &issuer{cert: template, key: newKey()}
	self.cert = self.sign(template, self.key.Public())
	return self
}

// issue makes a certificate for a new key.
func (i *issuer) issue(template *x509.Certificate) *issuer {
	key := newKey()
	return &issuer{cert: i.sign(template, key.Public()), key: key}
}

func (i *issuer) sign(template *x509.Certificate, pub crypto.PublicKey) *x509.Certificate {
	return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, template, i.cert, pub, i.key))))
}

func intermediateTemplate(notBefore, notAfter time.Time) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: serial(), Subject: subject("fulcio intermediate"),
		NotBefore: notBefore, NotAfter: notAfter,
		KeyUsage: x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
}

func stamperTemplate(notBefore, notAfter time.Time) *x509.Certificate {
	usage := must(asn1.Marshal([]asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 8}}))
	return &x509.Certificate{
		SerialNumber: serial(), Subject: subject("tsa signer"),
		NotBefore: notBefore, NotAfter: notAfter,
		KeyUsage:        x509.KeyUsageDigitalSignature,
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Critical: true, Value: usage}}, // (RFC 3161, 2.3)
	}
}

// fulcio hands out a certificate that is valid for ten minutes. It implements sign.CertificateProvider.
type fulcio struct {
	*Sigstore
	id     Identity
	signed signed
	leaf   *x509.Certificate // the last
}

func (f *fulcio) GetCertificate(_ context.Context, k sign.Keypair, _ *sign.CertificateProviderOptions) ([]byte, error) {
	f.leaf = f.certificate(k.GetPublicKey(), f.id, f.signed)
	return f.leaf.Raw, nil
}

// Fulcio's extensions that name the issuer. (sigstore/fulcio docs/oid-info.md)
var (
	issuerV1 = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 1}
	issuerV2 = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 8}
	sctList  = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2} // (RFC 6962, 3.3)
)

func (s *Sigstore) certificate(pub crypto.PublicKey, id Identity, how signed) *x509.Certificate {
	template := &x509.Certificate{
		SerialNumber: serial(),
		NotBefore:    how.at.Add(-time.Minute), NotAfter: how.at.Add(9 * time.Minute),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		ExtraExtensions: []pkix.Extension{
			{Id: issuerV1, Value: []byte(id.Issuer)},
			{Id: issuerV2, Value: must(asn1.MarshalWithParams(id.Issuer, "utf8"))},
		},
	}
	if strings.Contains(id.Subject, "://") {
		template.URIs = []*url.URL{must(url.Parse(id.Subject))}
	} else {
		template.EmailAddresses = []string{id.Subject}
	}
	cert := s.intermediate.sign(template, pub)
	if how.noSCT {
		return cert
	}
	template.ExtraExtensions = append(slices.Clone(template.ExtraExtensions), pkix.Extension{Id: sctList, Value: s.sct(cert, how.at)})
	return s.intermediate.sign(template, pub)
}

// sct is the certificate log's receipt for a certificate that lacks one. (RFC 6962, 3.2)
func (s *Sigstore) sct(cert *x509.Certificate, at time.Time) []byte {
	t := ct.SignedCertificateTimestamp{SCTVersion: ct.V1, LogID: ct.LogID{KeyID: [32]byte(logID(s.ct))}, Timestamp: uint64(at.UnixMilli())}
	input := must(ct.SerializeSCTSignatureInput(t, ct.LogEntry{Leaf: ct.MerkleTreeLeaf{TimestampedEntry: &ct.TimestampedEntry{
		EntryType: ct.PrecertLogEntryType,
		PrecertEntry: &ct.PreCert{
			IssuerKeyHash:  sha256.Sum256(s.intermediate.cert.RawSubjectPublicKeyInfo),
			TBSCertificate: cert.RawTBSCertificate,
		},
	}}}))
	t.Signature = ct.DigitallySigned(must(cttls.CreateSignature(*s.ct, cttls.SHA256, input)))
	list := must(x509util.MarshalSCTsIntoSCTList([]*ct.SignedCertificateTimestamp{&t}))
	return must(asn1.Marshal(must(cttls.Marshal(*list))))
}

func subject(name string) pkix.Name {
	return pkix.Name{CommonName: name, Organization: []string{"sigstore.test"}}
}

func serial() *big.Int {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b)
}
