// SPDX-License-Identifier: Apache-2.0

package k8s

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// pauseImage is the sandbox of every pod.
const pauseImage = "registry.k8s.io/pause:3.10"

// Registry is the address of the node's registry. It serves what is pushed there under the name of every other registry, too:
// containerd, and the plugin by the file deploy's manifests mount, ask it first.
func (n *Node) Registry() string { return registryAddress.String() }

// startRegistry serves a registry, with the image of sandboxes in it.
func (n *Node) startRegistry(ctx context.Context) error {
	var l net.Listener
	err := n.space.do(func() (err error) {
		l, err = net.Listen("tcp", registryAddress.String())
		return err
	})
	if err != nil {
		return err
	}
	quiet := log.New(io.Discard, "", 0)
	n.registry = &http.Server{
		Handler: registry.New(registry.Logger(quiet), registry.WithReferrersSupport(true)), ErrorLog: quiet, ReadHeaderTimeout: 5 * time.Second,
	}
	go n.registry.Serve(l) //nolint:errcheck // ends with Close
	pause, err := Image([]string{"/pause"}, nil, File{Path: "/pause", From: filepath.Join(n.bin, "pause")})
	if err != nil {
		return err
	}
	return n.Push(ctx, pauseImage, pause)
}

// Push puts an image where the node finds it by its name.
func (n *Node) Push(ctx context.Context, image string, content v1.Image) error {
	ref, err := name.ParseReference(image)
	if err != nil {
		return err
	}
	here, err := name.NewTag(registryAddress.String()+"/"+ref.Context().RepositoryStr()+":"+ref.Identifier(), name.Insecure)
	if err != nil {
		return err
	}
	transport := &http.Transport{DialContext: n.dial}
	defer transport.CloseIdleConnections()
	if err := remote.Write(here, content, remote.WithContext(ctx), remote.WithTransport(transport)); err != nil {
		return fmt.Errorf("push %s: %w", image, err)
	}
	return nil
}

// File is a file of a container image, from a file of the machine or, where Link is set, a symbolic link.
type File struct{ Path, From, Link string }

// Image makes a container image of files, as a Dockerfile does that begins FROM scratch.
func Image(entrypoint, command []string, files ...File) (v1.Image, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	var dirs []string
	for _, f := range files {
		for dir := path.Dir(f.Path); dir != "/" && !slices.Contains(dirs, dir); dir = path.Dir(dir) {
			dirs = append(dirs, dir)
		}
	}
	slices.Sort(dirs) // parents first
	for _, dir := range dirs {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir[1:] + "/", Mode: 0o755}); err != nil {
			return nil, err
		}
	}
	for _, f := range files {
		if err := f.write(w); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		return nil, err
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Config.Entrypoint, config.Config.Cmd = entrypoint, command
	return mutate.ConfigFile(image, config)
}

func (f File) write(w *tar.Writer) error {
	header := &tar.Header{Typeflag: tar.TypeSymlink, Name: f.Path[1:], Linkname: f.Link, Mode: 0o777}
	var data []byte
	if f.Link == "" {
		info, err := os.Stat(f.From)
		if err != nil {
			return err
		}
		if data, err = os.ReadFile(f.From); err != nil {
			return err
		}
		header = &tar.Header{Typeflag: tar.TypeReg, Name: f.Path[1:], Size: int64(len(data)), Mode: int64(info.Mode().Perm())}
	}
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}

// Busybox makes the image of that name of the machine's own busybox, which must be a static one.
func Busybox() (v1.Image, error) { return BusyboxAnd(nil, []string{"/bin/sh"}) }

// BusyboxAnd makes an image of it and other files, as a Dockerfile does that begins FROM busybox.
func BusyboxAnd(entrypoint, command []string, files ...File) (v1.Image, error) {
	binary, err := absolute("busybox")
	if err != nil {
		return nil, fmt.Errorf("busybox: %w; e2e/setup.sh e2e installs it", err)
	}
	object, err := elf.Open(binary)
	if err != nil {
		return nil, err
	}
	defer object.Close()
	if needed, err := object.ImportedLibraries(); err != nil || len(needed) > 0 {
		return nil, fmt.Errorf("%s: wants %v and %v, which its image does not have; install busybox-static", binary, needed, err)
	}
	applets, err := output(binary, "--list")
	if err != nil {
		return nil, err
	}
	files = append(slices.Clip(files), File{Path: "/bin/busybox", From: binary})
	for _, applet := range strings.Fields(applets) {
		if applet != "busybox" {
			files = append(files, File{Path: "/bin/" + applet, Link: "busybox"})
		}
	}
	return Image(entrypoint, command, files...)
}
