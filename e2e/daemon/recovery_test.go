// SPDX-License-Identifier: Apache-2.0

package daemon_test

import (
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/bpfvol/bpfvol/e2e/nodetest"
	"github.com/bpfvol/bpfvol/internal/bpftest"
)

// attentive are arguments of a daemon that looks after its volumes all the time, and serves metrics at web.
func attentive(t *testing.T, more ...string) (args []string, web string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	web = l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return append([]string{"--repair-interval", "20ms", "--http", web, "--volume-health"}, more...), web
}

// await waits until a claim holds.
func await(t *testing.T, claim string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("30 s later it does not hold: %s", claim)
		}
	}
}

// metric reads a metric of the daemon.
func metric(t *testing.T, web, name string) string {
	t.Helper()
	resp, err := http.Get("http://" + web + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?m)^" + name + " (.*)$").FindStringSubmatch(string(text))
	if m == nil {
		t.Fatalf("no metric %s", name)
	}
	return m[1]
}

func onlyPin(t *testing.T, n *nodetest.Node, pattern string) string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(n.BPFFSDir(), pattern))
	if err != nil || len(paths) != 1 {
		t.Fatalf("%s: %v, %v, want one", pattern, paths, err)
	}
	return paths[0]
}

// Somebody with bpftool detaches an XDP link, somebody else removes pins. The pod's counters go on.
func TestDaemonBringsBackWhatOthersTookAway(t *testing.T) {
	args, web := attentive(t)
	n := nodetest.Start(t, nodetest.Options{Serve: args})
	v := n.Publish(t, map[string]string{"image": n.Signed(t, "hooks", object("hooks")), "attach": onGetpgid})
	if err := os.Remove(onlyPin(t, n, "volumes/*/links/*")); err != nil {
		t.Fatal(err)
	}
	await(t, "the program counts again", func() bool {
		before := hits(t, v, 0)
		if _, err := unix.Getpgid(0); err != nil {
			t.Fatal(err)
		}
		return hits(t, v, 0) == before+1
	})
	await(t, "the metric says so", func() bool { return metric(t, web, "bpfvol_repairs_total") == "1" })
	if got := metric(t, web, "bpfvol_volumes_unhealthy"); got != "0" {
		t.Errorf("%s volumes are unhealthy, want none", got)
	}
	n.StopDaemon(t, syscall.SIGTERM)
	if log := n.DaemonLog(); strings.Count(log, `"repaired"`) != 1 || !strings.Contains(log, "tracepoint syscalls/sys_enter_getpgid: program") {
		t.Errorf("the log tells of other repairs than that of the tracepoint:\n%s", log)
	}
	n.StartDaemon(t)
}

// In the daemon's own network namespace, and with nothing but pins to go by, since it was restarted.
func TestDaemonAttachesADetachedXDPLinkAgain(t *testing.T) {
	node, peer := bpftest.Pair(t)
	n := nodetest.Start(t, nodetest.Options{NetNS: node, Serve: []string{"--repair-interval", "20ms"}})
	v := n.Publish(t, map[string]string{"image": n.Signed(t, "count", object("count")), "attach": "{program: count, xdp: veth0}"})
	l, err := link.LoadPinnedLink(onlyPin(t, n, "points/*/link"), nil)
	if err != nil {
		t.Fatal(err)
	}
	n.StopDaemon(t, syscall.SIGTERM)
	if err := errors.Join(l.Detach(), l.Close()); err != nil {
		t.Fatal(err)
	}
	n.StartDaemon(t)
	await(t, "packets are counted", func() bool {
		before := len(v.Entries(t, "flows"))
		if err := peer.Ping(node.Addr); err != nil {
			t.Fatal(err)
		}
		return len(v.Entries(t, "flows")) > before
	})
}

