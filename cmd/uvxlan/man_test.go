package main

import (
	"flag"
	"strings"
	"testing"
)

func TestManualHasEveryCommand(t *testing.T) {
	var page strings.Builder
	if err := writeManual(&page); err != nil {
		t.Fatal(err)
	}
	for _, c := range commands() {
		_, described, ok := strings.Cut(page.String(), `.SS "`+strings.ReplaceAll(c.name, "-", `\-`))
		if !ok {
			t.Errorf("the page has no %s", c.name)
			continue
		}
		described, _, _ = strings.Cut(described, ".SS")
		fs, _ := c.flags()
		fs.VisitAll(func(f *flag.Flag) {
			if !strings.Contains(described, `\fB\-`+strings.ReplaceAll(f.Name, "-", `\-`)) {
				t.Errorf("the page has no -%s of %s", f.Name, c.name)
			}
		})
	}
}
