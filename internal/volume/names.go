// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Lengths up to which names are taken. The kernel cuts program and map names at 15 bytes, objects do not.
const (
	maxName      = 128
	maxImage     = 1024
	maxPath      = 4095 // PATH_MAX without its NUL
	maxSymbol    = 4096
	maxInterface = 15  // IFNAMSIZ without its NUL
	maxFunction  = 511 // KSYM_NAME_LEN without its NUL
)

// DefaultRoute stands for the interface that the node's default route uses.
const DefaultRoute = "@default-route"

var (
	programChars  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.]*$`)
	mapChars      = regexp.MustCompile(`^[A-Za-z0-9_]+$`)
	variableChars = regexp.MustCompile(`^[A-Za-z0-9_.]+$`)
	functionChars = regexp.MustCompile(`^[A-Za-z0-9_.$]+$`)
	eventChars    = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)
	pathChars     = regexp.MustCompile(`^[A-Za-z_/][A-Za-z0-9_./-]*$`)
)

func checkProgram(s string) error {
	if !programChars.MatchString(s) || strings.Contains(s, "..") {
		return fmt.Errorf("%s is not the name of a program; write it as in the object, with letters, digits, \"_\" and \".\"", quote(s))
	}
	return checkLength(s, maxName)
}

// checkMap refuses dots because bpffs, where maps are pinned by name, does.
func checkMap(s string) error {
	if section, ok := strings.CutPrefix(s, "."); ok && mapChars.MatchString(section) {
		return fmt.Errorf("%s is a data section; write it without the dot: %s", quote(s), quote(section))
	}
	if !mapChars.MatchString(s) {
		return fmt.Errorf("%s is not the name of a map; write it as in the object, with letters, digits and \"_\"", quote(s))
	}
	return checkLength(s, maxName)
}

func checkVariable(s string) error {
	if !variableChars.MatchString(s) {
		return fmt.Errorf("%s is not the name of a variable; write it as in the object, with letters, digits, \"_\" and \".\"", quote(s))
	}
	return checkLength(s, maxName)
}

// checkInterface takes the names that the kernel does (net/core/dev.c, dev_valid_name), if they are printable, except
// those that look like a list or a pattern.
func checkInterface(s string) error {
	switch {
	case s == DefaultRoute:
		return nil
	case strings.HasPrefix(s, "@"):
		return fmt.Errorf("unknown selector %s; the one there is is %q", quote(s), DefaultRoute)
	case strings.Contains(s, ","):
		return fmt.Errorf("%s is not the name of an interface; write several as a list: [eth0, eth1]", quote(s))
	case strings.ContainsAny(s, "*?"):
		return fmt.Errorf("%s is not the name of an interface; patterns are for policies, name each interface", quote(s))
	case len(s) > maxInterface:
		return fmt.Errorf("%s is too long for the name of an interface; it has at most %d bytes", quote(s), maxInterface)
	case s == "" || s == "." || s == ".." || strings.ContainsAny(s, "/:") || strings.ContainsFunc(s, notGraphicASCII):
		return fmt.Errorf("%s is not the name of an interface", quote(s))
	}
	return nil
}

func checkFunction(s string) error {
	if !functionChars.MatchString(s) {
		return fmt.Errorf("%s is not the name of a kernel function", quote(s))
	}
	return checkLength(s, maxFunction)
}

func checkEvent(s string) error {
	if !eventChars.MatchString(s) {
		return fmt.Errorf("%s is not a name; it has letters, digits and \"_\"", quote(s))
	}
	return checkLength(s, maxName)
}

// checkIterator refuses those that walk over one map: a volume shows its maps anyhow.
func checkIterator(s string) error {
	if slices.Contains([]string{"bpf_map_elem", "bpf_sk_storage_map", "sockmap"}, s) {
		return fmt.Errorf("%s walks over one map; read json/<map> of the volume instead", quote(s))
	}
	return checkEvent(s)
}

// checkSymbol takes what linkers write: in a Go binary a symbol may read `net/http.(*Server).Serve`.
func checkSymbol(s string) error {
	if s == "" || strings.ContainsFunc(s, notGraphicASCII) {
		return fmt.Errorf("%s is not a symbol; write it as in the binary's symbol table", quote(s))
	}
	return checkLength(s, maxSymbol)
}

func checkBinary(s string) error {
	if !strings.HasPrefix(s, "/") {
		return fmt.Errorf("%s is not absolute; start it with \"/\"", quote(s))
	}
	return checkPath(s)
}

// checkPath refuses ".." so that a path can be compared with what a policy allows, and all that is not clean so that
// there is one way to write it.
func checkPath(s string) error {
	if s == "" || strings.ContainsFunc(s, unicode.IsControl) {
		return fmt.Errorf("%s is not a path", quote(s))
	}
	if s == ".." || strings.HasPrefix(s, "../") || path.Clean(s) != s {
		return fmt.Errorf("%s is not clean; write it without \"..\", doubled or trailing slashes", quote(s))
	}
	return checkLength(s, maxPath)
}

func checkImage(s string) error {
	if s == "" || strings.ContainsFunc(s, notGraphicASCII) {
		return fmt.Errorf("%s is not an image reference; write it like ghcr.io/acme/count:v1", quote(s))
	}
	return checkLength(s, maxImage)
}

func checkLength(s string, most int) error {
	if len(s) > most {
		return fmt.Errorf("%s is too long; it has %d bytes, at most %d are possible", quote(s), len(s), most)
	}
	return nil
}

func notGraphicASCII(r rune) bool { return r <= ' ' || r > '~' }

var errText = errors.New("is not text; write UTF-8 without NUL bytes")

func checkText(s string) error {
	if !utf8.ValidString(s) || strings.ContainsRune(s, 0) {
		return errText
	}
	return nil
}

// quote makes a piece of input fit for a message: quoted, and short.
func quote(s string) string {
	const most = 64
	if len(s) > most {
		return strconv.QuoteToASCII(strings.ToValidUTF8(s[:most], "")) + "..."
	}
	return strconv.QuoteToASCII(s)
}
