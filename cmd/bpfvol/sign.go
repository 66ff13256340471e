// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/verify"
	"github.com/bpfvol/bpfvol/verify/cosign"
)

// passwordVariable protects a private key. It is cosign's, so that the keys can be used by both.
const passwordVariable = "COSIGN_PASSWORD"

func newKeygen() *cobra.Command {
	var prefix string
	cmd := &cobra.Command{
		Use:     "keygen",
		GroupID: "image",
		Short:   "Make a signing key",
		Long: strings.TrimSpace(`
Keygen writes bpfvol.key, a private key that cosign can use as well, and bpfvol.pub for policies.
The private key is encrypted with the password in COSIGN_PASSWORD, which may be empty.`),
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			private, public, err := cosign.GenerateKey([]byte(os.Getenv(passwordVariable)))
			if err != nil {
				return err
			}
			if err := writeNew(prefix+".key", private, 0o600); err != nil {
				return err
			}
			if err := writeNew(prefix+".pub", public, 0o644); err != nil {
				return errors.Join(err, os.Remove(prefix+".key"))
			}
			fmt.Fprintf(cmd.OutOrStdout(), "private key  %s.key\npublic key   %s.pub\n", prefix, prefix)
			return nil
		},
	}
	cmd.Flags().StringVar(&prefix, "prefix", "bpfvol", "`PATH` of the files without .key and .pub")
	return cmd
}

// writeNew never replaces a file: a lost key can't be made again.
func writeNew(path string, data []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if errors.Is(err, fs.ErrExist) {
		return hinted(err, "a key is never overwritten; choose other names by --prefix")
	}
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

var signatureFormats = []string{string(image.FormatBundle), string(image.FormatTag), string(image.FormatReferrer)}

func newSign() *cobra.Command {
	var o layoutOptions
	var key, format string
	cmd := &cobra.Command{
		Use:     "sign IMAGE",
		GroupID: "image",
		Short:   "Sign an image with a private key",
		Long: strings.TrimSpace(`
Sign signs the image's digest and stores the signature beside it: in the local cache for an image that was
built here and not pushed yet, else in the registry. cosign verifies it: --format bundle is what cosign v3
writes, tag and referrer are what cosign v2 writes. The key's password is read from COSIGN_PASSWORD.`),
		Example: "  bpfvol sign ghcr.io/acme/count:v1 --key bpfvol.key",
		Args:    exactArgs("IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if key == "" {
				return &usageError{errors.New("sign: --key FILE is missing; make one with bpfvol keygen")}
			}
			if !slices.Contains(signatureFormats, format) {
				return &usageError{fmt.Errorf("sign: --format %s: unknown; use %s", format, strings.Join(signatureFormats, ", "))}
			}
			pem, err := os.ReadFile(key)
			if err != nil {
				return fmt.Errorf("--key: %w", err)
			}
			ref, err := image.ParseReference(args[0])
			if err != nil {
				return err
			}
			store, root, err := o.resolve(cmd.Context(), ref, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			defer store.Close()
			ref.Digest = root.Digest
			password, given := os.LookupEnv(passwordVariable)
			sig, err := cosign.Sign(cmd.Context(), pem, []byte(password), root.Digest, ref, image.Format(format))
			if err != nil && strings.Contains(err.Error(), "is the password right") {
				err = hinted(err, map[bool]string{
					true:  "the password was read from " + passwordVariable,
					false: "the password is read from " + passwordVariable + ", which is not set",
				}[given])
			}
			if err != nil {
				return err
			}
			if err := store.AttachSignature(cmd.Context(), ref, sig); err != nil {
				return o.explain(err, ref)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "signed %s@%s\n", ref.Name(), root.Digest)
			return nil
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "private key `FILE` (cosign's or plain PEM); required")
	cmd.Flags().StringVar(&format, "format", string(image.FormatBundle), "`FORMAT`: "+strings.Join(signatureFormats, ", "))
	fixed(cmd, "format", signatureFormats...)
	cmd.ValidArgsFunction = completeImage
	o.flags(cmd)
	return cmd
}

// keyPolicies makes a policy of each public key file.
func keyPolicies(files []string) ([]*verify.Policy, error) {
	var out []*verify.Policy
	for _, file := range files {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("--key: %w", err)
		}
		p, err := verify.KeyPolicy("--key "+file, pem, cosign.Compile)
		if err != nil {
			return nil, fmt.Errorf("--key %s: %w", file, err)
		}
		out = append(out, p)
	}
	return out, nil
}
