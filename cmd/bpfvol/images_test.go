// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"
)

func TestOnlyLongWorkIsAnnounced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var stderr bytes.Buffer
		done := announce(&stderr, "pulling %s", "x")
		time.Sleep(patience / 2)
		done()
		time.Sleep(2 * patience)
		if stderr.Len() > 0 {
			t.Errorf("fast work printed %q", stderr.String())
		}
		done = announce(&stderr, "pulling %s", "x")
		time.Sleep(2 * patience)
		done()
		if got, want := stderr.String(), "pulling x ...\n"; got != want {
			t.Errorf("long work printed %q, want %q", got, want)
		}
	})
}
