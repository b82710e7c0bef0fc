package lease_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"uvxlan/lease"
)

// life is one run of a host's manager, in which nothing takes time but waiting.
type life struct {
	t    *testing.T
	m    *lease.Manager
	own  lease.Lease
	log  *bytes.Buffer
	done chan error
	end  context.CancelFunc

	mu      sync.Mutex
	table   map[netip.Prefix]lease.Lease
	updates []lease.Update
}

// live starts a host at the address, which waits as long as it must.
func live(t *testing.T, r lease.Registry, s lease.Store, ip string, with ...func(*lease.Options)) *life {
	t.Helper()
	l := &life{t: t, log: &bytes.Buffer{}, done: make(chan error, 1), table: map[netip.Prefix]lease.Lease{}}
	o := lease.Options{Registry: r, Store: s, Pick: func(int) int { return 0 }, Logger: slog.New(slog.NewTextHandler(l.log, nil))}
	for _, change := range with {
		change(&o)
	}
	l.m = manager(t, o)
	ctx, cancel := context.WithCancel(t.Context())
	l.end = cancel
	mac := strings.Repeat("02:", 5) + ip[len(ip)-2:]
	begun := make(chan struct{})
	go func() {
		c, err := l.m.Config(ctx)
		if err == nil {
			l.own, err = l.m.Acquire(ctx, c, host(ip, mac))
		}
		close(begun)
		if err == nil {
			err = l.m.Run(ctx, l.own, l.report)
		}
		l.done <- err
	}()
	t.Cleanup(cancel)
	select {
	case <-begun:
	case <-time.After(time.Minute):
	}
	synctest.Wait()
	return l
}

func (l *life) report(u lease.Update) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.updates = append(l.updates, u)
	if u.Reset {
		clear(l.table)
	}
	for _, p := range u.Leases {
		l.table[p.Subnet] = p
	}
	for _, p := range u.Deleted {
		delete(l.table, p.Subnet)
	}
}

// stop ends the run in order.
func (l *life) stop() {
	l.t.Helper()
	l.end()
	if err := <-l.done; err != nil {
		l.t.Errorf("Run returned %v", err)
	}
}

// lost waits for the end of a run that has lost its lease.
func (l *life) lost(holder string) {
	l.t.Helper()
	select {
	case err := <-l.done:
		if !errors.Is(err, lease.ErrLeaseLost) || !strings.HasSuffix(err.Error(), l.own.Subnet.String()+" is held by "+holder) {
			l.t.Errorf("Run returned %v", err)
		}
	case <-time.After(time.Minute):
		l.t.Errorf("Run goes on although %s is held by %s", l.own.Subnet, holder)
		l.stop()
	}
}

// knows compares the peers with the wanted "subnet host" pairs.
func (l *life) knows(want ...string) {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	var got []string
	for _, p := range l.table {
		got = append(got, p.Subnet.String()+" "+p.Attrs.PublicIP.String())
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		l.t.Errorf("the peers are %q, want %q", got, want)
	}
}

func peer(subnet, ip string) lease.Lease {
	a, _ := host(ip, "02:00:00:00:00:99")(nil)
	return lease.Lease{Subnet: netip.MustParsePrefix(subnet), Attrs: a}
}

