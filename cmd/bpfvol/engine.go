// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bpfvol/bpfvol/internal/host"
	"github.com/bpfvol/bpfvol/internal/node"
	"github.com/bpfvol/bpfvol/internal/volume"
	"github.com/bpfvol/bpfvol/verify"
	"github.com/bpfvol/bpfvol/verify/cosign"
)

// stateOptions say where the engine keeps things. `serve` and the verbs share them, so they see the same volumes.
type stateOptions struct {
	stateDir, bpffsDir string
	host               string
}

func (o *stateOptions) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.stateDir, "state-dir", "/run/bpfvol", "`DIR` of the volumes' records; must not survive a reboot")
	cmd.Flags().StringVar(&o.bpffsDir, "bpffs-dir", "/sys/fs/bpf/bpfvol", "`DIR` of the pins, on a bpffs; one is mounted if there is none")
	hostFlag(cmd, &o.host)
}

func hostFlag(cmd *cobra.Command, process *string) {
	cmd.Flags().StringVar(process, "host-process", "",
		"`DIR` in /proc of a process that is where the node is, for a container: with hostPID /proc/1; default this process")
}

// options are those that every engine has.
func (o *stateOptions) options() node.Options {
	return node.Options{StateDir: o.stateDir, BPFFSDir: o.bpffsDir, Host: host.Process(o.host)}
}

func (o *stateOptions) look() *node.Engine { return node.Look(o.options()) }

// pointOptions say how programs share XDP and TC.
type pointOptions struct {
	memberStats bool
	libxdp      bool
}

func (o *pointOptions) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&o.memberStats, "member-stats", false,
		"count packets and results of programs that share XDP or TC; costs nanoseconds per program and packet")
	cmd.Flags().Var((*xdpMode)(&o.libxdp), "xdp-mode",
		"`HOW` XDP programs share an interface: auto fuses them, or joins libxdp's dispatcher where there is one; libxdp always uses its protocol, at most ten programs, for xdp-loader to see")
	fixed(cmd, "xdp-mode", "auto", "libxdp")
}

// xdpMode is the flag --xdp-mode: true for libxdp.
type xdpMode bool

func (*xdpMode) Type() string { return "mode" }

func (m *xdpMode) String() string {
	if *m {
		return "libxdp"
	}
	return "auto"
}

func (m *xdpMode) Set(text string) error {
	switch text {
	case "auto", "libxdp":
		*m = text == "libxdp"
		return nil
	}
	return errors.New("use auto or libxdp")
}

// policyOptions say what the local user may run.
type policyOptions struct {
	dir           string
	keys          []string
	allowUnsigned bool
}

// defaultPolicyDir is asked by run and publish. It need not exist.
const defaultPolicyDir = "/etc/bpfvol/policy.d"

func (o *policyOptions) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.dir, "policy-dir", defaultPolicyDir, "`DIR` of BytecodePolicy files")
	cmd.Flags().StringArrayVar(&o.keys, "key", nil, "also allow images signed by the public key in this PEM `FILE`; repeatable")
	cmd.Flags().BoolVar(&o.allowUnsigned, "allow-unsigned", false, "also allow images that nobody signed")
}

// open returns the policies for the local user: those of the directory, and one for each one-off flag.
func (o *policyOptions) open() (verify.Policies, error) {
	var all verify.Union
	dir, err := verify.OpenDir(o.dir, cosign.Compile)
	switch {
	case err == nil:
		if err := dir.Err(); err != nil {
			return nil, err
		}
		all = append(all, dir)
	case o.dir != defaultPolicyDir || !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	oneOff, err := keyPolicies(o.keys)
	if err != nil {
		return nil, err
	}
	if o.allowUnsigned {
		oneOff = append(oneOff, verify.UnsignedPolicy())
	}
	return append(all, verify.Static(oneOff)), nil
}

// localSubject is who calls the command line.
func localSubject() verify.Subject {
	name := fmt.Sprint(os.Getuid())
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	return verify.LocalSubject(name)
}

// attributeOptions are the volume attributes as flags: the same parser, the same errors.
type attributeOptions struct {
	attach     []string
	maps       string
	variables  string
	mapEntries string
	pullPolicy string
}

func (o *attributeOptions) flags(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&o.attach, "attach", nil, "`YAML` of one attachment or a list: '{program: count, xdp: {interface: eth0}}'; repeatable")
	cmd.Flags().StringVar(&o.maps, "maps", "", "comma `LIST` of maps to show; default every map that is not a data section")
	cmd.Flags().StringVar(&o.variables, "variables", "", "`YAML` map of global variables to set before load: '{sample_rate: 100}'")
	cmd.Flags().StringVar(&o.mapEntries, "map-entries", "", "`YAML` map of map name to how many entries it can hold: '{flows: 65536}'")
	cmd.Flags().StringVar(&o.pullPolicy, "pull-policy", "", "`WHEN` to ask the registry: Always, IfNotPresent or Never; default IfNotPresent, Always for :latest")
	fixed(cmd, "pull-policy", string(volume.PullAlways), string(volume.PullIfNotPresent), string(volume.PullNever))
}

// attributes returns what a pod would write, in a form that a volume can have.
func (o *attributeOptions) attributes(ref string) (map[string]string, error) {
	attrs := map[string]string{volume.KeyImage: ref}
	if len(o.attach) > 0 {
		var all []volume.Attach
		for _, text := range o.attach {
			parsed, err := volume.ParseAttach(text)
			if err != nil {
				return nil, byFlag(err)
			}
			all = append(all, parsed...)
		}
		attrs[volume.KeyAttach] = volume.MarshalAttach(all)
	}
	for key, value := range map[string]string{
		volume.KeyMaps: o.maps, volume.KeyVariables: o.variables, volume.KeyMapEntries: o.mapEntries, volume.KeyPullPolicy: o.pullPolicy,
	} {
		if strings.TrimSpace(value) != "" {
			attrs[key] = value
		}
	}
	_, err := volume.Parse(attrs)
	return attrs, byFlag(err)
}
