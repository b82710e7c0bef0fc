package main

import (
	"flag"
	"strings"
	"testing"
)

func TestManualHasEveryFlag(t *testing.T) {
	var page strings.Builder
	if err := writeManual(&page); err != nil {
		t.Fatal(err)
	}
	_, fs := define()
	fs.VisitAll(func(f *flag.Flag) {
		name := `\fB\-` + strings.ReplaceAll(f.Name, "-", `\-`)
		if !strings.Contains(page.String(), name+" ") && !strings.Contains(page.String(), name+`\fR`) && !strings.Contains(page.String(), name+"=") {
			t.Errorf("the page has no -%s", f.Name)
		}
	})
}
