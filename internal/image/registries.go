// SPDX-License-Identifier: Apache-2.0

package image

import (
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// Registries says which hosts may be contacted and how: the --registries file. The zero value lists none.
type Registries struct {
	hosts        map[string]hostConfig
	denyUnlisted bool
}

type hostConfig struct {
	plainHTTP bool
	roots     *x509.CertPool // nil: the system's
	mirrors   []string
}

// LoadRegistries reads a --registries file.
func LoadRegistries(path string) (Registries, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Registries{}, err
	}
	r, err := parseRegistries(data)
	if err != nil {
		return Registries{}, fmt.Errorf("registries %s: %w", path, err)
	}
	return r, nil
}

func parseRegistries(data []byte) (Registries, error) {
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
	r := Registries{hosts: map[string]hostConfig{}, denyUnlisted: file.DenyUnlisted}
	for i, e := range file.Registries {
		host, err := ParseHost(e.Host)
		if err != nil {
			return Registries{}, fmt.Errorf("registries[%d]: %w", i, err)
		}
		if _, found := r.hosts[host]; found {
			return Registries{}, fmt.Errorf("registries[%d]: host %q is listed twice", i, host)
		}
		c := hostConfig{plainHTTP: e.PlainHTTP}
		for _, m := range e.Mirrors {
			mirror, err := ParseHost(m)
			if err != nil {
				return Registries{}, fmt.Errorf("registries[%d]: mirror: %w", i, err)
			}
			c.mirrors = append(c.mirrors, mirror)
		}
		if e.CAFile != "" {
			pem, err := os.ReadFile(e.CAFile)
			if err != nil {
				return Registries{}, fmt.Errorf("registries[%d]: caFile: %w", i, err)
			}
			c.roots = x509.NewCertPool()
			if !c.roots.AppendCertsFromPEM(pem) {
				return Registries{}, fmt.Errorf("registries[%d]: caFile %s: no certificate in it", i, e.CAFile)
			}
		}
		r.hosts[host] = c
	}
	// A mirror is contacted because an admin wrote it down, so it counts as listed.
	for _, e := range r.hosts {
		for _, m := range e.mirrors {
			if _, found := r.hosts[m]; !found {
				r.hosts[m] = hostConfig{}
			}
		}
	}
	return r, nil
}

// order returns the hosts to ask for images of host: its mirrors, then host itself.
func (r Registries) order(host string) []string {
	return append(slices.Clone(r.hosts[host].mirrors), host)
}

// allow decides by name whether host may be contacted. What a name resolves to is checked when dialling.
func (r Registries) allow(host string) error {
	if _, listed := r.hosts[host]; listed {
		return nil
	}
	if r.denyUnlisted {
		return fmt.Errorf("%w: registry %s is not listed, and only listed ones may be contacted; ask an admin to list it in --registries", ErrHostNotAllowed, host)
	}
	name := hostname(host)
	if _, err := netip.ParseAddr(name); err == nil {
		return fmt.Errorf("%w: registry %s is an IP address; use a name, or ask an admin to list it in --registries", ErrHostNotAllowed, host)
	}
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return fmt.Errorf("%w: registry %s is this node itself; ask an admin to list it in --registries", ErrHostNotAllowed, host)
	}
	return nil
}

// forbidden reports whether an unlisted host name may not lead to addr: the node itself, or link-local, where cloud
// metadata services are.
func forbidden(addr netip.Addr) bool {
	addr = addr.Unmap()
	return addr.IsLoopback() || addr.IsLinkLocalUnicast() || addr.IsLinkLocalMulticast() || addr.IsUnspecified() ||
		addr.IsMulticast() || addr.IsInterfaceLocalMulticast()
}

func hostname(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return strings.Trim(host, "[]")
}
