// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"

	"github.com/bpfvol/bpfvol/api/v1alpha1"
	"github.com/bpfvol/bpfvol/bpf"
	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/volume"
	"github.com/bpfvol/bpfvol/verify"
	"github.com/bpfvol/bpfvol/verify/cosign"
	"github.com/bpfvol/bpfvol/verify/cosign/cosigntest"
)

const verifyRounds = 200

// signedImage is an image in a cache, with one signature and a policy that wants it.
type signedImage struct {
	root   *image.Root
	policy []*verify.Policy
	took   []time.Duration
}

// benchVerify times what each publish pays for its signature: verify.Check of an image in the cache, from reading the
// signature to the grant. The figure is the median of the slowest format.
func benchVerify(ctx context.Context, _ string) (err error) {
	ctx = klog.NewContext(ctx, logr.Discard())
	dir, err := os.MkdirTemp("", "bpfvol-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	store, err := image.Open(image.Options{Dir: filepath.Join(dir, "oci")})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	v := &verifyBench{store: store}
	if err := v.keys(ctx); err != nil {
		return err
	}
	if err := v.identities(ctx, filepath.Join(dir, "trusted_root.json")); err != nil {
		return err
	}
	for range verifyRounds {
		for _, images := range [][]*signedImage{v.byKey, v.keyless} {
			for _, i := range images {
				start := time.Now()
				if _, err := verify.Check(ctx, i.root, i.policy); err != nil {
					return err
				}
				i.took = append(i.took, time.Since(start))
			}
		}
	}
	figure("verify.key_ms", slowest(v.byKey), "ms")
	figure("verify.keyless_ms", slowest(v.keyless), "ms")
	return nil
}

func slowest(images []*signedImage) float64 {
	var most float64
	for _, i := range images {
		most = max(most, median(i.took))
	}
	return most
}

// verifyBench is the images, each format's own.
type verifyBench struct {
	store          *image.Store
	byKey, keyless []*signedImage
}

// keys signs with a key as `cosign generate-key-pair` makes it.
func (v *verifyBench) keys(ctx context.Context) error {
	priv, pub, err := cosign.GenerateKey(nil)
	if err != nil {
		return err
	}
	authority := v1alpha1.Authority{Key: &v1alpha1.Key{Data: string(pub)}}
	for _, f := range []image.Format{image.FormatTag, image.FormatReferrer, image.FormatBundle} {
		i, err := v.image(ctx, fmt.Sprintf("bench.test/key/%s:v1", f), authority, func(ref image.Reference) (image.Signature, error) {
			return cosign.Sign(ctx, priv, nil, ref.Digest, ref, f)
		})
		if err != nil {
			return err
		}
		v.byKey = append(v.byKey, i)
	}
	return nil
}

// identities signs without a key, with each kind of proof that there is.
func (v *verifyBench) identities(ctx context.Context, file string) error {
	sigstore := cosigntest.New()
	if err := os.WriteFile(file, sigstore.TrustedRoot(), 0o600); err != nil {
		return err
	}
	id := cosigntest.Identity{Issuer: "https://token.actions.githubusercontent.com", Subject: "https://github.com/acme/ebpf/.github/workflows/release.yml@refs/tags/v1"}
	authority := v1alpha1.Authority{
		Keyless:     &v1alpha1.Keyless{Issuer: id.Issuer, SubjectRegexp: `https://github\.com/acme/ebpf/\.github/workflows/release\.yml@refs/tags/v.*`},
		TrustedRoot: &v1alpha1.TrustedRoot{File: file},
	}
	for n, way := range []struct {
		format image.Format
		opts   []cosigntest.Option
	}{
		{image.FormatTag, nil},
		{image.FormatTag, []cosigntest.Option{cosigntest.WithTimestamp()}},
		{image.FormatReferrer, nil},
		{image.FormatBundle, nil},
		{image.FormatBundle, []cosigntest.Option{cosigntest.WithTimestamp()}},
		{image.FormatBundle, []cosigntest.Option{cosigntest.RekorV2(), cosigntest.WithTimestamp()}},
	} {
		i, err := v.image(ctx, fmt.Sprintf("bench.test/keyless/%d:v1", n), authority, func(ref image.Reference) (image.Signature, error) {
			return sigstore.Sign(ref.Digest, ref, id, way.format, way.opts...), nil
		})
		if err != nil {
			return err
		}
		v.keyless = append(v.keyless, i)
	}
	return nil
}

// image builds one, signs it and makes the policy that wants it so.
func (v *verifyBench) image(ctx context.Context, name string, authority v1alpha1.Authority, sign func(image.Reference) (image.Signature, error)) (*signedImage, error) {
	ref, err := image.ParseReference(name)
	if err != nil {
		return nil, err
	}
	built, err := v.store.Build(ctx, ref, []image.BuildInput{{Name: "count.o", Arch: runtime.GOARCH, ELF: bpf.Count()}}, image.BuildOptions{})
	if err != nil {
		return nil, err
	}
	ref.Digest = built.Digest
	sig, err := sign(ref)
	if err != nil {
		return nil, err
	}
	if err := v.store.AttachSignature(ctx, ref, sig); err != nil {
		return nil, err
	}
	root, err := v.store.Resolve(ctx, ref, image.PullOptions{Policy: volume.PullIfNotPresent})
	if err != nil {
		return nil, err
	}
	a, err := cosign.Compile(authority, "")
	if err != nil {
		return nil, err
	}
	p := verify.UnsignedPolicy()
	p.Name, p.Unsigned, p.Authorities = "bench", false, []verify.Authority{a}
	return &signedImage{root: root, policy: []*verify.Policy{p}}, nil
}
