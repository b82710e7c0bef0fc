package main

import (
	"os"
	"regexp"
	"testing"
)

var commandLine = regexp.MustCompile(`(?m)^    (?:\. <\()?uvxlan ([a-z-]+)`)

// The README has each command, but for those that speak for themselves, and no other.
func TestReadmeHasTheCommands(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]bool{"man": true, "version": true}
	for _, match := range commandLine.FindAllStringSubmatch(string(text), -1) {
		shown[match[1]] = true
	}
	for _, c := range commands() {
		if !shown[c.name] {
			t.Errorf("the README has no uvxlan %s", c.name)
		}
		delete(shown, c.name)
	}
	for name := range shown {
		t.Errorf("the README has uvxlan %s, which is no command", name)
	}
}
