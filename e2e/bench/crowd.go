// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/bpfvol/bpfvol/e2e/kubelet"
)

const (
	recoverVolumes = 500
	recoverRounds  = 5

	churnVolumes = 500
	churnAtOnce  = 16
)

// entered are system calls whose tracepoint takes volumes in turn: the kernel takes 64 programs at one.
var entered = []string{"execve", "execveat", "getpgid", "setpgid", "getsid", "setsid", "getpriority", "setpriority", "acct", "swapon"}

func onEnter(n int) string {
	return "- program: on_exec\n  tracepoint: syscalls/sys_enter_" + entered[n%len(entered)] + "\n"
}

// recovery kills the daemon of a node with 500 volumes, and times its start until it answers kubelet.
func (b *bench) recovery(ctx context.Context) (err error) {
	image, err := b.image(ctx, "recover")
	if err != nil {
		return err
	}
	pods := make([]kubelet.Pod, recoverVolumes)
	for i := range pods {
		pods[i] = b.pod()
	}
	defer func() {
		err = errors.Join(err, atOnce(churnAtOnce, pods, func(_ int, pod kubelet.Pod) error {
			return b.kubelet.TearDown(context.WithoutCancel(ctx), pod, "bpf")
		}))
	}()
	if err := atOnce(churnAtOnce, pods, func(i int, pod kubelet.Pod) error { return b.publish(ctx, pod, image, onEnter(i)) }); err != nil {
		return err
	}
	var samples []time.Duration
	for range recoverRounds {
		if err := b.StopDaemon(syscall.SIGKILL); err != nil {
			return err
		}
		ready, err := b.StartDaemon(ctx)
		if err != nil {
			return err
		}
		samples = append(samples, ready)
	}
	figure("recover.500_volumes_ms", median(samples), "ms")
	return nil
}

// churn publishes and unpublishes what is cached, as many at once as a busy node's kubelet. A first round makes the daemon as
// large as that makes it; what the second one adds would be added by every further one.
func (b *bench) churn(ctx context.Context) error {
	image, err := b.image(ctx, "churn")
	if err != nil {
		return err
	}
	if _, err := b.churned(ctx, image); err != nil {
		return err
	}
	memory, files, err := b.size()
	if err != nil {
		return err
	}
	samples, err := b.churned(ctx, image)
	if err != nil {
		return err
	}
	memoryAfter, filesAfter, err := b.size()
	if err != nil {
		return err
	}
	slices.Sort(samples)
	figure("churn.p50_publish_ms", milliseconds(samples[len(samples)/2]), "ms")
	figure("churn.p99_publish_ms", milliseconds(samples[len(samples)*99/100]), "ms")
	figure("churn.rss_growth_mib", memoryAfter-memory, "MiB")
	figure("churn.fd_growth", float64(filesAfter-files), "files")
	return nil
}

// churned is how long each publish took.
func (b *bench) churned(ctx context.Context, image string) ([]time.Duration, error) {
	pods := make([]kubelet.Pod, churnVolumes)
	for i := range pods {
		pods[i] = b.pod()
	}
	samples := make([]time.Duration, churnVolumes)
	return samples, atOnce(churnAtOnce, pods, func(i int, pod kubelet.Pod) error {
		start := time.Now()
		if err := b.publish(ctx, pod, image, onTracepoint); err != nil {
			return err
		}
		samples[i] = time.Since(start)
		return b.kubelet.TearDown(ctx, pod, "bpf")
	})
}

// size is the daemon's memory in MiB, and how many files it has open.
func (b *bench) size() (memory float64, files int, err error) {
	if memory, err = b.rss(); err != nil {
		return 0, 0, err
	}
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", b.DaemonPID()))
	return memory, len(open), err
}

// atOnce calls do for each pod, n at once, and goes on past errors.
func atOnce(n int, pods []kubelet.Pod, do func(i int, pod kubelet.Pod) error) error {
	var calls errgroup.Group
	calls.SetLimit(n)
	var mu sync.Mutex
	var errs []error
	for i, pod := range pods {
		calls.Go(func() error {
			if err := do(i, pod); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			}
			return nil
		})
	}
	return errors.Join(calls.Wait(), errors.Join(errs...))
}
