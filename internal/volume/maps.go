// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

const maxMaps = 128

// ParseMaps parses the value of the attribute maps: a comma list of name, name:ro or name:rw. An error is an
// *AttributeError.
func ParseMaps(s string) ([]MapRef, error) {
	list, err := parseMaps(s)
	if err != nil {
		return nil, attributeError(KeyMaps, err)
	}
	return list, nil
}

func parseMaps(s string) ([]MapRef, error) {
	if err := checkText(s); err != nil {
		return nil, err
	}
	if strings.TrimSpace(s) == "" {
		return nil, errors.New("is empty; leave it out to show every map")
	}
	if n := strings.Count(s, ",") + 1; n > maxMaps {
		return nil, fmt.Errorf("names %d maps; at most %d are possible", n, maxMaps)
	}
	var list []MapRef
	for item := range strings.SplitSeq(s, ",") {
		name, access, given := strings.Cut(strings.TrimSpace(item), ":")
		m := MapRef{Name: name, Access: ReadOnly}
		if err := checkMap(m.Name); err != nil {
			return nil, err
		}
		if given {
			m.Access = Access(access)
		}
		if m.Access != ReadOnly && m.Access != ReadWrite {
			return nil, fmt.Errorf("map %s: unknown access %s; write %q or %q", quote(name), quote(access), name, name+":rw")
		}
		if slices.ContainsFunc(list, func(other MapRef) bool { return other.Name == name }) {
			return nil, fmt.Errorf("map %s is named twice; write it once", quote(name))
		}
		list = append(list, m)
	}
	return list, nil
}

func marshalMaps(list []MapRef) string {
	items := make([]string, len(list))
	for i, m := range list {
		items[i] = m.Name
		if m.Access == ReadWrite {
			items[i] += ":" + string(m.Access)
		}
	}
	return strings.Join(items, ",")
}

func parseMapEntries(s string) (map[string]uint32, error) {
	root, err := decode(s)
	if err != nil {
		return nil, err
	}
	if root.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("is %s; write a map, like flows: 65536", kindOf(root))
	}
	if len(root.Content) == 0 {
		return nil, errEmpty
	}
	if n := len(root.Content) / 2; n > maxMaps {
		return nil, fmt.Errorf("names %d maps; at most %d are possible", n, maxMaps)
	}
	entries := map[string]uint32{}
	for i := 0; i < len(root.Content); i += 2 {
		name, v := root.Content[i].Value, root.Content[i+1]
		if err := checkMap(name); err != nil {
			return nil, err
		}
		n, err := integer(v)
		if err != nil {
			return nil, at(name, err)
		}
		count, ok := n.(int64)
		if !ok || count < 1 || count > math.MaxUint32 {
			return nil, at(name, fmt.Errorf("%v is out of range; use 1 to %d", n, uint32(math.MaxUint32)))
		}
		entries[name] = uint32(count)
	}
	return entries, nil
}

func marshalMapEntries(entries map[string]uint32) string {
	root := &yaml.Node{Kind: yaml.MappingNode}
	for _, name := range sortedKeys(entries) {
		root.Content = append(root.Content, str(name), scalar("!!int", strconv.FormatUint(uint64(entries[name]), 10)))
	}
	return encode(root)
}
