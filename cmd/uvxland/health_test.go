package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/bench/cluster"
	"uvxlan/bench/lab"
	"uvxlan/cmd/internal/control"
)

const healthPort = "9199"

// startHealthy starts a daemon that answers on healthPort, and doesn't wait.
func (w *world) startHealthy(name string) *cluster.Daemon {
	w.t.Helper()
	d, err := w.cluster.Start(w.t.Context(), w.Host(name), "-healthz-ip", "127.0.0.1", "-healthz-port", healthPort)
	if err != nil {
		w.t.Fatal(err)
	}
	return d
}

// get asks a daemon inside its host. A daemon that doesn't listen yet has code 0.
func get(t *testing.T, h *lab.Host, path, accept string) (code int, text string) {
	t.Helper()
	var conn net.Conn
	err := h.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp4", "127.0.0.1:"+healthPort, patience)
		return err
	})
	if errors.Is(err, unix.ECONNREFUSED) {
		return 0, ""
	}
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1:"+healthPort+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Accept", accept)
	answer, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(body)
}

// awaitAnswer waits until a daemon's answer has a code and some words.
func awaitAnswer(t *testing.T, h *lab.Host, path string, code int, words ...string) string {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		got, text := get(t, h, path, "")
		missing := ""
		for _, w := range words {
			if !strings.Contains(text, w) {
				missing = w
			}
		}
		if got == code && missing == "" {
			return text
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is %d without %q:\n%s", path, got, missing, text)
		}
	}
}

// A daemon tells truly how it is: before it is ready, when it is, without etcd,
// without its device, and at its end nothing is left.
func TestIntegrationHealth(t *testing.T) {
	w := newWorld(t)
	w.stopEtcd()
	kb21 := w.Host("kb21")
	d := w.startHealthy("kb21")
	awaitAnswer(t, kb21, "/healthz", 200, "uvxland is running")
	awaitAnswer(t, kb21, "/readyz", 503, "waiting for the network configuration: ", "etcd: down for", "errors, the last")
	awaitAnswer(t, kb21, "/metrics", 200, "\nuvxlan_ready 0\n", "\nuvxlan_etcd_up 0\n", "\nuvxlan_peers 0\n")

	w.startEtcd()
	if err := d.Ready(w.context()); err != nil {
		t.Fatal(err)
	}
	awaitAnswer(t, kb21, "/readyz", 200, "uvxland is ready\n", "device: flannel.1, mtu 1450\n", "lease: 172.7.21.0/24, renewed ", "watch: alive")
	w.start("kb22", "kb31")
	w.mesh("kb21", "kb22", "kb31")
	metrics := awaitAnswer(t, kb21, "/metrics", 200, "\nuvxlan_ready 1\n", "\nuvxlan_etcd_up 1\n", "\nuvxlan_peers 2\n",
		`uvxlan_peer_direct{link="",subnet="172.7.31.0/24"} 0`, `uvxlan_drops_total{reason="ecn"} 0`, "\nuvxlan_watch_age_seconds ")
	for _, direction := range []string{"tx", "rx"} {
		if strings.Contains(metrics, fmt.Sprintf("uvxlan_packets_total{direction=%q} 0\n", direction)) {
			t.Errorf("no packet was counted, of direction %s", direction)
		}
		peer := fmt.Sprintf("\nuvxlan_peer_packets_total{direction=%q,subnet=\"172.7.22.0/24\"} ", direction)
		if !strings.Contains(metrics, peer) || strings.Contains(metrics, peer+"0\n") {
			t.Errorf("no packet of the peer was counted, of direction %s", direction)
		}
	}
	expires := askStatus(t, d).Lease.Expires
	if left := time.Until(expires); left < 23*time.Hour || left > 24*time.Hour {
		t.Errorf("the lease expires in %s", left)
	}

	t.Run("without etcd", func(t *testing.T) {
		w.stopEtcd()
		awaitAnswer(t, kb21, "/readyz", 200, "uvxland is ready\n", "note: etcd doesn't answer", "etcd: down for", "watch: not alive", "lease: 172.7.21.0/24")
		text := awaitAnswer(t, kb21, "/metrics", 200, "\nuvxlan_ready 1\n", "\nuvxlan_etcd_up 0\n", "\nuvxlan_peers 2\n")
		if strings.Contains(text, "\nuvxlan_watch_age_seconds ") {
			t.Error("a watch that is down has an age")
		}
		w.mesh("kb21", "kb22", "kb31")
		w.startEtcd()
		awaitAnswer(t, kb21, "/metrics", 200, "\nuvxlan_etcd_up 1\n", "\nuvxlan_watch_age_seconds ")
	})
	t.Run("device down", func(t *testing.T) {
		command(t, kb21.Node, "ip link set flannel.1 down")
		awaitAnswer(t, kb21, "/readyz", 503, "not ready: flannel.1: the interface is down")
		command(t, kb21.Node, "ip link delete flannel.1")
		awaitAnswer(t, kb21, "/readyz", 200, "uvxland is ready\n")
	})
	t.Run("in JSON", func(t *testing.T) {
		code, text := get(t, kb21, "/readyz", "application/json")
		var s control.Status
		if err := json.Unmarshal([]byte(text), &s); err != nil || code != 200 {
			t.Fatalf("code %d, %v:\n%s", code, err, text)
		}
		if !s.Ready || s.Peers != 2 || s.Model != "vxlan" || s.PublicIP != kb21.Address || s.Lease.Subnet != kb21.Subnet || s.MTU != 1450 {
			t.Errorf("it says %+v", s)
		}
	})
	end(t, unix.SIGTERM, d)
	if _, err := os.Lstat(d.ControlSocket()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the control socket is left: %v", err)
	}
	if code, text := get(t, kb21, "/healthz", ""); code != 0 {
		t.Errorf("somebody answers still: %d, %s", code, text)
	}
}

