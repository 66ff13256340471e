// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	testclock "k8s.io/utils/clock/testing"

	"github.com/bpfvol/bpfvol/verify"
)

const (
	acmeImage = "ghcr.io/acme/count:v1"
	notFor    = `image ghcr.io/acme/count:v1: service account "shop/web" may not use policy "acme"; an admin must grant it verb "use" on bytecodepolicies/acme`
)

const grants = `
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: one, namespace: granted}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: use-acme}
subjects: [{kind: ServiceAccount, namespace: granted, name: web}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: of-another-namespace, namespace: granted}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: use-acme}
subjects: [{kind: ServiceAccount, namespace: shop, name: web}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: all, namespace: open}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: use-acme}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: "system:serviceaccounts:open"}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: all, namespace: local}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: use-acme}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: "system:serviceaccounts:local"}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: everywhere}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: use-acme}
subjects: [{kind: ServiceAccount, namespace: infra, name: agent}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: reads}
rules: [{apiGroups: [bpfvol.io], resources: [bytecodepolicies], verbs: [get, list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: reads}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: reads}
subjects: [{kind: ServiceAccount, namespace: reader, name: web}]
`

func TestWhoMayUseAPolicyIsForRBACToSay(t *testing.T) {
	n := startNode(t)
	for _, namespace := range []string{"granted", "open", "local", "shop", "infra", "reader"} {
		n.Kubectl(t, "create", "namespace", namespace)
	}
	n.Apply(t, policy("acme", "ghcr.io/acme/*")+policy("acme2", "ghcr.io/acme/**")+policy("quay", "quay.io/**")+use("acme")+grants)
	p := follow(t, n.client(t), nil)
	n.ready(t, p)
	for _, c := range []struct {
		name string
		s    verify.Subject
		may  bool
	}{
		{"RoleBinding in the pod's namespace", pod("granted", "web"), true},
		{"another service account of that namespace", pod("granted", "other"), false},
		{"RoleBinding in another namespace", pod("shop", "web"), false},
		{"binding of every service account of the namespace", pod("open", "anything"), true},
		{"ClusterRoleBinding", pod("infra", "agent"), true},
		{"a namespace that is called as the command line's users are", pod("local", "root"), true},
		{"who may only read policies", pod("reader", "web"), false},
		{"a namespace that does not exist", pod("nowhere", "web"), false},
		{"the empty name", verify.Subject{}, false},
		{"a user of the command line, though all of a namespace of that name may", verify.LocalSubject("root"), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.may {
				wantUsable(t, p, c.s, acmeImage, "acme")
			} else {
				wantDenied(t, p, c.s, acmeImage, strings.Replace(notFor, "shop/web", c.s.String(), 1))
			}
		})
	}
	t.Run("a PersistentVolume is an admin's", func(t *testing.T) {
		s := pod("shop", "web")
		s.Persistent = true
		wantUsable(t, p, s, acmeImage, "acme acme2")
	})
	t.Run("an image that no policy covers", func(t *testing.T) {
		wantDenied(t, p, pod("granted", "web"), "quay2.io/acme/x:v1", `image quay2.io/acme/x:v1: no policy covers it; an admin must add a BytecodePolicy whose images include "quay2.io/acme/x"`)
		wantDenied(t, p, pod("granted", "web"), "ghcr.io/acmeevil/x:v1", `image ghcr.io/acmeevil/x:v1: no policy covers it (the nearest, "acme", is for "ghcr.io/acme/*"); an admin must add a BytecodePolicy whose images include "ghcr.io/acmeevil/x"`)
	})
	t.Run("told step by step", func(t *testing.T) {
		var got []string
		ctx := verify.WithTrace(t.Context(), func(s verify.Step) {
			if s.Stage == "subject" {
				got = append(got, s.Policy+": "+s.Text)
			}
		})
		if _, err := p.For(ctx, pod("granted", "web"), parse(t, acmeImage)); err != nil {
			t.Fatal(err)
		}
		want := []string{
			`acme: RBAC lets service account "granted/web" use it: "RBAC: allowed by RoleBinding \"one/granted\" of ClusterRole \"use-acme\" to ServiceAccount \"web/granted\""`,
			`acme2: RBAC does not let service account "granted/web" use it`,
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})
}

func TestAnswersAreRemembered(t *testing.T) {
	n := startNode(t)
	n.Kubectl(t, "create", "namespace", "shop")
	n.Apply(t, policy("acme", "ghcr.io/acme/*"))
	now := testclock.NewFakePassiveClock(time.Now())
	p := follow(t, n.client(t), now)
	n.ready(t, p)
	web := pod("shop", "web")
	pass := func(d time.Duration) { now.SetTime(now.Now().Add(d)) }

	wantDenied(t, p, web, acmeImage, notFor)
	n.GrantUse(t, "acme", "shop", "web")
	pass(29 * time.Second)
	wantDenied(t, p, web, acmeImage, notFor)
	pass(2 * time.Second)
	wantUsable(t, p, web, acmeImage, "acme")

	n.Kubectl(t, "delete", "rolebinding", "-n", "shop", "web-use-acme")
	pass(4*time.Minute + 59*time.Second)
	wantUsable(t, p, web, acmeImage, "acme")
	pass(2 * time.Second)
	wantDenied(t, p, web, acmeImage, notFor)
}

