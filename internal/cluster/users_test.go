// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A pod counts whichever way it has a volume of the driver, until it has ended; other drivers' volumes do not count.
func TestUsersAreAllPodsWithVolumesOfTheDriver(t *testing.T) {
	n := startNode(t)
	n.Kubectl(t, "create", "namespace", "shop")
	n.Kubectl(t, "create", "serviceaccount", "default", "-n", "shop")
	n.Apply(t, `
apiVersion: v1
kind: PersistentVolume
metadata: {name: flows}
spec:
  capacity: {storage: 1Mi}
  accessModes: [ReadWriteMany]
  claimRef: {namespace: shop, name: flows}
  csi: {driver: csi.bpfvol.io, volumeHandle: flows}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: own}
spec:
  capacity: {storage: 1Mi}
  accessModes: [ReadWriteOnce]
  claimRef: {namespace: shop, name: own-data}
  csi: {driver: csi.bpfvol.io, volumeHandle: own}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: disk}
spec:
  capacity: {storage: 1Mi}
  accessModes: [ReadWriteOnce]
  claimRef: {namespace: shop, name: disk}
  csi: {driver: disk.example.com, volumeHandle: disk}
`)
	for name, volumes := range map[string]string{
		"inline":    "[{name: a, csi: {driver: csi.bpfvol.io}}, {name: b, emptyDir: {}}, {name: c, csi: {driver: csi.bpfvol.io}}]",
		"claim":     "[{name: bpf, persistentVolumeClaim: {claimName: flows}}]",
		"own":       "[{name: data, ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}}}}]",
		"disk":      "[{name: disk, persistentVolumeClaim: {claimName: disk}}]",
		"neither":   "[{name: other, csi: {driver: other.example.com}}]",
		"nothing":   "[]",
		"succeeded": "[{name: a, csi: {driver: csi.bpfvol.io}}]",
	} {
		n.Apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: `+name+`, namespace: shop}
spec:
  nodeName: node1
  containers: [{name: app, image: app}]
  volumes: `+volumes)
	}
	n.Kubectl(t, "patch", "pod", "succeeded", "-n", "shop", "--subresource=status", "-p", `{"status":{"phase":"Succeeded"}}`)
	users, err := connect(t, n.Admin).Users(t.Context(), "csi.bpfvol.io")
	if err != nil {
		t.Fatal(err)
	}
	want := []User{
		{Namespace: "shop", Name: "claim", Node: "node1", Volumes: []string{"bpf"}},
		{Namespace: "shop", Name: "inline", Node: "node1", Volumes: []string{"a", "c"}},
		{Namespace: "shop", Name: "own", Node: "node1", Volumes: []string{"data"}},
	}
	if diff := cmp.Diff(want, users); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Nobody takes "no right to look" for "no pods".
func TestUsersWithoutTheRightToListIsAnError(t *testing.T) {
	n := startNode(t)
	if users, err := n.client(t).Users(t.Context(), "csi.bpfvol.io"); err == nil {
		t.Errorf("got %v and no error", users)
	}
}
