// SPDX-License-Identifier: Apache-2.0

// Package inject runs a program as it is shipped and stops it before every system call that changes something outside its
// memory. There the call can be let through, be answered with an error, or be the last thing that the program wanted to do.
//
//	func TestMain(m *testing.M) { inject.Main(); os.Exit(m.Run()) }
//
//	s := inject.New(inject.Options{Path: short})
//	err := s.Start(exec.Command("bpfvol", "serve"))
//	s.Watch(inject.Fault{Effect: "fsync records/v.json.tmp", Nth: 1, Errno: unix.EIO})
//	...
//	effects, hit := s.Done()
//
// The kernel does it, by a seccomp filter with user notification (seccomp_unotify(2)): the program needs no hooks and sees no
// debugger. docs/adr/0002-faults-at-system-calls.md has the reasons.
//
// What holds, and the test that shows it:
//   - a system call that is on neither list, of those that change something and of those that don't, is told
//     (TestUnknownCallsAreTold);
//   - an answered call is not carried out, and a call before which the program dies isn't either (TestFaultsComeBeforeTheEffect).
package inject
