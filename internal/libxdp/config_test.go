// SPDX-License-Identifier: Apache-2.0

package libxdp

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
)

func exampleConfig(version uint8) config {
	return config{version: version, frags: true, devBound: version == version3, slots: []slotConfig{
		{actions: alwaysProceed | onPass, priority: 10, flags: hasFrags},
		{actions: alwaysProceed, priority: 0xffffffff, flags: 0x80000000},
	}}
}

// The layout is libxdp's struct xdp_dispatcher_config (headers/xdp/prog_dispatcher.h).
func TestConfigIsLaidOutAsInC(t *testing.T) {
	for version, size := range map[uint8]int{version2: 124, version3: 128} {
		want := make([]byte, size)
		copy(want, []byte{236, version, 2, 1})
		put := func(offset int, v uint32) { binary.NativeEndian.PutUint32(want[offset:], v) }
		put(4, 0x80000004)
		put(8, 0x80000000)
		put(44, 10)
		put(48, 0xffffffff)
		put(84, 32)
		put(88, 0x80000000)
		if version == version3 {
			want[124] = 1
		}
		if diff := cmp.Diff(want, exampleConfig(version).encode()); diff != "" {
			t.Errorf("version %d (-want +got):\n%s", version, diff)
		}
	}
}

// The object of Debian's libxdp has the map that ours is like.
func TestConfigMapIsLikeLibxdps(t *testing.T) {
	objects, err := filepath.Glob("/usr/lib/*/bpf/xdp-dispatcher.o")
	if err != nil || len(objects) == 0 {
		t.Skip("no object of libxdp here; install xdp-tools")
	}
	spec, err := ebpf.LoadCollectionSpec(objects[0])
	if err != nil {
		t.Fatal(err)
	}
	m := spec.Maps[".rodata"]
	if m == nil {
		t.Fatalf("%s has no .rodata", objects[0])
	}
	version := map[uint32]uint8{size2: version2, size3: version3}[m.ValueSize]
	if m.Type != ebpf.Array || m.KeySize != 4 || m.MaxEntries != 1 || version == 0 {
		t.Errorf("its map is %v of %d entries with %d and %d bytes", m.Type, m.MaxEntries, m.KeySize, m.ValueSize)
	}
	if spec.Programs[dispatcherName] == nil {
		t.Errorf("it has no program %s", dispatcherName)
	}
}

func TestConfigOfOthersIsRefused(t *testing.T) {
	valid := func(version uint8, change func(b []byte)) []byte {
		b := exampleConfig(version).encode()
		change(b)
		return b
	}
	for name, c := range map[string]struct {
		bytes []byte
		want  string
	}{
		"nothing":         {nil, "before version 2"},
		"short":           {[]byte{236, 2}, "before version 2"},
		"version 1":       {append([]byte{2, 0, 0, 0}, make([]byte, 80)...), "before version 2"},
		"version 4":       {valid(3, func(b []byte) { b[1] = 4 }), "version 4, and this bpfvol knows 2 and 3"},
		"2 as long as 3":  {valid(3, func(b []byte) { b[1] = 2 }), "version 2 has 128 bytes"},
		"3 as short as 2": {valid(2, func(b []byte) { b[1] = 3 }), "version 3 has 124 bytes"},
		"no component":    {valid(2, func(b []byte) { b[2] = 0 }), "counts 0 components, of 1 to 10"},
		"11 components":   {valid(2, func(b []byte) { b[2] = 11 }), "counts 11 components, of 1 to 10"},
	} {
		if _, err := decodeConfig(c.bytes); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error is %v, want %q", name, err, c.want)
		}
	}
	var unknown *versionError
	if _, err := decodeConfig(valid(3, func(b []byte) { b[1] = 200 })); !errors.As(err, &unknown) || unknown.version != 200 {
		t.Errorf("error is %v, want one of version 200", err)
	}
}

// Whatever the map of a program that is called a dispatcher holds, what is made of it can be written back, and is read
// as the same again.
func FuzzConfig(f *testing.F) {
	for _, version := range []uint8{version2, version3} {
		f.Add(exampleConfig(version).encode())
	}
	f.Add([]byte{236, 2, 10, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeConfig(b)
		if err != nil {
			if len(err.Error()) > 200 {
				t.Errorf("error has %d bytes", len(err.Error()))
			}
			return
		}
		if n := len(c.slots); n < 1 || n > maxSlots {
			t.Errorf("%d slots", n)
		}
		again, err := decodeConfig(c.encode())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c, again, cmp.AllowUnexported(config{}, slotConfig{})); diff != "" {
			t.Errorf("read again (-first +second):\n%s", diff)
		}
	})
}

// Order is a function of the set.
func TestOrderIsLibxdps(t *testing.T) {
	component := func(name string, priority uint32) Component {
		return Component{Name: name, Run: Run{Priority: priority}}
	}
	want := []*slot{
		{Component: component("z", 1)},
		{Component: component("B", 50)}, // bytes, not letters
		{Component: component("a", 50)},
		{Component: component("aa", 50), tag: "00ff", loaded: 9},
		{Component: component("aa", 50), tag: "ff00", loaded: 3},
		{Component: component("aa", 50), tag: "ff00", loaded: 4},
		{Component: component("\xff", 50)},
		{Component: component("", 1<<32-1)},
	}
	for range 100 {
		got := slices.Clone(want)
		rand.Shuffle(len(got), func(i, j int) { got[i], got[j] = got[j], got[i] })
		sortSlots(got)
		if !slices.Equal(got, want) {
			for _, s := range got {
				t.Log(*s)
			}
			t.Fatal("not in this order")
		}
	}
}

// Nobody has put anything there, and so nothing is made there either.
func TestRemoveWithoutDirectoryMakesNone(t *testing.T) {
	p := Protocol{Dir: filepath.Join(t.TempDir(), "xdp")}
	if err := p.Remove(t.Context(), 1, 1); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(p.Dir); err == nil {
		t.Error("the directory was made")
	}
}
