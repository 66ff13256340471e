// SPDX-License-Identifier: Apache-2.0

// Package crash shows that the daemon can fail and die anywhere: at every system call by which it changes something.
//
// What holds, and the test that shows it:
//   - whichever effect fails, and before whichever the daemon is killed, in publish, unpublish, undo and recovery: kubelet's
//     retries lead to a volume that works, its unpublish to everything being as it was, and a neighbour at the same point
//     meets every packet all the time (TestFaultAtEveryEffect);
//   - every effect is known: a new one fails the test until testdata/effects.txt has it (TestFaultAtEveryEffect);
//   - killed again and again, the daemon still gets there (TestKilledAgainAndAgain).
//
// docs/testing.md says more, docs/adr/0002-faults-at-system-calls.md why it is done so.
package crash
