// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
)

// One team gets one signed image; nobody else does, and nobody pulls anything before RBAC has said yes.
func TestRBACSaysWhoMayRunAnImage(t *testing.T) {
	n := start(t)
	n.Apply(t, n.policy(t, "hooks", "/e2e/*"))
	n.Kubectl(t, "create", "namespace", "shop")
	n.GrantUse(t, "hooks", "shop", "web")
	// A RoleBinding counts in its namespace: this one, made by whoever owns "shop", must not let "other" in.
	n.Kubectl(t, "create", "namespace", "other")
	n.Kubectl(t, "create", "rolebinding", "-n", "shop", "others", "--clusterrole=use-hooks", "--serviceaccount=other:web")
	n.Kubectl(t, "create", "clusterrolebinding", "agents", "--clusterrole=use-hooks", "--serviceaccount=infra:agent")
	soon(t, "the daemon is ready", 10*time.Second, func() bool {
		status, _ := n.readyz(t)
		return status == http.StatusOK
	})
	soon(t, "the policy is in force", time.Second, func() bool { return strings.Contains(n.DaemonLog(), `"policy in force" policy="hooks"`) })

	denied := "image " + n.image + `: service account "$WHO" may not use policy "hooks"; an admin must grant it verb "use" on bytecodepolicies/hooks`
	t.Run("nobody granted it", func(t *testing.T) {
		pod := n.pod(t, "other", "web", "web-0")
		want := strings.Replace(denied, "$WHO", "other/web", 1)
		n.refused(t, pod, n.volume(n.image), codes.PermissionDenied, want)
		n.refused(t, pod, n.volume(n.image), codes.PermissionDenied, want)
		soon(t, "the pod has an event that counts two", 10*time.Second, func() bool {
			return n.Kubectl(t, "get", "events", "-n", "other", "--field-selector", "involvedObject.uid="+pod.UID, "-o",
				`jsonpath={range .items[*]}{.type} {.reason} x{.count}: {.message}{"\n"}{end}`) == "Warning BytecodeRefused x2: "+want+"\n"
		})
		if got := n.Kubectl(t, "describe", "pod", "-n", "other", "web-0"); !strings.Contains(got, "BytecodeRefused") {
			t.Errorf("kubectl describe pod does not show it:\n%s", got)
		}
	})
	t.Run("a RoleBinding in the pod's namespace", func(t *testing.T) {
		n.publishes(t, n.pod(t, "shop", "web", "web-0"), n.volume(n.image))
	})
	t.Run("another service account of that namespace", func(t *testing.T) {
		n.refused(t, n.pod(t, "shop", "batch", "batch-0"), n.volume(n.image), codes.PermissionDenied, strings.Replace(denied, "$WHO", "shop/batch", 1))
	})
	t.Run("a ClusterRoleBinding", func(t *testing.T) {
		n.publishes(t, n.pod(t, "infra", "agent", "agent-0"), n.volume(n.image))
	})
	t.Run("an admin's PersistentVolume", func(t *testing.T) {
		volume := n.volume(n.image)
		volume.Persistent = true
		n.publishes(t, n.pod(t, "other", "nobody", "nobody-0"), volume)
	})
	t.Run("an image that the policy is not about", func(t *testing.T) {
		volume := n.volume(n.Registry + "/elsewhere/hooks:v1")
		n.refused(t, n.pod(t, "shop", "web", "web-1"), volume, codes.PermissionDenied, "image "+n.Registry+"/elsewhere/hooks:v1: no policy covers it (the nearest, \"hooks\", is for \""+
			n.Registry+"/e2e/*\"); an admin must add a BytecodePolicy whose images include \""+n.Registry+"/elsewhere/hooks\"")
	})
	t.Run("an image that nobody signed, though RBAC says yes", func(t *testing.T) {
		image := n.Image("unsigned")
		n.Run(t, "build", "../../bpf/count.bpf.o", "-t", image)
		n.Run(t, "push", image)
		v := n.NewFor(n.pod(t, "shop", "web", "web-2"), n.volume(image))
		if err := v.SetUp(t.Context()); err == nil || !strings.Contains(err.Error(), `is not signed, and policy "hooks" wants a signature`) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("bpfvol verify says so before a pod asks", func(t *testing.T) {
		for as, want := range map[string]string{
			"shop/web":    "",
			"infra/agent": "",
			"shop/batch":  strings.Replace(denied, "$WHO", "shop/batch", 1),
			"other/web":   strings.Replace(denied, "$WHO", "other/web", 1),
		} {
			out, err := n.CLI(t.Context(), "verify", n.image, "--kubeconfig", n.Admin, "--as", as, "--attach", n.volume(n.image).Attributes["attach"])
			if want == "" {
				if err != nil || !strings.Contains(out, "RBAC lets service account") || !strings.Contains(out, "admitted, signed by ") {
					t.Errorf("%s: %v:\n%s", as, err, out)
				}
				continue
			}
			if err == nil || !strings.HasSuffix(err.Error(), "bpfvol: "+want) || !strings.Contains(out, "RBAC does not let service account") {
				t.Errorf("%s: got %v\nwant %s\n%s", as, err, want, out)
			}
		}
	})
	t.Run("the policy is deleted", func(t *testing.T) {
		n.Kubectl(t, "delete", "bytecodepolicy", "hooks")
		soon(t, "it is revoked", time.Second, func() bool { return strings.Contains(n.DaemonLog(), `"policy revoked" policy="hooks"`) })
		n.refused(t, n.pod(t, "shop", "web", "web-3"), n.volume(n.image), codes.PermissionDenied,
			"image "+n.image+": no policy is in force; an admin must add a BytecodePolicy whose images include \""+strings.TrimSuffix(n.image, ":v1")+"\"")
	})
}

// The API server dies. Who may run goes on to, nobody else gets in, and nothing is forgotten when it is back.
func TestAPIServerOutage(t *testing.T) {
	n := start(t)
	n.Apply(t, n.policy(t, "hooks", "/e2e/*"))
	n.Kubectl(t, "create", "namespace", "shop")
	n.GrantUse(t, "hooks", "shop", "web")
	n.GrantUse(t, "hooks", "shop", "late")
	web, webLater, late := n.pod(t, "shop", "web", "web-0"), n.pod(t, "shop", "web", "web-1"), n.pod(t, "shop", "late", "late-0")
	soon(t, "the policy is in force", 10*time.Second, func() bool { return strings.Contains(n.DaemonLog(), `"policy in force" policy="hooks"`) })
	n.publishes(t, web, n.volume(n.image))

	n.Kill(t)
	n.publishes(t, webLater, n.volume(n.image))
	unknown := `policy "hooks": unavailable: the API server cannot say whether service account "shop/late" may use it: connection refused; it will be asked again`
	n.refused(t, late, n.volume(n.image), codes.Unavailable, unknown)
	if status, text := n.readyz(t); status != http.StatusOK {
		t.Errorf("/readyz of a daemon that knows the policies: %s", text)
	}

	// A daemon that starts now knows nothing, and says so. It answers all the same, so that volumes can be taken away.
	n.StopDaemon(t, syscall.SIGTERM)
	n.StartDaemon(t)
	soon(t, "the API server was asked", 10*time.Second, func() bool {
		_, text := n.readyz(t)
		return strings.Contains(text, "connection refused")
	})
	nothing := `policies: unavailable: API server: connection refused; it will be asked again`
	if status, text := n.readyz(t); status != http.StatusServiceUnavailable || !strings.Contains(text, nothing) {
		t.Errorf("/readyz of a daemon that knows no policies: %s", text)
	}
	n.refused(t, web, n.volume(n.image), codes.Unavailable, nothing)

	n.Restart(t)
	soon(t, "the daemon is ready", 20*time.Second, func() bool {
		status, _ := n.readyz(t)
		return status == http.StatusOK
	})
	n.publishes(t, web, n.volume(n.image))
	n.publishes(t, late, n.volume(n.image))
}
