// SPDX-License-Identifier: Apache-2.0

package image

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
)

// containerd's layout of a directory that says how registries are reached (containerd v2.1, docs/hosts.md):
//
//	<dir>/<host>/hosts.toml    or <host>_<port>_, or <host>:<port>
//	<dir>/<host>/*.crt, *.cert, *.key    where there is no hosts.toml
//	<dir>/_default/hosts.toml            for every other registry
const (
	hostsFile      = "hosts.toml"
	defaultHost    = "_default"
	maxHostsFile   = 1 << 20
	maxDialTimeout = 5 * time.Second // so that a mirror that is away leaves time to ask the registry
)

var (
	portDirectory = regexp.MustCompile(`^(.+)_([0-9]+)_$`)
	headerName    = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]+$") // a token of RFC 9110
)

// AddDir adds a directory of hosts.toml files, as containerd reads them. What containerd would skip is an error: a file
// that cannot be read, a key that is not known. A registry may be described there or in the --registries file, not in both.
func (r *Registries) AddDir(dir string) error {
	if err := r.addDir(dir); err != nil {
		return fmt.Errorf("registries directory %s: %w", dir, err)
	}
	return nil
}

func (r *Registries) addDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if r.hosts == nil {
		r.hosts, r.ways = map[string]hostConfig{}, map[string][]way{}
	}
	for _, e := range entries {
		at := filepath.Join(dir, e.Name())
		// What is hidden belongs to who writes the directory: a ConfigMap's ..data, for example.
		if info, err := os.Stat(at); err != nil || !info.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		if e.Name() == defaultHost {
			if r.others, err = r.addHost("", at); err != nil {
				return err
			}
			continue
		}
		name := e.Name()
		if m := portDirectory.FindStringSubmatch(name); m != nil {
			name = m[1] + ":" + m[2]
		}
		host, err := ParseHost(name)
		if err != nil {
			return fmt.Errorf("%s: %w", e.Name(), err)
		}
		if _, found := r.ways[host]; found {
			return fmt.Errorf("%s: registry %s is described elsewhere, too; describe it in one place", e.Name(), host)
		}
		if r.ways[host], err = r.addHost(host, at); err != nil {
			return err
		}
		// It was named, so it may be contacted, even where others are asked instead.
		if err := r.list(host, hostConfig{}); err != nil {
			return err
		}
	}
	return nil
}

