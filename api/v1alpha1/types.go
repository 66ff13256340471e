// SPDX-License-Identifier: Apache-2.0

// Package v1alpha1 is the schema of bpfvol.io/v1alpha1: what a policy file and a cluster's BytecodePolicy object say, in
// the same words. Package verify gives it a meaning. The CustomResourceDefinition is generated from here.
package v1alpha1

const (
	// Group is the API group.
	Group = "bpfvol.io"
	// APIVersion is what objects and files say of themselves.
	APIVersion = Group + "/v1alpha1"
	// Kind is the one kind of the group.
	Kind = "BytecodePolicy"
	// Resource is what the API server and RBAC rules call it.
	Resource = "bytecodepolicies"
	// VerbUse is the RBAC verb that lets a service account's pods run what a policy admits.
	VerbUse = "use"
)

// BytecodePolicy says which bytecode images may run, signed by whom, and what their programs may do. Who may use it is
// decided by RBAC in a cluster, and by spec.subjects in a file.
type BytecodePolicy struct {
	APIVersion string             `json:"apiVersion"`
	Kind       string             `json:"kind"`
	Metadata   Metadata           `json:"metadata"`
	Spec       BytecodePolicySpec `json:"spec"`
}

// Metadata is what a policy uses of a Kubernetes object's metadata.
type Metadata struct {
	Name        string            `json:"name"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// BytecodePolicySpec is the policy itself.
type BytecodePolicySpec struct {
	// Images are globs of repositories, without tag or digest: "ghcr.io/acme/**". "*" is any characters inside one path
	// element, "**" any elements.
	Images []string `json:"images"`
	// Authorities are the acceptable signers; any one suffices.
	Authorities []Authority `json:"authorities,omitempty"`
	// Unsigned admits images without any signature.
	Unsigned bool `json:"unsigned,omitempty"`
	// Allow bounds what the programs may do. It is checked against the object, not its labels.
	Allow *Allow `json:"allow,omitempty"`
	// Subjects are the service accounts that may use the policy: "namespace/name", "namespace/*", "*". Files only: in a
	// cluster the RBAC verb "use" decides.
	Subjects []string `json:"subjects,omitempty"`
}

// Authority is one acceptable signer: exactly one of Key and Keyless.
type Authority struct {
	// Key is a public key.
	Key *Key `json:"key,omitempty"`
	// Keyless is an identity in a certificate of Fulcio's kind.
	Keyless *Keyless `json:"keyless,omitempty"`
	// TrustedRoot says whose certificates, logs and timestamps count for Keyless.
	TrustedRoot *TrustedRoot `json:"trustedRoot,omitempty"`
	// Attestations must exist beside the signature, each by the same signer.
	Attestations []Attestation `json:"attestations,omitempty"`
}

// Key is a public key.
type Key struct {
	// Data is the key in PEM.
	Data string `json:"data"`
}

// Keyless is an identity: issuer and subject, each exactly or as a regular expression, which is anchored.
type Keyless struct {
	// Issuer is the OIDC issuer that vouched for the signer: "https://token.actions.githubusercontent.com".
	Issuer string `json:"issuer,omitempty"`
	// IssuerRegexp matches the whole issuer.
	IssuerRegexp string `json:"issuerRegexp,omitempty"`
	// Subject is the signer: an e-mail address, or the URI of a workflow.
	Subject string `json:"subject,omitempty"`
	// SubjectRegexp matches the whole subject: "https://github\\.com/acme/.*".
	SubjectRegexp string `json:"subjectRegexp,omitempty"`
}

// TrustedRoot is sigstore's trusted_root.json: exactly one of File and Data.
type TrustedRoot struct {
	// File is a path on the node. It is read again when it changes.
	File string `json:"file,omitempty"`
	// Data is the document itself.
	Data string `json:"data,omitempty"`
}

// Attestation is a statement about the image, in a sigstore bundle.
type Attestation struct {
	// PredicateType is the kind of statement: "https://slsa.dev/provenance/v1".
	PredicateType string `json:"predicateType"`
	// BuilderID is what a SLSA provenance names as its builder (runDetails.builder.id).
	BuilderID string `json:"builderID,omitempty"`
}

// Allow bounds what programs may do. Each field that is given replaces its default alone.
type Allow struct {
	// Hooks that programs may attach to; default xdp, tc, tracepoint.
	Hooks []string `json:"hooks,omitempty"`
	// Interfaces are globs of interface names, for hooks that have one; default every interface.
	Interfaces []string `json:"interfaces,omitempty"`
	// Priority bounds the place among the programs of a point; default 0 to 1000.
	Priority *Priority `json:"priority,omitempty"`
	// WritableMaps are globs of map names that pods may write; default none.
	WritableMaps []string `json:"writableMaps,omitempty"`
	// MaxMapBytes bounds the kernel memory of all maps of a volume together; default 64Mi.
	MaxMapBytes *Bytes `json:"maxMapBytes,omitempty"`
	// MaxPrograms bounds how many programs a volume loads; default no limit.
	MaxPrograms *int `json:"maxPrograms,omitempty"`
	// MaxInstructions bounds the instructions of each program; default no limit but the kernel's.
	MaxInstructions *int `json:"maxInstructions,omitempty"`
	// Helpers denies kernel functions.
	Helpers *Helpers `json:"helpers,omitempty"`
}

// Priority is a band within 0 to 1000.
type Priority struct {
	Min *int `json:"min,omitempty"`
	Max *int `json:"max,omitempty"`
}

// Helpers denies helpers and kfuncs.
type Helpers struct {
	// Deny has helpers by their names in bpf-helpers(7), with or without "bpf_"; kfuncs by those in the kernel's BTF, as
	// "kfunc:bpf_task_acquire"; and helpers that this version has no name for as "helper#250".
	Deny []string `json:"deny,omitempty"`
}
