// SPDX-License-Identifier: Apache-2.0

package cosign_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/verify"
	"github.com/bpfvol/bpfvol/verify/cosign"
	"github.com/bpfvol/bpfvol/verify/cosign/cosigntest"
)

// fileAuthority compiles an authority that reads its trusted root from a file.
func fileAuthority(t testing.TB, dir, file string) verify.Authority {
	t.Helper()
	a, err := cosign.Compile(v1alpha1.Authority{Keyless: exactly(release), TrustedRoot: &v1alpha1.TrustedRoot{File: file}}, dir)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// policyErr is what a policy of one authority says of its files.
func policyErr(a verify.Authority) error {
	return (&verify.Policy{Name: "acme", Authorities: []verify.Authority{a}}).Err()
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// rotation is two sigstores, and a signature by each.
type rotation struct {
	d        digest.Digest
	old, new *cosigntest.Sigstore
	byOld    image.Signature
	byNew    image.Signature
}

func newRotation() rotation {
	r := rotation{d: digest.FromString("image"), old: cosigntest.New(), new: cosigntest.New()}
	r.byOld = r.old.Sign(r.d, theImage, release, image.FormatBundle)
	r.byNew = r.new.Sign(r.d, theImage, release, image.FormatBundle)
	return r
}

// trusts fails unless the authority trusts the old sigstore and the new one as it is said.
func (r rotation) trusts(t testing.TB, a verify.Authority, when string, byOld, byNew bool) {
	t.Helper()
	if _, err := a.Verify(t.Context(), r.d, r.byOld); (err == nil) != byOld {
		t.Errorf("%s: by the old root: got %v, want trusted %t", when, err, byOld)
	}
	if _, err := a.Verify(t.Context(), r.d, r.byNew); (err == nil) != byNew {
		t.Errorf("%s: by the new root: got %v, want trusted %t", when, err, byNew)
	}
}

func TestRotatedRootHoldsForTheNextPublish(t *testing.T) {
	r := newRotation()
	t.Run("written over", func(t *testing.T) {
		dir := t.TempDir()
		path := filepath.Join(dir, "trusted_root.json")
		write(t, path, r.old.TrustedRoot())
		a := fileAuthority(t, dir, "trusted_root.json")
		r.trusts(t, a, "before", true, false)
		write(t, path, r.new.TrustedRoot())
		r.trusts(t, a, "after", false, true)
	})
	t.Run("renamed into place", func(t *testing.T) {
		dir := t.TempDir()
		path := filepath.Join(dir, "trusted_root.json")
		write(t, path, r.old.TrustedRoot())
		a := fileAuthority(t, "", path)
		r.trusts(t, a, "before", true, false)
		write(t, path+".tmp", r.new.TrustedRoot())
		if err := os.Rename(path+".tmp", path); err != nil {
			t.Fatal(err)
		}
		r.trusts(t, a, "after", false, true)
	})
	// kubelet mounts a ConfigMap as file -> ..data/file, ..data -> ..<time>, and swaps ..data.
	t.Run("ConfigMap", func(t *testing.T) {
		dir := t.TempDir()
		swap := func(version string, data []byte) {
			t.Helper()
			if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(dir, version, "trusted_root.json"), data)
			tmp := filepath.Join(dir, "..data_tmp")
			if err := os.Symlink(version, tmp); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(tmp, filepath.Join(dir, "..data")); err != nil {
				t.Fatal(err)
			}
		}
		swap("..1", r.old.TrustedRoot())
		if err := os.Symlink("..data/trusted_root.json", filepath.Join(dir, "trusted_root.json")); err != nil {
			t.Fatal(err)
		}
		a := fileAuthority(t, dir, "trusted_root.json")
		r.trusts(t, a, "before", true, false)
		swap("..2", r.new.TrustedRoot())
		r.trusts(t, a, "after", false, true)
	})
	// Same size, same inode, and within the clock's tick: nothing but the content tells.
	t.Run("at once and of the same length", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "trusted_root.json")
		one, other := r.old.TrustedRoot(), r.new.TrustedRoot()
		size := max(len(one), len(other))
		pad := func(b []byte) []byte { return append(append([]byte{}, b...), strings.Repeat(" ", size-len(b))...) }
		a := fileAuthority(t, "", path)
		for range 20 {
			write(t, path, pad(one))
			r.trusts(t, a, "old", true, false)
			write(t, path, pad(other))
			r.trusts(t, a, "new", false, true)
		}
	})
}

