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
	root      *image.Root
	signature image.Signature
	policy    *verify.Policy

	verified, checked []time.Duration
}

// benchVerify times what each publish pays for its signature: verifying it, and verify.Check of an image in the cache, which
// reads it as well. Each figure is the median over all formats; go test -bench . ./verify/cosign tells them apart.
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
				if err := i.measure(ctx); err != nil {
					return err
				}
			}
		}
	}
	v.print("key", v.byKey)
	v.print("keyless", v.keyless)
	return nil
}

func (i *signedImage) measure(ctx context.Context) error {
	start := time.Now()
	if _, err := i.policy.Authorities[0].Verify(ctx, i.root.Digest, i.signature); err != nil {
		return err
	}
	i.verified = append(i.verified, time.Since(start))
	start = time.Now()
	if _, err := verify.Check(ctx, i.root, []*verify.Policy{i.policy}); err != nil {
		return err
	}
	i.checked = append(i.checked, time.Since(start))
	return nil
}

// verifyBench is the images, each format's own.
type verifyBench struct {
	store          *image.Store
	byKey, keyless []*signedImage
}

func (*verifyBench) print(way string, images []*signedImage) {
	var verified, checked []time.Duration
	for _, i := range images {
		verified, checked = append(verified, i.verified...), append(checked, i.checked...)
	}
	figure("verify."+way+"_ms", median(verified), "ms")
	figure("verify."+way+"_and_read_ms", median(checked), "ms")
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
	sigs, err := root.Signatures(ctx, false)
	if err != nil {
		return nil, err
	}
	return &signedImage{root: root, signature: sigs[0], policy: p}, nil
}
