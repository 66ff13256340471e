// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"context"
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/bpfvol/bpfvol/internal/image"
)

// Bytecode is an object whose image passed a policy. Only Open makes one, so bytes that were not verified cannot
// reach package loader.
type Bytecode struct {
	object image.Object
	signed Signed
}

// ELF returns the object's bytes. The caller must not change them.
func (b Bytecode) ELF() []byte { return b.object.ELF }

// Object returns what the image says of the object.
func (b Bytecode) Object() image.Object { return b.object }

// Signed says by which policies and by whom.
func (b Bytecode) Signed() Signed { return b.signed }

// Open reads the object of an image that passed Check. The bytes are hashed again here, whatever the cache says.
func Open(ctx context.Context, s Signed) (Bytecode, error) {
	if s.root == nil || len(s.grants) == 0 {
		return Bytecode{}, &DeniedError{Image: display(s.ref, s.digest), Cause: "it was not checked against a policy"}
	}
	o, err := s.root.Object(ctx)
	if err != nil {
		return Bytecode{}, err
	}
	if o.Root != s.digest {
		return Bytecode{}, fmt.Errorf("image %s: object of %s: %w", display(s.ref, s.digest), o.Root, image.ErrDigestMismatch)
	}
	if got := digest.FromBytes(o.ELF); got != o.Digest {
		return Bytecode{}, fmt.Errorf("image %s: object %s has %s: %w", display(s.ref, s.digest), o.Digest, got, image.ErrDigestMismatch)
	}
	return Bytecode{object: o, signed: s}, nil
}
