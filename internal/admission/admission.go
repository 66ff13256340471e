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
			Variables:   append(variables(opts.Driver), rules(policies, opts.Subjects)...),
			Validations: validations(opts),
		},
	}
	b := binding{
		meta: meta{APIVersion: apiVersion, Kind: "ValidatingAdmissionPolicyBinding", Metadata: named{opts.Driver}},
		Spec: bindingSpec{PolicyName: opts.Driver, ValidationActions: []string{"Deny"}},
	}
	return []any{p, b}
}

// validations are in the order in which they are told: what makes a later one meaningless comes first.
func validations(opts Options) []validation {
	return []validation{
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
			MessageExpression: `'image ' + strings.quote(variables.malformed[0].substring(0, size(variables.malformed[0]) < 100 ? size(variables.malformed[0]) : 100)) + ' is no reference; write it as host/repository:tag'`,
		},
		{
			Expression: `size(variables.malformed) > 0 || size(variables.uncovered) == 0`,
			MessageExpression: `'image "' + variables.uncovered[0] + '": no BytecodePolicy covers it; an admin must add one whose images include it` +
				regenerate + `'`,
		},
		{
			// A message cannot ask the authorizer, so of several images it does not say which.
			Expression: `size(variables.malformed) > 0 || size(variables.uncovered) > 0 || size(variables.denied) == 0`,
			MessageExpression: some(`variables.names`, `'image "' + variables.names.join('", "') + '"'`, `one of `, ` images`) + ` + ': service account "' + request.namespace + '/' + variables.account + '" may use none of the BytecodePolicies that cover it (' + ` +
				some(`variables.candidates`, `variables.candidates.join(', ')`, ``, ` of them`) + ` + '); ` + fix(opts.Subjects) + `'`,
		},
	}
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

// some is the expression for a list in words: what it has, or how much where that would be too long for a message.
func some(list, words, before, after string) string {
	return fmt.Sprintf(`(size(%[1]s) <= 3 ? %[2]s : '%[3]s' + string(size(%[1]s)) + '%[4]s')`, list, words, before, after)
}

// template is the expression for what makes pods of object, whose kind decides where that is.
func template(object string) string {
	return fmt.Sprintf(`(request.kind.kind == 'CronJob' ? dyn(%[1]s).spec.jobTemplate.spec.template : dyn(%[1]s).spec.template)`, object)
}
