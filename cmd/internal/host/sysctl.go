package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// sysctlRoot is what is of the calling thread's network namespace.
const sysctlRoot = "/proc/sys/net"

// readSysctl returns a variable's value, "" if this kernel has none of the name.
func readSysctl(path string) (string, error) {
	text, err := os.ReadFile(filepath.Join(sysctlRoot, path))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read sysctl net/%s: %w", path, err)
	}
	return strings.TrimSpace(string(text)), nil
}
