// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"net/http"
	"path/filepath"
	"testing"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
)

// A mirror that copied the image without what refers to it knows of no signature; the registry itself has the last word.
func TestMirrorWithoutSignaturesHidesNone(t *testing.T) {
	for name, hook := range map[string]imagetest.Hook{"API": nil, "TagSchema": imagetest.NoReferrers()} {
		t.Run(name, func(t *testing.T) {
			mirror, origin, store := mirrored(t)
			mirror.Intercept(hook)
			ref := signed(t, origin)
			imagetest.PushImage(t, mirror.Host, "acme/count", "v1", bpf.Count())
			root, err := resolve(t, store, ref, image.PullOptions{})
			if err != nil {
				t.Fatal(err)
			}
			wantSignatures(t, root, false, three())

			// Nobody said that there is none.
			origin.Intercept(imagetest.Status("", http.StatusInternalServerError))
			_, err = root.Signatures(t.Context(), true)
			wantError(t, err, image.ErrUnavailable, "")
		})
	}
}

// Where only the mirror can be reached, a signature in one of the two places is enough.
func TestMirrorAloneIsEnough(t *testing.T) {
	for _, sig := range three() {
		t.Run(string(sig.Format), func(t *testing.T) {
			mirror, origin, store := mirrored(t)
			origin.Intercept(imagetest.Status("", http.StatusInternalServerError))
			at := imagetest.Reference(t, mirror.Host+"/acme/count:v1")
			at.Digest = imagetest.PushImage(t, mirror.Host, "acme/count", "v1", bpf.Count())
			if err := imagetest.Store(t, mirror.Host).AttachSignature(t.Context(), at, sig); err != nil {
				t.Fatal(err)
			}
			root, err := resolve(t, store, imagetest.Reference(t, origin.Host+"/acme/count:v1"), image.PullOptions{})
			if err != nil {
				t.Fatal(err)
			}
			wantSignatures(t, root, false, []image.Signature{sig})
		})
	}
}

// mirrored starts a registry with a mirror, and opens a store that knows both.
func mirrored(t *testing.T) (mirror, origin *imagetest.Server, store *image.Store) {
	t.Helper()
	mirror, origin = imagetest.Start(t), imagetest.Start(t)
	path := filepath.Join(t.TempDir(), "registries.yaml")
	write(t, path, "registries:\n- {host: \""+mirror.Host+"\", plainHTTP: true}\n"+
		"- {host: \""+origin.Host+"\", plainHTTP: true, mirrors: [\""+mirror.Host+"\"]}\n")
	hosts, err := image.LoadRegistries(path)
	if err != nil {
		t.Fatal(err)
	}
	return mirror, origin, imagetest.OpenStore(t, image.Options{Registries: hosts})
}
