package handover

import (
	"fmt"
	"os"
	"syscall"

	"uvxlan/cmd/internal/version"
)

// partRetired is the part of a program whose place was taken, which has nothing left
// open and waits to be stopped.
const partRetired = "retired"

// IsRetired tells whether this process is one that Retire has made.
func IsRetired() bool { return os.Getenv(variable) == partRetired }

// Retire ends all that this process does and has open, and makes it the same program
// again, [IsRetired]. It returns only an error, or nil if t has ended.
func Retire(t *Termination) error { return again(t, environment(partRetired)) }

// StartAgain ends all that this process does and has open, and makes it the same
// program, as it was started by hand. It returns only an error, or nil if t has ended.
func StartAgain(t *Termination) error { return again(t, os.Environ()) }

func again(t *Termination, env []string) error {
	if t.suspend() != nil {
		return nil
	}
	defer t.resume()
	err := syscall.Exec("/proc/self/exe", os.Args, env)
	return fmt.Errorf("start %s again: %w", version.String(), err)
}
