// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/verify/cosign/cosigntest"
)

// Sigstores that know nothing of each other. Policies trust the first.
var (
	sigstore      = sync.OnceValue(cosigntest.New)
	otherSigstore = sync.OnceValue(cosigntest.New)
)

// workflow is who signs, as GitHub names it.
var workflow = cosigntest.Identity{
	Issuer:  "https://token.actions.githubusercontent.com",
	Subject: "https://github.com/acme/ebpf/.github/workflows/release.yml@refs/tags/v1.2.3",
}

const builder = "https://github.com/slsa-framework/slsa-github-generator"

func keylessPolicies() map[string]v1alpha1.BytecodePolicySpec {
	trusted := &v1alpha1.TrustedRoot{Data: string(sigstore().TrustedRoot())}
	exactly := v1alpha1.Authority{Keyless: &v1alpha1.Keyless{Issuer: workflow.Issuer, Subject: workflow.Subject}, TrustedRoot: trusted}
	attested := exactly
	attested.Attestations = []v1alpha1.Attestation{{PredicateType: cosigntest.SLSA, BuilderID: builder}}
	// A prefix of other subjects, if it were not anchored.
	pattern := v1alpha1.Authority{Keyless: &v1alpha1.Keyless{Issuer: workflow.Issuer, SubjectRegexp: `https://github\.com/acme/ebpf(/.*)?`}, TrustedRoot: trusted}
	return map[string]v1alpha1.BytecodePolicySpec{
		"workflow":  {Authorities: []v1alpha1.Authority{exactly}},
		"workflows": {Authorities: []v1alpha1.Authority{pattern}},
		"either":    {Authorities: append(keys(strangerKey()), exactly)},
		"attested":  {Authorities: []v1alpha1.Authority{attested}},
	}
}

