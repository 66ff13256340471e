// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/bpfvol/bpfvol/e2e/kubelet"
)

const datagrams = 20

// share puts the firewall of another pod in front of the counter whose volume is bpf, and takes it away again.
func share(ctx context.Context, node demoNode, k *kubelet.Kubelet, bpf string) (err error) {
	image := node.Registry + "/demo/firewall:v1"
	for _, args := range [][]string{
		{"build", "bpf/firewall.bpf.o", "-t", image},
		{"sign", image, "--key", node.KeyPrefix() + ".key"},
		{"push", image},
	} {
		if _, err := node.CLI(ctx, args...); err != nil {
			return err
		}
	}
	attach := "- program: firewall\n  xdp: {interface: eth0, priority: 100}\n"
	show(attach)
	pod := kubelet.Pod{Namespace: "demo", Name: "firewall", UID: "7c1d2f4e-9a35-4c60-8f0a-2b6f1f5f7d33", ServiceAccount: "counter"}
	volume := kubelet.Volume{Name: "bpf", Attributes: map[string]string{"image": image, "attach": attach}}
	target, err := k.SetUp(ctx, pod, volume)
	if err != nil {
		return err
	}
	published := true
	defer func() {
		if published {
			err = errors.Join(err, k.TearDown(ctx, pod, volume.Name))
		}
	}()
	if err := node.show(ctx, "status"); err != nil {
		return err
	}
	if err := errors.Join(sendDatagrams(ctx), sendPings(ctx)); err != nil {
		return err
	}
	say("the peer sends %d datagrams to the port that the firewall closes, and %d pings; the firewall's json/dropped, by CPU:", datagrams, packets)
	err = await(filepath.Join(target, "json", "dropped"), func(line string) bool {
		var dropped struct{ Value []int }
		sum := 0
		if json.Unmarshal([]byte(line), &dropped) == nil {
			for _, n := range dropped.Value {
				sum += n
			}
		}
		return sum == datagrams
	})
	if err != nil {
		return err
	}
	say("and the counter's json/flows, where only the pings came through:")
	flows := filepath.Join(bpf, "json", "flows")
	err = await(flows, func(text string) bool {
		return !strings.Contains(text, "UDP") && strings.Contains(text, fmt.Sprintf(`"protocol":"ICMP"},"value":{"packets":%d,`, 2*packets))
	})
	if err != nil {
		return err
	}
	published = false
	if err := k.TearDown(ctx, pod, volume.Name); err != nil {
		return err
	}
	if err := sendDatagrams(ctx); err != nil {
		return err
	}
	say("the firewall pod is deleted, and the peer sends %d datagrams more; the counter's json/flows:", datagrams)
	return await(flows, func(text string) bool {
		return strings.Contains(text, fmt.Sprintf(`"protocol":"UDP"},"value":{"packets":%d,`, datagrams))
	})
}

func sendPings(ctx context.Context) error {
	return inPeer(ctx, "ping", "-q", "-c", fmt.Sprint(packets), "-i", "0.05", nodeIP)
}

// sendDatagrams sends to the port that is closed by default; see bpf/src/firewall.bpf.c.
func sendDatagrams(ctx context.Context) error {
	return inPeer(ctx, "bash", "-c", fmt.Sprintf("for i in {1..%d}; do echo > /dev/udp/%s/9; done", datagrams, nodeIP))
}

func inPeer(ctx context.Context, args ...string) error {
	if out, err := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", peerNS}, args...)...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", args[0], err, out)
	}
	return nil
}

// await shows a file when it reads as it should: a busy kernel takes packets from the receive queue after their sender
// went on.
func await(path string, good func(text string) bool) error {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if good(string(text)) {
			show(string(text))
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s is %q", filepath.Base(path), text)
		}
	}
}
