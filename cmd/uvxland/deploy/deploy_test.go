// Package deploy_test checks what the packages install.
package deploy_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"uvxlan/tunnel/netnstest"
)

// run runs a command and returns what it wrote.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// packages makes those of this machine and returns the names of the deb and rpm.
func packages(t *testing.T) (deb, rpm string) {
	t.Helper()
	dir := t.TempDir()
	run(t, "make", "-C", "../../..", "dist", "ARCHES="+runtime.GOARCH, "DIST="+filepath.Join(dir, "dist"), "BIN="+filepath.Join(dir, "bin"))
	run(t, "sh", "-c", `cd "$1" && sha256sum --quiet --check SHA256SUMS`, "sh", filepath.Join(dir, "dist"))
	only := func(pattern string) string {
		names, err := filepath.Glob(filepath.Join(dir, "dist", pattern))
		if err != nil || len(names) != 1 {
			t.Fatalf("%s: %q, %v", pattern, names, err)
		}
		return names[0]
	}
	for _, program := range []string{"uvxland", "uvxlan"} {
		sbom, err := os.ReadFile(only(program + "-*.cdx.json"))
		if err != nil || !bytes.Contains(sbom, []byte("pkg:golang/github.com/vishvananda/netlink@")) {
			t.Errorf("%s: its bill of materials doesn't name netlink: %v", program, err)
		}
	}
	content := run(t, "tar", "-tzf", only("*.tar.gz"))
	for _, name := range []string{"/bin/uvxland\n", "/bin/uvxlan\n", "/lib/systemd/system/uvxland.service\n", "/share/doc/uvxlan/examples/uvxland.env\n"} {
		if !strings.Contains(content, name) {
			t.Errorf("the tarball has no %s: %s", name, content)
		}
	}
	return only("*.deb"), only("*.rpm")
}

