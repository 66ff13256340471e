// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/e2e/gobuild"
	"github.com/bpfvol/bpfvol/e2e/kubelet"
	"github.com/bpfvol/bpfvol/e2e/stack"
)

const (
	benchNS = "bpfvol-bench"

	warmRounds  = 50
	coldRounds  = 20
	manyVolumes = 200

	onTracepoint = "- program: on_exec\n  tracepoint: syscalls/sys_enter_execve\n"
	onXDP        = "- program: count\n  xdp: {interface: eth0}\n"
)

// benchNode times what kubelet waits for, over the socket of the real daemon.
func benchNode(ctx context.Context, bpfvol string) (err error) {
	for _, args := range []string{
		"netns add " + benchNS,
		"-n " + benchNS + " link set lo up",
		"-n " + benchNS + " link add eth0 type veth peer name eth1",
		"-n " + benchNS + " link set eth0 up",
		"-n " + benchNS + " link set eth1 up",
	} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", args, err, out)
		}
	}
	defer func() { err = errors.Join(err, exec.Command("ip", "netns", "del", benchNS).Run()) }()
	s, err := stack.New(stack.Options{Bin: bpfvol, NetNS: benchNS})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	b := &bench{Stack: s}
	if err := b.policy(); err != nil {
		return err
	}
	ready, err := s.StartDaemon(ctx)
	if err != nil {
		return err
	}
	figure("start.ready_ms", milliseconds(ready), "ms")
	time.Sleep(3 * time.Second) // it is idle when it has looked at all volumes for the first time
	idle, err := b.rss()
	if err != nil {
		return err
	}
	figure("rss.idle_mib", idle, "MiB")
	if b.kubelet, err = kubelet.Connect(ctx, s.Endpoint(), s.KubeletDir()); err != nil {
		return err
	}
	defer b.kubelet.Close()

	for _, measure := range []func(context.Context) error{b.cold, b.warm, b.overFloor, b.many, b.churn, b.recovery} {
		if err := measure(ctx); err != nil {
			return err
		}
	}
	if err := s.StopDaemon(syscall.SIGTERM); err != nil {
		return err
	}
	return binarySize(ctx, s.Dir)
}

type bench struct {
	*stack.Stack
	kubelet *kubelet.Kubelet
	pods    int
}

func (b *bench) policy() error {
	key, err := os.ReadFile(b.KeyPrefix() + ".pub")
	if err != nil {
		return err
	}
	text := "apiVersion: bpfvol.io/v1alpha1\nkind: BytecodePolicy\nmetadata: {name: bench}\nspec:\n  images: [\"" + b.Registry +
		"/**\"]\n  subjects: [\"*\"]\n  authorities:\n  - key:\n      data: |\n        " +
		strings.ReplaceAll(strings.TrimSpace(string(key)), "\n", "\n        ") + "\n"
	return os.WriteFile(filepath.Join(b.PolicyDir(), "bench.yaml"), []byte(text), 0o644)
}

// image pushes and signs count.bpf.o. Each tag has bytes of its own, so that none is in the daemon's cache.
func (b *bench) image(ctx context.Context, tag string) (string, error) {
	file := filepath.Join(b.Dir, tag+".o")
	if err := os.WriteFile(file, append(bytes.Clone(bpf.Count()), tag...), 0o644); err != nil {
		return "", err
	}
	ref := b.Registry + "/bench/count:" + tag
	layout := filepath.Join(b.Dir, "build")
	for _, args := range [][]string{
		{"build", file, "-t", ref, "--layout", layout},
		{"sign", ref, "--key", b.KeyPrefix() + ".key", "--layout", layout},
		{"push", ref, "--layout", layout},
	} {
		if _, err := b.CLI(ctx, args...); err != nil {
			return "", err
		}
	}
	return ref, nil
}

// pod is a new pod with one volume.
func (b *bench) pod() kubelet.Pod {
	b.pods++
	return kubelet.Pod{Namespace: "bench", Name: "pod", UID: fmt.Sprintf("00000000-0000-4000-8000-%012d", b.pods), ServiceAccount: "bench"}
}

func (b *bench) publish(ctx context.Context, pod kubelet.Pod, image, attach string) error {
	_, err := b.kubelet.SetUp(ctx, pod, kubelet.Volume{Name: "bpf", Attributes: map[string]string{"image": image, "attach": attach}})
	return err
}

// timed publishes and unpublishes one volume.
func (b *bench) timed(ctx context.Context, image, attach string) (publish, unpublish time.Duration, err error) {
	pod := b.pod()
	start := time.Now()
	if err := b.publish(ctx, pod, image, attach); err != nil {
		return 0, 0, err
	}
	publish = time.Since(start)
	start = time.Now()
	err = b.kubelet.TearDown(ctx, pod, "bpf")
	return publish, time.Since(start), err
}

func (b *bench) cold(ctx context.Context) error {
	var samples []time.Duration
	for i := range coldRounds {
		image, err := b.image(ctx, fmt.Sprintf("cold%d", i))
		if err != nil {
			return err
		}
		d, _, err := b.timed(ctx, image, onTracepoint)
		if err != nil {
			return err
		}
		samples = append(samples, d)
	}
	figure("publish.cold_ms", median(samples), "ms")
	return nil
}

