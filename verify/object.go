// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
)

// CompileObject checks and compiles a BytecodePolicy as the API server has it, by the rules of a file but for two: who
// may use it is not its own to say, and there is no directory for file names to be relative to.
//
// Fields of the spec that this version does not know are refused, as in a file: they may restrict something.
func CompileObject(object []byte, compile Compiler) (*Policy, error) {
	// What else an object has is the API server's: uid, managed fields.
	var own struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Metadata   struct {
			Name string `json:"name"`
		} `json:"metadata"`
		Spec json.RawMessage `json:"spec"`
	}
	err := json.Unmarshal(object, &own)
	if err == nil {
		object, err = json.Marshal(own)
	}
	if err != nil {
		return nil, fmt.Errorf("policy object: %w", err)
	}
	doc, err := decodeJSON(object)
	if err == nil {
		err = checkObject(doc)
	}
	var p *Policy
	if err == nil {
		p, err = compilePolicy(doc, "", compile)
	}
	if err != nil {
		return nil, fmt.Errorf("policy %q: %w", own.Metadata.Name, err)
	}
	return p, nil
}

func checkObject(doc *v1alpha1.BytecodePolicy) error {
	if len(doc.Spec.Subjects) > 0 {
		return errors.New(`spec.subjects: in a cluster RBAC says who may use a policy; leave them out and grant the verb "use"`)
	}
	for i, a := range doc.Spec.Authorities {
		if a.TrustedRoot != nil && a.TrustedRoot.File != "" && !filepath.IsAbs(a.TrustedRoot.File) {
			return fmt.Errorf("spec.authorities[%d].trustedRoot.file: %.64q is no absolute path on the node", i, a.TrustedRoot.File)
		}
	}
	return nil
}
