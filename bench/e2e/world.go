// Package e2e is what the tests of the programs share: hosts in network
// namespaces with an etcd, daemons and commands as users get them, traffic between
// containers, and readers of what users see. The tests are in the folders beside
// it, a package for each subject, which can run apart.
//
// What a helper can't do ends the test that called it.
package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"uvxlan/bench/cluster"
	"uvxlan/bench/lab"
	"uvxlan/lease/etcd"
	"uvxlan/tunnel/netnstest"
)

// Patience bounds what should take a moment, on a loaded machine.
const Patience = 20 * time.Second

// programsDir, in the environment, is a folder that has uvxland and uvxlan, so
// that test packages need not build them one after the other.
const programsDir = "UVXLAN_TEST_BIN"

// fastPath, in the environment, is the -fast-path of all daemons that aren't given
// one: on and off for the two ways that packets take, auto (the default) for the
// users' way.
const fastPath = "UVXLAN_TEST_FASTPATH"

// The programs as users get them. Main sets them.
var (
	// DaemonBinary is uvxland.
	DaemonBinary string
	// CommandBinary is uvxlan.
	CommandBinary string
)

// Main is a test package's TestMain: it runs the tests with the programs that
// the environment names, or else with new ones.
func Main(m *testing.M) {
	if dir := os.Getenv(etcdDir); dir != "" {
		os.Exit(serveEtcd(dir))
	}
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	dir := os.Getenv(programsDir)
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "uvxlan-test-"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir) //nolint:errcheck // the temporary directory is emptied by the system too
		if err := build(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	DaemonBinary, CommandBinary = filepath.Join(dir, "uvxland"), filepath.Join(dir, "uvxlan")
	return m.Run()
}

// build builds the programs, if the tests may run them.
func build(dir string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	build := exec.Command("go", "build", "-o", dir, "uvxlan/cmd/uvxland", "uvxlan/cmd/uvxlan")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build uvxland and uvxlan: %w\n%s", err, out)
	}
	return nil
}

// World is a lab with an etcd on kb21 and the configuration in it.
type World struct {
	*lab.Lab
	T       *testing.T
	Cluster *cluster.Cluster
	// Etcd is the process that the daemons ask.
	Etcd *lab.Cmd
	// Dir has a folder for each host.
	Dir string
	// Installed makes StartEtcd start the machine's etcd.
	Installed bool
}

// NewWorld makes the hosts, all three if none are named.
func NewWorld(t *testing.T, hosts ...string) *World {
	t.Helper()
	return NewWorldOf(t, lab.Options{Hosts: named(lab.DefaultHosts(), hosts)}, VXLANConfig)
}

// named are the hosts of those names, all if none are named.
func named(all []lab.HostSpec, names []string) []lab.HostSpec {
	if len(names) == 0 {
		return all
	}
	return slices.DeleteFunc(all, func(s lab.HostSpec) bool { return !slices.Contains(names, s.Name) })
}

// NewWorldOf makes other hosts, and another configuration.
func NewWorldOf(t *testing.T, o lab.Options, config string) *World {
	t.Helper()
	netnstest.RequireRoot(t)
	// The lock is waited for as long as the test may take.
	l, err := lab.New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	w := &World{Lab: l, T: t, Dir: t.TempDir()}
	kb21 := l.Host("kb21")
	w.Cluster = &cluster.Cluster{Binary: DaemonBinary, Dir: w.Dir, Etcd: kb21, Endpoint: cluster.Endpoint(kb21)}
	if mode := os.Getenv(fastPath); mode != "" {
		w.Cluster.FastPath = mode
	}
	w.StartEtcd()
	t.Cleanup(func() {
		if t.Failed() {
			w.ShowLogs()
		}
	})
	w.Configure(config)
	return w
}

// Configure writes the network configuration.
func (w *World) Configure(config string) {
	w.T.Helper()
	if err := w.Cluster.SetConfig(w.Context(), config); err != nil {
		w.T.Fatal(err)
	}
}

// Context bounds one step.
func (w *World) Context() context.Context {
	ctx, cancel := context.WithTimeout(w.T.Context(), Patience)
	w.T.Cleanup(cancel)
	return ctx
}

// Registry is the leases in etcd.
func (w *World) Registry() *etcd.Registry {
	w.T.Helper()
	r, err := w.Cluster.Open()
	if err != nil {
		w.T.Fatal(err)
	}
	w.T.Cleanup(func() { r.Close() })
	return r
}

// Start starts daemons and waits until they are ready.
func (w *World) Start(names ...string) (daemons []*cluster.Daemon) {
	w.T.Helper()
	for _, name := range names {
		d, err := w.Cluster.Start(w.T.Context(), w.Host(name))
		if err != nil {
			w.T.Fatal(err)
		}
		daemons = append(daemons, d)
	}
	for _, d := range daemons {
		if err := d.Ready(w.Context()); err != nil {
			w.T.Fatal(err)
		}
	}
	return daemons
}

// Mesh waits until the containers of the hosts reach each other.
func (w *World) Mesh(names ...string) {
	w.T.Helper()
	var hosts []*lab.Host
	for _, name := range names {
		hosts = append(hosts, w.Host(name))
	}
	if _, err := cluster.Mesh(w.Context(), hosts, lab.DefaultContainerMTU); err != nil {
		w.T.Fatal(err)
	}
}

// Container is the container of a host.
func (w *World) Container(host string) *lab.Container { return w.Host(host).Container }

// ShowLogs logs what the daemons wrote.
func (w *World) ShowLogs() {
	logs, _ := filepath.Glob(filepath.Join(w.Dir, "*", "uvxland.log"))
	for _, name := range logs {
		text, err := os.ReadFile(name)
		w.T.Logf("%s: %v\n%s", name, err, text)
	}
}
