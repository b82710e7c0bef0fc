package scenario

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"uvxlan/bench/iperf"
	"uvxlan/bench/lab"
)

const (
	slowFlows    = 16
	slowFlowRate = 200_000_000 // bits a second of each
	slowLength   = 1400
	// slowInbound is the rate of the numbered datagrams that come in, and of those
	// that go to the fast peer and back.
	slowInbound = 2000
	// slowBegin is left out: until then the queue fills.
	slowBegin = time.Second
	// slowTime is the least time of a run: of its 10,000 gaps the longest ten are
	// above p99.9.
	slowTime = 5 * time.Second
)

func slowPeerScenarios() []Scenario {
	const load = "16 UDP flows of 200 Mbit/s to a peer behind 50 Mbit/s, 2,000 packets/s in from it, 2,000 to a fast peer and back"
	return []Scenario{
		slowPeer("slow-peer", load+"; only packets to the slow peer share its queue", false),
		slowPeer("slow-link", load+"; all that leaves the host shares the slow queue", true),
	}
}

// slowPeer measures what a full send buffer does to all else. With shared, the fast
// peer is behind the slow link as well, and isn't asked.
func slowPeer(name, about string, shared bool) Scenario {
	return Scenario{
		Name: name, About: about, Main: GapP999, Third: true, Least: slowTime,
		Run: func(ctx context.Context, p Path, d time.Duration) (_ Sample, err error) {
			if err := narrow(ctx, p.ClientHost, p.ServerHost, shared); err != nil {
				return nil, err
			}
			defer func() { err = errors.Join(err, widen(p.ClientHost)) }()
			return besideSlowPeer(ctx, p, d, shared)
		},
	}
}

// narrow puts 50 Mbit/s between a host and a peer, or between it and everything, on
// the host's own interface. The queue is longer than all that a host's sockets may
// hold, so it is these that fill, and a burst holds a superpacket. ARP goes by:
// neighbours aren't to be forgotten.
func narrow(ctx context.Context, h, peer *lab.Host, all bool) error {
	other := "2"
	if all {
		other = "1"
	}
	for _, line := range []string{
		"qdisc replace dev eth0 root handle 1: htb default " + other,
		"class add dev eth0 parent 1: classid 1:1 htb rate 50mbit burst 128kb",
		"class add dev eth0 parent 1: classid 1:2 htb rate 40gbit burst 1mb quantum 131072",
		"qdisc add dev eth0 parent 1:1 bfifo limit 1gb",
		"qdisc add dev eth0 parent 1:2 pfifo limit 10000",
		"filter add dev eth0 parent 1: protocol arp prio 1 u32 match u32 0 0 classid 1:2",
		"filter add dev eth0 parent 1: protocol ip prio 2 u32 match ip dst " + peer.Address.String() + "/32 classid 1:1",
	} {
		if _, err := h.Run(ctx, "tc", strings.Fields(line)...); err != nil {
			return errors.Join(fmt.Errorf("slow down %s: %w", h.Name, err), widen(h))
		}
	}
	return nil
}

// widen removes what narrow made, and what waits there. It must work when the run
// was ended, too.
func widen(h *lab.Host) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := h.Run(ctx, "tc", "qdisc", "del", "dev", "eth0", "root"); err != nil {
		return fmt.Errorf("end the slowness of %s: %w", h.Name, err)
	}
	return nil
}

// besideSlowPeer sends to the slow peer and measures what comes in and the fast one.
func besideSlowPeer(ctx context.Context, p Path, d time.Duration, shared bool) (Sample, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	flooded := make(chan error, 1)
	go func() { flooded <- flood(ctx, p, d) }()
	select {
	case <-time.After(slowBegin):
	case err := <-flooded:
		return nil, errors.Join(err, ctx.Err())
	}
	var in, fast stream
	var inErr, fastErr error
	var wg sync.WaitGroup
	wg.Go(func() { in, inErr = numbered{from: p.Server, to: p.Client, rate: slowInbound}.run(ctx, d) })
	if !shared {
		wg.Go(func() {
			fast, fastErr = numbered{from: p.Client, to: p.Third, rate: slowInbound, echo: true}.run(ctx, d)
		})
	}
	wg.Wait()
	cancel()
	if err := errors.Join(inErr, fastErr, <-flooded); err != nil {
		return nil, err
	}
	gaps := in.gaps()
	if len(gaps) == 0 {
		return nil, errors.New("one datagram came in")
	}
	s := Sample{
		GapP50: milliseconds(quantile(gaps, 0.5)), GapP99: milliseconds(quantile(gaps, 0.99)),
		GapP999: milliseconds(quantile(gaps, 0.999)), GapMax: milliseconds(quantile(gaps, 1)),
		InboundLost: float64(in.lost()),
	}
	if !shared {
		rtts := fast.delays()
		s[FastRate] = float64(len(rtts)) / d.Seconds() / 1e3
		s[FastLost] = float64(fast.lost())
		s[FastP50], s[FastP99] = microseconds(quantile(rtts, 0.5)), microseconds(quantile(rtts, 0.99))
	}
	return s, nil
}

// flood sends to the slow peer for longer than the rest is measured. Then iperf3 is
// killed: what its own connection says waits in the slow queue, for half a minute.
func flood(ctx context.Context, p Path, d time.Duration) error {
	_, err := iperf.Test{
		Server: p.Server.Node, Client: p.Client.Node, To: p.Server.Address, Duration: d + slowBegin + 10*time.Second,
		UDP: true, Streams: slowFlows, Bandwidth: slowFlows * slowFlowRate, Length: slowLength,
	}.Run(ctx)
	if ctx.Err() != nil {
		return nil //nolint:nilerr // it was killed
	}
	return errors.Join(err, errors.New("the flows to the slow peer ended early"))
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
