// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/bpfvol/bpfvol/internal/claim"
)

// The keys by which a class names the Secret that kubelet sends along when a volume is mounted, as for every CSI driver.
const (
	secretName      = claim.ReservedPrefix + "node-publish-secret-name"
	secretNamespace = claim.ReservedPrefix + "node-publish-secret-namespace"
)

// takeSecret takes the Secret out of a class's parameters; nil where there is none. Names are templates by the rules of
// external-provisioner (getSecretReference in pkg/controller/controller.go of v5): what the author of a claim can choose,
// its name and annotations, chooses among Secrets and never a namespace.
func takeSecret(parameters map[string]string, volume string, pvc *corev1.PersistentVolumeClaim) (*corev1.SecretReference, error) {
	name, named := parameters[secretName]
	namespace, placed := parameters[secretNamespace]
	delete(parameters, secretName)
	delete(parameters, secretNamespace)
	switch {
	case !named && !placed:
		return nil, nil
	case !named:
		return nil, claim.Parameter(secretNamespace, "says where a Secret is, and nothing its name; add "+secretName)
	case !placed:
		return nil, claim.Parameter(secretName, "names a Secret, and nothing says where; add "+secretNamespace)
	}
	tokens := map[string]string{"pv.name": volume, "pvc.namespace": pvc.Namespace}
	namespace, err := expand(secretNamespace, namespace, tokens)
	if err != nil {
		return nil, err
	}
	if len(validation.IsDNS1123Label(namespace)) > 0 {
		return nil, claim.Parameter(secretNamespace, fmt.Sprintf("leads to %.64q, which cannot be a namespace", namespace))
	}
	tokens["pvc.name"] = pvc.Name
	for key, value := range pvc.Annotations {
		tokens["pvc.annotations['"+key+"']"] = value
	}
	name, err = expand(secretName, name, tokens)
	if err != nil {
		return nil, err
	}
	if len(validation.IsDNS1123Subdomain(name)) > 0 {
		return nil, claim.Parameter(secretName, fmt.Sprintf("leads to %.64q, which cannot be a Secret", name))
	}
	return &corev1.SecretReference{Name: name, Namespace: namespace}, nil
}

// expand replaces ${token}s.
func expand(key, template string, tokens map[string]string) (string, error) {
	unknown := map[string]bool{}
	text := os.Expand(template, func(token string) string {
		value, ok := tokens[token]
		unknown[token] = unknown[token] || !ok
		return value
	})
	maps.DeleteFunc(unknown, func(_ string, is bool) bool { return !is })
	if len(unknown) > 0 {
		return "", claim.Parameter(key, fmt.Sprintf("has a token that this claim has no value for: %.200q", strings.Join(slices.Sorted(maps.Keys(unknown)), ", ")))
	}
	return text, nil
}
