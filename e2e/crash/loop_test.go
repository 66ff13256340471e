// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"context"
	"errors"
	"flag"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bpfvol/bpfvol/e2e/kubelet"
	"github.com/bpfvol/bpfvol/e2e/nodetest"
)

var seed = flag.Uint64("seed", uint64(time.Now().UnixNano()), "of the moments at which the daemon is killed")

// Each pod is a publish and an unpublish.
const (
	loopPods     = 100
	loopSample   = 10 // without -all
	loopAtOnce   = 4
	loopConverge = 30 * time.Second
)

// Pods come and go while the daemon is killed every 50 to 500 ms, whether it answers already or not. Kubelet tries again and
// again. Soon after nobody kills the daemon any more, every pod has come and gone, and nothing is left.
func TestKilledAgainAndAgain(t *testing.T) {
	w := newWorld(t, plain)
	w.settleNeighbour(t)
	w.settle(t)
	t.Logf("the same moments again: -seed %d", *seed)
	count := loopPods
	if !*all {
		count = loopSample
	}
	flow, before := w.traffic(t), w.rest(t)

	pods := make(chan *nodetest.Volume)
	var nodes sync.WaitGroup
	for range loopAtOnce {
		nodes.Go(func() {
			for v := range pods {
				comeAndGo(t, v)
			}
		})
	}
	begun := make(chan struct{})
	go func() {
		defer close(begun)
		defer close(pods)
		for range count {
			pods <- w.volume(everywhere)
		}
	}()

	w.StopDaemon(t, syscall.SIGKILL)
	kills := 0
	random := rand.New(rand.NewPCG(*seed, 0))
	for killing := true; killing; kills++ {
		life := 50*time.Millisecond + time.Duration(random.Int64N(int64(450*time.Millisecond)))
		ctx, cancel := context.WithTimeout(t.Context(), life)
		// It may be killed before it answers, so this may fail.
		_, _ = w.Stack.StartDaemon(ctx)
		select {
		case <-ctx.Done():
		case <-begun:
			killing = false
		}
		cancel()
		w.StopDaemon(t, syscall.SIGKILL)
	}
	end := time.Now()
	if _, err := w.Stack.StartDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	nodes.Wait()
	w.want(t, "in the end", before)
	if took := time.Since(end); took > loopConverge {
		t.Errorf("%v after the last kill everything is as it was, want at most %v", took, loopConverge)
	} else {
		t.Logf("the daemon was killed %d times while %d pods came and went; %v after that everything was as before", kills, count, took.Round(time.Millisecond))
	}
	w.wantAllCounted(t, flow)
}

// comeAndGo is kubelet for a pod that is deleted as soon as it runs. It waits between two tries, if less than the half second
// and more of the real one.
func comeAndGo(t *testing.T, v *nodetest.Volume) {
	for _, call := range []func(context.Context) error{v.SetUp, v.TearDown} {
		for err := call(t.Context()); err != nil; err = call(t.Context()) {
			// That the daemon died must not look like an answer.
			if failed, ok := errors.AsType[*kubelet.MountError](err); ok && failed.Final() {
				t.Error(err)
				return
			}
			select {
			case <-time.After(20 * time.Millisecond):
			case <-t.Context().Done():
				return
			}
		}
	}
}
