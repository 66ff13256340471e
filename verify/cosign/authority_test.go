// SPDX-License-Identifier: Apache-2.0

package cosign_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/verify"
	"github.com/bpfvol/bpfvol/verify/cosign"
	"github.com/bpfvol/bpfvol/verify/cosign/cosigntest"
)

var formats = []image.Format{image.FormatTag, image.FormatReferrer, image.FormatBundle}

// pair makes a key pair of one kind, without a password.
func pair(t testing.TB, kind string) (priv, pub []byte) {
	t.Helper()
	var key any
	var err error
	switch kind {
	case "p256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "p384":
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "p521":
		key, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "rsa":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case "rsa1024":
		key, err = rsa.GenerateKey(rand.Reader, 1024)
	case "ed25519":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	default:
		t.Fatalf("no key of kind %q", kind)
	}
	if err != nil {
		t.Fatal(err)
	}
	return encode(t, "PRIVATE KEY", key, x509.MarshalPKCS8PrivateKey), encode(t, "PUBLIC KEY", public(key), x509.MarshalPKIXPublicKey)
}

func public(key any) any {
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		return k.Public()
	case *rsa.PrivateKey:
		return k.Public()
	case ed25519.PrivateKey:
		return k.Public()
	}
	return nil
}

func encode(t testing.TB, kind string, key any, marshal func(any) ([]byte, error)) []byte {
	t.Helper()
	der, err := marshal(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

var theImage = image.Reference{Registry: "ghcr.io", Repository: "acme/x"}

// sign makes one signature with a key that has no password.
func sign(t testing.TB, priv []byte, d digest.Digest, f image.Format) image.Signature {
	t.Helper()
	s, err := cosign.Sign(t.Context(), priv, nil, d, theImage, f)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestReadsWhatCosignWrites(t *testing.T) {
	_, stranger := pair(t, "p256")
	for _, name := range slices.Sorted(maps.Keys(written)) {
		t.Run(name, func(t *testing.T) {
			v := readVector(t, name)
			sigs := v.signatures(t)
			if len(sigs) != 1 {
				t.Fatalf("got %d signatures, want 1", len(sigs))
			}
			signer, err := authority(t, v.key).Verify(t.Context(), v.image, sigs[0])
			if err != nil {
				t.Fatal(err)
			}
			fingerprint, err := cosign.Fingerprint(v.key)
			if err != nil {
				t.Fatal(err)
			}
			if want := (verify.Signer{Authority: "key", Identity: fingerprint, Format: written[name]}); signer != want {
				t.Errorf("got signer %+v, want %+v", signer, want)
			}
			if _, err := authority(t, stranger).Verify(t.Context(), v.image, sigs[0]); !errors.Is(err, verify.ErrOtherKey) {
				t.Errorf("a stranger's key: got %v, want ErrOtherKey", err)
			}
			if _, err := authority(t, v.key).Verify(t.Context(), digest.FromString("other"), sigs[0]); !errors.Is(err, verify.ErrOtherImage) {
				t.Errorf("another image: got %v, want ErrOtherImage", err)
			}
		})
	}
}

func TestAttestationIsNoSignature(t *testing.T) {
	for _, name := range []string{"v2-attestation-bundle", "v3-attestation-bundle"} {
		v := readVector(t, name)
		sigs := v.signatures(t)
		if len(sigs) == 0 {
			t.Fatalf("%s: no attestation in the vector", name)
		}
		for _, s := range sigs {
			if _, err := authority(t, v.key).Verify(t.Context(), v.image, s); !errors.Is(err, verify.ErrNotImageSignature) {
				t.Errorf("%s: got %v, want ErrNotImageSignature", name, err)
			}
		}
	}
}

func TestVerifiesOwnSignatures(t *testing.T) {
	d := digest.FromString("image")
	for _, kind := range []string{"p256", "p384", "p521", "rsa", "ed25519"} {
		priv, pub := pair(t, kind)
		for _, f := range formats {
			s := sign(t, priv, d, f)
			if s.Format != f {
				t.Errorf("%s: got format %s, want %s", kind, s.Format, f)
			}
			if _, err := authority(t, pub).Verify(t.Context(), d, s); err != nil {
				t.Errorf("%s %s: %v", kind, f, err)
			}
		}
	}
}

func TestSignsWithEncryptedKey(t *testing.T) {
	d := digest.FromString("image")
	for _, password := range []string{"", "correct horse"} {
		priv, pub, err := cosign.GenerateKey([]byte(password))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(string(priv), "-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----") {
			t.Errorf("private key begins with %.50q", priv)
		}
		s, err := cosign.Sign(t.Context(), priv, []byte(password), d, theImage, image.FormatBundle)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := authority(t, pub).Verify(t.Context(), d, s); err != nil {
			t.Error(err)
		}
		if _, err := cosign.Sign(t.Context(), priv, []byte("wrong"), d, theImage, image.FormatBundle); err == nil || !strings.Contains(err.Error(), "is the password right?") {
			t.Errorf("wrong password: got %v", err)
		}
	}
}

func TestSignSaysWhyNot(t *testing.T) {
	priv, pub := pair(t, "p256")
	weak, _ := pair(t, "rsa1024")
	d := digest.FromString("image")
	for _, tc := range []struct {
		name string
		key  []byte
		d    digest.Digest
		f    image.Format
		want string
	}{
		{"junk", []byte("junk"), d, image.FormatTag, "private key: is not PEM"},
		{"public key", pub, d, image.FormatTag, `PEM block "PUBLIC KEY" is no private key`},
		{"short key", weak, d, image.FormatTag, "is not one that cosign takes"},
		{"no digest", priv, "latest", image.FormatTag, "is not a SHA-256 digest"},
		{"format", priv, d, "x", "there are tag, referrer and bundle"},
	} {
		if _, err := cosign.Sign(t.Context(), tc.key, nil, tc.d, theImage, tc.f); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", tc.name, err, tc.want)
		}
	}
}

func TestPayloadNamesTheImageAsCosignDoes(t *testing.T) {
	priv, _ := pair(t, "p256")
	d := digest.FromString("image")
	hub := image.Reference{Registry: "docker.io", Repository: "library/x"}
	s, err := cosign.Sign(t.Context(), priv, nil, d, hub, image.FormatTag)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"critical":{"identity":{"docker-reference":"index.docker.io/library/x"},"image":{"docker-manifest-digest":"` + d.String() + `"},"type":"cosign container image signature"},"optional":null}`
	if string(s.Payload) != want {
		t.Errorf("got payload %s\nwant %s", s.Payload, want)
	}
}

func TestKeysThatAreRefused(t *testing.T) {
	priv, pub := pair(t, "p256")
	_, second := pair(t, "p256")
	_, weak := pair(t, "rsa1024")
	broken := slices.Clone(pub)
	broken[len(broken)/2] = '!'
	for _, tc := range []struct{ name, key, want string }{
		{"empty", "", "is not PEM"},
		{"junk", "junk", "is not PEM"},
		{"junk before", "my key:\n" + string(pub), "is not PEM"},
		{"junk after", string(pub) + "junk", "text after the first PEM block"},
		{"two keys", string(pub) + string(second), "give each key its own entry"},
		{"broken base64", string(broken), "is a line broken?"},
		{"private key", string(priv), "is a private key"},
		{"no key inside", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "asn1"},
		{"certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", `PEM block "CERTIFICATE"`},
		{"short RSA", string(weak), "is not a key that cosign takes"},
	} {
		_, err := compileKey([]byte(tc.key))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", tc.name, err, tc.want)
		}
		if err != nil && strings.Contains(err.Error(), string(priv)) {
			t.Errorf("%s: the error holds the private key", tc.name)
		}
	}
	if _, err := compileKey([]byte("\n" + string(pub) + "\n\n")); err != nil {
		t.Errorf("white space around the key: %v", err)
	}
}

// In a network namespace of its own not even loopback is up.
func TestVerifiesWithoutNetwork(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a network namespace takes root")
	}
	var checks []func() error
	for name := range written {
		v := readVector(t, name)
		a, sig := authority(t, v.key), v.signatures(t)[0]
		checks = append(checks, func() error {
			_, err := a.Verify(t.Context(), v.image, sig)
			return err
		})
	}
	sigstore := cosigntest.New()
	root := filepath.Join(t.TempDir(), "trusted_root.json")
	write(t, root, sigstore.TrustedRoot())
	d := digest.FromString("image")
	for _, w := range ways {
		a, sig := fileAuthority(t, "", root), sigstore.Sign(d, theImage, release, w.format, w.opts...)
		checks = append(checks, func() error {
			_, err := a.Verify(t.Context(), d, sig)
			return err
		})
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		var errs []error
		for _, check := range checks {
			errs = append(errs, check())
		}
		done <- errors.Join(errs...)
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// rekorAnnotation is a transparency log entry as cosign keeps it beside a payload.
func rekorAnnotation(body string) string {
	return `{"SignedEntryTimestamp":"AAAA","Payload":{"body":` + body + `,"integratedTime":1,"logIndex":1,"logID":"00"}}`
}

// cosign/v2 v2.6.5 panics in a goroutine of its own on the first two (cosign#4648).
func TestMalformedRekorBundle(t *testing.T) {
	priv, pub := pair(t, "p256")
	a := authority(t, pub)
	d := digest.FromString("image")
	b64 := func(s string) string { return `"` + base64.StdEncoding.EncodeToString([]byte(s)) + `"` }
	for _, f := range []image.Format{image.FormatTag, image.FormatReferrer} {
		for body, ok := range map[string]bool{
			`1`:            false,
			`null`:         false,
			`{}`:           false,
			`["a"]`:        false,
			b64(`{}`):      true, // keys need no log, so what is in it is not looked at
			b64(`garbage`): true,
		} {
			s := sign(t, priv, d, f)
			s.Annotations["dev.sigstore.cosign/bundle"] = rekorAnnotation(body)
			if _, err := a.Verify(t.Context(), d, s); (err == nil) != ok {
				t.Errorf("%s, body %s: got %v, want success %t", f, body, err, ok)
			}
		}
	}
	if _, err := a.Verify(t.Context(), d, sign(t, priv, d, image.FormatTag)); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestMalformedSignatures(t *testing.T) {
	priv, pub := pair(t, "p256")
	a := authority(t, pub)
	d := digest.FromString("image")
	good := map[image.Format]image.Signature{}
	for _, f := range formats {
		good[f] = sign(t, priv, d, f)
	}
	payload := func(p string) func(*image.Signature) {
		return func(s *image.Signature) { s.Payload = []byte(p) }
	}
	annotation := func(key, value string) func(*image.Signature) {
		return func(s *image.Signature) { s.Annotations[key] = value }
	}
	const dsse = `"dsseEnvelope":{"payload":"e30=","payloadType":"application/vnd.in-toto+json","signatures":[{"sig":"AAAA"}]}`
	v3 := func(material, content string) func(*image.Signature) {
		return payload(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":` + material + `,` + content + `}`)
	}
	tlog := func(entry string) func(*image.Signature) {
		return v3(`{"publicKey":{"hint":"x"},"tlogEntries":[`+entry+`]}`, dsse)
	}
	for _, tc := range []struct {
		name   string
		format image.Format
		change func(*image.Signature)
	}{
		{"empty payload", image.FormatTag, payload("")},
		{"payload changed", image.FormatTag, func(s *image.Signature) { s.Payload[0] ^= 1 }},
		{"no annotations", image.FormatTag, func(s *image.Signature) { s.Annotations = nil }},
		{"empty signature", image.FormatTag, annotation("dev.cosignproject.cosign/signature", "")},
		{"signature not base64", image.FormatTag, annotation("dev.cosignproject.cosign/signature", "!")},
		{"signature not DER", image.FormatTag, annotation("dev.cosignproject.cosign/signature", "AAAA")},
		{"log entry not JSON", image.FormatTag, annotation("dev.sigstore.cosign/bundle", "{")},
		{"too long", image.FormatTag, payload(strings.Repeat("x", 1<<20+1))},
		{"unknown format", image.FormatTag, func(s *image.Signature) { s.Format = "x" }},
		{"payload as bundle", image.FormatTag, func(s *image.Signature) { s.Format = image.FormatBundle }},
		{"bundle as payload", image.FormatBundle, func(s *image.Signature) { s.Format = image.FormatTag }},
		{"empty bundle", image.FormatBundle, payload("")},
		{"null", image.FormatBundle, payload("null")},
		{"empty object", image.FormatBundle, payload("{}")},
		{"unknown version", image.FormatBundle, payload(`{"mediaType":"application/vnd.dev.sigstore.bundle.v9+json"}`)},
		{"too long a bundle", image.FormatBundle, payload(strings.Repeat(" ", 1<<20+1))},
		{"no material", image.FormatBundle, v3(`null`, dsse)},
		{"empty material", image.FormatBundle, v3(`{}`, dsse)},
		{"null certificate", image.FormatBundle, v3(`{"certificate":null}`, dsse)},
		{"empty certificate", image.FormatBundle, v3(`{"certificate":{}}`, dsse)},
		{"empty chain", image.FormatBundle, v3(`{"x509CertificateChain":{}}`, dsse)},
		{"empty envelope", image.FormatBundle, v3(`{"publicKey":{"hint":"x"}}`, `"dsseEnvelope":{}`)},
		{"no signature", image.FormatBundle, v3(`{"publicKey":{"hint":"x"}}`, `"dsseEnvelope":{"payload":"e30=","payloadType":"application/vnd.in-toto+json","signatures":[]}`)},
		{"null signature", image.FormatBundle, v3(`{"publicKey":{"hint":"x"}}`, `"dsseEnvelope":{"payload":"e30=","payloadType":"application/vnd.in-toto+json","signatures":[null]}`)},
		{"message signature", image.FormatBundle, v3(`{"publicKey":{"hint":"x"}}`, `"messageSignature":{"messageDigest":{"algorithm":"SHA2_256","digest":"AAAA"},"signature":"AAAA"}`)},
		{"wrong signature", image.FormatBundle, v3(`{"publicKey":{"hint":"x"}}`, dsse)},
		{"null log entry", image.FormatBundle, tlog(`null`)},
		{"empty log entry", image.FormatBundle, tlog(`{}`)},
		{"empty log body", image.FormatBundle, tlog(`{"logIndex":"1","logId":{"keyId":"AAAA"},"kindVersion":{"kind":"dsse","version":"0.0.1"},"integratedTime":"1","canonicalizedBody":"e30="}`)},
		{"empty timestamp", image.FormatBundle, v3(`{"publicKey":{"hint":"x"},"timestampVerificationData":{"rfc3161Timestamps":[{}]}}`, dsse)},
	} {
		s := good[tc.format]
		s.Payload, s.Annotations = slices.Clone(s.Payload), maps.Clone(s.Annotations)
		tc.change(&s)
		if _, err := a.Verify(t.Context(), d, s); err == nil {
			t.Errorf("%s: was accepted", tc.name)
		} else if strings.Contains(err.Error(), "panic") {
			t.Errorf("%s: %v", tc.name, err)
		} else if len(err.Error()) > 400 {
			t.Errorf("%s: error of %d bytes", tc.name, len(err.Error()))
		}
	}
	for _, d := range []digest.Digest{"", "sha256:", "sha512:" + digest.Digest(strings.Repeat("0", 128)), "x"} {
		if _, err := a.Verify(t.Context(), d, good[image.FormatTag]); err == nil {
			t.Errorf("digest %q: was accepted", d)
		}
	}
}

