// Package main_test holds the project's rooms apart.
package main_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// Imports point one way, and the data path carries nothing of the control
// plane's: whoever embeds it would carry it too.
func TestImportsPointOneWay(t *testing.T) {
	for _, c := range []struct {
		pkg     string
		allowed []string // of this module, beside itself
		foreign bool     // may use modules other than the standard library
	}{
		{"encap", nil, false},
		{"lease", nil, false},
		{"lease/etcd", []string{"lease"}, true},
		{"lease/etcdserver", nil, true},
		{"tunnel", []string{"encap", "lease", "tunnel/internal/wake", "tunnel/kroute", "tunnel/nexthop"}, true},
		{"tunnel/kroute", nil, true},
		{"tunnel/netnstest", nil, true},
		{"tunnel/tunnelprom", []string{"tunnel", "encap", "lease", "tunnel/internal/wake", "tunnel/kroute", "tunnel/nexthop"}, true},
		{"tunnel/tunneltest", []string{"tunnel", "encap", "lease", "tunnel/internal/wake", "tunnel/kroute", "tunnel/nexthop"}, true},
		{"tunnel/internal/wake", nil, true},
		{"tunnel/nexthop", []string{"encap", "tunnel/internal/wake"}, true},
	} {
		out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", "uvxlan/"+c.pkg).Output()
		if err != nil {
			t.Fatal(err)
		}
		for dep := range strings.FieldsSeq(string(out)) {
			own, ours := strings.CutPrefix(dep, "uvxlan/")
			switch {
			case ours && own != c.pkg && !slices.Contains(c.allowed, own):
				t.Errorf("%s imports %s", c.pkg, own)
			case !ours && !c.foreign:
				t.Errorf("%s imports %s", c.pkg, dep)
			case c.pkg == "tunnel" && slices.ContainsFunc([]string{"etcd", "grpc", "prometheus", "protobuf", "gvisor"},
				func(s string) bool { return strings.Contains(dep, s) }):
				t.Errorf("%s imports %s", c.pkg, dep)
			}
		}
	}
}

// The bench looks at the programs from outside: nothing else imports it, not even
// tests do, and it imports nothing of theirs.
func TestNothingImportsTheBench(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-f",
		"{{$p := .ImportPath}}{{range .Imports}}{{$p}} {{.}}\n{{end}}{{range .TestImports}}{{$p}} {{.}}\n{{end}}{{range .XTestImports}}{{$p}} {{.}}\n{{end}}",
		"uvxlan/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		pkg, imported, _ := strings.Cut(strings.TrimSpace(line), " ")
		if inBench(imported) && !inBench(pkg) {
			t.Errorf("%s imports %s", pkg, imported)
		}
		if inBench(pkg) && strings.HasPrefix(imported, "uvxlan/cmd") {
			t.Errorf("%s imports %s", pkg, imported)
		}
	}
}

func inBench(pkg string) bool {
	return pkg == "uvxlan/bench" || strings.HasPrefix(pkg, "uvxlan/bench/")
}
