// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
)

// DockerConfigFile is a docker config on disk, read again when it changes. While what is there cannot be used, the
// last good one counts; once the file is gone, there are no credentials.
type DockerConfigFile struct {
	path string
	tell func(problem error)

	mu     sync.Mutex
	seen   os.FileInfo // the file as it was read last; nil where there was none
	config *DockerConfig
}

// OpenDockerConfigFile reads a docker config, which must exist. Tell is told what is wrong with later versions and what
// is ignored in this one, once each; it may be nil.
func OpenDockerConfigFile(path string, tell func(problem error)) (*DockerConfigFile, error) {
	if tell == nil {
		tell = func(error) {}
	}
	f := &DockerConfigFile{path: path, tell: tell, config: &DockerConfig{}}
	return f, f.read()
}

// Credentials returns what fits ref, by the file as it is now.
func (f *DockerConfigFile) Credentials(ref Reference) []Credential { return f.now().Credentials(ref) }

// Ignored says what of the file is not used, and why; it holds no secret.
func (f *DockerConfigFile) Ignored() string { return f.now().Ignored() }

func (f *DockerConfigFile) now() *DockerConfig {
	f.mu.Lock()
	defer f.mu.Unlock()
	info, err := os.Stat(f.path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && f.seen == nil:
	case errors.Is(err, fs.ErrNotExist):
		f.seen, f.config = nil, &DockerConfig{}
		f.tell(fmt.Errorf("docker config %s: is gone; pulling without it", f.path))
	case err == nil && f.seen != nil && os.SameFile(info, f.seen) && info.ModTime().Equal(f.seen.ModTime()) && info.Size() == f.seen.Size():
	default:
		if err := f.read(); err != nil {
			f.tell(fmt.Errorf("%w; the version before it stays in force", err))
		}
	}
	return f.config
}

func (f *DockerConfigFile) read() error {
	wrap := func(err error) error { return fmt.Errorf("docker config %s: %w", f.path, err) }
	file, err := os.Open(f.path)
	if err != nil {
		return fmt.Errorf("docker config: %w", err)
	}
	defer file.Close()
	if f.seen, err = file.Stat(); err != nil {
		return wrap(err)
	}
	data, err := io.ReadAll(io.LimitReader(file, maxDockerConfig+1))
	if err != nil {
		return wrap(err)
	}
	config, err := ParseDockerConfig(data)
	if err != nil {
		return wrap(err)
	}
	f.config = config
	if ignored := config.Ignored(); ignored != "" {
		f.tell(wrap(errors.New(ignored)))
	}
	return nil
}
