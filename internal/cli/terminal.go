package cli

import (
	"os"

	"golang.org/x/sys/unix"
)

// IsTerminal reports whether f is a terminal.
func IsTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// Colours reports whether what is written to f may have colours: f is a terminal, and
// the variable NO_COLOR doesn't say that they aren't wanted (no-color.org).
func Colours(f *os.File) bool { return IsTerminal(f) && os.Getenv("NO_COLOR") == "" }
