package metrics_test

import (
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/metrics"
	"uvxlan/tunnel"
	"uvxlan/tunnel/offload"
)

type source struct {
	status control.Status
	peers  []control.Peer
	stats  *tunnel.Stats
}

func (s source) Status() control.Status { return s.status }
func (s source) Peers() []control.Peer  { return s.peers }

func (s source) Stats() (tunnel.Stats, bool) {
	if s.stats == nil {
		return tunnel.Stats{}, false
	}
	return *s.stats, true
}

func scrape(t *testing.T, s metrics.Source) string {
	t.Helper()
	w := httptest.NewRecorder()
	metrics.Handler(s, func() uint64 { return 3 }).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("code %d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func expect(t *testing.T, text string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("no line %q", line)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

func peers(n int) []control.Peer {
	all := make([]control.Peer, n)
	for i := range all {
		all[i] = control.Peer{
			Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24), Path: control.PathVXLAN,
		}
	}
	return all
}

func full() source {
	now := time.Unix(1_800_000_000, 0)
	s := source{
		status: control.Status{
			Version: "v1", Model: "vxlan", Started: now.Add(-time.Hour), Now: now, Ready: true, Peers: 2,
			Lease:     &control.Lease{Renewed: now.Add(-time.Minute), Expires: now.Add(time.Hour)},
			Etcd:      control.Registry{Up: true, Errors: 7, Skipped: 2},
			HostParts: []string{"device", "forwarding"}, Faults: []control.Fault{{Part: "forwarding", What: "off", Stops: true}},
			// The fast path that is attached; the router counts those before it, too.
			FastPath: &control.FastPath{
				On: true, Sent: control.FastDirection{Packets: 4, Bytes: 400, Left: map[string]uint64{"syn": 4}},
				Received: control.FastDirection{Packets: 5, Bytes: 401, Left: map[string]uint64{"ecn": 0}},
			},
			Watch: control.Watch{Alive: true, Since: now.Add(-90 * time.Second), Heard: now.Add(-time.Second)},
		},
		peers: peers(2),
		stats: &tunnel.Stats{
			Peers: 2, Offloads: offload.TSO, TxDirect: 8, Fallbacks: 9, Answers: 12,
			FastPath:  tunnel.FastPathStats{TxPackets: 40, RxPackets: 41, TxBytes: 4000, RxBytes: 4001},
			TxPackets: 10, TxBytes: 1000, TxDatagrams: 20, TxMessages: 5, TxBatches: 4,
			RxPackets: 11, RxBytes: 1001, RxDatagrams: 21, RxMessages: 6, RxBatches: 3,
		},
	}
	s.stats.Drops[tunnel.DropNoRoute] = 3
	s.peers[0].Path, s.peers[0].Link = control.PathDirect, "eth0"
	s.peers[1].Traffic = &control.PeerTraffic{
		Sent: control.Count{Packets: 30, Bytes: 3000}, Received: control.Count{Packets: 31, Bytes: 3001}, LastSeen: now.Add(-2 * time.Second),
	}
	s.peers[1].PathMTU, s.peers[1].LastHeard = 1450, now.Add(-time.Second)
	s.peers[0].Health = &control.Health{State: control.HealthSilent, Sent: 9, Answered: 4}
	s.peers[1].Health = &control.Health{State: control.HealthAnswers, Sent: 12, Answered: 11, RTTSeconds: 0.002, FullSize: control.FullSizePasses}
	s.status.Silent = 1
	return s
}

func TestMetrics(t *testing.T) {
	expect(t, scrape(t, full()),
		`uvxlan_build_info{model="vxlan",version="v1"} 1`, "uvxlan_ready 1", "uvxlan_start_timestamp_seconds 1.7999964e+09",
		`uvxlan_host_fault{part="device"} 0`, `uvxlan_host_fault{part="forwarding"} 1`,
		"uvxlan_peers 2", `uvxlan_peers_by_path{path="direct"} 1`, `uvxlan_peers_by_path{path="none"} 0`, `uvxlan_peers_by_path{path="vxlan"} 1`,
		`uvxlan_peer_direct{link="eth0",subnet="10.0.0.0/24"} 1`, `uvxlan_peer_direct{link="",subnet="10.0.1.0/24"} 0`,
		`uvxlan_peer_packets_total{direction="tx",subnet="10.0.1.0/24"} 30`, `uvxlan_peer_packets_total{direction="rx",subnet="10.0.1.0/24"} 31`,
		`uvxlan_peer_bytes_total{direction="tx",subnet="10.0.1.0/24"} 3000`, `uvxlan_peer_bytes_total{direction="rx",subnet="10.0.1.0/24"} 3001`,
		`uvxlan_peer_last_seen_timestamp_seconds{subnet="10.0.1.0/24"} 1.799999998e+09`,
		"uvxlan_peers_silent 1", `uvxlan_peer_answering{subnet="10.0.0.0/24"} 0`, `uvxlan_peer_answering{subnet="10.0.1.0/24"} 1`,
		`uvxlan_peer_probes_sent_total{subnet="10.0.0.0/24"} 9`, `uvxlan_peer_probes_answered_total{subnet="10.0.1.0/24"} 11`,
		`uvxlan_peer_rtt_seconds{subnet="10.0.1.0/24"} 0.002`, `uvxlan_peer_long_packets_lost{subnet="10.0.1.0/24"} 0`,
		`uvxlan_peer_path_mtu_bytes{subnet="10.0.1.0/24"} 1450`, `uvxlan_peer_last_heard_timestamp_seconds{subnet="10.0.1.0/24"} 1.799999999e+09`,
		`uvxlan_packets_total{direction="tx"} 10`, `uvxlan_packets_total{direction="rx"} 11`,
		`uvxlan_bytes_total{direction="tx"} 1000`, `uvxlan_bytes_total{direction="rx"} 1001`,
		`uvxlan_datagrams_total{direction="tx"} 20`, `uvxlan_datagrams_total{direction="rx"} 21`,
		`uvxlan_messages_total{direction="tx"} 5`, `uvxlan_messages_total{direction="rx"} 6`,
		`uvxlan_batches_total{direction="tx"} 4`, `uvxlan_batches_total{direction="rx"} 3`,
		"uvxlan_direct_packets_total 8", "uvxlan_offload_fallbacks_total 9", "uvxlan_answers_total 12",
		`uvxlan_drops_total{reason="no_route"} 3`, `uvxlan_drops_total{reason="send"} 0`,
		`uvxlan_offload_enabled{offload="tso"} 1`, `uvxlan_offload_enabled{offload="uso"} 0`,
		"uvxlan_fastpath_attached 1", `uvxlan_fastpath_packets_total{direction="tx"} 40`, `uvxlan_fastpath_packets_total{direction="rx"} 41`,
		`uvxlan_fastpath_bytes_total{direction="tx"} 4000`, `uvxlan_fastpath_bytes_total{direction="rx"} 4001`,
		`uvxlan_fastpath_left_total{direction="tx",reason="syn"} 4`, `uvxlan_fastpath_left_total{direction="rx",reason="ecn"} 0`,
		"uvxlan_lease_expiry_timestamp_seconds 1.8000036e+09", "uvxlan_lease_renewed_timestamp_seconds 1.79999994e+09",
		"uvxlan_etcd_up 1", "uvxlan_etcd_errors_total 7", "uvxlan_etcd_skipped_entries_total 2",
		"uvxlan_log_lines_dropped_total 3", "uvxlan_watch_age_seconds 90", "uvxlan_watch_last_event_timestamp_seconds 1.799999999e+09",
	)
}

// A silent peer has no round-trip time, and one that isn't asked no health.
func TestMetricsOfHealth(t *testing.T) {
	s := full()
	if text := scrape(t, s); strings.Contains(text, `uvxlan_peer_rtt_seconds{subnet="10.0.0.0/24"}`) || strings.Contains(text, `lost{subnet="10.0.0.0/24"}`) {
		t.Error("a silent peer has a round-trip time")
	}
	s.peers[0].Health, s.peers[1].Health, s.status.NotProbed = nil, nil, "by -probe-interval=0"
	for _, name := range []string{"peers_silent", "peer_answering", "peer_probes", "peer_rtt", "peer_long"} {
		if strings.Contains(scrape(t, s), "uvxlan_"+name) {
			t.Errorf("there is an uvxlan_%s", name)
		}
	}
}

// What isn't known has no value, rather than a wrong one.
func TestMetricsOfADaemonThatStarts(t *testing.T) {
	text := scrape(t, source{})
	expect(t, text, "uvxlan_ready 0", "uvxlan_peers 0", "uvxlan_etcd_up 0", "uvxlan_etcd_errors_total 0")
	for _, name := range []string{"lease_expiry", "lease_renewed", "watch_age", "watch_last", "packets", "drops", "offload", "start_time", "fastpath"} {
		if strings.Contains(text, "uvxlan_"+name) {
			t.Errorf("there is an uvxlan_%s", name)
		}
	}
}

// Without a router, as with host-gw, the daemon knows how many peers there are.
func TestMetricsWithoutRouter(t *testing.T) {
	s := full()
	s.stats = nil
	text := scrape(t, s)
	expect(t, text, "uvxlan_peers 2", `uvxlan_peers_by_path{path="direct"} 1`)
	if strings.Contains(text, "uvxlan_packets_total") {
		t.Error("there are packets nobody counts")
	}
}

func TestMetricsOfManyPeers(t *testing.T) {
	for n, single := range map[int]int{metrics.MaxPeers: metrics.MaxPeers, metrics.MaxPeers + 1: 0} {
		s := source{peers: peers(n)}
		if got := strings.Count(scrape(t, s), "\nuvxlan_peer_direct{"); got != single {
			t.Errorf("%d peers have %d series, want %d", n, got, single)
		}
	}
	expect(t, scrape(t, source{peers: peers(metrics.MaxPeers + 1)}), `uvxlan_peers_by_path{path="vxlan"} 1001`)
}

// A moment is told from a duration by its name.
func TestMomentsAreNamedTimestamps(t *testing.T) {
	s := full()
	s.status.Watch.AsOf = s.status.Now.Add(-time.Minute)
	moments := 0
	for line := range strings.Lines(scrape(t, s)) {
		name, help, isHelp := strings.Cut(strings.TrimPrefix(line, "# HELP "), " ")
		if !isHelp || !strings.HasPrefix(line, "# HELP uvxlan_") {
			continue
		}
		isMoment := strings.Contains(help, "Unix time")
		if isMoment != strings.HasSuffix(name, "_timestamp_seconds") {
			t.Errorf("%s: %s", name, help)
		}
		if isMoment {
			moments++
		}
	}
	if moments != 7 {
		t.Errorf("%d moments, want 7", moments)
	}
}

func TestMetricsAreWellNamed(t *testing.T) {
	problems, err := promlint.New(strings.NewReader(scrape(t, full()))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}
