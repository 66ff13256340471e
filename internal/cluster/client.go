// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"syscall"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
)

// ErrNoCluster means that this process runs in no pod and was given no kubeconfig.
var ErrNoCluster = errors.New("no cluster")

const (
	// callsPerSecond bounds what one node asks the API server, which has fairness of its own; a burst is a node that
	// starts its pods after a reboot.
	callsPerSecond = 50
	callsAtOnce    = 200
	// answerIn bounds each call but the watch. kubelet asks again, so a short wait loses nothing.
	answerIn = 5 * time.Second
)

var (
	policyResource = schema.GroupVersionResource{Group: v1alpha1.Group, Version: "v1alpha1", Resource: v1alpha1.Resource}
	reviewResource = schema.GroupVersionResource{Group: "authorization.k8s.io", Version: "v1", Resource: "subjectaccessreviews"}
	eventResource  = schema.GroupVersionResource{Version: "v1", Resource: "events"}
)

// Client is a way to an API server. It speaks JSON without typed clients: their types alone would cost an idle daemon a
// tenth of its memory.
type Client struct{ api dynamic.Interface }

// Connect prepares the way to the API server of a kubeconfig file or, without one, of the pod that this process runs in.
// The server need not answer yet.
func Connect(kubeconfig, userAgent string) (*Client, error) {
	config, err := Config(kubeconfig, userAgent)
	if err != nil {
		return nil, err
	}
	api, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("API server: %w", err)
	}
	return &Client{api}, nil
}

// Config is the way as client-go writes it down. ErrNoCluster if there is none.
func Config(kubeconfig, userAgent string) (*rest.Config, error) {
	config, err := configOf(kubeconfig)
	if err != nil {
		return nil, err
	}
	config.UserAgent = userAgent
	config.QPS, config.Burst = callsPerSecond, callsAtOnce
	return config, nil
}

func configOf(kubeconfig string) (*rest.Config, error) {
	if kubeconfig != "" {
		config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
		if err != nil {
			return nil, fmt.Errorf("kubeconfig %s: %w", kubeconfig, err)
		}
		return config, nil
	}
	config, err := rest.InClusterConfig()
	if errors.Is(err, rest.ErrNotInCluster) {
		return nil, ErrNoCluster
	}
	if err != nil {
		return nil, fmt.Errorf("API server of this pod: %w", err)
	}
	return config, nil
}

// reason says why the API server gave no answer, in words that are the same each time: no local ports, no request ids.
func reason(err error) string {
	var answer apierrors.APIStatus
	var dns *net.DNSError
	var timeout net.Error
	var errno syscall.Errno
	var op *net.OpError
	var request *url.Error
	switch {
	case errors.As(err, &answer):
		return answered(answer, err)
	case errors.As(err, &dns):
		return "its host name cannot be looked up"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "no answer in time"
	case errors.As(err, &errno):
		return errno.Error()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "its answer was cut off"
	case errors.As(err, &op):
		err = op.Err // the error itself names the local port
	case errors.As(err, &request):
		err = request.Err // the error itself repeats the question, with times in it
	}
	cause, _, _ := strings.Cut(err.Error(), ";") // HTTP/2 counts its streams there
	return fmt.Sprintf("%.120q", cause)
}

// answered is reason for an answer that is an error.
func answered(answer apierrors.APIStatus, err error) string {
	status := answer.Status()
	switch {
	case apierrors.IsUnauthorized(err):
		return "it does not know the credentials of bpfvol"
	case apierrors.IsForbidden(err):
		return "it does not let bpfvol ask; bind the ClusterRole of deploy/rbac.yaml"
	case apierrors.IsNotFound(err):
		return "it does not know the kind of object; install deploy/crd"
	}
	return fmt.Sprintf("it answered %d %s", status.Code, status.Reason)
}
