// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	kjson "sigs.k8s.io/json"
	yaml "sigs.k8s.io/yaml/goyaml.v3"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/internal/volume"
)

const maxFile = 1 << 20

// ParsePolicies reads the policies of one file: YAML, any number of documents, unknown and repeated fields refused.
// Relative file names in it are below the file's directory.
func ParsePolicies(data []byte, file string, compile Compiler) ([]*Policy, error) {
	if len(data) > maxFile {
		return nil, fmt.Errorf("policy file %s: %d bytes; the limit is %d", file, len(data), maxFile)
	}
	var policies []*Policy
	names := map[string]bool{}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var node yaml.Node
		if err := dec.Decode(&node); errors.Is(err, io.EOF) {
			return policies, nil
		} else if err != nil {
			return nil, fmt.Errorf("policy file %s: %w", file, err)
		}
		doc, err := decode(&node)
		var p *Policy
		if err == nil {
			if doc == nil {
				continue // nothing but comments
			}
			p, err = compilePolicy(doc, filepath.Dir(file), compile)
		}
		if err != nil {
			what := "document"
			if doc != nil && isPolicyName(doc.Name) {
				what = fmt.Sprintf("policy %q", doc.Name)
			}
			return nil, fmt.Errorf("policy file %s: %s at line %d: %w", file, what, lineOf(&node, err), err)
		}
		if names[p.Name] {
			return nil, fmt.Errorf("policy file %s: policy %q is defined twice", file, p.Name)
		}
		names[p.Name] = true
		policies = append(policies, p)
	}
}

// fieldPath is how errors name a field.
var fieldPath = regexp.MustCompile(`\b(metadata|spec)(\.\w+|\[\d+\])+`)

// lineOf is the line of the field that an error is about, or of what is nearest to it.
func lineOf(doc *yaml.Node, err error) int {
	at := doc
	if len(doc.Content) > 0 {
		at = doc.Content[0] // not the line of "---"
	}
	path := strings.ReplaceAll(fieldPath.FindString(err.Error()), "[", ".[")
	for _, part := range strings.Split(path, ".") {
		next := child(at, strings.Trim(part, "[]"))
		if next == nil {
			break
		}
		at = next
	}
	return at.Line
}

// child is the entry of a map or list, nil where there is none.
func child(n *yaml.Node, name string) *yaml.Node {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == name {
				return n.Content[i+1]
			}
		}
	case yaml.SequenceNode:
		if i, err := strconv.Atoi(name); err == nil && i < len(n.Content) {
			return n.Content[i]
		}
	}
	return nil
}

// decode turns one YAML document into a policy by way of JSON, so that a file and an object of the cluster are
// read by the same rules. It returns nil for an empty one.
func decode(node *yaml.Node) (*v1alpha1.BytecodePolicy, error) {
	var v any
	if err := node.Decode(&v); err != nil {
		return nil, err
	}
	if v == nil {
		return nil, nil
	}
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("cannot be written as JSON; keys must be strings and numbers finite: %w", err)
	}
	if raw[0] != '{' {
		return nil, errors.New("is not a map with the fields apiVersion, kind, metadata and spec")
	}
	return decodeJSON(raw)
}

func decodeJSON(raw []byte) (*v1alpha1.BytecodePolicy, error) {
	var doc v1alpha1.BytecodePolicy
	unknown, err := kjson.UnmarshalStrict(raw, &doc)
	var wrong *json.UnmarshalTypeError
	switch {
	case errors.As(err, &wrong):
		return nil, fmt.Errorf("%s: is a %s; want a %s", wrong.Field, wrong.Value, yamlType(wrong.Type))
	case err != nil:
		return nil, err
	case len(unknown) > 0:
		texts := make([]string, len(unknown))
		for i, err := range unknown {
			texts[i] = err.Error()
		}
		return nil, errors.New(strings.Join(texts, "; "))
	}
	return &doc, nil
}

// yamlType names a Go type in the words of who writes YAML.
func yamlType(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Struct, reflect.Map:
		return "map"
	case reflect.Slice:
		return "list"
	case reflect.Int:
		return "whole number"
	}
	return t.Kind().String()
}

// isPolicyName says whether the API server accepts it as a name: a DNS name.
func isPolicyName(s string) bool { return len(s) <= 253 && policyName.MatchString(s) }

var policyName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

