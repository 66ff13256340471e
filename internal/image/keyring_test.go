// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
)

// config is a docker config whose entries have their key's place in keys as user: "u0", "u1" and so on.
func config(t testing.TB, keys ...string) *image.DockerConfig {
	t.Helper()
	var entries []string
	for i, key := range keys {
		entries = append(entries, fmt.Sprintf("%q: {%q: %q}", key, "auth", base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "u%d:secret", i))))
	}
	c, err := image.ParseDockerConfig([]byte(`{"auths": {` + strings.Join(entries, ",") + `}}`))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func users(k image.Keyring, ref image.Reference) string {
	var names []string
	for _, c := range k.Credentials(ref) {
		names = append(names, c.Username)
	}
	return strings.Join(names, " ")
}

// What kubelet would try for a pod's image, in which order.
func TestKeyringFollowsKubelet(t *testing.T) {
	for _, tt := range []struct {
		name string
		keys []string
		want map[string]string // users by image
	}{
		{"Host", []string{"ghcr.io"}, map[string]string{
			"ghcr.io/acme/x": "u0", "ghcr.io:443/acme/x": "", "evil-ghcr.io/acme/x": "", "ghcr.io.evil.example/x": "", "x.ghcr.io/y": "", "acme/x": "",
		}},
		{"Case", []string{"GHCR.io"}, map[string]string{"ghcr.io/acme/x": "u0"}},
		{"Scheme", []string{"https://ghcr.io", "http://quay.io/"}, map[string]string{"ghcr.io/acme/x": "u0", "quay.io/acme/x": "u1"}},
		{"Version", []string{"https://ghcr.io/v2/", "https://quay.io/v1", "r.example/v2/acme"}, map[string]string{
			"ghcr.io/acme/x": "u0", "quay.io/acme/x": "u1", "r.example/acme/x": "u2", "r.example/other/x": "",
		}},
		{"Port", []string{"r.example:5000", "r.example"}, map[string]string{"r.example:5000/x": "u0", "r.example/x": "u1", "r.example:5001/x": ""}},
		{"IPv6", []string{"[::1]:5000", "[::1]"}, map[string]string{"[::1]:5000/x": "u0", "[::1]/x": "u1"}},

		{"Hub", []string{"https://index.docker.io/v1/"}, map[string]string{
			"x": "u0", "acme/x": "u0", "docker.io/acme/x": "u0", "index.docker.io/acme/x": "u0", "registry-1.docker.io/acme/x": "u0", "ghcr.io/acme/x": "",
		}},
		{"HubShort", []string{"docker.io"}, map[string]string{"x": "u0", "index.docker.io/acme/x": "u0"}},
		{"HubIndex", []string{"index.docker.io"}, map[string]string{"acme/x": "u0"}},
		{"HubRegistry", []string{"registry-1.docker.io"}, map[string]string{"acme/x": "u0"}},
		{"HubPath", []string{"docker.io/acme", "https://index.docker.io/v1/"}, map[string]string{"acme/x": "u0 u1", "library/x": "u1"}},

		{"Glob", []string{"*.example"}, map[string]string{"r.example/x": "u0", "a.r.example/x": "", "example/x": "", "r.example:5000/x": ""}},
		{"GlobInside", []string{"app*.r.example"}, map[string]string{"app1.r.example/x": "u0", "app.r.example/x": "u0", "xapp.r.example/y": ""}},
		{"GlobsEverywhere", []string{"*.*.example:5000"}, map[string]string{"a.b.example:5000/x": "u0", "b.example:5000/x": ""}},
		{"GlobTop", []string{"r.*"}, map[string]string{"r.example/x": "u0", "s.example/x": ""}},
		{"NoGlobInPath", []string{"r.example/*"}, map[string]string{"r.example/acme/x": ""}},
		{"NoGlobInPort", []string{"r.example:*"}, map[string]string{"r.example:5000/x": ""}},

		{"LongestPathFirst", []string{"r.example", "r.example/acme", "r.example/acme/team", "r.example/acme/team/x/y"}, map[string]string{
			"r.example/acme/team/x": "u2 u1 u0", "r.example/acme/x": "u1 u0", "r.example/x": "u0",
		}},
		{"PathIsAPrefixOfTheText", []string{"r.example/acme"}, map[string]string{"r.example/acme-other/x": "u0"}},
		{"PathBeforeHost", []string{"*.example/acme", "r.example"}, map[string]string{"r.example/acme/x": "u0 u1"}},
		{"GlobsLast", []string{"*.*", "*.example", "r.example"}, map[string]string{"r.example/x": "u2 u1 u0"}},
		{"BadKeys", []string{"", "/", "https://", "a b", "u:p@r.example", "r.example:x", "[", "a[.example", "r..example"}, map[string]string{"r.example/x": "", "x": ""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for ref, want := range tt.want {
				for range 8 { // maps have no order
					if got := users(config(t, tt.keys...), imagetest.Reference(t, ref)); got != want {
						t.Fatalf("for %s it tries %q, want %q", ref, got, want)
					}
				}
			}
		})
	}
}