func TestBrokenRootKeepsTheLastGood(t *testing.T) {
	r := newRotation()
	path := filepath.Join(t.TempDir(), "trusted_root.json")
	write(t, path, r.old.TrustedRoot())
	a := fileAuthority(t, "", path)
	r.trusts(t, a, "good", true, false)
	if err := policyErr(a); err != nil {
		t.Error(err)
	}
	prefix := `policy "acme": spec.authorities[0]: trustedRoot.file ` + path + ": "
	for _, tc := range []struct {
		name, want string
		do         func()
	}{
		{"junk", "is no trusted_root.json of sigstore: ", func() { write(t, path, []byte("junk")) }},
		{"empty", "is no trusted_root.json of sigstore: ", func() { write(t, path, nil) }},
		{"too long", "has more than 1048576 bytes", func() { write(t, path, make([]byte, 2<<20)) }},
		{"directory", "is not a regular file", func() { must(t, os.Remove(path)); must(t, os.Mkdir(path, 0o700)) }},
		{"gone", "no such file or directory", func() { must(t, os.Remove(path)) }},
		{"dangling", "no such file or directory", func() { must(t, os.Symlink("nothing", path)) }},
	} {
		tc.do()
		if err := policyErr(a); err == nil || !strings.HasPrefix(err.Error(), prefix+tc.want) {
			t.Errorf("%s: got %v, want %q", tc.name, err, prefix+tc.want)
		}
		r.trusts(t, a, tc.name, true, false)
		// A policy that is edited meanwhile is compiled anew, and has the last good root as well.
		r.trusts(t, fileAuthority(t, "", path), tc.name+", compiled anew", true, false)
	}
	must(t, os.Remove(path))
	write(t, path, r.new.TrustedRoot())
	r.trusts(t, a, "mended", false, true)
	if err := policyErr(a); err != nil {
		t.Errorf("mended: %v", err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A node may get its trusted root after its policies.
func TestRootThatComesLater(t *testing.T) {
	r := newRotation()
	path := filepath.Join(t.TempDir(), "trusted_root.json")
	a := fileAuthority(t, "", path)
	if _, err := a.Verify(t.Context(), r.d, r.byNew); !errors.Is(err, verify.ErrNoTrustedRoot) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want ErrNoTrustedRoot", err)
	}
	if err := policyErr(a); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want ErrNotExist", err)
	}
	write(t, path, r.new.TrustedRoot())
	r.trusts(t, a, "when it is there", false, true)
}

func TestDirSaysThatARootIsBroken(t *testing.T) {
	r := newRotation()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "acme.yaml"), fmt.Appendf(nil, `
apiVersion: bpfvol.io/v1alpha1
kind: BytecodePolicy
metadata: {name: acme}
spec:
  images: ["**"]
  subjects: ["*"]
  authorities:
  - keyless: {issuer: %q, subject: %q}
    trustedRoot: {file: roots/public.json}
`, release.Issuer, release.Subject))
	must(t, os.Mkdir(filepath.Join(dir, "roots"), 0o700))
	path := filepath.Join(dir, "roots", "public.json")
	write(t, path, r.old.TrustedRoot())
	d, err := verify.OpenDir(dir, cosign.Compile)
	must(t, err)
	if err := d.Err(); err != nil {
		t.Error(err)
	}
	r.trusts(t, d.Policies()[0].Authorities[0], "good", true, false)
	write(t, path, []byte("{}"))
	if err := d.Err(); err == nil || !strings.Contains(err.Error(), `policy "acme": spec.authorities[0]: trustedRoot.file `+path+": ") {
		t.Errorf("got %v", err)
	}
	r.trusts(t, d.Policies()[0].Authorities[0], "broken", true, false)
	write(t, path, r.new.TrustedRoot())
	if err := d.Err(); err != nil {
		t.Error(err)
	}
}

func TestChangesOfARootAreLoggedOnce(t *testing.T) {
	r := newRotation()
	path := filepath.Join(t.TempDir(), "trusted_root.json")
	a := fileAuthority(t, "", path)
	log := ktesting.NewLogger(t, ktesting.NewConfig(ktesting.BufferLogs(true)))
	ctx := klog.NewContext(t.Context(), log)
	for _, data := range [][]byte{nil, []byte("junk"), r.new.TrustedRoot()} {
		if data != nil {
			write(t, path, data)
		}
		for range 3 {
			_, _ = a.Verify(ctx, r.d, r.byNew) // what it says is tested elsewhere
		}
	}
	var got []string
	for _, e := range log.GetSink().(ktesting.Underlier).GetBuffer().Data() {
		got = append(got, e.Message)
	}
	want := []string{"trusted root refused, the last good version stays in force", "trusted root refused, the last good version stays in force", "trusted root in force"}
	if strings.Join(got, "; ") != strings.Join(want, "; ") {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Publishes verify at once while the root is replaced: each sees one or the other.
func TestRootIsReplacedWhileOthersVerify(t *testing.T) {
	r := newRotation()
	path := filepath.Join(t.TempDir(), "trusted_root.json")
	write(t, path, r.old.TrustedRoot())
	a := fileAuthority(t, "", path)
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if _, err := a.Verify(t.Context(), r.d, r.byOld); err != nil && !errors.Is(err, verify.ErrOtherRoot) {
					t.Error(err)
					return
				}
			}
		})
	}
	for start, i := time.Now(), 0; time.Since(start) < 300*time.Millisecond; i++ {
		root := r.old
		if i%2 == 0 {
			root = r.new
		}
		write(t, path+".tmp", root.TrustedRoot())
		must(t, os.Rename(path+".tmp", path))
	}
	close(done)
	wg.Wait()
}
