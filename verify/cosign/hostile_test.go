// SPDX-License-Identifier: Apache-2.0

package cosign_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

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
	if _, err := a.Verify(t.Context(), d, many); err == nil || !strings.Contains(err.Error(), "too many tlog entries") {
		t.Errorf("entries: got %v", err)
	}
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
