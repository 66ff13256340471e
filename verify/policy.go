// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// Policy is one BytecodePolicy, checked and compiled. It is read by many goroutines and changed by none.
type Policy struct {
	Name        string
	Images      []Glob
	Authorities []Authority
	Unsigned    bool // admits images without any signature
	Allow       Allow
	Subjects    []string // "ns/name", "ns/*", "*"; none: nobody
}

// Authority is one acceptable signer. No method asks anyone outside this machine, and each returns on every input.
type Authority interface {
	// Name is the kind of authority as in policy files: "key", "keyless".
	Name() string
	// Verify reports who made sig, if that is this authority and sig approves d. The error wraps one of ErrOtherKey and
	// its neighbours where one of them is true.
	Verify(ctx context.Context, d digest.Digest, sig image.Signature) (Signer, error)
	// Attestations are the statements that must exist beside a signature.
	Attestations() []v1alpha1.Attestation
	// Attests returns nil if sig is the statement about d that want describes, made by this authority.
	Attests(ctx context.Context, d digest.Digest, sig image.Signature, want v1alpha1.Attestation) error
}

// Err says what is wrong with the files that the policy's authorities read; nil when nothing is. It looks at them now.
func (p *Policy) Err() error {
	var errs []error
	for i, a := range p.Authorities {
		if reads, ok := a.(interface{ Err() error }); ok {
			if err := reads.Err(); err != nil {
				errs = append(errs, fmt.Errorf("policy %q: spec.authorities[%d]: %w", p.Name, i, err))
			}
		}
	}
	return errors.Join(errs...)
}

// Compiler makes an Authority of its description. Relative file names are below dir. Package verify/cosign has it.
type Compiler func(spec v1alpha1.Authority, dir string) (Authority, error)

// Allow bounds what a program of an admitted image may do. It is checked against the object itself.
type Allow struct {
	Hooks        []volume.Kind
	Interfaces   []string // globs; hooks without an interface are not concerned
	MinPriority  int
	MaxPriority  int
	WritableMaps []string // globs of map names that a pod may get "rw"
	MaxMapBytes  *uint64  // of all maps together; nil: no limit
	DenyHelpers  []string // helpers and kfuncs by their kernel name

	MaxPrograms     int // that are loaded; 0: no limit
	MaxInstructions int // of each program, functions that it calls included; 0: no limit but the kernel's
}

// defaultMapBytes is the memory of a volume's maps where the policy says nothing: enough for a million small entries, and
// not enough to take a node down.
const defaultMapBytes = 64 << 20

// defaultAllow holds where a policy says nothing.
func defaultAllow() Allow {
	bytes := uint64(defaultMapBytes)
	return Allow{
		Hooks:       []volume.Kind{volume.KindXDP, volume.KindTC, volume.KindTracepoint},
		Interfaces:  []string{"*"},
		MinPriority: 0,
		MaxPriority: maxPriority,
		MaxMapBytes: &bytes,
	}
}

const maxPriority = 1000

// KeyPolicy admits any image signed by the key, whoever asks, to any hook and interface with any map writable.
// It serves `bpfvol run --key`: who passes the flag is root on the machine already, so nothing is held back and no limit
// is set.
func KeyPolicy(name string, keyPEM []byte, compile Compiler) (*Policy, error) {
	a, err := compile(v1alpha1.Authority{Key: &v1alpha1.Key{Data: string(keyPEM)}}, "")
	if err != nil {
		return nil, err
	}
	p := anything(name)
	p.Authorities = []Authority{a}
	return p, nil
}

// UnsignedPolicy admits any image without a signature, for `bpfvol run --allow-unsigned`; else it is as KeyPolicy.
func UnsignedPolicy() *Policy {
	p := anything("--allow-unsigned")
	p.Unsigned = true
	return p
}

func anything(name string) *Policy {
	g, err := ParseGlob("**")
	if err != nil {
		panic(err) // a constant
	}
	return &Policy{
		Name:     name,
		Images:   []Glob{g},
		Subjects: []string{"*"},
		Allow: Allow{
			Hooks:        slices.Clone(volume.Kinds),
			Interfaces:   []string{"*"},
			MaxPriority:  maxPriority,
			WritableMaps: []string{"*"},
		},
	}
}

// covers reports whether one of the policy's globs matches the repository of ref.
func (p *Policy) covers(ref image.Reference) bool {
	return slices.ContainsFunc(p.Images, func(g Glob) bool { return g.Match(ref) })
}
