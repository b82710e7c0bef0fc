// Package main_test holds the project's rooms apart.
package main_test

import (
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

// Imports point one way, and the data path carries nothing of the control
// plane's: whoever embeds it would carry it too.
func TestImportsPointOneWay(t *testing.T) {
	const internal = "tunnel/internal/*"
	for pkg, allowed := range map[string][]string{ // of this module
		"encap":             {},
		"lease":             {"internal/nearest"},
		"lease/etcd":        {"lease"},
		"lease/etcdserver":  {},
		"lease/kube":        {"lease"},
		"tunnel":            {"encap", "lease", "tunnel/batch", "tunnel/device", "tunnel/link", "tunnel/offload", "tunnel/onlink", "tunnel/underlay", internal},
		"tunnel/batch":      {internal},
		"tunnel/device":     {"encap", "tunnel/offload", internal},
		"tunnel/fastpath":   {"encap", "tunnel", internal},
		"tunnel/hostgw":     {"lease", "tunnel/onlink", internal},
		"tunnel/kroute":     {},
		"tunnel/link":       {"encap", "tunnel/device", "tunnel/kroute"},
		"tunnel/netnstest":  {},
		"tunnel/nexthop":    {"encap", internal},
		"tunnel/offload":    {},
		"tunnel/onlink":     {"encap", "tunnel/batch", "tunnel/kroute", "tunnel/nexthop", internal},
		"tunnel/tunnelprom": {"tunnel", "tunnel/offload"},
		"tunnel/tunneltest": {"encap", "tunnel/device", "tunnel/offload", internal},
		"tunnel/underlay":   {"encap", "tunnel/batch", "tunnel/offload", internal},
	} {
		for _, imported := range list(t, "{{join .Imports \"\\n\"}}", pkg) {
			own, ours := strings.CutPrefix(imported, "uvxlan/")
			if ours && !slices.ContainsFunc(allowed, func(p string) bool { ok, _ := path.Match(p, own); return ok }) {
				t.Errorf("%s imports %s", pkg, own)
			}
		}
	}
	for _, pkg := range []string{"encap", "lease"} {
		for _, dep := range list(t, "{{join .Deps \"\\n\"}}", pkg) {
			if domain, _, _ := strings.Cut(dep, "/"); strings.Contains(domain, ".") && !strings.HasPrefix(dep, "vendor/") {
				t.Errorf("%s depends on %s", pkg, dep)
			}
		}
	}
	for _, dep := range list(t, "{{join .Deps \"\\n\"}}", "tunnel") {
		for _, foreign := range []string{"etcd", "grpc", "prometheus", "protobuf", "gvisor", "k8s.io"} {
			if strings.Contains(dep, foreign) {
				t.Errorf("tunnel depends on %s", dep)
			}
		}
	}
}

// Kubernetes' client is in the daemon alone, and left out of one that is built for a
// small board.
func TestKubernetesIsLinkedWhereItIsUsed(t *testing.T) {
	for _, c := range []struct {
		args  []string
		links bool
	}{
		{[]string{"uvxlan/cmd/uvxland"}, true},
		{[]string{"-tags", "nokube", "uvxlan/cmd/uvxland"}, false},
		{[]string{"uvxlan/cmd/uvxlan"}, false},
		{[]string{"uvxlan/lease/etcd", "uvxlan/lease/etcdserver", "uvxlan/tunnel/..."}, false},
	} {
		deps := goList(t, append([]string{"-deps"}, c.args...)...)
		links := slices.ContainsFunc(deps, func(p string) bool {
			return strings.HasPrefix(p, "k8s.io/client-go/") || strings.HasPrefix(p, "k8s.io/apimachinery/")
		})
		if links != c.links {
			t.Errorf("%q links Kubernetes' client: %t, want %t", c.args, links, c.links)
		}
	}
}

// list is what `go list` prints of a package of this module, by lines.
func list(t *testing.T, format, pkg string) []string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-f", format, "uvxlan/"+pkg).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(out))
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
