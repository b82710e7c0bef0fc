package demo

import (
	"time"

	"uvxlan/bench/lab"
)

// Report is what a demo measured, in its JSON form.
type Report struct {
	RoundTrips []RoundTrip `json:"round_trips"`
	Rates      []Rate      `json:"rates"`
}

// RoundTrip is the time between two containers.
type RoundTrip struct {
	From         string  `json:"from"`
	To           string  `json:"to"`
	Path         string  `json:"path"`
	Milliseconds float64 `json:"milliseconds"`
}

// Rate is one TCP stream between two containers.
type Rate struct {
	From          string  `json:"from"`
	To            string  `json:"to"`
	Path          string  `json:"path"`
	BitsPerSecond float64 `json:"bits_per_second"`
	Retransmits   int     `json:"retransmits"`
}

func (d *demo) report() Report {
	var r Report
	for _, from := range d.lab.Hosts() {
		for _, to := range d.lab.Hosts() {
			if from != to {
				rtt := d.rtt[[2]string{from.Name, to.Name}]
				r.RoundTrips = append(r.RoundTrips, RoundTrip{
					From: from.Container.Name, To: to.Container.Name, Path: d.way(from, to),
					Milliseconds: float64(rtt) / float64(time.Millisecond),
				})
			}
		}
	}
	for _, m := range d.rates {
		r.Rates = append(r.Rates, Rate{
			From: m.from.Container.Name, To: m.to.Container.Name, Path: d.way(m.from, m.to),
			BitsPerSecond: m.BitsPerSecond, Retransmits: m.Retransmits,
		})
	}
	return r
}

// way is path in a word.
func (d *demo) way(from, to *lab.Host) string {
	if d.path(from, to) == "directly" {
		return "direct"
	}
	return "vxlan"
}
