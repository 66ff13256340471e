// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"
)

// Await watches an object, by its path at the API server, until ok says that it is as it should be. ok gets nil when the object
// does not exist.
func (c *Cluster) Await(ctx context.Context, object string, ok func(object json.RawMessage) (bool, error)) error {
	var last json.RawMessage
	err := c.watch(ctx, path.Dir(object), "metadata.name="+path.Base(object), func(items map[string]json.RawMessage) (bool, error) {
		last = items[path.Base(object)]
		return ok(last)
	})
	if err != nil {
		return fmt.Errorf("%s: %w; it is %s", object, err, last)
	}
	return nil
}

// AwaitAll watches the objects of a list, by its path, until ok says that they are as they should be. ok gets them by name.
func (c *Cluster) AwaitAll(ctx context.Context, list, fieldSelector string, ok func(objects map[string]json.RawMessage) (bool, error)) error {
	if err := c.watch(ctx, list, fieldSelector, ok); err != nil {
		return fmt.Errorf("%s: %w", list, err)
	}
	return nil
}

// Exists says whether there is an object.
func Exists(object json.RawMessage) (bool, error) { return object != nil, nil }

// Gone says whether there is none.
func Gone(object json.RawMessage) (bool, error) { return object == nil, nil }

// Condition says whether an object has a condition that is true.
func Condition(condition string) func(object json.RawMessage) (bool, error) {
	return func(object json.RawMessage) (bool, error) {
		if object == nil {
			return false, nil
		}
		var o struct {
			Status struct {
				Conditions []struct{ Type, Status string }
			}
		}
		if err := json.Unmarshal(object, &o); err != nil {
			return false, err
		}
		for _, has := range o.Status.Conditions {
			if has.Type == condition {
				return has.Status == "True", nil
			}
		}
		return false, nil
	}
}

// watch shows ok what there is, and again after each change, by a watch that begins with what exists
// (sendInitialEvents, Kubernetes 1.34).
func (c *Cluster) watch(ctx context.Context, list, fieldSelector string, ok func(map[string]json.RawMessage) (bool, error)) error {
	query := url.Values{
		"watch": {"1"}, "allowWatchBookmarks": {"1"}, "sendInitialEvents": {"1"}, "resourceVersionMatch": {"NotOlderThan"}, "fieldSelector": {fieldSelector},
	}
	for {
		err := c.events(ctx, list+"?"+query.Encode(), ok)
		if errors.Is(err, errWatchEnded) && ctx.Err() == nil {
			continue // the API server ends them after some minutes
		}
		if err != nil && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
}

var errWatchEnded = errors.New("the API server ended the watch")

// events reads one watch.
func (c *Cluster) events(ctx context.Context, url string, ok func(map[string]json.RawMessage) (bool, error)) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.Server+url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+c.secret.admin)
	resp, err := c.watcher().Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return fmt.Errorf("watch: %s: %s", resp.Status, strings.TrimSpace(string(text)))
	}
	items, known := map[string]json.RawMessage{}, false
	for lines := json.NewDecoder(resp.Body); ; {
		var event struct {
			Type   string
			Object json.RawMessage
		}
		if err := lines.Decode(&event); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				err = errWatchEnded
			}
			return err
		}
		var object struct{ Metadata struct{ Name string } }
		if err := json.Unmarshal(event.Object, &object); err != nil {
			return err
		}
		switch event.Type {
		case "ADDED", "MODIFIED":
			items[object.Metadata.Name] = event.Object
		case "DELETED":
			delete(items, object.Metadata.Name)
		case "BOOKMARK": // the first comes after what exists
			known = true
		default:
			return fmt.Errorf("watch: %s: %s", event.Type, event.Object)
		}
		if !known {
			continue
		}
		if done, err := ok(items); done || err != nil {
			return err
		}
	}
}

// watcher is the client without a limit of time.
func (c *Cluster) watcher() *http.Client { return &http.Client{Transport: c.client.Transport} }
