// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// volumeDir is a volume's directory: <kubelet>/pods/<uid>/volumes/kubernetes.io~csi/<volume>.
type volumeDir struct {
	path string
	root string // not removed: <kubelet>/pods
}

func (k *Kubelet) volumeDir(p Pod, volume string) volumeDir {
	root := filepath.Join(k.dir, "pods")
	return volumeDir{path: filepath.Join(root, p.UID, "volumes", "kubernetes.io~csi", volume), root: root}
}

// target is what the driver makes and mounts.
func (d volumeDir) target() string { return filepath.Join(d.path, "mount") }

// data is the file that says whose the volume is, for kubelet after its restart.
func (d volumeDir) data() string { return filepath.Join(d.path, "vol_data.json") }

type volumeData struct {
	SpecVolID           string `json:"specVolID"`
	VolumeHandle        string `json:"volumeHandle"`
	DriverName          string `json:"driverName"`
	VolumeLifecycleMode string `json:"volumeLifecycleMode"`
}

// make makes everything but the target.
func (d volumeDir) make(driver, id string, persistent bool) error {
	if err := os.MkdirAll(d.path, 0o750); err != nil {
		return err
	}
	mode := "Ephemeral"
	if persistent {
		mode = "Persistent"
	}
	b, err := json.Marshal(volumeData{
		SpecVolID:           filepath.Base(d.path),
		VolumeHandle:        id,
		DriverName:          driver,
		VolumeLifecycleMode: mode,
	})
	if err != nil {
		return err
	}
	return os.WriteFile(d.data(), b, 0o600)
}

// volumeID reads the id of the volume; "" when there is none.
func (d volumeDir) volumeID() (string, error) {
	b, err := os.ReadFile(d.data())
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var data volumeData
	if err := json.Unmarshal(b, &data); err != nil {
		return "", fmt.Errorf("%s: %w", d.data(), err)
	}
	return data.VolumeHandle, nil
}

// remove does what removeMountDir of kubelet does, and then removes the pod's directories if this was its last volume.
// What is mounted, or not empty, stays and is an error.
func (d volumeDir) remove() error {
	mounted, err := isMounted(d.target())
	if err != nil {
		return err
	}
	if mounted {
		return fmt.Errorf("target %s: the driver left a mount", d.target())
	}
	for _, path := range []string{d.target(), d.data(), d.path} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for dir := filepath.Dir(d.path); dir != d.root; dir = filepath.Dir(dir) {
		if err := os.Remove(dir); errors.Is(err, unix.ENOTEMPTY) {
			break
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// isMounted compares the device of dir with its parent's, as kubelet does (IsLikelyNotMountPoint of k8s.io/mount-utils).
func isMounted(dir string) (bool, error) {
	var self, parent unix.Stat_t
	if err := unix.Lstat(dir, &self); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("target %s: %w", dir, err)
	}
	if err := unix.Lstat(filepath.Dir(dir), &parent); err != nil {
		return false, fmt.Errorf("target %s: %w", dir, err)
	}
	return self.Dev != parent.Dev, nil
}
