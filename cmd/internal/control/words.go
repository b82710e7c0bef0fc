package control

import (
	"fmt"
	"strings"
	"time"
)

// Words is what /readyz says to people: readiness first, then a line for each
// reason and each part.
func (s *Status) Words() string {
	var b strings.Builder
	if s.Ready {
		b.WriteString("uvxland is ready\n")
	} else {
		b.WriteString("uvxland is not ready yet\n")
	}
	for _, r := range s.Reasons {
		fmt.Fprintf(&b, "not ready: %s\n", r)
	}
	for _, n := range s.Notes {
		fmt.Fprintf(&b, "note: %s\n", n)
	}
	if s.Device != "" {
		fmt.Fprintf(&b, "device: %s, mtu %d\n", s.Device, s.MTU)
	}
	if s.FastPath != nil {
		fmt.Fprintf(&b, "fast path: %s\n", s.FastPath.Words())
	}
	fmt.Fprintf(&b, "lease: %s\n", s.LeaseWords())
	name, _ := s.Leases()
	fmt.Fprintf(&b, "%s: %s\n", strings.ToLower(name), s.RegistryWords())
	fmt.Fprintf(&b, "watch: %s\n", s.WatchWords())
	fmt.Fprintf(&b, "peers: %s\n", s.PeersWords())
	return b.String()
}

// PeersWords tell how many peers there are, and how many of them are silent.
func (s *Status) PeersWords() string {
	switch {
	case s.Silent > 0:
		return fmt.Sprintf("%d, of which %d don't answer", s.Peers, s.Silent)
	case s.NotProbed != "" && s.Peers > 0:
		return fmt.Sprintf("%d, not probed: %s", s.Peers, s.NotProbed)
	}
	return fmt.Sprint(s.Peers)
}

// Line is the status in short, for a service manager.
func (s *Status) Line() string {
	var parts []string
	switch {
	case len(s.Reasons) > 0:
		parts = append(parts, "not ready: "+s.Reasons[0])
	case s.Lease != nil:
		parts = append(parts, fmt.Sprintf("%s, %s, peers: %d", s.Lease.Subnets(), s.Model, s.Peers))
	}
	return strings.Join(append(parts, s.Notes...), "; ")
}

// LeaseWords tells of the lease.
func (s *Status) LeaseWords() string {
	switch l := s.Lease; {
	case l == nil:
		return "none yet"
	case l.Node != "":
		return fmt.Sprintf("%s, assigned to node %s", l.Subnets(), l.Node)
	case l.Reserved:
		return fmt.Sprintf("%s, reserved, doesn't expire", l.Subnets())
	case l.Expires.IsZero():
		return fmt.Sprintf("%s, its end is not known", l.Subnets())
	case !s.Now.Before(l.Expires):
		return fmt.Sprintf("%s, renewed %s ago, expired %s ago", l.Subnets(), s.ago(l.Renewed), s.ago(l.Expires))
	default:
		return fmt.Sprintf("%s, renewed %s ago, expires in %s", l.Subnets(), s.ago(l.Renewed), Round(l.Expires.Sub(s.Now)))
	}
}

// RegistryWords tells of the way to where the leases are.
func (s *Status) RegistryWords() string {
	_, e := s.Leases()
	words := "not asked yet"
	if !e.Since.IsZero() {
		words = "up for " + s.ago(e.Since)
		if !e.Up {
			words = "down for " + s.ago(e.Since)
		}
	}
	if e.LastError != "" {
		words += fmt.Sprintf(", %d errors, the last %s ago: %s", e.Errors, s.ago(e.LastErrorAt), e.LastError)
	}
	if e.Skipped > 0 {
		words += fmt.Sprintf(", %d entries that are no leases", e.Skipped)
	}
	return words
}

// WatchWords tells of the watch.
func (s *Status) WatchWords() string {
	w := s.Watch
	words := "not alive"
	if w.Alive {
		words = "alive for " + s.ago(w.Since)
	}
	if !w.AsOf.IsZero() {
		words += ", leases are stale: " + s.AgeWords()
	}
	if !w.Heard.IsZero() {
		words += ", last heard of a lease " + s.ago(w.Heard) + " ago"
	}
	return words
}

// AgeWords tells how old the leases in force are while they aren't watched.
func (s *Status) AgeWords() string {
	words := "as of " + s.ago(s.Watch.AsOf) + " ago"
	if s.Watch.Stored {
		words += ", stored by an earlier run"
	}
	return words
}

func (s *Status) ago(t time.Time) string { return Round(s.Now.Sub(t)) }

// Round writes a duration with its two largest units, such as 3h12m or 4.2s.
func Round(d time.Duration) string {
	const day = 24 * time.Hour
	d = max(d, 0)
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	case d < day:
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	}
	d = d.Round(time.Hour)
	return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
}
