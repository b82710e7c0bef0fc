package system

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"uvxlan/bench/cluster"
)

// Daemon is one build of uvxland.
type Daemon struct {
	// Label tells builds apart; empty if there is but one.
	Label string
	Path  string
	// Version is what the build says of itself.
	Version string

	help   string
	direct bool // it has direct routes
}

// FindDaemon asks the executable what it is and what it can do.
func FindDaemon(ctx context.Context, label, path string) (Daemon, error) {
	found, err := exec.LookPath(path)
	if err != nil {
		return Daemon{}, fmt.Errorf("no uvxland: %w", err)
	}
	help, err := exec.CommandContext(ctx, found, "-help").CombinedOutput()
	if err != nil {
		return Daemon{}, fmt.Errorf("ask %s for its flags: %w", found, err)
	}
	version, err := exec.CommandContext(ctx, found, "-version").CombinedOutput()
	if err != nil {
		return Daemon{}, fmt.Errorf("ask %s for its version: %w", found, err)
	}
	// No flag tells of direct routes. The words that they are waited for by do.
	text, err := os.ReadFile(found)
	if err != nil {
		return Daemon{}, fmt.Errorf("look for direct routes in %s: %w", found, err)
	}
	return Daemon{
		Label: label, Path: found, Version: strings.TrimSpace(string(version)),
		help: string(help), direct: bytes.Contains(text, []byte(cluster.DirectNow)),
	}, nil
}

// has reports whether the build knows the flag.
func (d Daemon) has(flag string) bool {
	for line := range strings.Lines(d.help) {
		if fields := strings.Fields(line); len(fields) > 0 && fields[0] == "-"+flag {
			return true
		}
	}
	return false
}

// Name is base, with the label if there is one.
func (d Daemon) Name(base string) string {
	if d.Label == "" {
		return base
	}
	return base + ":" + d.Label
}
