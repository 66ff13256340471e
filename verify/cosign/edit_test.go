// SPDX-License-Identifier: Apache-2.0

package cosign_test

import (
	"encoding/json"
	"testing"
)

// edit changes a document as JSON.
func edit(t testing.TB, raw []byte, change func(map[string]any)) []byte {
	t.Helper()
	doc := decode(t, raw)
	change(doc)
	out, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func decode(t testing.TB, raw []byte) map[string]any {
	t.Helper()
	var doc map[string]any
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	return doc
}

// material is what proves a bundle.
func material(b map[string]any) map[string]any { return b["verificationMaterial"].(map[string]any) }
