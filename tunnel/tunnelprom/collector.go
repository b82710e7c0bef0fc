// Package tunnelprom gives what a [tunnel.Router] counts to Prometheus. A scrape
// reads the router's statistics; nothing is counted for its sake.
//
// Programs that don't import this package don't link Prometheus' client.
package tunnelprom

import (
	"github.com/prometheus/client_golang/prometheus"

	"uvxlan/tunnel"
	"uvxlan/tunnel/offload"
)

// Source is a router, or what stands for one.
type Source interface {
	// Stats is called by every scrape, from any goroutine.
	Stats() tunnel.Stats
}

var _ Source = (*tunnel.Router)(nil)

// Collector is a router's statistics as metrics, uvxlan_*. They are those that
// the daemon has.
type Collector struct {
	source Source
	descs  *descs
}

var _ prometheus.Collector = (*Collector)(nil)

// New returns a collector of what source counts, each of its metrics with the
// given labels. Collectors of several routers can be registered with one
// registry when their labels have the same names and differ in a value. After
// Close a router keeps its last counts: unregister the collector then.
func New(source Source, labels prometheus.Labels) *Collector {
	return &Collector{source, describe(labels)}
}

// descs are the metrics.
type descs struct {
	peers                                          *prometheus.Desc
	packets, bytes, datagrams, messages, batches   *prometheus.Desc
	directPackets, fallbacks, answers, drops, ways *prometheus.Desc
	fastPackets, fastBytes                         *prometheus.Desc
}

func describe(constant prometheus.Labels) *descs {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("uvxlan_"+name, help, labels, constant)
	}
	return &descs{
		peers:         desc("peers", "Other hosts' subnets."),
		packets:       desc("packets_total", "IP packets that passed the device, a superpacket as one; tx is from the containers.", "direction"),
		bytes:         desc("bytes_total", "Bytes of those packets.", "direction"),
		datagrams:     desc("datagrams_total", "VXLAN frames on the wire.", "direction"),
		messages:      desc("messages_total", "Messages to or from the sockets, each of one or more frames.", "direction"),
		batches:       desc("batches_total", "Rounds in which a worker moved something.", "direction"),
		directPackets: desc("direct_packets_total", "Packets sent without VXLAN to hosts on the same Ethernet."),
		fallbacks:     desc("offload_fallbacks_total", "Superpackets that the kernel refused and that were passed on one by one."),
		answers:       desc("answers_total", "ARP replies and neighbour advertisements to peers, ICMP errors to containers."),
		drops:         desc("drops_total", "Dropped packets.", "reason"),
		fastPackets:   desc("fastpath_packets_total", "IP packets that the fast path has carried past the workers, a superpacket as one; uvxlan_packets_total has them, too.", "direction"),
		fastBytes:     desc("fastpath_bytes_total", "Bytes of those packets; uvxlan_bytes_total has them, too.", "direction"),
		ways:          desc("offload_enabled", "Whether a way to move many packets at once is in use.", "offload"),
	}
}

// Describe implements [prometheus.Collector].
func (c *Collector) Describe(to chan<- *prometheus.Desc) {
	d := c.descs
	for _, d := range []*prometheus.Desc{
		d.peers, d.packets, d.bytes, d.datagrams, d.messages, d.batches, d.directPackets, d.fallbacks, d.answers, d.drops, d.ways,
		d.fastPackets, d.fastBytes,
	} {
		to <- d
	}
}

// Collect implements [prometheus.Collector].
func (c *Collector) Collect(to chan<- prometheus.Metric) {
	s, d, e := c.source.Stats(), c.descs, emitter{to}
	e.gauge(d.peers, float64(s.Peers))
	e.both(d.packets, s.TxPackets, s.RxPackets)
	e.both(d.bytes, s.TxBytes, s.RxBytes)
	e.both(d.datagrams, s.TxDatagrams, s.RxDatagrams)
	e.both(d.messages, s.TxMessages, s.RxMessages)
	e.both(d.batches, s.TxBatches, s.RxBatches)
	e.counter(d.directPackets, s.TxDirect)
	e.counter(d.fallbacks, s.Fallbacks)
	e.counter(d.answers, s.Answers)
	e.both(d.fastPackets, s.FastPath.TxPackets, s.FastPath.RxPackets)
	e.both(d.fastBytes, s.FastPath.TxBytes, s.FastPath.RxBytes)
	for _, reason := range tunnel.DropReasons() {
		e.counter(d.drops, s.Drop(reason), reason.String())
	}
	for way := offload.Set(1); offload.All.Has(way); way <<= 1 {
		on := 0.0
		if s.Offloads.Has(way) {
			on = 1
		}
		e.gauge(d.ways, on, way.String())
	}
}

// emitter passes values on.
type emitter struct{ to chan<- prometheus.Metric }

func (e emitter) gauge(d *prometheus.Desc, v float64, labels ...string) {
	e.to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func (e emitter) counter(d *prometheus.Desc, v uint64, labels ...string) {
	e.to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
}

func (e emitter) both(d *prometheus.Desc, sent, received uint64) {
	e.counter(d, sent, "tx")
	e.counter(d, received, "rx")
}
