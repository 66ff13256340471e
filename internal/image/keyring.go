// SPDX-License-Identifier: Apache-2.0

package image

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"path"
	"slices"
	"strings"
)

// Credential is one login for a registry.
type Credential struct {
	Username, Password string
	IdentityToken      string // an OAuth2 refresh token, instead of a password
}

// repeatedBy reports whether an error tells the credential, in one of the forms in which requests carry it.
func (c Credential) repeatedBy(err error) bool {
	if err == nil {
		return false
	}
	for _, secret := range []string{c.Password, c.IdentityToken, base64.StdEncoding.EncodeToString([]byte(c.Username + ":" + c.Password))} {
		if len(secret) >= shortSecret && strings.Contains(err.Error(), secret) {
			return true
		}
	}
	return false
}

// shortSecret is the length from which on a secret is not taken for a word of ours.
const shortSecret = 4

// Keyring knows the credentials that may fit a reference, best first. They are tried in order, then none.
type Keyring interface {
	Credentials(Reference) []Credential
}

// Keyrings are asked in order.
type Keyrings []Keyring

// Credentials returns those of each keyring, each once.
func (ks Keyrings) Credentials(ref Reference) []Credential {
	var all []Credential
	for _, k := range ks {
		if k == nil {
			continue
		}
		for _, c := range k.Credentials(ref) {
			if !slices.Contains(all, c) {
				all = append(all, c)
			}
		}
	}
	return all[:min(len(all), maxTried)]
}

// Bounds of a docker config, which may be any pod author's.
const (
	maxDockerConfig = 1 << 20 // bytes, which is also the largest Secret
	maxLogins       = 1024    // entries
	maxTried        = 16      // credentials for one image, each of which costs the registry a request or two
)

// DockerConfig is what `docker login` writes and a Secret of type kubernetes.io/dockerconfigjson holds: logins by
// registry. It fits them to images as kubelet does (Kubernetes 1.37, pkg/credentialprovider/keyring.go): a key is
// host[:port][/path], with or without a scheme; globs stand for one label of the host each, or a part of it; the port
// must be the same, the path a prefix of the repository. All that match are tried, the longest path first, then hosts
// without globs.
type DockerConfig struct {
	logins  []login
	ignored []string
}

// login is one entry of a docker config.
type login struct {
	key        string // normalised
	labels     []string
	globs      int // among labels
	port       string
	path       string // "" or "/acme"
	credential Credential
}

// dockerAuth is an entry as it is written.
type dockerAuth struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"` // base64 of user:password, which wins over the two
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

var (
	errConfigJSON = errors.New(`is not the JSON of a docker config; it should look like {"auths": {"ghcr.io": {"auth": "..."}}}`)
	errLegacyJSON = errors.New(`is not the JSON of an old docker config; it should look like {"ghcr.io": {"auth": "..."}}`)
)

// ParseDockerConfig reads a ~/.docker/config.json. What it says about credentials is in no error.
func ParseDockerConfig(data []byte) (*DockerConfig, error) {
	var file struct {
		Auths       map[string]dockerAuth `json:"auths"`
		CredsStore  string                `json:"credsStore"`
		CredHelpers map[string]string     `json:"credHelpers"`
	}
	if err := unmarshalConfig(data, &file, errConfigJSON); err != nil {
		return nil, err
	}
	c, err := newDockerConfig(file.Auths)
	if err != nil {
		return nil, fmt.Errorf("auths: %w", err)
	}
	if file.CredsStore != "" {
		c.ignored = append(c.ignored, "credsStore names a program, and none is run")
	}
	if len(file.CredHelpers) > 0 {
		c.ignored = append(c.ignored, "credHelpers names programs, and none is run")
	}
	return c, nil
}

// ParseDockercfg reads the older ~/.dockercfg, which has the entries alone.
func ParseDockercfg(data []byte) (*DockerConfig, error) {
	var auths map[string]dockerAuth
	if err := unmarshalConfig(data, &auths, errLegacyJSON); err != nil {
		return nil, err
	}
	return newDockerConfig(auths)
}

// unmarshalConfig says nothing of what package json says: it would be a piece of the text.
func unmarshalConfig(data []byte, v any, notJSON error) error {
	if len(data) > maxDockerConfig {
		return fmt.Errorf("has %d bytes; at most %d are possible", len(data), maxDockerConfig)
	}
	if json.Unmarshal(data, v) != nil {
		return notJSON
	}
	return nil
}