// pause lets time pass and everything that is due happen.
func pause(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (m *memory) entry(t *testing.T, l lease.Lease) lease.Lease {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.entries[l.Key()]
}

func TestHoursWithoutTheRegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(network)
		m.put(peer("172.7.31.0/24", "192.168.15.31"), 0)
		way := newLink(m)
		h := live(t, way, nil, "192.168.14.21")
		h.knows("172.7.31.0/24 192.168.15.31")
		way.cut()
		pause(10 * time.Hour)
		h.knows("172.7.31.0/24 192.168.15.31")
		st := h.m.Status()
		if age := time.Since(st.AsOf); st.Connected || st.Stored || age < 10*time.Hour-time.Second || age > 10*time.Hour || len(h.updates) != 1 {
			t.Errorf("status %+v, updates %+v", st, h.updates)
		}
		gaps := len(way.tries) - 1
		for i := gaps - 100; i < gaps; i++ {
			if gap := way.tries[i+1].Sub(way.tries[i]); gap < 2500*time.Millisecond || gap > 5*time.Second {
				t.Errorf("tried again after %s, want 2.5 s to 5 s", gap)
			}
		}
		way.restore()
		pause(10 * time.Second)
		st = h.m.Status()
		if !st.Connected || !st.AsOf.IsZero() || st.Watched.IsZero() || m.entry(t, h.own).Revision != h.own.Revision {
			t.Errorf("after the outage %+v, the entry is %+v", st, m.entry(t, h.own))
		}
		h.stop()
	})
}

// A day passes while the host is cut off: its lease ends, in the registry too.
func TestLeaseEndsWhileTheRegistryIsAway(t *testing.T) {
	for name, taken := range map[string]bool{"free": false, "taken": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMemory(network)
				way := newLink(m)
				h := live(t, way, nil, "192.168.14.21")
				way.cut()
				pause(30 * time.Hour)
				if e := m.entry(t, h.own); e.Subnet.IsValid() {
					t.Fatalf("after 30 hours the registry has %+v", e)
				}
				if taken {
					m.put(peer(h.own.Subnet.String(), "192.168.14.66"), 24*time.Hour)
				}
				way.restore()
				if taken {
					h.lost("192.168.14.66")
					return
				}
				pause(10 * time.Second)
				if e := m.entry(t, h.own); !e.Equal(h.own) || time.Until(h.m.Status().Lease.Expires) < 23*time.Hour {
					t.Errorf("put back as %+v, want %+v; status %+v", e, h.own, h.m.Status())
				}
				h.stop()
			})
		})
	}
}

// earlier makes a run, with two peers, that has ended.
func earlier(t *testing.T, m *memory, s *shelf) lease.Lease {
	t.Helper()
	m.put(peer("172.7.22.0/24", "192.168.14.22"), 0)
	m.put(peer("172.7.31.0/24", "192.168.15.31"), 0)
	h := live(t, newLink(m), s, "192.168.14.21")
	h.stop()
	return h.own
}

