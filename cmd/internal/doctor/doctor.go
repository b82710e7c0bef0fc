package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/firewall"
	"uvxlan/cmd/internal/probe"
	"uvxlan/encap"
	"uvxlan/lease"
	"uvxlan/tunnel"
	"uvxlan/tunnel/device"
)

// atOnce is how many peers are looked at at the same time.
const atOnce = 128

// Options say what the doctor looks at.
type Options struct {
	// Socket is the path of the daemon's control socket.
	Socket string
	// Progress is told in words what is being done; nil if nobody wants to know.
	Progress func(string)
}

func (o *Options) tell(format string, args ...any) {
	if o.Progress != nil {
		o.Progress(fmt.Sprintf(format, args...))
	}
}

// Run looks at this host, in whose network namespace it must be called, and at all
// its peers. It needs root. Its error says why it could look at nothing at all.
func Run(ctx context.Context, o Options) (*Report, error) {
	s, err := begin(ctx, o)
	if err != nil {
		return nil, err
	}
	defer s.close()
	s.examineAll(ctx)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.finish(ctx)
	return s.report, nil
}

// session is one run. One goroutine uses it.
type session struct {
	opts   Options
	client *control.Client
	report *Report

	status   control.Status
	leases   []control.LeaseRow
	peers    []*evidence
	x        *examiner // nil if nothing can be sent
	before   counters
	rules    map[bool][]firewall.Obstacle // by whether they are of IPv6
	rulesErr error                        // why they couldn't all be read
}

// begin asks the daemon, and opens what packets are sent and seen by.
func begin(ctx context.Context, o Options) (*session, error) {
	s := &session{opts: o, client: control.NewClient(o.Socket), report: &Report{Started: time.Now(), Findings: []Finding{}, Peers: []PeerReport{}}}
	o.tell("asking the daemon")
	var err error
	s.status, err = s.client.Status(ctx)
	switch {
	case errors.Is(err, control.ErrNotRunning):
		s.report.Daemon = "not running"
		s.find(notRunning(err, device.Check())...)
		return s, nil
	case err != nil:
		return nil, err
	}
	s.report.Daemon = "ready"
	if !s.status.Ready {
		s.report.Daemon = "not ready"
	}
	s.find(judgeStatus(s.status)...)
	if l := s.status.Lease; l != nil {
		s.report.Host = &Host{l.Subnet, s.status.PublicIP}
	}
	s.askLeases(ctx)
	peers, err := s.client.Peers(ctx)
	if err != nil {
		return nil, err
	}
	if s.before, err = readCounters(); err != nil {
		return nil, err
	}
	for i, p := range peers {
		e := &evidence{Host: Host{p.Subnet, p.PublicIP}, peer: p, index: uint16(i)}
		if at := slices.IndexFunc(s.leases, func(r control.LeaseRow) bool { return r.Subnet == p.Subnet || r.IPv6Subnet == p.Subnet }); at >= 0 {
			e.lease = &s.leases[at]
		}
		s.peers = append(s.peers, e)
	}
	if s.x, err = s.open(); err != nil {
		s.x.close()
		s.x = nil
		return nil, fmt.Errorf("look at packets: %w", err)
	}
	s.readRules()
	return s, nil
}

func (s *session) find(f ...Finding) { s.report.Findings = append(s.report.Findings, f...) }

func (s *session) close() {
	if s.x != nil {
		s.x.close()
	}
}

// leasesPatience is how long the leases are waited for: packets tell more.
const leasesPatience = 3 * time.Second

// askLeases asks for the leases' ends and for those that are no peers. Without etcd
// the daemon can't tell; then its own notes say so.
func (s *session) askLeases(ctx context.Context) {
	if _, way := s.status.Leases(); !way.Up {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, leasesPatience)
	defer cancel()
	rows, err := s.client.Leases(ctx)
	if err != nil {
		return
	}
	s.leases = rows
}

// judgeLeases returns the subnets of leases that share an address or a MAC.
func (s *session) judgeLeases() (shared map[netip.Prefix]bool) {
	silent := func(subnet netip.Prefix) bool {
		return slices.ContainsFunc(s.peers, func(p *evidence) bool { return p.Subnet == subnet && p.overlay.dead() })
	}
	found, shared := judgeLeases(s.leases, silent)
	s.find(found...)
	return shared
}

// tunnel is what this host's frames to others look like to its firewall.
func (s *session) tunnel(local netip.Addr, remotes ...netip.Addr) firewall.Tunnel {
	t := firewall.Tunnel{Local: local, Remotes: remotes, Port: s.status.Port}
	t.Link.Name, t.Link.Index = s.status.Interface, indexOf(s.status.Interface)
	return t
}

