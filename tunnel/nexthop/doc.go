// Package nexthop tells which addresses of the underlay are neighbours, by
// which link and which MAC, and follows what the kernel changes about it.
//
// A [Watcher] asks the kernel for the route of each tracked address and, if
// wanted, for its neighbour entry, and then listens: to routes, rules, links and
// addresses, which it waits out for some milliseconds before it asks again, and
// to neighbours, which count at once.
//
// To follow an event: subscribe.go from the socket, topology.go and neighbour.go
// for what it means, run.go for the loop around both, hop.go for the decision.
//
// The package changes nothing but neighbour entries, and those only as a packet
// of the kernel's own would. It logs only to the logger it is given and starts
// nothing before [Watcher.Run].
package nexthop
