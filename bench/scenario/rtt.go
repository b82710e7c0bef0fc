package scenario

import (
	"context"
	"errors"
	"fmt"
	"time"

	"uvxlan/bench/iperf"
)

func rttScenarios() []Scenario {
	return []Scenario{
		{Name: "rtt", About: "Round trip, idle, 1000 pings a second", Main: P50, Run: roundTrips},
		{Name: "rtt-load", About: "Round trip, beside 1 TCP stream", Main: P50, Run: roundTripsUnderLoad},
	}
}

func roundTrips(ctx context.Context, p Path, d time.Duration) (Sample, error) {
	rtts, err := pings(ctx, p, d)
	if err != nil {
		return nil, err
	}
	return summary(rtts), nil
}

// roundTripsUnderLoad leaves out the beginning, when TCP is still slow.
func roundTripsUnderLoad(ctx context.Context, p Path, d time.Duration) (Sample, error) {
	const begin = 300 * time.Millisecond
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	loaded := make(chan error, 1)
	go func() {
		_, err := iperf.Test{Server: p.Server.Node, Client: p.Client.Node, To: p.Server.Address, Duration: d}.Run(ctx)
		loaded <- err
	}()
	select {
	case <-time.After(begin):
	case <-ctx.Done():
	}
	rtts, err := pings(ctx, p, d-begin)
	if err != nil {
		cancel()
		return nil, errors.Join(err, <-loaded)
	}
	return summary(rtts), <-loaded
}

func pings(ctx context.Context, p Path, d time.Duration) ([]time.Duration, error) {
	var rtts []time.Duration
	err := p.Client.Do(func() error {
		e, err := newEchoer(p.Server.Address)
		if err != nil {
			return err
		}
		defer e.Close()
		rtts, err = e.run(ctx, d)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ping %s from %s: %w", p.Server.Name, p.Client.Name, err)
	}
	if len(rtts) == 0 {
		return nil, fmt.Errorf("ping %s from %s: no answer", p.Server.Name, p.Client.Name)
	}
	return rtts, nil
}

func summary(rtts []time.Duration) Sample {
	return Sample{P50: microseconds(quantile(rtts, 0.5)), P99: microseconds(quantile(rtts, 0.99))}
}

func microseconds(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
