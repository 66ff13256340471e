// SPDX-License-Identifier: Apache-2.0

package hostile

import (
	"bytes"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/bpfvol/bpfvol/bpf"
)

// Media types that signatures come in.
const (
	simpleSigning = "application/vnd.dev.cosign.simplesigning.v1+json"
	bundle        = "application/vnd.dev.sigstore.bundle.v0.3+json"
)

// Volumes is the corpus: what pods would name, each as the attributes of a volume but for the image's host. Policies
// admit images below open without a signature, and want one of those below signed.
func Volumes() (*Registry, map[string]map[string]string) {
	r := &Registry{documents: map[string]document{}}
	all := map[string]map[string]string{}
	for name, push := range images {
		push(repository{r, name})
		all[name] = map[string]string{"image": name + ":v1", "attach": onGetpgid}
	}
	repository{r, "open/good"}.layers(ocispec.MediaTypeImageLayer, bpf.Hooks())
	for name, attributes := range attributes() {
		attributes["image"] = "open/good:v1"
		all[name] = attributes
	}
	return r, all
}

const onGetpgid = "{program: on_tracepoint, tracepoint: syscalls/sys_enter_getpgid}"

// Limits of a node, which the corpus comes near to: see package image.
const (
	largestObject    = 32<<20 - 1
	largestManifest  = 4 << 20
	largestSignature = 1 << 20
)

// images are repositories, by name.
var images = map[string]func(repository){
	"open/gzip-bomb":               func(r repository) { r.layers(ocispec.MediaTypeImageLayerGzip, GzipBomb(bpf.Hooks())) },
	"open/gzip-bomb-beside-object": func(r repository) { r.layers(ocispec.MediaTypeImageLayerGzip, GzipBomb(TarHeader("zeros", 1<<30))) },
	"open/many-gzip-bombs": func(r repository) {
		bombs := make([][]byte, 8)
		for i := range bombs {
			bombs[i] = GzipBomb(append(bpf.Hooks(), byte(i)))
		}
		r.layers(ocispec.MediaTypeImageLayerGzip, bombs...)
	},
	"open/million-entries": func(r repository) { r.layers(ocispec.MediaTypeImageLayerGzip, MillionEntries()) },
	"open/largest-object": func(r repository) {
		r.layers("application/vnd.bpfvol.object.v1+elf", append(bpf.Hooks(), make([]byte, largestObject-len(bpf.Hooks()))...))
	},
	"open/largest-object-gzip": func(r repository) {
		r.layers(ocispec.MediaTypeImageLayerGzip, member(append(bpf.Hooks(), make([]byte, largestObject-len(bpf.Hooks()))...)))
	},
	"open/largest-layers": func(r repository) {
		r.layers(ocispec.MediaTypeImageLayer, noise(16<<20-1), noise(16<<20-2))
	},
	"open/deep-manifest": func(r repository) {
		r.raw("v1", ocispec.MediaTypeImageManifest, append([]byte(`{"config":`), Deep("[", largestManifest-100)...))
	},
	"open/wide-manifest": func(r repository) {
		r.raw("v1", ocispec.MediaTypeImageManifest, filled(`{"layers":[`, `{"size":1},`, `{}]}`))
	},
	"open/wide-index": func(r repository) {
		r.raw("v1", ocispec.MediaTypeImageIndex, filled(`{"manifests":[`, `{"platform":{"os":"linux"}},`, `{}]}`))
	},
	"open/annotations": func(r repository) {
		r.raw("v1", ocispec.MediaTypeImageManifest, filled(`{"layers":[],"config":{},"annotations":{"":""`, `,"`+strings.Repeat("x", 20)+`":""`, `}}`))
	},
	"open/large-config": func(r repository) {
		config := append([]byte(`{"architecture":"`+runtime.GOARCH+`","config":{"Labels":{"x":"`), noise(1<<20-200)...)
		r.manifest("v1", ocispec.Manifest{
			Config: r.blob(ocispec.MediaTypeImageConfig, append(config, `"}}}`...)),
			Layers: []ocispec.Descriptor{r.blob(ocispec.MediaTypeImageLayer, []byte("nothing"))},
		})
	},
	"signed/tag": func(r repository) {
		d := r.unsigned()
		r.manifest(strings.Replace(d.Digest.String(), ":", "-", 1)+".sig", ocispec.Manifest{Layers: r.payloads(simpleSigning, 64, true)})
	},
	"signed/long-tag": func(r repository) {
		d := r.unsigned()
		r.raw(strings.Replace(d.Digest.String(), ":", "-", 1)+".sig", ocispec.MediaTypeImageManifest,
			filled(`{"config":{},"layers":[`, `{"mediaType":"`+simpleSigning+`"},`, `{}]}`))
	},
	"signed/bundles": func(r repository) {
		d := r.unsigned()
		var list []ocispec.Descriptor
		for _, l := range r.payloads(bundle, 64, true) {
			list = append(list, r.referrer(d, l))
		}
		r.refer(d.Digest, list...)
	},
	// Each of the many has many: the same ones, so this is cheap for who sends it.
	"signed/bundles-of-bundles": func(r repository) {
		d := r.unsigned()
		layers := r.payloads(bundle, 64, false)
		var list []ocispec.Descriptor
		for i := range 64 {
			list = append(list, r.referrer(d, append(layers, r.blob(bundle, fmt.Append(nil, i)))...))
		}
		r.refer(d.Digest, list...)
	},
	"signed/deep-bundles": func(r repository) {
		d := r.unsigned()
		var list []ocispec.Descriptor
		for i := range 8 {
			open := `{"mediaType":"` + bundle + `","verificationMaterial":`
			list = append(list, r.referrer(d, r.blob(bundle, append([]byte(open), Deep(`{"certificate":`, (largestSignature-1000)/15-i)...))))
		}
		r.refer(d.Digest, list...)
	},
	"signed/many-certificates": func(r repository) {
		d := r.unsigned()
		var list []ocispec.Descriptor
		for i := range 8 {
			raw := []byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.1+json","verificationMaterial":{"x509CertificateChain":{"certificates":[{}`)
			raw = append(raw, bytes.Repeat([]byte(`,{"rawBytes":"AAAA"}`), 50_000-i)...)
			list = append(list, r.referrer(d, r.blob(bundle, append(raw, `]}},"dsseEnvelope":{}}`...))))
		}
		r.refer(d.Digest, list...)
	},
	"signed/thousand-referrers": func(r repository) {
		d := r.unsigned()
		one := r.referrer(d, r.blob(bundle, []byte("{}")))
		one.ArtifactType = bundle
		r.refer(d.Digest, slices.Repeat([]ocispec.Descriptor{one}, 1000)...)
	},
}

