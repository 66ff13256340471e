// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"encoding/json"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var (
	podResource    = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	volumeResource = schema.GroupVersionResource{Version: "v1", Resource: "persistentvolumes"}
)

// User is a pod that has volumes of the driver.
type User struct {
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	Node      string   `json:"node"`
	Volumes   []string `json:"volumes"` // as the pod calls them
}

// claim is the namespace and name of a PersistentVolumeClaim.
type claim struct{ Namespace, Name string }

// persistentVolume is what Users reads of one.
type persistentVolume struct {
	Spec struct {
		CSI      struct{ Driver string }
		ClaimRef claim
	}
}

// podWithVolumes is what Users reads of a pod.
type podWithVolumes struct {
	Metadata struct{ Namespace, Name string }
	Spec     struct {
		NodeName string
		Volumes  []struct {
			Name                  string
			CSI                   struct{ Driver string }
			PersistentVolumeClaim struct{ ClaimName string }
			Ephemeral             *struct{}
		}
	}
	Status struct{ Phase string }
}

// Users returns the pods whose volumes kubelet has the driver unmount when they end: inline volumes, and PersistentVolumes by
// their claims. They are in the order of their namespaces and names.
func (c *Client) Users(ctx context.Context, driver string) ([]User, error) {
	claims := map[claim]bool{}
	err := each(ctx, c, volumeResource, func(v persistentVolume) {
		if v.Spec.CSI.Driver == driver {
			claims[v.Spec.ClaimRef] = true
		}
	})
	if err != nil {
		return nil, err
	}
	users := []User{} // [] in JSON
	err = each(ctx, c, podResource, func(p podWithVolumes) {
		if p.Status.Phase == "Succeeded" || p.Status.Phase == "Failed" {
			return // its volumes are unmounted
		}
		u := User{Namespace: p.Metadata.Namespace, Name: p.Metadata.Name, Node: p.Spec.NodeName}
		for _, v := range p.Spec.Volumes {
			name := v.PersistentVolumeClaim.ClaimName
			if v.Ephemeral != nil {
				name = p.Metadata.Name + "-" + v.Name // Kubernetes makes a claim of this name
			}
			if v.CSI.Driver == driver || name != "" && claims[claim{p.Metadata.Namespace, name}] {
				u.Volumes = append(u.Volumes, v.Name)
			}
		}
		if u.Volumes != nil {
			users = append(users, u)
		}
	})
	return users, err
}

// each calls f with every object of a kind, page by page.
func each[T any](ctx context.Context, c *Client, resource schema.GroupVersionResource, f func(T)) error {
	page := &unstructured.UnstructuredList{}
	for {
		var err error
		page, err = c.api.Resource(resource).List(ctx, metav1.ListOptions{Limit: 500, Continue: page.GetContinue()})
		if err != nil {
			return fmt.Errorf("list %s: %w", resource.Resource, err)
		}
		for _, item := range page.Items {
			var object T
			text, err := item.MarshalJSON()
			if err == nil {
				err = json.Unmarshal(text, &object)
			}
			if err != nil {
				return fmt.Errorf("list %s: %s: %w", resource.Resource, item.GetName(), err)
			}
			f(object)
		}
		if page.GetContinue() == "" {
			return nil
		}
	}
}
