// SPDX-License-Identifier: Apache-2.0

package imagetest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// TokenServer gives out tokens for a registry that wants them, as Docker Hub and ghcr.io do: to users by password, to
// users by identity token, and to nobody else unless it is Open.
type TokenServer struct {
	// Host is the server as in --registries: "127.0.0.1:37561".
	Host string
	// Open gives tokens to who says no name, too, as where images are public. A wrong name gets none.
	Open bool

	mu        sync.Mutex
	passwords map[string]string
	tokens    map[string]string // user by token
	asked     []string
}

// StartTokenServer starts a token server for the length of the test. Of a user without a name, the password is an
// identity token.
func StartTokenServer(t testing.TB, passwords map[string]string) *TokenServer {
	t.Helper()
	s := NewTokenServer("", passwords)
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	s.Host = strings.TrimPrefix(server.URL, "http://")
	return s
}

// NewTokenServer is a token server that the caller serves at host, below /token.
func NewTokenServer(host string, passwords map[string]string) *TokenServer {
	return &TokenServer{Host: host, passwords: passwords, tokens: map[string]string{}}
}

// Revoke makes a user's password and tokens worthless.
func (s *TokenServer) Revoke(user string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.passwords, user)
	for token, u := range s.tokens {
		if u == user {
			delete(s.tokens, token)
		}
	}
}

// Asked returns who asked for tokens since the last call; "" is who gave no name.
func (s *TokenServer) Asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.asked
	s.asked = nil
	return out
}

func (s *TokenServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user, password, ok := r.BasicAuth()
	key := "access_token"
	if r.Method == http.MethodGet {
		key = "token"
	} else {
		user, password, ok = "", r.PostFormValue("refresh_token"), true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, user)
	want, known := s.passwords[user]
	if anybody := s.Open && !ok; !anybody && (!ok || !known || want != password) {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	token := fmt.Sprintf("token-%d-of-%s", len(s.tokens), user)
	s.tokens[token] = user
	json.NewEncoder(w).Encode(map[string]string{key: token})
}

// Guard is a registry's hook: who has no token of the server is sent there for one.
func (s *TokenServer) Guard() Hook {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		s.mu.Lock()
		_, known := s.tokens[token]
		s.mu.Unlock()
		if !known {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+s.Host+`/token",service="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	}
}
