// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/bpfvol/bpfvol/internal/image"
)

const hex64 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestParseReferenceNormalises(t *testing.T) {
	for in, want := range map[string]string{
		"x":                                   "docker.io/library/x:latest",
		"acme/x":                              "docker.io/acme/x:latest",
		"docker.io/x":                         "docker.io/library/x:latest",
		"index.docker.io/x:1":                 "docker.io/library/x:1",
		"registry-1.docker.io/acme/x":         "docker.io/acme/x:latest",
		"GHCR.io/acme/x:V1":                   "ghcr.io/acme/x:V1",
		"localhost/x":                         "localhost/x:latest",
		"localhost:5000/a/b/c:v1":             "localhost:5000/a/b/c:v1",
		"127.0.0.1:5000/x":                    "127.0.0.1:5000/x:latest",
		"[::1]:5000/x":                        "[::1]:5000/x:latest",
		"[0:0::1]/x":                          "[::1]/x:latest",
		"ghcr.io/acme/x@sha256:" + hex64:      "ghcr.io/acme/x@sha256:" + hex64,
		"ghcr.io/acme/x:v1@sha256:" + hex64:   "ghcr.io/acme/x:v1@sha256:" + hex64,
		"reg.example:443/a__b/c-d--e.f:_.-0":  "reg.example:443/a__b/c-d--e.f:_.-0",
		"ghcr.io/acme/x:" + "a" + hex64 + "b": "ghcr.io/acme/x:a" + hex64 + "b",
	} {
		ref, err := image.ParseReference(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if got := ref.String(); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
		if again, err := image.ParseReference(ref.String()); err != nil || again != ref {
			t.Errorf("%s: %s reads back as %+v, %v", in, ref, again, err)
		}
	}
}

func TestParseReferenceRefuses(t *testing.T) {
	for _, in := range []string{
		"", " ", "/", ":", "@", "x:", "x@", ":v1", "/x", "x/", "a//b", "../x", "ghcr.io/../x", "ghcr.io/a/./x", "ghcr.io/",
		"https://ghcr.io/x", "oci://x", "ghcr.io/UPPER/x", "Upper", "ghcr.io/a b", "ghcr.io/a\nb", "ghcr.io/a\x00b", "ghcr.io/x:a b", "ghcr.io/x:-a",
		"ghcr.io/x:" + strings.Repeat("a", 129), "ghcr.io/" + strings.Repeat("a", 256), "user@ghcr.io/x", "user:pw@ghcr.io/x",
		"ghcr.io:0/x", "ghcr.io:65536/x", "ghcr.io:x/x", "ghcr.io:+80/x", "ghcr.io:080/x", "ghcr.io:/x", "-a.io/x", "a..io/x", "[::1/x", "::1]/x", "[127.0.0.1]/x",
		"[fe80::1%eth0]/x", "[::1]x/x", "ghcr.io/x@sha256:" + hex64[1:], "ghcr.io/x@md5:d41d8cd98f00b204e9800998ecf8427e", "ghcr.io/x@sha512:" + hex64 + hex64,
		"ghcr.io/x@sha256:" + strings.ToUpper(hex64), "ghcr.io/x@sha256:" + hex64 + "@sha256:" + hex64, "ghcr.io/x?y", "ghcr.io/x#y", "ghcr.io/%2e%2e/x",
		strings.Repeat("a/", 1<<20),
	} {
		ref, err := image.ParseReference(in)
		if !errors.Is(err, image.ErrReference) {
			t.Errorf("%.80q: got %+v, %v", in, ref, err)
			continue
		}
		if len(err.Error()) > 500 || strings.ContainsAny(err.Error(), "\n\x00") {
			t.Errorf("%.80q: text is not fit to show: %.600q", in, err.Error())
		}
	}
}

func FuzzReference(f *testing.F) {
	for _, s := range []string{"x", "ghcr.io/acme/x:v1", "[::1]:5000/x@sha256:" + hex64, "localhost/x", "https://x", "a:b@c", "index.docker.io/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := image.ParseReference(s)
		if err != nil {
			if !errors.Is(err, image.ErrReference) {
				t.Errorf("%q: %v does not wrap ErrReference", s, err)
			}
			return
		}
		if ref.Registry == "" || ref.Repository == "" || ref.Tag == "" && ref.Digest == "" {
			t.Errorf("%q: parts are missing: %+v", s, ref)
		}
		if strings.Contains(ref.Repository, "..") || strings.ContainsAny(ref.Name(), " @\\?#%\"'\n\x00") {
			t.Errorf("%q: unsafe name %q", s, ref.Name())
		}
		again, err := image.ParseReference(ref.String())
		if err != nil || again != ref {
			t.Errorf("%q: %s reads back as %+v, %v", s, ref, again, err)
		}
	})
}
