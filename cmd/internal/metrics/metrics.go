// Package metrics gives a daemon's state to Prometheus. A scrape reads what the
// daemon counts anyway; nothing is counted for its sake.
package metrics

import (
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"uvxlan/cmd/internal/control"
	"uvxlan/tunnel"
	"uvxlan/tunnel/tunnelprom"
)

// Source says how a daemon is and what its router has counted. Its methods may be
// called at any time, from any goroutine.
type Source interface {
	control.Source
	// Stats is the router's; ok is false while there is none.
	Stats() (s tunnel.Stats, ok bool)
}

// MaxPeers bounds the series of single peers: with more of them, all uvxlan_peer_*
// are left away, and uvxlan_peers_by_path alone tells of their paths. To leave only
// some away would show a random few.
const MaxPeers = 1000

// Handler answers scrapes with the state of s, with what logLost says of lines of
// the log, and with the Go runtime's and the process's own metrics.
func Handler(s Source, logLost func() uint64) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "uvxlan_log_lines_dropped_total", Help: "Lines of the log that its reader was too slow for.",
	}, func() float64 { return float64(logLost()) }))
	r.MustRegister(New(s), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}

// Collector is a daemon's state as metrics. What isn't known at the moment,
// such as the age of a watch that is down, has no value then.
type Collector struct{ source Source }

// New returns a collector of the state of s.
func New(s Source) *Collector { return &Collector{s} }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("uvxlan_"+name, help, labels, nil)
}

// descs are the metrics; values gives each its value.
type descs struct {
	info, ready, start                           *prometheus.Desc
	peers, byPath, direct                        *prometheus.Desc
	peerPackets, peerBytes, peerSeen             *prometheus.Desc
	peerHeard, peerPathMTU, peerAnswers, peerRTT *prometheus.Desc
	peerProbes, peerProbesAnswered, peerFullLost *prometheus.Desc
	silent                                       *prometheus.Desc
	expiry, renewed                              *prometheus.Desc
	etcd, kubernetes                             registryDescs
	watchAge, heardAt                            *prometheus.Desc
	stale, asOf                                  *prometheus.Desc
	hostFault                                    *prometheus.Desc
	fastAttached, fastLeft                       *prometheus.Desc
}

// registryDescs are those of the way to where the leases are.
type registryDescs struct{ up, errors, skipped *prometheus.Desc }

