// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"k8s.io/klog/v2"

	"github.com/bpfvol/bpfvol/internal/node"
)

const (
	// callBudget ends a call before kubelet stops waiting for it, which is after two minutes
	// (csiTimeout in pkg/volume/csi/csi_plugin.go): only an answer can say whether anything is left.
	callBudget = 110 * time.Second
	// maxMessage is the size of the largest request. kubelet's are a few KiB.
	maxMessage = 4 << 20
	// handshakeTimeout bounds how long a connection that says nothing is kept.
	handshakeTimeout = 10 * time.Second
)

// Engine does the work. *node.Engine is the one implementation.
type Engine interface {
	Publish(ctx context.Context, req node.Request) error
	Unpublish(ctx context.Context, id, target string) error
	Stats(ctx context.Context, id, target string) (pins int, err error)
	Health(ctx context.Context, id, target string) (node.Health, error)
}

// Options configures a Server.
type Options struct {
	// Driver is the name that pods write into volumes[].csi.driver.
	Driver string
	// NodeID is the node's name in the cluster.
	NodeID string
	// Version is what GetPluginInfo reports.
	Version string

	Engine Engine
	// Ready says whether the engine has recovered. Until then Probe answers false, and volumes are neither published
	// nor unpublished. Nil: always.
	Ready func() bool

	// PodsDir is kubelet's directory of pods. With it, kubelet's pod information must name the pod whose directory
	// the target is in: without podInfoOnMount in the CSIDriver object, these keys would be the user's own words.
	// Empty: not checked.
	PodsDir string

	// RegistryDir is kubelet's directory of registration sockets, <kubelet-dir>/plugins_registry. With it, the server
	// registers the driver with kubelet as soon as its own socket listens. The endpoint must have the same path on the
	// node as here. Empty: somebody else registers it, such as the sidecar node-driver-registrar.
	RegistryDir string

	// VolumeHealth tells kubelet that it may ask for the health of volumes.
	VolumeHealth bool

	// Controller adds the Controller service, for a sidecar external-provisioner that makes PersistentVolumes.
	Controller bool
}

// Server serves CSI. Make one with New.
type Server struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedNodeServer

	opts         Options
	registration *registration // nil: somebody else's business
	controller   *controller   // nil: not asked for
}

// driverName is what the CSI specification allows as a plugin's name, which ends in a letter.
var driverName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z])?$`)

const maxDriverName = 63

// maxNodeID is the longest node id that kubelet accepts (csi-lib and the CSI specification, NodeGetInfo).
const maxNodeID = 256

// New makes a server.
func New(opts Options) (*Server, error) {
	switch {
	case len(opts.Driver) > maxDriverName || !driverName.MatchString(opts.Driver):
		return nil, fmt.Errorf("driver name: %q: must be at most 63 letters, digits, dots and dashes, and end in a letter", opts.Driver)
	case opts.NodeID == "":
		return nil, errors.New("node id: missing; it is the node's name in the cluster")
	case len(opts.NodeID) > maxNodeID:
		return nil, fmt.Errorf("node id: %d bytes: at most %d are allowed", len(opts.NodeID), maxNodeID)
	}
	registration, err := newRegistration(opts.RegistryDir, opts.Driver)
	if err != nil {
		return nil, err
	}
	s := &Server{opts: opts, registration: registration}
	if opts.Controller {
		s.controller = newController()
	}
	return s, nil
}

// Serve answers calls on endpoint, "unix:///path/to/socket", until ctx is done. Then it takes no new call, lets those in
// flight finish, and returns nil. Calls log to the logger of ctx.
func (s *Server) Serve(ctx context.Context, endpoint string) error {
	path, err := socketPath(endpoint)
	if err != nil {
		return err
	}
	l, err := listen(path)
	if err != nil {
		return fmt.Errorf("endpoint %s: %w", endpoint, err)
	}
	server := grpc.NewServer(
		grpc.UnaryInterceptor(intercept(klog.FromContext(ctx))),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.ConnectionTimeout(handshakeTimeout),
	)
	csi.RegisterIdentityServer(server, s)
	csi.RegisterNodeServer(server, s)
	if s.controller != nil {
		csi.RegisterControllerServer(server, s.controller)
	}

	ctx, end := context.WithCancel(ctx)
	var beside sync.WaitGroup
	beside.Go(func() {
		<-ctx.Done()
		server.GracefulStop()
	})
	if s.registration != nil {
		s.registration.endpoint = path
		beside.Go(func() { s.registration.serve(ctx) })
	}
	err = server.Serve(l) // closes l, which removes the socket
	end()
	beside.Wait()
	if err != nil && !errors.Is(err, grpc.ErrServerStopped) { // stopped before it began
		return fmt.Errorf("endpoint %s: %w", endpoint, err)
	}
	return nil
}

// Registered is nil when kubelet has registered the driver, or is not asked to, and else says why not.
func (s *Server) Registered() error {
	if s.registration == nil {
		return nil
	}
	return s.registration.state()
}

func (s *Server) ready() bool { return s.opts.Ready == nil || s.opts.Ready() }
