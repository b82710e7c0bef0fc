// Package scenario has what the benchmarks measure on a pair of hosts that a
// system joined.
package scenario

import (
	"context"
	"slices"
	"time"

	"uvxlan/bench/lab"
)

// Metric is a quantity that a scenario measures.
type Metric struct {
	// Name is short, for tables; Unit is that of the values.
	Name, Unit string
	// Lower says that less is better.
	Lower bool
	// Plain says that a ratio to another system would say nothing.
	Plain bool
}

// What is measured, in the order in which reports show it: CPU time first, since it
// differs least between machines.
var (
	CPUPerGB     = Metric{Name: "CPU", Unit: "s/GB", Lower: true}
	DaemonPerGB  = Metric{Name: "CPU of the daemons", Unit: "s/GB", Lower: true, Plain: true}
	CPUPerPacket = Metric{Name: "CPU", Unit: "us/packet", Lower: true}
	CPUShare     = Metric{Name: "CPU", Unit: "% of one", Lower: true}
	DaemonShare  = Metric{Name: "CPU of a daemon", Unit: "% of one", Lower: true, Plain: true}
	Rate         = Metric{Name: "rate", Unit: "Gbit/s"}
	Received     = Metric{Name: "received", Unit: "kpps"}
	Loss         = Metric{Name: "loss", Unit: "%", Lower: true, Plain: true}
	P50          = Metric{Name: "p50", Unit: "us", Lower: true}
	P99          = Metric{Name: "p99", Unit: "us", Lower: true}
	Connections  = Metric{Name: "connections", Unit: "1/s"}
	Retransmits  = Metric{Name: "retransmits", Unit: "1/GB", Lower: true, Plain: true}

	GapP50      = Metric{Name: "gap in, p50", Unit: "ms", Lower: true}
	GapP99      = Metric{Name: "gap in, p99", Unit: "ms", Lower: true}
	GapP999     = Metric{Name: "gap in, p99.9", Unit: "ms", Lower: true}
	GapMax      = Metric{Name: "gap in, most", Unit: "ms", Lower: true}
	InboundLost = Metric{Name: "lost in", Unit: "packets", Lower: true, Plain: true}
	FastRate    = Metric{Name: "fast peer, echoed", Unit: "kpps"}
	FastLost    = Metric{Name: "fast peer, lost", Unit: "packets", Lower: true, Plain: true}
	FastP50     = Metric{Name: "fast peer, p50", Unit: "us", Lower: true}
	FastP99     = Metric{Name: "fast peer, p99", Unit: "us", Lower: true}

	MemoryIdle          = Metric{Name: "resident, idle", Unit: "MiB", Lower: true, Plain: true}
	MemoryAnonymousIdle = Metric{Name: "anonymous, idle", Unit: "MiB", Lower: true, Plain: true}
	MemoryLoaded        = Metric{Name: "resident, loaded", Unit: "MiB", Lower: true, Plain: true}
	MemoryAnonymous     = Metric{Name: "anonymous, loaded", Unit: "MiB", Lower: true, Plain: true}
	MemoryHuge          = Metric{Name: "huge pages, loaded", Unit: "MiB", Lower: true, Plain: true}
)

// Metrics is all of them.
var Metrics = []Metric{
	CPUPerGB, DaemonPerGB, CPUPerPacket, CPUShare, DaemonShare, Rate, Received, Loss, P50, P99, Connections, Retransmits,
	GapP50, GapP99, GapP999, GapMax, InboundLost, FastRate, FastLost, FastP50, FastP99,
	MemoryIdle, MemoryAnonymousIdle, MemoryLoaded, MemoryAnonymous, MemoryHuge,
}

// Sample is the outcome of one run.
type Sample map[Metric]float64

// Path is where a scenario sends its traffic.
type Path struct {
	Client, Server *lab.Container
	// ClientHost and ServerHost are their hosts.
	ClientHost, ServerHost *lab.Host
	// Third is another peer's container, nil unless the scenario asks for it.
	Third *lab.Container
	// PIDs are the processes that carry the packets, none if it is the kernel.
	PIDs []int
}

// Scenario is one way to load a path.
type Scenario struct {
	Name, About string
	// Main is the metric that stands for the scenario.
	Main Metric
	// Third says that it takes a third host, Fresh that the system must have been
	// started just before.
	Third, Fresh bool
	// Least is the least time of a run; zero means a second.
	Least time.Duration
	// Run loads the path for a time, in whole seconds, at least Least.
	Run func(ctx context.Context, p Path, d time.Duration) (Sample, error)
}

// Time is how long a run takes when d was asked for.
func (s Scenario) Time(d time.Duration) time.Duration { return max(d, s.Least, time.Second) }

// All returns the scenarios in the order in which reports show them.
func All() []Scenario {
	return slices.Concat(tcpScenarios(), udpScenarios(), rttScenarios(), connScenarios(), pacedScenarios(), slowPeerScenarios(), memoryScenarios())
}
