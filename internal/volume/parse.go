// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// maxAttributes is how long keys and values may be together. CSI allows 4 KiB (csi.proto, volume_context), but kubelet
// does not hold users to it.
const maxAttributes = 64 << 10

// AttributeError says which attribute is wrong, and how to write it.
type AttributeError struct {
	Key string // attribute key, with the path inside it: "attach[1].xdp.mode"; empty if it is about all of them
	Msg string // cause and fix
}

func (e *AttributeError) Error() string {
	if e.Key == "" {
		return "volumeAttributes: " + e.Msg
	}
	return "volumeAttributes: " + e.Key + ": " + e.Msg
}

// Parse turns the attributes of a volume into its Spec, with every default filled in. It is strict: a key or value that
// it does not know is an error. Every error is an *AttributeError; of several the same one is found each time.
//
// What kubelet adds to the attributes of a pod's volume, the keys "csi.storage.k8s.io/...", are not for Parse: package
// csi takes them out.
func Parse(attributes map[string]string) (Spec, error) {
	written := size(attributes)
	if written > maxAttributes {
		return Spec{}, attributeError("", fmt.Errorf("have %d bytes; at most %d are possible", written, maxAttributes))
	}
	var s Spec
	for _, key := range sortedKeys(attributes) {
		i := slices.IndexFunc(Attributes, func(a Attribute) bool { return a.Key == key })
		if i < 0 {
			return Spec{}, attributeError("", unknown("key", key, attributeKeys()))
		}
		err := checkText(attributes[key])
		if err == nil && strings.TrimSpace(attributes[key]) == "" {
			err = errEmpty
		}
		if err == nil {
			err = Attributes[i].read(&s, attributes[key])
		}
		if err != nil {
			return Spec{}, attributeError(key, err)
		}
	}
	if s.Image == "" {
		return Spec{}, attributeError(KeyImage, errors.New("is missing; name a bytecode image, like ghcr.io/acme/count:v1"))
	}
	if s.PullPolicy == "" {
		s.PullPolicy = defaultPullPolicy(s.Image)
	}
	// Quotes, spaces and escapes can make the canonical form longer, though not four times: `[.,.]` becomes
	// `[".", "."]`.
	if written > maxAttributes/4 {
		if canonical := size(s.Attributes()); canonical > maxAttributes {
			return Spec{}, attributeError("", fmt.Errorf("have %d bytes when written out; at most %d are possible", canonical, maxAttributes))
		}
	}
	return s, nil
}

func size(attributes map[string]string) int {
	n := 0
	for key, v := range attributes {
		n += len(key) + len(v)
	}
	return n
}

// Attributes returns the attributes that Parse makes s of, without what is default.
func (s Spec) Attributes() map[string]string {
	attributes := map[string]string{}
	for _, a := range Attributes {
		if v := a.write(s); v != "" {
			attributes[a.Key] = v
		}
	}
	return attributes
}

// defaultPullPolicy is kubelet's: what a tag like latest means changes, what a digest means does not.
func defaultPullPolicy(image string) PullPolicy {
	if strings.Contains(image, "@") {
		return PullIfNotPresent
	}
	_, tag, _ := strings.Cut(image[strings.LastIndex(image, "/")+1:], ":")
	if tag == "" || tag == "latest" {
		return PullAlways
	}
	return PullIfNotPresent
}

// at puts the place of an error before it: a key, or an index like "[1]".
func at(place string, err error) *AttributeError {
	var inner *AttributeError
	if !errors.As(err, &inner) {
		return &AttributeError{Key: place, Msg: err.Error()}
	}
	if !strings.HasPrefix(inner.Key, "[") {
		place += "."
	}
	return &AttributeError{Key: place + inner.Key, Msg: inner.Msg}
}

// attributeError makes err, which is about the attribute key, one that Parse returns.
func attributeError(key string, err error) *AttributeError {
	e := at(key, err)
	e.Key, e.Msg = printable(e.Key, maxKey), printable(e.Msg, maxMsg)
	return e
}

// maxKey and maxMsg keep a message within what an event shows, whatever the input is.
const (
	maxKey = 150
	maxMsg = 500
)

func printable(s string, most int) string {
	if len(s) > most {
		s = s[:most] + "..."
	}
	return strings.Map(func(r rune) rune {
		if notGraphicASCII(r) && r != ' ' {
			return '?'
		}
		return r
	}, s)
}