func TestDaemonWithoutRepairLeavesDriftAndTellsKubelet(t *testing.T) {
	args, web := attentive(t, "--repair=false")
	n := nodetest.Start(t, nodetest.Options{Serve: args})
	n.Publish(t, map[string]string{"image": n.Signed(t, "hooks", object("hooks")), "attach": onGetpgid})
	pin := onlyPin(t, n, "volumes/*/links/*")
	if err := os.Remove(pin); err != nil {
		t.Fatal(err)
	}
	await(t, "the metric tells", func() bool { return metric(t, web, "bpfvol_volumes_unhealthy") == "1" })
	if _, err := os.Lstat(pin); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the link is back: %v", err)
	}
	conn, err := grpc.NewClient(n.Endpoint(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	id := filepath.Base(filepath.Dir(filepath.Dir(pin)))
	resp, err := csi.NewNodeClient(conn).NodeGetVolumeHealth(t.Context(), &csi.NodeGetVolumeHealthRequest{VolumeId: id})
	if err != nil || len(resp.GetVolumeHealth().GetHealthStatuses()) != 1 {
		t.Fatal(resp, err)
	}
	if e := resp.GetVolumeHealth().GetHealthStatuses()[0]; e.GetStatus() != csi.VolumeHealthErrorType_DEGRADED || e.GetReason() != "LinkSevered" {
		t.Errorf("health is %v, want a severed link", e)
	}
}

// kubelet lost a pod, as after its own data was restored or a force deletion: nobody will ever unpublish.
func TestDaemonTakesVolumesOfForgottenPodsAway(t *testing.T) {
	args, web := attentive(t, "--orphan-grace", "100ms")
	n := nodetest.Start(t, nodetest.Options{Serve: args})
	image := n.Signed(t, "hooks", object("hooks"))
	stays := n.Publish(t, map[string]string{"image": image, "attach": onGetpgid})
	gone := n.New(map[string]string{"image": image, "attach": onGetpgid})
	if err := gone.SetUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(filepath.Dir(gone.Target), "vol_data.json")); err != nil {
		t.Fatal(err)
	}
	await(t, "its target is gone", func() bool {
		_, err := os.Lstat(gone.Target)
		return errors.Is(err, fs.ErrNotExist)
	})
	await(t, "the metric says so", func() bool { return metric(t, web, "bpfvol_orphans_removed_total") == "1" })
	if got := metric(t, web, "bpfvol_volumes"); got != "1" {
		t.Errorf("there are %s volumes, want the other one", got)
	}
	hits(t, stays, 0)
	if err := os.RemoveAll(filepath.Join(n.KubeletDir(), "pods", strings.Split(strings.TrimPrefix(gone.Target, n.KubeletDir()+"/pods/"), "/")[0])); err != nil {
		t.Fatal(err)
	}
}

// reboot does to a node what a reboot does: processes, mounts, bpffs and /run are gone, and kubelet's directories stay.
func reboot(t *testing.T, n *nodetest.Node, volumes ...*nodetest.Volume) {
	t.Helper()
	n.StopDaemon(t, syscall.SIGKILL)
	for _, v := range volumes {
		if err := unix.Unmount(v.Target, unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Unmount(n.BPFFSDir(), 0); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(n.StateDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(n.StateDir(), e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	n.StartDaemon(t)
}

// kubelet publishes the volumes of pods that are still there, at the targets of which empty directories are left, and
// unpublishes those of pods that were deleted meanwhile.
func TestReboot(t *testing.T) {
	n := nodetest.Start(t, nodetest.Options{})
	attributes := map[string]string{"image": n.Signed(t, "hooks", object("hooks")), "attach": onGetpgid}
	stays, goes := n.Publish(t, attributes), n.Publish(t, attributes)
	reboot(t, n, stays, goes)
	for _, v := range []*nodetest.Volume{stays, goes} {
		if entries, err := os.ReadDir(v.Target); err != nil || len(entries) > 0 {
			t.Fatalf("target after a reboot: %v, %v, want an empty directory", entries, err)
		}
	}
	if err := stays.SetUp(t.Context()); err != nil {
		t.Errorf("publish after a reboot: %v", err)
	}
	if err := goes.TearDown(t.Context()); err != nil {
		t.Errorf("unpublish after a reboot: %v", err)
	}
	before := hits(t, stays, 0)
	if _, err := unix.Getpgid(0); err != nil {
		t.Fatal(err)
	}
	if got := hits(t, stays, 0) - before; got != 1 {
		t.Errorf("counted %d calls, want 1", got)
	}
	if got := n.Run(t, "list", "-o", "json"); strings.Count(got, `"volumeID"`) != 1 {
		t.Errorf("list is %s, want one volume", got)
	}
}
