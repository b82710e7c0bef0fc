package main

import (
	"strings"
	"testing"

	"uvxlan/internal/cli"
)

func TestUsageErrors(t *testing.T) {
	for args, want := range map[string]string{
		"-kep":   "unknown flag -kep: did you mean -keep?",
		"-t=5":   `-t "5": must be a time, such as 500ms or 1m30s`,
		"-t=0s":  "-t 0s: must be more than 0",
		"-o xml": `-o "xml": must be table or json`,
		"now":    `unexpected argument "now"`,
	} {
		if err := run(t.Context(), strings.Fields(args)); cli.ExitCode(err) != 2 || err.Error() != want {
			t.Errorf("%s: %v, exit code %d, want %s", args, err, cli.ExitCode(err), want)
		}
	}
}