func newDockerConfig(auths map[string]dockerAuth) (*DockerConfig, error) {
	if len(auths) > maxLogins {
		return nil, fmt.Errorf("%d entries; at most %d are possible", len(auths), maxLogins)
	}
	c := &DockerConfig{}
	for _, key := range slices.Sorted(maps.Keys(auths)) {
		l, ok := parseLoginKey(key)
		if !ok {
			c.ignored = append(c.ignored, "a key is no host[:port][/path]")
			continue
		}
		entry := auths[key]
		var err error
		if l.credential, err = entry.credential(); err != nil {
			return nil, fmt.Errorf("%s: %w", quote(l.key), err)
		}
		switch {
		case l.credential != (Credential{}):
			c.logins = append(c.logins, l)
		case entry.RegistryToken != "":
			c.ignored = append(c.ignored, fmt.Sprintf("%s has only a registrytoken, which would expire", quote(l.key)))
		}
	}
	slices.Sort(c.ignored)
	c.ignored = slices.Compact(c.ignored)
	slices.SortStableFunc(c.logins, func(a, b login) int {
		return cmp.Or(cmp.Compare(len(b.path), len(a.path)), cmp.Compare(a.globs, b.globs), cmp.Compare(a.key, b.key))
	})
	return c, nil
}

// Empty reports that there is no login in it.
func (c *DockerConfig) Empty() bool { return len(c.logins) == 0 }

// Ignored says what of the config is not used, and why; it is short and holds no secret.
func (c *DockerConfig) Ignored() string {
	const shown = 4
	if n := len(c.ignored); n > shown {
		return strings.Join(c.ignored[:shown], "; ") + fmt.Sprintf("; and %d more", n-shown)
	}
	return strings.Join(c.ignored, "; ")
}

// Credentials returns what fits ref, most specific first.
func (c *DockerConfig) Credentials(ref Reference) []Credential {
	labels, port := splitLabels(ref.Registry)
	var out []Credential
	for _, l := range c.logins {
		if l.matches(labels, port, "/"+ref.Repository) && !slices.Contains(out, l.credential) {
			out = append(out, l.credential)
		}
	}
	return out[:min(len(out), maxTried)]
}

func (l *login) matches(labels []string, port, repository string) bool {
	if l.port != port || len(l.labels) != len(labels) || !strings.HasPrefix(repository, l.path) {
		return false
	}
	if l.globs == 0 {
		return slices.Equal(l.labels, labels)
	}
	for i, pattern := range l.labels {
		if ok, err := path.Match(pattern, labels[i]); !ok || err != nil {
			return false
		}
	}
	return true
}

// globChars are what path.Match gives a meaning.
const globChars = `*?[\`

// parseLoginKey normalises a key of a docker config: https://index.docker.io/v1/, as docker writes for Docker Hub, is
// docker.io.
func parseLoginKey(key string) (login, bool) {
	for _, scheme := range []string{"https://", "http://"} {
		key = strings.TrimPrefix(key, scheme)
	}
	host, rest, found := strings.Cut(key, "/")
	l := login{}
	if found {
		l.path = "/" + rest
	}
	// The API's versions are no part of a repository.
	for _, version := range []string{"/v1", "/v2"} {
		if l.path == version || strings.HasPrefix(l.path, version+"/") {
			l.path = l.path[len(version):]
			break
		}
	}
	if l.path == "/" {
		l.path = ""
	}
	host = strings.ToLower(host)
	if glob := strings.ContainsAny(host, globChars) && !strings.HasPrefix(host, "["); !glob {
		var err error
		if host, err = ParseHost(host); err != nil {
			return login{}, false
		}
	}
	if len(host)+len(l.path) > 2*maxName {
		return login{}, false
	}
	l.key = host + l.path
	l.labels, l.port = splitLabels(host)
	for _, label := range l.labels {
		if _, err := path.Match(label, ""); err != nil || strings.ContainsAny(label, "/@:") && !strings.HasPrefix(host, "[") {
			return login{}, false
		}
		if strings.ContainsAny(label, globChars) && !strings.HasPrefix(host, "[") {
			l.globs++
		}
	}
	return l, true
}

// splitLabels splits host[:port]. An IPv6 address is one label.
func splitLabels(host string) (labels []string, port string) {
	name, port, err := net.SplitHostPort(host)
	if err != nil {
		name, port = strings.Trim(host, "[]"), ""
	}
	if strings.Contains(name, ":") {
		return []string{name}, port
	}
	return strings.Split(name, "."), port
}

var errAuth = errors.New("auth is not base64 of user:password; log in again, or create the Secret again")

// credential is the login of an entry, or none where it has none.
func (a dockerAuth) credential() (Credential, error) {
	c := Credential{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken}
	if auth := strings.TrimSpace(a.Auth); auth != "" {
		raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(auth, "="))
		if err != nil {
			return Credential{}, errAuth
		}
		user, password, found := strings.Cut(string(raw), ":")
		if !found {
			return Credential{}, errAuth
		}
		c.Username, c.Password = user, strings.TrimRight(password, "\x00")
	}
	if c.Password == "" && c.IdentityToken == "" {
		return Credential{}, nil
	}
	return c, nil
}
