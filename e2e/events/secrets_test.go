// SPDX-License-Identifier: Apache-2.0

package events

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
)

// passwordOf is a user's password, made so that it is found wherever it went.
func passwordOf(user string) string { return "hunter2-is-the-password-of-" + user }

// dockerConfig is what `kubectl create secret docker-registry` writes for a user of the node's registry.
func (n *node) dockerConfig(user string) string {
	auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + passwordOf(user)))
	return fmt.Sprintf(`{"auths":{%q:{"username":%q,"password":%q,"auth":%q}}}`, n.Stack.Registry, user, passwordOf(user), auth)
}

func (n *node) loginSecret(user string) map[string]string {
	return map[string]string{".dockerconfigjson": n.dockerConfig(user)}
}

// login gives a volume the Secret of a user.
func login(user string) func(*testing.T, *node, *csi.NodePublishVolumeRequest) {
	return func(_ *testing.T, n *node, req *csi.NodePublishVolumeRequest) { req.Secrets = n.loginSecret(user) }
}

// cachedForAlice lets alice pull what only she may; the request is then of somebody without credentials.
func cachedForAlice(t *testing.T, n *node, req *csi.NodePublishVolumeRequest) {
	t.Helper()
	n.registry.InterceptFor(t, imagetest.BasicAuth("alice", passwordOf("alice")))
	theirs := proto.CloneOf(req)
	theirs.Secrets = n.loginSecret("alice")
	cached(t, n, theirs)
}

// withTokens puts a token server into the node's registry, which wants its tokens from then on.
func (n *node) withTokens(t *testing.T, users ...string) *imagetest.TokenServer {
	passwords := map[string]string{}
	for _, user := range users {
		passwords[user] = passwordOf(user)
	}
	s := imagetest.NewTokenServer(n.Stack.Registry, passwords)
	guard := s.Guard()
	n.registry.InterceptFor(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.URL.Path == "/token" {
			s.ServeHTTP(w, r)
			return
		}
		guard(w, r, next)
	})
	return s
}

// Two teams on one node, the real daemon, a registry that gives out tokens: each needs its own login for what the other
// has pulled, before and after the daemon is killed; what anybody may pull needs none.
func TestPrivateImageOnASharedNode(t *testing.T) {
	n := newNode(t)
	imagetest.PushImage(t, n.Stack.Registry, "open/private", "v1", bpf.Hooks())
	tokens := n.withTokens(t, "alice", "bob")
	publish := func(secrets map[string]string) codes.Code {
		t.Helper()
		req := n.request(t, map[string]string{"image": "$REGISTRY/open/private:v1", "attach": onTrace})
		req.Secrets = secrets
		err := n.publish(t, req)
		if err == nil {
			err = n.unpublish(t, req)
		}
		return status.Code(err)
	}
	want := func(who string, secrets map[string]string, want codes.Code) {
		t.Helper()
		if got := publish(secrets); got != want {
			t.Errorf("%s: %v, want %v", who, got, want)
		}
	}
	want("nobody, before it is here", nil, codes.Unauthenticated)
	want("alice", n.loginSecret("alice"), codes.OK)
	for _, when := range []string{"running", "restarted"} {
		want("nobody, "+when, nil, codes.Unauthenticated)
		want("mallory, "+when, n.loginSecret("mallory"), codes.Unauthenticated)
		want("alice, "+when, n.loginSecret("alice"), codes.OK)
		if when == "running" {
			n.restart(t, unix.SIGKILL)
		}
	}
	want("bob", n.loginSecret("bob"), codes.OK)
	tokens.Asked()
	for range 2 {
		want("bob again", n.loginSecret("bob"), codes.OK)
	}
	if got := tokens.Asked(); len(got) > 0 {
		t.Errorf("proven credentials asked for tokens again: %q", got)
	}
	n.registry.Intercept(nil)
	want("nobody, once it is public", nil, codes.OK)
	n.registry.Intercept(imagetest.Drop(""))
	want("nobody, from then on", nil, codes.OK)
}

