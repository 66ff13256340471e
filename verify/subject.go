// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"fmt"
	"strings"
)

// Subject is who asks: a pod's service account, or Namespace "local" and the user's name for the CLI.
type Subject struct {
	Namespace, ServiceAccount string
	// Persistent says that the pod mounts a PersistentVolume: an admin made it, or a class that an admin made.
	Persistent bool
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

// matchSubject reports whether one of the patterns names s. A subject without namespace or name is nobody.
func matchSubject(patterns []string, s Subject) bool {
	if s.Namespace == "" || s.ServiceAccount == "" {
		return false
	}
	for _, p := range patterns {
		if p == "*" || p == s.Namespace+"/*" || p == s.String() {
			return true
		}
	}
	return false
}