// askStatus is what uvxlan status -o json prints.
func askStatus(t *testing.T, d *cluster.Daemon) (s control.Status) {
	t.Helper()
	out := command(t, d.Host.Node, commandBinary+" status -o json -control-socket "+d.ControlSocket())
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		t.Fatalf("%v in\n%s", err, out)
	}
	return s
}

// The operator's commands agree with what is, in each model, and a socket that
// a killed daemon left is replaced.
func TestIntegrationCommands(t *testing.T) {
	w := newWorld(t)
	kb21, kb22, kb31 := w.Host("kb21"), w.Host("kb22"), w.Host("kb31")
	for _, m := range []struct {
		config, model, path22, path31, note string
		traffic                             bool
	}{
		{config: vxlanConfig, model: "vxlan", path22: "vxlan", path31: "vxlan", traffic: true},
		{config: `{"Network":"172.7.0.0/16","Backend":{"Type":"VxLAN","Directrouting":true}}`, model: "vxlan, direct by socket", path22: "direct", path31: "vxlan", traffic: true},
		{config: hostGWConfig, model: "host-gw", path22: "direct", path31: "none", note: "1 of 2 peers can't be reached"},
	} {
		w.configure(m.config)
		daemons := w.start("kb21", "kb22", "kb31")
		d := daemons[0]
		w.mesh("kb21", "kb22")
		paths := map[string]control.Peer{}
		for deadline := time.Now().Add(patience); len(paths) < 2 || paths[kb22.Subnet.String()].Path != m.path22; time.Sleep(20 * time.Millisecond) {
			out := command(t, kb21.Node, commandBinary+" peers -o json -control-socket "+d.ControlSocket())
			var peers []control.Peer
			if err := json.Unmarshal([]byte(out), &peers); err != nil {
				t.Fatal(err)
			}
			for _, p := range peers {
				paths[p.Subnet.String()] = p
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: the peers are\n%s", m.model, out)
			}
		}
		if p := paths[kb22.Subnet.String()]; p.PublicIP != kb22.Address || p.Since.IsZero() != (m.model == "vxlan") || (p.Link == "eth0") != (m.path22 == "direct") {
			t.Errorf("%s: kb22 is %+v", m.model, p)
		}
		if p := paths[kb31.Subnet.String()]; p.PublicIP != kb31.Address || p.Path != m.path31 || (p.Reason == "") != (m.model == "vxlan") {
			t.Errorf("%s: kb31 is %+v", m.model, p)
		}
		w.mesh("kb21", "kb22") // by that path
		s := askStatus(t, d)
		if !s.Ready || s.Model != m.model || s.Peers != 2 || s.PID != d.Process.Pid || (s.Traffic != nil) != m.traffic || strings.Join(s.Notes, "") != m.note {
			t.Errorf("%s: the status is %+v", m.model, s)
		}
		if m.traffic && (s.Traffic.Sent.Packets == 0 || (s.Traffic.Direct > 0) != (m.path22 == "direct")) {
			t.Errorf("%s: the traffic is %+v", m.model, s.Traffic)
		}
		table := command(t, kb21.Node, commandBinary+" peers -control-socket "+d.ControlSocket())
		t.Logf("%s:\n%s%s", m.model, command(t, kb21.Node, commandBinary+" status -control-socket "+d.ControlSocket()), table)
		if strings.Count(table, "\n") != 3 {
			t.Errorf("%s: the table is\n%s", m.model, table)
		}
		leases := command(t, kb21.Node, commandBinary+" leases -o json -etcd-endpoints "+w.cluster.Endpoint)
		for _, h := range w.Hosts() {
			if !strings.Contains(leases, fmt.Sprintf("%q", h.Subnet)) || !strings.Contains(leases, fmt.Sprintf("%q", h.Address)) {
				t.Errorf("%s: no lease of %s in\n%s", m.model, h.Name, leases)
			}
		}
		end(t, unix.SIGKILL, daemons...)
		if _, err := os.Lstat(d.ControlSocket()); err != nil {
			t.Errorf("a killed daemon leaves its socket, for this test: %v", err)
		}
	}
}

