// SPDX-License-Identifier: Apache-2.0

// Package admission writes a Kubernetes ValidatingAdmissionPolicy that answers at `kubectl apply` what the node plugin
// would answer when the pod starts: does a BytecodePolicy cover the image, and may the pod's service account use it?
//
//	policies, err := admission.Read(yaml, "-")            // BytecodePolicies, or a List of them
//	manifest, err := admission.Manifest(policies, admission.Options{Driver: "csi.bpfvol.io"})
//
// The policies are part of the text, since parameters of a ValidatingAdmissionPolicy must all agree while one usable
// policy is enough here: when policies change, it is generated again. The node decides in any case; this only tells
// earlier. Signatures and what programs do are not its subject: that takes the image.
//
// What holds, and the test that shows it with a real API server:
//   - both give the same answer, whatever the spelling of the image (TestAdmissionAnswersAsTheNodeDoes);
//   - every kind that makes pods is asked, once it changes its pods (TestAdmissionAsksWhatMakesPods);
//   - a refusal says what is missing and what to do (TestAdmissionSaysWhatIsMissing);
//   - fifty policies fit into what the API server lets an expression cost (TestAdmissionHoldsFiftyPolicies).
package admission

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/verify"
)

// Options say how nodes are set up.
type Options struct {
	// Driver is the name of the CSI driver.
	Driver string
	// Subjects says that nodes read their policies from files, whose subjects decide. Else the policies are objects of the
	// cluster, and the RBAC verb "use" decides.
	Subjects bool
}

// Manifest returns a ValidatingAdmissionPolicy and its binding, in the order to apply them.
func Manifest(policies []*verify.Policy, opts Options) []any {
	p := admissionPolicy{
		meta: meta{APIVersion: apiVersion, Kind: "ValidatingAdmissionPolicy", Metadata: named{opts.Driver}},
		Spec: policySpec{
			FailurePolicy: "Fail",
			MatchConstraints: match{ResourceRules: []resourceRule{
				{APIGroups: []string{""}, APIVersions: []string{"v1"}, Operations: []string{"CREATE"}, Resources: []string{"pods"}},
				{APIGroups: []string{""}, APIVersions: []string{"v1"}, Operations: []string{"CREATE", "UPDATE"}, Resources: []string{"replicationcontrollers"}},
				{APIGroups: []string{"apps"}, APIVersions: []string{"v1"}, Operations: []string{"CREATE", "UPDATE"}, Resources: []string{"daemonsets", "deployments", "replicasets", "statefulsets"}},
				{APIGroups: []string{"batch"}, APIVersions: []string{"v1"}, Operations: []string{"CREATE", "UPDATE"}, Resources: []string{"cronjobs", "jobs"}},
			}},
			MatchConditions: []namedExpression{{
				Name:       "pods-change", // scaling and annotating goes on after a grant was revoked
				Expression: `request.operation == 'CREATE' || ` + template(`object`) + ` != ` + template(`oldObject`),
			}},
			Variables: append(variables(opts.Driver), rules(policies, opts.Subjects)...),
			Validations: []validation{
				{
					Expression:        `variables.volumes.all(v, !has(v.csi.volumeAttributes) || v.csi.volumeAttributes.all(k, !k.startsWith('` + reserved + `')))`,
					MessageExpression: `'volume attributes ` + reserved + `* are for kubelet; leave them out'`,
				},
				{
					Expression:        `size(variables.images) == size(variables.volumes)`,
					MessageExpression: `'volume "' + variables.volumes.filter(v, !(has(v.csi.volumeAttributes) && 'image' in v.csi.volumeAttributes))[0].name + '": attribute image is missing; write it as host/repository:tag'`,
				},
				{
					Expression:        `size(variables.malformed) == 0`,
					MessageExpression: `'image "' + variables.malformed[0] + '" is no reference; write it as host/repository:tag'`,
				},
				{
					Expression: `size(variables.malformed) > 0 || size(variables.uncovered) == 0`,
					MessageExpression: `'image "' + variables.uncovered[0] + '": no BytecodePolicy covers it; an admin must add one whose images include it` +
						regenerate + `'`,
				},
				{
					// A message cannot ask the authorizer, so of several images it does not say which.
					Expression:        `size(variables.malformed) > 0 || size(variables.uncovered) > 0 || size(variables.denied) == 0`,
					MessageExpression: `(size(variables.names) > 1 ? 'one of the images "' : 'image "') + variables.names.join('", "') + '": service account "' + request.namespace + '/' + variables.account + '" may use none of the BytecodePolicies that cover it (' + variables.candidates.join(', ') + '); ` + fix(opts.Subjects) + `'`,
				},
			},
		},
	}
	b := binding{
		meta: meta{APIVersion: apiVersion, Kind: "ValidatingAdmissionPolicyBinding", Metadata: named{opts.Driver}},
		Spec: bindingSpec{PolicyName: opts.Driver, ValidationActions: []string{"Deny"}},
	}
	return []any{p, b}
}

