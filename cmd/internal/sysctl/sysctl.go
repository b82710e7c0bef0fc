// Package sysctl reads and writes the network's variables of the calling thread's
// network namespace (Documentation/networking/ip-sysctl.rst).
package sysctl

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// root is where a path begins.
const root = "/proc/sys/net"

// Read returns the value of a variable, such as "ipv4/conf/eth0/rp_filter", and
// whether there is such a one: those of an interface go with it, and a kernel may
// lack some.
func Read(path string) (value string, there bool, err error) {
	name, err := local(path)
	if err != nil {
		return "", false, err
	}
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("read sysctl net/%s: %w", path, err)
	}
	return strings.TrimSpace(string(text)), true, nil
}

// Write sets a variable.
func Write(path, value string) error {
	name, err := local(path)
	if err == nil {
		err = os.WriteFile(name, []byte(value), 0)
	}
	if err != nil {
		return fmt.Errorf("set sysctl net/%s=%s: %w", path, value, err)
	}
	return nil
}

// local is the variable's file, which lies below the root.
func local(path string) (string, error) {
	if !filepath.IsLocal(path) {
		return "", fmt.Errorf("sysctl net/%s: not below %s", path, root)
	}
	return filepath.Join(root, path), nil
}