// Who holds the key also signs other documents; those are no approval.
func TestOtherDocumentsOfTheSameKey(t *testing.T) {
	priv, pub := pair(t, "p256")
	a := authority(t, pub)
	d := digest.FromString("image")
	for _, doc := range []string{
		`{"critical":{"identity":{"docker-reference":"x"},"image":{"docker-manifest-digest":"` + d.String() + `"},"type":"atomic container signature"},"optional":null}`,
		`{"critical":{"image":{"docker-manifest-digest":"` + d.String() + `"}}}`,
		`"` + d.String() + `"`,
		`not JSON`,
	} {
		s := image.Signature{Format: image.FormatTag, Payload: []byte(doc), Annotations: map[string]string{
			"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(signRaw(t, priv, []byte(doc))),
		}}
		if _, err := a.Verify(t.Context(), d, s); !errors.Is(err, verify.ErrNotImageSignature) {
			t.Errorf("%s: got %v, want ErrNotImageSignature", doc, err)
		}
	}
	hex := d.Encoded()
	for _, tc := range []struct {
		payloadType, statement string
		want                   error
	}{
		{"application/vnd.in-toto+json", `{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":"` + hex + `"}}],"predicateType":"https://sigstore.dev/cosign/sign/v1","predicate":{}}`, nil},
		{"application/vnd.in-toto+json", `{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":"` + hex + `"}}],"predicateType":"https://spdx.dev/Document","predicate":{}}`, verify.ErrNotImageSignature},
		{"application/vnd.in-toto+json", `{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":"` + hex + `"}}],"predicateType":"https://sigstore.dev/cosign/sign/v1/","predicate":{}}`, verify.ErrNotImageSignature},
		{"application/vnd.in-toto+json", `{"_type":"https://in-toto.io/Statement/v1","subject":[],"predicateType":"https://sigstore.dev/cosign/sign/v1"}`, verify.ErrOtherImage},
		{"application/vnd.in-toto+json", `{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha512":"` + hex + `"}}],"predicateType":"https://sigstore.dev/cosign/sign/v1"}`, verify.ErrOtherImage},
	} {
		pae := fmt.Sprintf("DSSEv1 %d %s %d %s", len(tc.payloadType), tc.payloadType, len(tc.statement), tc.statement)
		raw, err := json.Marshal(map[string]any{
			"mediaType":            "application/vnd.dev.sigstore.bundle.v0.3+json",
			"verificationMaterial": map[string]any{"publicKey": map[string]string{"hint": ""}},
			"dsseEnvelope": map[string]any{
				"payload": []byte(tc.statement), "payloadType": tc.payloadType,
				"signatures": []any{map[string][]byte{"sig": signRaw(t, priv, []byte(pae))}},
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Verify(t.Context(), d, image.Signature{Format: image.FormatBundle, Payload: raw}); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.statement, err, tc.want)
		}
	}
}

// signRaw signs any bytes with a P-256 key.
func signRaw(t testing.TB, priv, message []byte) []byte {
	t.Helper()
	block, _ := pem.Decode(priv)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	sum := digest.SHA256.Hash()
	sum.Write(message)
	sig, err := ecdsa.SignASN1(rand.Reader, key.(*ecdsa.PrivateKey), sum.Sum(nil))
	if err != nil {
		t.Fatal(err)
	}
	return sig
}
