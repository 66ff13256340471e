// SPDX-License-Identifier: Apache-2.0

// Package cluster is the one place that talks to a Kubernetes API server. It answers what package verify asks of
// policies from BytecodePolicy objects instead of files, and posts an event on the pod that is refused.
//
//	BytecodePolicy objects --watch--> Policies --For--> which policies cover the image
//	                                     |
//	                  SubjectAccessReview: may the pod's service account "use" them, in the pod's namespace?
//
// RBAC says who: a RoleBinding lets service accounts of its namespace use a policy, a ClusterRoleBinding of every one.
// The pod of a PersistentVolume is not asked: an admin made that, or the class it is of.
//
// Invariants, and the test that holds each:
//
//   - Nobody may use a policy whom the API server did not say so of (TestWhoMayUseAPolicyIsForRBACToSay).
//   - An API server that cannot be asked is an error, never "yes" (TestUnknownIsNotAllowed), and none of it is
//     remembered; what was answered is, for minutes (TestAnswersAreRemembered).
//   - The policies stay as they were while the API server is away (TestAPIServerAway).
//   - An object that is not valid changes nothing, and a new one of the same name does not inherit from the old one
//     (TestInvalidObjectKeepsLastGood).
//   - Events hold up nothing: not when the API server is slow, not when there are thousands (TestEventsHoldUpNothing).
package cluster
