// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"sigs.k8s.io/yaml"
	goyaml "sigs.k8s.io/yaml/goyaml.v3"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/verify"
)

// Read reads BytecodePolicies: documents of YAML or JSON, each a policy or a List of them, as `kubectl get
// bytecodepolicies -o yaml` prints it.
func Read(data []byte, file string) ([]*verify.Policy, error) {
	var flat bytes.Buffer
	lists := false
	dec := goyaml.NewDecoder(bytes.NewReader(data))
	for {
		var node goyaml.Node
		if err := dec.Decode(&node); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("policy file %s: %w", file, err)
		}
		docs := []goyaml.Node{node}
		var list struct {
			Kind  string        `yaml:"kind"`
			Items []goyaml.Node `yaml:"items"`
		}
		if node.Decode(&list) == nil && (list.Kind == "List" || list.Kind == v1alpha1.Kind+"List") {
			docs, lists = list.Items, true
		}
		for _, d := range docs {
			text, err := goyaml.Marshal(&d)
			if err != nil {
				return nil, fmt.Errorf("policy file %s: %w", file, err)
			}
			flat.WriteString("---\n")
			flat.Write(text)
		}
	}
	if lists {
		data = flat.Bytes()
	}
	return verify.ParsePolicies(data, file, NoSigners)
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
