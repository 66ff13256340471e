// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bpfvol/bpfvol/internal/admission"
	"github.com/bpfvol/bpfvol/verify"
)

//go:generate sh -c "go run . admission -f ../../deploy/examples/policy.yaml >../../deploy/admission/example.yaml"

type admissionOptions struct {
	file       string
	policyDir  string
	driverName string
	output     string
}

func newAdmission() *cobra.Command {
	var o admissionOptions
	cmd := &cobra.Command{
		Use:     "admission {-f FILE | --policy-dir DIR}",
		GroupID: "cluster",
		Short:   "Write a ValidatingAdmissionPolicy that refuses at kubectl apply what nodes would refuse",
		Long: strings.TrimSpace(`
Admission reads BytecodePolicies and writes a ValidatingAdmissionPolicy and its binding. The API server then
refuses pods, and what makes pods, whose inline bpfvol volumes have an image that no policy covers, or one whose
policies the pod's service account may not use. Nodes decide in any case; this tells earlier, and whoever applies.
PersistentVolumes are not looked at: an admin made them. The API server must be of Kubernetes 1.30 or later.

With -f the policies are objects of the cluster, and the RBAC verb "use" decides. With --policy-dir they are the files
of nodes, whose subjects decide. The policies are part of what is written: run it again when they change.

A single image may be covered by up to 25 policies; beyond, the API server's limit of cost refuses it.`),
		Example: strings.TrimLeft(`
  kubectl get bytecodepolicies -o yaml | bpfvol admission -f - | kubectl apply --server-side -f -
  bpfvol admission --policy-dir /etc/bpfvol/policy.d | kubectl apply --server-side -f -`, "\n"),
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.run(cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.file, "filename", "f", "", "`FILE` of BytecodePolicy objects, or a List of them; - is standard input")
	f.StringVar(&o.policyDir, "policy-dir", "", "`DIR` of BytecodePolicy files, as bpfvol serve reads it")
	f.StringVar(&o.driverName, "driver-name", "csi.bpfvol.io", "CSI driver `NAME`, as of bpfvol serve")
	f.StringVarP(&o.output, "output", "o", "yaml", "`FORMAT`: yaml or json")
	fixed(cmd, "output", "yaml", "json")
	for _, err := range []error{cmd.MarkFlagFilename("filename", "yaml", "yml", "json"), cmd.MarkFlagDirname("policy-dir")} {
		if err != nil { // that of a flag which does not exist
			panic(err)
		}
	}
	return cmd
}

func (o *admissionOptions) run(stdin io.Reader, stdout io.Writer) error {
	write, known := map[string]func([]any) ([]byte, error){"yaml": admission.YAML, "json": admission.JSON}[o.output]
	if !known {
		return &usageError{fmt.Errorf("-o %s: unknown format; use yaml or json", o.output)}
	}
	policies, err := o.policies(stdin)
	if err != nil {
		return err
	}
	text, err := write(admission.Manifest(policies, admission.Options{Driver: o.driverName, Subjects: o.policyDir != ""}))
	if err != nil {
		return err
	}
	_, err = stdout.Write(text)
	return err
}

// policies reads what one of the two flags names.
func (o *admissionOptions) policies(stdin io.Reader) ([]*verify.Policy, error) {
	switch {
	case (o.file == "") == (o.policyDir == ""):
		return nil, &usageError{errors.New("admission: takes -f FILE or --policy-dir DIR; see bpfvol admission --help")}
	case o.file == "-":
		data, err := io.ReadAll(stdin)
		if err != nil {
			return nil, err
		}
		return admission.Read(data, "-")
	case o.file != "":
		data, err := os.ReadFile(o.file)
		if err != nil {
			return nil, err
		}
		return admission.Read(data, o.file)
	}
	dir, err := verify.OpenDir(o.policyDir, admission.NoSigners)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	// A node goes on with the good files. Here nobody would read a log, and half of the policies refuse too much.
	if err := dir.Err(); err != nil {
		return nil, err
	}
	return dir.Policies(), nil
}
