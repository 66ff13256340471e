// SPDX-License-Identifier: Apache-2.0

package image

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Reference is a normalised image reference.
type Reference struct {
	Registry   string // host[:port], "docker.io" for every Docker Hub form
	Repository string
	Tag        string
	Digest     digest.Digest // wins over Tag
}

const (
	dockerHub     = "docker.io"
	maxName       = 255 // host and repository, as everywhere in the container world
	maxTag        = 128
	maxReference  = maxName + 1 + maxTag + 1 + 71
	defaultTag    = "latest"
	digestExample = "sha256:<64 hex digits>"
)

// The grammar is that of github.com/distribution/reference v0.6.0, regexp.go.
var (
	hostPattern       = regexp.MustCompile(`^(?:[a-z0-9]|[a-z0-9][a-z0-9-]*[a-z0-9])(?:\.(?:[a-z0-9]|[a-z0-9][a-z0-9-]*[a-z0-9]))*$`)
	repositoryPattern = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagPattern        = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*$`)
)

// ParseReference reads a reference the way docker does: "acme/x" is docker.io/acme/x:latest, a digest wins over a
// tag. Errors wrap ErrReference.
func ParseReference(s string) (Reference, error) {
	bad := func(format string, args ...any) (Reference, error) {
		return Reference{}, fmt.Errorf("image %s: %w: %s", quote(s), ErrReference, fmt.Sprintf(format, args...))
	}
	if s == "" {
		return bad("empty; write host/repository:tag")
	}
	if len(s) > maxReference {
		return bad("longer than %d bytes", maxReference)
	}
	if scheme, _, found := strings.Cut(s, "://"); found {
		return bad("starts with a scheme; leave %s:// out", scheme)
	}
	var ref Reference
	name, dgst, found := strings.Cut(s, "@")
	if found {
		ref.Digest = digest.Digest(dgst)
		if ref.Digest.Validate() != nil || ref.Digest.Algorithm() != digest.SHA256 {
			return bad("digest is not %s", digestExample)
		}
	}
	if colon := strings.LastIndexByte(name, ':'); colon > strings.LastIndexByte(name, '/') {
		name, ref.Tag = name[:colon], name[colon+1:]
		if len(ref.Tag) > maxTag || !tagPattern.MatchString(ref.Tag) {
			return bad("tag %s is not made of at most 128 letters, digits and _.-", quote(ref.Tag))
		}
	}
	if ref.Tag == "" && ref.Digest == "" {
		ref.Tag = defaultTag
	}
	ref.Registry, ref.Repository = dockerHub, name
	if host, rest, found := strings.Cut(name, "/"); found && isHost(host) {
		var err error
		if ref.Registry, err = ParseHost(host); err != nil {
			return bad("%v", err)
		}
		ref.Repository = rest
	}
	if ref.Registry == dockerHub && !strings.Contains(ref.Repository, "/") {
		ref.Repository = "library/" + ref.Repository
	}
	if !repositoryPattern.MatchString(ref.Repository) {
		return bad("repository %s is not made of lower-case letters, digits and separators", quote(ref.Repository))
	}
	if len(ref.Name()) > maxName {
		return bad("name is longer than %d bytes", maxName)
	}
	return ref, nil
}

// isHost reports whether the first element of a name is a registry rather than a user of Docker Hub. Docker also takes
// one with a capital letter for a host; in lower case it would then name someone else.
func isHost(s string) bool {
	return strings.ContainsAny(s, ".:[") || strings.EqualFold(s, "localhost")
}

// ParseHost normalises host[:port]: lower case, IPv6 in brackets and in short form, docker.io for every name of
// Docker Hub.
func ParseHost(s string) (string, error) {
	host, port := strings.ToLower(s), ""
	if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
		host, port = host[:i], host[i+1:]
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 || port != strconv.FormatUint(n, 10) {
			return "", fmt.Errorf("port of host %s is not a number from 1 to 65535", quote(s))
		}
		port = ":" + port
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		addr, err := netip.ParseAddr(strings.TrimSuffix(inner, "]"))
		if err != nil || !addr.Is6() || addr.Zone() != "" || !strings.HasSuffix(inner, "]") {
			return "", fmt.Errorf("host %s is not an IPv6 address", quote(s))
		}
		return "[" + addr.String() + "]" + port, nil
	}
	if !hostPattern.MatchString(host) || len(host) > 253 {
		return "", fmt.Errorf("host %s is not a host name", quote(s))
	}
	switch host + port {
	case "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		return dockerHub, nil
	}
	return host + port, nil
}

// Name returns the repository with its host, which is what policies match: "ghcr.io/acme/x", "docker.io/library/x".
func (r Reference) Name() string { return r.Registry + "/" + r.Repository }

// String returns the reference in full. ParseReference reads it back.
func (r Reference) String() string {
	s := r.Name()
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest.String()
	}
	return s
}

// target returns what the registry is asked for: the digest where there is one.
func (r Reference) target() string {
	if r.Digest != "" {
		return r.Digest.String()
	}
	return r.Tag
}
