// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc"
	"k8s.io/klog/v2"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

const (
	// lookEvery is how often the registration socket is looked for: it is back within a second. Looking is one lstat. An
	// inotify watch would see neither the directory come back nor, where all instances are in use, anything.
	lookEvery = 500 * time.Millisecond
	// csiVersion is what the sidecar node-driver-registrar tells kubelet, too. kubelet asks for no more than the major
	// version (validateVersions in pkg/volume/csi/csi_plugin.go).
	csiVersion = "1.0.0"
)

// errNotRegistered is the state until kubelet has told us another.
var errNotRegistered = errors.New("kubelet has not registered the driver yet; if it lasts, see that --kubelet-dir is kubelet's directory, and that here its path is the same as on the node")

// registration tells kubelet of the driver: a second socket, in a directory that kubelet watches. kubelet finds it,
// asks GetInfo whose it is, calls the driver there, and reports by NotifyRegistrationStatus. A registration that
// failed is tried again by kubelet; one whose socket goes away ends, and so does one whose socket is replaced.
type registration struct {
	registerapi.UnimplementedRegistrationServer

	driver   string
	socket   string // path
	endpoint string // path of the driver's own socket, for kubelet; set before serving

	mu  sync.Mutex
	err error // nil: registered
}

// newRegistration returns nil when there is no directory: then the driver is registered by somebody else.
func newRegistration(dir, driver string) (*registration, error) {
	if dir == "" {
		return nil, nil
	}
	path, err := socketPath("unix://" + filepath.Join(dir, driver+"-reg.sock"))
	if err != nil {
		return nil, fmt.Errorf("registration with kubelet: %w", err)
	}
	return &registration{driver: driver, socket: path, err: errNotRegistered}, nil
}

// state is nil when kubelet has registered the driver.
func (r *registration) state() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// set returns whether the state changed.
func (r *registration) set(err error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	changed := fmt.Sprint(err) != fmt.Sprint(r.err)
	r.err = err
	return changed
}

// serve keeps the registration socket until ctx is done, and then removes it.
func (r *registration) serve(ctx context.Context) {
	log := klog.FromContext(ctx)
	server := grpc.NewServer(
		grpc.UnaryInterceptor(intercept(log)),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.ConnectionTimeout(handshakeTimeout),
	)
	registerapi.RegisterRegistrationServer(server, r)

	var serving sync.WaitGroup
	defer serving.Wait()
	defer server.GracefulStop()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	var l *ownSocket
	for {
		if !l.exists() {
			l.close()
			l = r.listen(log)
			if l != nil {
				serving.Go(func() { _ = server.Serve(l) }) // ends with l
			}
		}
		select {
		case <-ctx.Done():
			l.remove()
			return
		case <-look.C:
		}
	}
}

// listen makes the socket, or says why it can't and returns nil.
func (r *registration) listen(log klog.Logger) *ownSocket {
	l, err := listenOwn(r.socket)
	if err != nil {
		if r.set(fmt.Errorf("registration socket %s: %w", r.socket, err)) {
			log.Error(err, "no registration with kubelet, it is tried again", "socket", r.socket)
		}
		return nil
	}
	if r.state() == nil {
		log.Info("registration socket made again: somebody had removed it", "socket", r.socket)
	}
	r.set(errNotRegistered) // as kubelet forgets a driver whose socket goes away
	return l
}

// GetInfo says what kubelet has found.
func (r *registration) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return &registerapi.PluginInfo{
		Type: registerapi.CSIPlugin, Name: r.driver, Endpoint: r.endpoint, SupportedVersions: []string{csiVersion},
	}, nil
}

// NotifyRegistrationStatus takes kubelet's verdict.
func (r *registration) NotifyRegistrationStatus(ctx context.Context, status *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	log := klog.FromContext(ctx)
	if status.GetPluginRegistered() {
		r.set(nil)
		log.Info("driver registered with kubelet", "driver", r.driver, "endpoint", r.endpoint)
	} else {
		err := fmt.Errorf("kubelet has refused to register the driver: %q; kubelet tries again", cut(printable(status.GetError()), maxText))
		r.set(err)
		log.Error(err, "driver not registered with kubelet", "driver", r.driver, "endpoint", r.endpoint)
	}
	return &registerapi.RegistrationStatusResponse{}, nil
}

// ownSocket knows the file that it made: another file of that name is somebody else's, and stays. Nil is no socket.
type ownSocket struct {
	*net.UnixListener
	path string
	file fs.FileInfo
}

func listenOwn(path string) (*ownSocket, error) {
	l, err := listen(path)
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // it unlinks whatever has the name
	file, err := os.Lstat(path)
	if err != nil {
		l.Close()
		return nil, err
	}
	return &ownSocket{UnixListener: l, path: path, file: file}, nil
}

func (s *ownSocket) exists() bool {
	if s == nil {
		return false
	}
	file, err := os.Lstat(s.path)
	return err == nil && os.SameFile(file, s.file)
}

func (s *ownSocket) remove() {
	if s.exists() {
		os.Remove(s.path)
	}
}

func (s *ownSocket) close() {
	if s != nil {
		s.Close()
	}
}
