package kubetest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/lease/etcd/etcdtest"
)

// ServerVariable is the variable that names a kube-apiserver, a path or a name in PATH.
const ServerVariable = "UVXLAN_TEST_KUBE_APISERVER"

// startTimeout bounds the start of a kube-apiserver, on a loaded machine.
const startTimeout = 2 * time.Minute

// Installed is a kube-apiserver in a process of its own, with an etcd.
type Installed struct {
	*Cluster

	command []string
	process *exec.Cmd
	ended   chan struct{}
	log     bytes.Buffer
}

// StartInstalled runs the kube-apiserver that [ServerVariable] names until the test ends.
// The test is skipped where it names none. Hosts may do there what the README has the
// operator allow them, and no more.
func StartInstalled(tb testing.TB) *Installed {
	tb.Helper()
	path := os.Getenv(ServerVariable)
	if path == "" {
		tb.Skipf("%s names no kube-apiserver (make kube-tools builds one)", ServerVariable)
	}
	dir := tb.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	write(tb, file("sa.key"), key(tb))
	write(tb, file("tokens"), []byte("operator,operator,1,system:masters\nhost,uvxlan,2\n"))
	address := etcdtest.OwnLoopback()
	port := freePort(tb, address)
	s := &Installed{command: []string{
		path, "--etcd-servers=" + etcdtest.Start(tb).Endpoint(), "--bind-address=" + address, "--advertise-address=" + address, "--secure-port=" + port,
		"--cert-dir=" + dir, "--token-auth-file=" + file("tokens"), "--authorization-mode=RBAC",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + file("sa.key"), "--service-account-signing-key-file=" + file("sa.key"),
		"--service-cluster-ip-range=10.96.0.0/16", "--endpoint-reconciler-type=none", "--profiling=false",
		"--disable-admission-plugins=ServiceAccount,TaintNodesByCondition",
	}}
	tb.Cleanup(s.Down)
	s.start(tb)
	s.await(tb, "its certificate", func() error {
		ca, err := os.ReadFile(file("apiserver.crt"))
		if err == nil {
			s.Cluster, err = newCluster(dir, "https://"+net.JoinHostPort(address, port), ca, "kubernetes", "operator", "host", func(f func() error) error { return f() })
		}
		return err
	})
	s.awaitReady(tb)
	s.allow(tb)
	return s
}

// key is a new private key as PEM text.
func key(tb testing.TB) []byte {
	tb.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	text, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		tb.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: text})
}

func freePort(tb testing.TB, address string) string {
	tb.Helper()
	var c net.ListenConfig
	l, err := c.Listen(tb.Context(), "tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

func (s *Installed) start(tb testing.TB) {
	tb.Helper()
	// The test's context ends before its cleanup functions run.
	s.process = exec.CommandContext(context.WithoutCancel(tb.Context()), s.command[0], s.command[1:]...)
	s.process.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	s.log.Reset()
	s.process.Stdout, s.process.Stderr = &s.log, &s.log
	if err := s.process.Start(); err != nil {
		tb.Fatal(err)
	}
	ended, process := make(chan struct{}), s.process
	s.ended = ended
	go func() {
		defer close(ended)
		_ = process.Wait() // it is killed
	}()
}

// Down kills the API server. It is idempotent.
func (s *Installed) Down() {
	if s.process == nil {
		return
	}
	_ = s.process.Process.Kill()
	<-s.ended
}

// Up has it answer again.
func (s *Installed) Up(tb testing.TB) {
	tb.Helper()
	s.start(tb)
	s.awaitReady(tb)
}

func (s *Installed) awaitReady(tb testing.TB) {
	tb.Helper()
	s.await(tb, "readiness", func() error { return s.ask(tb.Context(), http.MethodGet, "/readyz", "", nil, nil) })
}

// await repeats what must succeed while the API server runs.
func (s *Installed) await(tb testing.TB, what string, do func() error) {
	tb.Helper()
	for late := time.Now().Add(startTimeout); ; {
		err := do()
		if err == nil {
			return
		}
		select {
		case <-s.ended:
			tb.Fatalf("%s ended before %s: %v\n%s", s.command[0], what, err, &s.log)
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(late) {
			s.Down()
			tb.Fatalf("%s: no %s: %v\n%s", s.command[0], what, err, &s.log)
		}
	}
}

// allow gives hosts their rights.
func (s *Installed) allow(tb testing.TB) {
	tb.Helper()
	const group = "rbac.authorization.k8s.io"
	path := "/apis/" + group + "/v1/"
	role := map[string]any{"apiVersion": group + "/v1", "kind": "ClusterRole", "metadata": map[string]any{"name": "uvxlan"}, "rules": []any{
		rule("pods", "get"), rule("nodes", "get", "list", "watch"), rule("nodes/status", "patch"),
	}}
	binding := map[string]any{
		"apiVersion": group + "/v1", "kind": "ClusterRoleBinding", "metadata": map[string]any{"name": "uvxlan"},
		"roleRef":  map[string]any{"apiGroup": group, "kind": "ClusterRole", "name": "uvxlan"},
		"subjects": []any{map[string]any{"apiGroup": group, "kind": "User", "name": "uvxlan"}},
	}
	s.do(tb, http.MethodPost, path+"clusterroles", "application/json", role, nil)
	s.do(tb, http.MethodPost, path+"clusterrolebindings", "application/json", binding, nil)
}

func rule(resource string, verbs ...string) map[string]any {
	return map[string]any{"apiGroups": []string{""}, "resources": []string{resource}, "verbs": verbs}
}

// String says which it is.
func (s *Installed) String() string { return fmt.Sprintf("%s at %s", s.command[0], s.URL) }