func compilePolicy(d *v1alpha1.BytecodePolicy, dir string, compile Compiler) (*Policy, error) {
	if d.APIVersion != v1alpha1.APIVersion || d.Kind != v1alpha1.Kind {
		return nil, fmt.Errorf("is %q of %q; want kind %s of apiVersion %s", d.Kind, d.APIVersion, v1alpha1.Kind, v1alpha1.APIVersion)
	}
	if !isPolicyName(d.Name) {
		return nil, errors.New("metadata.name must be lower-case letters, digits, '-' and '.'")
	}
	p := &Policy{Name: d.Name, Unsigned: d.Spec.Unsigned, Subjects: d.Spec.Subjects}
	if len(d.Spec.Images) == 0 {
		return nil, errors.New(`spec.images is empty; list repositories such as "ghcr.io/acme/**"`)
	}
	for i, s := range d.Spec.Images {
		g, err := ParseGlob(s)
		if err != nil {
			return nil, fmt.Errorf("spec.images[%d]: %w", i, err)
		}
		p.Images = append(p.Images, g)
	}
	for i, s := range d.Spec.Subjects {
		if err := checkSubject(s); err != nil {
			return nil, fmt.Errorf("spec.subjects[%d]: %w", i, err)
		}
	}
	for i, s := range d.Spec.Authorities {
		a, err := compileAuthority(s, dir, compile)
		if err != nil {
			return nil, fmt.Errorf("spec.authorities[%d]: %w", i, err)
		}
		p.Authorities = append(p.Authorities, a)
	}
	var err error
	p.Allow, err = compileAllow(d.Spec.Allow)
	if err != nil {
		return nil, fmt.Errorf("spec.allow.%w", err)
	}
	return p, nil
}

func compileAuthority(s v1alpha1.Authority, dir string, compile Compiler) (Authority, error) {
	switch {
	case s.Key != nil && s.Keyless != nil:
		return nil, errors.New("has both key and keyless; give each its own entry")
	case s.Key == nil && s.Keyless == nil:
		return nil, errors.New("has neither key nor keyless")
	case s.Key != nil && s.TrustedRoot != nil:
		return nil, errors.New("trustedRoot: a key needs none")
	}
	for i, a := range s.Attestations {
		if err := checkAttestation(a); err != nil {
			return nil, fmt.Errorf("attestations[%d].%w", i, err)
		}
	}
	return compile(s, dir)
}

// slsaProvenance is the predicate type whose builder is known how to find. (slsa.dev/spec/v1.0/provenance)
const slsaProvenance = "https://slsa.dev/provenance/v1"

func checkAttestation(a v1alpha1.Attestation) error {
	switch {
	case a.PredicateType == "":
		return fmt.Errorf("predicateType: is missing; write %s", slsaProvenance)
	case len(a.PredicateType) > maxAttestationText:
		return fmt.Errorf("predicateType: has %d bytes; the limit is %d", len(a.PredicateType), maxAttestationText)
	case len(a.BuilderID) > maxAttestationText:
		return fmt.Errorf("builderID: has %d bytes; the limit is %d", len(a.BuilderID), maxAttestationText)
	case a.BuilderID != "" && a.PredicateType != slsaProvenance:
		return fmt.Errorf("builderID: only a predicateType of %s names a builder", slsaProvenance)
	}
	return nil
}

const maxAttestationText = 512

// compileAllow puts the fields that are given over the defaults, each alone.
func compileAllow(s *v1alpha1.Allow) (Allow, error) {
	a := defaultAllow()
	if s == nil {
		return a, nil
	}
	if s.Hooks != nil {
		a.Hooks = make([]volume.Kind, len(s.Hooks))
		for i, name := range s.Hooks {
			k := volume.Kind(name)
			if !slices.Contains(volume.Kinds, k) {
				return a, fmt.Errorf("hooks[%d]: unknown hook %q; known: %s", i, k, list(volume.Kinds))
			}
			a.Hooks[i] = k
		}
	}
	if s.Interfaces != nil {
		a.Interfaces = s.Interfaces
	}
	if p := s.Priority; p != nil {
		if p.Min != nil {
			a.MinPriority = *p.Min
		}
		if p.Max != nil {
			a.MaxPriority = *p.Max
		}
		if a.MinPriority < 0 || a.MaxPriority > maxPriority || a.MinPriority > a.MaxPriority {
			return a, fmt.Errorf("priority: %d to %d is no band within 0 to %d", a.MinPriority, a.MaxPriority, maxPriority)
		}
	}
	a.WritableMaps = s.WritableMaps
	if s.MaxMapBytes != nil {
		a.MaxMapBytes = (*uint64)(s.MaxMapBytes)
	}
	for _, limit := range []struct {
		name string
		says *int
		set  *int
	}{{"maxPrograms", s.MaxPrograms, &a.MaxPrograms}, {"maxInstructions", s.MaxInstructions, &a.MaxInstructions}} {
		if limit.says == nil {
			continue
		}
		if *limit.says < 1 {
			return a, fmt.Errorf("%s: %d lets nothing run; write 1 or more, or leave it out for no limit", limit.name, *limit.says)
		}
		*limit.set = *limit.says
	}
	if s.Helpers != nil {
		for i, h := range s.Helpers.Deny {
			name, err := deniedFunction(h)
			if err != nil {
				return a, fmt.Errorf("helpers.deny[%d]: %w", i, err)
			}
			a.DenyHelpers = append(a.DenyHelpers, name)
		}
	}
	return a, nil
}

// list writes names for a message: "xdp, tc, tracepoint".
func list[T ~string](names []T) string {
	if len(names) == 0 {
		return "none"
	}
	var b strings.Builder
	for i, n := range names {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(string(n))
	}
	return b.String()
}
