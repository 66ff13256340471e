// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// outputOption is -o: how a verb prints its result. JSON and YAML are for programs and keep their fields; the table
// is for people and may change.
type outputOption struct{ format string }

func (o *outputOption) flags(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&o.format, "output", "o", "table", "`FORMAT`: table, json or yaml")
	fixed(cmd, "output", "table", "json", "yaml")
}

// print writes v as JSON or YAML, or calls table.
func (o *outputOption) print(w io.Writer, v any, table func(io.Writer) error) error {
	switch o.format {
	case "table":
		tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		if err := table(tw); err != nil {
			return err
		}
		return tw.Flush()
	case "json":
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	case "yaml":
		data, err := yaml.Marshal(v)
		if err != nil {
			return err
		}
		_, err = w.Write(data)
		return err
	}
	return &usageError{fmt.Errorf("-o %s: unknown format; use table, json or yaml", o.format)}
}

// row writes one line of a table. Cells come from images and pods, so control characters are made visible.
func row(w io.Writer, cells ...any) error {
	text := make([]string, len(cells))
	for i, c := range cells {
		text[i] = printable(fmt.Sprint(c))
	}
	_, err := fmt.Fprintln(w, strings.Join(text, "\t"))
	return err
}

func printable(s string) string {
	var b strings.Builder
	for _, r := range s {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	return b.String()
}

// word is a name that stands among other words. What could be taken for several, or for something else, is quoted.
func word(s string) string {
	odd := func(r rune) bool {
		return !unicode.IsPrint(r) || unicode.IsSpace(r) || strings.ContainsRune("\"'`\\├└│─", r)
	}
	if s == "" || strings.ContainsFunc(s, odd) {
		return strconv.Quote(s)
	}
	return s
}
