// SPDX-License-Identifier: Apache-2.0

// Package v1alpha1 is the schema of bpfvol.io/v1alpha1: what a policy file and a cluster's BytecodePolicy object say, in
// the same words. Package verify gives it a meaning. The CustomResourceDefinition in deploy/crd is generated from here,
// and the API server answers by its rules what verify.ParsePolicies answers for a file, except that an object has no
// subjects.
package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// +groupName=bpfvol.io
// +versionName=v1alpha1

//go:generate go -C ../../tools build -o ../bin/controller-gen sigs.k8s.io/controller-tools/cmd/controller-gen
//go:generate ../../bin/controller-gen crd:headerFile=header.yaml.txt paths=. output:crd:dir=../../deploy/helm/bpfvol/crds

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
//
// +kubebuilder:resource:scope=Cluster,shortName=bcp,categories=bpfvol
// +kubebuilder:printcolumn:name=Images,type=string,JSONPath=`.spec.images`,description="Repositories that the policy covers"
// +kubebuilder:printcolumn:name=Signers,type=string,JSONPath=`.spec.authorities[*].keyless['subject','subjectRegexp']`,description="Keyless signers; keys are not shown"
// +kubebuilder:printcolumn:name=Issuers,type=string,priority=1,JSONPath=`.spec.authorities[*].keyless['issuer','issuerRegexp']`,description="Who vouches for the signers"
// +kubebuilder:printcolumn:name=Unsigned,type=boolean,JSONPath=`.spec.unsigned`,description="Whether images without any signature are admitted"
// +kubebuilder:printcolumn:name=Hooks,type=string,JSONPath=`.spec.allow.hooks`,description="Hooks that programs may attach to; none shown: xdp, tc, tracepoint"
// +kubebuilder:printcolumn:name=Age,type=date,JSONPath=`.metadata.creationTimestamp`
type BytecodePolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	// Spec is the policy itself.
	// +required
	Spec BytecodePolicySpec `json:"spec"`
}

// BytecodePolicySpec is the policy itself.
//
// +kubebuilder:validation:XValidation:rule="!has(self.subjects) || self.subjects.size() == 0",fieldPath=".subjects",message="in a cluster RBAC decides who may use a policy; leave subjects out and grant the verb \"use\" on this bytecodepolicy"
type BytecodePolicySpec struct {
	// Images are globs of repositories, without tag or digest: "ghcr.io/acme/**". "*" is any characters inside one path
	// element, "**" any elements.
	//
	// +required
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=255
	// +kubebuilder:validation:items:XValidation:rule="!self.matches('^/|//|/$|^$')",message="an element is empty; write host/path without a leading, trailing or double slash"
	// +kubebuilder:validation:items:XValidation:rule="!self.matches('[^/][*][*]|[*][*][^/]')",message="\"**\" must be a whole element between slashes"
	// +kubebuilder:validation:items:XValidation:rule="!self.contains('@')",message="policies match repositories; leave the digest out"
	// +kubebuilder:validation:items:XValidation:rule="!self.matches('[ \\\\t\\\\n]')",message="has white space"
	// +kubebuilder:validation:items:XValidation:rule="self.contains('/') || self != 'localhost' && !self.matches('[.:]')",messageExpression="'names a host and no repository; for all of a host write \"' + self + '/**\"'"
	// +kubebuilder:validation:items:XValidation:rule="!self.matches('/[^/]*:[^/]*$')",message="policies match repositories; leave the tag out"
	Images []string `json:"images"`
	// Authorities are the acceptable signers; any one suffices.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	Authorities []Authority `json:"authorities,omitempty"`
	// Unsigned admits images without any signature.
	//
	// +optional
	Unsigned bool `json:"unsigned,omitempty"`
	// Allow bounds what the programs may do. It is checked against the object, not its labels.
	//
	// +optional
	Allow *Allow `json:"allow,omitempty"`
	// Subjects are the service accounts that may use the policy: "namespace/name", "namespace/*", "*". Files only: in a
	// cluster the RBAC verb "use" decides.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=1024
	// +kubebuilder:validation:items:MaxLength=317
	Subjects []string `json:"subjects,omitempty"`
}

// Authority is one acceptable signer: exactly one of Key and Keyless.
//
// +kubebuilder:validation:XValidation:rule="!(has(self.key) && has(self.keyless))",message="has both key and keyless; give each its own entry"
// +kubebuilder:validation:XValidation:rule="has(self.key) || has(self.keyless)",message="has neither key nor keyless"
// +kubebuilder:validation:XValidation:rule="!has(self.key) || !has(self.trustedRoot)",fieldPath=".trustedRoot",message="a key needs none"
// +kubebuilder:validation:XValidation:rule="!has(self.keyless) || has(self.trustedRoot)",message="keyless needs a trustedRoot: whose certificates and logs count"
type Authority struct {
	// Key is a public key.
	//
	// +optional
	Key *Key `json:"key,omitempty"`
	// Keyless is an identity in a certificate of Fulcio's kind.
	//
	// +optional
	Keyless *Keyless `json:"keyless,omitempty"`
	// TrustedRoot says whose certificates, logs and timestamps count for Keyless.
	//
	// +optional
	TrustedRoot *TrustedRoot `json:"trustedRoot,omitempty"`
	// Attestations must exist beside the signature, each by the same signer.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	Attestations []Attestation `json:"attestations,omitempty"`
}

