// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/e2e/eventdoc"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
)

// testCase is an image with its signatures, and what becomes of a volume that names it.
type testCase struct {
	name string
	// policy is that of the image: policies has it. Where it is empty: release, for what the key of this name signed.
	policy string
	// push fills a repository and returns the digest of its image v1.
	push func(t *testing.T, r repository) digest.Digest
	// registry misbehaves while the volume is set up.
	registry func(r repository) imagetest.Hook
	// attributes of the volume, beside its image.
	attributes map[string]string
	// only is the one kind of registry that can hold such an image.
	only string

	// code is OK where the program runs. Else says is the text; see wantRefusal.
	code codes.Code
	says string
}

// matrix is the table. It has the order of a publish: form of the image, signature, bytes, policy.
func matrix(t testing.TB) []testCase {
	return slices.Concat(formats(), keyCases(), vectorCases(t), keylessCases(), signatureCases(), transplants(), registryCases(), hostileImages(), policyCases())
}

// release is the policy of most cases.
const release = "release"

// policies are those of the table, by name.
func policies(t testing.TB) map[string]v1alpha1.BytecodePolicySpec {
	all := map[string]v1alpha1.BytecodePolicySpec{
		release: {Authorities: keys(releaseKey())},
		"open":  {Unsigned: true},
	}
	for _, more := range []map[string]v1alpha1.BytecodePolicySpec{keyPolicies(), keylessPolicies(), vectorPolicies(t), moreOfPolicies()} {
		for name, spec := range more {
			all[name] = spec
		}
	}
	return all
}

func TestMatrix(t *testing.T) {
	for _, kind := range registryKinds {
		t.Run(kind.name, func(t *testing.T) {
			n := newNode(t, kind)
			pid := n.DaemonPID()
			slow := startSlow(t, n, kind)
			for _, c := range matrix(t) {
				if c.only == "" || c.only == kind.name {
					t.Run(c.name, func(t *testing.T) { n.try(t, c) })
				}
			}
			wantNoEscape(t)
			for _, s := range stories {
				t.Run(s.name, func(t *testing.T) { s.tell(t, n) })
			}
			t.Run("SlowRegistry", slow.wait)
			if n.DaemonPID() != pid || !n.Running() {
				t.Error("the daemon did not live through it")
			}
			t.Run("KilledWhilePulling", func(t *testing.T) { killedWhilePulling(t, n) })
		})
	}
}

func (n *node) try(t *testing.T, c testCase) {
	policy := release
	if c.policy != "" {
		policy = c.policy
	}
	r := n.repository(policy + "/" + strings.ToLower(c.name))
	d := c.push(t, r)
	v := r.volume(":v1", c.attributes)
	if c.registry != nil {
		n.InterceptFor(t, c.registry(r))
	}
	if c.code == codes.OK {
		n.wantRuns(t, v, d)
		return
	}
	n.wantRefusal(t, v, r, d, c.code, c.says)
}

// What the table wants to read is in docs/events.md, under its code.
func TestEveryRefusalIsDocumented(t *testing.T) {
	entries, _ := eventdoc.Read(t)
	names := map[string]bool{}
	for _, c := range told {
		if !eventdoc.Has(entries, c.code, c.says) {
			t.Errorf("not in %s, under %v: %s", eventdoc.File, c.code, c.says)
		}
	}
	for _, c := range matrix(t) {
		if names[strings.ToLower(c.name)+c.policy] {
			t.Errorf("two cases are called %s", c.name)
		}
		names[strings.ToLower(c.name)+c.policy] = true
		if c.code != codes.OK && !eventdoc.Has(entries, c.code, c.says) {
			t.Errorf("%s: not in %s, under %v: %s", c.name, eventdoc.File, c.code, c.says)
		}
	}
}

// formats are the forms in which bytecode images exist; each signed in another way.
func formats() []testCase {
	var cases []testCase
	for i, form := range imagetest.Formats {
		cases = append(cases, testCase{name: "Form-" + string(form), push: func(t *testing.T, r repository) digest.Digest {
			d := r.push(t, "v1", form)
			r.sign(t, releaseKey(), d, signatureFormats[i%len(signatureFormats)])
			return d
		}})
	}
	return cases
}

var signatureFormats = []image.Format{image.FormatTag, image.FormatReferrer, image.FormatBundle}
