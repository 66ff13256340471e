// SPDX-License-Identifier: Apache-2.0

// Command gen asks real cosign binaries for the signatures that this package's tests verify, and lets them verify
// what this package signs. See ../README.md.
package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"flag"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/txtar"
)

const host = "127.0.0.1:5000"

// vectors are the signatures to make: which cosign, with which key, by which command.
var vectors = []struct{ name, cosign, key, args string }{
	{"v2-tag", "v2", "p256", "sign --tlog-upload=false"},
	{"v2-tag-annotated", "v2", "p256", "sign --tlog-upload=false -a team=net"},
	{"v2-tag-rsa", "v2", "rsa", "sign --tlog-upload=false"},
	{"v2-tag-p384", "v2", "p384", "sign --tlog-upload=false"},
	{"v2-tag-ed25519", "v2", "ed25519", "sign --tlog-upload=false"},
	{"v2-referrer", "v2", "p256", "sign --tlog-upload=false --registry-referrers-mode=oci-1-1"},
	{"v2-bundle", "v2", "p256", "sign --tlog-upload=false --new-bundle-format"},
	{"v2-bundle-rsa", "v2", "rsa", "sign --tlog-upload=false --new-bundle-format"},
	{"v2-bundle-p384", "v2", "p384", "sign --tlog-upload=false --new-bundle-format"},
	{"v2-bundle-ed25519", "v2", "ed25519", "sign --tlog-upload=false --new-bundle-format"},
	{"v3-bundle", "v3", "p256", "sign --signing-config=signing-config.json"},
	{"v3-bundle-annotated", "v3", "p256", "sign --signing-config=signing-config.json -a team=net"},
	{"v3-bundle-rsa", "v3", "rsa", "sign --signing-config=signing-config.json"},
	{"v3-bundle-p384", "v3", "p384", "sign --signing-config=signing-config.json"},
	{"v3-bundle-ed25519", "v3", "ed25519", "sign --signing-config=signing-config.json"},
	{"v3-tag", "v3", "p256", "sign --new-bundle-format=false --use-signing-config=false --tlog-upload=false"},
	{"v2-attestation-bundle", "v2", "p256", "attest --tlog-upload=false --new-bundle-format --type=custom --predicate=predicate.json"},
	{"v3-attestation-bundle", "v3", "p256", "attest --signing-config=signing-config.json --type=custom --predicate=predicate.json"},
}

// inputs are the files that the commands name: a signing configuration and a trusted root without any service.
var inputs = map[string]string{
	"signing-config.json": `{"mediaType":"application/vnd.dev.sigstore.signingconfig.v0.2+json"}`,
	"trusted-root.json":   `{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}`,
	"predicate.json":      `{"finding":"none"}`,
}

