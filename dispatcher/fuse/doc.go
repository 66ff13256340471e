// SPDX-License-Identifier: Apache-2.0

// Package fuse puts programs for one hook together into one program. It is pure: it reads and writes instructions, and
// neither loads nor attaches anything.
//
//	*ebpf.ProgramSpec --Settle--> Code          what an object leaves open is settled; can be written down and read back
//	[]Candidate       --Plan----> []string      which members need a slot, and why
//	Set               --Program-> *ebpf.ProgramSpec
//
// A call costs more than most programs do (about 9 ns with the mitigations of today's processors, beside 1 ns for a
// jump and a load), so members are not called: their instructions stand one after another, and an exit is a jump to the
// member's end. The verifier looks at the result as at any program, so nothing here has to be trusted. What cannot be
// moved into another program has a slot: a function that tail-calls the member, which returns to its caller.
//
// Invariants:
//   - the layout is that of Set.Program (TestProgramIsTheMembersOneAfterAnother);
//   - code survives being written down, and what does not fit together is refused (TestCodeSurvivesBeingWritten,
//     TestSetBytesRefusesWhatDoesNotFit, FuzzSetBytes);
//   - what cannot be taken apart is not (TestSettleLeavesAloneWhatItCannotTakeApart);
//   - each member has a reason for its slot, and no more members than needed have one (TestPlanSaysWhyAMemberNeedsASlot,
//     TestPlanKeepsTheSumWithinLimits, TestPlanBoundsFunctions).
//
// That fused programs do in the kernel what they do alone is shown by tests of package dispatcher.
package fuse
