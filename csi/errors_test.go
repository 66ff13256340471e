// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/cilium/ebpf"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/bpfvol/bpfvol/dispatcher"
	"github.com/bpfvol/bpfvol/internal/claim"
	"github.com/bpfvol/bpfvol/internal/hook"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/node"
	"github.com/bpfvol/bpfvol/internal/panics"
	"github.com/bpfvol/bpfvol/internal/podfs"
	"github.com/bpfvol/bpfvol/internal/volume"
	"github.com/bpfvol/bpfvol/loader"
	"github.com/bpfvol/bpfvol/verify"
)

// TestCodes is the table of the design, a line for each condition.
func TestCodes(t *testing.T) {
	for _, c := range []struct {
		condition string
		err       error
		want      codes.Code
	}{
		{"nothing wrong", nil, codes.OK},

		{"unknown key, malformed attribute", &volume.AttributeError{Key: "programs"}, codes.InvalidArgument},
		{"bad parameter of a class", &claim.Error{Field: "parameters"}, codes.InvalidArgument},
		{"bad capability", &requestError{"fsType", "ext4"}, codes.InvalidArgument},
		{"target path", podfs.ErrTargetPath, codes.InvalidArgument},
		{"malformed reference", image.ErrReference, codes.InvalidArgument},
		{"image of a kind we don't read", image.ErrUnsupported, codes.InvalidArgument},
		{"bad ELF, unknown variable", loader.ErrInvalid, codes.InvalidArgument},
		{"no object", image.ErrNoObject, codes.InvalidArgument},
		{"two objects", image.ErrAmbiguous, codes.InvalidArgument},
		{"wrong architecture", image.ErrPlatform, codes.InvalidArgument},
		{"over a limit", image.ErrTooLarge, codes.InvalidArgument},
		{"verifier rejection", &loader.VerifierError{}, codes.InvalidArgument},

		{"no usable policy, unsigned, untrusted signer, violation, rw", &verify.DeniedError{}, codes.PermissionDenied},
		{"host not allowed", image.ErrHostNotAllowed, codes.PermissionDenied},
		{"registry 401, 403", image.ErrUnauthenticated, codes.Unauthenticated},

		{"image, tag not found", image.ErrNotFound, codes.NotFound},
		{"Never and not cached", image.ErrNotCached, codes.NotFound},
		{"program, map not found", loader.ErrNotFound, codes.NotFound},
		{"volume not found", node.ErrUnknownVolume, codes.NotFound},

		{"volume that the controller never made", errNoVolume, codes.NotFound},

		{"same name, other parameters or capacity", errOtherVolume, codes.AlreadyExists},
		{"same volume and target, other arguments", node.ErrConflict, codes.AlreadyExists},

		{"operation in flight on this volume", node.ErrBusy, codes.Aborted},
		{"pull still running", image.ErrPulling, codes.Aborted},
		{"pull still running at the deadline", errors.Join(image.ErrPulling, context.DeadlineExceeded), codes.Aborted},
		{"record that cannot be read", node.ErrUnreadable, codes.Aborted},
		{"record of a newer version", node.ErrNewer, codes.Aborted},
		{"teardown failed", node.ErrTeardown, codes.Aborted},
		{"teardown failed after a final error", errors.Join(node.ErrTeardown, &verify.DeniedError{}), codes.Aborted},
		{"teardown failed without memory", errors.Join(node.ErrTeardown, syscall.ENOMEM), codes.Aborted},

		{"registry 429, 5xx, DNS, cut body", image.ErrUnavailable, codes.Unavailable},
		{"registry timeout", errors.Join(image.ErrUnavailable, context.DeadlineExceeded), codes.Unavailable},
		{"API server away", verify.ErrUnavailable, codes.Unavailable},
		{"API server slow", errors.Join(verify.ErrUnavailable, context.DeadlineExceeded), codes.Unavailable},
		{"recovery not done", errNotReady, codes.Unavailable},

		{"no slot left", &dispatcher.FullError{}, codes.ResourceExhausted},
		{"ENOMEM", syscall.ENOMEM, codes.ResourceExhausted},
		{"ENOMEM while the verifier runs", errors.Join(&loader.VerifierError{}, syscall.ENOMEM), codes.ResourceExhausted},
		{"E2BIG", syscall.E2BIG, codes.ResourceExhausted},
		{"program too large for the verifier", errors.Join(&loader.VerifierError{}, syscall.E2BIG), codes.InvalidArgument},
		{"disk full", syscall.ENOSPC, codes.ResourceExhausted},
		{"quota", syscall.EDQUOT, codes.ResourceExhausted},
		{"no file descriptor left", syscall.EMFILE, codes.ResourceExhausted},

		{"kernel feature missing", loader.ErrUnsupported, codes.FailedPrecondition},
		{"kernel feature missing at a hook", ebpf.ErrNotSupported, codes.FailedPrecondition},
		{"interface missing", &dispatcher.InterfaceError{}, codes.FailedPrecondition},
		{"tracepoint, symbol missing", &hook.MissingError{}, codes.FailedPrecondition},
		{"hook that the kernel refuses", &hook.RefusedError{Err: syscall.EPERM}, codes.FailedPrecondition},
		{"something else than a hook needs", hook.ErrUnfit, codes.FailedPrecondition},
		{"foreign program", &dispatcher.ForeignError{}, codes.FailedPrecondition},
		{"state directory read-only", syscall.EROFS, codes.FailedPrecondition},
		{"target is another filesystem or a symlink", podfs.ErrTarget, codes.FailedPrecondition},

		{"bytes differ from their digest", image.ErrDigestMismatch, codes.DataLoss},

		{"caller gone", context.Canceled, codes.Canceled},
		{"deadline", context.DeadlineExceeded, codes.DeadlineExceeded},
		{"panic", &panics.Error{Value: "boom"}, codes.Internal},
		{"method we don't have", status.Error(codes.Unimplemented, "method NodeStageVolume not implemented"), codes.Unimplemented},
		{"anything else", errors.New("unheard of"), codes.Internal},
		{"a status of another service", fmt.Errorf("x: %w", status.Error(codes.NotFound, "y")), codes.Internal},
	} {
		t.Run(c.condition, func(t *testing.T) {
			if got := CodeOf(c.err); got != c.want {
				t.Errorf("CodeOf(%v) = %v, want %v", c.err, got, c.want)
			}
			if _, ours := c.err.(interface{ GRPCStatus() *status.Status }); c.err == nil || ours {
				return
			}
			if got := CodeOf(fmt.Errorf("image x: %w; do this", c.err)); got != c.want {
				t.Errorf("wrapped: CodeOf = %v, want %v", got, c.want)
			}
		})
	}
}

