// SPDX-License-Identifier: Apache-2.0

package admission

// What is used of admissionregistration.k8s.io/v1. k8s.io/api would bring every kind of Kubernetes along.

const apiVersion = "admissionregistration.k8s.io/v1"

type meta struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   named  `json:"metadata"`
}

type named struct {
	Name string `json:"name"`
}

type admissionPolicy struct {
	meta
	Spec policySpec `json:"spec"`
}

type policySpec struct {
	FailurePolicy    string            `json:"failurePolicy"`
	MatchConstraints match             `json:"matchConstraints"`
	MatchConditions  []namedExpression `json:"matchConditions"`
	Variables        []namedExpression `json:"variables"`
	Validations      []validation      `json:"validations"`
}

type match struct {
	ResourceRules []resourceRule `json:"resourceRules"`
}

type resourceRule struct {
	APIGroups   []string `json:"apiGroups"`
	APIVersions []string `json:"apiVersions"`
	Operations  []string `json:"operations"`
	Resources   []string `json:"resources"`
}

type namedExpression struct {
	Name       string `json:"name"`
	Expression string `json:"expression"`
}

type validation struct {
	Expression        string `json:"expression"`
	MessageExpression string `json:"messageExpression"`
}

type binding struct {
	meta
	Spec bindingSpec `json:"spec"`
}

type bindingSpec struct {
	PolicyName        string   `json:"policyName"`
	ValidationActions []string `json:"validationActions"`
}
