// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"testing"

	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"

	"github.com/bpfvol/bpfvol/internal/image"
)

// transplants give an image the signature of another one, as whoever may push to a repository can.
func transplants() []testCase {
	return []testCase{
		{name: "TransplantedTag", push: func(t *testing.T, r repository) digest.Digest {
			good, evil := r.goodAndEvil(t, image.FormatTag)
			_, raw := r.manifest(t, signatureTag(good))
			r.PutRaw(t, signatureTag(evil), "application/vnd.oci.image.manifest.v1+json", raw)
			return evil
		}, code: codes.PermissionDenied, says: anotherImage},
		{name: "TransplantedReferrer", push: rewrittenSubject(image.FormatReferrer), code: codes.PermissionDenied, says: anotherImage},
		{name: "TransplantedBundle", push: rewrittenSubject(image.FormatBundle), code: codes.PermissionDenied, says: anotherImage},
		// A registry may list what refers to something else.
		{name: "ListedForAnother", only: dockerRegistry, push: func(t *testing.T, r repository) digest.Digest {
			good, evil := r.goodAndEvil(t, image.FormatBundle)
			r.list(t, evil, r.referrers(t, good)...)
			return evil
		}, code: codes.PermissionDenied, says: unsigned},
		// A copy keeps its signature, which is why policies name repositories.
		{name: "CopyElsewhere", policy: "elsewhere", push: pushSigned, code: codes.PermissionDenied,
			says: `image $IMAGE: no policy covers it (the nearest, "$WORDS", is for "$WORDS"); an admin must add a BytecodePolicy whose images include "$REGISTRY/elsewhere/copyelsewhere"`},
	}
}

// goodAndEvil pushes two images, of which the first is signed.
func (r repository) goodAndEvil(t *testing.T, f image.Format) (good, evil digest.Digest) {
	t.Helper()
	good, evil = r.push(t, "good"), r.push(t, "v1")
	r.sign(t, releaseKey(), good, f)
	return good, evil
}

// rewrittenSubject is a signature whose manifest says that it belongs to another image than what was signed.
func rewrittenSubject(f image.Format) func(*testing.T, repository) digest.Digest {
	return func(t *testing.T, r repository) digest.Digest {
		good, evil := r.goodAndEvil(t, f)
		of := r.referrers(t, good)
		if len(of) != 1 {
			t.Fatalf("the good image has %d referrers", len(of))
		}
		m, _ := r.manifest(t, of[0].Digest.String())
		m.Subject = r.subject(t, evil)
		r.refer(t, m)
		return evil
	}
}
