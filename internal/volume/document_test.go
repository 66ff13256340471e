// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const documentFile = "../../docs/attributes.md"

// docs/attributes.md is what the code says; go generate ./internal/volume writes it.
func TestDocumentIsCurrent(t *testing.T) {
	want := document()
	if *update {
		if err := os.WriteFile(documentFile, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(documentFile)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("run go generate ./internal/volume; docs/attributes.md differs (-want +got):\n%s", diff)
	}
}

func TestExamplesOfTheDocumentAreGood(t *testing.T) {
	if _, err := ParseAttach(attachExample); err != nil {
		t.Error(err)
	}
	for _, kind := range Kinds {
		s := newHook(kind).shape()
		for _, example := range []string{s.example, s.smallest()} {
			if example == "" {
				continue
			}
			if _, err := ParseAttach("{program: count, " + string(kind) + ": " + example + "}"); err != nil {
				t.Errorf("%s: %s: %v", kind, example, err)
			}
		}
	}
}

const attachExample = `- program: count
  xdp: {interface: eth0, priority: 100, proceedOn: [pass]}
- program: count_out
  tc: {interface: [eth0, eth1], direction: egress}
- program: on_exec
  tracepoint: syscalls/sys_enter_execve
`

func document() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }

	p("<!-- Written by go generate ./internal/volume. -->")
	p("# Attributes of a volume")
	p("")
	p("The same keys are the `volumeAttributes` of a pod's inline volume or a PersistentVolume, the `parameters` of a")
	p("StorageClass, and the flags of `bpfvol run` and `bpfvol publish`. A key or value that is not described here is refused,")
	p("with the nearest known word.")
	p("")
	p("| key | type | when left out | meaning |")
	p("|---|---|---|---|")
	for _, a := range Attributes {
		p("| `%s` | %s | %s | %s |", a.Key, a.Type, a.Default, a.Doc)
	}
	p("")
	p("```yaml")
	p("volumes:")
	p("- name: bpf")
	p("  csi:")
	p("    driver: csi.bpfvol.io")
	p("    volumeAttributes:")
	p("      image: ghcr.io/acme/count:v1")
	p("      attach: |")
	for line := range strings.Lines(attachExample) {
		p("        %s", strings.TrimSuffix(line, "\n"))
	}
	p("      maps: flows, totals")
	p("      variables: |")
	p("        sample_rate: 100")
	p("      mapEntries: |")
	p("        flows: 65536")
	p("```")
	p("")
	p("YAML is read strictly: one document, no key twice, no aliases, no tags. Variables are integers of up to 64 bits,")
	p("`true` or `false`, strings, lists and maps; names of interfaces, programs and the like are strings.")
	p("")
	p("Limits: %d KiB for all attributes together, %d attachments, %d interfaces of one attachment, %d maps, %d variables.",
		maxAttributes>>10, maxAttach, maxInterfaces, maxMaps, maxVariables)
	p("")
	p("An image of a registry that wants a login needs a Secret beside the attributes: `nodePublishSecretRef`, see")
	p("[registries.md](registries.md#credentials).")
	p("")
	p("## maps")
	p("")
	p("Every map that is shown is in `maps` and, where its type allows, in `json`, for reading. A map with `:rw` is in `rw`, too,")
	p("if a policy's `allow.writableMaps` has its name: what opens `/bpf/rw/config` by bpf(2) may change what is in the map, and")
	p("the program sees it. No file can be made, renamed or removed there, by root neither. Who may write is who may read: the")
	p("pod's `fsGroup` alone, or everybody in the pod where there is none, as nobody but the pod knows who that is. A ring buffer")
	p("must be `:rw` for a pod to read its events, as it writes how far it has read.")
	p("")
	p("bpf(2) is refused by the runtimes' default seccomp profile; `deploy/seccomp/bpf-writer.json` allows what it takes to write")
	p("maps, `bpf-reader.json` what it takes to read them.")
	p("")
	p("A pod's own volume with `readOnly: true` cannot have a map with `:rw`. Of a PersistentVolume, whose attributes an admin")
	p("wrote, such a pod sees no `rw`, and neither does any where the access mode is `ReadOnlyMany`. `readOnly` of a container's")
	p("`volumeMounts` is another thing, and stops no write to a map: it is a flag of the mount, as `rw` has it already.")
	p("")
	p("## attach")
	p("")
	p("Each entry has a `program` and one of the hooks below. A hook is a map; where a short form is shown, that string may")
	p("stand for the map. One entry alone may be written without the list. A hook that the node's kernel cannot attach is refused")
	p("when the volume is published; `bpfvol doctor` on the node says which it can. Policies allow `xdp`, `tc` and `tracepoint`")
	p("unless they name others.")
	p("")
	p("Programs of any number of volumes share `xdp`, and each direction of `tc`, on an interface. They run in the order of")
	p("`priority`; the same number is no conflict, the order is then that of the volumes' ids. What a program returns decides:")
	p("a result in its `proceedOn` lets the next one run, any other ends the chain and is the result. Where none ended it, the")
	p("result is `pass` (XDP) or `unspec` (TC), for one program alone, too: so others that come do not change what it means. A")
	p("program sees packets as those before it left them. The other hooks are shared by the kernel itself.")
	for _, kind := range Kinds {
		s := newHook(kind).shape()
		p("")
		p("### %s", kind)
		p("")
		p("Attaches to %s.", s.doc)
		p("")
		p("```yaml")
		if s.example != "" {
			p("%s: %s   # short form", kind, s.example)
		}
		p("%s: %s", kind, s.smallest())
		p("```")
		if len(s.fields) == 0 {
			continue
		}
		p("")
		p("| key | type | when left out | meaning |")
		p("|---|---|---|---|")
		for _, f := range s.fields {
			absent := f.absent
			switch {
			case f.required:
				absent = "required"
			case absent == "":
				absent = "`" + strings.TrimSpace(encode(f.value.write())) + "`"
			}
			p("| `%s` | %s | %s | %s |", f.key, f.value.words(), absent, f.doc)
		}
	}
	return b.String()
}
