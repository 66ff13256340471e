// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/spf13/cobra"

	"github.com/bpfvol/bpfvol/internal/podfs"
	"github.com/bpfvol/bpfvol/internal/podfs/mapjson"
	"github.com/bpfvol/bpfvol/internal/volume"
)

func newDump() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:     "dump DIR MAP",
		GroupID: "look",
		Short:   "Print a map of a published volume",
		Long: strings.TrimSpace(`
Dump reads json/MAP where the kernel prints the map itself, so it needs no privilege. A map type without an
iterator, such as lpm_trie, is read by bpf(2) through maps/MAP.`),
		Example: "  bpfvol dump /run/count flows\n  bpfvol dump /run/count flows -o json | jq .value.packets",
		Args:    exactArgs("DIR", "MAP"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var print func(io.Writer, io.Reader) error
			switch format {
			case "json":
				print = func(w io.Writer, lines io.Reader) error {
					_, err := io.Copy(w, lines)
					return err
				}
			case "table":
				print = lineTable
			default:
				return &usageError{fmt.Errorf("-o %s: unknown format; use table or json", format)}
			}
			dir, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			lines, err := openLines(dir, args[1])
			if err != nil {
				return err
			}
			defer lines.Close()
			return print(cmd.OutOrStdout(), lines)
		},
		ValidArgsFunction: completeDump,
	}
	cmd.Flags().StringVarP(&format, "output", "o", "table", "`FORMAT`: table, or json (one object a line)")
	fixed(cmd, "output", "table", "json")
	return cmd
}

// openLines returns the map as JSON lines.
func openLines(dir, name string) (io.ReadCloser, error) {
	v, err := podfs.Read(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: no volume is mounted here; bpfvol list shows those of this node", dir)
	}
	if err != nil {
		return nil, err
	}
	for _, m := range v.Maps {
		if m.Name != name {
			continue
		}
		if m.JSON {
			return os.Open(filepath.Join(dir, "json", name))
		}
		return lookUp(dir, m)
	}
	hint := "it has: " + strings.Join(mapNames(v), ", ")
	if near := volume.Suggest(name, mapNames(v)); near != "" {
		hint = fmt.Sprintf("did you mean %q? %s", near, hint)
	}
	return nil, fmt.Errorf("map %q is not in the volume; %s", name, hint)
}

func mapNames(v podfs.Volume) []string {
	var names []string
	for _, m := range v.Maps {
		names = append(names, m.Name)
	}
	return names
}

// lookUp reads a map without an iterator by its keys.
func lookUp(dir string, shown podfs.Shown) (io.ReadCloser, error) {
	name := shown.Name
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, "maps", name), &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("map %q: %w", name, err)
	}
	defer m.Close()
	key, value := elementTypes(filepath.Join(dir, "types.btf"), name)
	line := mapjson.NewLine(mapjson.MapSpec{Name: name, Type: m.Type(), KeySize: m.KeySize(), ValueSize: m.ValueSize(), Key: key, Value: value})
	var out []byte
	var k, v []byte
	entries := m.Iterate()
	for entries.Next(&k, &v) {
		out = line.Append(out, k, v)
	}
	if err := entries.Err(); errors.Is(err, ebpf.ErrIterationAborted) {
		return nil, fmt.Errorf("map %q changes faster than it can be listed; try again", name)
	} else if err != nil {
		return nil, fmt.Errorf("map %q is of type %s, which can't be listed; read maps/%s with a program of its own", name, shown.Type, name)
	}
	return io.NopCloser(bytes.NewReader(out)), nil
}

// elementTypes finds a map's key and value in the object's BTF, where libbpf's __type macro declares them as members
// of the map's definition. Without BTF both are nil.
func elementTypes(file, name string) (key, value btf.Type) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, nil
	}
	spec, err := btf.LoadSpecFromReader(bytes.NewReader(data))
	if err != nil {
		return nil, nil
	}
	var section *btf.Datasec
	if err := spec.TypeByName(".maps", &section); err != nil {
		return nil, nil
	}
	for _, s := range section.Vars {
		v, ok := s.Type.(*btf.Var)
		if !ok || v.Name != name {
			continue
		}
		definition, ok := btf.UnderlyingType(v.Type).(*btf.Struct)
		if !ok {
			continue
		}
		for _, m := range definition.Members {
			if p, ok := m.Type.(*btf.Pointer); ok && m.Name == "key" {
				key = p.Target
			} else if ok && m.Name == "value" {
				value = p.Target
			}
		}
	}
	return key, value
}

// lineTable prints JSON lines as a table: a column for each member of key and value, arrays as they are.
func lineTable(w io.Writer, lines io.Reader) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	scanner := bufio.NewScanner(lines)
	scanner.Buffer(nil, 1<<20)
	empty := true
	for ; scanner.Scan(); empty = false {
		var entry struct{ Key, Value json.RawMessage }
		if err := json.Unmarshal(scanner.Bytes(), &entry); err != nil {
			return fmt.Errorf("unexpected line %.80q: %w", scanner.Text(), err)
		}
		columns := append(flatten("KEY", entry.Key), flatten("VALUE", entry.Value)...)
		if empty {
			var names []any
			for _, c := range columns {
				names = append(names, c.name)
			}
			if err := row(tw, names...); err != nil {
				return err
			}
		}
		var cells []any
		for _, c := range columns {
			cells = append(cells, c.text)
		}
		if err := row(tw, cells...); err != nil {
			return err
		}
	}
	if err := scanner.Err(); err != nil {
		return err
	}
	if empty {
		if err := row(tw, "KEY", "VALUE"); err != nil {
			return err
		}
	}
	return tw.Flush()
}

type column struct{ name, text string }

// flatten turns an object into a column a member, in order; anything else is one column.
func flatten(name string, raw json.RawMessage) []column {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if start, err := dec.Token(); err != nil || start != json.Delim('{') {
		return []column{{name, strings.Trim(string(raw), `"`)}}
	}
	var out []column
	for dec.More() {
		member, err := dec.Token()
		if err != nil {
			break
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			break
		}
		out = append(out, flatten(strings.ToUpper(fmt.Sprint(member)), value)...)
	}
	return out
}
