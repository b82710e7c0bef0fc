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
	"uvxlan/cmd/internal/handover"
	"uvxlan/cmd/internal/health"
	"uvxlan/cmd/internal/host"
	"uvxlan/cmd/internal/leaseadmin"
	"uvxlan/cmd/internal/overlay"
	"uvxlan/cmd/internal/version"
	"uvxlan/lease"
	"uvxlan/tunnel"
	"uvxlan/tunnel/onlink"
)

// monitor says how the daemon is, from its first moment to its last.
type monitor struct {
	started time.Time     // immutable, as is kube
	kube    bool          // the leases are in Kubernetes
	isReady chan struct{} // closed when ready is set

	mu sync.Mutex // guards the rest, each of which is set once
	// what the daemon has so far
	endpoints *endpoints
	waiting   error // why there is no interface yet
	node      func() string
	ext       extiface.Interface
	leases    leaseadmin.Registry
	skipped   func() uint64
	manager   *lease.Manager
	config    *lease.Config
	network   backend
	keeper    *host.Keeper
	// peerHealth is there with network
	peerHealth *health.Monitor
	// how far it is
	ready    bool
	stopping bool
	leaving  bool // to another program, which goes on
}

var _ source = (*monitor)(nil)

func newMonitor() *monitor { return &monitor{started: time.Now(), isReady: make(chan struct{})} }

// open starts to tell how the daemon is, to whom the options say and to the
// service manager, until stop. It goes on where the daemon before has left it, and
// stop hands over to after; each may be nil. If leaving is set, the process goes on.
func (m *monitor) open(ctx context.Context, o Options, before *handover.State) (stop func(after *handover.State, leaving bool), err error) {
	m.kube = o.Kube != nil
	e, err := openEndpoints(ctx, o, m, before)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	context.AfterFunc(ctx, m.beStopping)
	n := notifier{log: o.Logger, source: m}
	m.set(func(m *monitor) { m.endpoints = e })
	var telling sync.WaitGroup
	telling.Go(func() {
		select {
		case <-m.isReady:
			e.answerAll()
		case <-ctx.Done():
		}
	})
	telling.Go(func() {
		n.run(ctx, m.isReady)
		if !m.isLeaving() {
			n.send("STOPPING=1")
		}
	})
	return func(after *handover.State, leaving bool) {
		m.set(func(m *monitor) { m.leaving = leaving })
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
	kube            bool
	node            string
	waiting         error
	ext             extiface.Interface
	skipped         uint64
	health          lease.Status
	config          *lease.Config
	network         backend
	peerHealth      *health.Monitor
	faults          []host.Finding
	hostParts       []string
	ready, stopping bool
}

func (m *monitor) parts() parts {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := parts{
		kube: m.kube, waiting: m.waiting, ext: m.ext, config: m.config, network: m.network, peerHealth: m.peerHealth,
		ready: m.ready, stopping: m.stopping,
	}
	if m.keeper != nil {
		p.faults, p.hostParts = m.keeper.Findings(), m.keeper.Parts()
	}
	if m.manager != nil {
		p.health = m.manager.Status()
	}
	if m.skipped != nil {
		p.skipped = m.skipped()
	}
	if m.node != nil {
		p.node = m.node()
	}
	return p
}

func (m *monitor) endpointsNow() *endpoints {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.endpoints
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
		Watch: watchOf(p.health), Lease: leaseOf(p.health, p.node),
	}
	if way := registryOf(p.health, p.skipped); p.kube {
		s.Kubernetes = &way
	} else {
		s.Etcd = way
	}
	if p.config != nil {
		s.Model, s.Network, s.NetworkV6 = modelOf(p.config), p.config.Network, p.config.IPv6Network
	}
	if p.network != nil {
		s.MTU = p.network.MTU()
		p.network.Describe(&s)
		s.Silent, s.NotProbed = p.peerHealth.Silent(), p.peerHealth.Off()
	}
	s.Faults, s.HostParts = faultsOf(p.faults), p.hostParts
	judge(&s, p)
	return s
}

// Peers implements [control.Source].
func (m *monitor) Peers() []control.Peer {
	p := m.parts()
	if p.network == nil {
		return nil
	}
	peers := p.network.Peers()
	p.peerHealth.Fill(peers)
	for i := range peers {
		peers[i].AsOf = p.health.AsOf
		peers[i].SetLastHeard()
	}
	return peers
}

