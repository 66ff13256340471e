// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inOwnNamespaces runs f on a thread with a network and a mount namespace of its own. The thread ends with f, or with the
// process, and all that is attached, pinned and mounted there ends with it: nothing has to be cleaned up. f must stay on
// its goroutine.
func inOwnNamespaces(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime ends the thread
		if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
			done <- fmt.Errorf("unshare: %w", err)
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			done <- fmt.Errorf("make mounts private: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// veth makes a wire with an interface at either end, both up: name, and name-peer.
func veth(name string) (here, peer netlink.Link, err error) {
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "-peer"}
	if err := netlink.LinkAdd(pair); err != nil {
		return nil, nil, fmt.Errorf("veth %s: %w", name, err)
	}
	if here, err = up(pair.Name); err != nil {
		return nil, nil, err
	}
	peer, err = up(pair.PeerName)
	return here, peer, err
}

func up(name string) (netlink.Link, error) {
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(l)
	}
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	return l, nil
}
