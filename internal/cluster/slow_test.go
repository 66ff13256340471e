// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// odd is an API server that answers what a real one does only in trouble: one policy, "acme", and whatever reviews and
// events are to be answered with. What a real one does in health is tested with a real one.
type odd struct {
	*httptest.Server
	reviews, events http.HandlerFunc
	asked           atomic.Int64 // reviews
}

func startOdd(t *testing.T, reviews, events http.HandlerFunc) *odd {
	t.Helper()
	o := &odd{reviews: reviews, events: events}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /apis/bpfvol.io/v1alpha1/bytecodepolicies", watchPolicies)
	mux.HandleFunc("POST /apis/authorization.k8s.io/v1/subjectaccessreviews", func(w http.ResponseWriter, r *http.Request) {
		o.asked.Add(1)
		o.reviews(w, r)
	})
	mux.HandleFunc("/api/v1/namespaces/{namespace}/events", func(w http.ResponseWriter, r *http.Request) { o.events(w, r) })
	o.Server = httptest.NewServer(mux)
	t.Cleanup(o.Close)
	return o
}

// watchPolicies streams one policy and the mark that it was the last, as to sendInitialEvents (KEP 3157).
func watchPolicies(w http.ResponseWriter, r *http.Request) {
	const meta = `"apiVersion": "bpfvol.io/v1alpha1", "kind": "BytecodePolicy"`
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintln(w, `{"type": "ADDED", "object": {`+meta+`, "metadata": {"name": "acme", "resourceVersion": "1"}, "spec": {"images": ["ghcr.io/acme/*"], "unsigned": true}}}`)
	fmt.Fprintln(w, `{"type": "BOOKMARK", "object": {`+meta+`, "metadata": {"resourceVersion": "1", "annotations": {"k8s.io/initial-events-end": "true"}}}}`)
	w.(http.Flusher).Flush()
	<-r.Context().Done()
}

func (o *odd) client(t *testing.T) *Client {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	config := `{clusters: [{name: c, cluster: {server: "` + o.URL + `"}}], contexts: [{name: c, context: {cluster: c}}], current-context: c}`
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return connect(t, file)
}

func says(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	}
}

func failure(code int, reason string) http.HandlerFunc {
	return says(code, fmt.Sprintf(`{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": %q, "code": %d, "message": "request 7f3a failed"}`, reason, code))
}

// hangs answers when the client has given up, which a server sees only once the body is read.
func hangs(_ http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body) //nolint:errcheck // the client may go at any time
	<-r.Context().Done()
}

func review(status string) http.HandlerFunc {
	return says(http.StatusCreated, `{"kind": "SubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "spec": {}, "status": `+status+`}`)
}

// Whatever is not a plain yes is none, and whatever is no answer is asked again.
func TestUnknownIsNotAllowed(t *testing.T) {
	unknown := func(why string) string {
		return `policy "acme": unavailable: the API server cannot say whether service account "shop/web" may use it: ` + why + `; it will be asked again`
	}
	for _, c := range []struct {
		name   string
		answer http.HandlerFunc
		want   string
	}{
		{"500", failure(500, "InternalError"), unknown("it answered 500 InternalError")},
		{"503 of a proxy", says(503, "<html>"), unknown("it answered 503 ServiceUnavailable")},
		{"401", failure(401, "Unauthorized"), unknown("it does not know the credentials of bpfvol")},
		{"403", failure(403, "Forbidden"), unknown("it does not let bpfvol ask; bind the ClusterRole of deploy/rbac.yaml")},
		{"no JSON", says(201, "yes"), unknown(`"couldn't get version/kind`)},
		{"no status", says(201, `{"kind": "SubjectAccessReview", "apiVersion": "authorization.k8s.io/v1"}`), unknown(`"its SubjectAccessReview has no status.allowed"`)},
		{"a status that is no bool", review(`{"allowed": "true"}`), unknown(`"its SubjectAccessReview has no status.allowed"`)},
		{"hangs up", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, unknown("its answer was cut off")},
		{"no answer", hangs, unknown("no answer in time")},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			o := startOdd(t, c.answer, nil)
			p := follow(t, o.client(t), nil)
			soon(t, "the policies are known", 10*time.Second, func() bool { return p.Err() == nil })
			for range 2 {
				_, err := asks(t, p, pod("shop", "web"), acmeImage)
				if err == nil || !strings.HasPrefix(err.Error(), strings.TrimSuffix(c.want, "; it will be asked again")) {
					t.Errorf("got  %v\nwant %s", err, c.want)
				}
			}
			if n := o.asked.Load(); n < 2 {
				t.Errorf("asked %d times; want again each time", n)
			}
		})
	}
	t.Run("no, for an error in its roles", func(t *testing.T) {
		o := startOdd(t, review(`{"allowed": false, "evaluationError": "clusterrole not found"}`), nil)
		p := follow(t, o.client(t), nil)
		soon(t, "the policies are known", 10*time.Second, func() bool { return p.Err() == nil })
		wantDenied(t, p, pod("shop", "web"), acmeImage, notFor)
	})
}

// Pods of a Deployment come all at once, and a caller that gives up leaves the others their answer.
func TestOneQuestionForManyPods(t *testing.T) {
	release := make(chan struct{})
	o := startOdd(t, func(w http.ResponseWriter, r *http.Request) {
		<-release
		review(`{"allowed": true}`)(w, r)
	}, nil)
	p := follow(t, o.client(t), nil)
	soon(t, "the policies are known", 10*time.Second, func() bool { return p.Err() == nil })
	var pods sync.WaitGroup
	for range 50 {
		pods.Go(func() { wantUsable(t, p, pod("shop", "web"), acmeImage, "acme") })
	}
	soon(t, "a question was asked", 10*time.Second, func() bool { return o.asked.Load() > 0 })
	close(release)
	pods.Wait()
	if n := o.asked.Load(); n != 1 {
		t.Errorf("asked %d times; want once", n)
	}
}
