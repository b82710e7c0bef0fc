package main

import (
	"context"
	"net/netip"
	"time"

	"uvxlan/cmd/internal/control"
)

// sample is what a daemon had counted at a moment.
type sample struct {
	at     time.Time // by this process's clock
	status control.Status
	peers  []control.Peer
}

func takeSample(ctx context.Context, c *control.Client) (sample, error) {
	var s sample
	var err error
	if s.status, err = c.Status(ctx); err != nil {
		return sample{}, err
	}
	s.peers, err = c.Peers(ctx)
	s.at = time.Now()
	return s, err
}

// rates is what top shows once, in its JSON form.
type rates struct {
	Time time.Time `json:"time"`
	// Seconds is the time that the rates are the mean of, 0 if nothing is known
	// before Time; the rates are 0 then.
	Seconds float64 `json:"seconds"`
	// Sent and Received are the peers' together.
	Sent     rate                `json:"sent"`
	Received rate                `json:"received"`
	Drops    map[string]dropRate `json:"drops"`
	Peers    []peerRates         `json:"peers"`

	status control.Status
}

// rate is the traffic of one direction.
type rate struct {
	Packets float64 `json:"packets_per_second"`
	Bits    float64 `json:"bits_per_second"`
}

func (r rate) plus(o rate) rate { return rate{r.Packets + o.Packets, r.Bits + o.Bits} }

// dropRate is the packets dropped for one reason.
type dropRate struct {
	Total     uint64  `json:"total"`
	PerSecond float64 `json:"per_second"`
}

// peerRates is the traffic with one peer. Sent and Received are nil where the
// daemon doesn't count it.
type peerRates struct {
	Subnet   netip.Prefix `json:"subnet"`
	PublicIP netip.Addr   `json:"public_ip"`
	Path     string       `json:"path"`
	Fast     bool         `json:"fast"`
	Sent     *rate        `json:"sent,omitempty"`
	Received *rate        `json:"received,omitempty"`
	LastSeen time.Time    `json:"last_seen,omitzero"`
	// Health is what the peer has answered, nil if it isn't asked.
	Health *control.Health `json:"health,omitempty"`
}

// way is the path, and whether the fast path carries it.
func (p peerRates) way() string {
	if p.Fast {
		return p.Path + ", fast"
	}
	return p.Path
}

// bits is what counts for the order.
func (p peerRates) bits() float64 {
	if p.Sent == nil || p.Received == nil {
		return 0
	}
	return p.Sent.Bits + p.Received.Bits
}

// between makes rates of what was counted from before to now. What is counted
// anew meanwhile, by another daemon or after the device was made again, has the
// rate 0 once.
func between(before, now sample) rates {
	r := rates{Time: now.at, Drops: map[string]dropRate{}, Peers: make([]peerRates, 0, len(now.peers)), status: now.status}
	if before.status.Started.Equal(now.status.Started) {
		r.Seconds = now.at.Sub(before.at).Seconds()
	}
	r.addDrops(before.status.Traffic, now.status.Traffic)
	earlier := make(map[netip.Prefix]*control.PeerTraffic)
	for _, p := range before.peers {
		earlier[p.Subnet] = p.Traffic
	}
	for _, p := range now.peers {
		out := peerRates{Subnet: p.Subnet, PublicIP: p.PublicIP, Path: p.Path, Fast: p.Fast, Health: p.Health}
		if t := p.Traffic; t != nil {
			old := earlier[p.Subnet]
			if old == nil { // a new peer counts from 0
				old = &control.PeerTraffic{}
			}
			sent, received := r.rate(old.Sent, t.Sent), r.rate(old.Received, t.Received)
			out.Sent, out.Received, out.LastSeen = &sent, &received, t.LastSeen
			r.Sent, r.Received = r.Sent.plus(sent), r.Received.plus(received)
		}
		r.Peers = append(r.Peers, out)
	}
	return r
}

func (r *rates) addDrops(before, now *control.Traffic) {
	if now == nil {
		return
	}
	for reason, n := range now.Drops {
		d := dropRate{Total: n}
		if before != nil {
			d.PerSecond = r.perSecond(before.Drops[reason], n)
		}
		r.Drops[reason] = d
	}
}

func (r *rates) rate(before, now control.Count) rate {
	return rate{Packets: r.perSecond(before.Packets, now.Packets), Bits: 8 * r.perSecond(before.Bytes, now.Bytes)}
}

func (r *rates) perSecond(before, now uint64) float64 {
	if r.Seconds <= 0 || now < before {
		return 0
	}
	return float64(now-before) / r.Seconds
}
