// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/verify"
)

// rules are the policies: for each, which of the names it covers and whether the service account may use it. Each is a
// variable of its own, since the API server bounds the cost of a single expression, and a variable that no answer
// depends on is not evaluated: RBAC is asked only about policies that cover an image.
func rules(policies []*verify.Policy, subjects bool) []namedExpression {
	var vars []namedExpression
	var covered, usable, candidates []string
	for i, p := range policies {
		globs := make([]string, len(p.Images))
		for j, g := range p.Images {
			globs[j] = matches(g.Regexp())
		}
		use := fmt.Sprintf(`authorizer.serviceAccount(request.namespace, variables.account).group('%s').resource('%s').namespace(request.namespace).name(%s).check('%s').allowed()`,
			v1alpha1.Group, v1alpha1.Resource, quote(p.Name), v1alpha1.VerbUse)
		if subjects {
			use = among(p.Subjects)
		}
		covers := `covers` + strconv.Itoa(i)
		vars = append(vars,
			namedExpression{covers, `variables.names.filter(n, ` + strings.Join(globs, ` || `) + `)`},
			namedExpression{`use` + strconv.Itoa(i), use})
		covered = append(covered, `n in variables.`+covers)
		usable = append(usable, fmt.Sprintf(`n in variables.%s && variables.use%d`, covers, i))
		candidates = append(candidates, fmt.Sprintf(`(size(variables.%s) > 0 ? [%s] : [])`, covers, quote(p.Name)))
	}
	return append(vars,
		namedExpression{"uncovered", `variables.names.filter(n, !(` + either(covered, `false`, ` || `) + `))`},
		namedExpression{"denied", `variables.names.filter(n, !(` + either(usable, `false`, ` || `) + `))`},
		namedExpression{"candidates", either(candidates, `[]`, ` + `)})
}

// matches is the expression for a name that an anchored regular expression matches. How a name begins costs the API
// server a tenth of the whole question, and most globs end there.
func matches(expression string) string {
	question := `n.matches(` + quote(expression) + `)`
	if prefix, _ := regexp.MustCompile(strings.TrimPrefix(expression, `^`)).LiteralPrefix(); prefix != "" {
		return `n.startsWith(` + quote(prefix) + `) && ` + question
	}
	return question
}

// either joins terms, of which there may be none.
func either(terms []string, none, operator string) string {
	if len(terms) == 0 {
		return none
	}
	return strings.Join(terms, operator)
}

// among is the expression for a service account that subjects of a file name.
func among(subjects []string) string {
	var terms []string
	for _, s := range subjects {
		namespace, account, found := strings.Cut(s, "/")
		switch {
		case !found: // "*"
			return `true`
		case account == "*":
			terms = append(terms, `request.namespace == `+quote(namespace))
		default:
			terms = append(terms, `request.namespace == `+quote(namespace)+` && variables.account == `+quote(account))
		}
	}
	return either(terms, `false`, ` || `)
}

// quote writes a string literal of CEL, whose escapes are Go's.
func quote(s string) string { return strconv.Quote(s) }