func TestPolicyObjectsAreInForceWithinASecond(t *testing.T) {
	n := startNode(t)
	p := follow(t, n.client(t), nil)
	n.ready(t, p)
	persistent := verify.Subject{Namespace: "shop", ServiceAccount: "web", Persistent: true} // RBAC is another test
	within := func(what, ref, want string) {
		t.Helper()
		soon(t, what, time.Second, func() bool {
			got, err := asks(t, p, persistent, ref)
			return got == want && (err == nil) == (want != "")
		})
	}
	wantDenied(t, p, persistent, acmeImage, `image ghcr.io/acme/count:v1: no policy is in force; an admin must add a BytecodePolicy whose images include "ghcr.io/acme/count"`)
	n.Apply(t, policy("acme", "ghcr.io/acme/*"))
	within("created", acmeImage, "acme")
	n.Apply(t, policy("acme", "ghcr.io/other/*"))
	within("changed: no longer for acme", acmeImage, "")
	within("changed: for other", "ghcr.io/other/count", "acme")
	n.Kubectl(t, "delete", "bytecodepolicy", "acme")
	within("deleted", "ghcr.io/other/count", "")
}

// unreadable passes the API server's validation, which cannot read keys.
const unreadable = `
apiVersion: bpfvol.io/v1alpha1
kind: BytecodePolicy
metadata: {name: acme}
spec:
  images: ["ghcr.io/other/*"]
  authorities: [{key: {data: "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"}}]
`

func TestInvalidObjectKeepsLastGood(t *testing.T) {
	n := startNode(t)
	p := follow(t, n.client(t), nil)
	n.ready(t, p)
	persistent := verify.Subject{Namespace: "shop", ServiceAccount: "web", Persistent: true}
	inForce := func() string {
		got, _ := asks(t, p, persistent, acmeImage)
		return got
	}
	n.Apply(t, policy("acme", "ghcr.io/acme/*"))
	soon(t, "the good one is in force", time.Second, func() bool { return inForce() == "acme" })

	n.Apply(t, unreadable)
	soon(t, "the invalid one is complained of", time.Second, func() bool { return p.Err() != nil })
	if err := p.Err(); !strings.Contains(err.Error(), `policy "acme": spec.authorities[0]: key.data`) {
		t.Errorf("Err: %v", err)
	}
	if got := inForce(); got != "acme" {
		t.Errorf("in force: %q; want the last good version", got)
	}

	// A policy that was deleted is revoked for good, also where one of the same name comes at once.
	n.Kubectl(t, "delete", "bytecodepolicy", "acme")
	n.Apply(t, unreadable)
	soon(t, "the old version is gone, and the new one complained of", time.Second, func() bool { return inForce() == "" && p.Err() != nil })

	n.Apply(t, policy("acme", "ghcr.io/acme/*"))
	soon(t, "the mended one is in force, and nothing is complained of", time.Second, func() bool { return inForce() == "acme" && p.Err() == nil })
}

// The API server is killed, and comes back. Nobody who may run is kept from it, and nobody else gets in.
func TestAPIServerAway(t *testing.T) {
	n := startNode(t)
	n.Kubectl(t, "create", "namespace", "shop")
	n.Apply(t, policy("acme", "ghcr.io/acme/*"))
	n.GrantUse(t, "acme", "shop", "web")
	p := follow(t, n.client(t), nil)
	n.ready(t, p)
	wantUsable(t, p, pod("shop", "web"), acmeImage, "acme")

	n.Kill(t)
	wantUsable(t, p, pod("shop", "web"), acmeImage, "acme")
	const unknown = `policy "acme": unavailable: the API server cannot say whether service account "shop/new" may use it: connection refused; it will be asked again`
	soon(t, "the connection is seen to be gone", 10*time.Second, func() bool {
		_, err := asks(t, p, pod("shop", "new"), acmeImage)
		return err != nil && err.Error() == unknown
	})
	wantDenied(t, p, pod("shop", "web"), "quay.io/x/y:v1", `image quay.io/x/y:v1: no policy covers it; an admin must add a BytecodePolicy whose images include "quay.io/x/y"`)
	if err := p.Err(); err != nil {
		t.Errorf("Err while the API server is away: %v", err)
	}
	fresh := follow(t, n.client(t), nil) // a daemon that starts now
	soon(t, "it was asked", 10*time.Second, func() bool { return !strings.Contains(fresh.Err().Error(), "not asked yet") })
	const nothing = `policies: unavailable: API server: connection refused; it will be asked again`
	wantUnavailable(t, fresh, pod("shop", "web"), acmeImage, nothing)
	if err := fresh.Err(); err == nil || err.Error() != nothing {
		t.Errorf("Err: %v, want %s", err, nothing)
	}

	n.Restart(t)
	wantDenied(t, p, pod("shop", "new"), acmeImage, strings.Replace(notFor, "shop/web", "shop/new", 1))
	n.Apply(t, policy("acme", "ghcr.io/other/*"))
	for name, p := range map[string]*Policies{"that lived on": p, "that started meanwhile": fresh} {
		soon(t, "the daemon "+name+" sees changes again", 2*askAgainMost+time.Second, func() bool {
			got, _ := asks(t, p, pod("shop", "web"), "ghcr.io/other/x")
			return got == "acme"
		})
	}
}

func TestConnectNeedsACluster(t *testing.T) {
	if _, err := Connect("", "x"); !errors.Is(err, ErrNoCluster) {
		t.Errorf("outside of a cluster: %v", err)
	}
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(file, []byte("clusters: 7"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Connect(file, "x"); err == nil || !strings.HasPrefix(err.Error(), "kubeconfig "+file+": ") {
		t.Errorf("a broken kubeconfig: %v", err)
	}
}
