// SPDX-License-Identifier: Apache-2.0

package verify

import "context"

// Step is one answer on the way to a decision, for who wants to see why: `bpfvol verify`, `bpfvol doctor --policy`.
type Step struct {
	// Stage is what is asked: "policy", "subject", "image", "signature", "attestation", "interface", "object", "allow"; of
	// policy files also "file" and "authority".
	Stage  string `json:"stage"`
	Policy string `json:"policy,omitempty"` // of which policy; "" where it is about all
	OK     bool   `json:"ok"`
	Text   string `json:"text"` // the answer in words, with its reason
}

type traceKey struct{}

// WithTrace makes everything that decides call f for each step, on the goroutine that decides.
func WithTrace(ctx context.Context, f func(Step)) context.Context {
	return context.WithValue(ctx, traceKey{}, f)
}

// Trace tells a step to who asked by WithTrace, if anyone did.
func Trace(ctx context.Context, s Step) {
	if f, ok := ctx.Value(traceKey{}).(func(Step)); ok {
		f(s)
	}
}

// tracing says whether anyone asked, for steps that cost something to tell.
func tracing(ctx context.Context) bool { return ctx.Value(traceKey{}) != nil }