const (
	// reserved begins the attributes that kubelet adds.
	reserved   = "csi.storage.k8s.io/"
	regenerate = ` (and run bpfvol admission again)`
)

func fix(subjects bool) string {
	if subjects {
		return "ask an admin to add it to the subjects of one" + regenerate
	}
	return `ask an admin for a RoleBinding in its namespace to a role with the verb "use" on one`
}

// template is the expression for what makes pods of object, whose kind decides where that is.
func template(object string) string {
	return fmt.Sprintf(`(request.kind.kind == 'CronJob' ? dyn(%[1]s).spec.jobTemplate.spec.template : dyn(%[1]s).spec.template)`, object)
}

// variables bring the question into one form: which repositories, for which service account. Each step is that of
// image.ParseReference; names stand in the order of images.
func variables(driver string) []namedExpression {
	return []namedExpression{
		{"spec", `request.kind.kind == 'Pod' ? dyn(object).spec : ` + template(`object`) + `.spec`},
		{"account", `has(variables.spec.serviceAccountName) && variables.spec.serviceAccountName != '' ? variables.spec.serviceAccountName : 'default'`},
		{"volumes", `has(variables.spec.volumes) ? variables.spec.volumes.filter(v, has(v.csi) && v.csi.driver == ` + quote(driver) + `) : []`},
		{"images", `variables.volumes.filter(v, has(v.csi.volumeAttributes) && 'image' in v.csi.volumeAttributes).map(v, v.csi.volumeAttributes['image'])`},
		{"undigested", `variables.images.map(s, s.split('@')[0])`},
		{"untagged", `variables.undigested.map(n, n.matches(':[^/]*$') ? n.substring(0, n.lastIndexOf(':')) : n)`},
		{"hosted", `variables.untagged.map(n, n.matches('^[^/]*[.:[][^/]*/|^(?i:localhost)/') ? n.substring(0, n.indexOf('/')).lowerAscii() + n.substring(n.indexOf('/')) : 'docker.io/' + n)`},
		{"shortened", `variables.hosted.map(n, n.matches('^[[][0-9a-f:]+[]]') && isIP(n.substring(1, n.indexOf(']'))) ? '[' + string(ip(n.substring(1, n.indexOf(']')))) + n.substring(n.indexOf(']')) : n)`},
		{"hubbed", `variables.shortened.map(n, n.matches('^(index[.]docker[.]io|registry-1[.]docker[.]io|registry[.]hub[.]docker[.]com)/') ? 'docker.io' + n.substring(n.indexOf('/')) : n)`},
		{"names", `variables.hubbed.map(n, n.matches('^docker[.]io/[^/]*$') ? 'docker.io/library/' + n.substring(size('docker.io/')) : n)`},
		{"malformed", `variables.images.filter(s, !s.matches(` + quote(referenceTail) + `)) + variables.names.filter(n, size(n) > 255 || !n.matches(` + quote(name) + `))`},
	}
}

// The grammar of package image, host and repository apart.
const (
	label      = `(?:[a-z0-9]|[a-z0-9][a-z0-9-]*[a-z0-9])`
	ipv6       = `\[[0-9a-f:]+\]`
	port       = `(?::(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?`
	element    = `[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*`
	repository = element + `(?:/` + element + `)*`
	name       = `^(?:` + label + `(?:\.` + label + `)*|` + ipv6 + `)` + port + `/` + repository + `$`
	// referenceTail is any name, then tag and digest.
	referenceTail = `^(?:[^@]*/)?[^@/:]+(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[a-f0-9]{64})?$`
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
