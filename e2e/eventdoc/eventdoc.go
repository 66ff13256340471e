// SPDX-License-Identifier: Apache-2.0

// Package eventdoc is docs/events.md as tests read it: every text that the driver answers with stands there under its
// code. Tests of several packages hold their answers against it.
package eventdoc

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// File is where the document is, seen from a package below e2e.
const File = "../../docs/events.md"

// Entry is one text of the document.
type Entry struct {
	Code string
	Text string
	*regexp.Regexp
}

var placeholder = regexp.MustCompile(`<[^<>]+>`)

// Read returns the document's texts, and its sections, which are named after codes.
func Read(t testing.TB) (entries []Entry, sections []string) {
	t.Helper()
	text, err := os.ReadFile(File)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		if code, ok := strings.CutPrefix(line, "## "); ok {
			sections = append(sections, code)
		}
		text, ok := strings.CutPrefix(line, "- `")
		if !ok {
			continue
		}
		text, ok = strings.CutSuffix(text, "`\\")
		if !ok || len(sections) == 0 {
			t.Errorf("entry is not written like the others: %s", line)
			continue
		}
		pattern := placeholder.ReplaceAllString(regexp.QuoteMeta(text), ".*")
		entries = append(entries, Entry{sections[len(sections)-1], text, regexp.MustCompile("^" + pattern + "$")})
	}
	return entries, sections
}

// Has says whether the document has a text, which may have wildcards in it, under its code.
func Has(entries []Entry, code codes.Code, says string) bool {
	return slices.ContainsFunc(entries, func(e Entry) bool { return e.Code == code.String() && e.MatchString(says) })
}

// wildcards stand in a text for what differs from run to run: any digest, any number, words of the kernel or a library.
var wildcards = strings.NewReplacer(`\$SHA`, `sha256:[0-9a-f]{64}`, `\$N`, `[0-9]+`, `\$WORDS`, `.+`)

// Check fails the test unless err is a status with code and this text, in which $SHA, $N and $WORDS are wildcards; the
// text is short enough not to be cut; and nothing of private is in it, which would make each event another.
func Check(t testing.TB, err error, code codes.Code, says string, private map[string]string) {
	t.Helper()
	got := status.Convert(err)
	if got.Code() != code {
		t.Errorf("code is %v, want %v", got.Code(), code)
	}
	if !regexp.MustCompile("^" + wildcards.Replace(regexp.QuoteMeta(says)) + "$").MatchString(got.Message()) {
		t.Errorf("the message is\n\t%s\nwant\n\t%s", got.Message(), says)
	}
	if len(got.Message()) > 700 || strings.Contains(got.Message(), "…") {
		t.Errorf("the message is too long, or was cut: %s", got.Message())
	}
	for what, part := range private {
		if part != "" && strings.Contains(got.Message(), part) {
			t.Errorf("the message has %s in it: %s", what, got.Message())
		}
	}
}
