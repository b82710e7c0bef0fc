package tcprog

import (
	"crypto/sha256"
	"encoding/hex"
	"sync"
)

// Layout names the layout of the maps' entries. Only programs with the same can go on
// with the maps of others: it is that of one version of the programs.
var Layout = sync.OnceValue(func() string {
	sum := sha256.Sum256(_VxlanBytes)
	return hex.EncodeToString(sum[:8])
})
