// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
)

// Lengths are not in patterns, here and elsewhere: a pattern that counts to 128 takes as much memory as 128 patterns.
var (
	plainID  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]*$`)
	hashedID = regexp.MustCompile(`^sha256-[0-9a-f]+$`)
)

const (
	maxPlainID   = 128
	hashedLength = len("sha256-") + 2*sha256.Size
)

// FileName returns the name under which a volume's record and pins are kept: the id itself where it is a safe
// name on every file system we use (bpffs refuses dots), else "sha256-<hex>". Distinct ids have distinct names: an id
// that looks like a hash is hashed, too.
func FileName(id string) string {
	hashed := len(id) == hashedLength && hashedID.MatchString(id)
	if len(id) <= maxPlainID && plainID.MatchString(id) && !hashed {
		return id
	}
	sum := sha256.Sum256([]byte(id))
	return "sha256-" + hex.EncodeToString(sum[:])
}
