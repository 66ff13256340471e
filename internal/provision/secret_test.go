// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var webClaim = &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{
	Namespace: "shop", Name: "web", Annotations: map[string]string{"acme.example/registry": "ghcr", "bad": "not a name"},
}}

// The rules are those of external-provisioner, so that an admin finds here what every driver has.
func TestSecretIsATemplate(t *testing.T) {
	for _, c := range []struct{ name, namespace, wantName, wantNamespace string }{
		{"ghcr", "registries", "ghcr", "registries"},
		{"${pvc.name}", "${pvc.namespace}", "web", "shop"},
		{"${pvc.namespace}-${pvc.name}", "${pvc.namespace}", "shop-web", "shop"},
		{"${pv.name}", "${pv.name}", "pvc-1", "pvc-1"},
		{"${pvc.annotations['acme.example/registry']}", "${pvc.namespace}", "ghcr", "shop"},
	} {
		parameters := map[string]string{"image": "a", secretName: c.name, secretNamespace: c.namespace}
		got, err := takeSecret(parameters, "pvc-1", webClaim)
		if want := (&corev1.SecretReference{Name: c.wantName, Namespace: c.wantNamespace}); err != nil || !cmp.Equal(got, want) {
			t.Errorf("%s in %s: got %v, %v", c.name, c.namespace, got, err)
		}
		if !cmp.Equal(parameters, map[string]string{"image": "a"}) {
			t.Errorf("what is left for the volume: %v", parameters)
		}
	}
	if got, err := takeSecret(map[string]string{"image": "a"}, "pvc-1", webClaim); got != nil || err != nil {
		t.Errorf("a class without Secret: %v, %v", got, err)
	}
}

func TestSecretThatCannotBe(t *testing.T) {
	const name, namespace = `parameters: key "` + secretName + `" `, `parameters: key "` + secretNamespace + `" `
	for _, c := range []struct {
		parameters map[string]string
		want       string
	}{
		{map[string]string{secretName: "ghcr"}, name + "names a Secret, and nothing says where; add " + secretNamespace},
		{map[string]string{secretNamespace: "shop"}, namespace + "says where a Secret is, and nothing its name; add " + secretName},
		// The author of a claim must not choose a namespace.
		{map[string]string{secretName: "ghcr", secretNamespace: "${pvc.name}"}, namespace + `has a token that this claim has no value for: "pvc.name"`},
		{map[string]string{secretName: "ghcr", secretNamespace: "${pvc.annotations['acme.example/registry']}"}, namespace + `has a token that this claim has no value for: "pvc.annotations['acme.example/registry']"`},
		{map[string]string{secretName: "${pvc.annotations['none']}${pvc.uid}", secretNamespace: "shop"}, name + `has a token that this claim has no value for: "pvc.annotations['none'], pvc.uid"`},
		{map[string]string{secretName: "${pvc.annotations['bad']}", secretNamespace: "shop"}, name + `leads to "not a name", which cannot be a Secret`},
		{map[string]string{secretName: "ghcr", secretNamespace: "Shop"}, namespace + `leads to "Shop", which cannot be a namespace`},
		{map[string]string{secretName: "", secretNamespace: ""}, namespace + `leads to "", which cannot be a namespace`},
	} {
		if got, err := takeSecret(c.parameters, "pvc-1", webClaim); got != nil || err == nil || err.Error() != c.want {
			t.Errorf("got  %v, %v\nwant %s", got, err, c.want)
		}
	}
}
