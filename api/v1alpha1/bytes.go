// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"fmt"
	"regexp"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
)

// Bytes is a Kubernetes quantity of bytes: 64Mi, 1G, 4096.
//
// +kubebuilder:validation:Type=""
// +kubebuilder:validation:Format=""
// +kubebuilder:validation:XIntOrString
// +kubebuilder:validation:MaxLength=26
// +kubebuilder:validation:XValidation:rule="type(self) == int ? self >= 0 && self <= 9999999999999999 : self.matches('^[0-9]{1,16}([.][0-9]{1,6})?([kMGTPE]|[KMGTPE]i)?$')",message="is no number of bytes; write it as 64Mi"
type Bytes uint64

// quantity is what Bytes takes of the Kubernetes syntax; an exponent could ask for a number of any length.
var quantity = regexp.MustCompile(`^[0-9]{1,16}(\.[0-9]{1,6})?([kMGTPE]|[KMGTPE]i)?$`)

// UnmarshalJSON reads a number or a string.
func (b *Bytes) UnmarshalJSON(raw []byte) error {
	text := strings.Trim(string(raw), `"`)
	if quantity.MatchString(text) {
		if q, err := resource.ParseQuantity(text); err == nil {
			*b = Bytes(q.Value())
			return nil
		}
	}
	return fmt.Errorf("spec.allow.maxMapBytes: %.40q is no number of bytes; write it as 64Mi", text)
}
