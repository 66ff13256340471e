// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/bpfvol/bpfvol/internal/image"
)

// Dir is a directory of policy files: every *.yaml, *.yml and *.json directly in it whose name does not begin with
// a dot. Run keeps it up to date.
type Dir struct {
	path    string
	compile Compiler
	done    chan struct{} // closed by Close
	closing sync.Once

	mu       sync.RWMutex
	files    map[string]*file // by name
	policies Static           // what is in force: of every good file, in order of the names
	err      error
}

// file is one policy file: what it said last time it was valid, and what is wrong with it now.
type file struct {
	seen [sha256.Size]byte
	good []*Policy
	err  error
}

// OpenDir reads the policies of a directory. A file that is not valid is no error here, but of Err: one mistake
// must not take every other policy out of force. A directory that does not exist is one, wrapping fs.ErrNotExist:
// a mistyped flag would otherwise look like "nothing may run".
func OpenDir(path string, compile Compiler) (*Dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	d := &Dir{path: path, compile: compile, done: make(chan struct{}), files: map[string]*file{}}
	switch err := d.reload(); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("policy directory %s: %w; create it and put BytecodePolicy files there", d.path, fs.ErrNotExist)
	case err != nil:
		return nil, fmt.Errorf("policy directory %s: %w", d.path, err)
	}
	return d, nil
}

// Close ends Run. The policies stay in force for who still asks.
func (d *Dir) Close() error {
	d.closing.Do(func() { close(d.done) })
	return nil
}

// For implements Policies.
func (d *Dir) For(ctx context.Context, s Subject, ref image.Reference) ([]*Policy, error) {
	d.mu.RLock()
	policies := d.policies
	d.mu.RUnlock()
	return policies.For(ctx, s, ref)
}

// Err is nil when every file is good, those that policies name, too; else it says what is wrong with each that is not.
func (d *Dir) Err() error {
	d.mu.RLock()
	policies, errs := d.policies, []error{d.err}
	d.mu.RUnlock()
	for _, p := range policies {
		errs = append(errs, p.Err())
	}
	return errors.Join(errs...)
}

// fileErr is Err without what policies name: authorities report that themselves.
func (d *Dir) fileErr() error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.err
}

// Policies lists what is in force.
func (d *Dir) Policies() []*Policy {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return slices.Clone(d.policies)
}

// reload brings what is in force up to date with the directory. The error is that of reading the directory itself.
// A directory that is gone takes its policies along, like a file; one that cannot be read changes nothing.
func (d *Dir) reload() error {
	entries, err := os.ReadDir(d.path)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		var cause *fs.PathError
		if errors.As(err, &cause) {
			err = cause.Err
		}
		if errors.Is(err, fs.ErrNotExist) {
			clear(d.files)
			d.policies = nil
		}
		d.err = fmt.Errorf("policy directory %s: %w", d.path, err)
		return err
	}
	present := map[string]bool{}
	for _, e := range entries {
		if isPolicyFile(e.Name()) && d.read(e.Name()) {
			present[e.Name()] = true
		}
	}
	maps.DeleteFunc(d.files, func(name string, _ *file) bool { return !present[name] })
	d.merge()
	return nil
}

func isPolicyFile(name string) bool {
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return !strings.HasPrefix(name, ".")
	}
	return false
}

// read brings one file up to date and reports whether it exists: a file that is gone, or a symlink to one, is a
// policy revoked. What cannot be read or is invalid leaves the last good version in force.
func (d *Dir) read(name string) (exists bool) {
	path := filepath.Join(d.path, name)
	data, _, err := ReadFile(path, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	f := d.files[name]
	if f == nil {
		f = &file{}
		d.files[name] = f
	}
	if err != nil {
		f.seen, f.err = [sha256.Size]byte{}, fmt.Errorf("policy file %s: %w", path, err)
		return true
	}
	sum := sha256.Sum256(data)
	if sum == f.seen {
		return true
	}
	f.seen = sum
	good, err := ParsePolicies(data, path, d.compile)
	if f.err = err; err == nil {
		f.good = good
	}
	return true
}

// merge puts the last good version of every file in force. A name that two files use is the first one's: which of
// them was meant is not for us to guess.
func (d *Dir) merge() {
	var policies Static
	var errs []error
	owner := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(d.files)) {
		f := d.files[name]
		if f.err != nil {
			errs = append(errs, f.err)
		}
		for _, p := range f.good {
			if first, taken := owner[p.Name]; taken {
				errs = append(errs, fmt.Errorf("policy file %s: policy %q is defined in %s already", filepath.Join(d.path, name), p.Name, first))
				continue
			}
			owner[p.Name] = name
			policies = append(policies, p)
		}
	}
	d.policies, d.err = policies, errors.Join(errs...)
}
