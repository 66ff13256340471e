// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/bpfvol/bpfvol/verify"
)

// firstList is how long a pod waits for the policies of a daemon that has just started. Then kubelet tries again.
const firstList = 2 * time.Second

// store compiles the objects that a reflector tells of. Only the reflector's goroutine changes it.
type store struct {
	compile verify.Compiler
	log     klog.Logger
	objects map[string]*object // by name

	listed chan struct{} // closed when all objects were read once

	mu       sync.RWMutex
	known    bool             // listed is closed
	policies []*verify.Policy // what is in force, in order of the names
	mistakes error            // what is wrong with objects
	cause    string           // why nothing is known
}

// object is one policy object: what it said last time it was valid, and what is wrong with it now.
type object struct {
	uid  types.UID
	seen [sha256.Size]byte
	good *verify.Policy
	err  error
}

var _ cache.ReflectorStore = (*store)(nil)

func newStore(compile verify.Compiler) *store {
	return &store{compile: compile, objects: map[string]*object{}, listed: make(chan struct{}), cause: "it was not asked yet"}
}

// state returns what is in force and what is wrong with objects. The error is that nothing is known.
func (s *store) state() (policies []*verify.Policy, mistakes, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if !s.known {
		return nil, nil, fmt.Errorf("policies: %w: API server: %s; it will be asked again", verify.ErrUnavailable, s.cause)
	}
	return s.policies, s.mistakes, nil
}

// wait waits for the first list: a node that has just started has pods that wait, too.
func (s *store) wait(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, firstList)
	defer cancel()
	select {
	case <-s.listed:
	case <-ctx.Done():
	}
}

// asked takes note of how the API server answered.
func (s *store) asked(err error) {
	if err == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cause = reason(err)
}

// Add implements cache.ReflectorStore.
func (s *store) Add(obj any) error {
	s.read(obj.(*unstructured.Unstructured))
	s.merge()
	return nil
}

// Update implements cache.ReflectorStore.
func (s *store) Update(obj any) error { return s.Add(obj) }

// Delete implements cache.ReflectorStore: the policy is revoked.
func (s *store) Delete(obj any) error {
	s.forget(obj.(*unstructured.Unstructured).GetName())
	s.merge()
	return nil
}

// Replace implements cache.ReflectorStore: these are all that there are.
func (s *store) Replace(list []any, _ string) error {
	present := map[string]bool{}
	for _, obj := range list {
		u := obj.(*unstructured.Unstructured)
		present[u.GetName()] = true
		s.read(u)
	}
	for name := range s.objects {
		if !present[name] {
			s.forget(name)
		}
	}
	s.merge()
	return nil
}

// Resync implements cache.ReflectorStore. There is nothing to do: compiled is compiled.
func (s *store) Resync() error { return nil }

func (s *store) forget(name string) {
	delete(s.objects, name)
	s.log.Info("policy revoked", "policy", name)
}

// read brings one object up to date. One that is not valid leaves its last good version in force.
func (s *store) read(u *unstructured.Unstructured) {
	o := s.objects[u.GetName()]
	if o == nil || o.uid != u.GetUID() { // made anew, it owes nothing to the one that was deleted
		o = &object{uid: u.GetUID()}
		s.objects[u.GetName()] = o
	}
	spec, err := json.Marshal(u.Object["spec"])
	sum := sha256.Sum256(spec)
	if err == nil && sum == o.seen {
		return // something else than the policy changed, or nothing
	}
	o.seen = sum
	p, err := s.compiled(u)
	if o.err = err; err != nil {
		s.log.Error(err, "policy refused, the last good version stays in force", "policy", u.GetName(), "good", o.good != nil)
		return
	}
	o.good = p
	s.log.Info("policy in force", "policy", u.GetName(), "generation", u.GetGeneration())
}

func (s *store) compiled(u *unstructured.Unstructured) (*verify.Policy, error) {
	raw, err := u.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("policy %q: %w", u.GetName(), err)
	}
	return verify.CompileObject(raw, s.compile)
}

// merge puts the last good version of every object in force.
func (s *store) merge() {
	var policies []*verify.Policy
	var mistakes []error
	for _, name := range slices.Sorted(maps.Keys(s.objects)) {
		o := s.objects[name]
		if o.err != nil {
			mistakes = append(mistakes, o.err)
		}
		if o.good != nil {
			policies = append(policies, o.good)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.policies, s.mistakes = policies, errors.Join(mistakes...)
	if !s.known {
		s.known = true
		close(s.listed)
	}
}
