// SPDX-License-Identifier: Apache-2.0

package volume_test

import (
	"fmt"

	"github.com/bpfvol/bpfvol/internal/volume"
)

func ExampleParse() {
	spec, err := volume.Parse(map[string]string{
		"image": "ghcr.io/acme/count:v1",
		"attach": `
- program: count
  xdp: {interface: eth0, priority: 100}
- program: on_exec
  tracepoint: syscalls/sys_enter_execve
`,
		"maps": "flows, config:rw",
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, a := range spec.Attach {
		fmt.Printf("%s at %s\n", a.Program, a.Hook)
	}
	fmt.Println(spec.Maps, spec.PullPolicy)
	// Output:
	// count at xdp eth0
	// on_exec at tracepoint syscalls/sys_enter_execve
	// [{flows ro} {config rw}] IfNotPresent
}

func ExampleParse_unknownKey() {
	_, err := volume.Parse(map[string]string{"image": "ghcr.io/acme/count:v1", "atach": "{program: count, xdp: eth0}"})
	fmt.Println(err)
	// Output:
	// volumeAttributes: unknown key "atach"; did you mean "attach"?
}

func ExampleMarshalAttach() {
	fmt.Print(volume.MarshalAttach([]volume.Attach{
		{Program: "count", Hook: &volume.XDP{
			Interfaces: []string{"eth0", "eth1"}, Priority: 100, ProceedOn: []volume.Verdict{"pass"}, Mode: volume.XDPAuto,
		}},
		{Program: "on_exec", Hook: &volume.Tracepoint{Group: "syscalls", Name: "sys_enter_execve"}},
	}))
	// Output:
	// - program: count
	//   xdp: {interface: [eth0, eth1], priority: 100}
	// - program: on_exec
	//   tracepoint: syscalls/sys_enter_execve
}

func ExampleSuggest() {
	fmt.Println(volume.Suggest("flow", []string{"totals", "flows"}))
	// Output:
	// flows
}
