// SPDX-License-Identifier: Apache-2.0

// Command schema writes what a policy may say into the chart's values.schema.json, from the CustomResourceDefinition. helm
// would send a misspelt field of a policy to an API server that drops it, and a policy that lost a field allows more than
// was written.
//
//	schema CRD VALUES_SCHEMA
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"sigs.k8s.io/yaml"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: schema CRD VALUES_SCHEMA")
		os.Exit(2)
	}
	if err := write(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "schema:", err)
		os.Exit(1)
	}
}

// last is the key that is generated. It is the last one of the file, so everything before it stays as it was written.
const last = `    "policySpec": `

func write(crd, schema string) error {
	spec, err := policySpec(crd)
	if err != nil {
		return fmt.Errorf("%s: %w", crd, err)
	}
	text, err := os.ReadFile(schema)
	if err != nil {
		return err
	}
	written, _, found := bytes.Cut(text, []byte(last))
	if !found {
		return fmt.Errorf("%s: no policySpec as the last definition", schema)
	}
	var out bytes.Buffer
	out.Write(written)
	out.WriteString(last)
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	e.SetIndent("    ", "  ")
	if err := e.Encode(spec); err != nil {
		return err
	}
	out.WriteString("  }\n}\n")
	return os.WriteFile(schema, out.Bytes(), 0o644) //nolint:gosec // a file of the repository
}

// policySpec is the JSON schema of spec, strict. Rules in CEL are left to the API server.
func policySpec(file string) (map[string]any, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var crd struct {
		Spec struct {
			Versions []struct {
				Schema struct {
					OpenAPIV3Schema struct {
						Properties struct{ Spec map[string]any }
					}
				}
			}
		}
	}
	if err := yaml.Unmarshal(text, &crd); err != nil {
		return nil, err
	}
	if len(crd.Spec.Versions) != 1 {
		return nil, errors.New("not one version; say which one the chart writes")
	}
	spec := crd.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties.Spec
	properties, ok := spec["properties"].(map[string]any)
	if !ok {
		return nil, errors.New("spec has no properties")
	}
	delete(properties, "subjects") // files only: an object that has them is refused
	strict(spec)
	return spec, nil
}

// strict makes a structural schema a JSON schema that knows no further property.
func strict(schema map[string]any) {
	if schema["x-kubernetes-int-or-string"] == true {
		schema["type"] = []string{"integer", "string"}
	}
	for _, key := range []string{"x-kubernetes-validations", "x-kubernetes-list-type", "x-kubernetes-int-or-string"} {
		delete(schema, key)
	}
	if items, ok := schema["items"].(map[string]any); ok {
		strict(items)
	}
	properties, ok := schema["properties"].(map[string]any)
	if !ok {
		return
	}
	schema["additionalProperties"] = false
	for _, property := range properties {
		if property, ok := property.(map[string]any); ok {
			strict(property)
		}
	}
}
