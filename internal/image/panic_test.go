// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"testing"

	"github.com/bpfvol/bpfvol/internal/panics"
)

// What a library lets slip while it reads what a registry sent fails that pull alone, on whichever goroutine it was.
func TestPanicEndsOnePull(t *testing.T) {
	s, err := Open(Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	for name, pull := range map[string]func(context.Context) (string, error){
		"the pull's own": func(context.Context) (string, error) { panic("boom") },
		"one beside it": func(ctx context.Context) (string, error) {
			g, _ := newGroup(ctx)
			g.Go(func() error { panic("boom") })
			return "", g.Wait()
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := once(t.Context(), s, pull, "image")
			caught, ok := errors.AsType[*panics.Error](err)
			if !ok || caught.Value != "boom" || len(caught.Stack) == 0 {
				t.Errorf("got %v", err)
			}
			got, err := once(t.Context(), s, func(context.Context) (string, error) { return "pulled", nil }, "image")
			if err != nil || got != "pulled" {
				t.Errorf("the next pull: %q, %v", got, err)
			}
		})
	}
}
