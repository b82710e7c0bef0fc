package scenario

import (
	"context"
	"fmt"
	"time"

	"uvxlan/bench/iperf"
)

const bytesPerGB = 1e9

func tcpScenarios() []Scenario {
	return []Scenario{
		tcp("tcp1", "TCP, 1 stream", iperf.Test{}),
		tcp("tcp4", "TCP, 4 streams", iperf.Test{Streams: 4}),
		tcp("tcp16", "TCP, 16 streams", iperf.Test{Streams: 16}),
		tcp("tcp1-reverse", "TCP, 1 stream back, from the server", iperf.Test{Reverse: true}),
		tcp("tcp1-bidir", "TCP, 1 stream each way, sum of both", iperf.Test{Bidirectional: true}),
	}
}

func udpScenarios() []Scenario {
	return []Scenario{
		udp("udp64", "UDP, 64 bytes, one socket, as fast as possible", iperf.Test{Length: 64}),
		udp("udp1400", "UDP, 1400 bytes, one socket, as fast as possible", iperf.Test{Length: 1400}),
		udp("udp64-many", "UDP, 64 bytes x 16, from 16 sockets, as fast as possible", iperf.Test{Length: 64, Streams: 16}),
	}
}

func tcp(name, about string, t iperf.Test) Scenario {
	return Scenario{Name: name, About: about, Main: Rate, Run: func(ctx context.Context, p Path, d time.Duration) (Sample, error) {
		r, used, err := transfer(ctx, p, t, d)
		if err != nil {
			return nil, err
		}
		gigabytes := float64(r.Bytes) / bytesPerGB
		s := Sample{
			Rate:        r.BitsPerSecond / 1e9,
			Retransmits: float64(r.Retransmits) / gigabytes,
			CPUPerGB:    used.all.Seconds() / gigabytes,
		}
		if len(p.PIDs) > 0 {
			s[DaemonPerGB] = used.processes.Seconds() / gigabytes
		}
		return s, nil
	}}
}

func udp(name, about string, t iperf.Test) Scenario {
	t.UDP = true
	return Scenario{Name: name, About: about, Main: Received, Run: func(ctx context.Context, p Path, d time.Duration) (Sample, error) {
		r, used, err := transfer(ctx, p, t, d)
		if err != nil {
			return nil, err
		}
		received := float64(r.Packets - r.Lost)
		return Sample{
			Received:     received / r.Seconds / 1e3,
			Loss:         100 * float64(r.Lost) / float64(r.Packets),
			CPUPerPacket: used.all.Seconds() * 1e6 / received,
		}, nil
	}}
}

// transfer runs iperf3 over the path and tells what it cost.
func transfer(ctx context.Context, p Path, t iperf.Test, d time.Duration) (iperf.Result, usage, error) {
	t.Server, t.Client, t.To, t.Duration = p.Server.Node, p.Client.Node, p.Server.Address, d
	before, err := measure(p.PIDs)
	if err != nil {
		return iperf.Result{}, usage{}, err
	}
	r, err := t.Run(ctx)
	if err != nil {
		return r, usage{}, err
	}
	after, err := measure(p.PIDs)
	if err != nil {
		return r, usage{}, err
	}
	if r.Bytes == 0 || t.UDP && r.Packets == r.Lost {
		return r, usage{}, fmt.Errorf("nothing arrived at %s", p.Server.Name)
	}
	return r, after.since(before), nil
}