// Key is a public key.
type Key struct {
	// Data is the key in PEM.
	//
	// +required
	// +kubebuilder:validation:MaxLength=8192
	// +kubebuilder:validation:XValidation:rule="!self.contains('PRIVATE KEY')",message="is a private key; put the public key here and make a new pair if others could read it"
	// +kubebuilder:validation:XValidation:rule="self.matches('^[[:space:]]*-----BEGIN ')",message="is not PEM; it must begin with \"-----BEGIN PUBLIC KEY-----\""
	// +kubebuilder:validation:XValidation:rule="self.matches('^[^-]*-----BEGIN [^-]*-----[^-]*-----END [^-]*-----[[:space:]]*$')",message="is not exactly one PEM block; give each key its own entry"
	Data string `json:"data"`
}

// Keyless is an identity: issuer and subject, each exactly or as a regular expression, which is anchored.
//
// +kubebuilder:validation:XValidation:rule="(has(self.issuer) && self.issuer.size() > 0) != (has(self.issuerRegexp) && self.issuerRegexp.size() > 0)",message="needs exactly one of issuer and issuerRegexp"
// +kubebuilder:validation:XValidation:rule="(has(self.subject) && self.subject.size() > 0) != (has(self.subjectRegexp) && self.subjectRegexp.size() > 0)",message="needs exactly one of subject and subjectRegexp"
type Keyless struct {
	// Issuer is the OIDC issuer that vouched for the signer: "https://token.actions.githubusercontent.com".
	//
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Issuer string `json:"issuer,omitempty"`
	// IssuerRegexp matches the whole issuer.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:XValidation:rule="['x'.matches(self)].size() == 1",message="is no regular expression (RE2)"
	// +kubebuilder:validation:XValidation:rule="self.size() == 0 || !('https://nobody.invalid'.matches('^(?:' + self + ')$') || 'https://nobody.invalid/nobody'.matches('^(?:' + self + ')$') || 'http://nobody.invalid/nobody'.matches('^(?:' + self + ')$') || 'spiffe://nobody.invalid/nobody'.matches('^(?:' + self + ')$') || 'nobody@nobody.invalid'.matches('^(?:' + self + ')$') || 'https://the-quick-brown-fox-jumps-over-the-lazy-dog.invalid/THE_QUICK_BROWN_FOX/JUMPS.OVER/THE+LAZY=DOG:0123456789?a=b&c#@x'.matches('^(?:' + self + ')$') || 'the-quick.brown_fox+jumps.over.the.lazy.dog0123456789@THE-QUICK-BROWN-FOX-JUMPS-OVER-THE-LAZY-DOG.invalid'.matches('^(?:' + self + ')$') || 'nobody'.matches('^(?:' + self + ')$') || 'NOBODY'.matches('^(?:' + self + ')$') || '0123456789'.matches('^(?:' + self + ')$') || '\\u2603'.matches('^(?:' + self + ')$'))",message="matches anybody; name whom you trust"
	IssuerRegexp string `json:"issuerRegexp,omitempty"`
	// Subject is the signer: an e-mail address, or the URI of a workflow.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Subject string `json:"subject,omitempty"`
	// SubjectRegexp matches the whole subject: "https://github\\.com/acme/.*".
	//
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:XValidation:rule="['x'.matches(self)].size() == 1",message="is no regular expression (RE2)"
	// +kubebuilder:validation:XValidation:rule="self.size() == 0 || !('https://nobody.invalid'.matches('^(?:' + self + ')$') || 'https://nobody.invalid/nobody'.matches('^(?:' + self + ')$') || 'http://nobody.invalid/nobody'.matches('^(?:' + self + ')$') || 'spiffe://nobody.invalid/nobody'.matches('^(?:' + self + ')$') || 'nobody@nobody.invalid'.matches('^(?:' + self + ')$') || 'https://the-quick-brown-fox-jumps-over-the-lazy-dog.invalid/THE_QUICK_BROWN_FOX/JUMPS.OVER/THE+LAZY=DOG:0123456789?a=b&c#@x'.matches('^(?:' + self + ')$') || 'the-quick.brown_fox+jumps.over.the.lazy.dog0123456789@THE-QUICK-BROWN-FOX-JUMPS-OVER-THE-LAZY-DOG.invalid'.matches('^(?:' + self + ')$') || 'nobody'.matches('^(?:' + self + ')$') || 'NOBODY'.matches('^(?:' + self + ')$') || '0123456789'.matches('^(?:' + self + ')$') || '\\u2603'.matches('^(?:' + self + ')$'))",message="matches anybody; name whom you trust"
	SubjectRegexp string `json:"subjectRegexp,omitempty"`
}