// root is the root of a small system: a shell for the packages' scripts.
func root(t *testing.T) string {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, sub := range []string{"bin", "etc", "usr", "run", "tmp", "var/lib"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// dpkg removes folders that are empty after it.
	for _, name := range []string{"etc/hostname", "usr/release"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "cp", busybox, filepath.Join(dir, "bin/busybox"))
	for _, applet := range []string{"sh", "rm"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", applet)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// files are what is below a folder, apart from the package manager's own, each with
// its mode and size.
func files(t *testing.T, dir string, own ...string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, dir)
		if slices.Contains(own, name) {
			return filepath.SkipDir
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if all[name] = info.Mode().String(); info.Mode().IsRegular() {
			all[name] += fmt.Sprint(" ", info.Size())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// installed are what a package must bring, and how.
var installed = map[string]string{
	"/usr/bin/uvxland":                                  "-rwxr-xr-x",
	"/usr/bin/uvxlan":                                   "-rwxr-xr-x",
	"/usr/bin/mk-docker-opts.sh":                        "-rwxr-xr-x",
	"/usr/lib/systemd/system/uvxland.service":           "-rw-r--r--",
	"/usr/share/man/man8/uvxland.8.gz":                  "-rw-r--r--",
	"/usr/share/man/man8/uvxlan.8.gz":                   "-rw-r--r--",
	"/usr/share/bash-completion/completions/uvxlan":     "-rw-r--r--",
	"/usr/share/bash-completion/completions/uvxland":    "-rw-r--r--",
	"/usr/share/zsh/site-functions/_uvxlan":             "-rw-r--r--",
	"/usr/share/zsh/site-functions/_uvxland":            "-rw-r--r--",
	"/usr/share/fish/vendor_completions.d/uvxlan.fish":  "-rw-r--r--",
	"/usr/share/fish/vendor_completions.d/uvxland.fish": "-rw-r--r--",
	"/usr/share/doc/uvxlan/LICENSE":                     "-rw-r--r--",
	"/usr/share/doc/uvxlan/README.md":                   "-rw-r--r--",
	"/usr/share/doc/uvxlan/CHANGELOG.md":                "-rw-r--r--",
	"/usr/share/doc/uvxlan/CONTRIBUTING.md":             "-rw-r--r--",
	"/usr/share/doc/uvxlan/SECURITY.md":                 "-rw-r--r--",
	"/usr/share/doc/uvxlan/bench/README.md":             "-rw-r--r--",
	"/usr/share/doc/uvxlan/bench/demo/demo.svg":         "-rw-r--r--",
	"/usr/share/doc/uvxlan/cmd/uvxlan/README.md":        "-rw-r--r--",
	"/usr/share/doc/uvxlan/cmd/uvxland/README.md":       "-rw-r--r--",
	"/usr/share/doc/uvxlan/examples/docker.conf":        "-rw-r--r--",
	"/usr/share/doc/uvxlan/examples/supervisord.conf":   "-rw-r--r--",
	"/usr/share/doc/uvxlan/examples/prometheus.yml":     "-rw-r--r--",
	"/usr/share/doc/uvxlan/examples/alerts.yml":         "-rw-r--r--",
	"/usr/share/doc/uvxlan/examples/grafana.json":       "-rw-r--r--",
	"/etc/uvxlan/uvxland.env":                           "-rw-r--r--",
	"/usr/share/doc/uvxlan":                             "drwxr-xr-x",
	"/etc/uvxlan":                                       "drwxr-xr-x",
}

// expectInstalled checks a root that has the package.
func expectInstalled(t *testing.T, dir string) {
	t.Helper()
	have := files(t, dir)
	for name, mode := range installed {
		if got, _, _ := strings.Cut(have[name], " "); got != mode {
			t.Errorf("%s is %q, want %s", name, have[name], mode)
		}
	}
	version := run(t, filepath.Join(dir, "usr/bin/uvxlan"), "version")
	if version == "" || strings.TrimSpace(version) == "unknown" {
		t.Errorf("uvxlan says it is %q", version)
	}
	subnet := filepath.Join(t.TempDir(), "subnet.env")
	if err := os.WriteFile(subnet, []byte("FLANNEL_SUBNET=10.1.74.1/24\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := run(t, filepath.Join(dir, "usr/bin/mk-docker-opts.sh"), "-cf", subnet, "-d/dev/stdout"); got != "DOCKER_OPTS=\" --bip=10.1.74.1/24\"\n" {
		t.Errorf("mk-docker-opts.sh writes %q", got)
	}
	for _, page := range []string{"uvxland", "uvxlan"} {
		name := filepath.Join(dir, "usr/share/man/man8", page+".8.gz")
		if said := run(t, "sh", "-c", `zcat "$1" | groff -man -ww -z -Tutf8 2>&1`, "sh", name); said != "" {
			t.Errorf("groff of %s: %s", page, said)
		}
	}
}

// expectSame checks that a root is as it was.
func expectSame(t *testing.T, when string, before, after map[string]string) {
	t.Helper()
	if maps.Equal(before, after) {
		return
	}
	for name, what := range after {
		if before[name] != what {
			t.Errorf("%s: %s is %s, was %q", when, name, what, before[name])
		}
	}
	for name := range before {
		if _, ok := after[name]; !ok {
			t.Errorf("%s: %s is gone", when, name)
		}
	}
}

// The packages are installed, and removed without a trace, in a root of their own.
func TestIntegrationPackages(t *testing.T) {
	netnstest.RequireRoot(t)
	netnstest.Enter(t)
	deb, rpm := packages(t)
	dpkgIn(t, deb)
	rpmIn(t, rpm)
}

func dpkgIn(t *testing.T, deb string) {
	t.Helper()
	dir := root(t)
	const admin = "/var/lib/dpkg"
	for _, sub := range []string{"info", "updates", "triggers"} {
		if err := os.MkdirAll(filepath.Join(dir, admin, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, admin, "status"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dpkg := func(args ...string) {
		t.Helper()
		run(t, "dpkg", append([]string{"--root=" + dir, "--log=/dev/null", "--force-not-root"}, args...)...)
	}
	before := files(t, dir, admin)
	dpkg("--install", deb)
	expectInstalled(t, dir)
	config := filepath.Join(dir, "etc/uvxlan/uvxland.env")
	const mine = "FLANNELD_IFACE=eth7\n"
	if err := os.WriteFile(config, []byte(mine), 0o600); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(dir, "var/lib/uvxlan")
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"_uvxlan", "_uvxland"} { // links that lead to a file
		if _, err := os.Stat(filepath.Join(dir, "usr/share/zsh/vendor-completions", name)); err != nil {
			t.Error(err)
		}
	}
	for _, args := range [][]string{{"--install", deb}, {"--remove", "uvxlan"}} {
		dpkg(args...)
		if text, err := os.ReadFile(config); err != nil || string(text) != mine {
			t.Errorf("after %s the configuration is %q, %v", args[0], text, err)
		}
		if _, err := os.Stat(state); err != nil {
			t.Errorf("after %s: %v", args[0], err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "usr/bin/uvxland")); err == nil {
		t.Error("--remove leaves uvxland")
	}
	dpkg("--purge", "uvxlan")
	expectSame(t, "purged deb", before, files(t, dir, admin))
}

func rpmIn(t *testing.T, file string) {
	t.Helper()
	dir := root(t)
	const database = "/var/lib/rpm"
	rpm := func(args ...string) string {
		t.Helper()
		return run(t, "rpm", append([]string{"--root", dir, "--dbpath", database}, args...)...)
	}
	rpm("--initdb")
	before := files(t, dir, database)
	// The root has no package that brings /bin/sh, and Debian's rpm would rather have
	// foreign packages installed by alien.
	rpm("--install", "--nodeps", "--force-debian", file)
	expectInstalled(t, dir)
	if listed := rpm("--query", "--configfiles", "uvxlan"); listed != "/etc/uvxlan/uvxland.env\n" {
		t.Errorf("its configuration files are %q", listed)
	}
	for name := range strings.FieldsSeq(rpm("--query", "--list", "uvxlan")) {
		if slices.Contains([]string{"/usr", "/usr/bin", "/usr/lib", "/usr/share", "/etc"}, name) {
			t.Errorf("it owns %s", name)
		}
	}
	rpm("--erase", "--force-debian", "uvxlan")
	after := files(t, dir, database)
	for name, what := range after { // rpm leaves folders that no package owns
		if _, ok := before[name]; !ok && strings.HasPrefix(what, "d") && !strings.Contains(name, "uvxlan") {
			delete(after, name)
		}
	}
	expectSame(t, "erased rpm", before, after)
}

// The unit is one that systemd takes, and keeps the daemon from what it needn't.
func TestUnit(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip(err)
	}
	text, err := os.ReadFile("systemd/uvxland.service")
	if err != nil {
		t.Fatal(err)
	}
	unit := filepath.Join(t.TempDir(), "uvxland.service")
	text = bytes.ReplaceAll(text, []byte("/usr/bin/uvxland"), []byte("/bin/true"))
	if err := os.WriteFile(unit, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if said := run(t, "systemd-analyze", "verify", "--man=no", unit); said != "" {
		t.Errorf("systemd-analyze verify: %s", said)
	}
	run(t, "systemd-analyze", "security", "--offline=true", "--threshold=35", unit) // tenths
}
