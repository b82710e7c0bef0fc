package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/bench/cluster"
	"uvxlan/bench/lab"
)

// HealthPort is where StartHealthy's daemons answer.
const HealthPort = "9199"

// StartHealthy starts a daemon that answers on HealthPort, and doesn't wait.
func (w *World) StartHealthy(name string) *cluster.Daemon {
	w.T.Helper()
	d, err := w.Cluster.Start(w.T.Context(), w.Host(name), "-healthz-ip", "127.0.0.1", "-healthz-port", HealthPort)
	if err != nil {
		w.T.Fatal(err)
	}
	return d
}

// Get asks a daemon inside its host. A daemon that doesn't listen yet has code 0.
func Get(t *testing.T, h *lab.Host, path, accept string) (code int, text string) {
	t.Helper()
	return GetAt(t, h, HealthPort, path, accept)
}

// GetAt is Get for any server that listens on a port of the host's own.
func GetAt(t *testing.T, h *lab.Host, port, path, accept string) (code int, text string) {
	t.Helper()
	var conn net.Conn
	err := h.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp4", "127.0.0.1:"+port, Patience)
		return err
	})
	if errors.Is(err, unix.ECONNREFUSED) {
		return 0, ""
	}
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := http.Client{Timeout: Patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1:"+port+path, nil)
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

// AwaitAnswer waits until a daemon's answer has a code and some words.
func AwaitAnswer(t *testing.T, h *lab.Host, path string, code int, words ...string) string {
	t.Helper()
	for deadline := time.Now().Add(Patience); ; time.Sleep(20 * time.Millisecond) {
		got, text := Get(t, h, path, "")
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

// Status is what uvxlan status -o json prints, as far as tests look at it.
type Status struct {
	PID      int
	Started  time.Time
	Now      time.Time
	Ready    bool
	Reasons  []string
	Notes    []string
	Model    string
	PublicIP netip.Addr `json:"public_ip"`
	MTU      int
	Lease    struct {
		Subnet  netip.Prefix
		Renewed time.Time
		Expires time.Time
	}
	Etcd struct {
		Up     bool
		Errors uint64
	}
	Watch struct {
		Alive  bool
		Since  time.Time
		AsOf   time.Time `json:"as_of"`
		Stored bool
	}
	Peers    int
	FastPath *FastPath `json:"fast_path"`
	Traffic  *struct {
		Sent   struct{ Packets uint64 }
		Direct uint64
		Drops  map[string]uint64
	}
}

// FastPath is what uvxlan status -o json prints of the fast path.
type FastPath struct {
	On     bool
	Reason string
	Link   string
	// NoRelay says why superpackets for bridges are the workers'.
	NoRelay string `json:"no_relay"`
	Sent    FastDirection
	// Received is what came by it.
	Received FastDirection
}

// FastDirection is a fast path's traffic of one direction.
type FastDirection struct {
	Packets uint64
	Left    map[string]uint64
}

// AskStatus asks a daemon how it is by uvxlan status.
func AskStatus(t *testing.T, d *cluster.Daemon) Status {
	t.Helper()
	s, err := TryStatus(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// AwaitStatus waits until a daemon is as wanted.
func AwaitStatus(t *testing.T, d *cluster.Daemon, what string, ok func(Status) bool) Status {
	t.Helper()
	for late := time.Now().Add(Patience); ; time.Sleep(20 * time.Millisecond) {
		s := AskStatus(t, d)
		if ok(s) {
			return s
		}
		if time.Now().After(late) {
			t.Fatalf("%s: not so that %s: %+v", d.Host.Name, what, s)
		}
	}
}

// TryStatus is AskStatus of a daemon that may be none.
func TryStatus(ctx context.Context, d *cluster.Daemon) (s Status, err error) {
	out, err := d.Host.Run(ctx, CommandBinary, "status", "-o", "json", "-control-socket", d.ControlSocket())
	if parseErr := json.Unmarshal(out, &s); parseErr == nil {
		return s, nil // whether or not it is ready, which the exit code tells
	} else if err == nil {
		err = fmt.Errorf("%w in\n%s", parseErr, out)
	}
	return s, err
}

// Peer is one of those that uvxlan peers -o json prints, as far as tests look at
// it.
type Peer struct {
	Subnet   netip.Prefix
	PublicIP netip.Addr `json:"public_ip"`
	MAC      string
	Path     string
	PathMTU  int `json:"path_mtu"`
	Fast     bool
	Link     string
	Reason   string
	Since    time.Time
	Traffic  *PeerTraffic
	Health   *Health
	// LastHeard is when anything last came from the peer.
	LastHeard time.Time `json:"last_heard"`
	AsOf      time.Time `json:"as_of"`
}

// Health is what has become of a daemon's probes of a peer.
type Health struct {
	State      string
	Problem    string
	RTTSeconds float64 `json:"rtt_seconds"`
	Loss       struct{ Missed, Of int }
	Sent       uint64
	Answered   uint64
	FullSize   string `json:"full_size"`
}

// PeerTraffic is what passed between the hosts.
type PeerTraffic struct {
	Sent     struct{ Packets uint64 }
	Received struct{ Packets uint64 }
	LastSeen time.Time `json:"last_seen"`
}

// AskPeers asks a daemon for its peers by uvxlan peers.
func AskPeers(t *testing.T, d *cluster.Daemon) (peers []Peer) {
	t.Helper()
	out := Command(t, d.Host.Node, CommandBinary+" peers -o json -control-socket "+d.ControlSocket())
	if err := json.Unmarshal([]byte(out), &peers); err != nil {
		t.Fatalf("%v in\n%s", err, out)
	}
	return peers
}
