// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"

	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
)

const (
	simpleSigning   = "application/vnd.dev.cosign.simplesigning.v1+json"
	bundleMediaType = "application/vnd.dev.sigstore.bundle.v0.3+json"

	unsigned     = `image $SIGNED: is not signed, and policy "release" wants a signature; sign it with a key of the policy`
	unreadable   = `image $SIGNED: no signature by policy "release" (found $N: unreadable); sign it with a key of the policy or ask an admin to add yours`
	anotherImage = `image $SIGNED: no signature by policy "release" (found 1: for another image); sign it with a key of the policy or ask an admin to add yours`
)

// signatureTag is where cosign v2 keeps the signatures of an image.
func signatureTag(d digest.Digest) string { return strings.Replace(d.String(), ":", "-", 1) + ".sig" }

// signatureCases are signatures that are missing, broken, hidden among others or out of reach.
func signatureCases() []testCase {
	var cases []testCase
	malformed := malformedAnnotations()
	for _, name := range slices.Sorted(maps.Keys(malformed)) {
		cases = append(cases, testCase{name: "Malformed-" + name, push: func(t *testing.T, r repository) digest.Digest {
			d := r.push(t, "v1")
			r.tagged(t, d, r.spoilt(t, d, malformed[name]))
			return d
		}, code: codes.PermissionDenied, says: unreadable})
	}
	for _, name := range slices.Sorted(maps.Keys(malformedBundles)) {
		cases = append(cases, testCase{name: "Malformed-" + name, push: func(t *testing.T, r repository) digest.Digest {
			d := r.push(t, "v1")
			r.bundle(t, d, []byte(malformedBundles[name]))
			return d
		}, code: codes.PermissionDenied, says: unreadable})
	}
	return append(cases, []testCase{
		{name: "Unsigned", push: func(t *testing.T, r repository) digest.Digest { return r.push(t, "v1") }, code: codes.PermissionDenied, says: unsigned},
		{name: "UnsignedAndOpen", policy: "open", push: func(t *testing.T, r repository) digest.Digest { return r.push(t, "v1") }},
		{name: "GoodAmongMalformed", push: func(t *testing.T, r repository) digest.Digest {
			d := r.push(t, "v1")
			for _, bundle := range malformedBundles {
				r.bundle(t, d, []byte(bundle))
			}
			r.sign(t, strangerKey(), d, image.FormatBundle)
			r.sign(t, releaseKey(), d, image.FormatBundle)
			return d
		}},
		{name: "GoodBesideMalformedTag", push: func(t *testing.T, r repository) digest.Digest {
			d := r.push(t, "v1")
			r.tagged(t, d, r.spoilt(t, d, rekorEntry("1")))
			r.sign(t, releaseKey(), d, image.FormatReferrer)
			return d
		}},
		{name: "TwoInOneTag", push: func(t *testing.T, r repository) digest.Digest {
			d := r.push(t, "v1")
			r.sign(t, strangerKey(), d, image.FormatTag)
			r.sign(t, releaseKey(), d, image.FormatTag)
			return d
		}},
		{name: "LargeBundle", push: func(t *testing.T, r repository) digest.Digest {
			d := r.push(t, "v1")
			r.bundle(t, d, make([]byte, 5<<20))
			return d
		}, code: codes.PermissionDenied, says: unsigned},
		{name: "GoodBesideLargeBundle", push: func(t *testing.T, r repository) digest.Digest {
			d := r.push(t, "v1")
			r.bundle(t, d, make([]byte, 5<<20))
			r.sign(t, releaseKey(), d, image.FormatBundle)
			return d
		}},
		{name: "ThousandReferrers", push: func(t *testing.T, r repository) digest.Digest {
			d := r.push(t, "v1")
			r.sign(t, releaseKey(), d, image.FormatBundle)
			r.crowd(t, d, 1000)
			return d
		}, code: codes.InvalidArgument,
			says: `image $SIGNED: signatures: over the limit: it has more than 256 referrers; remove old ones from the registry`},
		{name: "TagLookupFails", push: pushSigned, registry: part(".sig", http.StatusInternalServerError), code: codes.Unavailable,
			says: `image $SIGNED: signatures: unavailable: registry $REGISTRY answered 500; try again later`},
		{name: "ReferrersLookupFails", push: pushSigned, only: inProcess, registry: part("/referrers/", http.StatusInternalServerError), code: codes.Unavailable,
			says: `image $SIGNED: signatures: unavailable: registry $REGISTRY answered 500; try again later`},
		{name: "ReferrersListFails", push: pushSigned, only: dockerRegistry, registry: listOfReferrers(http.StatusServiceUnavailable), code: codes.Unavailable,
			says: `image $SIGNED: signatures: unavailable: registry $REGISTRY answered 503; try again later`},
		{name: "SignatureIsForbidden", push: pushSigned, registry: part(".sig", http.StatusForbidden), code: codes.Unauthenticated,
			says: `image $SIGNED: signatures: not authenticated: registry $REGISTRY answered 403; check that the image exists and the credentials may pull it`},
		{name: "SignatureLookupIsCut", push: pushSigned, registry: func(repository) imagetest.Hook { return imagetest.Drop(".sig") }, code: codes.Unavailable,
			says: `image $SIGNED: signatures: unavailable: registry $REGISTRY: answer was cut off; try again later`},
	}...)
}

// pushSigned is a good image.
func pushSigned(t *testing.T, r repository) digest.Digest {
	d := r.push(t, "v1")
	r.sign(t, releaseKey(), d, image.FormatTag)
	return d
}

// part is a registry that answers with a status where the path has a part.
func part(path string, status int) func(repository) imagetest.Hook {
	return func(repository) imagetest.Hook { return imagetest.Status(path, status) }
}

