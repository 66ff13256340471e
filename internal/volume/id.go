// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
)

var (
	plainID  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$`)
	hashedID = regexp.MustCompile(`^sha256-[0-9a-f]{64}$`)
)

// FileName returns the name under which a volume's record and pins are kept: the id itself where it is a safe
// name on every file system we use (bpffs refuses dots), else "sha256-<hex>". Distinct ids have distinct names: an id
// that looks like a hash is hashed, too.
func FileName(id string) string {
	if plainID.MatchString(id) && !hashedID.MatchString(id) {
		return id
	}
	sum := sha256.Sum256([]byte(id))
	return "sha256-" + hex.EncodeToString(sum[:])
}