func TestStartWithoutTheRegistry(t *testing.T) {
	for name, c := range map[string]struct {
		away    time.Duration
		change  func(m *memory, own lease.Lease)
		holder  string // who has our subnet afterwards
		warning string
	}{
		"unchanged": {away: 3 * time.Hour, change: func(*memory, lease.Lease) {}},
		"expired":   {away: 30 * time.Hour, change: func(*memory, lease.Lease) {}},
		"deleted":   {away: time.Hour, change: func(m *memory, own lease.Lease) { m.remove(own) }},
		"edited": {away: time.Hour, change: func(m *memory, own lease.Lease) {
			m.put(peer(own.Subnet.String(), own.Attrs.PublicIP.String()), time.Hour)
		}},
		"taken": {away: 30 * time.Hour, holder: "192.168.14.66", change: func(m *memory, own lease.Lease) {
			m.put(peer(own.Subnet.String(), "192.168.14.66"), time.Hour)
		}},
		"configured anew": {away: time.Hour, warning: "the network configuration has changed", change: func(m *memory, _ lease.Lease) {
			m.setConfig(`{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan","VNI":2}}`)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, s := newMemory(network), &shelf{}
				own := earlier(t, m, s)
				way := newLink(m)
				way.cut()
				pause(c.away)
				begin := time.Now()
				h := live(t, way, s, "192.168.14.21", func(o *lease.Options) { o.UseExpired = c.away > 24*time.Hour })
				if took := time.Since(begin); took > lease.DefaultPatience || !h.own.Equal(own) || !h.own.Expires.Equal(own.Expires) {
					t.Errorf("after %s the lease is %+v, was %+v", took, h.own, own)
				}
				h.knows("172.7.22.0/24 192.168.14.22", "172.7.31.0/24 192.168.15.31")
				st := h.m.Status()
				if age := time.Since(st.AsOf); !st.Stored || st.Connected || age < c.away || age > c.away+10*time.Second || time.Since(st.Renewed) < c.away {
					t.Errorf("status %+v", st)
				}

				m.remove(peer("172.7.22.0/24", "192.168.14.22"))
				m.put(peer("172.7.31.0/24", "192.168.15.99"), 0)
				m.put(peer("172.7.40.0/24", "192.168.15.40"), 0)
				c.change(m, own)
				way.restore()
				if c.holder != "" {
					h.lost(c.holder)
					if s.last().Own.Subnet.IsValid() {
						t.Error("a lost lease is stored")
					}
					return
				}
				pause(6 * time.Second)
				h.knows("172.7.22.0/24 192.168.14.22", "172.7.31.0/24 192.168.15.99", "172.7.40.0/24 192.168.15.40")
				pause(10 * time.Second)
				h.knows("172.7.31.0/24 192.168.15.99", "172.7.40.0/24 192.168.15.40")
				st = h.m.Status()
				if e := m.entry(t, own); !e.Equal(own) || st.Stored || !st.AsOf.IsZero() || time.Until(st.Lease.Expires) < 23*time.Hour {
					t.Errorf("the entry is %+v, status %+v", e, st)
				}
				if !strings.Contains(h.log.String(), "starting from the leases that an earlier run stored") || !strings.Contains(h.log.String(), c.warning) {
					t.Errorf("it says\n%s", h.log)
				}
				if c.warning == "" && strings.Contains(h.log.String(), "configuration") {
					t.Errorf("it says of the configuration\n%s", h.log)
				}
				h.stop()
				if last := s.last(); len(last.Peers) != 2 || !last.Own.Equal(own) || time.Since(last.AsOf) > time.Second {
					t.Errorf("stored %+v", last)
				}
			})
		})
	}
}

// A lease that has run out may be another's: only the registry can tell.
func TestExpiredStoredLeaseWaits(t *testing.T) {
	for name, c := range map[string]struct {
		away   time.Duration // since the earlier run
		words  string        // why it isn't used
		taken  bool          // by another host meanwhile
		subnet string
	}{
		"free":          {30 * time.Hour, "the stored lease on 172.7.1.0/24 ran out 6h", false, "172.7.1.0/24"},
		"taken":         {30 * time.Hour, "the stored lease on 172.7.1.0/24 ran out 6h", true, "172.7.2.0/24"},
		"clock reset":   {-time.Hour, "clock is behind", false, "172.7.1.0/24"},
		"just in time":  {23 * time.Hour, "", false, "172.7.1.0/24"},
		"while waiting": {24*time.Hour - 2*time.Second, "ran out 1s ago", true, "172.7.2.0/24"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, s := newMemory(network), &shelf{}
				own := earlier(t, m, s)
				way := newLink(m)
				way.cut()
				if c.away < 0 {
					s.state.AsOf, s.state.Own.Expires = s.state.AsOf.Add(-c.away), s.state.Own.Expires.Add(-c.away)
				} else {
					pause(c.away)
				}
				h := live(t, way, s, "192.168.14.21")
				st := h.m.Status()
				if (c.words == "") != h.own.Subnet.IsValid() || (c.words == "") != (st.Refused == "") || !strings.Contains(h.log.String(), c.words) {
					t.Errorf("it has %s and says %q\n%s", h.own.Subnet, st.Refused, h.log)
				}
				if c.taken {
					m.put(peer(own.Subnet.String(), "192.168.14.66"), time.Hour)
				}
				way.restore()
				pause(10 * time.Second)
				if st := h.m.Status(); h.own.Subnet.String() != c.subnet || !m.entry(t, h.own).Equal(st.Lease) || st.Refused != "" {
					t.Errorf("it has %s, want %s; status %+v", h.own.Subnet, c.subnet, st)
				}
				h.stop()
			})
		})
	}
}