func TestMessage(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"plain", "image x: not found", "image x: not found"},
		{"lines and controls", "a\nb\r\n\tc\x00d\x1b[31me\u0085f", "a b c d [31me f"},
		{"direction overrides", "abc\u202edef\u2066g", "abc def g"},
		{"not UTF-8", "a\xff\xfeb", "a\uFFFDb"},
		{"other languages", "Schlüssel 鍵", "Schlüssel 鍵"},
		{"at the limit", strings.Repeat("x", 700), strings.Repeat("x", 700)},
		{"over it", strings.Repeat("x", 701), strings.Repeat("x", 697) + "…"},
		{"cut inside a character", strings.Repeat("x", 696) + "鍵鍵", strings.Repeat("x", 696) + "…"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := message(errors.New(c.text)); got != c.want {
				t.Errorf("message(%q) = %q, want %q", c.text, got, c.want)
			}
		})
	}
}

func FuzzMessage(f *testing.F) {
	f.Add("a\nb")
	f.Add(strings.Repeat("鍵", 300))
	f.Add("\xff\u202e")
	f.Fuzz(func(t *testing.T, text string) {
		got := message(errors.New(text))
		if len(got) > maxText || !utf8.ValidString(got) {
			t.Errorf("message(%q) = %d bytes, valid UTF-8: %v", text, len(got), utf8.ValidString(got))
		}
		if i := strings.IndexFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
			t.Errorf("message(%q) = %q: not printable at %d", text, got, i)
		}
		s := status.Convert(toStatus(errors.New(text)))
		if len(s.Details()) != 0 {
			t.Errorf("status has details: %v", s.Details())
		}
	})
}
