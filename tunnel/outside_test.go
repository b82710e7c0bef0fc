package tunnel_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"uvxlan/tunnel/netnstest"
)

// readme is the section "Embed it" of the project's README.
func readme(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(text), "\n## Embed it\n")
	if !ok {
		t.Fatal("the README has no section Embed it")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	return section
}

// tenLines is the section's first block of code.
func tenLines(t *testing.T) string {
	t.Helper()
	var block []string
	for line := range strings.Lines(readme(t)) {
		code, ok := strings.CutPrefix(line, "    ")
		switch {
		case ok:
			block = append(block, code)
		case len(block) > 0:
			if len(block) > 10 {
				t.Errorf("it takes %d lines", len(block))
			}
			return strings.Join(block, "")
		}
	}
	t.Fatal("the README has no code")
	return ""
}

// moduleLines are what the README has a go.mod say, with the checkout's path.
func moduleLines(t *testing.T, checkout string) string {
	t.Helper()
	documentation, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	var lines strings.Builder
	for _, word := range []string{"require ", "replace "} {
		line := regexp.MustCompile(`(?m)^    (` + word + `.+)$`).FindStringSubmatch(readme(t))
		if line == nil {
			t.Fatalf("the README has no line that begins with %s", word)
		}
		if !strings.Contains(string(documentation), "//\t"+line[1]+"\n") {
			t.Errorf("the package's documentation has no line %q", line[1])
		}
		lines.WriteString(strings.Replace(line[1], "=> ../uvxlan", "=> "+checkout, 1) + "\n")
	}
	return lines.String()
}

// outside is a module that is not ours and has the README's ten lines in it.
func outside(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	checkout, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	// Building offline reads more of the requirements than the module itself does: a
	// new machine has them after this.
	if out, err := exec.CommandContext(t.Context(), "go", "mod", "graph").CombinedOutput(); err != nil {
		t.Fatalf("go mod graph: %v\n%s", err, out)
	}
	sums, err := os.ReadFile("../go.sum")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(dir, os.DirFS("testdata/outside")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "join"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"go.mod": "module example.test/outside\n\ngo 1.26.0\n\n" + moduleLines(t, checkout),
		"go.sum": string(sums),
		"join/join.go": `// Package join is the README's.
package join

import (
	"context"
	"log"
	"net/netip"

	"uvxlan/encap"
	"uvxlan/tunnel"
	"uvxlan/tunnel/link"
)

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func Join(ctx context.Context, host, vtep netip.Addr, network netip.Prefix, mac encap.MAC, peer tunnel.Peer) {
` + tenLines(t) + "}\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// build builds a package of the module with nothing but what is on this machine.
func build(t *testing.T, dir, pkg string, flags ...string) (binary string) {
	t.Helper()
	binary = filepath.Join(t.TempDir(), "binary")
	cmd := exec.CommandContext(t.Context(), "go", append(append([]string{"build", "-o", binary}, flags...), pkg)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOPROXY=off", "GOSUMDB=off", "GOWORK=off", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return binary
}

// expectOK runs a scenario of the module's.
func expectOK(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "ok\n" {
		t.Errorf("%s: %v\n%s", cmd, err, out)
	}
}

func TestOutsideModule(t *testing.T) {
	program := build(t, outside(t), ".")
	expectOK(t, exec.CommandContext(t.Context(), program, "memory", strconv.Itoa(int(freeUDPPort(t)))))
}

func TestIntegrationOutsideModule(t *testing.T) {
	netnstest.RequireRoot(t)
	program := build(t, outside(t), ".")
	t.Run("namespaces", func(t *testing.T) {
		a, b := netnstest.New(t), netnstest.New(t)
		wire(t, a, b)
		cmd := exec.CommandContext(t.Context(), program, "namespaces")
		for _, n := range []*netnstest.Namespace{a, b} {
			f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", n.FD()))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			cmd.ExtraFiles = append(cmd.ExtraFiles, f)
		}
		expectOK(t, cmd)
	})
	t.Run("user namespace", func(t *testing.T) {
		expectOK(t, exec.CommandContext(t.Context(), "unshare", "--user", "--map-root-user", "--net",
			"sh", "-c", "ip link set lo up && exec "+program+" alone"))
	})
}

// wire joins two hosts by a cable.
func wire(t *testing.T, a, b *netnstest.Namespace) {
	t.Helper()
	if err := a.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(b.FD()),
	}); err != nil {
		t.Fatal(err)
	}
	for n, address := range map[*netnstest.Namespace]string{a: "192.168.14.21/24", b: "192.168.14.22/24"} {
		link, err := n.LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		prefix, err := netlink.ParseAddr(address)
		if err != nil {
			t.Fatal(err)
		}
		if err := n.AddrAdd(link, prefix); err != nil {
			t.Fatal(err)
		}
		if err := n.LinkSetUp(link); err != nil {
			t.Fatal(err)
		}
	}
}

// The documentation says how large the least program is that has the ten lines.
func TestEmbedderSize(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the package's documentation tells of amd64")
	}
	text, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	said := regexp.MustCompile(`(\d+\.\d) MB,\s+//\s+(\d+\.\d) MB\s+stripped`).FindStringSubmatch(string(text))
	if said == nil {
		t.Fatal("doc.go doesn't say")
	}
	dir := outside(t)
	whole := build(t, dir, "./minimal")
	expectSize(t, whole, said[1])
	expectSize(t, build(t, dir, "./minimal", "-ldflags=-s -w"), said[2])
	binary, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	for _, foreign := range []string{"google.golang.org/grpc", "go.etcd.io", "prometheus", "gvisor.dev"} {
		if bytes.Contains(binary, []byte(foreign)) {
			t.Errorf("it has %s in it", foreign)
		}
	}
}

// expectSize allows for other releases of Go.
func expectSize(t *testing.T, binary, said string) {
	t.Helper()
	info, err := os.Stat(binary)
	if err != nil {
		t.Fatal(err)
	}
	want, err := strconv.ParseFloat(said, 64)
	if err != nil {
		t.Fatal(err)
	}
	got := float64(info.Size()) / 1e6
	if got < want*0.9 || got > want*1.1 {
		t.Errorf("it has %.1f MB, and doc.go says %s", got, said)
	}
	t.Logf("%.2f MB, and doc.go says %s", got, said)
}
