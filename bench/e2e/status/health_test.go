package status_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"uvxlan/bench/e2e"

	"golang.org/x/sys/unix"
)

// A daemon tells truly how it is: before it is ready, when it is, without etcd,
// without its device, and at its end nothing is left.
func TestIntegrationHealth(t *testing.T) {
	w := e2e.NewWorld(t)
	w.StopEtcd()
	kb21 := w.Host("kb21")
	d := w.StartHealthy("kb21")
	e2e.AwaitAnswer(t, kb21, "/healthz", 200, "uvxland is running")
	e2e.AwaitAnswer(t, kb21, "/readyz", 503, "waiting for the network configuration: ", "etcd: down for", "errors, the last")
	e2e.AwaitAnswer(t, kb21, "/metrics", 200, "\nuvxlan_ready 0\n", "\nuvxlan_etcd_up 0\n", "\nuvxlan_peers 0\n")

	w.StartEtcd()
	if err := d.Ready(w.Context()); err != nil {
		t.Fatal(err)
	}
	e2e.AwaitAnswer(t, kb21, "/readyz", 200, "uvxland is ready\n", "device: flannel.1, mtu 1450\n", "lease: 172.7.21.0/24, renewed ", "watch: alive")
	w.Start("kb22", "kb31")
	w.Mesh("kb21", "kb22", "kb31")
	metrics := e2e.AwaitAnswer(t, kb21, "/metrics", 200, "\nuvxlan_ready 1\n", "\nuvxlan_etcd_up 1\n", "\nuvxlan_peers 2\n",
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
	expires := e2e.AskStatus(t, d).Lease.Expires
	if left := time.Until(expires); left < 23*time.Hour || left > 24*time.Hour {
		t.Errorf("the lease expires in %s", left)
	}

	t.Run("without etcd", func(t *testing.T) {
		w.StopEtcd()
		e2e.AwaitAnswer(t, kb21, "/readyz", 200, "uvxland is ready\n", "note: etcd doesn't answer", "etcd: down for", "watch: not alive", "lease: 172.7.21.0/24")
		text := e2e.AwaitAnswer(t, kb21, "/metrics", 200, "\nuvxlan_ready 1\n", "\nuvxlan_etcd_up 0\n", "\nuvxlan_peers 2\n")
		if strings.Contains(text, "\nuvxlan_watch_age_seconds ") {
			t.Error("a watch that is down has an age")
		}
		w.Mesh("kb21", "kb22", "kb31")
		w.StartEtcd()
		e2e.AwaitAnswer(t, kb21, "/metrics", 200, "\nuvxlan_etcd_up 1\n", "\nuvxlan_watch_age_seconds ")
	})
	t.Run("device down", func(t *testing.T) {
		e2e.Command(t, kb21.Node, "ip link set flannel.1 down")
		e2e.AwaitLine(t, d, time.Time{}, "msg=repaired", "flannel.1: it is down")
		e2e.AwaitAnswer(t, kb21, "/readyz", 200, "uvxland is ready\n")
		e2e.Command(t, kb21.Node, "ip link delete flannel.1")
		w.Mesh("kb21", "kb22", "kb31")
		e2e.AwaitAnswer(t, kb21, "/readyz", 200, "uvxland is ready\n")
	})
	t.Run("in JSON", func(t *testing.T) {
		code, text := e2e.Get(t, kb21, "/readyz", "application/json")
		var s e2e.Status
		if err := json.Unmarshal([]byte(text), &s); err != nil || code != 200 {
			t.Fatalf("code %d, %v:\n%s", code, err, text)
		}
		if !s.Ready || s.Peers != 2 || s.Model != "vxlan" || s.PublicIP != kb21.Address || s.Lease.Subnet != kb21.Subnet || s.MTU != 1450 {
			t.Errorf("it says %+v", s)
		}
	})
	e2e.End(t, unix.SIGTERM, d)
	if _, err := os.Lstat(d.ControlSocket()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the control socket is left: %v", err)
	}
	if code, text := e2e.Get(t, kb21, "/healthz", ""); code != 0 {
		t.Errorf("somebody answers still: %d, %s", code, text)
	}
}

// The operator's commands agree with what is, in each model, and a socket that
// a killed daemon left is replaced.
func TestIntegrationCommands(t *testing.T) {
	w := e2e.NewWorld(t)
	kb21, kb22, kb31 := w.Host("kb21"), w.Host("kb22"), w.Host("kb31")
	for _, m := range []struct {
		config, model, path22, path31, note string
		traffic                             bool
	}{
		{config: e2e.VXLANConfig, model: "vxlan", path22: "vxlan", path31: "vxlan", traffic: true},
		{config: `{"Network":"172.7.0.0/16","Backend":{"Type":"VxLAN","Directrouting":true}}`, model: "vxlan, direct by socket", path22: "direct", path31: "vxlan", traffic: true},
		{config: e2e.HostGWConfig, model: "host-gw", path22: "direct", path31: "none", note: "1 of 2 peers can't be reached"},
	} {
		w.Configure(m.config)
		daemons := w.Start("kb21", "kb22", "kb31")
		d := daemons[0]
		w.Mesh("kb21", "kb22")
		paths := map[string]e2e.Peer{}
		for deadline := time.Now().Add(e2e.Patience); len(paths) < 2 || paths[kb22.Subnet.String()].Path != m.path22; time.Sleep(20 * time.Millisecond) {
			peers := e2e.AskPeers(t, d)
			for _, p := range peers {
				paths[p.Subnet.String()] = p
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: the peers are %+v", m.model, peers)
			}
		}
		if p := paths[kb22.Subnet.String()]; p.PublicIP != kb22.Address || p.Since.IsZero() != (m.model == "vxlan") || (p.Link == "eth0") != (m.path22 == "direct") {
			t.Errorf("%s: kb22 is %+v", m.model, p)
		}
		if p := paths[kb31.Subnet.String()]; p.PublicIP != kb31.Address || p.Path != m.path31 || (p.Reason == "") != (m.model == "vxlan") {
			t.Errorf("%s: kb31 is %+v", m.model, p)
		}
		w.Mesh("kb21", "kb22") // by that path
		s := e2e.AskStatus(t, d)
		if !s.Ready || s.Model != m.model || s.Peers != 2 || s.PID != d.Process.Pid || (s.Traffic != nil) != m.traffic || strings.Join(s.Notes, "") != m.note {
			t.Errorf("%s: the status is %+v", m.model, s)
		}
		if m.traffic && (s.Traffic.Sent.Packets == 0 || (s.Traffic.Direct > 0) != (m.path22 == "direct")) {
			t.Errorf("%s: the traffic is %+v", m.model, s.Traffic)
		}
		table := e2e.Command(t, kb21.Node, e2e.CommandBinary+" peers -control-socket "+d.ControlSocket())
		t.Logf("%s:\n%s%s", m.model, e2e.Command(t, kb21.Node, e2e.CommandBinary+" status -control-socket "+d.ControlSocket()), table)
		if strings.Count(table, "\n") != 3 {
			t.Errorf("%s: the table is\n%s", m.model, table)
		}
		leases := e2e.Command(t, kb21.Node, e2e.CommandBinary+" leases -o json -etcd-endpoints "+w.Cluster.Endpoint)
		for _, h := range w.Hosts() {
			if !strings.Contains(leases, fmt.Sprintf("%q", h.Subnet)) || !strings.Contains(leases, fmt.Sprintf("%q", h.Address)) {
				t.Errorf("%s: no lease of %s in\n%s", m.model, h.Name, leases)
			}
		}
		e2e.End(t, unix.SIGKILL, daemons...)
		if _, err := os.Lstat(d.ControlSocket()); err != nil {
			t.Errorf("a killed daemon leaves its socket, for this test: %v", err)
		}
	}
}

// A control socket that can't be made is an error where it was asked for, and a
// warning where it is the default.
func TestIntegrationControlSocketRefused(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb22")
	first := w.Start("kb22")[0]
	for _, socket := range []string{first.ControlSocket(), "/proc/uvxlan/uvxlan.sock"} {
		d, err := w.Cluster.Start(t.Context(), w.Host("kb21"), "-control-socket", socket)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Ready(w.Context()); err == nil || !strings.Contains(err.Error(), socket) || !strings.Contains(err.Error(), "-control-socket") {
			t.Errorf("with %s: %v", socket, err)
		}
	}
	e2e.AskStatus(t, first)

	stateDir := t.TempDir()
	var out bytes.Buffer
	c := w.Host("kb21").Command(w.Context(), "unshare", "--mount", "sh", "-c", `mount -t tmpfs -o ro none /run && exec "$@"`, "sh",
		e2e.DaemonBinary, "-etcd-endpoints", w.Cluster.Endpoint, "-state-dir", stateDir, "-subnet-file", stateDir+"/subnet.env")
	c.Stdout, c.Stderr = &out, &out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(e2e.Patience); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(stateDir + "/subnet.env"); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it is never ready")
		}
	}
	if err := c.Stop(w.Context()); err != nil {
		t.Error(err)
	}
	if !strings.Contains(out.String(), "uvxlan status and peers have no answer") {
		t.Errorf("it says nothing of its socket:\n%s", &out)
	}
}

