// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"encoding/json"
	"testing"

	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
)

// moreOfPolicies are for policyCases.
func moreOfPolicies() map[string]v1alpha1.BytecodePolicySpec {
	return map[string]v1alpha1.BytecodePolicySpec{
		"one":    {Images: []string{"$REGISTRY/one/*"}, Authorities: keys(releaseKey())},
		"others": {Authorities: keys(releaseKey()), Subjects: []string{"other/*"}},
		"empty":  {},
		"xdponly": {Authorities: keys(releaseKey()), Allow: &v1alpha1.Allow{
			Hooks: []string{"xdp"},
		}},
		"nocookie": {Authorities: keys(releaseKey()), Allow: &v1alpha1.Allow{
			Helpers: &v1alpha1.Helpers{Deny: []string{"bpf_get_attach_cookie"}},
		}},
	}
}

// policyCases are good images, signed by a good key, which a policy does not let run here, for this pod, or like this.
func policyCases() []testCase {
	push := func(form imagetest.Format) func(*testing.T, repository) digest.Digest {
		return func(t *testing.T, r repository) digest.Digest {
			d := r.push(t, "v1", form)
			r.sign(t, releaseKey(), d, image.FormatTag)
			return d
		}
	}
	return []testCase{
		{name: "NoPolicy", policy: "nobody", push: pushSigned, code: codes.PermissionDenied,
			says: `image $IMAGE: no policy covers it (the nearest, "$WORDS", is for "$WORDS"); an admin must add a BytecodePolicy whose images include "$REGISTRY/nobody/nopolicy"`},
		{name: "OneElement", policy: "one", push: pushSigned},
		{name: "Two/Elements", policy: "one", push: pushSigned, code: codes.PermissionDenied,
			says: `image $IMAGE: no policy covers it (the nearest, "one", is for "$REGISTRY/one/*"); an admin must add a BytecodePolicy whose images include "$REGISTRY/one/two/elements"`},
		{name: "LongerName", policy: "oneevil", push: pushSigned, code: codes.PermissionDenied,
			says: `image $IMAGE: no policy covers it (the nearest, "$WORDS", is for "$WORDS"); an admin must add a BytecodePolicy whose images include "$REGISTRY/oneevil/longername"`},
		{name: "OtherPort", push: pushSigned, attributes: map[string]string{"image": "127.0.0.1:1/release/otherport:v1"}, code: codes.PermissionDenied,
			says: `image $IMAGE: no policy covers it; an admin must add a BytecodePolicy whose images include "127.0.0.1:1/release/otherport"`},
		{name: "UpperCase", push: pushSigned, attributes: map[string]string{"image": "127.0.0.1:1/Release/uppercase:v1"}, code: codes.InvalidArgument,
			says: `image "127.0.0.1:1/Release/uppercase:v1": bad image reference: repository "Release/uppercase" is not made of lower-case letters, digits and separators`},
		{name: "OthersSubject", policy: "others", push: pushSigned, code: codes.PermissionDenied,
			says: `image $IMAGE: policy "others" does not name subject "e2e/app"; ask an admin to add it to the policy's subjects`},
		{name: "NoAuthorities", policy: "empty", push: pushSigned, code: codes.PermissionDenied,
			says: `image $SIGNED: policy "empty" has no authorities and no "unsigned: true", so nothing satisfies it; ask an admin to add a key to the policy`},
		// The labels say that its one program is for XDP.
		{name: "LabelsLieOfTheHook", policy: "xdponly", push: push(imagetest.BPFMan), code: codes.PermissionDenied,
			says: `image $SIGNED: policy "xdponly" does not allow hook "tracepoint" for program "on_tracepoint" (it allows xdp); change the volume's attributes or ask an admin to widen the policy`},
		{name: "LabelsLieOfTheHelpers", policy: "nocookie", push: push(imagetest.BPFMan), code: codes.PermissionDenied,
			says: `image $SIGNED: policy "nocookie" does not allow helper "bpf_get_attach_cookie", which program "on_tracepoint" calls; change the volume's attributes or ask an admin to widen the policy`},
		{name: "NoLabels", policy: "xdponly", push: push(imagetest.ORAS), code: codes.PermissionDenied,
			says: `image $SIGNED: policy "xdponly" does not allow hook "tracepoint" for program "on_tracepoint" (it allows xdp); change the volume's attributes or ask an admin to widen the policy`},
	}
}

func parsed[T any](raw []byte) (v T) {
	if err := json.Unmarshal(raw, &v); err != nil {
		panic(err)
	}
	return v
}
