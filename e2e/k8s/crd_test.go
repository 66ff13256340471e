// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/bpfvol/bpfvol/internal/volume"
	"github.com/bpfvol/bpfvol/verify"
	"github.com/bpfvol/bpfvol/verify/cosign"
)

const policiesPath = "/apis/bpfvol.io/v1alpha1/bytecodepolicies"

// head begins a policy; what follows is more of spec.
const head = `apiVersion: bpfvol.io/v1alpha1
kind: BytecodePolicy
metadata: {name: acme}
spec:
  images: ["ghcr.io/acme/*"]
`

const keyless = `{issuer: "https://token.actions.githubusercontent.com", subjectRegexp: "https://github\\.com/acme/.*"}`

func TestCRDAndFilesAcceptTheSame(t *testing.T) {
	c := Start(t)
	key := publicKey(t)
	images := func(list string) string { return strings.Replace(head, `["ghcr.io/acme/*"]`, list, 1) }
	name := func(name string) string { return strings.Replace(head, "{name: acme}", "{name: "+name+"}", 1) }
	authorities := func(list string) string { return head + "  authorities: " + list }
	root := func(identity string) string {
		return authorities("[{keyless: " + identity + ", trustedRoot: {file: /etc/bpfvol/trusted_root.json}}]")
	}
	attested := func(statement string) string {
		return authorities("[{keyless: " + keyless + ", trustedRoot: {file: /etc/bpfvol/trusted_root.json}, attestations: [" + statement + "]}]")
	}
	allow := func(fields string) string { return head + "  allow: {" + fields + "}" }
	for _, tc := range []struct {
		name, policy string
		refusal      string // of the API server; empty: both accept
	}{
		{"no signer", head, ""},
		{"unsigned", head + "  unsigned: true", ""},
		{"key", authorities("[{key: {data: " + key + "}}]"), ""},
		{"two keys", authorities("[{key: {data: " + key + "}}, {key: {data: " + key + "}}]"), ""},
		{"everything allowed", allow("hooks: [" + strings.Join(words(volume.Kinds), ", ") + "], interfaces: ['*'], writableMaps: ['*']"), ""},
		{"nothing allowed", allow("hooks: [], interfaces: [], writableMaps: []"), ""},
		{"unknown field", head + "  imagez: []", `unknown field "spec.imagez"`},
		{"unknown deep field", allow("hook: [xdp]"), `unknown field "spec.allow.hook"`},
		{"capital", head + "  Unsigned: true", `unknown field "spec.Unsigned"`},

		{"name with dots", name("acme.example.com"), ""},
		{"name with a digit first", name("9a"), ""},
		{"name with capitals", name("Acme"), "metadata.name"},
		{"name with a dot too many", name("a..b"), "metadata.name"},
		{"name that ends in a dash", name("a-"), "metadata.name"},

		{"every image", images(`["**"]`), ""},
		{"Docker Hub", images(`[nginx, acme/*, docker.io/**]`), ""},
		{"host with port", images(`["127.0.0.1:5000/**"]`), ""},
		{"IPv6 host", images(`["[::1]:5000/x"]`), ""},
		{"capitals", images(`["GHCR.io/acme/x"]`), ""},
		{"any host", images(`["*/acme/x", "**/x"]`), ""},
		{"no images", images(`[]`), "spec.images"},
		{"images a word", images(`ghcr.io/acme/x`), "spec.images"},
		{"empty glob", images(`[""]`), "an element is empty"},
		{"leading slash", images(`["/x"]`), "an element is empty"},
		{"double slash", images(`["ghcr.io//x"]`), "an element is empty"},
		{"trailing slash", images(`["ghcr.io/x/"]`), "an element is empty"},
		{"** in an element", images(`["ghcr.io/x**"]`), `"**" must be a whole element between slashes`},
		{"***", images(`["ghcr.io/***"]`), `"**" must be a whole element between slashes`},
		{"tag", images(`["ghcr.io/x:v1"]`), "leave the tag out"},
		{"digest", images(`["ghcr.io/x@sha256:abcd"]`), "leave the digest out"},
		{"white space", images(`["ghcr.io/a b"]`), "has white space"},
		{"tab", images(`["ghcr.io/a\tb"]`), "has white space"},
		{"line break", images(`["ghcr.io/a\nb"]`), "has white space"},
		{"host alone", images(`["ghcr.io"]`), `names a host and no repository; for all of a host write "ghcr.io/**"`},
		{"host and port alone", images(`["reg:5000"]`), `write "reg:5000/**"`},
		{"localhost alone", images(`[localhost]`), `write "localhost/**"`},
		{"longest glob", images(`["` + strings.Repeat("a", 255) + `"]`), ""},
		{"glob too long", images(`["` + strings.Repeat("a", 256) + `"]`), "255"},

		{"unsigned a word", head + "  unsigned: sure", "spec.unsigned"},
		{"empty authority", authorities("[{}]"), "has neither key nor keyless"},
		{"null authority", authorities("[null]"), "spec.authorities[0]"},
		{"key and keyless", authorities("[{key: {data: " + key + "}, keyless: " + keyless + "}]"), "has both key and keyless"},
		{"key with a root", authorities("[{key: {data: " + key + "}, trustedRoot: {file: /x}}]"), "a key needs none"},
		{"key without data", authorities("[{key: {}}]"), "spec.authorities[0].key.data"},
		{"no PEM", authorities("[{key: {data: bad}}]"), "is not PEM"},
		{"private key", authorities("[{key: {data: " + strings.ReplaceAll(key, "PUBLIC", "PRIVATE") + "}}]"), "is a private key"},
		{"two keys in one", authorities("[{key: {data: " + key[:len(key)-1] + strings.TrimPrefix(key, `"`) + "}}]"), "give each key its own entry"},
		{"text after the key", authorities("[{key: {data: " + key[:len(key)-1] + `more"}}]`), "give each key its own entry"},

		{"keyless", root(keyless), ""},
		{"keyless by expressions", root(`{issuerRegexp: 'https://(a|b)\.example', subject: me@example.com}`), ""},
		{"keyless beside a field that is empty", root(`{issuer: 'https://a.example', issuerRegexp: '', subject: me@example.com}`), ""},
		{"provenance by a builder", attested("{predicateType: https://slsa.dev/provenance/v1, builderID: https://example.com/builder}"), ""},
		{"another statement", attested("{predicateType: https://spdx.dev/Document}"), ""},
		{"another statement by a builder", attested("{predicateType: https://spdx.dev/Document, builderID: https://example.com/builder}"), "names a builder"},
		{"statement without a type", attested("{builderID: https://example.com/builder}"), "spec.authorities[0].attestations[0].predicateType"},
		{"keyless without a root", authorities("[{keyless: " + keyless + "}]"), "keyless needs a trustedRoot"},
		{"keyless with an empty root", authorities("[{keyless: " + keyless + ", trustedRoot: {}}]"), "needs exactly one of file and data"},
		{"keyless with both roots", authorities("[{keyless: " + keyless + ", trustedRoot: {file: /x, data: '{}'}}]"), "needs exactly one of file and data"},
		{"no issuer", root("{subject: me@example.com}"), "needs exactly one of issuer and issuerRegexp"},
		{"both issuers", root("{issuer: 'https://a.example', issuerRegexp: 'https://a\\.example', subject: me@example.com}"), "needs exactly one of issuer and issuerRegexp"},
		{"no subject", root("{issuer: 'https://a.example'}"), "needs exactly one of subject and subjectRegexp"},
		{"both subjects", root("{issuer: 'https://a.example', subject: a, subjectRegexp: b}"), "needs exactly one of subject and subjectRegexp"},
		{"any subject", root("{issuer: 'https://a.example', subjectRegexp: '.*'}"), "matches anybody; name whom you trust"},
		{"any subject of a kind", root("{issuer: 'https://a.example', subjectRegexp: 'https://.*'}"), "matches anybody; name whom you trust"},
		{"any address", root(`{issuer: 'https://a.example', subjectRegexp: '\S+@\S+'}`), "matches anybody; name whom you trust"},
		{"an expression that leaves its group", root(`{issuer: 'https://a.example', subjectRegexp: 'a)|(?:b'}`), "spec.authorities[0].keyless.subjectRegexp"},
		{"any subject in other words", root(`{issuer: 'https://a.example', subjectRegexp: '^(.+|x)$'}`), "matches anybody; name whom you trust"},
		{"any issuer", root("{issuerRegexp: '.*', subject: me@example.com}"), "matches anybody; name whom you trust"},
		{"no regular expression", root("{issuer: 'https://a.example', subjectRegexp: '('}"), "spec.authorities[0].keyless.subjectRegexp"},

		{"unknown hook", allow("hooks: [xpd]"), "spec.allow.hooks[0]"},
		{"whole band", allow("priority: {min: 0, max: 1000}"), ""},
		{"half a band", allow("priority: {min: 1000}"), ""},
		{"priority beyond", allow("priority: {max: 1001}"), "is no band within 0 to 1000"},
		{"priority below", allow("priority: {min: -1}"), "is no band within 0 to 1000"},
		{"priority turned round", allow("priority: {min: 900, max: 100}"), "is no band within 0 to 1000"},
		{"priority a number", allow("priority: 5"), "spec.allow.priority"},
		{"priority a fraction", allow("priority: {min: 1.5}"), "spec.allow.priority.min"},
		{"bytes", allow("maxMapBytes: 4096"), ""},
		{"bytes as text", allow("maxMapBytes: '4096'"), ""},
		{"mebibytes", allow("maxMapBytes: 64Mi"), ""},
		{"fraction of a kibibyte", allow("maxMapBytes: 1.5Ki"), ""},
		{"no bytes", allow("maxMapBytes: 0"), ""},
		{"bytes in words", allow("maxMapBytes: lots"), "is no number of bytes; write it as 64Mi"},
		{"negative bytes", allow("maxMapBytes: -1"), "is no number of bytes; write it as 64Mi"},
		{"bytes with an exponent", allow("maxMapBytes: '1e9'"), "is no number of bytes; write it as 64Mi"},
		{"too many bytes", allow("maxMapBytes: 12345678901234567"), "is no number of bytes; write it as 64Mi"},
		{"one program of one instruction", allow("maxPrograms: 1, maxInstructions: 1"), ""},
		{"no program", allow("maxPrograms: 0"), "lets nothing run; write 1 or more, or leave it out for no limit"},
		{"no instruction", allow("maxInstructions: -1"), "lets nothing run; write 1 or more, or leave it out for no limit"},
		{"denied kfunc and helper without a name", allow("helpers: {deny: ['kfunc:bpf_task_acquire', 'helper#250']}"), ""},
		{"denied helper", allow("helpers: {deny: [bpf_probe_write_user]}"), ""},
		{"no helper's name", allow("helpers: {deny: [probe-write]}"), "is no helper's name"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, fileErr := verify.ParsePolicies([]byte(tc.policy), "policy.yaml", cosign.Compile)
			_, objectErr := compile(t, tc.policy)
			status, message := c.create(t, policyObject(t, tc.policy))
			if tc.refusal == "" {
				if fileErr != nil || objectErr != nil || status != http.StatusCreated {
					t.Errorf("a file: %v; an object: %v; the API server: %d: %s; want all to accept", fileErr, objectErr, status, message)
				}
				return
			}
			if fileErr == nil || objectErr == nil {
				t.Errorf("a file: %v; an object: %v; want both refused", fileErr, objectErr)
			}
			if status != http.StatusUnprocessableEntity && status != http.StatusBadRequest || !strings.Contains(message, tc.refusal) {
				t.Errorf("the API server: %d: %s\nwant %q in it", status, message, tc.refusal)
			}
		})
	}

	// What is for files alone, of which neither the API server nor the node takes it from an object.
	for _, tc := range []struct{ name, policy, refusal string }{
		{"subjects", head + "  subjects: [demo/counter]", `grant the verb "use"`},
		{"a root beside the file", strings.Replace(root(keyless), "/etc/bpfvol/", "", 1), "is no absolute path on the node"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, objectErr := compile(t, tc.policy)
			status, message := c.create(t, policyObject(t, tc.policy))
			if objectErr == nil || !strings.Contains(objectErr.Error(), tc.refusal) {
				t.Errorf("an object: %v; want %q in it", objectErr, tc.refusal)
			}
			if status != http.StatusUnprocessableEntity || !strings.Contains(message, tc.refusal) {
				t.Errorf("the API server: %d: %s\nwant %q in it", status, message, tc.refusal)
			}
		})
	}
	t.Run("no subjects", func(t *testing.T) {
		policy := head + "  subjects: []"
		_, objectErr := compile(t, policy)
		if status, message := c.create(t, policyObject(t, policy)); objectErr != nil || status != http.StatusCreated {
			t.Errorf("an object: %v; the API server: %d: %s", objectErr, status, message)
		}
	})
	// Names of helpers, bytes of keys and what is in a trusted root are judged by bpfvol alone.
}

