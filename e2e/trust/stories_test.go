// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/e2e/eventdoc"
	"github.com/bpfvol/bpfvol/e2e/kubelet"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/image/imagetest"
)

// stories are what takes more than one publish. Each runs on the node of the table, after it.
var stories = []struct {
	name string
	tell func(t *testing.T, n *node)
}{
	{"TagMovesBetweenPublishes", tagMoves},
	{"RegistryIsDown", registryIsDown},
	{"CacheIsSpoiled", cacheIsSpoiled},
	{"KeyIsRemoved", keyIsRemoved},
	{"RootRotates", rootRotates},
	{"PolicyThatIsNone", policyThatIsNone},
	{"FiftyAtOnce", fiftyAtOnce},
	{"OneOfManyGivesUp", oneOfManyGivesUp},
}

const (
	cutOff           = `image $IMAGE: unavailable: registry $REGISTRY: answer was cut off; try again later`
	signaturesCutOff = `image $SIGNED: signatures: unavailable: registry $REGISTRY: answer was cut off; try again later`
	notCached        = `image $IMAGE: not in the cache, and the pull policy is Never; pull it once with another policy`
)

// told are the refusals of stories, for TestEveryRefusalIsDocumented.
var told = []testCase{
	{code: codes.Unavailable, says: cutOff},
	{code: codes.Unavailable, says: signaturesCutOff},
	{code: codes.NotFound, says: notCached},
	{code: codes.DataLoss, says: spoilt},
	{code: codes.DataLoss, says: spoiltAndDown},
	{code: codes.PermissionDenied, says: byAnotherKey},
	{code: codes.PermissionDenied, says: unsigned},
	{code: codes.Unavailable, says: noAnswer},
	{code: codes.PermissionDenied, says: noPolicies},
}

func with(policy string) map[string]string { return map[string]string{"pullPolicy": policy} }

// Who moves a tag after it was signed gains nothing, and who moves it as he should is followed where the volume says so.
func tagMoves(t *testing.T, n *node) {
	r := n.repository(release + "/moves")
	first := pushSigned(t, r)
	n.runsOnce(t, r, ":v1", "IfNotPresent", first)

	evil := imagetest.PushImage(t, n.Registry, r.name, "v1", r.object("evil"))
	n.wantRefusal(t, r.volume(":v1", with("Always")), r, evil, codes.PermissionDenied, unsigned)
	// The tag that was refused is not what the next one gets.
	second := imagetest.PushImage(t, n.Registry, r.name, "v1", r.object("second"))
	r.sign(t, releaseKey(), second, image.FormatBundle)
	n.runsOnce(t, r, ":v1", "Always", second)

	third := imagetest.PushImage(t, n.Registry, r.name, "v1", r.object("third"))
	r.sign(t, releaseKey(), third, image.FormatTag)
	for _, policy := range []string{"IfNotPresent", "Never"} {
		n.runsOnce(t, r, ":v1", policy, second)
	}
	n.runsOnce(t, r, "@"+first.String(), "IfNotPresent", first)
	n.runsOnce(t, r, ":v1", "Always", third)
}

