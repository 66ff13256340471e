package volume

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
)

var plainID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$`)

// FileName returns the name under which a volume's record and pins are kept: the id itself where it is a safe
// name on every file system we use (bpffs refuses dots), else "sha256-<hex>". Distinct ids have distinct names.
func FileName(id string) string {
	if plainID.MatchString(id) {
		return id
	}
	sum := sha256.Sum256([]byte(id))
	return "sha256-" + hex.EncodeToString(sum[:])
}
