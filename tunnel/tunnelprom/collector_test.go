package tunnelprom_test

import (
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"uvxlan/tunnel"
	"uvxlan/tunnel/offload"
	"uvxlan/tunnel/tunnelprom"
)

// counted stands for a router that has counted.
type counted tunnel.Stats

func (c counted) Stats() tunnel.Stats { return tunnel.Stats(c) }

func example() counted {
	c := counted{
		Peers: 2, Offloads: offload.TSO | offload.UDP,
		TxDatagrams: 20, RxDatagrams: 21, TxBytes: 1000, RxBytes: 1001, TxPackets: 10, RxPackets: 11,
		TxMessages: 5, RxMessages: 6, TxBatches: 4, RxBatches: 3, TxDirect: 8, Fallbacks: 9, Answers: 12,
		FastPath: tunnel.FastPathStats{TxPackets: 40, RxPackets: 41, TxBytes: 4000, RxBytes: 4001},
	}
	c.Drops[tunnel.DropNoRoute] = 3
	return c
}

func TestCollector(t *testing.T) {
	text := []string{
		"# HELP uvxlan_peers Other hosts' subnets.", "# TYPE uvxlan_peers gauge", `uvxlan_peers{network="a"} 2`,
		"# HELP uvxlan_packets_total IP packets that passed the device, a superpacket as one; tx is from the containers.", "# TYPE uvxlan_packets_total counter",
		`uvxlan_packets_total{direction="rx",network="a"} 11`, `uvxlan_packets_total{direction="tx",network="a"} 10`,
		"# HELP uvxlan_bytes_total Bytes of those packets.", "# TYPE uvxlan_bytes_total counter",
		`uvxlan_bytes_total{direction="rx",network="a"} 1001`, `uvxlan_bytes_total{direction="tx",network="a"} 1000`,
		"# HELP uvxlan_datagrams_total VXLAN frames on the wire.", "# TYPE uvxlan_datagrams_total counter",
		`uvxlan_datagrams_total{direction="rx",network="a"} 21`, `uvxlan_datagrams_total{direction="tx",network="a"} 20`,
		"# HELP uvxlan_messages_total Messages to or from the sockets, each of one or more frames.", "# TYPE uvxlan_messages_total counter",
		`uvxlan_messages_total{direction="rx",network="a"} 6`, `uvxlan_messages_total{direction="tx",network="a"} 5`,
		"# HELP uvxlan_batches_total Rounds in which a worker moved something.", "# TYPE uvxlan_batches_total counter",
		`uvxlan_batches_total{direction="rx",network="a"} 3`, `uvxlan_batches_total{direction="tx",network="a"} 4`,
		"# HELP uvxlan_direct_packets_total Packets sent without VXLAN to hosts on the same Ethernet.", "# TYPE uvxlan_direct_packets_total counter",
		`uvxlan_direct_packets_total{network="a"} 8`,
		"# HELP uvxlan_offload_fallbacks_total Superpackets that the kernel refused and that were passed on one by one.", "# TYPE uvxlan_offload_fallbacks_total counter",
		`uvxlan_offload_fallbacks_total{network="a"} 9`,
		"# HELP uvxlan_answers_total ARP replies and neighbour advertisements to peers, ICMP errors to containers.", "# TYPE uvxlan_answers_total counter",
		`uvxlan_answers_total{network="a"} 12`,
		"# HELP uvxlan_fastpath_packets_total IP packets that the fast path has carried past the workers, a superpacket as one; uvxlan_packets_total has them, too.", "# TYPE uvxlan_fastpath_packets_total counter",
		`uvxlan_fastpath_packets_total{direction="rx",network="a"} 41`, `uvxlan_fastpath_packets_total{direction="tx",network="a"} 40`,
		"# HELP uvxlan_fastpath_bytes_total Bytes of those packets; uvxlan_bytes_total has them, too.", "# TYPE uvxlan_fastpath_bytes_total counter",
		`uvxlan_fastpath_bytes_total{direction="rx",network="a"} 4001`, `uvxlan_fastpath_bytes_total{direction="tx",network="a"} 4000`,
		"# HELP uvxlan_drops_total Dropped packets.", "# TYPE uvxlan_drops_total counter",
		"# HELP uvxlan_offload_enabled Whether a way to move many packets at once is in use.", "# TYPE uvxlan_offload_enabled gauge",
	}
	for _, d := range tunnel.DropReasons() {
		n := 0
		if d == tunnel.DropNoRoute {
			n = 3
		}
		text = append(text, `uvxlan_drops_total{network="a",reason="`+d.String()+`"} `+strconv.Itoa(n))
	}
	for way, on := range map[string]string{"tso": "1", "uso": "0", "gso": "0", "gro": "0", "tcp": "0", "udp": "1"} {
		text = append(text, `uvxlan_offload_enabled{network="a",offload="`+way+`"} `+on)
	}
	c := tunnelprom.New(example(), prometheus.Labels{"network": "a"})
	if err := testutil.CollectAndCompare(c, strings.NewReader(strings.Join(text, "\n")+"\n")); err != nil {
		t.Error(err)
	}
	problems, err := testutil.CollectAndLint(c)
	if err != nil || len(problems) > 0 {
		t.Error(problems, err)
	}
}

// One registry takes any number of routers that their labels tell apart.
func TestCollectorsOfManyRouters(t *testing.T) {
	r := prometheus.NewPedanticRegistry()
	for i := range 3 {
		c := example()
		c.Peers = i
		if err := r.Register(tunnelprom.New(c, prometheus.Labels{"network": strconv.Itoa(i)})); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Register(tunnelprom.New(example(), prometheus.Labels{"network": "2"})); err == nil {
		t.Error("two routers of one name were taken")
	}
	if err := testutil.GatherAndCompare(r, strings.NewReader(`
# HELP uvxlan_peers Other hosts' subnets.
# TYPE uvxlan_peers gauge
uvxlan_peers{network="0"} 0
uvxlan_peers{network="1"} 1
uvxlan_peers{network="2"} 2
`), "uvxlan_peers"); err != nil {
		t.Error(err)
	}
}