func describe() *descs {
	return &descs{
		info:  desc("build_info", "Always 1; the version and the model are in the labels.", "version", "model"),
		ready: desc("ready", "Whether the host's containers are connected, as /readyz tells."),
		start: desc("start_timestamp_seconds", "When the daemon started, in Unix time."),

		peers:  desc("peers", "Other hosts' subnets."),
		byPath: desc("peers_by_path", "Other hosts' subnets by the way to them.", "path"),
		direct: desc("peer_direct", "Whether packets to a peer go without VXLAN, and by which link; absent with more than 1000 peers.", "subnet", "link"),

		peerPackets: desc("peer_packets_total", "IP packets to and from a peer by way of the device, each segment of a superpacket one; absent with more than 1000 peers.", "subnet", "direction"),
		peerBytes:   desc("peer_bytes_total", "Bytes of those packets.", "subnet", "direction"),
		peerSeen:    desc("peer_last_seen_timestamp_seconds", "When the last of those packets came from the peer, in Unix time.", "subnet"),

		peerHeard:          desc("peer_last_heard_timestamp_seconds", "When the peer's last packet or answer to a probe came, in Unix time; absent while none has, and with more than 1000 peers.", "subnet"),
		peerPathMTU:        desc("peer_path_mtu_bytes", "The longest packet that travels to the peer in one piece by VXLAN; absent where it doesn't go by VXLAN.", "subnet"),
		peerAnswers:        desc("peer_answering", "Whether the peer answers probes: 0 after three in a row without an answer; absent while it wasn't asked or can't be.", "subnet"),
		peerRTT:            desc("peer_rtt_seconds", "The last round-trip time to the peer; absent unless it answers.", "subnet"),
		peerProbes:         desc("peer_probes_sent_total", "Probes that were sent to the peer and whose time is over.", "subnet"),
		peerProbesAnswered: desc("peer_probes_answered_total", "Probes that the peer has answered.", "subnet"),
		peerFullLost:       desc("peer_long_packets_lost", "Whether packets as long as the path's MTU get lost, to the peer or back, while short ones pass; absent while that wasn't tried.", "subnet"),
		silent:             desc("peers_silent", "Peers that don't answer probes; absent while none is asked."),

		expiry:  desc("lease_expiry_timestamp_seconds", "When the host's lease ends unless it is renewed, in Unix time."),
		renewed: desc("lease_renewed_timestamp_seconds", "When the host's lease was last taken or renewed, in Unix time."),

		etcd: registryDescs{
			up:      desc("etcd_up", "Whether etcd answered last time; absent where the leases are in Kubernetes."),
			errors:  desc("etcd_errors_total", "Attempts to reach etcd that failed."),
			skipped: desc("etcd_skipped_entries_total", "Entries among the leases in etcd that are none."),
		},
		kubernetes: registryDescs{
			up:      desc("kubernetes_up", "Whether the API server answered last time; absent where the leases are in etcd."),
			errors:  desc("kubernetes_errors_total", "Attempts to reach the API server that failed."),
			skipped: desc("kubernetes_skipped_nodes_total", "Nodes that say that they have a lease and have none that can be read."),
		},
		watchAge:     desc("watch_age_seconds", "How long the leases have been watched without a gap; absent while they are not."),
		stale:        desc("peers_stale", "Whether the peers are those of leases that aren't watched at the moment."),
		asOf:         desc("peers_as_of_timestamp_seconds", "The moment whose leases the peers are, in Unix time; absent while leases are watched."),
		hostFault:    desc("host_fault", "Whether a part of the host isn't as it should be; uvxlan status says what is wrong.", "part"),
		fastAttached: desc("fastpath_attached", "Whether packets may be carried in the kernel, past the workers; absent with host-gw."),
		fastLeft:     desc("fastpath_left_total", "Packets that the fast path has left to the workers.", "direction", "reason"),
		heardAt:      desc("watch_last_event_timestamp_seconds", "When a lease was last heard of, in Unix time."),
	}
}

// all lists the metrics.
func (d *descs) all() []*prometheus.Desc {
	return []*prometheus.Desc{
		d.info, d.ready, d.start, d.peers, d.byPath, d.direct, d.peerPackets, d.peerBytes, d.peerSeen,
		d.peerHeard, d.peerPathMTU, d.peerAnswers, d.peerRTT, d.peerProbes, d.peerProbesAnswered, d.peerFullLost, d.silent, d.expiry, d.renewed,
		d.etcd.up, d.etcd.errors, d.etcd.skipped, d.kubernetes.up, d.kubernetes.errors, d.kubernetes.skipped, d.watchAge, d.heardAt, d.stale, d.asOf, d.hostFault,
		d.fastAttached, d.fastLeft,
	}
}

// Describe implements [prometheus.Collector].
func (*Collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range describe().all() {
		to <- d
	}
	counted{}.collector().Describe(to)
}