// Every policy of the documentation and of the end-to-end tests, without its subjects, is one for a cluster.
func TestEveryExamplePolicyIsAccepted(t *testing.T) {
	c := Start(t)
	block := regexp.MustCompile("(?m)^apiVersion: bpfvol.io/v1alpha1\nkind: BytecodePolicy\n(?:[^`\n-][^`\n]*\n|\n)+")
	known := strings.NewReplacer(
		"$REGISTRY", "registry.example.com:5000",
		`"$KEY"`, publicKey(t),
		`"-----BEGIN PUBLIC KEY-----\n..."`, publicKey(t),
		`"-----BEGIN PUBLIC KEY-----..."`, publicKey(t),
	)
	var files []string
	root := filepath.Join(folder(), "../..")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			// What a chart renders, e2e/chart shows to an API server.
			if path != root && strings.HasPrefix(d.Name(), ".") || d.Name() == "templates" {
				return fs.SkipDir
			}
			return nil
		}
		if ext := filepath.Ext(path); ext == ".md" || ext == ".yaml" || strings.HasPrefix(path, filepath.Join(root, "e2e/events")) {
			files = append(files, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, example := range block.FindAllString(string(text), -1) {
			object := policyObject(t, known.Replace(example))
			delete(object["spec"].(map[string]any), "subjects")
			if status, message := c.create(t, object); status != http.StatusCreated {
				t.Errorf("%s: %d: %s\n%s", file, status, message, example)
			}
			found++
		}
	}
	if found < 5 {
		t.Errorf("found %d examples; README.md has one and e2e/events four", found)
	}
}

