// SPDX-License-Identifier: Apache-2.0

package image

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// Registries says which hosts may be contacted and how: the --registries file, and the directory of --registries-dir
// (see AddDir). The zero value lists none.
type Registries struct {
	hosts        map[string]hostConfig // that are listed
	ways         map[string][]way      // whom to ask for the images of a registry that an admin described
	others       []way                 // the same for all other registries; nil: the registry itself
	denyUnlisted bool
}

// hostConfig is how one host is reached, whoever's images it is asked for.
type hostConfig struct {
	settings
	tls    *tls.Config // nil: the default
	source string      // the file that says so; empty where a host is only named
}

// settings are what a file can say of a host. Two files that name one host must say the same.
type settings struct {
	plainHTTP   bool
	skipVerify  bool
	onlyCAs     bool        // without the system's
	cas         []string    // files
	clients     [][2]string // files of certificate and key
	dialTimeout time.Duration
}

// way is one host that may have the images of a registry, and how it is asked for them.
type way struct {
	host      string      // empty: the registry itself
	prefix    string      // of repositories there
	path      string      // of the API, where that is not /v2
	onlyPulls bool        // what a tag stands for is not asked there
	namespace bool        // it is told whose images are wanted, as ?ns=
	header    http.Header // may hold secrets
}

// LoadRegistries reads a --registries file.
func LoadRegistries(path string) (Registries, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Registries{}, err
	}
	r, err := parseRegistries(path, data)
	if err != nil {
		return Registries{}, fmt.Errorf("registries %s: %w", path, err)
	}
	return r, nil
}

func parseRegistries(path string, data []byte) (Registries, error) {
	var file struct {
		Registries []struct {
			Host      string   `json:"host"`
			PlainHTTP bool     `json:"plainHTTP"`
			CAFile    string   `json:"caFile"`
			Mirrors   []string `json:"mirrors"`
		} `json:"registries"`
		DenyUnlisted bool `json:"denyUnlisted"`
	}
	if err := yaml.UnmarshalStrict(data, &file); err != nil {
		return Registries{}, err
	}
	r := Registries{hosts: map[string]hostConfig{}, ways: map[string][]way{}, denyUnlisted: file.DenyUnlisted}
	for i, e := range file.Registries {
		host, err := ParseHost(e.Host)
		if err != nil {
			return Registries{}, fmt.Errorf("registries[%d]: %w", i, err)
		}
		if _, found := r.ways[host]; found {
			return Registries{}, fmt.Errorf("registries[%d]: host %q is listed twice", i, host)
		}
		var ways []way
		for _, m := range e.Mirrors {
			mirror, err := ParseHost(m)
			if err != nil {
				return Registries{}, fmt.Errorf("registries[%d]: mirror: %w", i, err)
			}
			ways = append(ways, way{host: mirror})
			// A mirror is contacted because an admin wrote it down, so it counts as listed.
			if err := r.list(mirror, hostConfig{}); err != nil {
				return Registries{}, err
			}
		}
		c := hostConfig{settings: settings{plainHTTP: e.PlainHTTP}, source: path}
		if e.CAFile != "" {
			c.onlyCAs, c.cas = true, []string{e.CAFile}
		}
		if c.tls, err = c.load(); err != nil {
			return Registries{}, fmt.Errorf("registries[%d]: caFile: %w", i, err)
		}
		if err := r.list(host, c); err != nil {
			return Registries{}, err
		}
		r.ways[host] = append(ways, way{})
	}
	return r, nil
}

// list adds a host. Who describes it a second time must say the same.
func (r *Registries) list(host string, c hostConfig) error {
	old, found := r.hosts[host]
	switch {
	case found && c.source == "":
		return nil
	case found && old.source != "" && !reflect.DeepEqual(old.settings, c.settings):
		return fmt.Errorf("host %s: %s and %s differ in how it is reached; write the same in both", host, old.source, c.source)
	}
	r.hosts[host] = c
	return nil
}

// load reads the files that s names. It returns nil where s says nothing of TLS.
func (s settings) load() (*tls.Config, error) {
	if len(s.cas) == 0 && len(s.clients) == 0 && !s.skipVerify {
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: s.skipVerify}
	if len(s.cas) > 0 {
		config.RootCAs = x509.NewCertPool()
		if !s.onlyCAs {
			system, err := x509.SystemCertPool()
			if err != nil {
				return nil, err
			}
			config.RootCAs = system
		}
	}
	for _, file := range s.cas {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s: no certificate in it", file)
		}
	}
	for _, pair := range s.clients {
		client, err := tls.LoadX509KeyPair(pair[0], pair[1])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", pair[0], err)
		}
		config.Certificates = append(config.Certificates, client)
	}
	return config, nil
}

