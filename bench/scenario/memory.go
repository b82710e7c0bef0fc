package scenario

import (
	"context"
	"errors"
	"time"

	"uvxlan/bench/iperf"
	"uvxlan/bench/procstat"
)

const (
	// memoryFlows is the number of streams each way, first of TCP and then of UDP: with
	// so many, each worker has some.
	memoryFlows = 16
	// memoryIdle is for how long a daemon has been idle when it is looked at first.
	memoryIdle = 5 * time.Second
	// memoryInterval is between two looks at a process.
	memoryInterval = 50 * time.Millisecond
)

func memoryScenarios() []Scenario {
	return []Scenario{{
		Name:  "memory",
		About: "Memory of a daemon, 5 s after its start and then under 16 flows each way, first TCP, then UDP of 64 bytes; the larger of the two hosts'",
		Main:  MemoryLoaded, Fresh: true, Least: 6 * time.Second, Run: memory,
	}}
}

func memory(ctx context.Context, p Path, d time.Duration) (Sample, error) {
	if len(p.PIDs) == 0 {
		return nil, errors.New("no process carries the packets")
	}
	select {
	case <-time.After(memoryIdle):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	var idle, loaded procstat.Memory
	if err := largest(p.PIDs, &idle); err != nil {
		return nil, err
	}
	end, watched := make(chan struct{}), make(chan error, 1)
	go func() { watched <- watchMemory(p.PIDs, end, &loaded) }()
	_, _, err := transfer(ctx, p, iperf.Test{Streams: memoryFlows, Bidirectional: true}, d/2)
	if err == nil {
		_, _, err = transfer(ctx, p, iperf.Test{UDP: true, Length: 64, Streams: memoryFlows, Bidirectional: true}, d-d/2)
	}
	close(end)
	if err := errors.Join(err, <-watched); err != nil {
		return nil, err
	}
	return Sample{
		MemoryIdle: mebibytes(idle.Resident), MemoryAnonymousIdle: mebibytes(idle.Anonymous),
		MemoryLoaded: mebibytes(loaded.Resident), MemoryAnonymous: mebibytes(loaded.Anonymous), MemoryHuge: mebibytes(loaded.Huge),
	}, nil
}

func mebibytes(n int64) float64 { return float64(n) / (1 << 20) }

// watchMemory notes the most until the end, which is looked at as well.
func watchMemory(pids []int, end <-chan struct{}, most *procstat.Memory) error {
	tick := time.NewTicker(memoryInterval)
	defer tick.Stop()
	for {
		last := ended(end)
		if err := largest(pids, most); err != nil || last {
			return err
		}
		select {
		case <-tick.C:
		case <-end:
		}
	}
}

// largest makes each part of most at least what one of the processes has.
func largest(pids []int, most *procstat.Memory) error {
	for _, pid := range pids {
		m, err := procstat.ReadMemory(pid)
		if err != nil {
			return err
		}
		most.Resident = max(most.Resident, m.Resident)
		most.Anonymous = max(most.Anonymous, m.Anonymous)
		most.Huge = max(most.Huge, m.Huge)
	}
	return nil
}