// A control socket that can't be made is an error where it was asked for, and a
// warning where it is the default.
func TestIntegrationControlSocketRefused(t *testing.T) {
	w := newWorld(t, "kb21", "kb22")
	first := w.start("kb22")[0]
	for _, socket := range []string{first.ControlSocket(), "/proc/uvxlan/uvxlan.sock"} {
		d, err := w.cluster.Start(t.Context(), w.Host("kb21"), "-control-socket", socket)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Ready(w.context()); err == nil || !strings.Contains(err.Error(), socket) || !strings.Contains(err.Error(), "-control-socket") {
			t.Errorf("with %s: %v", socket, err)
		}
	}
	askStatus(t, first)

	stateDir := t.TempDir()
	var out bytes.Buffer
	c := w.Host("kb21").Command(w.context(), "unshare", "--mount", "sh", "-c", `mount -t tmpfs -o ro none /run && exec "$@"`, "sh",
		daemonBinary, "-etcd-endpoints", w.cluster.Endpoint, "-state-dir", stateDir, "-subnet-file", stateDir+"/subnet.env")
	c.Stdout, c.Stderr = &out, &out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(stateDir + "/subnet.env"); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it is never ready")
		}
	}
	if err := c.Stop(w.context()); err != nil {
		t.Error(err)
	}
	if !strings.Contains(out.String(), "uvxlan status and peers have no answer") {
		t.Errorf("it says nothing of its socket:\n%s", &out)
	}
}

// A health port that is taken ends the daemon with words.
func TestIntegrationHealthPortTaken(t *testing.T) {
	w := newWorld(t, "kb21")
	var l net.Listener
	err := w.Host("kb21").Do(func() (err error) {
		l, err = net.Listen("tcp4", "127.0.0.1:"+healthPort)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d := w.startHealthy("kb21")
	if err := d.Ready(w.context()); err == nil || !strings.Contains(err.Error(), "address already in use: set another -healthz-port") {
		t.Errorf("it says: %v", err)
	}
}

// The command's rates are those of what is sent meanwhile.
func TestIntegrationTop(t *testing.T) {
	w := newWorld(t, "kb21", "kb31")
	daemons := w.start("kb21", "kb31")
	w.mesh("kb21", "kb31")
	kb21, kb31 := w.Host("kb21"), w.Host("kb31")
	top := kb21.Command(t.Context(), commandBinary, "top", "-o", "json", "-interval", "100ms", "-control-socket", daemons[0].ControlSocket())
	out, err := top.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := top.Start(); err != nil {
		t.Fatal(err)
	}
	type rate struct {
		Packets float64 `json:"packets_per_second"`
		Bits    float64 `json:"bits_per_second"`
	}
	var sent, received float64 // in bits
	const size = 32 << 20
	transferred := make(chan error, 1)
	lines := json.NewDecoder(out)
	for n := 0; sent < 8*size && n < int(patience/(100*time.Millisecond)); n++ {
		var r struct {
			Seconds float64
			Peers   []struct {
				Subnet         string
				Path           string
				Sent, Received rate
				LastSeen       time.Time `json:"last_seen"`
			}
		}
		if err := lines.Decode(&r); err != nil {
			t.Fatal(err)
		}
		if n == 0 { // from now on nothing is missed
			go func() { transferred <- checkedTransfer(kb21.Container.Node, kb31.Container, size) }()
		}
		if len(r.Peers) != 1 || r.Peers[0].Subnet != kb31.Subnet.String() || r.Peers[0].Path != control.PathVXLAN {
			t.Fatalf("the peers are %+v", r.Peers)
		}
		p := r.Peers[0]
		sent += p.Sent.Bits * r.Seconds
		received += p.Received.Bits * r.Seconds
		if since := time.Since(p.LastSeen); since < 0 || since > patience {
			t.Errorf("last seen %s ago", since)
		}
	}
	if err := <-transferred; err != nil {
		t.Fatal(err)
	}
	// Headers come to little, and so do acknowledgements.
	if sent < 8*size || sent > 8*size*1.2 || received == 0 || received > sent/2 {
		t.Errorf("sent %g bits, received %g", sent, received)
	}
	if err := top.Stop(w.context()); err != nil {
		t.Error(err)
	}
}
