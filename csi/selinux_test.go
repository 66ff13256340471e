// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

func TestSecurityContext(t *testing.T) {
	const label = "system_u:object_r:container_file_t:s0:c15,c25"
	for _, flags := range [][]string{
		{fmt.Sprintf("context=%q", label)}, // as kubelet writes it
		{"context=" + label},               // as an admin may in a PersistentVolume
	} {
		req := validRequest()
		req.VolumeCapability.GetMount().MountFlags = flags
		got, err := publishRequest(req, "")
		if err != nil || got.Context != label {
			t.Errorf("%s: context is %q, %v", flags, got.Context, err)
		}
	}
	for _, good := range []string{"system_u:object_r:container_file_t", "u:r:t:s0-s15:c0.c1023", "a.b:c-d:e_f:s0", strings.Repeat("u", 251) + ":r:t"} {
		if got, err := securityContext([]string{"context=" + good}); err != nil || got != good {
			t.Errorf("%q: %q, %v", good, got, err)
		}
	}
	if got, err := securityContext(nil); got != "" || err != nil {
		t.Errorf("without flags: %q, %v", got, err)
	}
}

func TestSecurityContextRefuses(t *testing.T) {
	const good = "context=system_u:object_r:container_file_t:s0"
	for name, flags := range map[string][]string{
		"another flag":           {"password=hunter2"},
		"another flag beside it": {good, "hunter2"},
		"the same twice":         {good, good},
		"context of the root":    {"rootcontext=u:r:hunter2"},
		"context of others":      {"fscontext=u:r:hunter2"},
		"empty":                  {"context="},
		"empty in quotes":        {`context=""`},
		"half a quote":           {`context="`},
		"an option after it":     {good + ",hunter2"},
		"an option after quotes": {`context="u:r:t",hunter2`},
		"quotes inside":          {`context=u:"r:hunter2"`},
		"too few parts":          {"context=u:hunter2"},
		"NUL":                    {"context=u:r:t\x00hunter2"},
		"newline":                {"context=u:r:t\nhunter2"},
		"escape":                 {`context="u:r:t\x41hunter2"`},
		"slash":                  {"context=u:r:../hunter2"},
		"longer than an option":  {"context=hunter2:r:" + strings.Repeat("t", 256)},
		"no ASCII":               {"context=u:r:hunter2é"},
	} {
		got, err := securityContext(flags)
		if !errors.As(err, new(*requestError)) || got != "" {
			t.Errorf("%s: %q, %v", name, got, err)
			continue
		}
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v: tells a mount flag", name, err)
		}
	}
}

// Pods may only read a PersistentVolume whose access modes say so.
func TestAccessModeMakesReadOnly(t *testing.T) {
	for mode, want := range map[csi.VolumeCapability_AccessMode_Mode]bool{
		csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER:       false,
		csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER:  false,
		csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY:  true,
		csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY:   true,
		csi.VolumeCapability_AccessMode_MULTI_NODE_SINGLE_WRITER: false,
	} {
		req := validRequest()
		req.Readonly = false
		req.VolumeCapability.AccessMode.Mode = mode
		if got, err := publishRequest(req, ""); err != nil || got.ReadOnly != want {
			t.Errorf("%v: read-only %v, %v", mode, got.ReadOnly, err)
		}
	}
}
