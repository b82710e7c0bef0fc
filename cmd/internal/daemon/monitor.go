package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/extiface"
	"uvxlan/cmd/internal/metrics"
	"uvxlan/cmd/internal/version"
	"uvxlan/encap"
	"uvxlan/lease"
	"uvxlan/tunnel"
)

// monitor says how the daemon is, from its first moment to its last.
type monitor struct {
	started time.Time     // immutable
	isReady chan struct{} // closed when ready is set

	mu sync.Mutex // guards the rest, each of which is set once
	// what the daemon has so far
	ext     extiface.Interface
	skipped func() uint64
	manager *lease.Manager
	config  *lease.Config
	network backend
	// how far it is
	ready    bool
	stopping bool
	leaving  bool // to another program, which goes on
}

var _ metrics.Source = (*monitor)(nil)

func newMonitor() *monitor { return &monitor{started: time.Now(), isReady: make(chan struct{})} }

// open starts to tell how the daemon is, to whom the options say and to the
// service manager, until stop. It goes on where the daemon before has left it, and
// stop hands over to after; each may be nil.
func (m *monitor) open(ctx context.Context, o Options, before *handoverState) (stop func(after *handoverState), err error) {
	e, err := openEndpoints(ctx, o, m, before)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	context.AfterFunc(ctx, m.beStopping)
	n := notifier{log: o.Logger, source: m}
	var telling sync.WaitGroup
	telling.Go(func() {
		n.run(ctx, m.isReady)
		if !m.isLeaving() {
			n.send("STOPPING=1")
		}
	})
	return func(after *handoverState) {
		m.set(func(m *monitor) { m.leaving = after != nil })
		m.beStopping()
		cancel()
		telling.Wait()
		e.close(after)
	}, nil
}

// beReady says that the host's containers are connected. It is called once.
func (m *monitor) beReady() {
	m.set(func(m *monitor) { m.ready = true })
	close(m.isReady)
}

// set changes what the monitor knows.
func (m *monitor) set(change func(*monitor)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(m)
}

// parts is what the monitor knows at a moment.
type parts struct {
	ext             extiface.Interface
	skipped         uint64
	health          lease.Status
	config          *lease.Config
	network         backend
	ready, stopping bool
}

func (m *monitor) parts() parts {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := parts{ext: m.ext, config: m.config, network: m.network, ready: m.ready, stopping: m.stopping}
	if m.manager != nil {
		p.health = m.manager.Status()
	}
	if m.skipped != nil {
		p.skipped = m.skipped()
	}
	return p
}

// isLeaving tells whether another program goes on.
func (m *monitor) isLeaving() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.leaving
}

func (m *monitor) beStopping() { m.set(func(m *monitor) { m.stopping = !m.leaving }) }

// Status implements [control.Source].
func (m *monitor) Status() control.Status {
	p := m.parts()
	s := control.Status{
		Version: version.String(), PID: os.Getpid(), Started: m.started, Now: time.Now(),
		Interface: p.ext.Name, PublicIP: p.ext.PublicIP, PublicIPv6: p.ext.PublicIPv6,
		Etcd: etcdOf(p.health, p.skipped), Watch: watchOf(p.health), Lease: leaseOf(p.health),
	}
	if p.config != nil {
		s.Model, s.Network, s.NetworkV6 = modelOf(p.config), p.config.Network, p.config.IPv6Network
	}
	var fault error
	if p.network != nil {
		s.MTU = p.network.mtu()
		p.network.describe(&s)
		fault = p.network.fault()
	}
	judge(&s, p, fault)
	return s
}

// Peers implements [control.Source].
func (m *monitor) Peers() []control.Peer {
	p := m.parts()
	if p.network == nil {
		return nil
	}
	peers := p.network.peers()
	for i := range peers {
		peers[i].AsOf = p.health.AsOf
	}
	return peers
}

// Stats implements [metrics.Source]; host-gw has no router.
func (m *monitor) Stats() (s tunnel.Stats, ok bool) {
	n, ok := m.parts().network.(interface{ stats() tunnel.Stats })
	if !ok {
		return tunnel.Stats{}, false
	}
	return n.stats(), true
}

