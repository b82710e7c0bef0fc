package control_test

import (
	"net/netip"
	"sync"
	"time"

	"uvxlan/cmd/internal/control"
)

// state is a Source that a test changes.
type state struct {
	mu     sync.Mutex
	status control.Status
	peers  []control.Peer
}

func (s *state) Status() control.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

func (s *state) Peers() []control.Peer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.peers
}

func (s *state) change(f func(*control.Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.status)
}

// running is a daemon that has run for two hours.
func running() *state {
	now := time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	return &state{
		status: control.Status{
			Version: "v1", PID: 42, Started: ago(2 * time.Hour), Now: now, Ready: true,
			Model: "vxlan, direct by socket", Interface: "eth0", PublicIP: netip.MustParseAddr("192.168.14.21"),
			Network: netip.MustParsePrefix("172.7.0.0/16"), Device: "flannel.1", MTU: 1450,
			Lease: &control.Lease{Subnet: netip.MustParsePrefix("172.7.21.0/24"), Renewed: ago(2 * time.Hour), Expires: now.Add(22 * time.Hour)},
			Etcd: control.Registry{
				Up: true, Since: ago(90 * time.Minute), Errors: 7, LastError: "no answer", LastErrorAt: ago(91 * time.Minute), Skipped: 1,
			},
			Watch: control.Watch{Alive: true, Since: ago(90 * time.Minute), Heard: ago(1500 * time.Millisecond)},
			Peers: 2,
			Traffic: &control.Traffic{
				Sent:     control.Direction{Packets: 10, Bytes: 1000, Datagrams: 20, Messages: 5, Batches: 4},
				Received: control.Direction{Packets: 11, Bytes: 1001, Datagrams: 21, Messages: 6, Batches: 5},
				Drops:    map[string]uint64{"no_route": 3, "send": 0}, Offloads: map[string]bool{"tso": true, "uso": false},
			},
		},
		peers: []control.Peer{
			{Subnet: netip.MustParsePrefix("172.7.22.0/24"), PublicIP: netip.MustParseAddr("192.168.14.22"), Path: control.PathDirect, Link: "eth0", Since: ago(time.Hour)},
			{Subnet: netip.MustParsePrefix("172.7.31.0/24"), PublicIP: netip.MustParseAddr("192.168.15.31"), Path: control.PathVXLAN, Reason: "via gateway 192.168.14.1"},
		},
	}
}
