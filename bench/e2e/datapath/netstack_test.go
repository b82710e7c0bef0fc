package datapath_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"uvxlan/bench/e2e"

	"uvxlan/bench/lab"
)

// The example of tunnel/examples/netstack, run by a user who may do nothing and
// who has no /dev/net/tun, exchanges pages with a container behind a host whose
// device is the kernel's, and with another such process.
func TestIntegrationNetstack(t *testing.T) {
	w := e2e.NewWorld(t)
	w.Start("kb21")
	binary := buildNetstack(t)
	leases := []string{"-etcd-endpoints", w.Cluster.Endpoint}
	t.Run("dial", func(t *testing.T) {
		n := &netstacks{t, w, binary}
		page := make([]byte, 8<<20)
		_, _ = rand.NewChaCha8([32]byte{}).Read(page)
		url := servePage(t, w.Container("kb21"), page)
		if got := n.fetch("kb22", append(leases, "-get", url)); sha256.Sum256(got) != sha256.Sum256(page) {
			t.Errorf("of %d bytes %d came, or others", len(page), len(got))
		}
	})
	t.Run("listen", func(t *testing.T) {
		n := &netstacks{t, w, binary}
		p := n.serve("kb22", leases)
		page := make([]byte, 8<<20)
		_, _ = rand.NewChaCha8([32]byte{1}).Read(page)
		if got := post(t, w.Container("kb21"), p.url, page); sha256.Sum256(got) != sha256.Sum256(page) {
			t.Errorf("of %d bytes %d came back, or others", len(page), len(got))
		}
		p.expectNoPrivileges()
		p.stop()
	})
	t.Run("by hand", func(t *testing.T) {
		n := &netstacks{t, w, binary}
		p := n.serve("kb31", []string{"-subnet", "172.7.31.0/24", "-peer", "172.7.22.0/24,192.168.14.22,02:00:c0:a8:0e:16"})
		got := n.fetch("kb22", []string{
			"-subnet", "172.7.22.0/24", "-peer", "172.7.31.0/24,192.168.15.31,02:00:c0:a8:0f:1f", "-get", p.url,
		})
		if !strings.HasPrefix(string(got), "Hello 172.7.22.1:") {
			t.Errorf("the answer is %q", got)
		}
		p.stop()
	})
}

// netstacks starts the example on hosts.
type netstacks struct {
	t      *testing.T
	w      *e2e.World
	binary string
}

func buildNetstack(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // another user runs what is in there
		t.Fatal(err)
	}
	file := filepath.Join(dir, "netstack")
	build := exec.Command("go", "build", "-o", file, "uvxlan/tunnel/examples/netstack")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the example: %v\n%s", err, out)
	}
	return file
}

// command is the example without any privilege.
func (n *netstacks) command(ctx context.Context, host string, args []string) *lab.Cmd {
	const drop = `mount -t tmpfs none /dev/net && exec setpriv --reuid=65534 --regid=65534 --clear-groups ` +
		`--inh-caps=-all --bounding-set=-all --no-new-privs "$@"`
	h := n.w.Host(host)
	return h.Command(ctx, "unshare", slices.Concat(
		[]string{"--mount", "sh", "-c", drop, "sh", n.binary, "-address", h.Address.String()}, args)...)
}

// fetch returns what a process that ends with it has fetched.
func (n *netstacks) fetch(host string, args []string) []byte {
	n.t.Helper()
	var page, log bytes.Buffer
	cmd := n.command(n.w.Context(), host, args)
	cmd.Stdout, cmd.Stderr = &page, &log
	if err := cmd.Run(); err != nil {
		n.t.Fatalf("%v: %s", err, log.String())
	}
	return page.Bytes()
}

// serving is a process that serves.
type serving struct {
	*lab.Cmd
	*netstacks
	log string
	url string
}

func (n *netstacks) serve(host string, args []string) *serving {
	n.t.Helper()
	p := &serving{Cmd: n.command(n.t.Context(), host, append(args, "-listen", ":80")), netstacks: n}
	p.log = filepath.Join(n.t.TempDir(), "log")
	log, err := os.Create(p.log)
	if err != nil {
		n.t.Fatal(err)
	}
	defer log.Close()
	p.Stderr = log
	if err := p.Start(); err != nil {
		n.t.Fatal(err)
	}
	go func() { _ = p.Wait() }() // closes Done
	for end := time.Now().Add(e2e.Patience); p.url == ""; time.Sleep(5 * time.Millisecond) {
		text, _ := os.ReadFile(p.log)
		if _, after, ok := strings.Cut(string(text), "serving url="); ok && strings.Contains(after, "\n") {
			p.url, _, _ = strings.Cut(after, "\n")
		}
		if time.Now().After(end) {
			n.t.Fatalf("it doesn't serve: %s", text)
		}
	}
	return p
}

func (p *serving) expectNoPrivileges() {
	p.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	for _, want := range []string{"Name:\tnetstack\n", "Uid:\t65534\t65534\t", "CapEff:\t0000000000000000\n", "CapBnd:\t0000000000000000\n"} {
		if !strings.Contains(string(status), want) {
			p.t.Errorf("no %q in its status:\n%s", want, status)
		}
	}
	if entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/root/dev/net", p.Process.Pid)); err != nil || len(entries) > 0 {
		p.t.Errorf("its /dev/net has %v: %v", entries, err)
	}
}

func (p *serving) stop() {
	p.t.Helper()
	if err := p.Stop(p.w.Context()); err != nil {
		text, _ := os.ReadFile(p.log)
		p.t.Errorf("%v: %s", err, text)
	}
}

// servePage serves a page from a container and returns its URL.
func servePage(t *testing.T, c *lab.Container, page []byte) string {
	t.Helper()
	var listener net.Listener
	err := c.Do(func() (err error) {
		listener, err = net.Listen("tcp4", netip.AddrPortFrom(c.Address, 0).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(page) })}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { server.Close() })
	return "http://" + listener.Addr().String() + "/"
}

// post sends a page from a container and returns the answer.
func post(t *testing.T, c *lab.Container, url string, page []byte) []byte {
	t.Helper()
	transport := &http.Transport{DialContext: func(_ context.Context, network, address string) (conn net.Conn, err error) {
		err = c.Do(func() (err error) {
			conn, err = net.DialTimeout(network, address, e2e.Patience)
			return err
		})
		return conn, err
	}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: e2e.Patience}
	answer, err := client.Post(url, "application/octet-stream", bytes.NewReader(page))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	got, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatalf("after %d bytes: %v", len(got), err)
	}
	return got
}
