// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// A shape is how a hook is written in YAML. Reading, writing and documentation all follow it, so they agree.
type shape struct {
	doc    string // what the program attaches to
	fields []field
	// short reads the one string that may stand for the map; nil where there is no such form.
	short func(string) error
	// example is that string, for messages and documentation.
	example string
	// check looks at the fields together, after all are read.
	check func() error
}

// field is one key of a hook's map.
type field struct {
	key      string
	value    value
	required bool
	example  string // a value that is good, of a key that an example needs
	absent   string // what it means to leave the key out, where the default value does not say it
	doc      string
}

// shortFirst makes the first field's value the short form.
func (s shape) shortFirst() shape {
	s.example = s.fields[0].example
	s.short = func(text string) error {
		return s.fields[0].value.read(scalar("!!str", text))
	}
	return s
}

func (s shape) keys() []string {
	keys := make([]string, len(s.fields))
	for i, f := range s.fields {
		keys[i] = f.key
	}
	return keys
}

func (s shape) field(key string) (field, bool) {
	for _, f := range s.fields {
		if f.key == key {
			return f, true
		}
	}
	return field{}, false
}

// smallest is the shortest map that is good.
func (s shape) smallest() string {
	var fields []string
	for _, f := range s.fields {
		if f.example != "" {
			fields = append(fields, f.key+": "+f.example)
		}
	}
	return "{" + strings.Join(fields, ", ") + "}"
}

// readHook makes a hook of the kind from its YAML: a map, or the short form.
func readHook(kind Kind, n *yaml.Node) (Hook, error) {
	h := newHook(kind)
	s := h.shape()
	given := map[string]bool{}
	switch {
	case n.Kind == yaml.MappingNode:
		for i := 0; i < len(n.Content); i += 2 {
			key := n.Content[i].Value
			f, ok := s.field(key)
			if !ok && len(s.fields) == 0 {
				return nil, fmt.Errorf("unknown key %s; write {}", quote(key))
			} else if !ok {
				return nil, unknown("key", key, s.keys())
			}
			if err := f.value.read(n.Content[i+1]); err != nil {
				return nil, at(key, err)
			}
			given[key] = true
		}
	case n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str" && s.short != nil:
		if err := s.short(n.Value); err != nil {
			return nil, err
		}
		given[s.fields[0].key] = true
	case s.short != nil:
		return nil, fmt.Errorf("is %s; write %s, or a map", kindOf(n), quote(s.example))
	default:
		return nil, fmt.Errorf("is %s; write a map, like %s", kindOf(n), s.smallest())
	}
	for _, f := range s.fields {
		if f.required && !given[f.key] {
			return nil, fmt.Errorf("%s is missing; write %s: %s", f.key, f.key, f.example)
		}
	}
	if s.check != nil {
		if err := s.check(); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// writeHook writes what differs from the defaults, in the short form where that says all.
func writeHook(h Hook) *yaml.Node {
	fresh := newHook(h.Kind()).shape()
	n := &yaml.Node{Kind: yaml.MappingNode, Style: yaml.FlowStyle}
	short := false
	for i, f := range h.shape().fields {
		v := f.value.write()
		if !f.required && encode(v) == encode(fresh.fields[i].value.write()) {
			continue
		}
		short = i == 0 && v.Kind == yaml.ScalarNode
		n.Content = append(n.Content, str(f.key), v)
	}
	// A short form that reads more than the first field, as a uprobe's does, needs the map.
	if short && len(n.Content) == 2 && fresh.short != nil && fresh.short(n.Content[1].Value) == nil && fresh.sameAs(h.shape()) {
		return n.Content[1]
	}
	return n
}

// sameAs says whether two hooks of one kind have the same values.
func (s shape) sameAs(other shape) bool {
	for i := range s.fields {
		if encode(s.fields[i].value.write()) != encode(other.fields[i].value.write()) {
			return false
		}
	}
	return true
}
