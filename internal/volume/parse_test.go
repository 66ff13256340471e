// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write what the code does now as what it should do")

func TestGoodAttributes(t *testing.T) {
	vectors(t, "testdata/good.txtar", func(t *testing.T, attributes map[string]string) string {
		t.Helper()
		s, err := Parse(attributes)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse(s.Attributes())
		if err != nil {
			t.Fatalf("canonical attributes: %v", err)
		}
		if diff := cmp.Diff(s, again); diff != "" {
			t.Errorf("canonical attributes mean something else (-want +got):\n%s", diff)
		}
		return inWords(t, s)
	})
}

func TestBadAttributes(t *testing.T) {
	vectors(t, "testdata/bad.txtar", func(t *testing.T, attributes map[string]string) string {
		t.Helper()
		s, err := Parse(attributes)
		if err == nil {
			t.Fatalf("taken as %+v", s)
		}
		checkError(t, err)
		return err.Error() + "\n"
	})
}

// vectors runs each .in part of an archive and compares with the .out part behind it.
func vectors(t *testing.T, file string, run func(*testing.T, map[string]string) string) {
	t.Helper()
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for _, f := range archive.Files {
		if name, ok := strings.CutSuffix(f.Name, ".out"); ok {
			want[name] = string(f.Data)
		}
	}
	written := &txtar.Archive{Comment: archive.Comment}
	for _, f := range archive.Files {
		name, ok := strings.CutSuffix(f.Name, ".in")
		if !ok {
			continue
		}
		t.Run(name, func(t *testing.T) {
			var attributes map[string]string
			if err := yaml.UnmarshalStrict(f.Data, &attributes); err != nil {
				t.Fatal(err)
			}
			got := run(t, attributes)
			written.Files = append(written.Files, f, txtar.File{Name: name + ".out", Data: []byte(got)})
			if diff := cmp.Diff(want[name], got); diff != "" && !*update {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
	if *update {
		if err := os.WriteFile(file, txtar.Format(written), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// inWords shows a volume as JSON with each hook under its name.
func inWords(t *testing.T, s Spec) string {
	t.Helper()
	type attach map[string]any
	out := struct {
		Image      string
		Attach     []attach          `json:",omitempty"`
		Maps       []MapRef          `json:",omitempty"`
		Variables  map[string]any    `json:",omitempty"`
		MapEntries map[string]uint32 `json:",omitempty"`
		PullPolicy PullPolicy
	}{s.Image, nil, s.Maps, s.Variables, s.MapEntries, s.PullPolicy}
	for _, a := range s.Attach {
		out.Attach = append(out.Attach, attach{"program": a.Program, string(a.Hook.Kind()): a.Hook, "point": a.Hook.String()})
	}
	b, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b) + "\n"
}

// checkError fails unless err is what Parse promises.
func checkError(t *testing.T, err error) {
	t.Helper()
	var attribute *AttributeError
	if !errors.As(err, &attribute) {
		t.Errorf("got a %T, want an AttributeError", err)
	}
	const most = 700 // DESIGN: what an event shows
	if msg := err.Error(); len(msg) > most || strings.ContainsFunc(msg, func(r rune) bool { return r < ' ' || r > '~' }) {
		t.Errorf("message does not fit an event: %q (%d bytes)", msg, len(msg))
	}
}

func TestParseRefusesWhatIsTooMuch(t *testing.T) {
	many := func(n int, format string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format, i)
		}
		return b.String()
	}
	for name, attributes := range map[string]map[string]string{
		"an attribute of 1 MiB":    {"image": "a:1", "attach": strings.Repeat("x", 1<<20)},
		"a key of 1 MiB":           {"image": "a:1", strings.Repeat("x", 1<<20): "x"},
		"65 attachments":           {"image": "a:1", "attach": many(65, "- {program: p%d, xdp: eth0}\n")},
		"65 interfaces":            {"image": "a:1", "attach": "{program: a, xdp: {interface: [" + many(65, "i%d,") + "]}}"},
		"129 maps":                 {"image": "a:1", "maps": many(129, "m%d,")},
		"257 variables":            {"image": "a:1", "variables": many(257, "v%d: 1\n")},
		"129 map entries":          {"image": "a:1", "mapEntries": many(129, "m%d: 1\n")},
		"a list nested 1000 times": {"image": "a:1", "variables": "a: " + strings.Repeat("[", 1000) + strings.Repeat("]", 1000)},
		"a list nested 20000 times without an end": {"image": "a:1", "variables": "a: " + strings.Repeat("[", 20000)},
		"a long image":        {"image": strings.Repeat("x", 2000)},
		"a long program name": {"image": "a:1", "attach": "{program: " + strings.Repeat("x", 200) + ", xdp: eth0}"},
		"a long unknown key":  {"image": "a:1", strings.Repeat("x", 2000): "x"},
		"a long unknown field, deep": {"image": "a:1", "variables": "{" + strings.Repeat("x", 1000) + ": {" +
			strings.Repeat("y", 1000) + ": {" + strings.Repeat("z", 1000) + ": 1.5}}}"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Parse(attributes); err == nil {
				t.Error("taken")
			} else {
				checkError(t, err)
			}
		})
	}
}

// What Parse takes, it takes again in its canonical form, though that may be longer.
func TestCanonicalFormOfLargeAttributesIsTaken(t *testing.T) {
	for name, item := range map[string]string{
		"dots": ".,", "backslashes": `\,`, "emoji": "\U0001F600,", "byte order marks": "\ufeff,", "numbers": "1,", "names": "a,",
		"quotes": `'"',`, "digits first": "1x,",
	} {
		t.Run(name, func(t *testing.T) {
			taken := 0
			for n := 64; n*len(item) < maxAttributes; n += 8000 {
				s, err := Parse(map[string]string{"image": "a:1", "variables": "a: [" + strings.Repeat(item, n) + "]"})
				if err != nil {
					checkError(t, err)
					continue
				}
				taken++
				if _, err := Parse(s.Attributes()); err != nil {
					t.Errorf("%d times: %v", n, err)
				}
			}
			if taken == 0 {
				t.Error("none was taken")
			}
		})
	}
}

// An alias that stands for aliases that stand for aliases: 10^9 elements in 500 bytes.
func TestAliasBombIsRefused(t *testing.T) {
	var b strings.Builder
	b.WriteString("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n")
	for i := 1; i < 9; i++ {
		fmt.Fprintf(&b, "a%d: &a%d [%s*a%d]\n", i, i, strings.Repeat(fmt.Sprintf("*a%d,", i-1), 9), i-1)
	}
	_, err := Parse(map[string]string{"image": "a:1", "variables": b.String()})
	if err == nil || !strings.Contains(err.Error(), "alias") {
		t.Errorf("got %v, want a word about aliases", err)
	}
}

func TestParseRefusesWhatIsNoText(t *testing.T) {
	for _, v := range []string{"a\x00b", "\xff\xfe", "a: \x00"} {
		for _, key := range []string{"image", "attach", "maps", "variables", "mapEntries", "pullPolicy"} {
			_, err := Parse(map[string]string{"image": "a:1", key: v})
			if err == nil {
				t.Errorf("%s: %q was taken", key, v)
				continue
			}
			checkError(t, err)
		}
	}
}

// Of several errors a retry must report the same one, or events pile up.
func TestParseReportsTheSameErrorEachTime(t *testing.T) {
	attributes := map[string]string{"a": "", "b": "", "c": "", "image": "", "maps": "/", "attach": "["}
	_, want := Parse(attributes)
	for range 100 {
		if _, got := Parse(attributes); got.Error() != want.Error() {
			t.Fatalf("got %q, before %q", got, want)
		}
	}
}

func TestEveryKindCanBeWritten(t *testing.T) {
	for _, kind := range Kinds {
		_, err := ParseAttach("{program: a, " + string(kind) + ": 1}")
		if err == nil || !strings.Contains(err.Error(), "write") {
			t.Errorf("%s: got %v, want an error that says what to write", kind, err)
		}
	}
}
