// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
)

// The holder removes its file when it unlocks, so who opened that file before may lock what nobody else can see.
func TestLockHasOneHolder(t *testing.T) {
	l := locks{dir: t.TempDir()}
	var inside, together, held atomic.Int32
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for range 2000 {
				unlock, err := l.try("volume")
				if errors.Is(err, ErrBusy) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				held.Add(1)
				together.Store(max(together.Load(), inside.Add(1)))
				runtime.Gosched()
				inside.Add(-1)
				unlock()
			}
		})
	}
	all.Wait()
	if got := together.Load(); got != 1 {
		t.Errorf("%d holders at once, of %d in all", got, held.Load())
	}
}
