// SPDX-License-Identifier: Apache-2.0

package inject

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// launchArg is the first argument of a process that is to put itself under the filter and then become another program.
const launchArg = "inject-launch"

// listenerFD is where such a process finds the socket for the filter's listener.
const listenerFD = 3

// Main makes the test binary such a process, where Start started it as one. Call it first in TestMain.
func Main() {
	if len(os.Args) < 4 || os.Args[1] != launchArg {
		return
	}
	err := launch(os.Args[2], os.Args[3:])
	fmt.Fprintln(os.Stderr, "inject:", err)
	os.Exit(1)
}

// launched changes a command that has not started to one that goes through Main.
func launched(cmd *exec.Cmd, socket *os.File) {
	cmd.Args = append([]string{"/proc/self/exe", launchArg, cmd.Path}, cmd.Args...)
	cmd.Path = "/proc/self/exe"
	cmd.ExtraFiles = []*os.File{socket} // listenerFD
}

// launch installs the filter on its thread alone, and makes the program of it. The listener goes by a thread that was there
// before, so that no call of the sender waits for an answer.
func launch(path string, args []string) error {
	runtime.LockOSThread()
	ready, listener, sent := make(chan struct{}), make(chan int), make(chan error)
	go func() {
		runtime.LockOSThread()
		close(ready)
		fd := <-listener
		err := unix.Sendmsg(listenerFD, []byte{0}, unix.UnixRights(fd), nil, 0)
		unix.Close(fd)
		unix.Close(listenerFD)
		sent <- err
	}()
	<-ready
	fd, err := install()
	if err != nil {
		return err
	}
	listener <- fd
	if err := <-sent; err != nil {
		return fmt.Errorf("send the listener: %w", err)
	}
	return fmt.Errorf("exec %s: %w", path, syscall.Exec(path, args, os.Environ()))
}

func install() (listener int, err error) {
	code, err := filter()
	if err != nil {
		return 0, err
	}
	prog := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	// Once we have taken a call, only what ends the program takes it away from us again: Go's runtime sends its threads
	// signals all the time (Linux 5.19).
	const flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return 0, fmt.Errorf("seccomp filter with a listener: %w; needs CAP_SYS_ADMIN and Linux 5.19", errno)
	}
	return int(fd), nil
}

// receive takes the listener.
func receive(socket *os.File) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(int(socket.Fd()), make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return 0, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) == 0 {
		return 0, fmt.Errorf("no listener: %w", os.ErrClosed)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return 0, fmt.Errorf("no listener: %d descriptors, %w", len(fds), err)
	}
	return fds[0], nil
}
