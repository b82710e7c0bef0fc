package lease_test

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"uvxlan/lease"
)

// clones runs a host and its clone for some minutes: both must say what is wrong,
// and the registry must not suffer.
func clones(t *testing.T, m *memory, a, b *life) {
	t.Helper()
	before := m.revisionNow()
	pause(3 * time.Minute)
	for _, h := range []*life{a, b} {
		words := h.m.Status().Conflict
		for _, part := range []string{"another host claims subnet " + a.own.Subnet.String(), "clone", "address of its own", "/state/leases.json"} {
			if !strings.Contains(words, part) || !strings.Contains(h.log.String(), part) {
				t.Errorf("%q is neither in the status %q nor in the log\n%s", part, words, h.log)
			}
		}
	}
	before, writes := m.revisionNow(), m.revisionNow()-before
	pause(time.Hour)
	if n := m.revisionNow() - before; writes > 20 || n > 200 || n < 50 {
		t.Errorf("the two wrote %d times in three minutes and %d times in an hour after", writes, n)
	}
	b.stop()
	pause(10 * time.Minute)
	if words := a.m.Status().Conflict; words != "" {
		t.Errorf("after the other's end: %s", words)
	}
	a.stop()
}

func TestCloneWithTheSameAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(network)
		a := live(t, newLink(m), &shelf{}, "192.168.14.21")
		if strings.Contains(a.log.String(), "level=WARN") {
			t.Errorf("a fresh host warns:\n%s", a.log)
		}
		b := live(t, newLink(m), &shelf{}, "192.168.14.21")
		if b.own.Subnet != a.own.Subnet {
			t.Errorf("the clone has %s", b.own.Subnet)
		}
		for _, part := range []string{"knows nothing of", "subnet=172.7.1.0/24", "public_ip=192.168.14.21", "another machine"} {
			if !strings.Contains(b.log.String(), part) {
				t.Errorf("the clone doesn't say %q:\n%s", part, b.log)
			}
		}
		clones(t, m, a, b)
	})
}

func TestCloneWithTheSameRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, s := newMemory(network), &shelf{}
		live(t, newLink(m), s, "192.168.14.21").stop()
		copied := s.last()
		a, b := live(t, newLink(m), s, "192.168.14.21"), live(t, newLink(m), &shelf{state: &copied}, "192.168.14.71")
		clones(t, m, a, b)
	})
}

// What hosts and operators properly do is no contest.
func TestNoContest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, s := newMemory(network), &shelf{}
		for range 5 {
			h := live(t, newLink(m), s, "192.168.14.21")
			for _, ip := range []string{"192.168.14.71", "192.168.14.21"} {
				attrs, _ := host(ip, "02:02:02:02:02:21")(nil)
				h.m.Publish(attrs)
				pause(time.Second)
			}
			e := m.entry(t, h.own)
			m.put(e, time.Hour) // as it is
			pause(time.Minute)
			attrs := h.own
			attrs.Attrs.PublicIP = netip.MustParseAddr("192.168.14.72")
			m.put(attrs, time.Hour)
			pause(time.Minute)
			if words := h.m.Status().Conflict; words != "" || strings.Contains(h.log.String(), "knows nothing") {
				t.Errorf("%s\n%s", words, h.log)
			}
			h.stop()
			pause(10 * time.Minute)
		}
	})
}

// refusing is a link to a registry that takes no writes.
type refusing struct{ *link }

func (refusing) Update(_ context.Context, own lease.Lease, _ time.Duration) (lease.Lease, error) {
	return own, lease.ErrReadOnly
}

// One write by another counts once, however often it can't be put right.
func TestContestCountsWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(network)
		h := live(t, refusing{newLink(m)}, nil, "192.168.14.21")
		m.put(peer(h.own.Subnet.String(), "192.168.14.21"), time.Hour)
		pause(4 * time.Minute)
		if st := h.m.Status(); st.Conflict != "" || st.WriteErr == nil {
			t.Errorf("the status is %+v", st)
		}
		h.stop()
	})
}
