// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bpfvol/bpfvol/internal/bpftest"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// To who has CAP_SYS_ADMIN, links need no CAP_NET_ADMIN. Netlink does, by which clsact is used.
func TestOnlyClsactTakesNetAdmin(t *testing.T) {
	eachCarrier(t, func(t *testing.T, w *world) {
		prog, _ := w.program(t, "pass", carriers[w.carrier].pass)
		err := w.here.Do(func() error {
			if err := bpftest.GiveUp(unix.CAP_NET_ADMIN); err != nil {
				return err
			}
			_, err := w.Attach(context.Background(), w.point, volume.XDPAuto, first, prog)
			return err
		})
		if carriers[w.carrier].classic {
			if !errors.Is(err, os.ErrPermission) {
				t.Errorf("attach without CAP_NET_ADMIN: %v, want that it is not permitted", err)
			}
		} else if err != nil {
			t.Errorf("attach without CAP_NET_ADMIN: %v", err)
		}
		w.mustDetach(t, first.Volume)
	})
}