// judge says whether the host's containers are connected. An etcd that is away
// is no reason against it as long as the other hosts know our lease: packets
// flow, and an orchestrator that took every host out of service at once would
// make the outage its own. Once the lease has expired they don't.
func judge(s *control.Status, p parts, fault error) {
	switch {
	case p.stopping:
		s.Reasons = append(s.Reasons, "the daemon stops")
	case p.network == nil:
		s.Reasons = append(s.Reasons, waitingFor(p))
	case s.Lease == nil:
		s.Reasons = append(s.Reasons, "the host has no lease")
	case !s.Lease.Expires.IsZero() && !s.Now.Before(s.Lease.Expires):
		s.Reasons = append(s.Reasons, expired(s))
	}
	if fault != nil {
		s.Reasons = append(s.Reasons, fault.Error())
	} else if len(s.Reasons) == 0 && !p.ready {
		s.Reasons = append(s.Reasons, "the subnet file is not written yet")
	}
	s.Ready = len(s.Reasons) == 0
	if p.network == nil {
		return
	}
	switch {
	case !s.Etcd.Up && !s.Watch.AsOf.IsZero():
		s.Notes = append(s.Notes, "etcd doesn't answer: packets flow by the leases "+s.AgeWords())
	case !s.Etcd.Up:
		s.Notes = append(s.Notes, "etcd doesn't answer")
	case !s.Watch.Alive:
		s.Notes = append(s.Notes, "the leases are not watched at the moment")
	}
}

// expired says what a lease that has run out means. Without etcd nobody can tell
// whether it has run out there: an etcd that stands still keeps its leases, one
// that only this host doesn't reach does not.
func expired(s *control.Status) string {
	if s.Etcd.Up {
		return fmt.Sprintf("the lease on %s has expired: the other hosts don't send here any longer", s.Lease.Subnets())
	}
	return fmt.Sprintf("the lease on %s has expired by this host's clock: other hosts that reach etcd don't send here any longer", s.Lease.Subnets())
}

// waitingFor says what a daemon without a backend waits for.
func waitingFor(p parts) string {
	what := "the network configuration"
	if p.config != nil {
		what = "the device and a lease"
	}
	if p.health.Err != nil {
		return fmt.Sprintf("waiting for %s: %v", what, p.health.Err)
	}
	return "waiting for " + what
}

// etcdOf counts an etcd as up that only has no configuration yet.
func etcdOf(h lease.Status, skipped uint64) control.Etcd {
	e := control.Etcd{
		Up: h.Connected || errors.Is(h.Err, lease.ErrNoConfig), Since: h.Since,
		Errors: h.Failures, LastErrorAt: h.LastErrAt, Skipped: skipped,
	}
	if h.LastErr != nil {
		e.LastError = h.LastErr.Error()
	}
	return e
}

func watchOf(h lease.Status) control.Watch {
	return control.Watch{Alive: !h.Watched.IsZero(), Since: h.Watched, Heard: h.Heard, AsOf: h.AsOf, Stored: h.Stored}
}

func leaseOf(h lease.Status) *control.Lease {
	if !h.Lease.Subnet.IsValid() {
		return nil
	}
	return &control.Lease{Subnet: h.Lease.Subnet, SubnetV6: h.Lease.IPv6Subnet, Renewed: h.Renewed, Expires: h.Lease.Expires, Reserved: h.Lease.Permanent}
}

func modelOf(c *lease.Config) string {
	if c.Backend.Type == lease.TypeHostGW {
		return lease.TypeHostGW
	}
	switch directMode(c.Backend) {
	case tunnel.DirectSocket:
		return "vxlan, direct by socket"
	case tunnel.DirectRoute:
		return "vxlan, direct by route"
	}
	return "vxlan"
}

// peerOf tells of a peer and its path; otherwise is what a path is that isn't
// direct.
func peerOf(p tunnel.Peer, path tunnel.Path, otherwise string) control.Peer {
	out := control.Peer{Subnet: p.Subnet, PublicIP: p.Underlay, Path: otherwise, Link: path.Link, Reason: path.Reason, Since: path.Since}
	if p.MAC != (encap.MAC{}) {
		out.MAC = p.MAC.String()
	}
	if path.Direct {
		out.Path = control.PathDirect
	}
	if path.MAC != (encap.MAC{}) {
		out.NextMAC = path.MAC.String()
	}
	return out
}

// trafficOf is what a router has counted.
func trafficOf(s tunnel.Stats) *control.Traffic {
	t := &control.Traffic{
		Sent:     control.Direction{Packets: s.TxPackets, Bytes: s.TxBytes, Datagrams: s.TxDatagrams, Messages: s.TxMessages, Batches: s.TxBatches},
		Received: control.Direction{Packets: s.RxPackets, Bytes: s.RxBytes, Datagrams: s.RxDatagrams, Messages: s.RxMessages, Batches: s.RxBatches},
		Direct:   s.TxDirect, Fallbacks: s.Fallbacks, Answers: s.Answers,
		Drops: map[string]uint64{}, Offloads: map[string]bool{},
	}
	for _, d := range tunnel.DropReasons() {
		t.Drops[d.String()] = s.Drop(d)
	}
	for bit := tunnel.OffloadTSO; bit <= tunnel.OffloadUDP; bit <<= 1 {
		t.Offloads[bit.String()] = s.Offloads.Has(bit)
	}
	return t
}
