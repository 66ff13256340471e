// SPDX-License-Identifier: Apache-2.0

package cosign_test

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/verify"
	"github.com/bpfvol/bpfvol/verify/cosign/cosigntest"
)

// refusesQuietly fails if a signature for d passes for another image, or ends in a panic, caught or not.
func refusesQuietly(t testing.TB, a verify.Authority, name string, sig image.Signature) {
	t.Helper()
	other := digest.FromString("an image nobody signed")
	_, err := a.Verify(t.Context(), other, sig)
	for _, err := range []error{err, a.Attests(t.Context(), other, sig, provenance)} {
		switch {
		case err == nil:
			t.Errorf("%s: passes for another image", name)
		case strings.Contains(err.Error(), "panic"):
			t.Errorf("%s: %v", name, err)
		case len(err.Error()) > 700:
			t.Errorf("%s: %d bytes: %.100q", name, len(err.Error()), err)
		}
	}
}

// Every value of a good bundle is replaced by what a reader may trip over, one at a time, and taken away.
func TestEveryPartOfABundleMayBeHostile(t *testing.T) {
	sigstore := cosigntest.New()
	d := digest.FromString("image")
	a := keyless(t, sigstore.TrustedRoot(), exactly(release), provenance)
	_, pub := pair(t, "p256")
	key := authority(t, pub)
	for _, sig := range []image.Signature{
		sigstore.Sign(d, theImage, release, image.FormatBundle, cosigntest.WithTimestamp()),
		sigstore.Sign(d, theImage, release, image.FormatBundle, cosigntest.WithTimestamp(), cosigntest.RekorV2()),
		sigstore.Attest(d, release, cosigntest.SLSA, cosigntest.Provenance(builder)),
	} {
		mutations(t, sig.Payload, func(name string, payload []byte) {
			bad := image.Signature{Format: image.FormatBundle, Payload: payload}
			refusesQuietly(t, a, name, bad)
			refusesQuietly(t, key, name, bad)
		})
	}
}

func TestEveryAnnotationMayBeHostile(t *testing.T) {
	sigstore := cosigntest.New()
	d := digest.FromString("image")
	a := keyless(t, sigstore.TrustedRoot(), exactly(release))
	good := sigstore.Sign(d, theImage, release, image.FormatTag, cosigntest.WithTimestamp())
	for _, key := range slices.Sorted(maps.Keys(good.Annotations)) {
		change := func(name, value string) {
			bad := good
			bad.Annotations = maps.Clone(good.Annotations)
			bad.Annotations[key] = value
			refusesQuietly(t, a, key+": "+name, bad)
		}
		value := good.Annotations[key]
		for i, text := range []string{"", "x", "null", "{}", "[]", "0", "\x00", "AAAA", value[:len(value)/2], value + value, strings.Repeat(value, 12),
			"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", strings.Repeat("[", 100000)} {
			change(fmt.Sprint("text ", i), text)
		}
		if json.Valid([]byte(value)) {
			mutations(t, []byte(value), func(name string, payload []byte) { change(name, string(payload)) })
		}
	}
	// What the log recorded is JSON inside base64 inside JSON.
	entry := []byte(good.Annotations["dev.sigstore.cosign/bundle"])
	body, err := base64.StdEncoding.DecodeString(decode(t, entry)["Payload"].(map[string]any)["body"].(string))
	must(t, err)
	mutations(t, body, func(name string, payload []byte) {
		bad := good
		bad.Annotations = maps.Clone(good.Annotations)
		bad.Annotations["dev.sigstore.cosign/bundle"] = string(edit(t, entry, func(b map[string]any) {
			b["Payload"].(map[string]any)["body"] = payload
		}))
		refusesQuietly(t, a, "body: "+name, bad)
	})
	if _, err := a.Verify(t.Context(), d, good); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// cosign#4648 once more, where the entry matters.
func TestMalformedRekorBundleOfAKeylessSignature(t *testing.T) {
	sigstore := cosigntest.New()
	d := digest.FromString("image")
	a := keyless(t, sigstore.TrustedRoot(), exactly(release))
	for _, f := range formats[:2] {
		for _, body := range []string{`1`, `null`, `{}`, `["a"]`, `"e30="`, `"Z2FyYmFnZQ=="`, `"!"`, `""`} {
			s := sigstore.Sign(d, theImage, release, f)
			s.Annotations["dev.sigstore.cosign/bundle"] = rekorAnnotation(body)
			if _, err := a.Verify(t.Context(), d, s); err == nil || strings.Contains(err.Error(), "panic") {
				t.Errorf("%s, body %s: got %v", f, body, err)
			}
		}
	}
}

func TestSizesAreBounded(t *testing.T) {
	sigstore := cosigntest.New()
	d := digest.FromString("image")
	a := keyless(t, sigstore.TrustedRoot(), exactly(release))
	s := sigstore.Sign(d, theImage, release, image.FormatTag)
	s.Annotations["x"] = strings.Repeat("x", 1<<20)
	if _, err := a.Verify(t.Context(), d, s); err == nil || !strings.Contains(err.Error(), "the limit is 1048576") {
		t.Errorf("annotations: got %v", err)
	}
	huge := cosigntest.Identity{Issuer: release.Issuer, Subject: "https://acme.test/" + strings.Repeat("y", 40<<10)}
	if _, err := a.Verify(t.Context(), d, sigstore.Sign(d, theImage, huge, image.FormatBundle)); err == nil || !strings.Contains(err.Error(), "certificate: has ") {
		t.Errorf("certificate: got %v", err)
	}
	many := sigstore.Sign(d, theImage, release, image.FormatBundle)
	many.Payload = edit(t, many.Payload, func(b map[string]any) {
		entries := material(b)["tlogEntries"].([]any)
		material(b)["tlogEntries"] = slices.Repeat(entries, 100)
	})
	if _, err := a.Verify(t.Context(), d, many); err == nil || !strings.Contains(err.Error(), "has 100 log entries; the limit is 4") {
		t.Errorf("entries: got %v", err)
	}
}

// giantKey is a hashedrekord of an RSA key that takes minutes to verify with, which Rekor's library does on parsing.
func giantKey(t testing.TB) []byte {
	t.Helper()
	const size = 64 << 10
	n := new(big.Int).SetBit(big.NewInt(1), size*8-1, 1)
	der, err := x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: n, E: 1<<31 - 1})
	must(t, err)
	key := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	return fmt.Appendf(nil, `{"apiVersion":"0.0.1","kind":"hashedrekord","spec":{"data":{"hash":{"algorithm":"sha256","value":"%064d"}},"signature":{"content":%q,"publicKey":{"content":%q}}}}`,
		0, base64.StdEncoding.EncodeToString(make([]byte, size)), base64.StdEncoding.EncodeToString(key))
}

