// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// The components of a node that can be stopped and started again.
const (
	Containerd        = "containerd"
	ControllerManager = "kube-controller-manager"
	Kubelet           = "kubelet"
	Scheduler         = "kube-scheduler"
)

const containerdSocket = "/run/containerd/containerd.sock"

// StartComponent starts a component. Its log goes on where the last one's ended.
func (n *Node) StartComponent(name string) error {
	var cmd *exec.Cmd
	switch name {
	case Containerd:
		cmd = exec.Command(filepath.Join(n.bin, "containerd"), "--config", n.file("containerd.toml"))
	case Kubelet:
		cmd = n.hyperkube(Kubelet, "--config="+n.file("kubelet.yaml"), "--kubeconfig="+n.file("kubelet.kubeconfig"),
			"--root-dir=/var/lib/kubelet", "--hostname-override="+NodeName, "--node-ip="+NodeAddress.String())
	case ControllerManager:
		cmd = n.hyperkube(ControllerManager, "--kubeconfig="+n.Admin, "--leader-elect=false", "--bind-address=127.0.0.1", "--profiling=false",
			"--service-account-private-key-file="+n.file(accountKey), "--root-ca-file="+n.file(servingCert), "--use-service-account-credentials=false")
	case Scheduler:
		cmd = n.hyperkube(Scheduler, "--kubeconfig="+n.Admin, "--leader-elect=false", "--bind-address=127.0.0.1", "--profiling=false")
	default:
		return fmt.Errorf("no component %q", name)
	}
	cmd.Env = append(os.Environ(), "PATH="+n.bin+":/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "KUBECONFIG=")
	p, err := n.space.spawn(name, n.log(name), cmd)
	if err == nil {
		n.running[name] = p
	}
	return err
}

// StopComponent sends a component a signal and waits for its end.
func (n *Node) StopComponent(name string, signal os.Signal) { n.running[name].end(signal) }

func (n *Node) hyperkube(name string, args ...string) *exec.Cmd {
	return exec.Command(n.Hyperkube, append([]string{name}, args...)...)
}

// writeConfigs writes what the components read.
func (n *Node) writeConfigs() error {
	if _, err := n.writeKubeconfig("kubelet", n.secret.node); err != nil {
		return err
	}
	fill := strings.NewReplacer("$DIR", n.dir, "$BIN", n.bin, "$CGROUP", n.cgroup, "$PODS", podNetwork.String(), "$REGISTRY", registryAddress.String(),
		"$PAUSE", pauseImage, "$SOCKET", containerdSocket)
	for path, text := range map[string]string{
		"containerd.toml":             containerdConfig,
		"kubelet.yaml":                kubeletConfig,
		"cni/10-ptp.conflist":         cniConfig,
		"certs.d/_default/hosts.toml": registryConfig,
	} {
		path = n.file(path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(fill.Replace(text)), 0o600); err != nil {
			return err
		}
	}
	return nil
}

const containerdConfig = `version = 3
root = "$DIR/containerd"
state = "/run/containerd"
[grpc]
  address = "$SOCKET"
[plugins."io.containerd.internal.v1.opt"]
  path = "$DIR/opt"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "$PAUSE"
[plugins."io.containerd.cri.v1.images".registry]
  config_path = "$DIR/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true # to lower one takes CAP_SYS_RESOURCE, which root of a sandbox may lack
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
    BinaryName = "$BIN/runc"
    SystemdCgroup = false
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["$BIN"]
  conf_dir = "$DIR/cni"
`

// registryConfig makes the node's registry a mirror of every other, so that a manifest means here what it means elsewhere.
const registryConfig = `[host."http://$REGISTRY"]
  capabilities = ["pull", "resolve"]
`

// Each pod is joined to the node by a cable of its own, which takes neither a bridge nor iptables.
const cniConfig = `{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp", "ipam": {
  "type": "host-local", "dataDir": "/run/cni/ipam", "ranges": [[{"subnet": "$PODS"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
`

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://$SOCKET
cgroupDriver: cgroupfs
cgroupRoot: /$CGROUP
failCgroupV1: false # the machine may have no other
failSwapOn: false
oomScoreAdj: 0 # as restrict_oom_score_adj
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}} # nobody else is in its network
authorization: {mode: AlwaysAllow}
makeIPTablesUtilChains: false
resolvConf: ""
podLogsDir: $DIR/pods
volumePluginDir: $DIR/flexvolume
maxPods: 250
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: "0%", nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%", imagefs.inodesFree: "0%"}
logging: {verbosity: 2}
`