// listOfReferrers is a registry that fails where the list of referrers is a tag.
func listOfReferrers(status int) func(repository) imagetest.Hook {
	return func(repository) imagetest.Hook {
		return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if _, tag, _ := strings.Cut(r.URL.Path, "/manifests/sha256-"); tag != "" && !strings.HasSuffix(tag, ".sig") {
				w.WriteHeader(status)
				return
			}
			next.ServeHTTP(w, r)
		}
	}
}

// rekorEntry is an entry of a transparency log as cosign v2 keeps it in an annotation.
func rekorEntry(body string) map[string]string {
	return map[string]string{"dev.sigstore.cosign/bundle": `{"SignedEntryTimestamp":"AAAA","Payload":{"body":` + body + `,"integratedTime":1,"logIndex":1,"logID":"00"}}`}
}

// malformedAnnotations spoil a good signature. On the first two cosign/v2 v2.6.5 panics in a goroutine of its own
// (cosign#4648), which nobody can recover.
func malformedAnnotations() map[string]map[string]string {
	return map[string]map[string]string{
		"RekorBodyIsNumber": rekorEntry("1"),
		"RekorBodyIsNull":   rekorEntry("null"),
		"RekorBodyIsObject": rekorEntry("{}"),
		"RekorIsNoJSON":     {"dev.sigstore.cosign/bundle": "{"},
		"RekorIsDeep":       {"dev.sigstore.cosign/bundle": strings.Repeat("[", 1<<16)},
		"NoSignature":       {"dev.cosignproject.cosign/signature": ""},
		"NoBase64":          {"dev.cosignproject.cosign/signature": "!"},
	}
}

// malformedBundles are no bundles, or bundles without what they must have.
var malformedBundles = map[string]string{
	"EmptyBundle":     "",
	"NullBundle":      "null",
	"BundleOfNothing": "{}",
	"DeepBundle":      strings.Repeat("[", 1<<17),
	"DeepBundleValue": `{"mediaType":"` + bundleMediaType + `","verificationMaterial":` + strings.Repeat(`{"certificate":`, 1<<14),
	"UnknownVersion":  `{"mediaType":"application/vnd.dev.sigstore.bundle.v9+json"}`,
	"NoMaterial":      `{"mediaType":"` + bundleMediaType + `","verificationMaterial":null,"dsseEnvelope":{}}`,
	"NullCertificate": `{"mediaType":"` + bundleMediaType + `","verificationMaterial":{"certificate":null},"dsseEnvelope":{}}`,
	"EmptyChain":      `{"mediaType":"` + bundleMediaType + `","verificationMaterial":{"x509CertificateChain":{}},"dsseEnvelope":{}}`,
	"NullLogEntry":    `{"mediaType":"` + bundleMediaType + `","verificationMaterial":{"publicKey":{"hint":"x"},"tlogEntries":[null]},"dsseEnvelope":{"payload":"e30=","payloadType":"application/vnd.in-toto+json","signatures":[{"sig":"AAAA"}]}}`,
	"NullSignature":   `{"mediaType":"` + bundleMediaType + `","verificationMaterial":{"publicKey":{"hint":"x"}},"dsseEnvelope":{"payload":"e30=","payloadType":"application/vnd.in-toto+json","signatures":[null]}}`,
}

// spoilt is a good signature as a layer, with annotations that are not.
func (r repository) spoilt(t *testing.T, d digest.Digest, annotations map[string]string) ocispec.Descriptor {
	t.Helper()
	s := r.signature(t, releaseKey(), d, image.FormatTag)
	maps.Copy(s.Annotations, annotations)
	return r.PutBlob(t, simpleSigning, s.Payload, s.Annotations)
}

// tagged puts layers under the tag of cosign v2.
func (r repository) tagged(t *testing.T, d digest.Digest, layers ...ocispec.Descriptor) {
	t.Helper()
	r.PutManifest(t, signatureTag(d), ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: r.PutEmpty(t), Layers: layers})
}

// bundle puts any bytes beside the image where cosign v3 puts its bundles.
func (r repository) bundle(t *testing.T, d digest.Digest, raw []byte) {
	t.Helper()
	r.refer(t, ocispec.Manifest{
		MediaType: ocispec.MediaTypeImageManifest, ArtifactType: bundleMediaType, Config: r.PutEmpty(t),
		Subject: r.subject(t, d), Layers: []ocispec.Descriptor{r.PutBlob(t, bundleMediaType, raw, nil)},
	})
}

// subject describes an image of the repository.
func (r repository) subject(t *testing.T, d digest.Digest) *ocispec.Descriptor {
	t.Helper()
	m, raw := r.manifest(t, d.String())
	return &ocispec.Descriptor{MediaType: m.MediaType, Digest: d, Size: int64(len(raw))}
}

// crowd makes so many referrers of an image that each could be a signature.
func (r repository) crowd(t *testing.T, d digest.Digest, n int) {
	t.Helper()
	subject, config := r.subject(t, d), r.PutEmpty(t)
	layer := r.PutBlob(t, bundleMediaType, []byte("{}"), nil)
	all := make([]ocispec.Descriptor, n)
	var wg sync.WaitGroup
	const workers = 8
	for w := range workers {
		wg.Go(func() {
			for i := w; i < n; i += workers {
				all[i] = r.PutManifest(t, "", ocispec.Manifest{
					MediaType: ocispec.MediaTypeImageManifest, ArtifactType: bundleMediaType, Config: config, Subject: subject,
					Layers: []ocispec.Descriptor{layer}, Annotations: map[string]string{"number": fmt.Sprint(i)},
				})
				all[i].ArtifactType = bundleMediaType
			}
		})
	}
	wg.Wait()
	if !r.n.referrers {
		r.list(t, d, all...)
	}
}