// order returns the hosts to ask for images of a registry, in order. The last one has the last word.
func (r Registries) order(registry string) []way {
	ways, described := r.ways[registry]
	switch {
	case described:
	case r.others != nil && r.allowName(registry) == nil:
		ways = r.others // never for an address: it would be the mirror that is sent there
	default:
		ways = []way{{}}
	}
	ways = slices.Clone(ways)
	for i, w := range ways {
		if w.host == "" {
			ways[i].host = registry
		}
		ways[i].namespace = w.namespace && ways[i].host != registry
	}
	// Docker Hub has several names, so a file may name one host twice: as a mirror and as the registry.
	last := ways[len(ways)-1]
	earlier := slices.DeleteFunc(ways[:len(ways)-1], func(w way) bool {
		same := w.host == last.host && w.prefix == last.prefix && w.path == last.path
		if same {
			last.onlyPulls = last.onlyPulls && w.onlyPulls
			if last.header == nil {
				last.header = w.header
			}
		}
		return same
	})
	return append(earlier, last)
}

// allow decides by name whether host may be contacted. What a name resolves to is checked when dialling.
func (r Registries) allow(host string) error {
	if _, listed := r.hosts[host]; listed {
		return nil
	}
	if r.denyUnlisted {
		return fmt.Errorf("%w: registry %s is not listed, and only listed ones may be contacted; ask an admin to list it in --registries", ErrHostNotAllowed, host)
	}
	return r.allowName(host)
}

// allowName refuses names that are this node, or no names.
func (r Registries) allowName(host string) error {
	name := hostname(host)
	if _, listed := r.hosts[host]; listed {
		return nil
	}
	if isAddress(name) {
		return fmt.Errorf("%w: registry %s is an IP address; use a name, or ask an admin to list it in --registries", ErrHostNotAllowed, host)
	}
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return fmt.Errorf("%w: registry %s is this node itself; ask an admin to list it in --registries", ErrHostNotAllowed, host)
	}
	return nil
}

// isAddress reports whether a host name is an IP address in one of its many forms. What ends in a number is one, as
// browsers and the C library see it: 127.1, 0x7f000001, 017700000001 (URL Standard, "ends in a number").
func isAddress(name string) bool {
	if _, err := netip.ParseAddr(name); err == nil {
		return true
	}
	last := name[strings.LastIndexByte(name, '.')+1:]
	if hex, found := strings.CutPrefix(last, "0x"); found {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(last, "0123456789") == ""
}

var (
	// metadata are addresses of cloud metadata services that are not link-local: Alibaba's, AWS's and GCP's by IPv6,
	// Azure's wire server (oras-go v2.7.0, registry/remote/auth/client.go).
	metadata = []netip.Prefix{
		netip.MustParsePrefix("100.100.100.200/32"),
		netip.MustParsePrefix("fd00:ec2::254/128"),
		netip.MustParsePrefix("fd00:ec2::23/128"),
		netip.MustParsePrefix("fd20:ce::254/128"),
		netip.MustParsePrefix("168.63.129.16/32"),
	}
	thisNetwork = netip.MustParsePrefix("0.0.0.0/8")
	nat64       = netip.MustParsePrefix("64:ff9b::/96") // IPv4 in the last four bytes
	sixToFour   = netip.MustParsePrefix("2002::/16")    // IPv4 in the four bytes that follow
)

// forbidden reports whether an unlisted host name may not lead to addr: the node itself, or link-local, where cloud
// metadata services are, and such as stand elsewhere.
func forbidden(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	b := addr.As16()
	switch {
	case nat64.Contains(addr):
		return forbidden(netip.AddrFrom4([4]byte(b[12:])))
	case sixToFour.Contains(addr):
		return forbidden(netip.AddrFrom4([4]byte(b[2:])))
	}
	return addr.IsLoopback() || addr.IsLinkLocalUnicast() || addr.IsLinkLocalMulticast() || addr.IsUnspecified() ||
		addr.IsMulticast() || addr.IsInterfaceLocalMulticast() || thisNetwork.Contains(addr) ||
		slices.ContainsFunc(metadata, func(p netip.Prefix) bool { return p.Contains(addr) })
}

func hostname(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return strings.Trim(host, "[]")
}
