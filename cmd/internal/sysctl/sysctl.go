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

// Root is where a path begins.
const Root = "/proc/sys/net"

// writable is where variables are written.
var writable = Root

// WriteBelow says that variables can be written below dir, another path of [Root]: a
// container often may only read that. It is for the start of a program, before any
// other call.
func WriteBelow(dir string) { writable = dir }

// Read returns the value of a variable, such as "ipv4/conf/eth0/rp_filter", and
// whether there is such a one: those of an interface go with it, and a kernel may
// lack some.
func Read(path string) (value string, there bool, err error) {
	name, err := local(Root, path)
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
	name, err := local(writable, path)
	if err == nil {
		err = os.WriteFile(name, []byte(value), 0)
	}
	if err != nil {
		return fmt.Errorf("set sysctl net/%s=%s: %w", path, value, err)
	}
	return nil
}

// local is the variable's file, which lies below dir.
func local(dir, path string) (string, error) {
	if !filepath.IsLocal(path) {
		return "", fmt.Errorf("sysctl net/%s: not below %s", path, Root)
	}
	return filepath.Join(dir, path), nil
}
