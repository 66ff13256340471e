// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"go.yaml.in/yaml/v3"
)

const maxVariables = 256

func parseVariables(s string) (map[string]any, error) {
	root, err := decode(s)
	if err != nil {
		return nil, err
	}
	if root.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("is %s; write a map, like sample_rate: 100", kindOf(root))
	}
	if len(root.Content) == 0 {
		return nil, errEmpty
	}
	if n := len(root.Content) / 2; n > maxVariables {
		return nil, fmt.Errorf("sets %d variables; at most %d are possible", n, maxVariables)
	}
	for i := 0; i < len(root.Content); i += 2 {
		if err := checkVariable(root.Content[i].Value); err != nil {
			return nil, err
		}
	}
	v, err := readVariable(root)
	if err != nil {
		return nil, err
	}
	return v.(map[string]any), nil
}

// readVariable turns YAML into a bool, int64, uint64, string, []any or map[string]any.
func readVariable(n *yaml.Node) (any, error) {
	switch n.Kind {
	case yaml.SequenceNode:
		list := make([]any, len(n.Content))
		for i, c := range n.Content {
			v, err := readVariable(c)
			if err != nil {
				return nil, at(index(i), err)
			}
			list[i] = v
		}
		return list, nil
	case yaml.MappingNode:
		m := map[string]any{}
		for i := 0; i < len(n.Content); i += 2 {
			v, err := readVariable(n.Content[i+1])
			if err != nil {
				return nil, at(n.Content[i].Value, err)
			}
			m[n.Content[i].Value] = v
		}
		return m, nil
	}
	switch n.ShortTag() {
	case "!!bool":
		var b bool
		return b, boolValue{&b}.read(n)
	case "!!int":
		return integer(n)
	case "!!null":
		return nil, errors.New("is empty; write a value")
	case "!!float":
		return nil, fmt.Errorf("%s is not an integer of 64 bits; put it in quotes if it is a string", quote(n.Value))
	}
	return n.Value, nil
}

func writeVariable(v any) *yaml.Node {
	switch v := v.(type) {
	case bool:
		return scalar("!!bool", strconv.FormatBool(v))
	case int64:
		return scalar("!!int", strconv.FormatInt(v, 10))
	case uint64:
		return scalar("!!int", strconv.FormatUint(v, 10))
	case string:
		return str(v)
	case []any:
		n := &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
		for _, e := range v {
			n.Content = append(n.Content, writeVariable(e))
		}
		return n
	case map[string]any:
		n := &yaml.Node{Kind: yaml.MappingNode, Style: yaml.FlowStyle}
		for _, key := range sortedKeys(v) {
			n.Content = append(n.Content, str(key), writeVariable(v[key]))
		}
		return n
	}
	panic(fmt.Sprintf("volume: a variable cannot be a %T", v))
}

func marshalVariables(variables map[string]any) string {
	root := writeVariable(variables)
	root.Style = 0
	return encode(root)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