func TestGiantKeyIsNotVerifiedWith(t *testing.T) {
	sigstore := cosigntest.New()
	d := digest.FromString("image")
	priv, pub := pair(t, "p256")
	a, key := keyless(t, sigstore.TrustedRoot(), exactly(release)), authority(t, pub)
	start := time.Now()

	b := sigstore.Sign(d, theImage, release, image.FormatBundle)
	b.Payload = edit(t, b.Payload, func(b map[string]any) { logEntry(b)["canonicalizedBody"] = giantKey(t) })
	if _, err := a.Verify(t.Context(), d, b); err == nil || !strings.Contains(err.Error(), "the limit is 32768") {
		t.Errorf("bundle: got %v", err)
	}
	tag := sigstore.Sign(d, theImage, release, image.FormatTag)
	tag.Annotations["dev.sigstore.cosign/bundle"] = rekorAnnotation(strconv.Quote(base64.StdEncoding.EncodeToString(giantKey(t))))
	if _, err := a.Verify(t.Context(), d, tag); err == nil || !strings.Contains(err.Error(), "the limit is 32768") {
		t.Errorf("tag: got %v", err)
	}
	// A key needs no log, so it does not read what would be dear.
	own := sign(t, priv, d, image.FormatBundle)
	own.Payload = edit(t, own.Payload, func(own map[string]any) {
		material(own)["tlogEntries"] = material(decode(t, b.Payload))["tlogEntries"]
	})
	if _, err := key.Verify(t.Context(), d, own); err != nil {
		t.Errorf("by key: %v", err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
}

func logEntry(b map[string]any) map[string]any {
	return material(b)["tlogEntries"].([]any)[0].(map[string]any)
}

// An entry that was proposed and not recorded is verified on parsing, with keys that anyone may have put there.
func TestEntriesAreTakenAsRekorRecordsThem(t *testing.T) {
	sigstore := cosigntest.New()
	d := digest.FromString("image")
	a := keyless(t, sigstore.TrustedRoot(), exactly(release))
	hash := `{"algorithm":"sha256","value":"` + strings.Repeat("0", 64) + `"}`
	other := base64.StdEncoding.EncodeToString([]byte(sigstore.Sign(d, theImage, release, image.FormatTag).Annotations["dev.sigstore.cosign/certificate"]))
	for _, tc := range []struct{ name, body, want string }{
		{"proposed dsse", `{"apiVersion":"0.0.1","kind":"dsse","spec":{"proposedContent":{"envelope":"{}","verifiers":["AAAA"]}}}`, "is not as Rekor records it"},
		{"dsse, spelt otherwise", `{"apiVersion":"0.0.1","kind":"dsse","spec":{"ProposedContent":{}}}`, "is not as Rekor records it"},
		{"intoto with payload", `{"apiVersion":"0.0.2","kind":"intoto","spec":{"content":{"envelope":{"payload":"AAAA","payloadType":"x","signatures":[]}}}}`, "is not as Rekor records it"},
		{"two keys", `{"apiVersion":"0.0.1","kind":"hashedrekord","spec":{"data":{"hash":` + hash + `},"signature":{"content":"","publicKey":{"content":"AAAA"},"publicKey":{"content":"AAAA"}}}}`, "is not as Rekor records it"},
		{"of another certificate", `{"apiVersion":"0.0.1","kind":"hashedrekord","spec":{"data":{"hash":` + hash + `},"signature":{"content":"","publicKey":{"content":"` + other + `"}}}}`, "the entry is of another certificate"},
		{"of no kind", `{"apiVersion":"0.0.1","kind":"rpm","spec":{}}`, `is of kind "rpm", version "0.0.1"`},
		{"older", `{"apiVersion":"0.0.1","kind":"intoto","spec":{}}`, `is of kind "intoto", version "0.0.1"`},
		{"two kinds", `{"apiVersion":"0.0.1","kind":"dsse","kind":"hashedrekord","spec":{}}`, "is not as Rekor records it"},
		{"not JSON", `AAAA`, "is not as Rekor records it"},
	} {
		s := sigstore.Sign(d, theImage, release, image.FormatBundle)
		s.Payload = edit(t, s.Payload, func(b map[string]any) { logEntry(b)["canonicalizedBody"] = []byte(tc.body) })
		if _, err := a.Verify(t.Context(), d, s); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", tc.name, err, tc.want)
		}
	}
}

// The library that reads timestamps goes down as deep as they are nested. Go ends the process when a stack has 1 GB.
func TestDeepTimestampIsNotReadDown(t *testing.T) {
	sigstore := cosigntest.New()
	d := digest.FromString("image")
	a := keyless(t, sigstore.TrustedRoot(), exactly(release))
	endless := strings.Repeat("\x30\x80", 5000) + strings.Repeat("\x00\x00", 5000)
	deep := ""
	for range 5000 {
		deep = tlv(0x30, deep)
	}
	for name, stamp := range map[string]string{"endless": endless, "deep": deep, "wrapped": tlv(0x30, tlv(0x30, "\x02\x01\x00")+tlv(0x30, tlv(0xa0, endless)))} {
		b := sigstore.Sign(d, theImage, release, image.FormatBundle)
		b.Payload = edit(t, b.Payload, func(b map[string]any) {
			material(b)["timestampVerificationData"] = map[string]any{"rfc3161Timestamps": []any{map[string]any{"signedTimestamp": []byte(stamp)}}}
		})
		tag := sigstore.Sign(d, theImage, release, image.FormatTag)
		tag.Annotations["dev.sigstore.cosign/rfc3161timestamp"] = fmt.Sprintf(`{"SignedRFC3161Timestamp":%q}`, base64.StdEncoding.EncodeToString([]byte(stamp)))
		for _, s := range []image.Signature{b, tag} {
			if _, err := a.Verify(t.Context(), d, s); err == nil || !strings.Contains(err.Error(), "timestamp: is no DER, or nested too deep") {
				t.Errorf("%s, %s: got %v", name, s.Format, err)
			}
		}
	}
}

// tlv is one element of DER.
func tlv(tag byte, content string) string {
	n := len(content)
	switch {
	case n < 0x80:
		return string([]byte{tag, byte(n)}) + content
	case n < 0x100:
		return string([]byte{tag, 0x81, byte(n)}) + content
	}
	return string([]byte{tag, 0x82, byte(n >> 8), byte(n)}) + content
}

// mutations calls f with a document in which one value is another.
func mutations(t testing.TB, raw []byte, f func(name string, changed []byte)) {
	t.Helper()
	values := []any{nil, "", "AAAA", "x", 0, -1, 1 << 40, "9223372036854775807", true, []any{}, []any{nil}, []any{map[string]any{}}, map[string]any{}, strings.Repeat("A", 4096)}
	var doc any
	must(t, json.Unmarshal(raw, &doc))
	// walk visits each place with a way to put something there.
	var walk func(path string, v any, put func(any))
	walk = func(path string, v any, put func(any)) {
		for i, value := range values {
			put(value)
			changed, err := json.Marshal(doc)
			must(t, err)
			f(fmt.Sprintf("%s = %d", path, i), changed)
		}
		put(v)
		switch v := v.(type) {
		case map[string]any:
			for _, k := range slices.Sorted(maps.Keys(v)) {
				inner := v[k]
				delete(v, k)
				changed, err := json.Marshal(doc)
				must(t, err)
				f(path+"."+k+" gone", changed)
				walk(path+"."+k, inner, func(n any) { v[k] = n })
			}
		case []any:
			for i := range v {
				walk(fmt.Sprintf("%s[%d]", path, i), v[i], func(n any) { v[i] = n })
			}
		}
	}
	walk("", doc, func(n any) { doc = n })
}
