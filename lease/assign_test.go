package lease_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"uvxlan/lease"
	"uvxlan/lease/kube"
	"uvxlan/lease/kube/kubetest"
)

const (
	podNetwork = `{"Network":"10.244.0.0/16","SubnetLen":24,"Backend":{"Type":"vxlan"}}`
	mac21      = "02:00:00:00:00:21"
)

// nodes is a cluster of Kubernetes with this host's node n1.
func nodes(t *testing.T, podCIDRs ...string) *kubetest.Server {
	t.Helper()
	s := kubetest.Start(t)
	s.WriteConfig(t, podNetwork)
	s.CreateNode(t, "n1", podCIDRs...)
	return s
}

// assigned is a manager on n1, and its configuration.
func assigned(t *testing.T, s *kubetest.Server, o lease.Options) (*lease.Manager, *lease.Config) {
	t.Helper()
	o.Registry = s.Open(t, "n1", func(o *kube.Options) { o.LeaveCondition = true })
	m := manager(t, o)
	c, err := m.Config(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return m, c
}

// until waits for a condition.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for late := time.Now().Add(patience); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(late) {
			t.Fatalf("%s: not within %s", what, patience)
		}
	}
}

// keepRunning has a manager run until the test ends.
func keepRunning(t *testing.T, m *lease.Manager, own lease.Lease) (ended chan error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended = make(chan error, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		ended <- m.Run(ctx, own, func(lease.Update) {})
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return ended
}

// What is assigned is taken, of whatever length and wherever in the network, also below
// SubnetMin. What the node said before is kept.
func TestAssignedSubnetIsTaken(t *testing.T) {
	t.Parallel()
	for _, podCIDR := range []string{"10.244.0.0/24", "10.244.7.128/25", "10.244.64.0/20"} {
		s := nodes(t, podCIDR)
		s.Join(t, "n1", "192.168.14.21", mac21)
		m, c := assigned(t, s, lease.Options{})
		l, err := m.Acquire(t.Context(), c, host("192.168.14.21", "02:00:00:00:00:ff"))
		if err != nil || l.Subnet.String() != podCIDR || !l.Own || !l.Permanent {
			t.Fatalf("%s: %+v, %v", podCIDR, l, err)
		}
		if d, err := l.Attrs.VXLAN(); err != nil || d.VtepMAC != mac21 {
			t.Errorf("the MAC is %s, %v: not what the node said", d.VtepMAC, err)
		}
		if got := c.Allocatable(); len(got) != 1 || got[0] != c.Network {
			t.Errorf("hosts may have subnets of %s, want all of the network", got)
		}
	}
}

// A subnet that the configuration doesn't have is waited out, in words, until one of
// them is put right.
func TestAssignedSubnetOutsideTheNetwork(t *testing.T) {
	t.Parallel()
	s := nodes(t, "10.99.0.0/24")
	m, c := assigned(t, s, lease.Options{})
	result := make(chan error, 1)
	go func() {
		_, err := m.Acquire(t.Context(), c, host("192.168.14.21", mac21))
		result <- err
	}()
	until(t, "words", func() bool {
		err := m.Status().Err
		return errors.Is(err, lease.ErrUnassigned) && strings.Contains(err.Error(), "10.99.0.0/24 doesn't lie in the Network 10.244.0.0/16")
	})
	s.WriteConfig(t, strings.Replace(podNetwork, "10.244.0.0/16", "10.99.0.0/16", 1))
	if err := <-result; err == nil || !strings.Contains(err.Error(), "start again") {
		t.Errorf("with another configuration: %v", err)
	}
}

// A node that is gone is one state, whatever is tried meanwhile. It ends when the node is
// back.
func TestOwnNodeIsGone(t *testing.T) {
	t.Parallel()
	s := nodes(t, "10.244.0.0/24")
	m, c := assigned(t, s, lease.Options{})
	own, err := m.Acquire(t.Context(), c, host("192.168.14.21", mac21))
	if err != nil {
		t.Fatal(err)
	}
	keepRunning(t, m, own)
	until(t, "the watch", func() bool { return !m.Status().Watched.IsZero() })
	s.DeleteNode(t, "n1")
	until(t, "words", func() bool { return strings.Contains(m.Status().Unassigned, "there is no node n1") })
	seen := s.Count("get")
	until(t, "more attempts", func() bool {
		if st := m.Status(); st.Unassigned == "" || !st.Connected {
			t.Fatalf("the state has changed: %+v", st)
		}
		return s.Count("get") > seen+2
	})
	s.CreateNode(t, "n1", "10.244.0.0/24")
	until(t, "the lease", func() bool {
		return m.Status().Unassigned == "" && s.Node(t, "n1").Metadata.Annotations[kubetest.Prefix+"public-ip"] == "192.168.14.21"
	})
}

// A node that registers anew with another subnet ends the run, which says what has
// changed.
func TestOwnNodeHasAnotherSubnet(t *testing.T) {
	t.Parallel()
	s := nodes(t, "10.244.0.0/24")
	dir := &shelf{}
	m, c := assigned(t, s, lease.Options{Store: dir})
	own, err := m.Acquire(t.Context(), c, host("192.168.14.21", mac21))
	if err != nil {
		t.Fatal(err)
	}
	ended := keepRunning(t, m, own)
	until(t, "the watch", func() bool { return !m.Status().Watched.IsZero() })
	s.DeleteNode(t, "n1")
	s.CreateNode(t, "n1", "10.244.9.0/24")
	if err := <-ended; !errors.Is(err, lease.ErrReassigned) || !strings.Contains(err.Error(), "10.244.9.0/24, and no longer 10.244.0.0/24") {
		t.Errorf("it ended with %v", err)
	}
	m, c = assigned(t, s, lease.Options{Store: dir})
	if l, err := m.Acquire(t.Context(), c, host("192.168.14.21", mac21)); err != nil || l.Subnet.String() != "10.244.9.0/24" {
		t.Errorf("then %+v, %v", l, err)
	}
}

// Whoever writes the annotations again and again is told of, and no clone is suspected.
func TestSomebodyRewritesTheNode(t *testing.T) {
	t.Parallel()
	s := nodes(t, "10.244.0.0/24")
	m, c := assigned(t, s, lease.Options{})
	own, err := m.Acquire(t.Context(), c, host("192.168.14.21", mac21))
	if err != nil {
		t.Fatal(err)
	}
	keepRunning(t, m, own)
	until(t, "the watch", func() bool { return !m.Status().Watched.IsZero() })
	for range 3 {
		s.Annotate(t, "n1", map[string]any{"public-ip": "192.168.14.99"})
		until(t, "the address's return", func() bool {
			return s.Node(t, "n1").Metadata.Annotations[kubetest.Prefix+"public-ip"] == "192.168.14.21"
		})
	}
	until(t, "words", func() bool {
		return strings.Contains(m.Status().Conflict, "does flanneld or another uvxland run on this host")
	})
}
