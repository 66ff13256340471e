// SPDX-License-Identifier: Apache-2.0

package mapjson_test

import (
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/bpfvol/bpfvol/internal/podfs/mapjson"
)

func Example() {
	u16 := &btf.Int{Name: "unsigned short", Size: 2}
	char := &btf.Int{Name: "char", Size: 1, Encoding: btf.Signed}
	line := mapjson.NewLine(mapjson.MapSpec{
		Type:      ebpf.Hash,
		KeySize:   2,
		ValueSize: 8,
		Key:       &btf.Typedef{Name: "__be16", Type: u16},
		Value:     &btf.Array{Type: char, Nelems: 8},
	})
	os.Stdout.Write(line.Append(nil, []byte{0x01, 0xbb}, []byte("nginx\x00\x00\x00")))
	os.Stdout.Write(line.Append(nil, []byte{0x00, 0x50}, []byte("\"nginx\"\x00")))
	// Output:
	// {"key":443,"value":"nginx"}
	// {"key":80,"value":"0x226e67696e782200"}
}
