package scenario

import (
	"context"
	"fmt"
	"time"

	"uvxlan/bench/procstat"
)

// pacedTime is the least time of a run: the kernel counts a process's CPU time in
// ticks of 10 ms, each 0.5 % of it.
const pacedTime = 2 * time.Second

func pacedScenarios() (all []Scenario) {
	for _, thousands := range []int{1, 4, 12} {
		all = append(all, Scenario{
			Name:  fmt.Sprintf("paced-%dk", thousands),
			About: fmt.Sprintf("UDP, %d,000 packets/s evenly spaced, 64 bytes; p50 and p99 are of the way there", thousands),
			Main:  CPUShare, Least: pacedTime,
			Run: func(ctx context.Context, p Path, d time.Duration) (Sample, error) {
				return paced(ctx, p, 1000*thousands, d)
			},
		})
	}
	return all
}

// paced tells what packets cost that come alone.
func paced(ctx context.Context, p Path, rate int, d time.Duration) (Sample, error) {
	before, err := measure(p.PIDs)
	if err != nil {
		return nil, err
	}
	machine, err := procstat.ReadCPU()
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	came, err := numbered{from: p.Client, to: p.Server, rate: rate}.run(ctx, d)
	if err != nil {
		return nil, err
	}
	took := time.Since(begin)
	now, err := procstat.ReadCPU()
	if err != nil {
		return nil, err
	}
	after, err := measure(p.PIDs)
	if err != nil {
		return nil, err
	}
	used := after.since(before)
	all := now.Since(machine).Used(took) // as regular as they are, packets escape the ticks
	sample := summary(came.delays())
	sample[Loss] = 100 * float64(came.lost()) / float64(came.sent)
	sample[CPUShare] = 100 * all.Seconds() / took.Seconds()
	if n := len(p.PIDs); n > 0 {
		sample[DaemonShare] = 100 * used.processes.Seconds() / took.Seconds() / float64(n)
	}
	return sample, nil
}
