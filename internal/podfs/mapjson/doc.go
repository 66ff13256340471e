// SPDX-License-Identifier: Apache-2.0

// Package mapjson prints a map as JSON lines, typed by its BTF: once as a program that the kernel runs for each
// element when somebody reads a pinned iterator with cat, and once in Go. Both print the same bytes.
//
//	{"key":{"saddr":"10.0.0.1","port":443},"value":{"packets":12,"comm":"nginx"}}
//	{"key":3,"value":[7,0]}                      a per-CPU map: one value per possible CPU
//
// What a type looks like:
//
//	integers, char         number, 64-bit ones too; __be16 and __be64 in host order
//	bool                   true, false
//	enum                   "NAME", the first where several have the value; number when unnamed
//	char[N]                "text" up to the first NUL if every byte before it is printable ASCII other than quote and
//	                       backslash, else "0x…", the whole array in hex
//	__be32                 "10.0.0.1"
//	struct in6_addr        "2001:db8::1", as RFC 5952 writes it
//	struct, union          object with every member, those of anonymous members among their parent's
//	T[N]                   array; of length 0: []
//	pointer                "0x…", its value
//	float, 128-bit integer "0x…", the bytes in memory order
//	no BTF, or BTF that does not fit the map: "0x…", the bytes in memory order; the index of an array map: number
//
// The kernel's iteration is no snapshot: an element that is added or deleted meanwhile may be missing.
//
// Invariants:
//   - kernel and Go print the same, and it is valid JSON whatever the bytes are (TestKernelPrintsWhatGoPrints) and
//     whatever names the BTF holds (TestHostileNames);
//   - a line is printed whole or not at all: the program checks each helper call, and a type whose longest line is more
//     than the kernel's buffer is refused when the program is made (TestWidestLine, TestTooWide);
//   - bytes that change while they are printed cannot break a line: text is checked and printed from one copy
//     (TestTextChangesWhileRead);
//   - one program and one read-only map per iterator, needing nothing newer than Linux 6.1 (TestProgramIsSmall).
package mapjson
