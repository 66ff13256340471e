// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// probeTimeout is how long a driver that hangs is waited for.
const probeTimeout = 5 * time.Second

// Probe calls the driver on its socket, the way kubelet does, and is an error when there is no answer: the socket was
// removed, say, or nobody accepts. A driver that recovers answers, so it is no error.
func Probe(ctx context.Context, endpoint string) error {
	path, err := socketPath(endpoint)
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient("passthrough:///driver",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}),
	)
	if err != nil {
		return fmt.Errorf("endpoint %s: %w", endpoint, err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	if _, err := csi.NewIdentityClient(conn).Probe(ctx, &csi.ProbeRequest{}); err != nil {
		return fmt.Errorf("endpoint %s: no answer: %s", endpoint, message(err))
	}
	return nil
}