func (b *bench) warm(ctx context.Context) error {
	image, err := b.image(ctx, "warm")
	if err != nil {
		return err
	}
	if _, _, err := b.timed(ctx, image, onTracepoint); err != nil {
		return err
	}
	var publish, unpublish []time.Duration
	for range warmRounds {
		p, u, err := b.timed(ctx, image, onTracepoint)
		if err != nil {
			return err
		}
		publish, unpublish = append(publish, p), append(unpublish, u)
	}
	figure("publish.warm_ms", median(publish), "ms")
	figure("unpublish.ms", median(unpublish), "ms")
	return nil
}

// overFloor compares an XDP publish with what any loader must do: parse, load, attach, pin.
func (b *bench) overFloor(ctx context.Context) error {
	image, err := b.image(ctx, "xdp")
	if err != nil {
		return err
	}
	if _, _, err := b.timed(ctx, image, onXDP); err != nil {
		return err
	}
	var ours, floor []time.Duration
	for i := range warmRounds {
		settle()
		d, _, err := b.timed(ctx, image, onXDP)
		if err != nil {
			return err
		}
		ours = append(ours, d)
		settle()
		if err := b.InNetNS(func() (err error) {
			d, err = bareXDP(b.BPFFSDir(), i)
			return err
		}); err != nil {
			return fmt.Errorf("floor: %w", err)
		}
		floor = append(floor, d)
	}
	figure("publish.warm_xdp_ms", median(ours), "ms")
	figure("floor.xdp_ms", median(floor), "ms")
	figure("publish.warm_over_floor_xdp", median(ours)/median(floor), "ratio")
	return nil
}

// settle lets the kernel finish what the last detach left to RCU, or the next attach waits for that, too.
func settle() { time.Sleep(50 * time.Millisecond) }

// bareXDP does with cilium/ebpf alone what a publish must do at the least.
func bareXDP(bpffs string, round int) (took time.Duration, err error) {
	iface, err := net.InterfaceByName("eth0")
	if err != nil {
		return 0, err
	}
	dir := filepath.Join(bpffs, fmt.Sprintf("floor%d", round))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return 0, err
	}

	start := time.Now()
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(bpf.Count()))
	if err != nil {
		return 0, err
	}
	for name := range spec.Programs {
		if name != "count" {
			delete(spec.Programs, name)
		}
	}
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		return 0, err
	}
	defer coll.Close()
	l, err := link.AttachXDP(link.XDPOptions{Program: coll.Programs["count"], Interface: iface.Index})
	if err != nil {
		return 0, err
	}
	defer l.Close() // after the pins are gone: only the last descriptor detaches at once
	defer func() { err = errors.Join(err, removeAllPins(dir)) }()
	if err := l.Pin(filepath.Join(dir, "link")); err != nil {
		return 0, err
	}
	for _, name := range []string{"flows", "totals", "events"} {
		if err := coll.Maps[name].Pin(filepath.Join(dir, name)); err != nil {
			return 0, err
		}
	}
	return time.Since(start), nil
}

// many keeps 200 volumes published and reads the daemon's memory.
func (b *bench) many(ctx context.Context) (err error) {
	image, err := b.image(ctx, "many")
	if err != nil {
		return err
	}
	var pods []kubelet.Pod
	defer func() {
		for _, pod := range pods {
			err = errors.Join(err, b.kubelet.TearDown(ctx, pod, "bpf"))
		}
	}()
	for i := range manyVolumes {
		// The kernel takes 64 programs at one tracepoint.
		calls := []string{"execve", "execveat", "getpgid", "setpgid"}
		pod := b.pod()
		if err := b.publish(ctx, pod, image, "- program: on_exec\n  tracepoint: syscalls/sys_enter_"+calls[i%len(calls)]+"\n"); err != nil {
			return err
		}
		pods = append(pods, pod)
	}
	rss, err := b.rss()
	if err != nil {
		return err
	}
	figure("rss.after_200_volumes_mib", rss, "MiB")
	return nil
}

// rss is the daemon's resident memory in MiB.
func (b *bench) rss() (float64, error) { return b.memory("VmRSS:") }

// memory is a line of the daemon's status, in MiB: "VmHWM:" is the most that was ever resident.
func (b *bench) memory(field string) (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.DaemonPID()))
	if err != nil {
		return 0, err
	}
	_, line, _ := strings.Cut(string(status), field)
	var kib float64
	if _, err := fmt.Sscan(line, &kib); err != nil {
		return 0, fmt.Errorf("%s %w", field, err)
	}
	return kib / 1024, nil
}

func binarySize(ctx context.Context, dir string) error {
	out := filepath.Join(dir, "stripped")
	if err := gobuild.Build(ctx, out, "", "./cmd/bpfvol", "-trimpath", "-ldflags=-s -w"); err != nil {
		return err
	}
	st, err := os.Stat(out)
	if err != nil {
		return err
	}
	figure("binary.stripped_mib", float64(st.Size())/(1<<20), "MiB")
	return nil
}

func removeAllPins(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		err = errors.Join(err, os.Remove(filepath.Join(dir, e.Name())))
	}
	return errors.Join(err, os.Remove(dir))
}