// keylessCases are signatures by an identity, in each form that cosign leaves them in, and with each thing missing or
// another's.
func keylessCases() []testCase {
	by := func(s func() *cosigntest.Sigstore, id cosigntest.Identity, f image.Format, opts ...cosigntest.Option) func(*testing.T, repository) digest.Digest {
		return func(t *testing.T, r repository) digest.Digest {
			d := r.push(t, "v1")
			r.attach(t, d, s().Sign(d, r.reference(t, d), id, f, opts...))
			return d
		}
	}
	someone := cosigntest.Identity{Issuer: workflow.Issuer, Subject: "someone@acme.test"}
	longer := cosigntest.Identity{Issuer: workflow.Issuer, Subject: "https://github.com/acme/ebpf-evil/.github/workflows/release.yml@refs/tags/v1.2.3"}
	otherIssuer := cosigntest.Identity{Issuer: "https://issuer.test", Subject: workflow.Subject}
	const (
		tag, referrer, bundle = image.FormatTag, image.FormatReferrer, image.FormatBundle
		missing               = `image $SIGNED: is signed, but policy "attested" wants an attestation, too: "https://slsa.dev/provenance/v1" of builder "` + builder + `"`
	)
	stamped, v2 := cosigntest.WithTimestamp(), cosigntest.RekorV2()
	halfAYearAgo := cosigntest.At(time.Now().AddDate(0, -6, 0))
	cases := []testCase{
		{name: "Keyless-tag", policy: "workflow", push: by(sigstore, workflow, tag)},
		{name: "Keyless-referrer", policy: "workflow", push: by(sigstore, workflow, referrer)},
		{name: "Keyless-bundle", policy: "workflow", push: by(sigstore, workflow, bundle)},
		{name: "Keyless-tag-Stamped", policy: "workflow", push: by(sigstore, workflow, tag, stamped)},
		{name: "Keyless-bundle-Stamped", policy: "workflow", push: by(sigstore, workflow, bundle, stamped)},
		{name: "Keyless-bundle-ProofAlone", policy: "workflow", push: by(sigstore, workflow, bundle, cosigntest.WithoutPromise(), stamped)},
		{name: "Keyless-bundle-RekorV2", policy: "workflow", push: by(sigstore, workflow, bundle, v2, stamped)},
		{name: "Keyless-tag-LeafExpiredSince", policy: "workflow", push: by(sigstore, workflow, tag, halfAYearAgo)},
		{name: "Keyless-bundle-LeafExpiredSince", policy: "workflow", push: by(sigstore, workflow, bundle, halfAYearAgo, v2, stamped)},
		{name: "Keyless-Pattern", policy: "workflows", push: by(sigstore, workflow, bundle)},
		{name: "Keyless-SecondOfTwoAuthorities", policy: "either", push: by(sigstore, workflow, bundle)},
		{name: "Keyless-SecondOfTwoBundles", policy: "workflow", push: func(t *testing.T, r repository) digest.Digest {
			d := by(sigstore, workflow, bundle, cosigntest.WithoutLog())(t, r)
			r.attach(t, d, sigstore().Sign(d, r.reference(t, d), workflow, bundle))
			return d
		}},
		{name: "Keyless-Attested", policy: "attested", push: func(t *testing.T, r repository) digest.Digest {
			d := by(sigstore, workflow, tag)(t, r)
			r.attach(t, d, sigstore().Attest(d, workflow, cosigntest.SLSA, cosigntest.Provenance(builder)))
			return d
		}},

		{name: "Keyless-NotAttested", policy: "attested", push: by(sigstore, workflow, tag), code: codes.PermissionDenied,
			says: missing + `; attest it as an identity of the policy`},
		{name: "Keyless-AttestedOfAnotherBuilder", policy: "attested", push: func(t *testing.T, r repository) digest.Digest {
			d := by(sigstore, workflow, tag)(t, r)
			r.attach(t, d, sigstore().Attest(d, workflow, cosigntest.SLSA, cosigntest.Provenance("https://builder.test")))
			return d
		}, code: codes.PermissionDenied, says: missing + ` (found one of another builder); attest it as an identity of the policy`},
		{name: "Keyless-AttestedByAnother", policy: "attested", push: func(t *testing.T, r repository) digest.Digest {
			d := by(sigstore, workflow, tag)(t, r)
			r.attach(t, d, sigstore().Attest(d, someone, cosigntest.SLSA, cosigntest.Provenance(builder)))
			return d
		}, code: codes.PermissionDenied, says: missing + `; attest it as an identity of the policy`},
		{name: "Keyless-AttestationAlone", policy: "workflow", push: func(t *testing.T, r repository) digest.Digest {
			d := r.push(t, "v1")
			r.attach(t, d, sigstore().Attest(d, workflow, cosigntest.SLSA, cosigntest.Provenance(builder)))
			return d
		}, code: codes.PermissionDenied, says: notByWorkflow("an attestation and not an image signature")},
		{name: "Keyless-Unsigned", policy: "workflow", push: func(t *testing.T, r repository) digest.Digest { return r.push(t, "v1") }, code: codes.PermissionDenied,
			says: `image $SIGNED: is not signed, and policy "workflow" wants a signature; sign it as an identity of the policy`},
		{name: "Keyless-Key", policy: "workflow", push: pushSigned, code: codes.PermissionDenied, says: notByWorkflow("by a key and without a certificate")},
		{name: "Key-Keyless", push: by(sigstore, workflow, bundle), code: codes.PermissionDenied, says: byAnotherKey},
		{name: "Keyless-Either", policy: "either", push: by(sigstore, someone, bundle), code: codes.PermissionDenied,
			says: `image $SIGNED: no signature by policy "either" (found 1: by another subject, by another key); sign it with a key or as an identity of the policy or ask an admin to add yours`},
		{name: "Keyless-NotAnchored", policy: "workflows", push: by(sigstore, longer, bundle), code: codes.PermissionDenied,
			says: strings.ReplaceAll(notByWorkflow("by another subject"), `"workflow"`, `"workflows"`)},
		{name: "Keyless-EntryOfAnother", policy: "workflow", push: func(t *testing.T, r repository) digest.Digest {
			d := r.push(t, "v1")
			s, other := sigstore().Sign(d, r.reference(t, d), workflow, tag), sigstore().Sign(d, r.reference(t, d), workflow, tag)
			const entry = "dev.sigstore.cosign/bundle"
			s.Annotations[entry] = other.Annotations[entry]
			r.attach(t, d, s)
			return d
		}, code: codes.PermissionDenied, says: notByWorkflow("not in the transparency log")},
	}
	for _, f := range []image.Format{tag, referrer, bundle} {
		for _, c := range []struct {
			name, why string
			push      func(*testing.T, repository) digest.Digest
		}{
			{"OtherIssuer", "by another issuer", by(sigstore, otherIssuer, f)},
			{"OtherSubject", "by another subject", by(sigstore, someone, f)},
			{"OtherRoot", "by a certificate of another root", by(otherSigstore, workflow, f)},
			{"NoSCT", "by a certificate that is in no certificate log", by(sigstore, workflow, f, cosigntest.WithoutSCT())},
			{"NoLog", "not in the transparency log", by(sigstore, workflow, f, cosigntest.WithoutLog())},
			{"OfAnotherImage", "for another image", func(t *testing.T, r repository) digest.Digest {
				good, evil := r.push(t, "good"), r.push(t, "v1")
				r.attach(t, evil, sigstore().Sign(good, r.reference(t, good), workflow, f))
				return evil
			}},
			{"LeafHadExpired", "made outside the validity of its certificate", by(sigstore, workflow, f, cosigntest.StampedAt(time.Now().Add(-2*time.Hour)))},
		} {
			cases = append(cases, testCase{name: "Keyless-" + string(f) + "-" + c.name, policy: "workflow", push: c.push, code: codes.PermissionDenied, says: notByWorkflow(c.why)})
		}
	}
	return append(cases, testCase{name: "Keyless-bundle-RekorV2-NotStamped", policy: "workflow", push: by(sigstore, workflow, bundle, v2),
		code: codes.PermissionDenied, says: notByWorkflow("without a trusted timestamp")})
}

