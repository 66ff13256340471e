// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/bpfvol/bpfvol/internal/image"
	"github.com/bpfvol/bpfvol/internal/volume"
)

// imageOptions say where images come from.
type imageOptions struct {
	cacheDir, registries, registriesDir, dockerConfig string

	logins *image.DockerConfigFile // of dockerConfig, where there is one
}

// flags has credentials of whoever calls, as docker has them.
func (o *imageOptions) flags(cmd *cobra.Command) {
	o.nodeFlags(cmd)
	cmd.Flags().Lookup("docker-config").DefValue = defaultDockerConfig()
	o.dockerConfig = defaultDockerConfig()
}

// nodeFlags has credentials only where they are given.
func (o *imageOptions) nodeFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.cacheDir, "cache-dir", defaultCacheDir(), "`DIR` of the image cache, an OCI layout below it")
	cmd.Flags().StringVar(&o.registries, "registries", "", "YAML `FILE` of registry hosts: mirrors, CA files, plain HTTP")
	cmd.Flags().StringVar(&o.registriesDir, "registries-dir", "", "`DIR` of containerd's hosts.toml files, such as /etc/containerd/certs.d, beside --registries")
	cmd.Flags().StringVar(&o.dockerConfig, "docker-config", "", "JSON `FILE` of registry credentials, as docker login writes it; read again when it changes. Programs that it names are not run")
}

// defaultDockerConfig is where docker login writes. It need not exist.
func defaultDockerConfig() string {
	dir := os.Getenv("DOCKER_CONFIG")
	if home, err := os.UserHomeDir(); dir == "" && err == nil {
		dir = filepath.Join(home, ".docker")
	}
	if dir == "" {
		return ""
	}
	return filepath.Join(dir, "config.json")
}

// defaultCacheDir is the daemon's cache, or one below the home of a user who could not write there.
func defaultCacheDir() string {
	if dir, err := os.UserCacheDir(); err == nil && os.Geteuid() != 0 {
		return filepath.Join(dir, "bpfvol")
	}
	return "/var/lib/bpfvol"
}

// open opens the image cache. Pulls run on ctx. The caller must Close the store.
func (o *imageOptions) open(ctx context.Context) (*image.Store, error) {
	return o.openDir(ctx, filepath.Join(o.cacheDir, "oci"))
}

func (o *imageOptions) openDir(ctx context.Context, dir string) (*image.Store, error) {
	var hosts image.Registries
	if o.registries != "" {
		var err error
		if hosts, err = image.LoadRegistries(o.registries); err != nil {
			return nil, fmt.Errorf("--registries: %w", err)
		}
	}
	if o.registriesDir != "" {
		if err := hosts.AddDir(o.registriesDir); err != nil {
			return nil, fmt.Errorf("--registries-dir: %w", err)
		}
	}
	logins, err := o.openDockerConfig(klog.FromContext(ctx))
	if err != nil {
		return nil, err
	}
	store, err := image.Open(image.Options{Dir: dir, Registries: hosts, Keyring: logins, UserAgent: "bpfvol/" + version, Context: ctx})
	if errors.Is(err, os.ErrPermission) {
		return nil, hinted(err, "use another directory: --cache-dir DIR")
	}
	return store, err
}

// openDockerConfig opens the credentials; nil where there are none.
func (o *imageOptions) openDockerConfig(log klog.Logger) (image.Keyring, error) {
	if o.dockerConfig == "" {
		return nil, nil
	}
	logins, err := image.OpenDockerConfigFile(o.dockerConfig, func(problem error) {
		log.Info("registry credentials are not as they should be", "problem", problem)
	})
	switch {
	case o.dockerConfig == defaultDockerConfig() && errors.Is(err, os.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, hinted(fmt.Errorf("--docker-config: %w", err), `to go without: --docker-config ""`)
	}
	o.logins = logins
	return logins, nil
}

// explain adds to an error about an image's registry what its caller can do here.
func (o *imageOptions) explain(err error, ref image.Reference) error {
	if errors.Is(err, image.ErrUnauthenticated) {
		err = hinted(err, "credentials are those of docker login "+ref.Registry+", or of --docker-config FILE")
		if o.logins != nil && o.logins.Ignored() != "" {
			err = hinted(err, "not used of "+o.dockerConfig+": "+o.logins.Ignored())
		}
	}
	if err == nil || !strings.Contains(err.Error(), "--registries") {
		return err
	}
	file := "write a file and give it by --registries FILE:"
	if o.registries != "" {
		file = "add to " + o.registries + ":"
	}
	return hinted(err, file+"\n    registries:\n    - host: "+ref.Registry+"\n      plainHTTP: true   # if it speaks no TLS")
}

// explainMissing is explain for an image that is wanted from somewhere.
func (o *imageOptions) explainMissing(err error, ref image.Reference) error {
	return missingIn(o.cacheDir, o.explain(err, ref), ref)
}

func missingIn(dir string, err error, ref image.Reference) error {
	if errors.Is(err, image.ErrHostNotAllowed) {
		return hinted(err, fmt.Sprintf("an image that was built here needs no registry, but %s is not in %s", ref, dir))
	}
	return err
}

// layoutOptions say which OCI layout a build goes into. The default is the cache, where run and publish find it.
type layoutOptions struct {
	imageOptions
	layout string
}

func (o *layoutOptions) flags(cmd *cobra.Command) {
	o.imageOptions.flags(cmd)
	cmd.Flags().StringVar(&o.layout, "layout", "", "`DIR` of an OCI layout to use instead of the cache")
}

// resolve finds the image that a verb was given, in the layout or at its registry. The caller must Close the store.
func (o *layoutOptions) resolve(ctx context.Context, ref image.Reference, stderr io.Writer) (*image.Store, *image.Root, error) {
	store, err := o.open(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer announce(stderr, "asking %s for %s", ref.Registry, ref)()
	root, err := store.Resolve(ctx, ref, image.PullOptions{Policy: volume.PullIfNotPresent})
	if err != nil {
		return nil, nil, errors.Join(o.explainMissing(err, ref), store.Close())
	}
	return store, root, nil
}

func (o *layoutOptions) open(ctx context.Context) (*image.Store, error) {
	if o.layout != "" {
		return o.openDir(ctx, o.layout)
	}
	return o.imageOptions.open(ctx)
}

func (o *layoutOptions) explainMissing(err error, ref image.Reference) error {
	return missingIn(cmp.Or(o.layout, o.cacheDir), o.explain(err, ref), ref)
}

// patience is how long a command is silent about work that takes long.
const patience = time.Second

// announce says what is going on if it takes long. The caller must call done when it is over.
func announce(stderr io.Writer, format string, args ...any) (done func()) {
	slow := time.AfterFunc(patience, func() { fmt.Fprintf(stderr, format+" ...\n", args...) })
	return func() { slow.Stop() }
}
