// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/bpfvol/bpfvol/e2e/hostile"
	"github.com/bpfvol/bpfvol/e2e/kubelet"
	"github.com/bpfvol/bpfvol/e2e/stack"
	"github.com/bpfvol/bpfvol/verify/cosign/cosigntest"
)

const (
	pulls      = 100
	pullAtOnce = 50
)

// benchTrust is what those cost who push images and write pods, on a node of their own.
func benchTrust(ctx context.Context, bpfvol string) (err error) {
	corpus, volumes := hostile.Volumes()
	counter := &pullCounter{}
	s, err := stack.New(stack.Options{Bin: bpfvol, Registry: func(good http.Handler) http.Handler {
		return counter.before(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, "/v2/open/") || strings.HasPrefix(r.URL.Path, "/v2/signed/") {
				corpus.ServeHTTP(w, r)
				return
			}
			good.ServeHTTP(w, r)
		}))
	}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	b := &bench{Stack: s}
	if err := b.policy(); err != nil {
		return err
	}
	if err := b.hostilePolicies(); err != nil {
		return err
	}
	if _, err := s.StartDaemon(ctx); err != nil {
		return err
	}
	if b.kubelet, err = kubelet.Connect(ctx, s.Endpoint(), s.KubeletDir()); err != nil {
		return err
	}
	defer b.kubelet.Close()
	if err := b.pulls(ctx, counter); err != nil {
		return err
	}
	if err := b.hostile(ctx, volumes); err != nil {
		return err
	}
	return s.StopDaemon(syscall.SIGTERM)
}

// hostilePolicies want the signature of an identity, too, so that certificates are read.
func (b *bench) hostilePolicies() error {
	key, err := os.ReadFile(b.KeyPrefix() + ".pub")
	if err != nil {
		return err
	}
	root := filepath.Join(b.Dir, "trusted_root.json")
	if err := os.WriteFile(root, cosigntest.New().TrustedRoot(), 0o644); err != nil {
		return err
	}
	text := fmt.Sprintf(`
apiVersion: bpfvol.io/v1alpha1
kind: BytecodePolicy
metadata: {name: open}
spec: {images: ["%[1]s/open/**"], unsigned: true, subjects: ["*"]}
---
apiVersion: bpfvol.io/v1alpha1
kind: BytecodePolicy
metadata: {name: signed}
spec:
  images: ["%[1]s/signed/**"]
  subjects: ["*"]
  authorities:
  - {keyless: {issuer: "https://issuer.test", subject: me@acme.test}, trustedRoot: {file: %[2]s}}
  - {key: {data: %[3]q}}
`, b.Registry, root, key)
	return os.WriteFile(filepath.Join(b.PolicyDir(), "hostile.yaml"), []byte(text), 0o644)
}

// hostile publishes everything that package hostile has and reads how much memory the daemon ever had. With BENCH_VERBOSE
// it tells after each volume how much it had until then, how much it has, and the answer.
func (b *bench) hostile(ctx context.Context, volumes map[string]map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(volumes)) {
		attributes := maps.Clone(volumes[name])
		attributes["image"] = b.Registry + "/" + attributes["image"]
		pod := b.pod()
		_, err := b.kubelet.SetUp(ctx, pod, kubelet.Volume{Name: "bpf", Attributes: attributes})
		var refused *kubelet.MountError
		if err != nil && !errors.As(err, &refused) {
			return fmt.Errorf("%s: %w", name, err)
		}
		if os.Getenv("BENCH_VERBOSE") != "" {
			peak, _ := b.memory("VmHWM:")
			now, _ := b.memory("VmRSS:")
			fmt.Fprintf(os.Stderr, "%6.1f %6.1f %-35s %.150v\n", peak, now, name, err)
		}
		if err := b.kubelet.TearDown(ctx, pod, "bpf"); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	peak, err := b.memory("VmHWM:")
	if err != nil {
		return err
	}
	figure("rss.hostile_mib", peak, "MiB")
	return nil
}

// pulls publishes an image that the node does not know for many pods, half of them at once.
func (b *bench) pulls(ctx context.Context, counter *pullCounter) error {
	image, err := b.image(ctx, "pulls")
	if err != nil {
		return err
	}
	counter.most("/v2/bench/count/") // those of the push
	pods := make([]kubelet.Pod, pulls)
	for i := range pods {
		pods[i] = b.pod()
	}
	for some := range slices.Chunk(pods, pullAtOnce) {
		for _, call := range []func(pod kubelet.Pod) error{
			func(pod kubelet.Pod) error { return b.publish(ctx, pod, image, onTracepoint) },
			func(pod kubelet.Pod) error { return b.kubelet.TearDown(ctx, pod, "bpf") },
		} {
			var wg sync.WaitGroup
			errs := make([]error, len(some))
			for i, pod := range some {
				wg.Go(func() { errs[i] = call(pod) })
			}
			wg.Wait()
			if err := errors.Join(errs...); err != nil {
				return err
			}
		}
	}
	figure("pulls", float64(counter.most("/v2/bench/count/")), "pulls")
	return nil
}

// pullCounter counts what is read from a registry.
type pullCounter struct {
	mu   sync.Mutex
	read map[string]int // by path
}

func (c *pullCounter) before(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			c.mu.Lock()
			if c.read == nil {
				c.read = map[string]int{}
			}
			c.read[r.URL.Path]++
			c.mu.Unlock()
		}
		next.ServeHTTP(w, r)
	})
}

// most is how often the document below prefix that was read most often was read, since the last call.
func (c *pullCounter) most(prefix string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	most := 0
	for path, n := range c.read {
		if strings.HasPrefix(path, prefix) {
			most = max(most, n)
		}
	}
	c.read = nil
	return most
}
