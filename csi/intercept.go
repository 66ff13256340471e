// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"errors"
	"path"
	"time"

	"google.golang.org/grpc"
	"k8s.io/klog/v2"

	"github.com/bpfvol/bpfvol/internal/panics"
	"github.com/bpfvol/bpfvol/loader"
)

// intercept wraps every call: the context carries a logger that knows what the call is about, a panic becomes an
// error, and the error becomes a status. Errors are logged here and nowhere below.
func intercept(base klog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		start := time.Now()
		log := klog.LoggerWithValues(base, about(path.Base(info.FullMethod), req)...)
		log.V(4).Info("call received", "request", shown(req))

		var resp any
		err := panics.Catch(func() (err error) {
			resp, err = handler(klog.NewContext(ctx, log), req)
			return err
		})
		logEnd(log, err, time.Since(start))
		if err != nil {
			return nil, toStatus(err)
		}
		return resp, nil
	}
}

// about is what every line of a call's log says.
func about(method string, req any) []any {
	values := []any{"method", method}
	if r, ok := req.(interface{ GetVolumeId() string }); ok {
		values = append(values, "volume", r.GetVolumeId())
	}
	if r, ok := req.(interface{ GetVolumeContext() map[string]string }); ok {
		pod := podOf(r.GetVolumeContext())
		values = append(values, "pod", klog.KRef(pod.Namespace, pod.Name))
	}
	return values
}

func logEnd(log klog.Logger, err error, took time.Duration) {
	code := CodeOf(err)
	if err == nil {
		log.V(2).Info("call done", "code", code.String(), "duration", took)
		return
	}
	if v, ok := errors.AsType[*loader.VerifierError](err); ok {
		log.Info("program rejected by the verifier", "program", v.Program, "log", v.Log) // bounded by the loader
	}
	if expected(code) {
		log.V(2).Info("call refused", "code", code.String(), "duration", took, "err", err)
		return
	}
	values := []any{"code", code.String(), "duration", took}
	if p, ok := errors.AsType[*panics.Error](err); ok {
		values = append(values, "stack", string(p.Stack))
	}
	log.Error(err, "call failed", values...)
}
