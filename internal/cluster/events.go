// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"encoding/json"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"strings"

	"golang.org/x/time/rate"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	utilcache "k8s.io/apimachinery/pkg/util/cache"
	"k8s.io/client-go/dynamic"
	"k8s.io/klog/v2"
)

// ReasonRefused is the reason of every event.
const ReasonRefused = "BytecodeRefused"

const (
	// waiting bounds the events that are to be sent. Beyond, they are dropped: kubelet tries again, so they come again.
	waiting = 256
	// One node sends at most so many events a second; not even a thousand refused pods may keep RBAC's answers waiting.
	eventsPerSecond = 5
	eventsAtOnce    = 25
	// sameFor is how long a repeated refusal counts up the event that is there.
	sameFor = 10 * time.Minute
	// maxMessage bounds an event's text like that of an answer to kubelet.
	maxMessage = 700
)

// Pod is whom an event is about.
type Pod struct{ Namespace, Name, UID string }

// Events posts an event on each pod that is refused. Run sends them.
type Events struct {
	api     dynamic.NamespaceableResourceInterface
	node    string
	queue   chan refusal
	dropped atomic.Int64
	limit   *rate.Limiter
	sent    *utilcache.LRUExpireCache // refusal -> *posted
}

type refusal struct {
	pod     Pod
	message string
}

// posted is an event that the API server has.
type posted struct {
	name  string
	count int64
}

// Events returns a sender for this node.
func (c *Client) Events(node string) *Events {
	return &Events{
		api:   c.api.Resource(eventResource),
		node:  node,
		queue: make(chan refusal, waiting),
		limit: rate.NewLimiter(eventsPerSecond, eventsAtOnce),
		sent:  utilcache.NewLRUExpireCache(remembered),
	}
}

// Refused tells of a refusal, with its text as kubelet got it. It never blocks, and nothing comes back: an event is a
// courtesy.
func (e *Events) Refused(pod Pod, message string) {
	select {
	case e.queue <- refusal{pod, bounded(message)}:
	default:
		e.dropped.Add(1)
	}
}

// Run sends events until ctx ends.
func (e *Events) Run(ctx context.Context) error {
	log := klog.FromContext(ctx)
	for {
		select {
		case <-ctx.Done():
			return nil
		case r := <-e.queue:
			if e.limit.Wait(ctx) != nil {
				return nil
			}
			if err := e.send(ctx, r); err != nil && ctx.Err() == nil {
				log.Info("event not sent", "pod", klog.KRef(r.pod.Namespace, r.pod.Name), "reason", reason(err))
			}
			if n := e.dropped.Swap(0); n > 0 {
				log.Info("events dropped, as too many waited", "count", n)
			}
		}
	}
}

// send counts up the event of the same refusal, or makes one.
func (e *Events) send(ctx context.Context, r refusal) error {
	ctx, cancel := context.WithTimeout(ctx, answerIn)
	defer cancel()
	now := time.Now().UTC().Format(time.RFC3339)
	events := e.api.Namespace(r.pod.Namespace)
	if known, ok := e.sent.Get(r); ok {
		p := known.(*posted)
		patch, err := json.Marshal(map[string]any{"count": p.count + 1, "lastTimestamp": now})
		if err != nil {
			return err
		}
		_, err = events.Patch(ctx, p.name, types.MergePatchType, patch, metav1.PatchOptions{})
		if err == nil {
			p.count++
			e.sent.Add(r, p, sameFor)
			return nil
		}
		if !apierrors.IsNotFound(err) { // it is: events live an hour
			return err
		}
	}
	made, err := events.Create(ctx, e.event(r, now), metav1.CreateOptions{})
	if err != nil {
		return err
	}
	e.sent.Add(r, &posted{name: made.GetName(), count: 1}, sameFor)
	return nil
}

func (e *Events) event(r refusal, now string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1",
		"kind":       "Event",
		"metadata":   map[string]any{"namespace": r.pod.Namespace, "generateName": r.pod.Name + "."},
		"involvedObject": map[string]any{
			"apiVersion": "v1", "kind": "Pod", "namespace": r.pod.Namespace, "name": r.pod.Name, "uid": r.pod.UID,
		},
		"type":               "Warning",
		"reason":             ReasonRefused,
		"message":            r.message,
		"source":             map[string]any{"component": "bpfvol", "host": e.node},
		"reportingComponent": "bpfvol",
		"reportingInstance":  e.node,
		"firstTimestamp":     now,
		"lastTimestamp":      now,
		"count":              int64(1),
	}}
}

// bounded makes text fit to show: one line, and not much of it.
func bounded(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(text, string(utf8.RuneError)))
	if len(text) <= maxMessage {
		return text
	}
	end := maxMessage
	for !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end]
}
