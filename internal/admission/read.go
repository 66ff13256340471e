// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"sigs.k8s.io/yaml"
	yamlv3 "sigs.k8s.io/yaml/goyaml.v3"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/verify"
)

// Read reads BytecodePolicies as objects of a cluster: documents of YAML or JSON, each an object or a List of them, as
// `kubectl get bytecodepolicies -o yaml` prints it.
func Read(data []byte, file string) ([]*verify.Policy, error) {
	var policies []*verify.Policy
	names := map[string]bool{}
	dec := yamlv3.NewDecoder(bytes.NewReader(data))
	for {
		var doc any
		if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
			return policies, nil
		} else if err != nil {
			return nil, fmt.Errorf("policy file %s: %w", file, err)
		}
		for _, object := range objects(doc) {
			text, err := json.Marshal(object)
			if err != nil {
				return nil, fmt.Errorf("policy file %s: cannot be written as JSON; keys must be strings and numbers finite: %w", file, err)
			}
			p, err := verify.CompileObject(text, NoSigners)
			if err != nil {
				return nil, fmt.Errorf("policy file %s: %w", file, err)
			}
			if names[p.Name] {
				return nil, fmt.Errorf("policy file %s: policy %q is defined twice", file, p.Name)
			}
			names[p.Name] = true
			policies = append(policies, p)
		}
	}
}

// objects is what a document holds: nothing, the items of a list, or itself.
func objects(doc any) []any {
	if doc == nil {
		return nil
	}
	if list, ok := doc.(map[string]any); ok && (list["kind"] == "List" || list["kind"] == v1alpha1.Kind+"List") {
		items, _ := list["items"].([]any)
		return items
	}
	return []any{doc}
}

// NoSigners is a verify.Compiler for who asks about images and subjects alone: an authority's files are on the nodes.
func NoSigners(v1alpha1.Authority, string) (verify.Authority, error) { return nil, nil }

// YAML writes a manifest as documents.
func YAML(manifest []any) ([]byte, error) {
	var b bytes.Buffer
	for i, object := range manifest {
		text, err := yaml.Marshal(object)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			b.WriteString("---\n")
		}
		b.Write(text)
	}
	return b.Bytes(), nil
}

// JSON writes a manifest as a List.
func JSON(manifest []any) ([]byte, error) {
	return json.MarshalIndent(map[string]any{"apiVersion": "v1", "kind": "List", "items": manifest}, "", "  ")
}
