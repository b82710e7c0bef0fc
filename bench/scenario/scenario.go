// Package scenario has what the benchmarks measure on a pair of hosts that a
// system joined.
package scenario

import (
	"context"
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

// What is measured, in the order in which reports show it.
var (
	Rate         = Metric{Name: "rate", Unit: "Gbit/s"}
	Received     = Metric{Name: "received", Unit: "kpps"}
	Loss         = Metric{Name: "loss", Unit: "%", Lower: true, Plain: true}
	P50          = Metric{Name: "p50", Unit: "us", Lower: true}
	P99          = Metric{Name: "p99", Unit: "us", Lower: true}
	Connections  = Metric{Name: "connections", Unit: "1/s"}
	Retransmits  = Metric{Name: "retransmits", Unit: "1/GB", Lower: true, Plain: true}
	CPUPerGB     = Metric{Name: "CPU", Unit: "s/GB", Lower: true}
	DaemonPerGB  = Metric{Name: "CPU of the daemons", Unit: "s/GB", Lower: true, Plain: true}
	CPUPerPacket = Metric{Name: "CPU", Unit: "us/packet", Lower: true}
)

// Metrics is all of them.
var Metrics = []Metric{Rate, Received, Loss, P50, P99, Connections, Retransmits, CPUPerGB, DaemonPerGB, CPUPerPacket}

// Sample is the outcome of one run.
type Sample map[Metric]float64

// Path is where a scenario sends its traffic.
type Path struct {
	Client, Server *lab.Container
	// PIDs are the processes that carry the packets, none if it is the kernel.
	PIDs []int
}

// Scenario is one way to load a path.
type Scenario struct {
	Name, About string
	// Main is the metric that stands for the scenario.
	Main Metric
	// Run loads the path for a time of at least a second, in whole seconds.
	Run func(ctx context.Context, p Path, d time.Duration) (Sample, error)
}

// All returns the scenarios in the order in which reports show them.
func All() []Scenario {
	var all []Scenario
	all = append(all, tcpScenarios()...)
	all = append(all, udpScenarios()...)
	all = append(all, rttScenarios()...)
	return append(all, connScenarios()...)
}