// The manager says what it can't use, and waits for the registry.
func TestStartWaitsForTheRegistry(t *testing.T) {
	for name, c := range map[string]struct {
		spoil   func(s *shelf)
		away    bool // otherwise the registry only has no configuration
		warning string
	}{
		"nothing stored":    {spoil: func(s *shelf) { s.state = nil }, away: true},
		"damaged":           {spoil: func(s *shelf) { s.err = errors.New("unexpected end of JSON input") }, away: true, warning: "unexpected end"},
		"lost":              {spoil: func(s *shelf) { s.state.Own = lease.Lease{} }, away: true, warning: "had lost its lease"},
		"another network":   {spoil: func(s *shelf) { s.state.Own.Subnet = netip.MustParsePrefix("10.1.1.0/24") }, away: true, warning: "does not fit"},
		"bad configuration": {spoil: func(s *shelf) { s.state.Config = []byte("{}") }, away: true, warning: "Network missing"},
		"not configured":    {spoil: func(*shelf) {}, warning: "waiting for the lease registry"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, s := newMemory(network), &shelf{}
				earlier(t, m, s)
				c.spoil(s)
				way := newLink(m)
				if c.away {
					way.cut()
				}
				m.setConfig("")
				h := live(t, way, s, "192.168.14.21")
				if h.own.Subnet.IsValid() || len(h.updates) > 0 {
					t.Errorf("it started with %+v", h.own)
				}
				m.setConfig(network)
				way.restore()
				pause(10 * time.Second)
				h.knows("172.7.22.0/24 192.168.14.22", "172.7.31.0/24 192.168.15.31")
				if st := h.m.Status(); st.Stored || !st.AsOf.IsZero() {
					t.Errorf("status %+v", st)
				}
				if !strings.Contains(h.log.String(), c.warning) {
					t.Errorf("it doesn't say %q:\n%s", c.warning, h.log)
				}
				h.stop()
			})
		})
	}
}

// The subnet and the MAC outlive the lease, with the registry there.
func TestStoredLeaseIsPreferred(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, s := newMemory(network), &shelf{}
		own := earlier(t, m, s)
		m.remove(own)
		s.state.Own.Subnet = netip.MustParsePrefix("172.7.77.0/24")
		h := live(t, newLink(m), s, "192.168.14.21")
		if h.own.Subnet.String() != "172.7.77.0/24" || !h.own.Attrs.Equal(own.Attrs) {
			t.Errorf("got %+v after %+v", h.own, own)
		}
		h.stop()
	})
}

func TestSavesAreFewAndComplete(t *testing.T) {
	for takes, most := range map[time.Duration]int{0: 12, time.Second: 2} {
		synctest.Test(t, func(t *testing.T) {
			m, s := newMemory(network), &shelf{takes: takes}
			h := live(t, newLink(m), s, "192.168.14.21")
			for i := range 1000 {
				m.put(peer(fmt.Sprintf("172.7.%d.0/24", 2+i%200), fmt.Sprintf("192.168.15.%d", 1+i/200)), 0)
				pause(10 * time.Millisecond)
			}
			if n := len(s.saves); n < most/2 || n > most {
				t.Errorf("%d saves in 10 s, each of %s", n, takes)
			}
			h.stop()
			if last := s.last(); len(last.Peers) != 200 || !last.Own.Equal(h.own) || last.Peers[0].Attrs.PublicIP.String() != "192.168.15.5" {
				t.Errorf("%d stored, the first is %+v", len(last.Peers), last.Peers[0])
			}
		})
	}
}

func TestFailingStoreIsNamedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, s := newMemory(network), &shelf{}
		h := live(t, newLink(m), s, "192.168.14.21")
		fail := func(err error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.err = err
		}
		for i, err := range []error{errors.New("disk full"), errors.New("disk full"), nil, nil} {
			fail(err)
			m.put(peer(fmt.Sprintf("172.7.%d.0/24", 2+i), "192.168.15.31"), 0)
			pause(2 * time.Second)
		}
		h.stop()
		if log := h.log.String(); strings.Count(log, "disk full") != 1 || strings.Count(log, "stored again") != 1 {
			t.Errorf("it says\n%s", log)
		}
	})
}