func TestKeyringReadsEveryFormOfLogin(t *testing.T) {
	auth := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	for entry, want := range map[string][]image.Credential{
		`{"auth":"` + auth("me:secret") + `"}`:                                                       {{Username: "me", Password: "secret"}},
		`{"auth":"` + strings.TrimRight(auth("me:secret"), "=") + `"}`:                               {{Username: "me", Password: "secret"}},
		`{"auth":"` + auth("me:a:b") + `\n"}`:                                                        {{Username: "me", Password: "a:b"}},
		`{"auth":"` + auth("me:secret\x00\x00") + `"}`:                                               {{Username: "me", Password: "secret"}},
		`{"username":"me","password":"secret","email":"me@acme.example"}`:                            {{Username: "me", Password: "secret"}},
		`{"username":"other","password":"other","auth":"` + auth("me:secret") + `"}`:                 {{Username: "me", Password: "secret"}},
		`{"auth":"` + auth("00000000-0000-0000-0000-000000000000:") + `","identitytoken":"refresh"}`: {{Username: "00000000-0000-0000-0000-000000000000", IdentityToken: "refresh"}},
		`{"registrytoken":"bearer"}`:                                                                 nil,
		`{"username":"me"}`:                                                                          nil,
		`{}`:                                                                                         nil,
		`null`:                                                                                       nil,
	} {
		for name, parse := range map[string]func() (*image.DockerConfig, error){
			".dockerconfigjson": func() (*image.DockerConfig, error) {
				return image.ParseDockerConfig([]byte(`{"auths":{"r.example":` + entry + `},"HttpHeaders":{"X":"y"}}`))
			},
			".dockercfg": func() (*image.DockerConfig, error) {
				return image.ParseDockercfg([]byte(`{"r.example":` + entry + `}`))
			},
		} {
			c, err := parse()
			if err != nil {
				t.Errorf("%s of %s: %v", name, entry, err)
				continue
			}
			if diff := cmp.Diff(want, c.Credentials(imagetest.Reference(t, "r.example/x"))); diff != "" {
				t.Errorf("%s of %s: %s", name, entry, diff)
			}
			if c.Empty() != (want == nil) {
				t.Errorf("%s of %s: Empty is %t", name, entry, c.Empty())
			}
		}
	}
}

