// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"
	"k8s.io/klog/v2/textlogger"

	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/node"
	"github.com/bpfvol/bpfvol/loader"
)

// bufferedLog is a logger at the verbosity that shows everything we log, and what it has logged.
func bufferedLog(t *testing.T) (klog.Logger, ktesting.Buffer) {
	t.Helper()
	log := ktesting.NewLogger(t, ktesting.NewConfig(ktesting.Verbosity(4), ktesting.BufferLogs(true)))
	return log, log.GetSink().(ktesting.Underlier).GetBuffer()
}

func TestPanicIsUndone(t *testing.T) {
	for _, c := range []struct {
		name string
		undo func() error
		want codes.Code
	}{
		{"undone: final", func() error { return nil }, codes.Internal},
		{"not undone: kubelet will unpublish", func() error { return errors.New("busy") }, codes.Aborted},
		{"undo panics, too", func() error { panic("again") }, codes.Aborted},
	} {
		t.Run(c.name, func(t *testing.T) {
			var undone []string
			engine := &fakeEngine{
				publish: func(context.Context, node.Request) error { panic("boom") },
				unpublish: func(ctx context.Context, id, target string) error {
					undone = append(undone, id+" "+target)
					return c.undo()
				},
			}
			log, logged := bufferedLog(t)
			r := serve(t, log, Options{Engine: engine})
			_, err := r.node().NodePublishVolume(t.Context(), validRequest())
			if got := status.Code(err); got != c.want {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if diff := cmp.Diff([]string{"csi-6ee1 " + testTarget}, undone); diff != "" {
				t.Error(diff)
			}
			if strings.Contains(err.Error(), "goroutine") {
				t.Errorf("stack in the message: %v", err)
			}
			if c.want == codes.Internal && !strings.Contains(logged.String(), "TestPanicIsUndone") {
				t.Errorf("no stack in the log:\n%s", logged)
			}
			if _, err := r.identity().Probe(t.Context(), &csi.ProbeRequest{}); err != nil {
				t.Errorf("the server does not answer after a panic: %v", err)
			}
		})
	}
}

func TestLogNamesMethodVolumePodAndCode(t *testing.T) {
	engine := &fakeEngine{publish: func(ctx context.Context, _ node.Request) error {
		klog.FromContext(ctx).Info("engine at work")
		return image.ErrNotFound
	}}
	log, logged := bufferedLog(t)
	r := serve(t, log, Options{Engine: engine})
	_, _ = r.node().NodePublishVolume(t.Context(), validRequest())
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"engine at work", "call refused"} {
		got := lineWith(t, logged.String(), line)
		for _, want := range []string{`method="NodePublishVolume"`, `volume="csi-6ee1"`, `pod="shop/web-0"`} {
			if !strings.Contains(got, want) {
				t.Errorf("%s: no %s in %q", line, want, got)
			}
		}
	}
	if got := lineWith(t, logged.String(), "call refused"); !strings.Contains(got, `code="NotFound"`) || !strings.Contains(got, "duration=") {
		t.Errorf("no code or duration in %q", got)
	}
}

func lineWith(t *testing.T, log, part string) string {
	t.Helper()
	for line := range strings.Lines(log) {
		if strings.Contains(line, part) {
			return line
		}
	}
	t.Fatalf("no line with %q in\n%s", part, log)
	return ""
}

func TestLogHidesSecrets(t *testing.T) {
	var text strings.Builder
	log := textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(&text), textlogger.Verbosity(10)))
	r := serve(t, log, Options{Engine: &fakeEngine{}, Controller: true})
	create := claimed(func(req *csi.CreateVolumeRequest) { req.Secrets = map[string]string{"password": "hunter1"} })
	if _, err := csi.NewControllerClient(r.conn).CreateVolume(t.Context(), create); err != nil {
		t.Fatal(err)
	}
	req := validRequest()
	req.Secrets = map[string]string{".dockerconfigjson": `{"auths": {"ghcr.io": {"username": "hunter", "password": "hunter2"}}}`}
	req.VolumeContext["csi.storage.k8s.io/serviceAccount.tokens"] = `{"": {"token": "hunter3"}}`
	req.VolumeContext["csi.storage.k8s.io/of.a.later.version"] = "hunter4"
	req.VolumeContext["variables"] = strings.Repeat("x", 100_000)
	if _, err := r.node().NodePublishVolume(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	req.VolumeCapability.GetMount().MountFlags = []string{"password=hunter5"}
	if _, err := r.node().NodePublishVolume(t.Context(), req); err == nil {
		t.Fatal("mount flags were taken")
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	got := text.String()
	if strings.Contains(got, "hunter") {
		t.Errorf("the log tells a secret:\n%s", got)
	}
	if strings.Count(got, "ghcr.io/acme/count:v1") < 3 {
		t.Errorf("the log does not show the requests:\n%s", got)
	}
	if len(got) > 10_000 {
		t.Errorf("three calls fill %d bytes of log", len(got))
	}
}

// The event has one line of what the verifier wrote; who wrote the program needs it all.
func TestVerifierLogIsLogged(t *testing.T) {
	const lines = 200_000
	rejected := &loader.VerifierError{Program: "count", Line: "invalid access", Log: strings.Repeat("0: r0 = 0\n", lines) + "invalid access"}
	engine := &fakeEngine{publish: func(context.Context, node.Request) error { return fmt.Errorf("load: %w", rejected) }}
	var text strings.Builder
	r := serve(t, textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(&text))), Options{Engine: engine})
	_, err := r.node().NodePublishVolume(t.Context(), validRequest())
	if got := status.Code(err); got != codes.InvalidArgument {
		t.Errorf("got %v, want InvalidArgument", err)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if got := text.String(); strings.Count(got, "0: r0 = 0") != lines || !strings.Contains(got, "invalid access") {
		t.Errorf("the log lacks part of the verifier's: %.1000s", got)
	}
}
