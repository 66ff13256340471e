// SPDX-License-Identifier: Apache-2.0

package events

import (
	"fmt"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
)

// attributeRefusals are about what the pod's specification says.
var attributeRefusals = []refusal{
	{name: "UnknownKey", attributes: with(attach(onEth0), "imge", "x"), code: codes.InvalidArgument,
		says: `volumeAttributes: unknown key "imge"; did you mean "image"?`,
	},
	{name: "UnknownKeyFar", attributes: with(attach(onEth0), "color", "x"), code: codes.InvalidArgument,
		says: `volumeAttributes: unknown key "color"; known are image, attach, maps, variables, mapEntries, pullPolicy`,
	},
	{name: "MalformedYAML", attributes: attach("- program: ["), code: codes.InvalidArgument,
		says: `volumeAttributes: attach: is not YAML: line 1: did not find expected node content`,
	},
	{name: "EmptyAttribute", attributes: attach(" "), code: codes.InvalidArgument,
		says: `volumeAttributes: attach: is empty; leave the key out or write its value`,
	},
	{name: "NotText", attributes: attach("{program: \x00"), code: codes.InvalidArgument,
		says: `volumeAttributes: attach: is not text; write UTF-8 without NUL bytes`,
	},
	{name: "WrongHook", attributes: attach("{program: count, xpd: eth0}"), code: codes.InvalidArgument,
		says: `volumeAttributes: attach: unknown key "xpd"; did you mean "xdp"?`,
	},
	{name: "WrongHookKey", attributes: attach("[{program: count, xdp: {interface: eth0, mod: auto}}]"), code: codes.InvalidArgument,
		says: `volumeAttributes: attach[0].xdp: unknown key "mod"; did you mean "mode"?`,
	},
	{name: "NoHook", attributes: attach("{program: count}"), code: codes.InvalidArgument,
		says: `volumeAttributes: attach: hook is missing; write one, like xdp: {interface: eth0}`,
	},
	{name: "PriorityOutOfRange", attributes: attach("{program: count, xdp: {interface: eth0, priority: 5000}}"), code: codes.InvalidArgument,
		says: `volumeAttributes: attach.xdp.priority: 5000 is out of range; use 0 to 1000`,
	},
	{name: "SameProgramTwice", attributes: attach("[" + onEth0 + ", " + onEth0 + "]"), code: codes.InvalidArgument,
		says: `volumeAttributes: attach[1]: program "count" is at this point already, by attach[0]; write one entry`,
	},
	{name: "Alias", attributes: attach("[&a " + onEth0 + ", *a]"), code: codes.InvalidArgument,
		says: `volumeAttributes: attach: line 1: has a YAML alias; write its value`,
	},
	{name: "MapTraversal", attributes: with(attach(onEth0), "maps", "../x"), code: codes.InvalidArgument,
		says: `volumeAttributes: maps: "../x" is not the name of a map; write it as in the object, with letters, digits and "_"`,
	},
	{name: "MapDot", attributes: with(attach(onEth0), "maps", "a.b"), code: codes.InvalidArgument,
		says: `volumeAttributes: maps: "a.b" is not the name of a map; write it as in the object, with letters, digits and "_"`,
	},
	{name: "DataSectionDot", attributes: with(attach(onEth0), "maps", ".rodata"), code: codes.InvalidArgument,
		says: `volumeAttributes: maps: ".rodata" is a data section; write it without the dot: "rodata"`,
	},
	{name: "MapAccess", attributes: with(attach(onEth0), "maps", "flows:w"), code: codes.InvalidArgument,
		says: `volumeAttributes: maps: map "flows": unknown access "w"; write "flows" or "flows:rw"`,
	},
	{name: "EntriesOutOfRange", attributes: with(attach(onEth0), "mapEntries", "flows: 0"), code: codes.InvalidArgument,
		says: `volumeAttributes: mapEntries.flows: 0 is out of range; use 1 to 4294967295`,
	},
	{name: "PullPolicy", attributes: with(attach(onEth0), "pullPolicy", "ifnotpresent"), code: codes.InvalidArgument,
		says: `volumeAttributes: pullPolicy: unknown value "ifnotpresent"; did you mean "IfNotPresent"?`,
	},
	{name: "UnknownVerdict", attributes: attach("{program: count, xdp: {interface: eth0, proceedOn: [accept]}}"), code: codes.InvalidArgument,
		says: `volumeAttributes: attach.xdp.proceedOn: unknown verdict "accept"; known are aborted, drop, pass, tx, redirect, dispatcherReturn`,
	},
	{name: "UnknownSelector", attributes: attach("{program: count, xdp: '@wan'}"), code: codes.InvalidArgument,
		says: `volumeAttributes: attach.xdp: unknown selector "@wan"; the one there is is "@default-route"`,
	},
	{name: "SeveralDocuments", attributes: attach(onEth0 + "\n---\n" + onEth0), code: codes.InvalidArgument,
		says: `volumeAttributes: attach: has several YAML documents; write one`,
	},
	{name: "TwoHooks", attributes: attach("{program: count, xdp: eth0, tracepoint: sched/sched_switch}"), code: codes.InvalidArgument,
		says: `volumeAttributes: attach: has two hooks, xdp and tracepoint; write an entry for each`,
	},
	{name: "TwoRates", attributes: attach("{program: count, perfEvent: {event: cpu-clock, frequency: 1, period: 1}}"), code: codes.InvalidArgument,
		says: `volumeAttributes: attach.perfEvent: has both frequency and period; write one`,
	},
	{name: "Octal", attributes: attach("{program: count, xdp: {interface: eth0, priority: 0500}}"), code: codes.InvalidArgument,
		says: `volumeAttributes: attach.xdp.priority: "0500" could be octal or decimal; write 0o... for octal, or no leading zero`,
	},
	{name: "UprobeWithoutSymbol", attributes: attach("{program: count, uprobe: /bin/sh}"), code: codes.InvalidArgument,
		says: `volumeAttributes: attach.uprobe: "/bin/sh" has no symbol; write path:symbol, like /usr/lib/libc.so.6:malloc`,
	},
	{name: "TooManyInterfaces", attributes: attach("{program: count, xdp: {interface: [" + numbered("i", 65) + "]}}"), code: codes.InvalidArgument,
		says: `volumeAttributes: attach.xdp.interface: names 65 interfaces; at most 64 are possible`,
	},
	{name: "MapTwice", attributes: with(attach(onEth0), "maps", "flows, flows"), code: codes.InvalidArgument,
		says: `volumeAttributes: maps: map "flows" is named twice; write it once`,
	},
	{name: "ListForString", attributes: attach("{program: count, xdp: [eth0]}"), code: codes.InvalidArgument,
		says: `volumeAttributes: attach.xdp: is a list; write "eth0", or a map`,
	},
	{name: "LongWhenQuoted", attributes: with(attach(onEth0), "variables", "x: ["+strings.Repeat(".,", 25000)+"]"), code: codes.InvalidArgument,
		says: `volumeAttributes: have 125082 bytes when written out; at most 65536 are possible`,
	},
	{name: "MiB", attributes: attach(strings.Repeat("x", 1<<20)), code: codes.InvalidArgument,
		says: `volumeAttributes: have 1048616 bytes; at most 65536 are possible`,
	},
	{name: "FiveMiB", attributes: attach(strings.Repeat("x", 5<<20)), code: codes.ResourceExhausted,
		says: `grpc: received message larger than max ($N vs. 4194304)`,
	},
	{name: "NoImage", attributes: attach(onEth0), arrange: func(_ *testing.T, _ *node, req *csi.NodePublishVolumeRequest) {
		delete(req.VolumeContext, "image")
	}, code: codes.InvalidArgument,
		says: `volumeAttributes: image: is missing; name a bytecode image, like ghcr.io/acme/count:v1`,
	},
	{name: "EmptyImage", attributes: map[string]string{"image": "", "attach": onEth0}, code: codes.InvalidArgument,
		says: `volumeAttributes: image: is empty; leave the key out or write its value`,
	},
	{name: "BadReference", attributes: map[string]string{"image": "ghcr.io/acme/../x", "attach": onEth0}, code: codes.InvalidArgument,
		says: `image "ghcr.io/acme/../x": bad image reference: repository "acme/../x" is not made of lower-case letters, digits and separators`,
	},
	{name: "IteratorOverAMap", attributes: attach("{program: count, iter: bpf_map_elem}"), code: codes.InvalidArgument,
		says: `volumeAttributes: attach.iter: "bpf_map_elem" walks over one map; read json/<map> of the volume instead`,
	},
	{name: "DefragTooEarly", attributes: attach("{program: count, netfilter: {family: ipv4, hook: preRouting, priority: -400, defrag: true}}"), code: codes.InvalidArgument,
		says: `volumeAttributes: attach.netfilter: packets are put together at priority -400, so defrag needs a higher one than -400`,
	},
}

// numbered is a list of names that end in 0, 1, ...
func numbered(name string, n int) string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprint(name, i)
	}
	return strings.Join(names, ", ")
}
