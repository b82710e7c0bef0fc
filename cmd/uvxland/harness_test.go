package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/bench/cluster"
	"uvxlan/bench/lab"
	"uvxlan/lease/etcd"
	"uvxlan/lease/etcdserver"
	"uvxlan/tunnel/netnstest"
)

const (
	vxlanConfig = `{"Network":"172.7.0.0/16","Backend":{"Type":"VxLAN"}}`
	// patience bounds what should take a moment, on a loaded machine.
	patience = 20 * time.Second
	// etcdDir, in the environment, makes the test binary an etcd server.
	etcdDir, etcdListen = "UVXLAN_TEST_ETCD_DIR", "UVXLAN_TEST_ETCD_LISTEN"
)

// daemonBinary and commandBinary are uvxland and uvxlan as users get them, built
// once.
var daemonBinary, commandBinary string

func TestMain(m *testing.M) {
	if dir := os.Getenv(etcdDir); dir != "" {
		os.Exit(serveEtcd(dir))
	}
	if os.Getenv(cniPlugin) != "" {
		os.Exit(servePlugin())
	}
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "uvxland-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir) //nolint:errcheck // the temporary directory is emptied by the system too
	daemonBinary, commandBinary = filepath.Join(dir, "uvxland"), filepath.Join(dir, "uvxlan")
	if os.Geteuid() == 0 {
		build := exec.Command("go", "build", "-o", dir, ".", "../uvxlan")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build uvxland and uvxlan: %v\n%s", err, out)
			return 1
		}
	}
	return m.Run()
}

