// SPDX-License-Identifier: Apache-2.0

// Package loader turns a verified BPF object into programs and maps in the kernel.
//
//	verify.Bytecode + volume.Spec --Parse--> Object --Load--> Collection --Pin--> pins
//
// Parse is pure: it reads the ELF, works out where each program attaches, keeps the programs that attach and the maps
// that they reach, sets variables and sizes, and says what all that would do (Facts). Load asks the kernel.
//
// What holds, and the test that shows it:
//   - Parse takes any bytes and answers within bounds of time and memory, with ErrInvalid or ErrNotFound at worst
//     (FuzzParse, TestParseRefusesWhatIsTooLarge)
//   - only attached programs, and the maps they use or the volume names, are loaded (TestLoadsOnlyWhatIsUsed)
//   - a map that asks to be pinned by name belongs to its volume alone (TestPinByNameStaysInTheVolume)
//   - after Close nothing is left, at once and without a garbage collection (TestCloseLeavesNothing): the data
//     sections are never mapped into this process
//   - the kernel's log of a rejected program takes bounded memory (TestVerifierLogIsBounded)
//   - objects that nobody here wrote parse and load (TestForeignObjects)
package loader
