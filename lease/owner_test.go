package lease_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"uvxlan/lease"
	"uvxlan/lease/etcd/etcdtest"
)

// A host that starts with another address keeps its subnet and its MAC: its own
// record says which lease is its own.
func TestRestartWithAnotherAddress(t *testing.T) {
	for name, c := range map[string]struct {
		change func(m *memory, own lease.Lease)
		away   bool   // the registry doesn't answer at the start
		subnet string // that it gets, by default its own
	}{
		"lease there":     {change: func(*memory, lease.Lease) {}},
		"lease gone":      {change: func(m *memory, own lease.Lease) { m.remove(own) }},
		"registry away":   {change: func(*memory, lease.Lease) {}, away: true},
		"address in use":  {change: func(m *memory, _ lease.Lease) { m.put(peer("172.7.50.0/24", "192.168.14.71"), time.Hour) }},
		"another's lease": {subnet: "172.7.2.0/24", change: func(m *memory, own lease.Lease) { m.put(peer(own.Subnet.String(), "192.168.14.66"), time.Hour) }},
		"another's reservation": {subnet: "172.7.50.0/24", change: func(m *memory, own lease.Lease) {
			m.remove(own)
			m.put(peer("172.7.50.0/24", "192.168.14.71"), 0)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, s := newMemory(network), &shelf{}
				own := earlier(t, m, s)
				c.change(m, own)
				way := newLink(m)
				if c.away {
					way.cut()
				}
				h := live(t, way, s, "192.168.14.71")
				way.restore()
				pause(10 * time.Second)
				want := own.Subnet.String()
				if c.subnet != "" {
					want = c.subnet
				}
				e := m.entry(t, h.own)
				if h.own.Subnet.String() != want || !e.Attrs.Equal(h.m.Status().Lease.Attrs) || e.Attrs.PublicIP.String() != "192.168.14.71" {
					t.Errorf("got %s, the entry is %s; want %s", h.own.Subnet, valueOf(e), want)
				}
				if c.subnet == "" && !strings.Contains(valueOf(e), "02:02:02:02:02:21") {
					t.Errorf("another MAC: %s", valueOf(e))
				}
				if len(h.updates) > 0 && len(h.table) < 2 {
					t.Errorf("peers %+v", h.table)
				}
				h.stop()
				if last := s.last(); !last.Own.Equal(e) {
					t.Errorf("stored %+v, want %+v", last.Own, e)
				}
			})
		})
	}
}

