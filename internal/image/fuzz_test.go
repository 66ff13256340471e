// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/bpfvol/bpfvol/bpf"
)

// Whatever a layer is made of, little is kept of it and names are fit to show.
func FuzzLayer(f *testing.F) {
	limits := Limits{Object: 1 << 14, Entries: 8}.withDefaults()
	var archive, packed bytes.Buffer
	tw := tar.NewWriter(&archive)
	for _, name := range []string{"x.o", "../y.o"} {
		if err := tw.WriteHeader(&tar.Header{Name: name, Size: int64(len(bpf.Pass()))}); err != nil {
			f.Fatal(err)
		}
		if _, err := tw.Write(bpf.Pass()); err != nil {
			f.Fatal(err)
		}
	}
	zw := gzip.NewWriter(&packed)
	if _, err := zw.Write(archive.Bytes()); err != nil {
		f.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		f.Fatal(err)
	}
	zstdWriter, err := zstd.NewWriter(nil)
	if err != nil {
		f.Fatal(err)
	}
	defer zstdWriter.Close()
	for _, seed := range [][]byte{zstdWriter.EncodeAll(archive.Bytes(), nil), nil, bpf.Pass(), bpf.PassBigEndian(), archive.Bytes(), packed.Bytes(), []byte("\x28\xb5\x2f\xfd")} {
		f.Add(seed, "title")
	}
	f.Fuzz(func(t *testing.T, b []byte, title string) {
		x := newExtractor(limits)
		if err := x.layer(b, title); err != nil && !typed(err) {
			t.Errorf("error of no kind: %v", err)
		}
		total := 0
		for _, file := range x.files {
			total += len(file.data)
			if len(file.name) > 255 || strings.ContainsAny(file.name, "\n\x00\x1b") || strings.HasPrefix(file.name, "..") {
				t.Errorf("name %q", file.name)
			}
		}
		if int64(total) > limits.Object || len(x.files) > limits.Entries+1 {
			t.Errorf("kept %d files of %d bytes", len(x.files), total)
		}
		if o, err := pick(x.files, title); err != nil && !typed(err) {
			t.Errorf("error of no kind: %v", err)
		} else if err == nil && !bytes.HasPrefix(o.data, []byte("\x7fELF")) {
			t.Error("picked something else")
		}
	})
}

// A document is an index or a manifest, never both.
func FuzzManifest(f *testing.F) {
	for _, seed := range []string{`{"manifests":[{"platform":{"os":"linux","architecture":"amd64"}}]}`, `{"layers":[],"config":{}}`, `{"manifests":[],"layers":[]}`, `null`, `{`} {
		f.Add("application/vnd.oci.image.index.v1+json", []byte(seed))
		f.Add("application/vnd.oci.image.manifest.v1+json", []byte(seed))
	}
	f.Fuzz(func(t *testing.T, mediaType string, raw []byte) {
		d, err := parseDocument(mediaType, raw)
		if err != nil {
			if !typed(err) {
				t.Errorf("error of no kind: %v", err)
			}
			return
		}
		if d.Manifests != nil && (d.Layers != nil || d.Config != nil) || isIndex(mediaType) == isManifest(mediaType) {
			t.Errorf("%s: %s", mediaType, raw)
		}
		if _, err := d.choose("amd64"); err != nil && (!typed(err) || len(err.Error()) > 500) {
			t.Errorf("error of no kind: %.600q", err.Error())
		}
		d.platforms()
	})
}

// Whatever a docker config says, an error tells nothing of it, and few credentials come out of it, each for this host.
func FuzzDockerConfig(f *testing.F) {
	for _, seed := range []string{
		`{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"},"*.example:5000/acme":{"username":"u","password":"p"}}}`,
		`{"auths":{"[::1]:5000":{"identitytoken":"t"},"a[b-.example":{"auth":"dTpw"}},"credsStore":"x"}`, `{"auths":{"a":{"auth":"!"}}}`, `null`, `{`,
	} {
		f.Add([]byte(seed), "r.example:5000/acme/x")
	}
	f.Fuzz(func(t *testing.T, data []byte, image string) {
		ref, err := ParseReference(image)
		if err != nil {
			return // FuzzReference is about those
		}
		for _, parse := range []func([]byte) (*DockerConfig, error){ParseDockerConfig, ParseDockercfg} {
			c, err := parse(data)
			if err != nil {
				if len(err.Error()) > 300 {
					t.Errorf("error is long: %.600q", err.Error())
				}
				continue
			}
			found := c.Credentials(ref)
			if len(found) > maxTried || len(found) > 0 && c.Empty() {
				t.Errorf("%d credentials", len(found))
			}
			if again := c.Credentials(ref); !slices.Equal(found, again) {
				t.Error("the order changes")
			}
			for _, l := range c.logins {
				if l.globs == 0 && l.port == "" && l.key != l.path && !strings.HasPrefix(ref.Name(), l.key) && slices.Contains(found, l.credential) &&
					!slices.ContainsFunc(c.logins, func(o login) bool { return o.key != l.key && o.credential == l.credential }) {
					t.Errorf("the login of %q is for %s", l.key, ref)
				}
			}
		}
	})
}

// Whatever stands in a hosts.toml, each way leads to a host, by a path, with headers that can be sent.
func FuzzHosts(f *testing.F) {
	for _, seed := range []string{
		"server = \"https://registry-1.docker.io\"\n[host.\"http://m.example:5000/v2/hub\"]\ncapabilities = [\"pull\"]\noverride_path = true\n",
		"ca = [\"a\", \"b\"]\nclient = [[\"a\", \"\"]]\ndial_timeout = \"1s\"\n[header]\nx = [\"y\"]\n", "host = 1", "[[host]]", "host.a.b.c = 1",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := parseHosts("/dir", data)
		if err != nil {
			if len(err.Error()) > 600 || strings.ContainsAny(err.Error(), "\n\x00\x1b") {
				t.Errorf("text is not fit to show: %q", err.Error())
			}
			return
		}
		if len(entries) == 0 {
			t.Fatal("not even the server")
		}
		for _, e := range entries {
			if e.way.host != "" {
				if host, err := ParseHost(e.way.host); err != nil || host != e.way.host {
					t.Errorf("host %q: %v", e.way.host, err)
				}
			}
			if e.way.path != "" && (!strings.HasPrefix(e.way.path, "/") || !strings.HasSuffix(e.way.path, "/")) {
				t.Errorf("path %q", e.way.path)
			}
			for name := range e.way.header {
				if strings.ContainsAny(name, " :\r\n") {
					t.Errorf("header %q", name)
				}
			}
		}
	})
}
