package registrytest

import (
	"context"
	"errors"
	"sync"
	"testing"

	"uvxlan/lease"
)

// host is a host with a manager that runs.
type host struct {
	*following
	manager *lease.Manager
	own     lease.Lease
	end     func() error
}

// store keeps a state in memory.
type store struct {
	mu    sync.Mutex // guards state
	state *lease.State
}

func (s *store) Load() (*lease.State, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state, nil
}

func (s *store) Save(state lease.State) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	state.Peers = append([]lease.Lease{}, state.Peers...)
	state.Own.Own, state.Own.Revision, state.Own.Created, state.Own.ID = false, 0, 0, 0 // as a file has it
	s.state = &state
	return nil
}

// run has a host take its lease and keep it, until the test ends or end is called.
func run(t *testing.T, r lease.Registry, number int, s lease.Store) *host {
	t.Helper()
	m, err := lease.NewManager(lease.Options{Registry: r, Previous: Subnet(number), Store: s})
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := m.Config(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	own, err := m.Acquire(t.Context(), cfg, func(previous *lease.Lease) (lease.Attrs, error) {
		a := attrs(number)
		if previous != nil && previous.Attrs.BackendData != nil {
			a.BackendData = previous.Attrs.BackendData
		}
		return a, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	h := &host{following: newFollowing(nil), manager: m, own: own}
	go func() {
		defer close(h.done)
		h.err = m.Run(ctx, own, h.report)
	}()
	h.end = func() error {
		cancel()
		<-h.done
		return h.err
	}
	t.Cleanup(func() { _ = h.end() })
	return h
}

func hostsFindEachOther(t *testing.T, c Cluster) {
	c.Configure(t, Config)
	var hosts []*host
	record := &store{}
	for i, s := range []lease.Store{record, nil, nil} {
		hosts = append(hosts, run(t, c.Open(t, i+1), i+1, s))
	}
	for i, h := range hosts {
		if h.own.Subnet != Subnet(i+1) {
			t.Errorf("host %d has %s", i+1, h.own.Subnet)
		}
		for j := range hosts {
			if i != j {
				eventually(t, "a peer", func() bool { return h.has(j+1, attrs(j+1)) })
			}
		}
		if _, own := h.leases()[h.own.Subnet]; own {
			t.Errorf("host %d is its own peer", i+1)
		}
	}
	eventually(t, "health", func() bool {
		s := hosts[0].manager.Status()
		return s.Connected && !s.Watched.IsZero() && s.Unassigned == "" && s.Conflict == ""
	})
	changed := attrs(1)
	changed.PublicIP = attrs(2).PublicIP.Next().Next().Next()
	hosts[0].manager.Publish(changed)
	eventually(t, "a new address", func() bool { return hosts[1].has(1, changed) && hosts[2].has(1, changed) })
	// A host that starts again is the same to the others.
	if err := hosts[0].end(); err != nil {
		t.Error(err)
	}
	again := run(t, c.Open(t, 1), 1, record)
	if again.own.Subnet != Subnet(1) {
		t.Errorf("host 1 has %s by now", again.own.Subnet)
	}
	eventually(t, "its address as it was", func() bool { return hosts[1].has(1, attrs(1)) })
	if hosts[1].hasLost(1) {
		t.Error("it was gone in between")
	}
}

func ownLeaseIsPutBack(t *testing.T, c Cluster) {
	c.Configure(t, Config)
	one, two := c.Open(t, 1), c.Open(t, 2)
	h := run(t, one, 1, nil)
	peer := run(t, two, 2, nil)
	eventually(t, "the peer", func() bool { return peer.has(1, attrs(1)) })
	for what, spoil := range map[string]func(){
		"removed":    func() { c.Remove(t, 1) },
		"rewritten":  func() { c.Rewrite(t, 1, "192.168.14.99") },
		"unreadable": func() { c.Spoil(t, 1) },
	} {
		spoil()
		eventually(t, "the lease after it was "+what, func() bool {
			all, _, err := c.Open(t, 3).List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range all {
				if l.Subnet == Subnet(1) && l.Attrs.Equal(attrs(1)) {
					return true
				}
			}
			return false
		})
	}
	eventually(t, "the peer's view", func() bool { return peer.has(1, attrs(1)) })
	// Others wait for less long, and on a busy machine a host may be later.
	if _, patient := one.(lease.Assigner); patient && peer.hasLost(1) {
		t.Error("the peer has dropped the host in between")
	}
	select {
	case <-h.done:
		t.Errorf("the host has given up: %v", h.err)
	default:
	}
}

func startWithoutTheRegistry(t *testing.T, c Cluster) {
	c.Configure(t, Config)
	s := &store{}
	r := c.Open(t, 1)
	h, peer := run(t, r, 1, s), run(t, c.Open(t, 2), 2, nil)
	eventually(t, "the peer", func() bool { return h.has(2, attrs(2)) })
	if err := h.end(); err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	c.Down(t)
	again := run(t, c.Open(t, 1), 1, s)
	if again.own.Subnet != Subnet(1) {
		t.Errorf("it started with %s", again.own.Subnet)
	}
	eventually(t, "the stored peer", func() bool { return again.has(2, attrs(2)) })
	if st := again.manager.Status(); st.Connected || !st.Stored || !errors.Is(st.Err, lease.ErrUnavailable) {
		t.Errorf("its status is %+v", st)
	}
	c.Up(t)
	eventually(t, "the registry's return", func() bool {
		st := again.manager.Status()
		return st.Connected && !st.Watched.IsZero() && st.WriteErr == nil
	})
	eventually(t, "its peer's health", func() bool { return peer.manager.Status().Connected })
	if again.hasLost(2) || peer.hasLost(1) {
		t.Error("one has dropped the other in between")
	}
}
