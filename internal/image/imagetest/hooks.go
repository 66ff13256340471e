// SPDX-License-Identifier: Apache-2.0

package imagetest

import (
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
)

// Each hook is for the requests that read a path which contains part; all others go to the registry. An empty part is
// in every path.

// Status answers with an HTTP status and no more.
func Status(part string, code int) Hook {
	return on(part, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		if code == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		}
		w.WriteHeader(code)
	})
}

// Hang does not answer until the client gives up.
func Hang(part string) Hook {
	return on(part, func(_ http.ResponseWriter, r *http.Request, _ http.Handler) { <-r.Context().Done() })
}

// Drop closes the connection instead of answering: what a dead registry looks like.
func Drop(part string) Hook {
	return on(part, func(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) })
}

// Truncate announces the whole body and closes the connection after half of it.
func Truncate(part string) Hook {
	return on(part, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r)
		size := rec.Body.Len()
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.Header().Set("Content-Length", strconv.Itoa(size))
		w.WriteHeader(rec.Code)
		w.Write(rec.Body.Bytes()[:size/2])
		panic(http.ErrAbortHandler)
	})
}

// Flip changes one byte in the middle of the body. The headers, digest among them, stay as they were.
func Flip(part string) Hook {
	return Rewrite(part, func(body []byte) []byte {
		if len(body) > 0 {
			body[len(body)/2] ^= 1
		}
		return body
	})
}

// Rewrite changes the body of answers. The headers, digest among them, stay as they were.
func Rewrite(part string, change func([]byte) []byte) Hook {
	return on(part, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r)
		replay(w, rec, change(rec.Body.Bytes()))
	})
}

// BasicAuth lets only one user in.
func BasicAuth(username, password string) Hook {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		u, p, _ := r.BasicAuth()
		if u != username || p != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	}
}

// NoReferrers is a registry from before OCI 1.1: referrers are found by tag.
func NoReferrers() Hook { return Status("/referrers/", http.StatusNotFound) }

func on(part string, hook Hook) Hook {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		read := r.Method == http.MethodGet || r.Method == http.MethodHead
		if !read || !strings.Contains(r.URL.Path, part) {
			next.ServeHTTP(w, r)
			return
		}
		hook(w, r, next)
	}
}
