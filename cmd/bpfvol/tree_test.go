// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"

	"github.com/bpfvol/bpfvol/dispatcher"
	"github.com/bpfvol/bpfvol/internal/node"
)

// Names come from images, pods and whoever names interfaces.
func TestTreeQuotesHostileText(t *testing.T) {
	const evil = "x\x1b[2J\n└─ y  priority 1\u202e"
	points := []node.PointStatus{{
		Point: "xdp " + evil, Hook: "xdp", Problem: evil,
		Interface: node.Interface{Name: evil, Index: 2, AttachedAs: evil, NetNS: node.NetNS{Path: evil}},
		Program:   node.LoadedProgram{ID: 1, Name: evil},
		Members: []node.MemberStatus{{
			Program: evil, VolumeID: evil, Pods: []node.Pod{{Namespace: evil, Name: evil}}, Image: evil, Way: dispatcher.Slot, Why: evil,
		}},
	}, {Point: evil, Members: []node.MemberStatus{{Program: evil, VolumeID: evil}}}}
	var out bytes.Buffer
	if err := pointTree(&out, points); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out.String()) {
		line = strings.TrimSuffix(line, "\n")
		if printable(line) != line {
			t.Errorf("%q", line)
		}
		if start := strings.TrimLeft(line, " ├└│─"); strings.HasPrefix(start, "y  priority") {
			t.Errorf("a line that the name made: %q", line)
		}
	}
}

func TestTreeFitsAHundredColumns(t *testing.T) {
	priority := 1000
	long := node.MemberStatus{
		Program: strings.Repeat("p", 60), Priority: &priority, VolumeID: "csi-1",
		Pods:  []node.Pod{{Namespace: strings.Repeat("n", 40), Name: strings.Repeat("d", 40)}},
		Image: "registry.example.com/" + strings.Repeat("i", 50) + "@sha256:" + strings.Repeat("a", 64), Digest: digest.FromString("x"),
		Way: dispatcher.Slot, Why: "the instructions of all members together are too many for the verifier",
		Counts: &dispatcher.Counts{Packets: 1 << 63, Verdicts: map[string]uint64{"pass": 1 << 60, "drop": 1 << 61, "redirect": 1 << 62, "tx": 1 << 59, "other": 7}},
	}
	var out bytes.Buffer
	if err := pointTree(&out, []node.PointStatus{{Hook: "xdp", Interface: node.Interface{Name: "eth0", Index: 1}, Members: []node.MemberStatus{long, long}}}); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out.String()) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > columns {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	if n := strings.Count(out.String(), "@sha256:"); n != 2 {
		t.Errorf("%d digests of two images:\n%s", n, out.String())
	}
}

// Pods that share a PersistentVolume: one program, and a target each.
func TestPodsThatShareAVolume(t *testing.T) {
	pods := []node.Pod{{Namespace: "demo", Name: "a"}, {Namespace: "demo", Name: "b"}, {Namespace: "demo", Name: "c"}}
	v := node.Volume{Record: node.Record{VolumeID: "pvc-1", Image: "x:v1"}, Health: node.Health{Healthy: true}}
	for _, pod := range pods {
		v.Targets = append(v.Targets, node.Target{Path: "/pods/" + pod.Name, Pod: pod, State: "published"})
	}
	var tree, list bytes.Buffer
	point := node.PointStatus{Point: "tracepoint a/b", Members: []node.MemberStatus{{Program: "p", VolumeID: "pvc-1", Pods: pods, Image: "x:v1"}}}
	err := errors.Join(pointTree(&tree, []node.PointStatus{point}), volumeTable(&list, []node.Volume{v}))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(tree.String(), "demo/a  and 2 more  x:v1") {
		t.Errorf("status is %s", tree.String())
	}
	for _, pod := range pods {
		if want := "demo/" + pod.Name + "\tx:v1\tpublished\t/pods/" + pod.Name + "\tok\n"; !strings.Contains(list.String(), want) {
			t.Errorf("list is %s, want %s in it", list.String(), want)
		}
	}
}

// What help shows of JSON has every field that there is.
func TestStatusExampleHasEveryField(t *testing.T) {
	text, err := json.Marshal(statusExample)
	if err != nil {
		t.Fatal(err)
	}
	var check func(typ reflect.Type)
	check = func(typ reflect.Type) {
		switch typ.Kind() {
		case reflect.Pointer, reflect.Slice:
			check(typ.Elem())
		case reflect.Struct:
			for i := range typ.NumField() {
				name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
				if !strings.Contains(string(text), `"`+name+`":`) {
					t.Errorf("%v: no %q", typ, name)
				}
				check(typ.Field(i).Type)
			}
		}
	}
	check(reflect.TypeFor[node.PointStatus]())
}
