// Package doctor finds out why packets don't pass, or pass badly, between this host
// and its peers, and says what mends it.
//
// It changes nothing. It asks the daemon what that knows, reads the kernel's counters
// and the host's firewall rules, and sends a few packets to each peer: ICMP echoes by
// the overlay and beside it, and where those are lost, VXLAN frames of its own that
// tell the two ways apart. A packet socket sees what really leaves the host and what
// really arrives. From all that evidence the judgements are made, by functions that
// do nothing else.
//
// To follow it: doctor.go is the order of things; peer.go what is done to one peer,
// measure.go if it answers, dig.go if it doesn't; frame.go and tap.go how; judge.go,
// alive.go and dead.go what is made of it, and host.go and leases.go what is known
// without a packet. explain.go tells of one destination.
package doctor
