package e2e

import (
	"bytes"
	"strings"
	"testing"

	"uvxlan/bench/lab"
)

// Command runs a command line on a host and returns what it wrote.
func Command(t *testing.T, n *lab.Node, line string) string {
	t.Helper()
	args := strings.Fields(line)
	out, err := n.Run(t.Context(), args[0], args[1:]...)
	if err != nil {
		t.Fatalf("%s: %s: %v", n.Name, line, err)
	}
	return string(out)
}

// NewCommand prepares a command on kb21 whose output goes to the buffer.
func NewCommand(t *testing.T, w *World, args ...string) (*lab.Cmd, *bytes.Buffer) {
	t.Helper()
	var out bytes.Buffer
	c := w.Host("kb21").Command(w.Context(), args[0], args[1:]...)
	c.Stdout, c.Stderr = &out, &out
	return c, &out
}
