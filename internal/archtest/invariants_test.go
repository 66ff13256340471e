// SPDX-License-Identifier: Apache-2.0

package archtest

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	testNamed   = regexp.MustCompile(`\bTest[A-Z]\w+`)
	testDefined = regexp.MustCompile(`(?m)^func (Test[A-Z]\w+)\(t `)
)

// Package docs name the test that holds each invariant. A renamed test must not leave a promise that nothing holds.
func TestInvariantsNameTestsThatExist(t *testing.T) {
	defined := map[string]bool{}
	named := map[string]string{} // to the file that names it
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && strings.HasPrefix(d.Name(), ".") && d.Name() != ".." {
			return filepath.SkipDir
		}
		ext := filepath.Ext(path)
		if ext != ".go" && ext != ".md" {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if strings.HasSuffix(path, "_test.go") {
			for _, m := range testDefined.FindAllSubmatch(text, -1) {
				defined[string(m[1])] = true
			}
			return nil
		}
		for line := range strings.Lines(string(text)) {
			if ext == ".go" && !strings.HasPrefix(strings.TrimSpace(line), "//") {
				continue
			}
			for _, name := range testNamed.FindAllString(line, -1) {
				named[name] = path
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// Examples of how a test reads, not promises.
	examples := map[string]bool{"TestMain": true, "TestDropStopsPackets": true, "TestCount": true, "TestDetachKeepsOrderOfOthers": true}
	for name, path := range named {
		if !defined[name] && !examples[name] {
			t.Errorf("%s names %s, which does not exist", path, name)
		}
	}
}
