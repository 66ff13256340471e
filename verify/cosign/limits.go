// SPDX-License-Identifier: Apache-2.0

package cosign

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"

	bundlepb "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	rekorpb "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore/pkg/cryptoutils/goodkey"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
	kjson "sigs.k8s.io/json"

	"github.com/bpfvol/bpfvol/verify"
)

// What a signature brings to prove itself is read by libraries before anything in it is known to be genuine, and whoever
// can push to a registry writes it. Two of its parts cost out of all proportion to their length; the rest is bounded by
// maxMaterial.
const (
	maxEntries     = 4        // log entries, timestamps; cosign writes one of each
	maxEntry       = 32 << 10 // bytes of one; with a certificate they have about 3 kB
	maxCertificate = 32 << 10 // bytes; the policy's expressions are run over what it says
	maxNesting     = 32       // of a timestamp's ASN.1; those of known authorities have 12
)

// bound refuses material that would be dear to look at, and what no authority of identities could accept anyway.
func bound(m *bundlepb.VerificationMaterial) error {
	var raw []byte
	if chain := m.GetX509CertificateChain().GetCertificates(); len(chain) > 0 {
		raw = chain[0].GetRawBytes()
	} else if raw = m.GetCertificate().GetRawBytes(); raw == nil {
		return verify.ErrNoCertificate
	}
	if len(raw) > maxCertificate {
		return fmt.Errorf("certificate: has %d bytes; the limit is %d", len(raw), maxCertificate)
	}
	leaf, err := x509.ParseCertificate(raw)
	if err != nil {
		return fmt.Errorf("certificate: %.100q", err.Error())
	}
	if err := goodkey.ValidatePubKey(leaf.PublicKey); err != nil {
		return fmt.Errorf("certificate: is not of a key that cosign takes: %.100q", err.Error())
	}
	entries := m.GetTlogEntries()
	if len(entries) > maxEntries {
		return fmt.Errorf("has %d log entries; the limit is %d", len(entries), maxEntries)
	}
	for _, e := range entries {
		if err := boundEntry(e, leaf); err != nil {
			return fmt.Errorf("log entry: %w", err)
		}
	}
	stamps := m.GetTimestampVerificationData().GetRfc3161Timestamps()
	if len(stamps) > maxEntries {
		return fmt.Errorf("has %d timestamps; the limit is %d", len(stamps), maxEntries)
	}
	for _, s := range stamps {
		der := cryptobyte.String(s.GetSignedTimestamp())
		if len(der) > maxEntry {
			return fmt.Errorf("timestamp: has %d bytes; the limit is %d", len(der), maxEntry)
		}
		// The library turns BER into DER by recursion, without a limit (digitorus/pkcs7).
		if !shallow(der, maxNesting) {
			return errors.New("timestamp: is no DER, or nested too deep")
		}
	}
	return nil
}

// boundEntry holds an entry to what Rekor writes. On parsing, Rekor's library verifies an entry that was proposed and not
// recorded, and any hashedrekord, with the key that is in it: an RSA key of 32 kB takes it 12 s. So an entry must be recorded,
// and a hashedrekord of the signer's own certificate, whose key is known to be sane; no other could prove this signature.
func boundEntry(e *rekorpb.TransparencyLogEntry, leaf *x509.Certificate) error {
	body := e.GetCanonicalizedBody()
	if len(body) > maxEntry {
		return fmt.Errorf("has %d bytes; the limit is %d", len(body), maxEntry)
	}
	var head struct {
		APIVersion string          `json:"apiVersion"`
		Kind       string          `json:"kind"`
		Spec       json.RawMessage `json:"spec"`
	}
	if err := strict(body, &head); err != nil {
		return err
	}
	switch head.Kind + " " + head.APIVersion {
	case "hashedrekord 0.0.1":
		var spec hashedRekord
		if err := strict(head.Spec, &spec); err != nil {
			return err
		}
		block, rest := pem.Decode(spec.Signature.PublicKey.Content)
		if block == nil || len(bytes.TrimSpace(rest)) > 0 || !bytes.Equal(block.Bytes, leaf.Raw) {
			return fmt.Errorf("%w: the entry is of another certificate", verify.ErrNotLogged)
		}
		return nil
	case "hashedrekord 0.0.2": // of Rekor v2; the library makes the entry anew from what it should be
		return strict(head.Spec, &struct {
			HashedRekord json.RawMessage `json:"hashedRekordV002"`
		}{})
	case "dsse 0.0.1":
		return strict(head.Spec, &dsseRecord{})
	case "intoto 0.0.2":
		return strict(head.Spec, &intotoRecord{})
	}
	return fmt.Errorf("is of kind %.40q, version %.40q", head.Kind, head.APIVersion)
}

// The forms in which Rekor v1 records entries: each has these fields and no other, spelt so.
type (
	recordedHash struct {
		Algorithm string `json:"algorithm"`
		Value     string `json:"value"`
	}
	hashedRekord struct {
		Data struct {
			Hash recordedHash `json:"hash"`
		} `json:"data"`
		Signature struct {
			Content   string `json:"content"`
			PublicKey struct {
				Content []byte `json:"content"`
			} `json:"publicKey"`
		} `json:"signature"`
	}
	dsseRecord struct {
		EnvelopeHash recordedHash `json:"envelopeHash"`
		PayloadHash  recordedHash `json:"payloadHash"`
		Signatures   []struct {
			Signature string `json:"signature"`
			Verifier  string `json:"verifier"`
		} `json:"signatures"`
	}
	intotoRecord struct {
		Content struct {
			Envelope struct {
				PayloadType string `json:"payloadType"`
				Signatures  []struct {
					KeyID     string `json:"keyid"`
					PublicKey string `json:"publicKey"`
					Sig       string `json:"sig"`
				} `json:"signatures"`
			} `json:"envelope"`
			Hash        recordedHash `json:"hash"`
			PayloadHash recordedHash `json:"payloadHash"`
		} `json:"content"`
	}
)

// strict takes JSON that has no field but those of v, each once and in the same case: so that no two readers see it
// differently.
func strict(raw []byte, v any) error {
	unknown, err := kjson.UnmarshalStrict(raw, v)
	if err == nil && len(unknown) > 0 {
		err = unknown[0]
	}
	if err != nil {
		return fmt.Errorf("is not as Rekor records it: %.100q", err.Error())
	}
	return nil
}

// shallow reports whether der is DER of no more than so many levels. (RFC 3161 wants DER.)
func shallow(der cryptobyte.String, levels int) bool {
	const constructed = asn1.Tag(0x20)
	for !der.Empty() {
		var inner cryptobyte.String
		var tag asn1.Tag
		if !der.ReadAnyASN1(&inner, &tag) {
			return false
		}
		if tag&constructed != 0 && (levels == 0 || !shallow(inner, levels-1)) {
			return false
		}
	}
	return true
}