// Stats implements [metrics.Source]; host-gw has no router.
func (m *monitor) Stats() (s tunnel.Stats, ok bool) {
	n, ok := m.parts().network.(interface{ Stats() tunnel.Stats })
	if !ok {
		return tunnel.Stats{}, false
	}
	return n.Stats(), true
}

// judge says whether the host's containers are connected. A registry that is away
// is no reason against it as long as the other hosts know our lease: packets
// flow, and an orchestrator that took every host out of service at once would
// make the outage its own. Once the lease has expired they don't.
func judge(s *control.Status, p parts) {
	switch {
	case p.stopping:
		s.Reasons = append(s.Reasons, "the daemon stops")
	case p.network == nil:
		s.Reasons = append(s.Reasons, waitingFor(p))
	case s.Lease == nil:
		s.Reasons = append(s.Reasons, "the host has no lease")
	case p.health.Unassigned != "":
		s.Reasons = append(s.Reasons, "the other hosts don't send here: "+p.health.Unassigned)
	case !s.Lease.Expires.IsZero() && !s.Now.Before(s.Lease.Expires):
		s.Reasons = append(s.Reasons, expired(s))
	}
	for _, f := range p.faults {
		if f.Stops {
			s.Reasons = append(s.Reasons, f.String())
		} else {
			s.Notes = append(s.Notes, f.String())
		}
	}
	if len(s.Reasons) == 0 && !p.ready {
		s.Reasons = append(s.Reasons, "the subnet file is not written yet")
	}
	s.Ready = len(s.Reasons) == 0
	if p.network == nil {
		return
	}
	if p.health.Conflict != "" {
		s.Notes = append(s.Notes, p.health.Conflict)
	}
	if p.health.ConfigChange != "" {
		s.Notes = append(s.Notes, p.health.ConfigChange)
	}
	name, way := s.Leases()
	if p.health.WriteErr != nil {
		s.Notes = append(s.Notes, name+" refuses to write: "+p.health.WriteErr.Error())
	}
	switch {
	case !way.Up && !s.Watch.AsOf.IsZero():
		s.Notes = append(s.Notes, name+" doesn't answer: packets flow by the leases "+s.AgeWords())
	case !way.Up:
		s.Notes = append(s.Notes, name+" doesn't answer")
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
	switch {
	case p.waiting != nil:
		return fmt.Sprintf("waiting for Kubernetes: %v", p.waiting)
	case p.config != nil:
		what = "the device and a lease"
	}
	name := "etcd"
	if p.kube {
		name = "Kubernetes"
	}
	switch h := p.health; {
	case h.Refused != "" && h.Err != nil:
		return fmt.Sprintf("%s: waiting for %s: %v", h.Refused, name, h.Err)
	case h.Err != nil:
		return fmt.Sprintf("waiting for %s: %v", what, h.Err)
	case h.WriteErr != nil:
		return fmt.Sprintf("waiting for %s: %v", what, h.WriteErr)
	}
	return "waiting for " + what
}

// faultsOf are the findings as the status tells them.
func faultsOf(findings []host.Finding) (faults []control.Fault) {
	for _, f := range findings {
		faults = append(faults, control.Fault{Part: f.Part, What: f.What, Remedy: f.Remedy, Stops: f.Stops, Since: f.Since})
	}
	return faults
}

// registryOf counts a registry as up that only has no configuration yet, or no subnet
// for this host.
func registryOf(h lease.Status, skipped uint64) control.Registry {
	e := control.Registry{
		Up: h.Connected || errors.Is(h.Err, lease.ErrNoConfig) || errors.Is(h.Err, lease.ErrUnassigned), Since: h.Since,
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

// leaseOf is that of the Node, if there are Nodes.
func leaseOf(h lease.Status, node string) *control.Lease {
	if !h.Lease.Subnet.IsValid() {
		return nil
	}
	return &control.Lease{Node: node, Subnet: h.Lease.Subnet, SubnetV6: h.Lease.IPv6Subnet, Renewed: h.Renewed, Expires: h.Lease.Expires, Reserved: h.Lease.Permanent && node == ""}
}

func modelOf(c *lease.Config) string {
	if c.Backend.Type == lease.TypeHostGW {
		return lease.TypeHostGW
	}
	switch overlay.DirectMode(c.Backend) {
	case onlink.Socket:
		return "vxlan, direct by socket"
	case onlink.Route:
		return "vxlan, direct by route"
	}
	return "vxlan"
}