// serveEtcd is an etcd in a process of its own, so that it can be stopped
// without a daemon.
func serveEtcd(dir string) int {
	server, err := etcdserver.Start(context.Background(), etcdserver.Options{
		Dir: dir, ListenClient: os.Getenv(etcdListen), Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	<-ctx.Done()
	server.Close()
	return 0
}

// world is a lab with an etcd on kb21 and the configuration in it.
type world struct {
	*lab.Lab
	t       *testing.T
	cluster *cluster.Cluster
	etcd    *lab.Cmd
	dir     string
	// installed makes startEtcd start the machine's etcd.
	installed bool
}

// newWorld makes the hosts, all three if none are named.
func newWorld(t *testing.T, hosts ...string) *world {
	t.Helper()
	return newWorldOf(t, lab.Options{Hosts: named(lab.DefaultHosts(), hosts)}, vxlanConfig)
}

// named are the hosts of those names, all if none are named.
func named(all []lab.HostSpec, names []string) []lab.HostSpec {
	if len(names) == 0 {
		return all
	}
	return slices.DeleteFunc(all, func(s lab.HostSpec) bool { return !slices.Contains(names, s.Name) })
}

func newWorldOf(t *testing.T, o lab.Options, config string) *world {
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
	w := &world{Lab: l, t: t, dir: t.TempDir()}
	kb21 := l.Host("kb21")
	w.cluster = &cluster.Cluster{Binary: daemonBinary, Dir: w.dir, Etcd: kb21, Endpoint: cluster.Endpoint(kb21)}
	w.startEtcd()
	t.Cleanup(func() {
		if t.Failed() {
			w.showLogs()
		}
	})
	w.configure(config)
	return w
}

func (w *world) configure(config string) {
	w.t.Helper()
	if err := w.cluster.SetConfig(w.context(), config); err != nil {
		w.t.Fatal(err)
	}
}

// context bounds one step.
func (w *world) context() context.Context {
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	w.t.Cleanup(cancel)
	return ctx
}

func (w *world) startEtcd() {
	w.t.Helper()
	if w.installed {
		w.startInstalledEtcd(w.cluster.Endpoint)
		return
	}
	w.etcd = w.cluster.Etcd.Command(w.t.Context(), os.Args[0])
	w.etcd.Env = append(os.Environ(), etcdDir+"="+filepath.Join(w.dir, "etcd"), etcdListen+"="+w.cluster.Endpoint)
	w.etcd.Stderr = os.Stderr
	if err := w.etcd.Start(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) stopEtcd() {
	w.t.Helper()
	if err := w.etcd.Stop(w.context()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) registry() *etcd.Registry {
	w.t.Helper()
	r, err := w.cluster.Open()
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { r.Close() })
	return r
}

// start starts daemons and waits until they are ready.
func (w *world) start(names ...string) (daemons []*cluster.Daemon) {
	w.t.Helper()
	for _, name := range names {
		d, err := w.cluster.Start(w.t.Context(), w.Host(name))
		if err != nil {
			w.t.Fatal(err)
		}
		daemons = append(daemons, d)
	}
	for _, d := range daemons {
		if err := d.Ready(w.context()); err != nil {
			w.t.Fatal(err)
		}
	}
	return daemons
}

// mesh waits until the containers of the hosts reach each other.
func (w *world) mesh(names ...string) {
	w.t.Helper()
	var hosts []*lab.Host
	for _, name := range names {
		hosts = append(hosts, w.Host(name))
	}
	if _, err := cluster.Mesh(w.context(), hosts, lab.DefaultContainerMTU); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) container(host string) *lab.Container { return w.Host(host).Container }

func (w *world) showLogs() {
	logs, _ := filepath.Glob(filepath.Join(w.dir, "*", "uvxland.log"))
	for _, name := range logs {
		text, err := os.ReadFile(name)
		w.t.Logf("%s: %v\n%s", name, err, text)
	}
}

// transfer is a checkedTransfer that must succeed.
func transfer(t *testing.T, from *lab.Node, to *lab.Container, size int64) {
	t.Helper()
	if err := checkedTransfer(from, to, size); err != nil {
		t.Fatal(err)
	}
}

// checkedTransfer sends size pseudo-random bytes over one TCP connection and
// compares what arrives by its SHA-256.
func checkedTransfer(from *lab.Node, to *lab.Container, size int64) error {
	return checkedTransferTo(from, to.Node, to.Address, size)
}

// checkedTransferTo is checkedTransfer to one address of any node.
func checkedTransferTo(from, to *lab.Node, at netip.Addr, size int64) error {
	var listener net.Listener
	err := to.Do(func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(at, 0).String())
		return err
	})
	if err != nil {
		return err
	}
	defer listener.Close()
	type outcome struct {
		sum [sha256.Size]byte
		n   int64
		err error
	}
	received := make(chan outcome, 1)
	go func() {
		var o outcome
		o.sum, o.n, o.err = receive(listener)
		received <- o
	}()
	sum, err := send(from, listener.Addr().String(), size)
	if err != nil {
		return err
	}
	got := <-received
	if got.err != nil {
		return fmt.Errorf("%s -> %s: after %d of %d bytes: %w", from.Name, to.Name, got.n, size, got.err)
	}
	if got.n != size || got.sum != sum {
		return fmt.Errorf("%s -> %s: %d of %d bytes arrived, SHA-256 right: %t", from.Name, to.Name, got.n, size, got.sum == sum)
	}
	return nil
}

func receive(l net.Listener) (sum [sha256.Size]byte, n int64, err error) {
	conn, err := l.Accept()
	if err != nil {
		return sum, 0, err
	}
	defer conn.Close()
	hash := sha256.New()
	n, err = io.Copy(hash, conn)
	return [sha256.Size]byte(hash.Sum(nil)), n, err
}

func send(from *lab.Node, to string, size int64) (sum [sha256.Size]byte, err error) {
	var conn net.Conn
	err = from.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp", to, patience)
		return err
	})
	if err != nil {
		return sum, err
	}
	hash := sha256.New()
	data := io.LimitReader(rand.NewChaCha8([32]byte{}), size)
	_, err = io.Copy(io.MultiWriter(conn, hash), data)
	return [sha256.Size]byte(hash.Sum(nil)), errors.Join(err, conn.Close())
}
