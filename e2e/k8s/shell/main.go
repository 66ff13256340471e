// SPDX-License-Identifier: Apache-2.0

// Command shell starts a node of Kubernetes and a shell on it, as root, with kubectl and the node's files, mounts and network.
// When the shell ends, all of it does.
//
//	go run ./e2e/k8s/shell [COMMAND [ARGUMENT...]]
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"

	"github.com/bpfvol/bpfvol/e2e/k8s"
)

func main() {
	command := os.Args[1:]
	if len(command) == 0 {
		command = []string{"/bin/bash"}
	}
	if err := run(command); err != nil {
		fmt.Fprintln(os.Stderr, "shell:", err)
		os.Exit(1)
	}
}

func run(command []string) (err error) {
	// For the shell's children. This process ends when the shell does.
	signal.Notify(make(chan os.Signal, 1), os.Interrupt)
	path, err := exec.LookPath(command[0])
	if err != nil {
		return err
	}
	n, err := k8s.StartNode(context.Background())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	busybox, err := k8s.Busybox()
	if err != nil {
		return err
	}
	if err := n.Push(context.Background(), "docker.io/library/busybox:1.37", busybox); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "shell: %s is ready. Its registry is %s, for every image; it has busybox:1.37. Logs are in %s\n", k8s.NodeName, n.Registry(), n.Dir())
	cmd := exec.Command(path, command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := n.Start(cmd); err != nil {
		return err
	}
	return cmd.Wait()
}
