package main

import (
	"strings"
	"testing"
)

// A story has colours only where it may have them.
func TestStory(t *testing.T) {
	for colour, want := range map[bool]string{
		false: "\nleases\n  take one" + strings.Repeat(" ", 58) + "172.7.21.0/24\n",
		true:  "\n\x1b[1mleases\x1b[m\n  take one" + strings.Repeat(" ", 58) + "\x1b[32m172.7.21.0/24\x1b[m\n",
	} {
		var out strings.Builder
		say := newStory(options{out: &out, colour: colour})
		say.title("leases")
		say.step("take one")
		say.done("172.7.21.0/24")
		if out.String() != want {
			t.Errorf("with colours %t: %q, want %q", colour, out.String(), want)
		}
	}
}