// addHost reads the directory of one registry; the host is empty where that stands for every one.
func (r *Registries) addHost(host, dir string) ([]way, error) {
	file := filepath.Join(dir, hostsFile)
	data, err := readHosts(file)
	if err != nil {
		return nil, err
	}
	if len(data) == 0 {
		return []way{{}}, r.addCertificates(host, dir)
	}
	endpoints, err := parseHosts(dir, data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	var ways []way
	for _, e := range endpoints {
		if e.way.host == "" {
			e.way.host = host
		}
		if e.config.tls, err = e.config.load(); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		e.config.source = file
		// Of every other registry nothing is known, so nothing can be said of how it is reached.
		if e.way.host == "" && (e.config.tls != nil || e.config.dialTimeout > 0 || e.way.header != nil) {
			return nil, fmt.Errorf("%s: ca, client, skip_verify, header and dial_timeout need the host that they are for; write them below a [host.\"https://...\"]", file)
		}
		if e.way.host != "" {
			if err := r.list(e.way.host, e.config); err != nil {
				return nil, err
			}
		}
		if e.pulls {
			ways = append(ways, e.way)
		}
	}
	if len(ways) == 0 {
		return nil, fmt.Errorf("%s: no host has the capability pull; add it to one", file)
	}
	return ways, nil
}

func readHosts(file string) ([]byte, error) {
	info, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if info.Size() > maxHostsFile {
		return nil, fmt.Errorf("%s: larger than %d bytes", file, maxHostsFile)
	}
	return os.ReadFile(file)
}

// addCertificates reads what docker keeps beside each other: *.crt are authorities, *.cert and *.key of one name are a
// client's.
func (r *Registries) addCertificates(host, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	c := hostConfig{source: dir}
	for _, e := range entries {
		file := filepath.Join(dir, e.Name())
		switch filepath.Ext(file) {
		case ".crt":
			c.cas = append(c.cas, file)
		case ".cert":
			key := strings.TrimSuffix(file, ".cert") + ".key"
			if _, err := os.Stat(key); errors.Is(err, fs.ErrNotExist) {
				key = file
			}
			c.clients = append(c.clients, [2]string{file, key})
		}
	}
	if host == "" {
		if len(c.cas)+len(c.clients) > 0 {
			return fmt.Errorf("%s: certificates for every registry; put them into the directory of the one that they are for", dir)
		}
		return nil
	}
	if c.tls, err = c.load(); err != nil {
		return err
	}
	return r.list(host, c)
}

// hostsEntry is one host of a hosts.toml.
type hostsEntry struct {
	way    way
	config hostConfig
	pulls  bool
}

// hostsTable is what can be said of each host, and at the top of the file of the server.
type hostsTable map[string]any

var hostsKeys = []string{"capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout"}

// parseHosts reads a hosts.toml: its hosts in order, then the server. The server's host is empty where the file names
// none. Paths of files are relative to dir.
func parseHosts(dir string, data []byte) ([]hostsEntry, error) {
	var file map[string]any
	meta, err := toml.Decode(string(data), &file)
	var syntax toml.ParseError
	if errors.As(err, &syntax) {
		// Its own words would quote the file, and a header may be a secret.
		return nil, fmt.Errorf("line %d, after key %s: not TOML as it should be", syntax.Position.Line, quote(syntax.LastKey))
	}
	if err != nil {
		return nil, errors.New("not TOML as it should be")
	}
	hosts, err := value[map[string]any]("host", file["host"])
	if err != nil {
		return nil, err
	}
	var out []hostsEntry
	seen := map[string]bool{}
	for _, key := range meta.Keys() { // in the order of the file
		if err := checkKey(key); err != nil {
			return nil, err
		}
		if len(key) < 2 || key[0] != "host" || seen[key[1]] {
			continue
		}
		seen[key[1]] = true
		table, err := value[map[string]any]("host "+quote(key[1]), hosts[key[1]])
		if err != nil {
			return nil, err
		}
		e, err := hostsTable(table).entry(dir, key[1])
		if err != nil {
			return nil, fmt.Errorf("host %s: %w", quote(key[1]), err)
		}
		out = append(out, e)
	}
	at, err := value[string]("server", file["server"])
	if err != nil {
		return nil, err
	}
	server, err := hostsTable(file).entry(dir, at)
	if err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	return append(out, server), nil
}

func checkKey(key toml.Key) error {
	rest := key
	switch {
	case key[0] == "host" && len(key) <= 2, key[0] == "server" && len(key) == 1:
		return nil
	case key[0] == "host":
		rest = key[2:]
	}
	if slices.Contains(hostsKeys, rest[0]) && (len(rest) == 1 || rest[0] == "header") {
		return nil
	}
	return fmt.Errorf("unknown key %s; known are server, host, %s", quote(key.String()), strings.Join(hostsKeys, ", "))
}

func (t hostsTable) entry(dir, at string) (e hostsEntry, err error) {
	override, err := value[bool]("override_path", t["override_path"])
	if err != nil {
		return e, err
	}
	if at != "" {
		if err := e.parseURL(at, override); err != nil {
			return e, err
		}
	}
	e.way.namespace = true
	if e.pulls, e.way.onlyPulls, err = capabilities(t["capabilities"]); err != nil {
		return e, err
	}
	if e.config.cas, err = files(dir, t["ca"]); err != nil {
		return e, fmt.Errorf("ca: %w", err)
	}
	if e.config.clients, err = pairs(dir, t["client"]); err != nil {
		return e, fmt.Errorf("client: %w", err)
	}
	if e.config.plainHTTP && len(e.config.cas)+len(e.config.clients) > 0 {
		return e, errors.New("ca or client, but it is asked by http://; write https://")
	}
	skip, err := value[bool]("skip_verify", t["skip_verify"])
	if err != nil {
		return e, err
	}
	// containerd tries HTTPS first where both are written. Plain HTTP has nothing to verify.
	e.config.skipVerify = skip && !e.config.plainHTTP
	if e.way.header, err = headers(t["header"]); err != nil {
		return e, err
	}
	e.config.dialTimeout, err = dialTimeout(t["dial_timeout"])
	return e, err
}

// value is v where that is a T, and nothing where the file does not say.
func value[T any](key string, v any) (T, error) {
	t, ok := v.(T)
	if !ok && v != nil {
		kind := map[reflect.Kind]string{reflect.Bool: "true or false", reflect.String: "a string"}[reflect.TypeFor[T]().Kind()]
		return t, fmt.Errorf("%s: not %s", key, cmp.Or(kind, "a table"))
	}
	return t, nil
}

func dialTimeout(v any) (time.Duration, error) {
	text, err := value[string]("dial_timeout", v)
	if err != nil || text == "" {
		return 0, err
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("dial_timeout: %s is not a time; write 1s, for example", quote(text))
	}
	return min(d, maxDialTimeout), nil
}

// parseURL reads where a host is: a URL, or a name that is asked by HTTPS.
func (e *hostsEntry) parseURL(at string, override bool) error {
	if !strings.Contains(at, "://") {
		at = "https://" + at
	}
	u, err := url.Parse(at)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Opaque != "" {
		return errors.New("not a URL as it should be; write https://host:port, and http:// where it speaks no TLS")
	}
	if e.way.host, err = ParseHost(u.Host); err != nil {
		return err
	}
	e.config.plainHTTP = u.Scheme == "http"
	api := strings.TrimSuffix(path.Clean("/"+u.Path), "/")
	if !override && !strings.HasSuffix(api, "/v2") {
		api += "/v2"
	}
	// Below /v2 it is the repository that is another one there, and the token has to be for that one.
	if prefix, below := strings.CutPrefix(api, "/v2/"); below {
		if !repositoryPattern.MatchString(prefix) {
			return fmt.Errorf("path %s is not that of a repository", quote(api))
		}
		e.way.prefix, api = prefix+"/", "/v2"
	}
	if api != "/v2" {
		e.way.path = api + "/"
	}
	return nil
}

func capabilities(v any) (pulls, onlyPulls bool, err error) {
	words, ok := texts(v)
	if !ok {
		return false, false, errors.New("capabilities: not a list of strings")
	}
	if len(words) == 0 {
		return true, false, nil
	}
	resolves := false
	for _, w := range words {
		switch strings.ToLower(w) {
		case "pull":
			pulls = true
		case "resolve":
			resolves = true
		case "push":
		default:
			return false, false, fmt.Errorf("unknown capability %s; known are pull, resolve, push", quote(w))
		}
	}
	if resolves && !pulls {
		return false, false, errors.New("capability resolve without pull; write both")
	}
	return pulls, !resolves, nil
}

// texts reads a string or a list of strings.
func texts(v any) ([]string, bool) {
	switch v := v.(type) {
	case nil:
		return nil, true
	case string:
		return []string{v}, true
	case []any:
		var out []string
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, false
			}
			out = append(out, s)
		}
		return out, true
	}
	return nil, false
}

