// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"errors"
	"syscall"

	"github.com/cilium/ebpf"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/bpfvol/bpfvol/dispatcher"
	"github.com/bpfvol/bpfvol/internal/claim"
	"github.com/bpfvol/bpfvol/internal/hook"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/node"
	"github.com/bpfvol/bpfvol/internal/podfs"
	"github.com/bpfvol/bpfvol/internal/volume"
	"github.com/bpfvol/bpfvol/loader"
	"github.com/bpfvol/bpfvol/verify"
)

// CodeOf returns the code of an error; it is the one place that knows codes.
//
// Codes are a contract with kubelet (isFinalError in pkg/volume/csi/csi_client.go). After Canceled, DeadlineExceeded,
// Unavailable, ResourceExhausted and Aborted it takes the volume for half-published and will call NodeUnpublishVolume.
// Every other code is final: kubelet forgets the volume, so nothing may be left. That is why ErrTeardown comes first
// whatever else the error says.
func CodeOf(err error) codes.Code {
	switch {
	case err == nil:
		return codes.OK
	case isAny(err, node.ErrTeardown, node.ErrBusy, node.ErrUnreadable, node.ErrNewer, image.ErrPulling):
		return codes.Aborted
	case isAny(err, errNotReady, image.ErrUnavailable, verify.ErrUnavailable):
		return codes.Unavailable
	case isAny(err, node.ErrConflict, errOtherVolume):
		return codes.AlreadyExists

	// A program that the verifier refuses for its size also says E2BIG, and no node will ever have room for it.
	case isAny(err, syscall.ENOMEM), isAny(err, syscall.E2BIG) && !as[*loader.VerifierError](err):
		return codes.ResourceExhausted
	case isAny(err, dispatcher.ErrFull, syscall.ENOSPC, syscall.EDQUOT, syscall.EMFILE, syscall.ENFILE):
		return codes.ResourceExhausted

	case as[*requestError](err), as[*volume.AttributeError](err), as[*claim.Error](err), as[*loader.VerifierError](err),
		isAny(err, podfs.ErrTargetPath, loader.ErrInvalid, image.ErrReference, image.ErrUnsupported, image.ErrNoObject,
			image.ErrAmbiguous, image.ErrPlatform, image.ErrTooLarge):
		return codes.InvalidArgument
	case as[*verify.DeniedError](err), isAny(err, image.ErrHostNotAllowed):
		return codes.PermissionDenied
	case isAny(err, image.ErrUnauthenticated):
		return codes.Unauthenticated
	case isAny(err, image.ErrDigestMismatch):
		return codes.DataLoss
	case isAny(err, node.ErrUnknownVolume, errNoVolume, image.ErrNotFound, image.ErrNotCached, loader.ErrNotFound):
		return codes.NotFound
	case isAny(err, hook.ErrMissing, hook.ErrUnfit, dispatcher.ErrMissing, dispatcher.ErrForeign, dispatcher.ErrMode, podfs.ErrTarget, podfs.ErrContext,
		syscall.EROFS, loader.ErrUnsupported, ebpf.ErrNotSupported):
		return codes.FailedPrecondition

	case isAny(err, context.Canceled):
		return codes.Canceled
	case isAny(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	}
	if s, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		return s.GRPCStatus().Code() // gRPC's own: a method that we don't have
	}
	return codes.Internal
}

// expected says whether a code is an answer to the caller rather than a fault of ours.
func expected(c codes.Code) bool { return c != codes.Internal }

// toStatus is err as kubelet and, in the pod's events, the user see it. The specification wants no details in it.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	return status.Error(CodeOf(err), message(err))
}

func isAny(err error, targets ...error) bool {
	for _, t := range targets {
		if errors.Is(err, t) {
			return true
		}
	}
	return false
}

func as[T error](err error) bool {
	_, ok := errors.AsType[T](err)
	return ok
}