// rulesFor are the rules in the way of the frames of one peer. Where all peers' are the
// same, or they can't be read again, they are those.
func (s *session) rulesFor(remote netip.Addr) []firewall.Obstacle {
	all := s.rules[remote.Is6()]
	local := s.status.Local
	if remote.Is6() {
		local = s.status.LocalV6
	}
	if !local.IsValid() || !slices.ContainsFunc(all, func(r firewall.Obstacle) bool { return !r.Sure }) {
		return all
	}
	own, err := firewall.Obstacles(s.tunnel(local, remote))
	if err != nil {
		return all
	}
	return own
}

// readRules looks for rules of the host's own that are in the way of frames.
func (s *session) readRules() {
	s.rules = map[bool][]firewall.Obstacle{}
	for _, local := range []netip.Addr{s.status.Local, s.status.LocalV6} {
		if s.status.Port == 0 || !local.IsValid() {
			continue
		}
		var remotes []netip.Addr
		for _, p := range s.peers {
			if p.PublicIP.Is4() == local.Is4() && !slices.Contains(remotes, p.PublicIP) {
				remotes = append(remotes, p.PublicIP)
			}
		}
		rules, err := firewall.Obstacles(s.tunnel(local, remotes...))
		s.rules[local.Is6()], s.rulesErr = rules, errors.Join(s.rulesErr, err)
	}
}

// harm is how much it does that frames are changed: little where all peers answer, since
// kernels take frames from any address.
func (s *session) harm() Severity {
	harm := Fault
	for _, p := range s.peers {
		switch {
		case p.peer.Unclaimed:
		case p.overlay.dead():
			return Fault
		case p.overlay.Received > 0:
			harm = Warning
		}
	}
	return harm
}

// vxlanPorts are those that VXLAN has: IANA's, which is this project's default too,
// and the kernel's and flannel's.
var vxlanPorts = []uint16{lease.DefaultPort, 8472}

// open opens sockets. Those to an address that isn't there are left out: the device
// may be down. Its result is to be closed even with an error.
func (s *session) open() (x *examiner, err error) {
	st := s.status
	x = &examiner{
		status: st, port: st.Port, local: st.Local, ids: uint16(rand.Uint32()) &^ 0xf,
		overlay: map[bool]*probe.Prober{}, beside: map[bool]*probe.Prober{},
		gso: st.Traffic != nil && st.Traffic.Offloads["gso"],
	}
	if !x.local.IsValid() {
		x.local = st.PublicIP // of host-gw
	}
	if i, err := net.InterfaceByName(st.Interface); err == nil {
		x.linkMTU = i.MTU
	}
	ports := []uint16{x.port}
	for _, p := range vxlanPorts {
		if p != x.port {
			x.others, ports = append(x.others, p), append(ports, p)
		}
	}
	if x.tap, err = openTap(ports...); err != nil {
		return x, err
	}
	for _, a := range []netip.Addr{x.local, st.LocalV6} {
		if a.IsValid() {
			if p, err := probe.Open(probe.Config{Source: a}); err == nil {
				x.beside[a.Is6()] = p
			}
		}
	}
	for _, r := range s.leases {
		if st.Lease != nil && r.Subnet == st.Lease.Subnet {
			x.mac, _ = encap.ParseMAC(r.MAC) // zero where it isn't known
		}
	}
	x.device = indexOf(st.Device)
	if x.device == 0 || st.Lease == nil {
		return x, nil
	}
	vni, _ := strconv.ParseUint(st.Device[strings.LastIndexByte(st.Device, '.')+1:], 10, 24) // the daemon names it so
	x.vni = encap.VNI(vni)
	for _, n := range []netip.Prefix{st.Lease.Subnet, st.Lease.SubnetV6} {
		if !n.IsValid() {
			continue
		}
		if p, err := probe.Open(probe.Config{Source: n.Addr()}); err == nil {
			x.overlay[n.Addr().Is6()] = p
		}
	}
	if x.overlay[false] == nil {
		return x, nil
	}
	x.vtep = st.Lease.Subnet.Addr()
	x.sender, err = openSender(x.local, x.local, x.vtep)
	return x, err
}

// indexOf is an interface's number, 0 if it isn't there.
func indexOf(name string) int {
	if i, err := net.InterfaceByName(name); err == nil {
		return i.Index
	}
	return 0
}

func (x *examiner) close() {
	if x.tap != nil {
		_ = x.tap.close() // what was seen is seen
	}
	if x.sender != nil {
		_ = x.sender.close()
	}
	for _, set := range []map[bool]*probe.Prober{x.overlay, x.beside} {
		for _, p := range set {
			_ = p.Close()
		}
	}
}