func files(dir string, v any) ([]string, error) {
	names, ok := texts(v)
	if !ok {
		return nil, errors.New("not a file or a list of files")
	}
	for i, name := range names {
		names[i] = beside(dir, name)
	}
	return names, nil
}

// pairs reads a file that has certificate and key, a list of such, or a list of pairs of files.
func pairs(dir string, v any) ([][2]string, error) {
	list, ok := v.([]any)
	if !ok && v != nil {
		list = []any{v}
	}
	var out [][2]string
	for _, e := range list {
		names, ok := texts(e)
		if !ok || len(names) < 1 || len(names) > 2 || names[0] == "" {
			return nil, errors.New("not a file, a list of files, or a list of pairs of files")
		}
		pair := [2]string{beside(dir, names[0]), beside(dir, names[0])}
		if len(names) == 2 && names[1] != "" {
			pair[1] = beside(dir, names[1])
		}
		out = append(out, pair)
	}
	return out, nil
}

func beside(dir, name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(dir, name)
}

// headers reads what is to be sent along. Values may be secrets, so no error has one.
func headers(v any) (http.Header, error) {
	table, err := value[map[string]any]("header", v)
	if err != nil || len(table) == 0 {
		return nil, err
	}
	out := http.Header{}
	for name, v := range table {
		values, ok := texts(v)
		if !ok {
			return nil, fmt.Errorf("header %s: not a string or a list of strings", quote(name))
		}
		if !headerName.MatchString(name) || strings.EqualFold(name, "host") {
			return nil, fmt.Errorf("header %s: not one that can be set", quote(name))
		}
		for _, value := range values {
			if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
				return nil, fmt.Errorf("header %s: its value has control characters", quote(name))
			}
			out.Add(name, value)
		}
	}
	return out, nil
}