// The API server's list of hooks is in the types' markers, where no constant can stand.
func TestCRDKnowsEveryHook(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(folder(), "../../deploy/crd/bpfvol.io_bytecodepolicies.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var crd map[string]any
	if err := yaml.Unmarshal(text, &crd); err != nil {
		t.Fatal(err)
	}
	node := crd["spec"].(map[string]any)["versions"].([]any)[0]
	for _, key := range []string{"schema", "openAPIV3Schema", "properties", "spec", "properties", "allow", "properties", "hooks", "items", "enum"} {
		node = node.(map[string]any)[key]
	}
	var got []string
	for _, hook := range node.([]any) {
		got = append(got, hook.(string))
	}
	if want := words(volume.Kinds); !slices.Equal(got, want) {
		t.Errorf("hooks of the CRD: got %q, want %q", got, want)
	}
}

func TestKubectlShowsAndExplainsPolicies(t *testing.T) {
	c := Start(t)
	c.Apply(t, head+"  authorities: [{keyless: "+keyless+", trustedRoot: {file: /x}}]\n  allow: {hooks: [xdp, tc]}\n")
	c.Apply(t, strings.Replace(head, "name: acme", "name: open", 1)+"  unsigned: true\n")
	columns := regexp.MustCompile(` {2,}`)
	table := func(args ...string) [][]string {
		var rows [][]string
		for line := range strings.Lines(c.Kubectl(t, args...)) {
			rows = append(rows, columns.Split(strings.TrimSpace(line), -1))
		}
		return rows
	}
	for _, name := range []string{"bytecodepolicies", "bytecodepolicy", "bcp"} {
		got := table("get", name)
		for i, want := range [][]string{
			{"NAME", "IMAGES", "SIGNERS", "UNSIGNED", "HOOKS", "AGE"},
			{"acme", `["ghcr.io/acme/*"]`, `https://github\.com/acme/.*`, `["xdp","tc"]`},
			{"open", `["ghcr.io/acme/*"]`, "true"},
		} {
			for _, cell := range want {
				if i >= len(got) || !slices.Contains(got[i], cell) {
					t.Errorf("kubectl get %s, line %d: no %q in\n%q", name, i, cell, got)
				}
			}
		}
	}
	if got := table("get", "bcp", "-o", "wide"); !slices.Contains(got[0], "ISSUERS") || !slices.Contains(got[1], "https://token.actions.githubusercontent.com") {
		t.Errorf("kubectl get -o wide: no issuers in\n%q", got)
	}
	t.Logf("kubectl get bcp -o wide:\n%s", c.Kubectl(t, "get", "bcp", "-o", "wide"))
	for field, want := range map[string]string{
		"bcp":                                   "which bytecode images may run",
		"bcp.spec.images":                       "globs of repositories, without tag or digest",
		"bcp.spec.allow.hooks":                  "default xdp, tc, tracepoint",
		"bcp.spec.authorities.keyless":          "subjectRegexp",
		"bcp.spec.authorities.trustedRoot.file": "path on the node",
		"bcp.spec.subjects":                     `RBAC verb "use" decides`,
	} {
		if got := strings.Join(strings.Fields(c.Kubectl(t, "explain", field)), " "); !strings.Contains(got, want) {
			t.Errorf("kubectl explain %s: no %q in\n%s", field, want, got)
		}
	}
}

// create asks whether a policy would be taken, as strictly as kubectl does, and returns the status and what is wrong.
func (c *Cluster) create(t *testing.T, object map[string]any) (int, string) {
	t.Helper()
	status, body := c.Do(t, http.MethodPost, policiesPath+"?dryRun=All&fieldValidation=Strict", object)
	var answer struct{ Message string }
	if err := json.Unmarshal(body, &answer); err != nil {
		t.Fatalf("%d: %s", status, body)
	}
	return status, answer.Message
}

func policyObject(t *testing.T, text string) map[string]any {
	t.Helper()
	var object map[string]any
	if err := yaml.Unmarshal([]byte(text), &object); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return object
}

// compile asks the node plugin, which reads objects of the cluster.
func compile(t *testing.T, text string) (*verify.Policy, error) {
	t.Helper()
	object, err := json.Marshal(policyObject(t, text))
	if err != nil {
		t.Fatal(err)
	}
	return verify.CompileObject(object, cosign.Compile)
}

// publicKey returns a key as a word of YAML.
func publicKey(t *testing.T) string {
	t.Helper()
	_, public, err := cosign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%q", public)
}

func words(kinds []volume.Kind) []string {
	all := make([]string, len(kinds))
	for i, k := range kinds {
		all[i] = string(k)
	}
	return all
}