// Without a MAC the record is compared as a whole.
func TestRestartWithAnotherAddressHostGW(t *testing.T) {
	s := etcdtest.Start(t)
	config := `{"Network":"172.7.0.0/16","Backend":{"Type":"host-gw"}}`
	shelf := &shelf{}
	put(t, etcdtest.Client(t, s.Endpoint()), etcdtest.Prefix+"/config", config)
	start := func(ip string) lease.Lease {
		t.Helper()
		m := manager(t, lease.Options{Registry: etcdtest.Open(t, s.Endpoint()), Store: shelf})
		c, err := m.Config(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		own, err := m.Acquire(t.Context(), c, func(*lease.Lease) (lease.Attrs, error) {
			return lease.Attrs{PublicIP: netip.MustParseAddr(ip), BackendType: lease.TypeHostGW}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		r := run(t, m, own)
		r.next()
		r.cancel()
		if err := r.end(); err != nil {
			t.Error(err)
		}
		return own
	}
	first, second := start("192.168.14.21"), start("192.168.14.71")
	all, _, err := etcdtest.Open(t, s.Endpoint()).List(t.Context())
	if err != nil || second.Subnet != first.Subnet || len(all) != 1 || all[0].Attrs.PublicIP.String() != "192.168.14.71" {
		t.Errorf("%s became %s, etcd has %+v, %v", first.Subnet, second.Subnet, all, err)
	}
}

func TestPublish(t *testing.T) {
	s := etcdtest.Start(t)
	c, shelf := etcdtest.Client(t, s.Endpoint()), &shelf{}
	put(t, c, etcdtest.Prefix+"/config", network)
	m := manager(t, lease.Options{Registry: etcdtest.Open(t, s.Endpoint()), Store: shelf})
	config, err := m.Config(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	own, err := m.Acquire(t.Context(), config, host("192.168.14.21", "02:00:00:00:00:21"))
	if err != nil {
		t.Fatal(err)
	}
	peer := manager(t, lease.Options{Registry: etcdtest.Open(t, s.Endpoint())})
	seen := run(t, peer, acquire(t, lease.Options{Registry: etcdtest.Open(t, s.Endpoint())}, network, "192.168.14.22", "02:00:00:00:00:22"))
	seen.next()
	r := run(t, m, own)
	r.next()
	attrs, _ := host("192.168.14.71", "02:00:00:00:00:21")(nil)
	m.Publish(attrs)
	u := seen.next()
	if len(u.Leases) != 1 || u.Leases[0].Subnet != own.Subnet || !u.Leases[0].Attrs.Equal(attrs) || u.Leases[0].ID != own.ID {
		t.Errorf("a peer sees %+v", u)
	}
	await(t, m, "published", func(s lease.Status) bool { return s.Lease.Attrs.Equal(attrs) })

	// An entry that is overwritten is put right with what was published.
	edited, err := c.Put(t.Context(), subnets+own.Key(), value("192.168.14.71"))
	if err != nil {
		t.Fatal(err)
	}
	own.Attrs = attrs
	stored(t, c, subnets+own.Key(), edited.Header.Revision, valueOf(own))
	r.cancel()
	if err := r.end(); err != nil {
		t.Error(err)
	}
	if last := shelf.last(); !last.Own.Equal(own) {
		t.Errorf("stored %+v", last.Own)
	}
}

// While the registry is away many addresses come and go, from many goroutines.
func TestPublishWhileTheRegistryIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(network)
		way := newLink(m)
		h := live(t, way, nil, "192.168.14.21")
		way.cut()
		pause(time.Minute)
		publish := func(ip string) {
			attrs, _ := host(ip, "02:02:02:02:02:21")(nil)
			h.m.Publish(attrs)
		}
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() { publish(fmt.Sprintf("192.168.15.%d", i+1)) })
		}
		wg.Wait()
		pause(time.Second)
		publish("192.168.14.71")
		pause(time.Minute)
		if l := h.m.Status().Lease; l.Attrs.PublicIP.String() != "192.168.14.21" {
			t.Errorf("the status tells %+v before it stands in the registry", l)
		}
		way.restore()
		pause(6 * time.Second)
		e := m.entry(t, h.own)
		if e.Attrs.PublicIP.String() != "192.168.14.71" || e.Revision != h.own.Revision+1 || !h.m.Status().Lease.Equal(e) {
			t.Errorf("the entry is %+v, was %+v; status %+v", e, h.own, h.m.Status().Lease)
		}
		h.stop()
	})
}

// Somebody writes the entry with our MAC and another address: it is ours, and
// is put right. With another MAC as well, it is lost.
func TestWhoseEntryItIs(t *testing.T) {
	for mac, lost := range map[string]bool{"02:02:02:02:02:21": false, "02:02:02:02:02:66": true} {
		synctest.Test(t, func(t *testing.T) {
			m := newMemory(network)
			h := live(t, newLink(m), nil, "192.168.14.21")
			other := h.own
			other.Attrs.PublicIP, other.Attrs.BackendData = netip.MustParseAddr("192.168.14.66"), json.RawMessage(`{"VNI":1,"VtepMAC":"`+mac+`"}`)
			m.put(other, time.Hour)
			if lost {
				h.lost("192.168.14.66")
				return
			}
			pause(2 * time.Second)
			if e := m.entry(t, h.own); !e.Equal(h.own) {
				t.Errorf("the entry is %+v", e)
			}
			h.stop()
		})
	}
}