// Whatever is wrong, the error says so and not what was written.
func TestKeyringErrorsTellNoSecret(t *testing.T) {
	many := strings.Repeat(`"r%d.example":{"auth":"aHVudGVyMjpodW50ZXIy"},`, 1025)
	for text, says := range map[string]string{
		``:                    "is not the JSON of a docker config",
		`hunter2`:             "is not the JSON of a docker config",
		`{"auths":"hunter2"}`: "is not the JSON of a docker config",
		`{"auths":{"r.example":{"auth":{"hunter2":1}}}}`:                  "is not the JSON of a docker config",
		`{"auths":{"r.example":{"auth":"hunter2!"}}}`:                     `auths: "r.example": auth is not base64 of user:password`,
		`{"auths":{"https://R.example/v2/acme":{"auth":"aHVudGVyMg=="}}}`: `auths: "r.example/acme": auth is not base64 of user:password`,
		`{"auths":{` + numbered(many) + `"x":{}}}`:                        "entries; at most 1024",
		`{"auths":{},"x":"` + strings.Repeat("hunter2", 1<<18) + `"}`:     "bytes; at most 1048576",
	} {
		_, err := image.ParseDockerConfig([]byte(text))
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%.80s: got %v, want an error with %q", text, err, says)
			continue
		}
		if strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "aHVudGVy") || len(err.Error()) > 300 {
			t.Errorf("%.80s: the error tells too much: %v", text, err)
		}
	}
	if _, err := image.ParseDockercfg([]byte(`[]`)); err == nil || !strings.Contains(err.Error(), "old docker config") {
		t.Errorf("got %v", err)
	}
	c, err := image.ParseDockerConfig([]byte(`{"credsStore":"hunter2","credHelpers":{"r.example":"hunter2"},"auths":{"hunter2@":{},"r.example":{"registrytoken":"hunter2"},"s.example":{}}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := `"r.example" has only a registrytoken, which would expire; a key is no host[:port][/path]; credsStore names a program, and none is run; credHelpers names programs, and none is run`
	if got := c.Ignored(); got != want {
		t.Errorf("it ignores\n%s\nwant\n%s", got, want)
	}
}

// numbered replaces each %d by its place.
func numbered(s string) string {
	var b strings.Builder
	for i, part := range strings.Split(s, "%d") {
		if i > 0 {
			fmt.Fprint(&b, i)
		}
		b.WriteString(part)
	}
	return b.String()
}

// A config can make the node ask a registry only so many times.
func TestKeyringTriesSoMany(t *testing.T) {
	var keys []string
	for i := range 60 {
		keys = append(keys, "*"+strings.Repeat("*", i)+".example")
	}
	c := config(t, keys...)
	ref := imagetest.Reference(t, "r.example/x")
	if got := len(c.Credentials(ref)); got != 16 {
		t.Errorf("it has %d credentials to try, want 16", got)
	}
	if got := len((image.Keyrings{c, nil, config(t, "r.example"), c}).Credentials(ref)); got != 16 {
		t.Errorf("together they have %d, want 16", got)
	}
}

func TestKeyringsInOrder(t *testing.T) {
	pod, node := keyring{"r.example": {{Username: "pod"}, {Username: "both"}}}, keyring{"r.example": {{Username: "both"}, {Username: "node"}}}
	if got := users(image.Keyrings{pod, node}, imagetest.Reference(t, "r.example/x")); got != "pod both node" {
		t.Errorf("they try %q", got)
	}
}

// A docker config on disk counts as it is now, and what is wrong with it is told once.
func TestDockerConfigFileIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.json")
	ref := imagetest.Reference(t, "r.example/x")
	var told []string
	if _, err := image.OpenDockerConfigFile(path, nil); err == nil {
		t.Error("a file that is not there was opened")
	}
	write(t, path, `{"auths":{"r.example":{"username":"first","password":"hunter2"}}}`)
	f, err := image.OpenDockerConfigFile(path, func(err error) { told = append(told, err.Error()) })
	if err != nil {
		t.Fatal(err)
	}
	want := func(user string, problems ...string) {
		t.Helper()
		told = nil
		for range 2 {
			if got := users(f, ref); got != user {
				t.Errorf("it tries %q, want %q", got, user)
			}
		}
		for i, err := range told {
			told[i] = strings.TrimPrefix(err, "docker config "+path+": ")
		}
		if diff := cmp.Diff(problems, told); diff != "" {
			t.Error(diff)
		}
	}
	replace := func(text string) {
		t.Helper()
		write(t, path+".new", text)
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	want("first")
	replace(`{"auths":{"r.example":{"username":"again","password":"hunter2"}}}`)
	want("again")
	replace(`{"auths":{"r.example":{"auth":"hunter2"}}}`)
	want("again", `auths: "r.example": auth is not base64 of user:password; log in again, or create the Secret again; the version before it stays in force`)
	replace(`{"credsStore":"desktop"}`)
	want("", "credsStore names a program, and none is run")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	want("", "is gone; pulling without it")
	replace(`{"auths":{"r.example":{"username":"back","password":"hunter2"}}}`)
	want("back")
}