// A registry that comes back without its data separates no hosts. Each host
// puts its lease back, and no other host sees it gone.
func TestRegistryWithoutItsData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(network)
		m.put(peer("172.7.31.0/24", "192.168.15.31"), 0) // of a host that is gone for good
		var ways []*link
		var hosts []*life
		for i := range 5 {
			way := newLink(m)
			ways, hosts = append(ways, way), append(hosts, live(t, way, nil, fmt.Sprintf("192.168.14.2%d", i)))
		}
		for _, way := range ways {
			way.cut()
		}
		pause(time.Hour)
		m.remove(peer("172.7.31.0/24", "192.168.15.31"))
		for _, h := range hosts {
			m.remove(h.own)
		}
		for _, way := range ways {
			way.restore()
		}
		pause(20 * time.Second)
		for _, h := range hosts {
			if len(h.table) != len(hosts)-1 || m.entry(t, h.own).Attrs.PublicIP != h.own.Attrs.PublicIP {
				t.Errorf("%s has the peers %+v, its lease is %+v", h.own.Subnet, h.table, m.entry(t, h.own))
			}
			for _, u := range h.updates {
				for _, l := range u.Deleted {
					if l.Subnet.String() != "172.7.31.0/24" {
						t.Errorf("%s parted with %s", h.own.Subnet, l.Subnet)
					}
				}
				if u.Reset && u.Revision > 6 && len(u.Leases) != len(hosts) {
					t.Errorf("%s saw %d peers", h.own.Subnet, len(u.Leases))
				}
			}
			h.stop()
		}
	})
}

// A lease that is put back at once was never gone. One that isn't is gone after
// a moment, and what takes its place comes after its end.
func TestDeletionsAreReportedLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(network)
		gone, back, changed := peer("172.7.31.0/24", "192.168.15.31"), peer("172.7.32.0/24", "192.168.15.32"), peer("172.7.33.0/24", "192.168.15.33")
		for _, l := range []lease.Lease{gone, back, changed} {
			m.put(l, 0)
		}
		h := live(t, newLink(m), nil, "192.168.14.21")
		for _, l := range []lease.Lease{gone, back, changed} {
			m.remove(l)
		}
		m.put(back, 0)
		dual := changed
		dual.IPv6Subnet = netip.MustParsePrefix("fd00:7:0:33::/64")
		m.put(dual, 0)
		pause(40 * time.Millisecond)
		h.knows("172.7.31.0/24 192.168.15.31", "172.7.32.0/24 192.168.15.32", "172.7.33.0/24 192.168.15.33")
		pause(40 * time.Millisecond)
		h.knows("172.7.32.0/24 192.168.15.32", "172.7.33.0/24 192.168.15.33")
		var deleted []string
		for _, u := range h.updates {
			for _, l := range u.Deleted {
				deleted = append(deleted, l.Key())
			}
		}
		if !slices.Equal(deleted, []string{"172.7.33.0-24", "172.7.31.0-24"}) {
			t.Errorf("deleted were %q", deleted)
		}
		h.stop()
	})
}

// An update may tell of a lease's end together with another lease that has its
// subnet. The end comes first.
func TestUpdateReplacesALease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, old := newMemory(network), peer("172.7.33.0/24", "192.168.15.33")
		m.put(old, 0)
		h := live(t, newLink(m), nil, "192.168.14.21")
		dual := old
		dual.IPv6Subnet, dual.Attrs.PublicIP = netip.MustParsePrefix("fd00:7:0:33::/64"), netip.MustParseAddr("192.168.15.34")
		m.replace(old, dual)
		pause(time.Second)
		h.knows("172.7.33.0/24 192.168.15.34")
		h.stop()
	})
}
