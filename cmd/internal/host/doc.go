// Package host keeps what a daemon needs on its host as it should be.
//
// A [Part] is one such thing: a route, a sysctl, a set of firewall rules. It says
// how to check it, how to repair it and which of the kernel's events ask for a
// look. A [Keeper] checks its parts when they are added, after their events and
// from time to time, repairs what is ours to repair, and knows all that is wrong
// at the moment. Whoever tells of the daemon reads that one list: "ready" means
// that no part has a fault that stops packets.
//
// Each part has a goroutine of its own, so that one which waits, for a lock say,
// delays no other.
package host
