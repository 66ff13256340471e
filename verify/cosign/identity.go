// SPDX-License-Identifier: Apache-2.0

package cosign

import (
	"fmt"
	"regexp"
	"regexp/syntax"
	"strconv"
	"strings"

	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"
	sgverify "github.com/sigstore/sigstore-go/pkg/verify"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
)

const (
	maxIdentity = 1024  // bytes of an issuer or subject in a policy, exact or as an expression
	maxProgram  = 10000 // instructions of a compiled expression: "((a{99}){9}){9}" is short to write
)

// compileIdentity takes issuer and subject, each either exactly or as an expression that must match the whole of it.
// (sigstore-go looks for a match anywhere: "https://github.com/acme/x" would cover https://github.com/acme/x-evil.)
func compileIdentity(spec *v1alpha1.Keyless) (sgverify.CertificateIdentity, error) {
	var id sgverify.CertificateIdentity
	issuer, err := compileWords("issuer", spec.Issuer, spec.IssuerRegexp)
	if err != nil {
		return id, err
	}
	subject, err := compileWords("subject", spec.Subject, spec.SubjectRegexp)
	if err != nil {
		return id, err
	}
	return sgverify.NewShortCertificateIdentity(spec.Issuer, issuer, spec.Subject, subject)
}

// compileWords checks what a policy says of an issuer or a subject, and returns the anchored expression, if it is one.
func compileWords(what, exact, expression string) (string, error) {
	switch {
	case exact == "" && expression == "":
		return "", fmt.Errorf("%s: is missing; write %[1]s or %[1]sRegexp", what)
	case exact != "" && expression != "":
		return "", fmt.Errorf("%s: has both %[1]s and %[1]sRegexp; write one", what)
	case len(exact) > maxIdentity:
		return "", fmt.Errorf("%s: has %d bytes; the limit is %d", what, len(exact), maxIdentity)
	case exact != "":
		return "", nil
	case len(expression) > maxIdentity:
		return "", fmt.Errorf("%sRegexp: has %d bytes; the limit is %d", what, len(expression), maxIdentity)
	}
	anchored, err := anchor(expression)
	if err != nil {
		return "", fmt.Errorf("%sRegexp: %w", what, err)
	}
	return anchored, nil
}

// anchor makes an expression match the whole text or nothing.
func anchor(expression string) (string, error) {
	// By itself first: "a)|(?:b" would otherwise step out of the group.
	parsed, err := syntax.Parse(expression, syntax.Perl)
	if err != nil {
		return "", fmt.Errorf("is no regular expression (RE2): %w", err)
	}
	program, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return "", fmt.Errorf("is no regular expression (RE2): %w", err)
	}
	if n := len(program.Inst); n > maxProgram {
		return "", fmt.Errorf("compiles to %d instructions; the limit is %d", n, maxProgram)
	}
	anchored := `^(?:` + expression + `)$`
	re, err := regexp.Compile(anchored)
	if err != nil {
		return "", fmt.Errorf("is no regular expression (RE2): %w", err)
	}
	for _, nobody := range nobodies {
		if re.MatchString(nobody) {
			return "", fmt.Errorf("matches anybody, also %q; name whom you trust", nobody)
		}
	}
	return anchored, nil
}

// nobodies are identities that cannot exist, for the domain .invalid never will (RFC 2606), nor would an issuer give out
// the others. An expression that matches one of them names no one: .*, .+, (.*), https://.*, .*@.*, \S+, [^x]*. The long
// ones have every letter and digit, so that .*e.* is among them.
var nobodies = []string{
	"https://nobody.invalid",
	"https://nobody.invalid/nobody",
	"http://nobody.invalid/nobody",
	"spiffe://nobody.invalid/nobody",
	"nobody@nobody.invalid",
	"https://the-quick-brown-fox-jumps-over-the-lazy-dog.invalid/THE_QUICK_BROWN_FOX/JUMPS.OVER/THE+LAZY=DOG:0123456789?a=b&c#@x",
	"the-quick.brown_fox+jumps.over.the.lazy.dog0123456789@THE-QUICK-BROWN-FOX-JUMPS-OVER-THE-LAZY-DOG.invalid",
	"nobody",
	"NOBODY",
	"0123456789",
	"\u2603",
}

// identityOf is a signer in words: they are whatever the certificate has.
func identityOf(cert certificate.Summary) string {
	return word(cert.SubjectAlternativeName) + " (issuer " + word(cert.Issuer) + ")"
}

// word quotes text that could be taken for more than one word, and cuts it short.
func word(s string) string {
	const most = 200
	if len(s) > most {
		s = s[:most] + "..."
	}
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"'()\`, r) }) {
		return strconv.QuoteToASCII(s)
	}
	return s
}
