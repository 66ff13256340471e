// SPDX-License-Identifier: Apache-2.0

// Package image turns an image reference into the bytes of one BPF object:
//
//	ParseReference  text -> Reference                                    pure, fuzzed
//	Store.Resolve   Reference -> Root: the document and its own digest    one request, then never by tag again
//	Root.Signatures what may prove who made it                           concurrently, kept in the cache
//	Root.Object     the one BPF object, every byte reached by digest      cache or network
//
// and writes such images: Store.Build, Store.Push, Store.AttachSignature.
//
// A registry, a mirror and the files of the cache are hostile. Invariants, and the test that holds each:
//
//   - A digest is computed from bytes, never taken from a header (TestLyingRegistry).
//   - Bytes of the cache are hashed on every read and replaced when they differ (TestCacheIsRepaired).
//   - What a descriptor claims is checked against a limit before a byte is fetched (TestLimits).
//   - What one repository served is not served as another's (TestCacheKeepsRepositoriesApart).
//   - What was pulled for one is given to nobody who may not pull it (TestPrivateImageIsServedToNobodyElse), and the
//     cache tells no credentials (TestCacheHoldsNoSecret).
//   - A pull runs once for all who wait, on the daemon's context (TestOnePullForAll, TestWaiterGivesUp).
//   - "No signature" is said only where the registry said so (TestSignatureLookupFails).
//   - Whoever is killed in the middle of a write leaves a cache that opens (TestKillDuringPull).
//   - Hosts that could be the node itself are not contacted unless listed (TestHostRules).
//
// This is the only package that imports oras.
package image

import (
	"runtime"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/bpfvol/bpfvol/internal/volume"
)

// Media types of the form that Store.Build writes.
const (
	ArtifactType    = "application/vnd.bpfvol.bytecode.v1"
	ObjectMediaType = "application/vnd.bpfvol.object.v1+elf"
)

// Root is a resolved reference: the digest was computed from Raw, and the tag is never asked again.
type Root struct {
	Reference Reference
	ocispec.Descriptor
	Raw []byte

	store  *Store
	policy volume.PullPolicy
	pull   *pull // how the registry is reached
	local  bool  // built here and not pushed yet: no registry has it
	proof  proof // who may have it, and what of it is its own
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
	ELF      []byte // shared between callers, who must not change it
}

// Limits bound what an image may cost. A zero field has its default.
type Limits struct {
	Manifest   int64         // bytes of a manifest or index
	Config     int64         // bytes of a config
	Layer      int64         // bytes of a layer as stored
	Object     int64         // bytes of an object, and of all layers of an image together
	Entries    int           // entries of an archive
	Referrers  int           // referrers of an image
	Signatures int           // signatures of an image that are looked at, newest of a .sig tag first to count
	Signature  int64         // bytes of a signature
	Timeout    time.Duration // for one stage: resolve, signatures, object
}

func (l Limits) withDefaults() Limits {
	orDefault(&l.Manifest, 4<<20)
	orDefault(&l.Config, 1<<20)
	orDefault(&l.Layer, 16<<20)
	orDefault(&l.Object, 32<<20)
	orDefault(&l.Entries, 1024)
	orDefault(&l.Referrers, 256)
	orDefault(&l.Signatures, 64)
	orDefault(&l.Signature, 1<<20)
	orDefault(&l.Timeout, time.Minute)
	return l
}

func orDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

func hostArch(arch string) string {
	if arch == "" {
		return runtime.GOARCH
	}
	return arch
}
