// SPDX-License-Identifier: Apache-2.0

package csi

import "github.com/bpfvol/bpfvol/internal/image"

// nodePublishSecretRef is the field of a volume whose Secret kubelet sends along.
const nodePublishSecretRef = "nodePublishSecretRef"

// loginKeys are the keys of a Secret that holds credentials of registries, with the type of Secret that has each.
var loginKeys = []struct {
	key   string
	parse func([]byte) (*image.DockerConfig, error)
}{
	{".dockerconfigjson", image.ParseDockerConfig}, // kubernetes.io/dockerconfigjson
	{".dockercfg", image.ParseDockercfg},           // kubernetes.io/dockercfg
}

const makeSecret = "; make it with kubectl create secret docker-registry"

// keyring reads the Secret of a volume; nil where there is none. Other keys beside the known ones are ignored, as by
// kubelet. No error repeats anything of a Secret.
func keyring(secrets map[string]string) (image.Keyring, error) {
	if len(secrets) == 0 {
		return nil, nil
	}
	var all image.Keyrings
	known, why := false, ""
	for _, l := range loginKeys {
		text, found := secrets[l.key]
		if !found {
			continue
		}
		known = true
		config, err := l.parse([]byte(text))
		if err != nil {
			return nil, &requestError{nodePublishSecretRef, l.key + ": " + err.Error()}
		}
		if ignored := config.Ignored(); ignored != "" {
			why = " (" + ignored + ")"
		}
		if !config.Empty() {
			all = append(all, config)
		}
	}
	switch {
	case !known:
		return nil, &requestError{nodePublishSecretRef, "the Secret is not of type kubernetes.io/dockerconfigjson" + makeSecret}
	case len(all) == 0:
		return nil, &requestError{nodePublishSecretRef, "no user with a password in the Secret" + why + makeSecret}
	}
	return all, nil
}