func main() {
	log.SetFlags(0)
	v2 := flag.String("v2", "", "cosign v2 binary")
	v3 := flag.String("v3", "", "cosign v3 binary")
	out := flag.String("out", "", "write vectors to this directory")
	check := flag.Bool("check", false, "let cosign verify what this package signs")
	flag.Parse()
	dir, err := os.MkdirTemp("", "cosign-vectors-")
	must(err)
	defer os.RemoveAll(dir)
	l, err := net.Listen("tcp", host)
	must(err)
	go http.Serve(l, registry.New(registry.WithReferrersSupport(true), registry.Logger(log.New(io.Discard, "", 0))))
	for name, text := range inputs {
		must(os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	c := cosigns{dir: dir, bin: map[string]string{"v2": *v2, "v3": *v3}}
	c.makeKeys()
	if *out != "" {
		for _, v := range vectors {
			ref := pushImage(v.name)
			args := append(strings.Fields(v.args), "--key="+v.key+".key", "--allow-http-registry", "--allow-insecure-registry", ref)
			if text, err := c.run(v.cosign, args...); err != nil {
				log.Fatalf("%s: %v\n%s", v.name, err, text)
			}
			a := collect(v.name, strings.Split(ref, "@")[1])
			a.Comment = []byte("cosign " + v.cosign + ": cosign " + strings.Join(args, " ") + "\n")
			pub, err := os.ReadFile(filepath.Join(dir, v.key+".pub"))
			must(err)
			a.Files = append([]txtar.File{{Name: "public.pem", Data: pub}}, a.Files...)
			must(os.WriteFile(filepath.Join(*out, v.name+".txtar"), txtar.Format(a), 0o644))
		}
	}
	if *check {
		checkOurs(context.Background(), c)
	}
}

// cosigns runs the binaries in a directory with keys.
type cosigns struct {
	dir string
	bin map[string]string
}

func (c cosigns) run(which string, args ...string) (string, error) {
	cmd := exec.Command(c.bin[which], args...)
	cmd.Dir = c.dir
	cmd.Env = append(os.Environ(), "COSIGN_PASSWORD=", "COSIGN_YES=true", "COSIGN_EXPERIMENTAL=1")
	text, err := cmd.CombinedOutput()
	return string(text), err
}

// makeKeys writes <kind>.pem (PKCS #8), <kind>.key (as cosign keeps it) and <kind>.pub.
func (c cosigns) makeKeys() {
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	must(err)
	rsa2048, err := rsa.GenerateKey(rand.Reader, 2048)
	must(err)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	must(err)
	for name, key := range map[string]any{"p256": p256, "p384": p384, "rsa": rsa2048, "ed25519": ed} {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		must(err)
		raw := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
		must(os.WriteFile(filepath.Join(c.dir, name+".pem"), raw, 0o600))
		if text, err := c.run("v2", "import-key-pair", "--key="+name+".pem", "--output-key-prefix="+name); err != nil {
			log.Fatalf("import %s: %v\n%s", name, err, text)
		}
	}
}

// pushImage puts an image nobody can run into the registry and returns its reference by digest.
func pushImage(name string) string {
	layer := []byte("object of " + name + "\n")
	put("blobs", name, ocispec.DescriptorEmptyJSON.Digest.String(), "", ocispec.DescriptorEmptyJSON.Data)
	put("blobs", name, digest.FromBytes(layer).String(), "", layer)
	m, err := json.Marshal(ocispec.Manifest{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    ocispec.MediaTypeImageManifest,
		ArtifactType: "application/vnd.bpfvol.bytecode.v1",
		Config:       ocispec.DescriptorEmptyJSON,
		Layers: []ocispec.Descriptor{{
			MediaType: "application/vnd.bpfvol.object.v1+elf", Digest: digest.FromBytes(layer), Size: int64(len(layer)),
		}},
	})
	must(err)
	d := digest.FromBytes(m).String()
	put("manifests", name, d, ocispec.MediaTypeImageManifest, m)
	return host + "/vectors/" + name + "@" + d
}

func put(what, name, ref, mediaType string, body []byte) {
	path := "http://" + host + "/v2/vectors/" + name + "/"
	url := path + "manifests/" + ref
	method := http.MethodPut
	if what == "blobs" {
		url, method, mediaType = path+"blobs/uploads/?digest="+ref, http.MethodPost, "application/octet-stream"
	}
	req, err := http.NewRequest(method, url, bytes.NewReader(body))
	must(err)
	req.Header.Set("Content-Type", mediaType)
	res, err := http.DefaultClient.Do(req)
	must(err)
	defer res.Body.Close()
	if res.StatusCode != http.StatusCreated {
		log.Fatalf("%s %s: %s", method, url, res.Status)
	}
}

func get(path string) []byte {
	res, err := http.Get("http://" + host + path)
	must(err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	must(err)
	if res.StatusCode != http.StatusOK {
		log.Fatalf("GET %s: %s", path, res.Status)
	}
	return body
}

// collect reads back everything that a repository holds: the image, what refers to it, and what is tagged.
func collect(name, image string) *txtar.Archive {
	base := "/v2/vectors/" + name + "/"
	a := &txtar.Archive{}
	seen := map[string]bool{}
	var tags struct{ Tags []string }
	must(json.Unmarshal(get(base+"tags/list"), &tags))
	var referrers ocispec.Index
	must(json.Unmarshal(get(base+"referrers/"+image), &referrers))
	refs := []string{image}
	for _, t := range tags.Tags {
		if strings.HasPrefix(t, "sha256-") {
			refs = append(refs, t)
		}
	}
	for _, m := range referrers.Manifests {
		refs = append(refs, m.Digest.String())
	}
	slices.Sort(refs[1:])
	for _, ref := range refs {
		raw := get(base + "manifests/" + ref)
		a.Files = append(a.Files, txtar.File{Name: "manifests/" + ref, Data: raw})
		var m ocispec.Manifest
		must(json.Unmarshal(raw, &m))
		for _, d := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
			if seen[d.Digest.String()] {
				continue
			}
			seen[d.Digest.String()] = true
			a.Files = append(a.Files, txtar.File{Name: "blobs/" + d.Digest.String(), Data: get(base + "blobs/" + d.Digest.String())})
		}
	}
	return a
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
