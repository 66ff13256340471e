// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"fmt"
	"strings"
)

// localNamespace is the namespace of the command line's users in policies. A pod's namespace can have this name, too, and
// its service account that of a user; Subject.Local tells them apart.
const localNamespace = "local"

// Subject is who asks: a pod's service account, or a user of the command line (LocalSubject).
type Subject struct {
	Namespace, ServiceAccount string
	// Persistent says that the pod mounts a PersistentVolume: an admin made it, or a class that an admin made.
	Persistent bool
	// Local says that it is no pod.
	Local bool
}

// LocalSubject is a user of the command line, "local/<user>" in policies.
func LocalSubject(user string) Subject {
	return Subject{Namespace: localNamespace, ServiceAccount: user, Local: true}
}

func (s Subject) String() string { return s.Namespace + "/" + s.ServiceAccount }

// checkSubject refuses a pattern that is none of "ns/name", "ns/*" and "*".
func checkSubject(pattern string) error {
	if pattern == "*" {
		return nil
	}
	ns, name, ok := strings.Cut(pattern, "/")
	if !ok || ns == "" || name == "" || strings.ContainsAny(ns, "* \t\n") || strings.ContainsAny(name, "/ \t\n") || name != "*" && strings.Contains(name, "*") {
		return fmt.Errorf("subject %q: write \"namespace/serviceaccount\", \"namespace/*\" or \"*\"", pattern)
	}
	return nil
}

// matchSubject reports whether one of the patterns names s. A subject without namespace or name is nobody, and what names
// a user of the command line names no pod.
func matchSubject(patterns []string, s Subject) bool {
	if s.Namespace == "" || s.ServiceAccount == "" {
		return false
	}
	for _, p := range patterns {
		if p == "*" || s.namable() && (p == s.Namespace+"/*" || p == s.String()) {
			return true
		}
	}
	return false
}

// namable says whether a pattern with a namespace can be about s: not where that namespace is kept for somebody else.
func (s Subject) namable() bool { return s.Local == (s.Namespace == localNamespace) }
