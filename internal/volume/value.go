// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// A value is one field of a hook as YAML: how it is read, written and described. It points into the hook.
type value interface {
	read(*yaml.Node) error
	write() *yaml.Node
	// words is the type as the documentation says it.
	words() string
}

// textValue is a string that check takes.
type textValue struct {
	to    *string
	check func(string) error
	what  string
}

func (v textValue) words() string     { return v.what }
func (v textValue) write() *yaml.Node { return str(*v.to) }
func (v textValue) read(n *yaml.Node) error {
	s, err := text(n)
	if err != nil {
		return err
	}
	*v.to = s
	return v.check(s)
}

// choiceValue is one of a few words.
type choiceValue[T ~string] struct {
	to *T
	of []T
}

func (v choiceValue[T]) words() string     { return oneOf(words(v.of)) }
func (v choiceValue[T]) write() *yaml.Node { return str(string(*v.to)) }
func (v choiceValue[T]) read(n *yaml.Node) error {
	s, err := text(n)
	if err != nil {
		return err
	}
	if !slices.Contains(v.of, T(s)) {
		return unknown("value", s, words(v.of))
	}
	*v.to = T(s)
	return nil
}

func oneOf(words []string) string { return "`" + strings.Join(words, "`, `") + "`" }

// intValue is an integer between min and max.
type intValue struct {
	to       *int
	min, max int
}

func (v intValue) words() string {
	if v.max == maxInt {
		return fmt.Sprintf("integer, at least %d", v.min)
	}
	return fmt.Sprintf("integer, %d to %d", v.min, v.max)
}

func (v intValue) write() *yaml.Node { return scalar("!!int", strconv.Itoa(*v.to)) }
func (v intValue) read(n *yaml.Node) error {
	i, err := integer(n)
	if err != nil {
		return err
	}
	signed, ok := i.(int64)
	if !ok || signed < int64(v.min) || signed > int64(v.max) {
		return fmt.Errorf("%v is out of range; use %d to %d", i, v.min, v.max)
	}
	*v.to = int(signed)
	return nil
}

// maxInt is the largest number that the kernel takes where it has an int.
const maxInt = 1<<31 - 1

// countValue is an unsigned integer of 64 bits, at least min.
type countValue struct {
	to  *uint64
	min uint64
}

func (v countValue) words() string     { return fmt.Sprintf("integer, at least %d", v.min) }
func (v countValue) write() *yaml.Node { return scalar("!!int", strconv.FormatUint(*v.to, 10)) }
func (v countValue) read(n *yaml.Node) error {
	i, err := integer(n)
	if err != nil {
		return err
	}
	switch i := i.(type) {
	case uint64:
		*v.to = i
	case int64:
		if i < 0 || uint64(i) < v.min {
			return fmt.Errorf("%d is out of range; use at least %d", i, v.min)
		}
		*v.to = uint64(i)
	}
	return nil
}

// boolValue is true or false.
type boolValue struct{ to *bool }

func (boolValue) words() string       { return "boolean" }
func (v boolValue) write() *yaml.Node { return scalar("!!bool", strconv.FormatBool(*v.to)) }
func (v boolValue) read(n *yaml.Node) error {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!bool" {
		return fmt.Errorf("is %s; write true or false", kindOf(n))
	}
	*v.to = strings.ToLower(n.Value) == "true"
	return nil
}

// interfacesValue is one interface or a list of them.
type interfacesValue struct{ to *[]string }

func (interfacesValue) words() string { return "interface, list of interfaces, `" + DefaultRoute + "`" }
func (v interfacesValue) write() *yaml.Node {
	if len(*v.to) == 1 {
		return str((*v.to)[0])
	}
	return strs(*v.to)
}

func (v interfacesValue) read(n *yaml.Node) error {
	list, err := texts(n)
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return errors.New("is empty; name an interface")
	}
	if len(list) > maxInterfaces {
		return fmt.Errorf("names %d interfaces; at most %d are possible", len(list), maxInterfaces)
	}
	for i, name := range list {
		if err := checkInterface(name); err != nil {
			return err
		}
		if slices.Contains(list[:i], name) {
			return fmt.Errorf("names %s twice; write it once", quote(name))
		}
	}
	*v.to = list
	return nil
}

// verdictsValue is one verdict or a list of them, which may be empty.
type verdictsValue struct {
	to    *[]Verdict
	codes map[Verdict]int
}

func (v verdictsValue) words() string {
	return "verdict, list of verdicts: " + oneOf(verdictNames(v.codes))
}
func (v verdictsValue) write() *yaml.Node { return strs(words(*v.to)) }
func (v verdictsValue) read(n *yaml.Node) error {
	list, err := texts(n)
	if err != nil {
		return err
	}
	verdicts := make([]Verdict, 0, len(list))
	for _, name := range list {
		if _, ok := v.codes[Verdict(name)]; !ok {
			return unknown("verdict", name, verdictNames(v.codes))
		}
		if slices.Contains(verdicts, Verdict(name)) {
			return fmt.Errorf("names %s twice; write it once", quote(name))
		}
		verdicts = append(verdicts, Verdict(name))
	}
	slices.SortFunc(verdicts, byCode(v.codes))
	*v.to = verdicts
	return nil
}

// tracepointValue is a tracepoint's group and name.
type tracepointValue struct{ group, name *string }

func (tracepointValue) words() string       { return "`group/name`" }
func (v tracepointValue) write() *yaml.Node { return str(*v.group + "/" + *v.name) }
func (v tracepointValue) read(n *yaml.Node) error {
	s, err := text(n)
	if err != nil {
		return err
	}
	group, name, ok := strings.Cut(s, "/")
	if !ok || checkEvent(group) != nil || checkEvent(name) != nil {
		return fmt.Errorf("%s is not a tracepoint; write group/name, like sched/sched_process_exec", quote(s))
	}
	*v.group, *v.name = group, name
	return nil
}
