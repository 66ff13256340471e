package image

import (
	"context"
	"errors"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Errors that callers tell apart. Each is wrapped with the object and the cause.
var (
	ErrReference       = errors.New("bad image reference")
	ErrNotFound        = errors.New("not found")
	ErrNotCached       = errors.New("not in the cache")
	ErrUnauthenticated = errors.New("not authenticated")
	ErrUnavailable     = errors.New("registry unavailable")
	ErrHostNotAllowed  = errors.New("host not allowed")
	ErrTooLarge        = errors.New("over the limit")
	ErrDigestMismatch  = errors.New("bytes differ from their digest")
	ErrUnsupported     = errors.New("unsupported image")
	ErrNoObject        = errors.New("no BPF object")
	ErrAmbiguous       = errors.New("ambiguous image")
	ErrPlatform        = errors.New("wrong architecture")
	ErrPulling         = errors.New("pull still running")
)

// Root is a resolved reference: the digest was computed from Raw, and the tag is never asked again.
type Root struct {
	Reference Reference
	ocispec.Descriptor
	Raw []byte
}

// Signature is one signature found for a root, not yet verified. Everything in it is hostile.
type Signature struct {
	Format      Format
	Payload     []byte            // simple signing payload, or the bundle's JSON
	Annotations map[string]string // of the layer that carried it
}

// Format says how a signature was stored.
type Format string

const (
	FormatTag      Format = "tag"      // cosign's sha256-<hex>.sig tag
	FormatReferrer Format = "referrer" // OCI 1.1 referrer, simple signing payload
	FormatBundle   Format = "bundle"   // sigstore bundle as OCI 1.1 referrer
)

// Object is the one BPF object of an image for one architecture. Every byte was reached by digest from Root.
type Object struct {
	Root     digest.Digest
	Manifest digest.Digest
	Digest   digest.Digest // of ELF
	Name     string        // file name, for display
	Labels   map[string]string
	ELF      []byte
}

// Reference is a normalised image reference.
type Reference struct {
	Registry   string // host[:port], "docker.io" for every Docker Hub form
	Repository string
	Tag        string
	Digest     digest.Digest // wins over Tag
}

var _ = context.Background
