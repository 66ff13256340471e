// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/txtar"
	"google.golang.org/grpc/codes"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
)

// vector is a repository as real cosign left it; verify/cosign/testdata/README.md says how.
type vector struct {
	name  string
	key   keyPair
	files []txtar.File
}

func readVectors(t testing.TB) []vector {
	t.Helper()
	paths, err := filepath.Glob("../../verify/cosign/testdata/vectors/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("vectors: %v, %v", paths, err)
	}
	var all []vector
	for _, path := range paths {
		a, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		v := vector{name: strings.TrimSuffix(filepath.Base(path), ".txtar"), files: a.Files}
		for _, f := range a.Files {
			if f.Name == "public.pem" {
				v.key.public = f.Data
			}
		}
		all = append(all, v)
	}
	return all
}

func vectorPolicies(t testing.TB) map[string]v1alpha1.BytecodePolicySpec {
	all := map[string]v1alpha1.BytecodePolicySpec{}
	for _, v := range readVectors(t) {
		all[v.name] = v1alpha1.BytecodePolicySpec{Authorities: keys(v.key)}
	}
	return all
}

// vectorCases are what cosign v2 and v3 themselves wrote. Their images hold no object, as the text says of those whose
// signature was good.
func vectorCases(t testing.TB) []testCase {
	var cases []testCase
	for _, v := range readVectors(t) {
		good := testCase{name: "Cosign-" + v.name, policy: v.name, push: v.push, code: codes.InvalidArgument,
			says: `image $IMAGE: no BPF object; build the image from the output of clang -target bpf -c`}
		if strings.Contains(v.name, "attestation") {
			good.code = codes.PermissionDenied
			good.says = `image $SIGNED: no signature by policy "` + v.name + `" (found 1: an attestation and not an image signature); sign it with a key of the policy or ask an admin to add yours`
		}
		cases = append(cases, good, testCase{name: "Cosign-" + v.name + "-WrongKey", push: v.push, code: codes.PermissionDenied, says: byAnotherKey})
	}
	return cases
}

// push puts the vector into a repository, its image as v1.
func (v vector) push(t *testing.T, r repository) (image digest.Digest) {
	for _, f := range v.files {
		if ref, ok := strings.CutPrefix(f.Name, "blobs/"); ok {
			r.PutBlob(t, "", exactly(f.Data, ref), nil)
		}
	}
	for _, f := range v.files {
		ref, ok := strings.CutPrefix(f.Name, "manifests/")
		if !ok {
			continue
		}
		raw := []byte(strings.TrimSuffix(string(f.Data), "\n"))
		var m ocispec.Manifest
		if err := json.Unmarshal(raw, &m); err != nil {
			t.Fatal(err)
		}
		d := r.PutRaw(t, ref, m.MediaType, raw)
		if image == "" {
			image = d.Digest
			r.PutRaw(t, "v1", m.MediaType, raw)
		}
		if m.Subject != nil && !r.n.referrers {
			d.ArtifactType = m.ArtifactType
			r.list(t, m.Subject.Digest, d)
		}
	}
	return image
}

// exactly undoes the newline that txtar ends every file with.
func exactly(data []byte, d string) []byte {
	if digest.FromBytes(data) != digest.Digest(d) {
		return data[:len(data)-1]
	}
	return data
}
