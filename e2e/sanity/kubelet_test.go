// SPDX-License-Identifier: Apache-2.0

package sanity_test

import (
	"context"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// kubelet stands between the suite and the driver, and passes on every call and every answer as they are. What it adds to
// NodePublishVolume is what kubelet adds: who the pod is (getPodInfoAttrs in pkg/volume/csi/csi_util.go of Kubernetes).
type kubelet struct {
	podInfo map[string]string
	driver  *grpc.ClientConn
	// check is called after each NodePublishVolume that succeeded; its error is the suite's answer.
	check     func(target string) error
	publishes atomic.Int64
}

// serve serves on a socket until the test ends and returns its address.
func (k *kubelet) serve(t *testing.T, driver string) (endpoint string) {
	t.Helper()
	var err error
	if k.driver, err = grpc.NewClient(driver, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.driver.Close() })
	socket := filepath.Join(t.TempDir(), "csi.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	// The interceptor answers, so nobody calls the servers that are registered here.
	s := grpc.NewServer(grpc.UnaryInterceptor(k.pass))
	csi.RegisterIdentityServer(s, csi.UnimplementedIdentityServer{})
	csi.RegisterNodeServer(s, csi.UnimplementedNodeServer{})
	csi.RegisterControllerServer(s, csi.UnimplementedControllerServer{})
	csi.RegisterGroupControllerServer(s, csi.UnimplementedGroupControllerServer{})
	go s.Serve(l) //nolint:errcheck // ends with Stop
	t.Cleanup(s.Stop)
	return "unix://" + socket
}

func (k *kubelet) pass(ctx context.Context, req any, info *grpc.UnaryServerInfo, _ grpc.UnaryHandler) (any, error) {
	publish, ok := req.(*csi.NodePublishVolumeRequest)
	if ok {
		// Over what the suite sends, as kubelet does.
		if publish.VolumeContext == nil {
			publish.VolumeContext = map[string]string{}
		}
		maps.Copy(publish.VolumeContext, k.podInfo)
	}
	resp, err := answerOf(info.FullMethod)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	if err := k.driver.Invoke(ctx, info.FullMethod, req, resp); err != nil {
		return nil, err
	}
	if ok {
		k.publishes.Add(1)
		if err := k.check(publish.GetTargetPath()); err != nil {
			return nil, status.Errorf(codes.Internal, "the driver said that the volume is published, but %v", err)
		}
	}
	return resp, nil
}

// answerOf makes an empty answer of a method, "/csi.v1.Node/NodePublishVolume".
func answerOf(method string) (proto.Message, error) {
	name := protoreflect.FullName(strings.ReplaceAll(strings.TrimPrefix(method, "/"), "/", "."))
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
	if err != nil {
		return nil, err
	}
	m, ok := d.(protoreflect.MethodDescriptor)
	if !ok {
		return nil, fmt.Errorf("%s is no method", name)
	}
	answer, err := protoregistry.GlobalTypes.FindMessageByName(m.Output().FullName())
	if err != nil {
		return nil, err
	}
	return answer.New().Interface(), nil
}
