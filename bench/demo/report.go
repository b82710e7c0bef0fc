package main

import (
	"time"

	"uvxlan/bench/lab"
)

// report is what a demo measured, in its JSON form.
type report struct {
	RoundTrips []roundTrip  `json:"round_trips"`
	Rates      []streamRate `json:"rates"`
}

// roundTrip is the time between two containers.
type roundTrip struct {
	From         string  `json:"from"`
	To           string  `json:"to"`
	Path         string  `json:"path"`
	Milliseconds float64 `json:"milliseconds"`
}

// streamRate is one TCP stream between two containers.
type streamRate struct {
	From          string  `json:"from"`
	To            string  `json:"to"`
	Path          string  `json:"path"`
	BitsPerSecond float64 `json:"bits_per_second"`
	Retransmits   int     `json:"retransmits"`
}

func (d *demo) report() (r report) {
	for _, from := range d.lab.Hosts() {
		for _, to := range d.lab.Hosts() {
			if from != to {
				rtt := d.rtt[[2]string{from.Name, to.Name}]
				r.RoundTrips = append(r.RoundTrips, roundTrip{
					From: from.Container.Name, To: to.Container.Name, Path: d.way(from, to),
					Milliseconds: float64(rtt) / float64(time.Millisecond),
				})
			}
		}
	}
	for _, m := range d.rates {
		r.Rates = append(r.Rates, streamRate{
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
