// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/bpfvol/bpfvol/internal/panics"
)

// group is an errgroup whose goroutines read what a registry sends: a panic is their error, not the end of the daemon.
type group struct{ *errgroup.Group }

func newGroup(ctx context.Context) (group, context.Context) {
	g, ctx := errgroup.WithContext(ctx)
	return group{g}, ctx
}

func (g group) Go(f func() error) {
	g.Group.Go(func() error { return panics.Catch(f) })
}