func notByWorkflow(why string) string {
	return `image $SIGNED: no signature by policy "workflow" (found 1: ` + why + `); sign it as an identity of the policy or ask an admin to add yours`
}

// A root that is rotated between two publishes ends what the cache holds; no daemon is restarted for it.
func rootRotates(t *testing.T, n *node) {
	file := filepath.Join(n.Dir, "trusted_root.json")
	rotate := func(s *cosigntest.Sigstore) {
		if err := os.WriteFile(file, s.TrustedRoot(), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
	}
	rotate(sigstore())
	all := policies(t)
	all["workflow"] = v1alpha1.BytecodePolicySpec{Authorities: []v1alpha1.Authority{{
		Keyless:     &v1alpha1.Keyless{Issuer: workflow.Issuer, Subject: workflow.Subject},
		TrustedRoot: &v1alpha1.TrustedRoot{File: file},
	}}}
	n.setPolicies(t, all)
	defer n.setPolicies(t, policies(t))

	r := n.repository("workflow/rotates")
	d := r.push(t, "v1")
	r.attach(t, d, sigstore().Sign(d, r.reference(t, d), workflow, image.FormatBundle))
	n.runsOnce(t, r, ":v1", "IfNotPresent", d)
	rotate(otherSigstore())
	n.wantRefusal(t, r.volume(":v1", nil), r, d, codes.PermissionDenied, notByWorkflow("by a certificate of another root"))
	r.attach(t, d, otherSigstore().Sign(d, r.reference(t, d), workflow, image.FormatBundle))
	n.runsOnce(t, r, ":v1", "IfNotPresent", d)
}