// examineAll looks at the peers.
func (s *session) examineAll(ctx context.Context) {
	if s.x == nil {
		return
	}
	var done atomic.Int64
	var all sync.WaitGroup
	room := make(chan struct{}, atOnce)
	s.opts.tell("probing %d peers", len(s.peers))
	for _, p := range s.peers {
		room <- struct{}{}
		all.Go(func() {
			s.x.examine(ctx, p)
			<-room
			s.opts.tell("probing %d peers: %d done", len(s.peers), done.Add(1))
		})
	}
	all.Wait()
}

// finish judges what was found out.
func (s *session) finish(ctx context.Context) {
	if s.x != nil {
		s.judge(ctx)
	}
	s.report.Findings = arrange(s.report.Findings)
	s.report.Took = time.Since(s.report.Started)
}

func (s *session) judge(ctx context.Context) {
	scene := s.scene(ctx)
	s.find(judgeRules(slices.Concat(s.rules[false], s.rules[true]), s.rulesErr, s.harm())...)
	scene.shared = s.judgeLeases()
	if scene.peers != nil { // whose lease went meanwhile is no peer
		s.peers = slices.DeleteFunc(s.peers, func(p *evidence) bool {
			_, still := scene.peers[p.Subnet]
			return !still
		})
	}
	blamed, damaged := map[netip.Addr]bool{}, false
	s.find(scene.judgeSources(s.harm())...)
	var found []Finding
	for _, p := range s.peers {
		if p.overlay.MTU > 0 {
			p.overlay.Back = scene.back(p)
		}
		s.report.Peers = append(s.report.Peers, PeerReport{
			Host: p.Host, Path: p.peer.Path, Overlay: p.overlay.Echoes, Underlay: p.underlay.Echoes, ClockOffset: p.offset,
		})
		of := scene.judge(p)
		for _, f := range of {
			damaged = damaged || f.Kind == "checksum-in"
			if f.Kind == "nat" {
				for _, f := range (&judgement{scene: scene, p: p}).ofPeer(nil) {
					blamed[f.src] = true
				}
			}
		}
		found = append(found, of...)
	}
	for _, p := range s.peers {
		if p.overlay.dead() && !s.explained(p, found) {
			j := judgement{scene: scene, p: p}
			j.blocked()
			found = append(found, j.found...)
		}
	}
	s.find(scene.judgeStrangers(blamed)...)
	s.find(scene.judgeChecksums(damaged)...)
	s.find(found...)
	slices.SortFunc(s.report.Peers, func(a, b PeerReport) int {
		return cmp.Or(a.Subnet.Addr().Compare(b.Subnet.Addr()), cmp.Compare(a.Subnet.Bits(), b.Subnet.Bits()))
	})
}

// explained tells whether a finding says why a peer doesn't answer: one of its own, or
// a fault of the whole host.
func (s *session) explained(p *evidence, more []Finding) bool {
	return slices.ContainsFunc(slices.Concat(s.report.Findings, more), func(f Finding) bool {
		return slices.Contains(f.Peers, p.Host) || len(f.Peers) == 0 && f.Severity == Fault
	}) || p.peer.Path == control.PathForeign
}

// scene reads once more what is counted.
func (s *session) scene(ctx context.Context) *scene {
	sc := &scene{x: s.x, rules: s.rules, rulesFor: s.rulesFor, known: map[netip.Addr]bool{s.x.local: true}, missed: s.x.tap.missed()}
	for _, p := range s.peers {
		sc.known[p.PublicIP] = true
	}
	for _, r := range s.leases {
		sc.known[r.PublicIP] = true
	}
	after, err := readCounters()
	sc.grown = func(name string) uint64 { return after.since(s.before, name) }
	if err != nil {
		sc.grown = func(string) uint64 { return 0 }
	}
	now, statusErr := s.client.Status(ctx)
	sc.drops = func(d tunnel.DropReason) uint64 {
		if statusErr != nil || now.Traffic == nil || s.status.Traffic == nil {
			return 0
		}
		was, is := s.status.Traffic.Drops[d.String()], now.Traffic.Drops[d.String()]
		return is - min(was, is)
	}
	peers, peersErr := s.client.Peers(ctx)
	if peersErr != nil {
		return sc // their counters aren't told
	}
	sc.peers = map[netip.Prefix]control.Peer{}
	for _, p := range peers {
		sc.peers[p.Subnet] = p
	}
	return sc
}

// Check tells whether this process may look at packets.
func Check() error {
	if os.Geteuid() == 0 {
		return nil
	}
	return fmt.Errorf("look at packets: %w", os.ErrPermission)
}
