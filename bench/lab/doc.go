// Package lab makes a small network out of network namespaces: hosts on their
// underlay, a container behind each, and the router between them. The demo,
// the integration tests and the benchmarks run on it.
//
//	kb21 192.168.14.21/24 --+
//	                        +-- bridge -- kb-router -- kb31 192.168.15.31/24
//	kb22 192.168.14.22/24 --+
//
// A host's interface is eth0, its default route leads to the router's .1, and
// its container <host>-c1 has 172.7.<n>.2/24 behind the gateway 172.7.<n>.1.
// All of it needs root, and Linux 5.7 for SetOffloads.
//
// A machine has one lab at a time: a lock on /run/uvxlan-lab.lock is held from
// New to Close. Every namespace of a lab carries a mark, an alias on its
// loopback interface, so that what a killed run left is told from namespaces
// that somebody else made under the same names; the latter are never touched.
package lab