// A health port that is taken ends the daemon with words.
func TestIntegrationHealthPortTaken(t *testing.T) {
	w := e2e.NewWorld(t, "kb21")
	var l net.Listener
	err := w.Host("kb21").Do(func() (err error) {
		l, err = net.Listen("tcp4", "127.0.0.1:"+e2e.HealthPort)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d := w.StartHealthy("kb21")
	if err := d.Ready(w.Context()); err == nil || !strings.Contains(err.Error(), "address already in use: set another -healthz-port") {
		t.Errorf("it says: %v", err)
	}
}

// The command's rates are those of what is sent meanwhile.
func TestIntegrationTop(t *testing.T) {
	w := e2e.NewWorld(t, "kb21", "kb31")
	daemons := w.Start("kb21", "kb31")
	w.Mesh("kb21", "kb31")
	kb21, kb31 := w.Host("kb21"), w.Host("kb31")
	top := kb21.Command(t.Context(), e2e.CommandBinary, "top", "-o", "json", "-interval", "100ms", "-control-socket", daemons[0].ControlSocket())
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
	for n := 0; sent < 8*size && n < int(e2e.Patience/(100*time.Millisecond)); n++ {
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
			go func() { transferred <- e2e.CheckedTransfer(kb21.Container.Node, kb31.Container, size) }()
		}
		if len(r.Peers) != 1 || r.Peers[0].Subnet != kb31.Subnet.String() || r.Peers[0].Path != "vxlan" {
			t.Fatalf("the peers are %+v", r.Peers)
		}
		p := r.Peers[0]
		sent += p.Sent.Bits * r.Seconds
		received += p.Received.Bits * r.Seconds
		if since := time.Since(p.LastSeen); since < 0 || since > e2e.Patience {
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
	if err := top.Stop(w.Context()); err != nil {
		t.Error(err)
	}
}
