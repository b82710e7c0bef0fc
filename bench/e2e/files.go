package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// ReadSubnetFile reads a subnet.env by its keys. A file that isn't there has none.
func ReadSubnetFile(path string) (map[string]string, error) {
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	file := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			file[key] = value
		}
	}
	return file, nil
}

// SubnetFile is ReadSubnetFile that must succeed.
func SubnetFile(t *testing.T, path string) map[string]string {
	t.Helper()
	file, err := ReadSubnetFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// Manifest is what a daemon's host.json says is on the host.
type Manifest struct {
	SubnetFile, Device, Blackhole string
	Sysctls                       []json.RawMessage
}

// ManifestPath is host.json in a state directory.
func ManifestPath(stateDir string) string { return filepath.Join(stateDir, "host.json") }

// ReadManifest reads the manifest of a state directory, the zero one if there is
// none.
func ReadManifest(t *testing.T, stateDir string) (m Manifest) {
	t.Helper()
	text, err := os.ReadFile(ManifestPath(stateDir))
	if errors.Is(err, fs.ErrNotExist) {
		return m
	}
	if err == nil {
		err = json.Unmarshal(text, &m)
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// LockState takes a state directory as a daemon does, for as long as the file is
// open. While another process has it, the error names that process.
func LockState(stateDir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(stateDir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		holder, _ := os.ReadFile(f.Name())
		return nil, fmt.Errorf("locked by process %s: %w", strings.TrimSpace(string(holder)), err)
	}
	if _, err := fmt.Fprintln(f, os.Getpid()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