// Collect implements [prometheus.Collector].
func (c *Collector) Collect(to chan<- prometheus.Metric) {
	s, e := c.source.Status(), emitter{to}
	d := describe()
	e.gauge(d.info, 1, s.Version, s.Model)
	e.gauge(d.ready, number(s.Ready))
	e.moment(d.start, s.Started)
	for _, part := range s.HostParts {
		faulty := slices.ContainsFunc(s.Faults, func(f control.Fault) bool { return f.Part == part })
		e.gauge(d.hostFault, number(faulty), part)
	}
	if stats, ok := c.source.Stats(); ok {
		counted{stats}.collector().Collect(to)
	} else {
		e.gauge(d.peers, float64(s.Peers))
	}
	e.peers(d, c.source.Peers())
	if s.NotProbed == "" {
		e.gauge(d.silent, float64(s.Silent))
	}
	e.fastPath(d, s.FastPath)
	if s.Lease != nil {
		e.moment(d.expiry, s.Lease.Expires)
		e.moment(d.renewed, s.Lease.Renewed)
	}
	_, way := s.Leases()
	of := d.etcd
	if s.Kubernetes != nil {
		of = d.kubernetes
	}
	e.gauge(of.up, number(way.Up))
	e.counter(of.errors, way.Errors)
	e.counter(of.skipped, way.Skipped)
	if s.Watch.Alive {
		e.gauge(d.watchAge, s.Now.Sub(s.Watch.Since).Seconds())
	}
	e.moment(d.heardAt, s.Watch.Heard)
	e.gauge(d.stale, number(!s.Watch.AsOf.IsZero()))
	e.moment(d.asOf, s.Watch.AsOf)
}

// counted is what a router has counted at a moment: the daemon's has another in
// its place when the device was made again.
type counted struct{ stats tunnel.Stats }

// Stats implements [tunnelprom.Source].
func (c counted) Stats() tunnel.Stats { return c.stats }

func (c counted) collector() *tunnelprom.Collector { return tunnelprom.New(c, nil) }

// emitter passes values on.
type emitter struct{ to chan<- prometheus.Metric }

func (e emitter) gauge(d *prometheus.Desc, v float64, labels ...string) {
	e.to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func (e emitter) counter(d *prometheus.Desc, v uint64, labels ...string) {
	e.to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
}

// moment gives a time, nothing for the zero time.
func (e emitter) moment(d *prometheus.Desc, t time.Time, labels ...string) {
	if !t.IsZero() {
		e.gauge(d, float64(t.UnixMilli())/1000, labels...)
	}
}

func (e emitter) peers(d *descs, peers []control.Peer) {
	count := map[string]int{control.PathVXLAN: 0, control.PathDirect: 0, control.PathForeign: 0, control.PathNone: 0}
	for _, p := range peers {
		count[p.Path]++
	}
	for path, n := range count {
		e.gauge(d.byPath, float64(n), path)
	}
	if len(peers) > MaxPeers {
		return
	}
	for _, p := range peers {
		subnet := p.Subnet.String()
		e.gauge(d.direct, number(p.Path == control.PathDirect), subnet, p.Link)
		if t := p.Traffic; t != nil {
			e.traffic(d, subnet, "tx", t.Sent)
			e.traffic(d, subnet, "rx", t.Received)
			e.moment(d.peerSeen, t.LastSeen, subnet)
		}
		e.moment(d.peerHeard, p.LastHeard, subnet)
		if p.PathMTU > 0 {
			e.gauge(d.peerPathMTU, float64(p.PathMTU), subnet)
		}
		if p.Health != nil {
			e.health(d, subnet, p.Health)
		}
	}
}

func (e emitter) health(d *descs, subnet string, h *control.Health) {
	e.counter(d.peerProbes, h.Sent, subnet)
	e.counter(d.peerProbesAnswered, h.Answered, subnet)
	if h.State != control.HealthUnknown {
		e.gauge(d.peerAnswers, number(h.State == control.HealthAnswers), subnet)
	}
	if h.State == control.HealthAnswers {
		e.gauge(d.peerRTT, h.RTTSeconds, subnet)
	}
	if h.FullSize != "" {
		e.gauge(d.peerFullLost, number(h.FullSize == control.FullSizeLost), subnet)
	}
}

func (e emitter) fastPath(d *descs, f *control.FastPath) {
	if f == nil {
		return
	}
	e.gauge(d.fastAttached, number(f.On))
	for direction, n := range map[string]control.FastDirection{"tx": f.Sent, "rx": f.Received} {
		for reason, left := range n.Left {
			e.counter(d.fastLeft, left, direction, reason)
		}
	}
}

func (e emitter) traffic(d *descs, subnet, direction string, n control.Count) {
	e.counter(d.peerPackets, n.Packets, subnet, direction)
	e.counter(d.peerBytes, n.Bytes, subnet, direction)
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
