package verify

import (
	"github.com/opencontainers/go-digest"

	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// Subject is who asks: a pod's service account, or Namespace "local" and the user's name for the CLI.
type Subject struct{ Namespace, ServiceAccount string }

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

// Signed is a root digest together with the policies it satisfies. Only Check makes one.
type Signed struct {
	root   *image.Root
	grants []Grant
}

// Grant is one policy that the image satisfies, and by whose signature.
type Grant struct {
	Policy *Policy
	Signer Signer
}

// Signer says who signed.
type Signer struct {
	Authority string // "key[0]" of policy
	Identity  string // key fingerprint, or certificate subject; "" for an unsigned grant
	Format    image.Format
}

// Facts are what an object would really do, read from its ELF, for a policy's allow rules.
type Facts struct {
	Attach   []volume.Attach // after defaults; interfaces resolved
	Programs []ProgramFacts
	Maps     []MapFacts
}

// ProgramFacts describes one program that would be loaded.
type ProgramFacts struct {
	Name         string
	Instructions int
	Helpers      []string // names as in the kernel's headers: "bpf_probe_write_user"
}

// MapFacts describes one map that would be created.
type MapFacts struct {
	Name   string
	Bytes  uint64 // estimate of the kernel memory: keys and values over all entries and CPUs
	Access volume.Access
}

// Policy is one BytecodePolicy, checked and compiled.
type Policy struct {
	Name string
}

var _ digest.Digest
