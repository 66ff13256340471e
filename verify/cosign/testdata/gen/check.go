// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"

	"github.com/bpfvol/bpfvol/internal/image"
	ours "github.com/bpfvol/bpfvol/verify/cosign"
)

// verifications are how each cosign is asked for each format.
var verifications = []struct {
	format       image.Format
	cosign, args string
}{
	{image.FormatTag, "v2", ""},
	{image.FormatTag, "v3", "--new-bundle-format=false"},
	{image.FormatReferrer, "v2", "--experimental-oci11"},
	{image.FormatReferrer, "v3", "--new-bundle-format=false --experimental-oci11"},
	{image.FormatBundle, "v2", "--new-bundle-format --trusted-root=trusted-root.json"},
	{image.FormatBundle, "v3", ""},
}

// checkOurs signs with this package, stores with package image, and prints what each cosign says.
func checkOurs(ctx context.Context, c cosigns) {
	registries := filepath.Join(c.dir, "registries.yaml")
	must(os.WriteFile(registries, []byte("registries: [{host: \""+host+"\", plainHTTP: true}]\n"), 0o600))
	rs, err := image.LoadRegistries(registries)
	must(err)
	store, err := image.Open(image.Options{Dir: filepath.Join(c.dir, "oci"), Registries: rs, Context: ctx})
	must(err)
	defer store.Close()
	priv, pub, err := ours.GenerateKey(nil)
	must(err)
	must(os.WriteFile(filepath.Join(c.dir, "generated.key"), priv, 0o600))
	must(os.WriteFile(filepath.Join(c.dir, "generated.pub"), pub, 0o600))

	failed := false
	for _, key := range []string{"generated.key", "p256.pem", "p256.key", "p384.key", "rsa.pem", "ed25519.pem", "ed25519.key"} {
		keyPEM, err := os.ReadFile(filepath.Join(c.dir, key))
		must(err)
		pub := strings.TrimSuffix(strings.TrimSuffix(key, ".key"), ".pem") + ".pub"
		for _, v := range verifications {
			name := fmt.Sprintf("%s-%s-%s", strings.ReplaceAll(key, ".", "-"), v.format, v.cosign)
			at := pushImage(name)
			ref, err := image.ParseReference(at)
			must(err)
			sig, err := ours.Sign(ctx, keyPEM, nil, ref.Digest, ref, v.format)
			must(err)
			must(store.AttachSignature(ctx, ref, sig))
			args := append([]string{"verify", "--insecure-ignore-tlog", "--key=" + pub}, strings.Fields(v.args)...)
			args = append(args, "--allow-http-registry", "--allow-insecure-registry", at)
			text, err := c.run(v.cosign, args...)
			result := "verified"
			if err != nil {
				result, failed = "REFUSED: "+text, true
			}
			fmt.Printf("%-12s %-9s cosign %s verify --insecure-ignore-tlog --key=%s %s: %s\n", key, v.format, v.cosign, pub, v.args, result)
		}
	}
	if failed {
		log.Fatal("cosign refused a signature of ours")
	}
}
