// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxDepth is how deep lists and maps may be nested in an attribute.
const maxDepth = 16

// decode parses a text as one YAML document. It takes plain YAML only: no aliases, which expand to more than was
// written; no tags; no second document; no key twice in a map.
func decode(text string) (*yaml.Node, error) {
	var doc, second yaml.Node
	d := yaml.NewDecoder(strings.NewReader(text))
	if err := d.Decode(&doc); errors.Is(err, io.EOF) || err == nil && doc.IsZero() {
		return nil, errEmpty
	} else if err != nil {
		return nil, yamlError(err)
	}
	if err := d.Decode(&second); err == nil {
		return nil, errors.New("has several YAML documents; write one")
	} else if !errors.Is(err, io.EOF) {
		return nil, yamlError(err)
	}
	root := doc.Content[0]
	if err := plainYAML(root, maxDepth); err != nil {
		return nil, err
	}
	return root, nil
}

var errEmpty = errors.New("is empty; leave the key out or write its value")

// yamlError keeps what the parser says, which may quote the input.
func yamlError(err error) error {
	const most = 120
	msg := strings.Join(strings.Fields(strings.TrimPrefix(err.Error(), "yaml: ")), " ")
	if len(msg) > most {
		msg = msg[:most] + "..."
	}
	return fmt.Errorf("is not YAML: %s", strings.Trim(strconv.QuoteToASCII(msg), `"`))
}

func plainYAML(n *yaml.Node, depth int) error {
	switch {
	case depth == 0:
		return fmt.Errorf("line %d: is nested too deeply; at most %d levels are possible", n.Line, maxDepth)
	case n.Kind == yaml.AliasNode:
		return fmt.Errorf("line %d: has a YAML alias; write its value", n.Line)
	case n.Style&yaml.TaggedStyle != 0:
		return fmt.Errorf("line %d: has the YAML tag %s; leave it out", n.Line, quote(n.Tag))
	}
	if n.Kind == yaml.MappingNode {
		var keys []string
		for i := 0; i < len(n.Content); i += 2 {
			key := n.Content[i]
			if key.Kind != yaml.ScalarNode || key.ShortTag() != "!!str" {
				return fmt.Errorf("line %d: has a key that is %s; keys are strings", key.Line, kindOf(key))
			}
			keys = append(keys, key.Value)
		}
		slices.Sort(keys)
		for i := 1; i < len(keys); i++ {
			if keys[i] == keys[i-1] {
				return fmt.Errorf("line %d: has the key %s twice; write it once", n.Line, quote(keys[i]))
			}
		}
	}
	for _, c := range n.Content {
		if err := plainYAML(c, depth-1); err != nil {
			return err
		}
	}
	return nil
}

// kindOf says in words what a node is.
func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.SequenceNode:
		return "a list"
	case yaml.MappingNode:
		return "a map"
	case yaml.AliasNode:
		return "an alias"
	}
	switch n.ShortTag() {
	case "!!int", "!!float":
		return "a number"
	case "!!bool":
		return "a boolean"
	case "!!null":
		return "empty"
	case "!!str":
		return "a string"
	}
	return "a " + strings.TrimLeft(n.ShortTag(), "!")
}

// text returns the string that a node is.
func text(n *yaml.Node) (string, error) {
	if n.Kind != yaml.ScalarNode {
		return "", fmt.Errorf("is %s; write a string", kindOf(n))
	}
	switch n.ShortTag() {
	case "!!str":
		return n.Value, nil
	case "!!null":
		return "", errors.New("is empty; write a string")
	}
	return "", fmt.Errorf("is %s; put %s in quotes", kindOf(n), quote(n.Value))
}

// texts returns the strings of a list, or the one string that stands for a list of one.
func texts(n *yaml.Node) ([]string, error) {
	if n.Kind != yaml.SequenceNode {
		s, err := text(n)
		return []string{s}, err
	}
	list := make([]string, len(n.Content))
	for i, c := range n.Content {
		s, err := text(c)
		if err != nil {
			return nil, at(index(i), err)
		}
		list[i] = s
	}
	return list, nil
}

// integer returns the number that a node is: an int64, or a uint64 if it is larger.
func integer(n *yaml.Node) (any, error) {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!int" {
		if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!float" {
			return nil, fmt.Errorf("%s is not an integer of 64 bits", quote(n.Value))
		}
		return nil, fmt.Errorf("is %s; write an integer", kindOf(n))
	}
	digits := strings.TrimLeft(n.Value, "+-")
	if len(digits) > 1 && digits[0] == '0' && strings.Trim(digits, "0123456789_") == "" {
		return nil, fmt.Errorf("%s could be octal or decimal; write 0o... for octal, or no leading zero", quote(n.Value))
	}
	var signed int64
	if err := n.Decode(&signed); err == nil {
		return signed, nil
	}
	var unsigned uint64
	if err := n.Decode(&unsigned); err != nil {
		return nil, fmt.Errorf("%s is not an integer of 64 bits", quote(n.Value))
	}
	return unsigned, nil
}

// The nodes below are for writing YAML.

func scalar(tag, value string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: value}
}

// str writes a string in quotes where it is not just a name or a path.
func str(s string) *yaml.Node {
	n := scalar("!!str", s)
	if !pathChars.MatchString(s) {
		n.Style = yaml.DoubleQuotedStyle
	}
	return n
}

func strs(list []string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
	for _, s := range list {
		n.Content = append(n.Content, str(s))
	}
	return n
}

func encode(n *yaml.Node) string {
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	// Neither a node that this package made nor a buffer gives an error.
	if err := errors.Join(e.Encode(n), e.Close()); err != nil {
		panic(err)
	}
	return b.String()
}
