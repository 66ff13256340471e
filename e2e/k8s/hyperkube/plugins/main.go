// SPDX-License-Identifier: Apache-2.0

// Command plugins is the part of kubelet that finds CSI drivers and registers them, from kubelet's own packages: the
// watcher of plugins_registry, the manager that registers and unregisters, and the handler that asks a driver for its
// node and writes the CSINode object. The API server behind it is client-go's fake, so a test needs no cluster.
//
//	plugins /var/lib/kubelet node-1
//
// It prints a line for each change of the CSINode object, "drivers: [name=node-id ...]", and ends when its standard input
// does. Without the name of a node, the cluster has no Node object: kubelet then refuses every driver.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	v1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
	"k8s.io/kubernetes/pkg/kubelet/pluginmanager"
	"k8s.io/kubernetes/pkg/volume"
	"k8s.io/kubernetes/pkg/volume/csi"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: plugins KUBELET_DIR NODE")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "plugins:", err)
		os.Exit(1)
	}
}

func run(kubeletDir, node string) error {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	client := fake.NewClientset()
	if node != "" {
		client = fake.NewClientset(&v1.Node{ObjectMeta: metav1.ObjectMeta{Name: node, UID: "node"}})
	}
	states, err := client.StorageV1().CSINodes().Watch(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	go func() {
		for e := range states.ResultChan() {
			n, ok := e.Object.(*storagev1.CSINode)
			if !ok {
				continue
			}
			drivers := []string{}
			for _, d := range n.Spec.Drivers {
				drivers = append(drivers, d.Name+"="+d.NodeID)
			}
			fmt.Println("drivers:", drivers)
		}
	}()
	// Init of the plugin makes the handler that kubelet gives to its manager.
	if err := csi.ProbeVolumePlugins()[0].Init(host{node: node, client: client}); err != nil {
		return err
	}
	manager := pluginmanager.NewPluginManager(filepath.Join(kubeletDir, "plugins_registry"), record.NewFakeRecorder(16))
	manager.AddHandler(registration.CSIPlugin, csi.PluginHandler)
	go manager.Run(ctx, nil, ctx.Done())
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// host is as much of kubelet as registering takes.
type host struct {
	volume.VolumeHost
	node   string
	client kubernetes.Interface
}

func (h host) GetNodeName() types.NodeName         { return types.NodeName(h.node) }
func (h host) GetKubeClient() kubernetes.Interface { return h.client }