// The node's own logins serve every pod, as they are in the file now.
func TestNodeWideDockerConfig(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.json")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	write(`{}`)
	t.Setenv("BPFVOL_DOCKER_CONFIG", file)
	n := newNode(t)
	imagetest.PushImage(t, n.Stack.Registry, "open/node", "v1", bpf.Hooks())
	n.registry.InterceptFor(t, imagetest.BasicAuth("node", passwordOf("node")))
	req := n.request(t, map[string]string{"image": "$REGISTRY/open/node:v1", "attach": onTrace})
	if err := n.publish(t, req); status.Code(err) != codes.Unauthenticated {
		t.Errorf("without logins: %v", err)
	}
	write(n.dockerConfig("node"))
	req.Secrets = n.loginSecret("mallory") // and then the node's
	cached(t, n, req)
	write(`{"auths": hunter2}`)
	cached(t, n, req)
	if log := n.log.String(); !strings.Contains(log, "is not the JSON of a docker config") || strings.Contains(log, "hunter2") {
		t.Errorf("the daemon's log is\n%s", log)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := n.publish(t, req); status.Code(err) != codes.Unauthenticated {
		t.Errorf("once the file is gone: %v", err)
	}
}

// Whatever happens to credentials, they are in no log, no error, no record, no file of the cache and no volume.
func TestNoCredentialIsTold(t *testing.T) {
	n := newNode(t)
	imagetest.PushImage(t, n.Stack.Registry, "open/told", "v1", bpf.Hooks())
	var told []string // what anybody can read afterwards
	publish := func(secrets map[string]string, want codes.Code) {
		t.Helper()
		req := n.request(t, map[string]string{"image": "$REGISTRY/open/told:v1", "attach": onTrace})
		req.Secrets = secrets
		err := n.publish(t, req)
		if status.Code(err) != want {
			t.Errorf("got %v, want %v", err, want)
		}
		if err != nil {
			told = append(told, err.Error())
			return
		}
		told = append(told, n.everyFile(t)...)
		if err := n.unpublish(t, req); err != nil {
			t.Error(err)
		}
	}
	malformed := []map[string]string{
		{"password": passwordOf("alice")},
		{".dockerconfigjson": passwordOf("alice")},
		{".dockerconfigjson": `{"auths":{"r.example":{"auth":"` + passwordOf("alice") + `"}}}`},
		{".dockerconfigjson": `{"auths":{"https://alice:` + passwordOf("alice") + `@r.example":{}}}`},
		{".dockercfg": `{"r.example":{"registrytoken":"` + passwordOf("alice") + `"}}`},
	}
	for _, secrets := range malformed {
		publish(secrets, codes.InvalidArgument)
	}
	n.registry.Intercept(repeats)
	publish(n.loginSecret("alice"), codes.Unauthenticated)
	n.registry.Intercept(repeatsInARedirect)
	publish(n.loginSecret("alice"), codes.Unauthenticated)
	n.registry.Intercept(imagetest.BasicAuth("alice", passwordOf("alice")))
	publish(n.loginSecret("mallory"), codes.Unauthenticated)
	publish(n.loginSecret("alice"), codes.OK)
	n.withTokens(t, "bob")
	publish(n.loginSecret("bob"), codes.OK)
	publish(n.loginSecret("mallory"), codes.Unauthenticated)
	if err := n.StopDaemon(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	log := n.log.String()
	if !strings.Contains(log, "call received") || !strings.Contains(log, "secrets") {
		t.Error("the daemon's log shows no calls, so nothing is tested")
	}
	told = append(told, log)
	told = append(told, n.everyFile(t)...)
	for _, user := range []string{"alice", "bob", "mallory"} {
		auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + passwordOf(user)))
		for _, secret := range []string{passwordOf(user), auth, auth[:24], "-of-" + user} {
			for _, text := range told {
				if i := strings.Index(text, secret); i >= 0 {
					t.Errorf("%q is told: %.300q", secret, text[max(0, i-100):])
				}
			}
		}
	}
}

// repeatsInARedirect sends those who log in to an address that has their password in it and cannot be.
func repeatsInARedirect(w http.ResponseWriter, r *http.Request, _ http.Handler) {
	_, password, ok := r.BasicAuth()
	if !ok {
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	w.Header().Set("Location", "http://["+password)
	w.WriteHeader(http.StatusTemporaryRedirect)
}

// everyFile reads all files of the node: records, cache, volumes, pins.
func (n *node) everyFile(t *testing.T) (texts []string) {
	t.Helper()
	err := filepath.WalkDir(n.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil // a pin
		}
		texts = append(texts, path+": "+string(bytes.ToValidUTF8(data, []byte("?"))))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return texts
}