// TrustedRoot is sigstore's trusted_root.json: exactly one of File and Data.
//
// +kubebuilder:validation:XValidation:rule="(has(self.file) && self.file.size() > 0) != (has(self.data) && self.data.size() > 0)",message="needs exactly one of file and data"
// +kubebuilder:validation:XValidation:rule="!has(self.file) || self.file.size() == 0 || self.file.startsWith('/')",fieldPath=".file",message="is no absolute path on the node"
type TrustedRoot struct {
	// File is a path on the node. It is read again when it changes.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=4096
	File string `json:"file,omitempty"`
	// Data is the document itself.
	//
	// +optional
	// +kubebuilder:validation:MaxLength=262144
	Data string `json:"data,omitempty"`
}

// Attestation is a statement about the image, in a sigstore bundle.
//
// +kubebuilder:validation:XValidation:rule="!has(self.builderID) || self.builderID.size() == 0 || self.predicateType == 'https://slsa.dev/provenance/v1'",fieldPath=".builderID",message="only the predicateType https://slsa.dev/provenance/v1 names a builder"
type Attestation struct {
	// PredicateType is the kind of statement: "https://slsa.dev/provenance/v1".
	//
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	PredicateType string `json:"predicateType"`
	// BuilderID is what a SLSA provenance names as its builder (runDetails.builder.id).
	//
	// +optional
	// +kubebuilder:validation:MaxLength=512
	BuilderID string `json:"builderID,omitempty"`
}

// Allow bounds what programs may do. Each field that is given replaces its default alone.
type Allow struct {
	// Hooks that programs may attach to; default xdp, tc, tracepoint.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:Enum=xdp;tc;tracepoint;rawTracepoint;kprobe;kretprobe;fentry;fexit;uprobe;uretprobe;lsm;cgroup;perfEvent;iter;netfilter;skLookup;netkit
	Hooks []string `json:"hooks,omitempty"`
	// Interfaces are globs of interface names, for hooks that have one; default every interface.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MaxLength=64
	Interfaces []string `json:"interfaces,omitempty"`
	// Priority bounds the place among the programs of a point; default 0 to 1000.
	//
	// +optional
	Priority *Priority `json:"priority,omitempty"`
	// WritableMaps are globs of map names that pods may write; default none.
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MaxLength=256
	WritableMaps []string `json:"writableMaps,omitempty"`
	// MaxMapBytes bounds the kernel memory of all maps of a volume together; default 64Mi.
	//
	// +optional
	MaxMapBytes *Bytes `json:"maxMapBytes,omitempty"`
	// MaxPrograms bounds how many programs a volume loads; default no limit.
	//
	// +optional
	// +kubebuilder:validation:XValidation:rule="self >= 1",message="lets nothing run; write 1 or more, or leave it out for no limit"
	MaxPrograms *int `json:"maxPrograms,omitempty"`
	// MaxInstructions bounds the instructions of each program; default no limit but the kernel's.
	//
	// +optional
	// +kubebuilder:validation:XValidation:rule="self >= 1",message="lets nothing run; write 1 or more, or leave it out for no limit"
	MaxInstructions *int `json:"maxInstructions,omitempty"`
	// Helpers denies kernel functions.
	//
	// +optional
	Helpers *Helpers `json:"helpers,omitempty"`
}

// Priority is a band within 0 to 1000.
//
// +kubebuilder:validation:XValidation:rule="(has(self.min) ? self.min : 0) >= 0 && (has(self.max) ? self.max : 1000) <= 1000 && (has(self.min) ? self.min : 0) <= (has(self.max) ? self.max : 1000)",message="is no band within 0 to 1000"
type Priority struct {
	// Min is the first priority that is allowed; default 0.
	//
	// +optional
	Min *int `json:"min,omitempty"`
	// Max is the last priority that is allowed; default 1000.
	//
	// +optional
	Max *int `json:"max,omitempty"`
}

// Helpers denies helpers and kfuncs.
type Helpers struct {
	// Deny has helpers by their names in bpf-helpers(7), with or without "bpf_"; kfuncs by those in the kernel's BTF, as
	// "kfunc:bpf_task_acquire"; and helpers that this version has no name for as "helper#250".
	//
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=512
	// +kubebuilder:validation:items:MaxLength=134
	// +kubebuilder:validation:items:XValidation:rule="self.matches('^((kfunc:)?[a-z_][a-z0-9_]{0,127}|helper#[1-9][0-9]{0,9})$')",message="is no helper's name; write it as in bpf-helpers(7): bpf_probe_write_user"
	Deny []string `json:"deny,omitempty"`
}
