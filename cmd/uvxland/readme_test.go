package main

import (
	"flag"
	"os"
	"regexp"
	"strings"
	"testing"
)

var (
	flagRow  = regexp.MustCompile("(?m)^\\| (`-[^|]+) \\|")
	flagName = regexp.MustCompile("`--?([a-z][a-z0-9_-]*)[`=]")
)

// The manual's table of flags has each flag, and no other.
func TestReadmeHasTheFlags(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(text), "\n## Flags\n")
	if !ok {
		t.Fatal("the manual has no section Flags")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	_, fs := define()
	for _, row := range flagRow.FindAllStringSubmatch(section, -1) {
		for _, name := range flagName.FindAllStringSubmatch(row[1], -1) {
			if fs.Lookup(name[1]) == nil {
				t.Errorf("the table has -%s, which is no flag", name[1])
			}
		}
	}
	fs.VisitAll(func(f *flag.Flag) {
		if !strings.Contains(section, "`-"+f.Name+"`") {
			t.Errorf("the section has no -%s", f.Name)
		}
	})
}