// attributes are volumes whose own words are what is hostile; their image is good.
func attributes() map[string]map[string]string {
	laugh := "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
	for i := range 20 {
		laugh += fmt.Sprintf("a%d: &a%d [%s]\n", i+1, i+1, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i), 9), ", "))
	}
	wide := "[" + strings.Repeat(onGetpgid+", ", 20_000) + onGetpgid + "]"
	all := map[string]map[string]string{}
	for name, value := range map[string]string{
		"laugh": laugh, "wide": wide, "deep-list": strings.Repeat("[", 1<<20), "deep-map": strings.Repeat("{a: ", 1<<18),
		"deep-block": strings.Repeat("- ", 1<<19), "long": strings.Repeat("x", 3<<20),
	} {
		for _, key := range []string{"attach", "variables", "mapEntries", "maps"} {
			all["attributes/"+name+"-"+key] = map[string]string{"attach": onGetpgid}
			maps.Copy(all["attributes/"+name+"-"+key], map[string]string{key: value})
		}
	}
	return all
}

func (r repository) layers(mediaType string, blobs ...[]byte) {
	var m ocispec.Manifest
	for _, b := range blobs {
		m.Layers = append(m.Layers, r.blob(mediaType, b))
	}
	r.manifest("v1", m)
}

// unsigned is an image of its own.
func (r repository) unsigned() ocispec.Descriptor {
	return r.manifest("v1", ocispec.Manifest{Layers: []ocispec.Descriptor{r.blob("application/vnd.bpfvol.object.v1+elf", append(bpf.Hooks(), r.name...))}})
}

// payloads are signatures as large as may be, each another or all the same.
func (r repository) payloads(mediaType string, n int, different bool) []ocispec.Descriptor {
	var out []ocispec.Descriptor
	var d ocispec.Descriptor
	for i := range n {
		if i == 0 || different {
			body := noise(largestSignature - i)
			d = r.blob(mediaType, append([]byte(`{"x":"`), body[8:]...))
			d.Annotations = map[string]string{"dev.cosignproject.cosign/signature": "AAAA"}
		}
		out = append(out, d)
	}
	return out
}

func (r repository) referrer(of ocispec.Descriptor, layers ...ocispec.Descriptor) ocispec.Descriptor {
	d := r.manifest("", ocispec.Manifest{ArtifactType: bundle, Subject: &of, Layers: layers})
	d.ArtifactType = bundle
	return d
}

// filled is head, as many parts as a manifest has room for, and tail.
func filled(head, part, tail string) []byte {
	n := (largestManifest - len(head) - len(tail)) / len(part)
	return []byte(head + strings.Repeat(part, n) + tail)
}

// noise is text that does not compress to nothing, the same each time.
func noise(n int) []byte {
	var b bytes.Buffer
	for i := 0; b.Len() < n; i++ {
		b.WriteString(digest.FromString(fmt.Sprint(n, i)).Encoded())
	}
	return b.Bytes()[:n]
}