// runsOnce publishes an image, sees it run, and takes it away.
func (n *node) runsOnce(t *testing.T, r repository, reference, policy string, d digest.Digest) {
	t.Helper()
	v := r.volume(reference, with(policy))
	before := n.snapshot(t)
	n.wantRuns(t, v, d)
	if err := v.TearDown(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.wantNothing(t, before)
}

// What a registry that is away stops, and what not.
func registryIsDown(t *testing.T, n *node) {
	warm, cold := n.repository(release+"/warm"), n.repository(release+"/cold")
	d, coldDigest := pushSigned(t, warm), pushSigned(t, cold)
	n.runsOnce(t, warm, ":v1", "IfNotPresent", d)
	n.runsOnce(t, warm, "@"+d.String(), "IfNotPresent", d)
	n.InterceptFor(t, imagetest.Drop(""))
	for _, c := range []struct {
		reference, policy string
		warm              codes.Code
		warmSays          string
		cold              codes.Code
		coldSays          string
	}{
		{":v1", "IfNotPresent", codes.OK, "", codes.Unavailable, cutOff},
		{":v1", "Never", codes.OK, "", codes.NotFound, notCached},
		{":v1", "Always", codes.Unavailable, cutOff, codes.Unavailable, cutOff},
		{"@", "IfNotPresent", codes.OK, "", codes.Unavailable, cutOff},
		{"@", "Never", codes.OK, "", codes.NotFound, notCached},
		// A digest cannot move, but its signatures are asked for.
		{"@", "Always", codes.Unavailable, signaturesCutOff, codes.Unavailable, cutOff},
	} {
		of := func(d digest.Digest) string {
			if c.reference == "@" {
				return "@" + d.String()
			}
			return c.reference
		}
		if c.warm == codes.OK {
			n.runsOnce(t, warm, of(d), c.policy, d)
		} else {
			n.wantRefusal(t, warm.volume(of(d), with(c.policy)), warm, d, c.warm, c.warmSays)
		}
		n.wantRefusal(t, cold.volume(of(coldDigest), with(c.policy)), cold, coldDigest, c.cold, c.coldSays)
	}
}

const (
	spoilt        = `image $WORDS: bytes differ from their digest: $SHA in the cache; pull or build it again`
	spoiltAndDown = `image $WORDS: bytes differ from their digest: $SHA in the cache, and it cannot be fetched again: unavailable: registry $REGISTRY: answer was cut off; try again later`
)

// Every byte of an image that is changed on the node's disk is noticed, whatever it belongs to, and mended as soon as
// the registry answers.
func cacheIsSpoiled(t *testing.T, n *node) {
	r := n.repository(release + "/spoiled")
	before := n.blobs(t)
	d := pushParts(image.FormatTag)(t, r)
	r.sign(t, releaseKey(), d, image.FormatBundle)
	n.runsOnce(t, r, ":v1", "IfNotPresent", d)
	spoiled := 0
	for path := range n.blobs(t) {
		if before[path] {
			continue
		}
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(good) == 2 {
			continue // {}, which is everybody's
		}
		bad := append([]byte(nil), good...)
		bad[len(bad)/2] ^= 1
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		spoiled++
		v := r.volume(":v1", with("Never"))
		n.wantRefusal(t, v, r, d, codes.DataLoss, spoilt)
		n.runsOnce(t, r, ":v1", "IfNotPresent", d)
		mended, err := os.ReadFile(path)
		if err != nil || digest.FromBytes(mended).Encoded() != filepath.Base(path) {
			t.Errorf("%s was not mended: %v", path, err)
		}
	}
	// Index, manifest, config, layer; the tag's manifest with its payload; the list of referrers, a manifest, a bundle.
	if want := 9; spoiled < want {
		t.Errorf("spoiled %d blobs, want %d at least", spoiled, want)
	}
	// Where the registry is away, too, it stays a refusal.
	layer := filepath.Join(n.CacheDir(), "oci", "blobs", "sha256", digest.FromBytes(imagetest.Tar(t, imagetest.File{Name: "x.o", Data: r.object("v1")})).Encoded())
	if err := os.WriteFile(layer, []byte("something else"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.InterceptFor(t, imagetest.Drop(""))
	n.wantRefusal(t, r.volume(":v1", nil), r, d, codes.DataLoss, spoiltAndDown)
}

// blobs are the files of the cache.
func (n *node) blobs(t *testing.T) map[string]bool {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(n.CacheDir(), "oci", "blobs", "sha256", "*"))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	for _, path := range paths {
		all[path] = true
	}
	return all
}

// A key that leaves the policy signs nothing any more, also what is on the node already; what runs goes on.
func keyIsRemoved(t *testing.T, n *node) {
	r := n.repository(release + "/keyremoved")
	d := pushSigned(t, r)
	running := r.volume(":v1", nil)
	n.wantRuns(t, running, d)
	n.Intercept(imagetest.Drop("")) // the cache answers, or nobody
	defer n.Intercept(nil)

	changed := policies(t)
	changed[release] = v1alpha1.BytecodePolicySpec{Authorities: keys(strangerKey())}
	n.setPolicies(t, changed)
	for _, policy := range []string{"IfNotPresent", "Never"} {
		code, says := codes.Unavailable, signaturesCutOff
		if policy == "Never" {
			code, says = codes.PermissionDenied, byAnotherKey
		}
		n.wantRefusal(t, r.volume(":v1", with(policy)), r, d, code, says)
	}
	n.Intercept(nil)
	n.wantRefusal(t, r.volume(":v1", nil), r, d, codes.PermissionDenied, byAnotherKey)
	n.wantRuns(t, running, d) // kubelet asks again for what is there

	n.setPolicies(t, policies(t))
	n.runsOnce(t, r, ":v1", "IfNotPresent", d)
}

// setPolicies changes the policies and waits until they are in force.
func (n *node) setPolicies(t *testing.T, all map[string]v1alpha1.BytecodePolicySpec) {
	t.Helper()
	n.SetPolicies(t, policyFile(t, n.Registry, all))
	time.Sleep(time.Second) // as DESIGN promises
}

const noPolicies = `image $IMAGE: no policy is in force; an admin must add a BytecodePolicy whose images include "$REGISTRY/release/none"`

// A file with a mistake, such as a key with something around it, keeps what was in force; no file is no policy.
func policyThatIsNone(t *testing.T, n *node) {
	r := n.repository(release + "/none")
	d := pushSigned(t, r)
	// Without its mistake, the file would not admit the image.
	changed := policies(t)
	changed[release] = v1alpha1.BytecodePolicySpec{Authorities: keys(strangerKey())}
	file := policyFile(t, n.Registry, changed)
	for _, bad := range []string{
		strings.ReplaceAll(file, "-----BEGIN PUBLIC KEY-----", `junk\n-----BEGIN PUBLIC KEY-----`),
		strings.ReplaceAll(file, "-----END PUBLIC KEY-----", `-----END PUBLIC KEY-----\njunk`),
		strings.ReplaceAll(file, `"subject":"`+workflow.Subject, `"subjectRegexp":".*`),
	} {
		if bad == file {
			t.Fatal("the mistake was not made")
		}
		n.SetPolicies(t, bad)
		time.Sleep(time.Second)
		n.runsOnce(t, r, ":v1", "IfNotPresent", d)
	}
	if err := os.Remove(filepath.Join(n.PolicyDir(), "e2e.yaml")); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	n.wantRefusal(t, r.volume(":v1", nil), r, d, codes.PermissionDenied, noPolicies)
	n.setPolicies(t, policies(t))
	n.runsOnce(t, r, ":v1", "IfNotPresent", d)
}

const noAnswer = `image $SIGNED: signatures: unavailable: registry $REGISTRY: no answer in time; try again later`

// slow are publishes from a registry that takes its time with signatures. They last most of a minute, and run beside
// the table.
type slow struct {
	n       *node
	waiting []*slowPublish
}

type slowPublish struct {
	r    repository
	d    digest.Digest
	done chan error
	end  func() error
}

// Repositories of slow registries, by what they do.
const (
	hangs = release + "/hangs" // no answer to a look-up
	drips = release + "/drips" // a byte of a signature now and then
)

// slowly stands before a registry.
func slowly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch reading := r.Method == http.MethodGet; {
		case reading && strings.Contains(r.URL.Path, hangs) && strings.HasSuffix(r.URL.Path, ".sig"):
			<-r.Context().Done()
		case reading && strings.Contains(r.URL.Path, drips) && strings.Contains(r.URL.Path, "/blobs/"):
			for {
				if _, err := w.Write([]byte(" ")); err != nil {
					return
				}
				w.(http.Flusher).Flush()
				select {
				case <-r.Context().Done():
					return
				case <-time.After(time.Second):
				}
			}
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// startSlow needs one kind of registry: its own answers are not what is tried.
func startSlow(t *testing.T, n *node, kind registryKind) *slow {
	s := &slow{n: n}
	if kind.name != inProcess {
		return s
	}
	for _, name := range []string{hangs, drips} {
		r := n.repository(name)
		d := r.push(t, "v1")
		r.sign(t, releaseKey(), d, image.FormatBundle)
		v := r.volume(":v1", nil)
		p := &slowPublish{r: r, d: d, done: make(chan error, 1), end: func() error { return v.TearDown(context.WithoutCancel(t.Context())) }}
		go func() { p.done <- v.SetUp(t.Context()) }()
		s.waiting = append(s.waiting, p)
	}
	return s
}

// A registry that does not say whether an image is signed does not say that it is not.
func (s *slow) wait(t *testing.T) {
	for _, p := range s.waiting {
		err := <-p.done
		var refused *kubelet.MountError
		if !errors.As(err, &refused) {
			t.Errorf("%s: got %v", p.r.name, err)
			continue
		}
		says := strings.NewReplacer("$SIGNED", s.n.Registry+"/"+p.r.name+"@"+p.d.String(), "$REGISTRY", s.n.Registry).Replace(noAnswer)
		eventdoc.Check(t, refused.Status.Err(), codes.Unavailable, says, nil)
		if err := p.end(); err != nil {
			t.Error(err)
		}
	}
	records, err := os.ReadDir(filepath.Join(s.n.StateDir(), "volumes"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) || len(records) > 0 {
		t.Errorf("records: %v, %v", records, err)
	}
}
